use modelprofile_engine::{ModelConfig, WeightFormat, ZeroPoint};
use modelprofile_kernels::{KvFormat, cuda::What};
use modelprofile_roofline::{Batch, Bound, Constants, Hardware, Roofline, bits_per_weight, published::h100};

use super::{
    step::{Device, precision},
    *,
};

/// The simulator's matrices and attention against the kernels': both divide the same bytes and operations by the same
/// ceilings, but the simulator counts no activations, no whole tiles, no sums of parts, and the output layer in 16 bits.
const MATRICES_TOLERANCE: f64 = 0.15;
/// Bytes of the layers' packed weights against bits per weight: scales of rows, padding.
const BYTES_TOLERANCE: f64 = 0.002;

const INT4: WeightFormat = WeightFormat::Int4 { group: 128, zero: ZeroPoint::Minimum };

pub(crate) fn llama_8b() -> ModelConfig {
    config(32, 4096, 14_336, 32)
}

pub(crate) fn llama_70b() -> ModelConfig {
    config(80, 8192, 28_672, 64)
}

fn config(layers: usize, hidden: usize, intermediate: usize, heads: usize) -> ModelConfig {
    let shape = modelprofile_roofline::ModelShape {
        name: String::new(),
        layers: layers as u32,
        hidden: hidden as u32,
        intermediate: intermediate as u32,
        heads: heads as u32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 128_256,
        tied_embeddings: false,
        max_context_tokens: 131_072,
    };
    super::config(&shape)
}

fn profile(weights: WeightFormat, devices: usize) -> Profile {
    Profile { name: String::new(), weights, kv: KvFormat::Fp8E4m3, devices }
}

fn device(hardware: &Hardware, config: &ModelConfig, weights: WeightFormat, devices: usize) -> Device {
    Device::new(hardware, config, &profile(weights, devices)).unwrap()
}

/// The simulator without the overhead of layers, which stands for what kernels have one by one.
fn simulated(hardware: &Hardware, config: &ModelConfig, weights: WeightFormat, devices: usize) -> Roofline {
    let constants = Constants { layer_overhead_seconds: 0.0, ..Constants::default() };
    Roofline::new(hardware, &shape(config), precision(&profile(weights, devices)), constants)
}

/// Seconds of a step's products, attention and exchanges, without the least time of a kernel.
fn matrices(step: &Step, launch: f64) -> f64 {
    let counted = |entry: &&Entry| match entry.planned.what {
        What::AllReduce => true,
        What::Kernel | What::Library => entry.planned.work.operations > 0,
        What::Fill | What::HostCopy => false,
    };
    let less = |entry: &Entry| match entry.planned.what {
        What::AllReduce => entry.seconds(),
        _ => entry.seconds() - launch * entry.count as f64,
    };
    step.entries.iter().filter(counted).map(less).sum()
}

#[test]
fn products_and_attention_take_what_the_simulator_says() {
    let hardware = h100();
    for (config, devices) in [(llama_8b(), 1), (llama_70b(), 2), (llama_70b(), 4)] {
        for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8, INT4] {
            let device = device(&hardware, &config, weights, devices);
            for (batch, context) in [(1, 4000), (16, 1000)] {
                let step = device.decode(batch, context).unwrap();
                let work =
                    Batch { decode: batch as f64, decode_context: (batch * (context + 1)) as f64, ..Batch::default() };
                let expected = simulated(&hardware, &config, weights, devices).step_seconds(work);
                let ratio = matrices(&step, hardware.launch_seconds) / expected;
                assert!((ratio - 1.0).abs() < MATRICES_TOLERANCE, "{weights:?} {devices} {batch}: {ratio}");
            }
        }
    }
}

#[test]
fn a_prompt_of_eight_bits_takes_what_the_simulator_says() {
    let hardware = h100();
    let config = llama_8b();
    for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8] {
        let step = device(&hardware, &config, weights, 1).prefill(2048, 2048).unwrap();
        let work = Batch { prefill: 2048.0, prefill_context: 2048.0 * 2049.0 / 2.0, ..Batch::default() };
        let expected = simulated(&hardware, &config, weights, 1).step_seconds(work);
        let ratio = matrices(&step, hardware.launch_seconds) / expected;
        assert!((ratio - 1.0).abs() < MATRICES_TOLERANCE, "{weights:?}: {ratio}");
    }
}

/// The simulator's overhead of a layer was fitted at full batches of another engine, and is too high for few sequences: the
/// sum of the kernels lies between the simulator without it and with it.
#[test]
fn small_steps_lie_between_the_simulator_without_overhead_and_with_it() {
    let hardware = h100();
    let config = llama_8b();
    for weights in [WeightFormat::Fp8, INT4] {
        let step = device(&hardware, &config, weights, 1).decode(8, 1000).unwrap();
        let work = Batch { decode: 8.0, decode_context: 8.0 * 1001.0, ..Batch::default() };
        let without = simulated(&hardware, &config, weights, 1).step_seconds(work);
        assert!(step.seconds() > 0.9 * without && step.seconds() < step.simulated_seconds, "{weights:?}");
    }
}

#[test]
fn weights_take_their_packed_bytes() {
    let hardware = h100();
    for (config, devices) in [(llama_8b(), 1), (llama_70b(), 2)] {
        for (weights, bits) in [
            (WeightFormat::Bf16, 16.0),
            (WeightFormat::Fp8, bits_per_weight(modelprofile_api::WeightFormat::Fp8, 0)),
            (WeightFormat::Int8, bits_per_weight(modelprofile_api::WeightFormat::Int8, 0)),
            (INT4, bits_per_weight(modelprofile_api::WeightFormat::Int4, 128)),
        ] {
            let bytes = device(&hardware, &config, weights, devices).weight_bytes().unwrap() as f64;
            let shape = shape(&config);
            // The ends are kept in 8 bits with a scale and a minimum for 32, but for BF16.
            let end_bits = if weights == WeightFormat::Bf16 { 16.0 } else { 9.0 };
            let expected =
                shape.linear_parameters() as f64 * bits + 2.0 * shape.embedding_parameters() as f64 * end_bits;
            let ratio = bytes * devices as f64 * 8.0 / expected;
            assert!((ratio - 1.0).abs() < BYTES_TOLERANCE, "{weights:?}: {ratio}");
        }
    }
}

/// The targets of a switch on hardware, from bytes over PCIe 5.
#[test]
fn switches_are_modelled_within_their_targets() {
    let hardware = h100();
    let seconds = |config: &ModelConfig, devices| {
        let device = device(&hardware, config, WeightFormat::Fp8, devices);
        device.ceilings().host_copy(device.weight_bytes().unwrap() as f64).seconds
    };
    assert!(seconds(&llama_8b(), 1) < 0.3);
    let [one, two, four] = [1, 2, 4].map(|devices| seconds(&llama_70b(), devices));
    assert!(one < 2.0 && (two / one - 0.5).abs() < 0.01 && (four / one - 0.25).abs() < 0.01, "{one} {two} {four}");
}

#[test]
fn kernels_have_the_bound_that_their_work_says() {
    let hardware = h100();
    let config = llama_8b();
    let bound = |step: &Step, part: &str, name: &str| {
        let of = |entry: &&Entry| entry.planned.part == part && entry.planned.name.starts_with(name);
        step.entries.iter().find(of).unwrap_or_else(|| panic!("{part} {name}")).cost.bound
    };
    let few = device(&hardware, &config, INT4, 1).decode(1, 1000).unwrap();
    assert_eq!(bound(&few, "gate and up", "linear_int4_m8"), Bound::Memory);
    assert_eq!(bound(&few, "gate and up", "norm_quantize_bf16"), Bound::Launch);
    assert_eq!(bound(&few, "sampling", "sample_tokens"), Bound::Launch);
    assert_eq!(bound(&few, "sampling", "copy_to_host"), Bound::Host);
    let many = device(&hardware, &config, WeightFormat::Fp8, 1).prefill(2048, 2048).unwrap();
    assert_eq!(bound(&many, "down", "cublaslt_fp8_scaled"), Bound::TensorCores);
    assert_eq!(bound(&many, "attention", "attention_prefill"), Bound::TensorCores);
    let unpacked = device(&hardware, &config, INT4, 1).prefill(512, 512).unwrap();
    assert_eq!(bound(&unpacked, "down", "unpack_bf16_int4"), Bound::Memory);
    let two = device(&hardware, &config, WeightFormat::Fp8, 2).decode(4, 100).unwrap();
    assert_eq!(bound(&two, "down", "all_reduce"), Bound::Link);
    assert_eq!(bound(&two, "to the host", "copy_to_host"), Bound::Host);
    let reduces = two.entries.iter().filter(|entry| entry.planned.name == "all_reduce");
    assert_eq!(reduces.map(|entry| entry.count).sum::<usize>(), 2 * config.layers + 1);
}

#[test]
fn a_prompt_in_chunks_takes_the_time_of_all() {
    let hardware = h100();
    let device = device(&hardware, &llama_8b(), WeightFormat::Fp8, 1);
    let (whole, halves) = (device.prefill(1024, 1024).unwrap(), device.prefill(1024, 512).unwrap());
    assert_eq!((whole.tokens, halves.tokens, halves.context, halves.rows), (1024, 1024, 512, 512));
    assert!((whole.all_seconds / whole.seconds() - 1.0).abs() < 1e-12);
    assert!(halves.all_seconds > whole.all_seconds && halves.seconds() < halves.all_seconds);
}

#[test]
fn the_backend_unpacks_where_its_constant_says_and_the_model_near_it() {
    let found = crossovers(&h100(), &llama_8b(), &profile(INT4, 1)).unwrap();
    let parts: Vec<_> = found.iter().map(|crossover| crossover.part).collect();
    assert_eq!(parts, ["qkv", "attention output", "gate and up", "down"]);
    for crossover in found {
        assert_eq!(crossover.backend, Some(256), "{crossover:?}");
        assert!(crossover.modelled.is_some_and(|rows| (128..=512).contains(&rows)), "{crossover:?}");
    }
    assert!(crossovers(&h100(), &llama_8b(), &profile(WeightFormat::Fp8, 1)).unwrap().is_empty());
}

#[test]
fn a_model_that_cannot_be_divided_is_refused_by_what_cannot() {
    let error = Device::new(&h100(), &llama_8b(), &profile(INT4, 16)).err().unwrap().to_string();
    assert!(error.contains("16 GPUs") && error.contains("KV heads (8)"), "{error}");
}
