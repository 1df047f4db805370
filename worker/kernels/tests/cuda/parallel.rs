//! One model on several GPUs against the same on one: every kind of weight and format of the cache, recorded steps, switches,
//! memory, and what happens when one of the GPUs fails.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use modelprofile_kernels::{
    Backend, BlockMove, Calibrate, Device, GroupRounding, HostTensor, KvFormat, KvLayout, PackedWeight, Split,
    StepPlan, Store, WeightKind, WeightSpec,
    cuda::{Cuda, CudaOptions, Parallel, available},
    pack,
    rtn::Grid,
};
use rstest::rstest;

use crate::{
    device::noise,
    model::{Model, Sizes, TINY, Weights, error, plan, scales, weight},
    sim::{Sim, alone, options},
};

/// Largest difference of logits from one GPU's, as a part of the largest logit. Sums are made in other orders, after which a value
/// near the middle of two codes is rounded to the other one now and then: an eighth of the value in E4M3.
const FP8: f32 = 0.1;
/// The same where each token has a scale of its own, so that all inputs of two products of a layer are rounded otherwise: by up to
/// an eighth of each value, which both roundings are apart. 0.105 here.
const FP8_TOKENS: f32 = 0.15;
const INT8: f32 = 0.05;
const BF16: f32 = 0.02;
/// Of one product of the same codes: the order of sums.
const SUMS: f32 = 1e-4;

/// Sizes that four GPUs divide, with whole groups of 128 on each.
const WIDE: Sizes = Sizes { heads: 8, kv_heads: 4, intermediate: 512, ..TINY };

/// Longer than anything here takes, and far shorter than the emulated device waits for a GPU that never comes.
const NO_HANG: Duration = Duration::from_secs(40);

fn several(devices: usize) -> Vec<CudaOptions> {
    (0..devices).map(|ordinal| CudaOptions { ordinal, ..options() }).collect()
}

/// So many GPUs as one device; none where the machine has fewer.
fn parallel(devices: usize) -> Option<Parallel> {
    if available().unwrap().len() < devices {
        eprintln!("skipped: {devices} GPUs are needed");
        return None;
    }
    Some(Parallel::new(&several(devices)).unwrap())
}

/// A prompt in two chunks beside a decode, decodes, and one that crosses blocks.
fn steps(vocab: usize) -> Vec<StepPlan> {
    vec![
        plan(&[(0, 19, vec![3, 0])], vocab),
        plan(&[(19, 1, vec![3, 0]), (0, 5, vec![2])], vocab),
        plan(&[(20, 1, vec![3, 0]), (5, 37, vec![2, 5, 1])], vocab),
        plan(&[(21, 1, vec![3, 0]), (42, 1, vec![2, 5, 1])], vocab),
    ]
}

/// A prompt and decodes of one size, which are recorded and replayed.
fn decode_steps(vocab: usize) -> Vec<StepPlan> {
    let decode = |i: usize| plan(&[(7 + i, 1, vec![3, 0]), (4 + i, 1, vec![2, 1])], vocab);
    std::iter::once(plan(&[(0, 7, vec![3]), (0, 4, vec![2])], vocab)).chain((0..6).map(decode)).collect()
}

/// A model and its weights on a device.
struct Run<B: Backend> {
    device: B,
    weights: Weights<B>,
    model: Model<B>,
}

impl<B: Backend> Run<B> {
    fn new(device: B, sizes: Sizes, [kind, ends]: [WeightKind; 2], format: KvFormat) -> Self {
        let weights = Weights::new(&device, &sizes, kind, ends);
        let model = Model::new(&device, sizes, format, 6, 48);
        Self { device, weights, model }
    }

    fn step(&mut self, plan: &StepPlan) -> modelprofile_kernels::Result<Vec<f32>> {
        self.model.step(&mut self.device, &self.weights, None, plan)
    }

    fn steps(&mut self, steps: &[StepPlan]) -> Vec<Vec<f32>> {
        steps.iter().map(|plan| self.step(plan).unwrap()).collect()
    }
}

fn compare(devices: usize, sizes: Sizes, kinds: [WeightKind; 2], format: KvFormat, budget: f32) {
    let _alone = alone();
    let Some(parallel) = parallel(devices) else { return };
    let steps = steps(sizes.vocab);
    let expected = Run::new(Cuda::new(options()).unwrap(), sizes, kinds, format).steps(&steps);
    let mut run = Run::new(parallel, sizes, kinds, format);
    for (index, (found, expected)) in run.steps(&steps).iter().zip(&expected).enumerate() {
        let error = error(found, expected);
        assert!(error < budget, "{kinds:?} {format:?} on {devices}, step {index}: {error}");
    }
    assert_eq!(run.device.take_notes(), Vec::<String>::new());
}

#[rstest]
#[case(WeightKind::Bf16, BF16)]
#[case(WeightKind::Fp8, FP8_TOKENS)]
#[case(WeightKind::Fp8Static, FP8)]
#[case(WeightKind::Fp8Block, FP8)]
#[case(WeightKind::Int8, INT8)]
#[case(WeightKind::Int8Outliers { columns: 3 }, INT8)]
#[case(WeightKind::Int4 { group: 32 }, BF16)]
#[case(WeightKind::Int4 { group: 128 }, BF16)]
#[case(WeightKind::Int8Group { group: 64 }, BF16)]
fn a_model_of_every_kind_of_weight_on_two_gpus(#[case] kind: WeightKind, #[case] budget: f32) {
    compare(2, TINY, [kind, WeightKind::Bf16], KvFormat::Bf16, budget);
}

#[rstest]
#[case(WeightKind::Fp8)]
#[case(WeightKind::Fp8Block)]
#[case(WeightKind::Int8)]
#[case(WeightKind::Int4 { group: 64 })]
#[case(WeightKind::Int8Group { group: 32 })]
fn a_vocabulary_of_every_kind_on_two_gpus(#[case] ends: WeightKind) {
    compare(2, Sizes { layers: 1, ..TINY }, [WeightKind::Bf16, ends], KvFormat::Bf16, FP8);
}

#[rstest]
#[case(KvFormat::Fp16)]
#[case(KvFormat::Fp8E4m3)]
#[case(KvFormat::Fp8E5m2)]
fn a_cache_of_every_format_on_two_gpus(#[case] format: KvFormat) {
    compare(2, TINY, [WeightKind::Bf16; 2], format, INT8);
}

#[test]
fn biases_head_norms_and_a_window_on_three_and_four_gpus() {
    let extras = Sizes { extras: true, window: Some(11), ..WIDE };
    compare(4, extras, [WeightKind::Int4 { group: 64 }, WeightKind::Bf16], KvFormat::Fp8E4m3, INT8);
    // Not all have as many tokens of the vocabulary.
    let three = Sizes { heads: 6, kv_heads: 3, intermediate: 384, vocab: 100, ..extras };
    compare(3, three, [WeightKind::Fp8, WeightKind::Bf16], KvFormat::Bf16, FP8_TOKENS);
}

#[test]
fn a_step_has_two_sums_a_layer_and_one_for_the_embedding() {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    let mut run = Run::new(parallel, TINY, [WeightKind::Bf16; 2], KvFormat::Bf16);
    let steps = decode_steps(TINY.vocab);
    let mut sums = Vec::new();
    for plan in &steps {
        let before = sim.calls("ncclAllReduce");
        run.step(plan).unwrap();
        sums.push(sim.calls("ncclAllReduce") - before);
    }
    let each = 2 * (2 * TINY.layers as u64 + 1);
    // A prompt; a decode that is observed; one that is captured; replays, in which the graph has them.
    assert_eq!(sums, [each, each, each, 0, 0, 0, 0]);
    assert_eq!(run.device.replays(), [5, 5]);
}

#[test]
fn recorded_steps_and_repeated_ones_give_the_same_to_the_bit() {
    let _alone = alone();
    let Some(graphs) = parallel(2) else { return };
    let steps = decode_steps(TINY.vocab);
    let kinds = [WeightKind::Int4 { group: 32 }, WeightKind::Bf16];
    let mut run = Run::new(graphs, TINY, kinds, KvFormat::Bf16);
    let found = run.steps(&steps);
    assert_eq!(run.steps(&steps), found, "again, with the same blocks");
    drop(run);
    let plain: Vec<CudaOptions> = several(2).into_iter().map(|o| CudaOptions { graphs: false, ..o }).collect();
    let mut run = Run::new(Parallel::new(&plain).unwrap(), TINY, kinds, KvFormat::Bf16);
    assert_eq!(run.steps(&steps), found, "without graphs");
    assert_eq!(run.device.replays(), [0, 0]);
}

#[test]
fn each_gpu_has_its_part_of_memory() {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    // Large enough that chunks of 2 MiB tell parts.
    let (kind, n, k) = (WeightKind::Bf16, 8192, 1024);
    let packed = pack(&weight(kind, n, k, 1)).unwrap();
    let before = [0, 1].map(|device| sim.bytes_of(device));
    let halves = Split::Halves;
    let weights: Vec<_> = [halves, Split::Outputs, Split::Inputs].map(|s| parallel.weight(&packed, s).unwrap()).into();
    for weight in &weights {
        parallel.prefetch(weight);
    }
    let layout = KvLayout { layers: 4, kv_heads: 4, head_dim: 64, format: KvFormat::Bf16 };
    let kv = parallel.kv(layout, &scales(&layout), 128, 128).unwrap();
    let half = |bytes: usize| (bytes / 2) as u64;
    let expected = 3 * half(n * k * 2) + half(128 * layout.block_bytes());
    for device in [0, 1] {
        let taken = sim.bytes_of(device) - before[device];
        assert!(taken.abs_diff(expected) <= 4 << 20, "GPU {device}: {taken} for {expected}");
    }
    assert_eq!(parallel.weight_bytes(&packed.spec, halves).unwrap(), n * k);
    assert_eq!(parallel.weight_bytes(&packed.spec, Split::Replicated).unwrap(), 2 * n * k);
    drop((weights, kv));
    drop(parallel);
    assert_eq!([0, 1].map(|device| sim.bytes_of(device)), [0, 0]);
}

#[test]
fn profiles_are_switched_layer_by_layer_on_all_gpus() {
    let _alone = alone();
    let Some(parallel) = parallel(2) else { return };
    let steps = decode_steps(TINY.vocab);
    let mut run = Run::new(parallel, TINY, [WeightKind::Fp8, WeightKind::Bf16], KvFormat::Bf16);
    let dense = Weights::new(&run.device, &TINY, WeightKind::Int4 { group: 32 }, WeightKind::Bf16);
    let mut expected = Vec::new();
    for plan in &steps {
        expected.push(run.model.step(&mut run.device, &dense, None, plan).unwrap());
    }
    let first = run.steps(&steps);
    // There and back, in the middle of the decodes; released weights are copied again.
    let mut found = Vec::new();
    for (index, plan) in steps.iter().enumerate() {
        let (weights, leaving) = if index % 2 == 0 { (&run.weights, &dense) } else { (&dense, &run.weights) };
        weights.each(|weight| run.device.prefetch(weight));
        found.push(run.model.step(&mut run.device, weights, Some(leaving), plan).unwrap());
    }
    assert_eq!(found[0], first[0], "the prompt, computed with the first profile");
    assert!(found.iter().flatten().all(|logit| logit.is_finite()));
    run.weights.each(|weight| run.device.release(weight));
    for (plan, expected) in steps.iter().zip(&expected) {
        assert_eq!(&run.model.step(&mut run.device, &dense, None, plan).unwrap(), expected);
    }
    assert_eq!(run.steps(&steps), first);
}

#[test]
fn blocks_move_and_the_pool_grows_and_shrinks_on_all_gpus() {
    let _alone = alone();
    let Some(parallel) = parallel(2) else { return };
    let kinds = [WeightKind::Bf16; 2];
    let mut run = Run::new(parallel, TINY, kinds, KvFormat::Bf16);
    run.step(&plan(&[(0, 19, vec![3, 0])], TINY.vocab)).unwrap();
    let stay = run.step(&plan(&[(19, 1, vec![3, 0])], TINY.vocab)).unwrap();
    run.device.kv_resize(&mut run.model.kv, 20).unwrap();
    let moves = [BlockMove { from: 3, to: 18 }, BlockMove { from: 0, to: 4 }];
    run.device.kv_move(&mut run.model.kv, &moves).unwrap();
    let mut moved = plan(&[(19, 1, vec![3, 0])], TINY.vocab);
    moved.sequences[0].blocks = vec![18, 4];
    assert_eq!(run.step(&moved).unwrap(), stay);
    run.device.kv_resize(&mut run.model.kv, 6).unwrap();
    assert!(run.step(&moved).unwrap_err().to_string().contains("outside the pool"));
    assert!(run.device.kv_resize(&mut run.model.kv, 1000).unwrap_err().to_string().contains("are reserved"));
    assert!(run.device.kv_move(&mut run.model.kv, &[BlockMove { from: 7, to: 1 }]).is_err());
    assert_eq!(run.step(&plan(&[(0, 3, vec![5])], TINY.vocab)).unwrap().len(), TINY.vocab, "and it goes on");
}

/// A product of 5 rows with 256 inputs, all outputs read back.
fn product<B: Backend>(backend: &mut B, packed: &PackedWeight, split: Split, bias: bool, store: Store) -> Vec<f32> {
    let WeightSpec { n, k, .. } = packed.spec;
    let matrix = |rows, width, seed| HostTensor { rows, width, data: noise(rows * width, seed) };
    let w = backend.weight(packed, split).unwrap();
    let x = backend.upload(&matrix(5, k, 1)).unwrap();
    let bias = bias.then(|| backend.upload(&matrix(1, n, 3)).unwrap());
    let mut out = backend.buffer(5, n).unwrap();
    backend.linear(5, &x, &w, bias.as_ref(), Store::Overwrite, &mut out).unwrap();
    if store == Store::Add {
        backend.linear(5, &x, &w, None, store, &mut out).unwrap();
    }
    let mut host = HostTensor::default();
    backend.download(&out, 5, &mut host).unwrap();
    assert_eq!((host.rows, host.width), (5, n));
    host.data
}

#[test]
fn columns_of_divided_products_are_read_back_in_their_places() {
    let _alone = alone();
    let (Some(mut parallel), mut one) = (parallel(2), Cuda::new(options()).unwrap()) else { return };
    let packed = pack(&weight(WeightKind::Int4 { group: 64 }, 128, 256, 7)).unwrap();
    let heads = Split::Heads { heads: 4, kv_heads: 2, head_dim: 16 };
    for split in [heads, Split::Halves, Split::Outputs, Split::Replicated] {
        for (bias, store) in [(false, Store::Overwrite), (true, Store::Overwrite), (true, Store::Add)] {
            let expected = product(&mut one, &packed, split, bias, store);
            let error = error(&product(&mut parallel, &packed, split, bias, store), &expected);
            assert!(error < SUMS, "{split:?}, bias {bias}, {store:?}: {error}");
        }
    }
}

#[test]
fn what_is_not_divided_as_a_product_needs_it_is_refused() {
    let _alone = alone();
    let Some(mut parallel) = parallel(2) else { return };
    let packed = pack(&weight(WeightKind::Bf16, 64, 128, 7)).unwrap();
    let (x, mut out) = (parallel.buffer(3, 128).unwrap(), parallel.buffer(3, 64).unwrap());
    let inputs = parallel.weight(&packed, Split::Inputs).unwrap();
    let text = parallel.linear(3, &x, &inputs, None, Store::Overwrite, &mut out).unwrap_err().to_string();
    assert!(text.contains("whole on each GPU; here it must be divided"), "{text}");
    let outputs = parallel.weight(&packed, Split::Outputs).unwrap();
    assert!(parallel.linear(3, &x, &outputs, None, Store::Add, &mut out).is_err(), "added to a whole one");
    parallel.linear(3, &x, &outputs, None, Store::Overwrite, &mut out).unwrap();
    let gain = parallel.buffer(1, 64).unwrap();
    let mut normed = parallel.buffer(3, 64).unwrap();
    assert!(parallel.rms_norm(3, &out, &gain, 1e-5, &mut normed).is_err(), "a norm needs all columns");
    let computed = parallel.buffer(1, 64).unwrap();
    let text = parallel.linear(3, &x, &outputs, Some(&computed), Store::Overwrite, &mut out).unwrap_err().to_string();
    assert!(text.contains("was uploaded"), "{text}");
    let heads = Split::Heads { heads: 6, kv_heads: 1, head_dim: 8 };
    let text = parallel.weight(&packed, heads).unwrap_err().to_string();
    assert!(text.contains("1 key/value heads cannot be divided over 2 GPUs") && text.ends_with("work: 1"), "{text}");
    let old = parallel.begin(&plan(&[(0, 1, vec![0])], 9)).unwrap();
    let new = parallel.begin(&plan(&[(0, 1, vec![0])], 9)).unwrap();
    assert!(parallel.embed(&old, &outputs, &mut parallel.buffer(3, 128).unwrap()).is_err(), "a step that is over");
    parallel.end(new).unwrap();
}

#[test]
fn gpus_that_cannot_be_joined_are_refused_with_a_sentence() {
    let _alone = alone();
    let refused = |options: &[CudaOptions]| Parallel::new(options).err().unwrap().to_string();
    assert!(refused(&[]).contains("at least one"));
    assert!(refused(&[options(), options()]).contains("named once"));
    let other = CudaOptions { ordinal: 1, deterministic: true, ..options() };
    assert!(refused(&[options(), other]).contains("in the same way"));
    let absent = CudaOptions { ordinal: 99, ..options() };
    let text = refused(&[options(), absent]);
    assert!(text.contains("GPU 1 of the model") && text.contains("nvidia-smi -L"), "{text}");
    let Some(sim) = Sim::find().filter(|_| available().unwrap().len() > 1) else { return };
    // Joining them, and letting each write into the buffers of the others.
    let joining = [("ncclCommInitAll", 1), ("cuDeviceCanAccessPeer", 1), ("cuDeviceCanAccessPeer", 2)];
    for (function, nth) in joining {
        sim.fail(function, nth, 3);
        let text = refused(&several(2));
        sim.calm();
        assert!(text.contains(function), "{text}");
    }
    let small = CudaOptions { ordinal: 1, budget: Some(8 << 20), ..options() };
    let parallel = Parallel::new(&[options(), small]).unwrap();
    assert_eq!((parallel.budget(), parallel.devices().len()), (8 << 20, 2));
    let packed = pack(&weight(WeightKind::Bf16, 8192, 1536, 1)).unwrap();
    let text = parallel.weight(&packed, Split::Halves).unwrap_err().to_string();
    assert!(text.contains("GPU 1 of the model"), "{text}");
    let name = parallel.name();
    assert!(parallel.devices().iter().all(|device| name.contains(&device.name)), "{name}");
}

/// A failure of one GPU in a step: at most an error, never a wait for ever, and then everything goes on or says to restart.
#[rstest]
// One GPU's own work fails: the step does, and the next one is as if nothing had been.
#[case("cuLaunchKernelEx", 1, false)]
#[case("cuLaunchKernelEx", 20, false)]
#[case("cuMemcpyHtoDAsync_v2", 1, false)]
#[case("cuMemsetD32Async", 1, false)]
#[case("cuStreamSynchronize", 1, false)]
#[case("cuStreamSynchronize", 2, false)]
// A GPU cannot take its part in a sum.
#[case("ncclAllReduce", 1, true)]
#[case("ncclAllReduce", 2, true)]
#[case("ncclAllReduce", 7, true)]
fn a_gpu_that_fails_in_a_step(#[case] function: &str, #[case] nth: u64, #[case] parts: bool) {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    let kinds = [WeightKind::Fp8Static, WeightKind::Bf16];
    let mut run = Run::new(parallel, TINY, kinds, KvFormat::Bf16);
    let steps = steps(TINY.vocab);
    let expected = run.steps(&steps);
    let begun = Instant::now();
    sim.fail(function, nth, if parts { 3 } else { 999 });
    let failed = run.step(&steps[0]);
    sim.calm();
    let text = failed.expect_err("the failure was told").to_string();
    assert!(text.contains("GPU ") && text.contains(function.trim_end_matches("_v2")), "{text}");
    if parts {
        assert!(text.contains("restart the worker"), "{text}");
        let again = run.step(&steps[0]).unwrap_err().to_string();
        assert!(again.contains("restart the worker"), "{again}");
        assert!(run.device.buffer(1, 4).unwrap_err().to_string().contains("restart the worker"));
    } else {
        assert_eq!(run.steps(&steps), expected);
    }
    drop(run);
    assert!(begun.elapsed() < NO_HANG, "{:?}", begun.elapsed());
}

/// A failure within recorded steps. What one GPU cannot record, none does.
#[rstest]
#[case("cuStreamBeginCapture_v2", 1)]
#[case("cuStreamBeginCapture_v2", 2)]
#[case("cuStreamEndCapture", 1)]
#[case("cuGraphInstantiateWithFlags", 2)]
fn a_gpu_that_cannot_record_a_step_costs_nothing_but_speed(#[case] function: &str, #[case] nth: u64) {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    let (steps, kinds) = (decode_steps(TINY.vocab), [WeightKind::Bf16; 2]);
    let mut run = Run::new(parallel, TINY, kinds, KvFormat::Bf16);
    sim.fail(function, nth, 801);
    let found = run.steps(&steps);
    sim.calm();
    assert_eq!(run.device.replays(), [0, 0]);
    let notes = run.device.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("without a graph"), "{notes:?}");
    drop(run);
    let expected = Run::new(Parallel::new(&several(2)).unwrap(), TINY, kinds, KvFormat::Bf16).steps(&steps);
    assert_eq!(found, expected);
}

#[test]
fn a_gpu_that_cannot_launch_its_graph_parts_the_gpus() {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    let steps = decode_steps(TINY.vocab);
    let mut run = Run::new(parallel, TINY, [WeightKind::Bf16; 2], KvFormat::Bf16);
    run.steps(&steps[..4]);
    let begun = Instant::now();
    sim.fail("cuGraphLaunch", 2, 999);
    let text = run.step(&steps[4]).unwrap_err().to_string();
    sim.calm();
    assert!(text.contains("restart the worker") && text.contains("cuGraphLaunch"), "{text}");
    drop(run);
    assert!(begun.elapsed() < NO_HANG, "{:?}", begun.elapsed());
}

#[test]
fn one_gpu_that_leaves_a_recorded_step_takes_the_others_along() {
    let _alone = alone();
    let (Some(sim), Some(parallel)) = (Sim::find(), parallel(2)) else { return };
    let steps = decode_steps(TINY.vocab);
    let mut run = Run::new(parallel, TINY, [WeightKind::Bf16; 2], KvFormat::Bf16);
    let expected = run.steps(&steps);
    let before = run.device.replays();
    // One GPU's copy of the step's numbers fails: it does not begin, so it cannot follow; the other follows to the end.
    sim.fail("cuMemcpyHtoDAsync_v2", 2, 999);
    let begun = Instant::now();
    assert!(run.step(&steps[3]).is_err());
    sim.calm();
    assert_eq!(run.device.replays(), before);
    assert!(begun.elapsed() < NO_HANG, "{:?}", begun.elapsed());
    assert_eq!(run.steps(&steps), expected, "and all replay again");
    assert!(run.device.replays()[0] > before[0]);
}

#[test]
fn a_step_without_logits_tells_its_failure_at_its_end() {
    let _alone = alone();
    let (Some(sim), Some(mut parallel)) = (Sim::find(), parallel(2)) else { return };
    let table = parallel.weight(&pack(&weight(WeightKind::Bf16, 96, 128, 1)).unwrap(), Split::Outputs).unwrap();
    let mut out = parallel.buffer(4, 128).unwrap();
    let mut chunk = plan(&[(0, 4, vec![0])], 96);
    chunk.logit_rows.clear();
    let step = parallel.begin(&chunk).unwrap();
    parallel.embed(&step, &table, &mut out).unwrap();
    parallel.end(step).unwrap();
    let step = parallel.begin(&chunk).unwrap();
    sim.fail("cuLaunchKernelEx", 1, 999);
    parallel.embed(&step, &table, &mut out).unwrap();
    let text = parallel.end(step).unwrap_err().to_string();
    sim.calm();
    assert!(text.contains("cuLaunchKernelEx"), "{text}");
    let step = parallel.begin(&chunk).unwrap();
    parallel.embed(&step, &table, &mut out).unwrap();
    parallel.end(step).unwrap();
}

#[test]
fn values_may_outlive_the_device_and_be_dropped_within_a_step() {
    let _alone = alone();
    let Some(parallel) = parallel(2) else { return };
    let mut run = Run::new(parallel, TINY, [WeightKind::Bf16; 2], KvFormat::Bf16);
    run.steps(&decode_steps(TINY.vocab)[..4]);
    let step = run.device.begin(&plan(&[(9, 1, vec![3, 0]), (6, 1, vec![2, 1])], TINY.vocab)).unwrap();
    // A recorded step is on its way when all of this goes.
    let Run { mut device, weights, model } = run;
    let mut out = device.buffer(2, 128).unwrap();
    let table = device.weight(&pack(&weight(WeightKind::Bf16, 96, 128, 1)).unwrap(), Split::Outputs).unwrap();
    device.embed(&step, &table, &mut out).unwrap();
    let begun = Instant::now();
    drop((weights, out));
    drop(device);
    drop((model, table));
    assert!(begun.elapsed() < NO_HANG, "{:?}", begun.elapsed());
}

/// What calibration asks, of 20 rows of 96 columns.
fn statistics<B: Calibrate>(backend: &mut B) -> [Vec<f32>; 4] {
    let (rows, k) = (20, 96);
    let upload =
        |backend: &B, rows, seed| backend.upload(&HostTensor { rows, width: k, data: noise(rows * k, seed) }).unwrap();
    let (x, weights) = (upload(backend, rows, 1), upload(backend, rows, 2));
    let scales = HostTensor { rows: 1, width: k, data: noise(k, 3).iter().map(|v| 1.5 + v).collect() };
    let scales = backend.upload(&scales).unwrap();
    let (mut maxima, mut gram) = (backend.buffer(1, k).unwrap(), backend.buffer(k, k).unwrap());
    backend.column_absmax(rows, &x, &mut maxima).unwrap();
    backend.gram(rows, &x, &mut gram).unwrap();
    let mut changes = backend.buffer(rows, k).unwrap();
    let rounding = GroupRounding { bits: 4, group: 32, grid: Grid::Integer, scales: Some(&scales), cut: 0.9 };
    backend.rounding_changes(rows, &weights, &rounding, &mut changes).unwrap();
    let mut forms = Vec::new();
    backend.quadratic_forms(rows, &changes, &gram, &mut forms).unwrap();
    let values = |buffer: &B::Buffer, rows| {
        let mut host = HostTensor::default();
        backend.download(buffer, rows, &mut host).unwrap();
        host.data
    };
    [values(&maxima, 1), values(&gram, k), values(&changes, rows), forms]
}

#[test]
fn calibration_is_whole_on_every_gpu() {
    let _alone = alone();
    let Some(mut parallel) = parallel(2) else { return };
    assert_eq!(statistics(&mut parallel), statistics(&mut Cuda::new(options()).unwrap()));
}

#[test]
fn without_nccl_a_sentence_says_so() {
    let _alone = alone();
    if Sim::find().is_none() || available().unwrap().len() < 2 {
        return;
    }
    // The folders of the libraries again, but for NCCL.
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    for library in path.split(':').filter(|f| !f.is_empty()).filter_map(|f| std::fs::read_dir(f).ok()).flatten() {
        let library = library.unwrap();
        let name = library.file_name().into_string().unwrap();
        if name.contains(".so") && !name.starts_with("libnccl") {
            // The first of a name is the one that is loaded.
            let _ = std::os::unix::fs::symlink(library.path(), folder.path().join(name));
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "parallel::in_a_process_without_nccl", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "started by without_nccl_a_sentence_says_so"]
fn in_a_process_without_nccl() {
    // A machine with a library of its own cannot show this.
    let Err(error) = Parallel::new(&several(2)) else { return };
    let text = error.to_string();
    assert!(text.contains("libnccl.so.2") && text.contains("one GPU"), "{text}");
    assert!(Cuda::new(options()).is_ok(), "one GPU needs no NCCL");
}
