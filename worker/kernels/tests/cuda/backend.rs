//! The operations of the traits on the GPU against the CPU: in the order of a transformer layer, for every kind of weight and
//! every format of the cache; what norms and gated activations promise; recorded steps.

use modelprofile_kernels::{
    Backend, Calibrate, Device, GroupRounding, GroupedActivations, HostTensor, KvFormat, Split, Store, WeightKind,
    cpu::{Cpu, CpuOptions},
    cuda::{Cuda, CudaOptions},
    pack,
    rtn::Grid,
};
use rstest::rstest;

use crate::{
    device::noise,
    model::{Model, Sizes, TINY, Weights, error, plan, weight},
    sim::{Sim, alone, options},
};

/// Largest difference of logits from the CPU's, as a part of the largest logit. Both sum in FP32 but in different orders; then
/// a value near the middle of two codes is rounded to the other one now and then, which costs a step of its scale, an eighth
/// of the value in E4M3. The CPU's own instruction sets differ by up to 0.067 (FP8), 0.030 (INT8) and 0.005 (BF16) here.
const FP8: f32 = 0.1;
const INT8: f32 = 0.05;
const BF16: f32 = 0.02;
/// Of one product whose inputs have the same codes: only the order of sums differs.
const SUMS: f32 = 1e-4;
/// The same by FP8 tensor cores of Hopper, whose sums keep some 14 bits until the library adds them up in FP32 (DeepSeek-V3, 2024,
/// section 3.3.2). 2.4e-4 on an H100; the emulated device adds in FP32.
const FP8_CORES: f32 = 1e-3;
/// The same with a weight that was unpacked: its values are rounded to BF16, half of 2^-8 each.
pub const UNPACKED: f32 = 4e-3;

pub fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap()
}

/// The steps of a short life: a prompt in two chunks beside a decode, decodes, and one that crosses blocks.
fn steps(vocab: usize) -> Vec<modelprofile_kernels::StepPlan> {
    vec![
        plan(&[(0, 19, vec![3, 0])], vocab),
        plan(&[(19, 1, vec![3, 0]), (0, 5, vec![2])], vocab),
        plan(&[(20, 1, vec![3, 0]), (5, 37, vec![2, 5, 1])], vocab),
        plan(&[(21, 1, vec![3, 0]), (42, 1, vec![2, 5, 1])], vocab),
    ]
}

fn compare(sizes: Sizes, kind: WeightKind, ends: WeightKind, format: KvFormat, options: CudaOptions, budget: f32) {
    let _alone = alone();
    let (mut cpu, mut gpu) = (cpu(), Cuda::new(options).unwrap());
    let (expected_weights, weights) = (Weights::new(&cpu, &sizes, kind, ends), Weights::new(&gpu, &sizes, kind, ends));
    let (mut reference, mut model) = (Model::new(&cpu, sizes, format, 6, 48), Model::new(&gpu, sizes, format, 6, 48));
    for (index, plan) in steps(sizes.vocab).iter().enumerate() {
        let expected = reference.step(&mut cpu, &expected_weights, None, plan).unwrap();
        let found = model.step(&mut gpu, &weights, None, plan).unwrap();
        let error = error(&found, &expected);
        assert!(error < budget, "{kind:?} {format:?}, step {index}: {error}");
    }
    assert!(gpu.take_notes().is_empty());
}

#[rstest]
#[case(WeightKind::Bf16, BF16)]
#[case(WeightKind::Fp8, FP8)]
#[case(WeightKind::Fp8Static, FP8)]
#[case(WeightKind::Fp8Block, FP8)]
#[case(WeightKind::Int8, INT8)]
#[case(WeightKind::Int8Outliers { columns: 3 }, INT8)]
#[case(WeightKind::Int4 { group: 32 }, BF16)]
#[case(WeightKind::Int4 { group: 128 }, BF16)]
#[case(WeightKind::Int8Group { group: 64 }, BF16)]
fn a_model_of_every_kind_of_weight(#[case] kind: WeightKind, #[case] budget: f32) {
    compare(TINY, kind, WeightKind::Bf16, KvFormat::Bf16, options(), budget);
}

#[rstest]
#[case(WeightKind::Fp8)]
#[case(WeightKind::Fp8Block)]
#[case(WeightKind::Int8)]
#[case(WeightKind::Int4 { group: 64 })]
#[case(WeightKind::Int8Group { group: 32 })]
fn an_embedding_and_output_of_every_kind(#[case] ends: WeightKind) {
    compare(Sizes { layers: 1, ..TINY }, WeightKind::Bf16, ends, KvFormat::Bf16, options(), FP8);
}

#[rstest]
#[case(KvFormat::Fp16)]
#[case(KvFormat::Fp8E4m3)]
#[case(KvFormat::Fp8E5m2)]
fn a_cache_of_every_format(#[case] format: KvFormat) {
    compare(TINY, WeightKind::Bf16, WeightKind::Bf16, format, options(), INT8);
}

#[rstest]
#[case(96)]
#[case(128)]
#[case(256)]
fn heads_of_every_size(#[case] head_dim: usize) {
    for (format, window) in [(KvFormat::Bf16, None), (KvFormat::Fp8E4m3, Some(23))] {
        let sizes = Sizes { head_dim, window, layers: 1, ..TINY };
        compare(sizes, WeightKind::Bf16, WeightKind::Bf16, format, options(), INT8);
    }
}

#[test]
fn head_norms_biases_and_a_sliding_window() {
    let sizes = Sizes { extras: true, window: Some(11), heads: 6, kv_heads: 2, hidden: 256, ..TINY };
    compare(sizes, WeightKind::Fp8, WeightKind::Bf16, KvFormat::Bf16, options(), FP8);
    compare(sizes, WeightKind::Int4 { group: 64 }, WeightKind::Bf16, KvFormat::Fp8E4m3, options(), INT8);
}

#[test]
fn without_graphs_and_deterministic() {
    let options = CudaOptions { graphs: false, deterministic: true, overlap: false, ..options() };
    compare(TINY, WeightKind::Int4 { group: 32 }, WeightKind::Bf16, KvFormat::Bf16, options, BF16);
}

/// One product of few rows, by every own kernel, or of many, by cuBLASLt; with and without a bias, overwriting and adding.
/// Inputs are the same to the bit, and so are their codes: what differs is the order of sums.
#[rstest]
#[case(WeightKind::Bf16, 40)]
#[case(WeightKind::Fp8, 40)]
#[case(WeightKind::Fp8Static, 40)]
#[case(WeightKind::Fp8Block, 40)]
#[case(WeightKind::Int8, 40)]
#[case(WeightKind::Int8Outliers { columns: 3 }, 40)]
#[case(WeightKind::Int4 { group: 64 }, 70)]
#[case(WeightKind::Int4 { group: 64 }, 256)]
#[case(WeightKind::Int8Group { group: 32 }, 256)]
#[case(WeightKind::Bf16, 1)]
#[case(WeightKind::Bf16, 12)]
#[case(WeightKind::Bf16, 17)]
#[case(WeightKind::Fp8, 1)]
#[case(WeightKind::Fp8, 17)]
#[case(WeightKind::Fp8Static, 9)]
#[case(WeightKind::Fp8Block, 1)]
#[case(WeightKind::Fp8Block, 12)]
#[case(WeightKind::Fp8Block, 17)]
#[case(WeightKind::Int8, 9)]
#[case(WeightKind::Int8Outliers { columns: 20 }, 3)]
#[case(WeightKind::Int4 { group: 32 }, 1)]
#[case(WeightKind::Int4 { group: 128 }, 9)]
#[case(WeightKind::Int4 { group: 128 }, 20)]
#[case(WeightKind::Int8Group { group: 64 }, 2)]
#[case(WeightKind::Int8Group { group: 128 }, 20)]
fn a_product_of_few_or_many_rows(#[case] kind: WeightKind, #[case] rows: usize) {
    let _alone = alone();
    let budget = match kind {
        WeightKind::Fp8 | WeightKind::Fp8Static if rows > 32 && Sim::find().is_none() => FP8_CORES,
        _ if rows >= 256 => UNPACKED,
        _ => SUMS,
    };
    // 80 outputs are no whole number of strips of 32, and 100 are none of what cuBLASLt takes.
    for n in [80, 100] {
        let (mut cpu, mut gpu) = (cpu(), Cuda::new(options()).unwrap());
        let packed = pack(&weight(kind, n, 256, 7)).unwrap();
        for (bias, store) in
            [(false, Store::Overwrite), (true, Store::Overwrite), (false, Store::Add), (true, Store::Add)]
        {
            let expected = product(&mut cpu, &packed, rows, bias, store);
            let found = product(&mut gpu, &packed, rows, bias, store);
            let error = error(&found, &expected);
            assert!(error < budget, "{kind:?}, {rows} rows, {n} outputs, bias {bias}, {store:?}: {error}");
        }
    }
}

pub fn product<B: Backend>(
    backend: &mut B,
    packed: &modelprofile_kernels::PackedWeight,
    rows: usize,
    bias: bool,
    store: Store,
) -> Vec<f32> {
    let (n, k) = (packed.spec.n, packed.spec.k);
    let w = backend.weight(packed, Split::Replicated).unwrap();
    let matrix = |rows, width, seed| HostTensor { rows, width, data: noise(rows * width, seed) };
    let x = backend.upload(&matrix(rows, k, 1)).unwrap();
    let mut out = backend.upload(&matrix(rows, n, 2)).unwrap();
    let bias = bias.then(|| backend.upload(&matrix(1, n, 3)).unwrap());
    backend.linear(rows, &x, &w, bias.as_ref(), store, &mut out).unwrap();
    let mut host = HostTensor::default();
    backend.download(&out, rows, &mut host).unwrap();
    host.data
}

/// A norm of `x`, and what the tests do with it.
struct Normed {
    gpu: Cuda,
    x: <Cuda as Device>::Buffer,
    out: <Cuda as Device>::Buffer,
    expected: Vec<f32>,
}

impl Normed {
    fn new() -> Self {
        let (mut cpu, mut gpu) = (cpu(), Cuda::new(options()).unwrap());
        let x = HostTensor { rows: 3, width: 64, data: noise(3 * 64, 5) };
        let gain = HostTensor { rows: 1, width: 64, data: noise(64, 6) };
        let mut host = HostTensor::default();
        let mut out = cpu.buffer(3, 64).unwrap();
        let (there, gains) = (cpu.upload(&x).unwrap(), cpu.upload(&gain).unwrap());
        cpu.rms_norm(3, &there, &gains, 1e-5, &mut out).unwrap();
        cpu.download(&out, 3, &mut host).unwrap();
        let (x, gain) = (gpu.upload(&x).unwrap(), gpu.upload(&gain).unwrap());
        let mut normed = gpu.buffer(3, 64).unwrap();
        gpu.rms_norm(3, &x, &gain, 1e-5, &mut normed).unwrap();
        Self { gpu, x, out: normed, expected: host.data }
    }

    /// Overwrites x with a product of itself.
    fn write_x(&mut self) {
        let w = self.gpu.weight(&pack(&weight(WeightKind::Bf16, 64, 64, 3)).unwrap(), Split::Replicated).unwrap();
        let other = self.gpu.upload(&HostTensor { rows: 3, width: 64, data: noise(3 * 64, 9) }).unwrap();
        self.gpu.linear(3, &other, &w, None, Store::Add, &mut self.x).unwrap();
    }

    fn use_it(&mut self) {
        let w = self.gpu.weight(&pack(&weight(WeightKind::Bf16, 32, 64, 4)).unwrap(), Split::Replicated).unwrap();
        let mut out = self.gpu.buffer(3, 32).unwrap();
        self.gpu.linear(3, &self.out, &w, None, Store::Overwrite, &mut out).unwrap();
    }

    fn download(&self) -> modelprofile_kernels::Result<Vec<f32>> {
        let mut host = HostTensor::default();
        self.gpu.download(&self.out, 3, &mut host)?;
        Ok(host.data)
    }
}

#[test]
fn a_promised_norm_is_there_when_it_is_read() {
    let _alone = alone();
    let mut case = Normed::new();
    case.use_it();
    assert!(error(&case.download().unwrap(), &case.expected) < 1e-5, "read after a product used it");
    case.write_x();
    assert!(error(&case.download().unwrap(), &case.expected) < 1e-5, "its values are there for good");
}

#[test]
fn a_promised_norm_is_made_before_its_input_is_written() {
    let _alone = alone();
    let mut case = Normed::new();
    case.write_x();
    assert!(error(&case.download().unwrap(), &case.expected) < 1e-5);
}

#[test]
fn a_used_promise_lapses_when_its_input_is_written_and_says_so() {
    let _alone = alone();
    let mut case = Normed::new();
    case.use_it();
    case.write_x();
    let text = case.download().unwrap_err().to_string();
    assert!(text.contains("after its input was written"), "{text}");
    // Written anew it is a buffer like any other.
    let gain = case.gpu.upload(&HostTensor { rows: 1, width: 64, data: vec![1.0; 64] }).unwrap();
    case.gpu.rms_norm(3, &case.x, &gain, 1e-5, &mut case.out).unwrap();
    assert!(case.download().is_ok());
}

/// Decode steps of three sequences, again and again: the second and later ones are replayed.
fn decode_steps(vocab: usize) -> Vec<modelprofile_kernels::StepPlan> {
    let prompt = plan(&[(0, 3, vec![0]), (0, 3, vec![1]), (0, 3, vec![2])], vocab);
    let decode = |at: usize| plan(&[(at, 1, vec![0]), (at, 1, vec![1]), (at, 1, vec![2])], vocab);
    std::iter::once(prompt).chain((3..9).map(decode)).collect()
}

fn run(gpu: &mut Cuda, steps: &[modelprofile_kernels::StepPlan]) -> Vec<Vec<f32>> {
    let weights = Weights::new(gpu, &TINY, WeightKind::Fp8, WeightKind::Bf16);
    let mut model = Model::new(gpu, TINY, KvFormat::Bf16, 6, 48);
    steps.iter().map(|plan| model.step(gpu, &weights, None, plan).unwrap()).collect()
}

#[test]
fn a_replayed_step_gives_bit_for_bit_what_a_plain_one_gives() {
    let _alone = alone();
    let steps = decode_steps(TINY.vocab);
    let mut plain = Cuda::new(CudaOptions { graphs: false, ..options() }).unwrap();
    let expected = run(&mut plain, &steps);
    assert_eq!(plain.replays(), 0);
    let mut recorded = Cuda::new(options()).unwrap();
    let found = run(&mut recorded, &steps);
    assert_eq!(found, expected);
    assert_eq!(recorded.replays(), 5, "all decode steps but the first");
    assert!(recorded.take_notes().is_empty());
}

#[test]
fn a_step_that_leaves_its_list_is_computed_plainly() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let weights = Weights::new(&gpu, &TINY, WeightKind::Fp8, WeightKind::Bf16);
    let mut model = Model::new(&gpu, TINY, KvFormat::Bf16, 6, 48);
    let steps = decode_steps(TINY.vocab);
    let mut expected = Vec::new();
    for plan in &steps {
        expected.push(model.step(&mut gpu, &weights, None, plan).unwrap());
    }
    // The same steps with another model's buffers begin with the same embedding, but differ from the second command on.
    let mut other = Model::new(&gpu, TINY, KvFormat::Bf16, 6, 48);
    for (plan, expected) in steps.iter().zip(&expected) {
        assert_eq!(&other.step(&mut gpu, &weights, None, plan).unwrap(), expected);
        assert_eq!(model.step(&mut gpu, &weights, None, plan).unwrap(), *expected);
    }
}

#[rstest]
#[case("cuStreamBeginCapture_v2")]
#[case("cuStreamEndCapture")]
#[case("cuGraphInstantiateWithFlags")]
#[case("cuGraphLaunch")]
fn a_failure_of_a_graph_costs_nothing_but_speed(#[case] function: &str) {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let steps = decode_steps(TINY.vocab);
    let mut plain = Cuda::new(CudaOptions { graphs: false, ..options() }).unwrap();
    let expected = run(&mut plain, &steps);
    drop(plain);
    let mut gpu = Cuda::new(options()).unwrap();
    sim.fail(function, 1, 801);
    let found = run(&mut gpu, &steps);
    sim.calm();
    assert_eq!(found, expected);
    assert_eq!(gpu.replays(), 0);
    let notes = gpu.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("graph"), "{notes:?}");
}

#[test]
fn rows_of_a_step_do_not_depend_on_their_neighbours_when_deterministic() {
    let _alone = alone();
    let mut gpu = Cuda::new(CudaOptions { deterministic: true, ..options() }).unwrap();
    let weights = Weights::new(&gpu, &TINY, WeightKind::Int4 { group: 32 }, WeightKind::Bf16);
    let mut model = Model::new(&gpu, TINY, KvFormat::Bf16, 6, 64);
    let alone = model.step(&mut gpu, &weights, None, &plan(&[(0, 17, vec![3, 0])], TINY.vocab)).unwrap();
    let beside = plan(&[(0, 40, vec![1, 2, 4]), (0, 17, vec![3, 0])], TINY.vocab);
    let both = model.step(&mut gpu, &weights, None, &beside).unwrap();
    assert_eq!(both[TINY.vocab..], alone);
}

#[test]
fn what_does_not_fit_is_refused_with_a_sentence() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let (x, mut out) = (gpu.buffer(2, 64).unwrap(), gpu.buffer(2, 48).unwrap());
    let gain = gpu.buffer(1, 64).unwrap();
    assert!(gpu.rms_norm(2, &x, &gain, 1e-5, &mut out).is_err(), "width");
    let mut same = gpu.buffer(2, 64).unwrap();
    assert!(gpu.rms_norm(3, &x, &gain, 1e-5, &mut same).is_err(), "rows");
    let w = gpu.weight(&pack(&weight(WeightKind::Bf16, 64, 64, 1)).unwrap(), Split::Replicated).unwrap();
    assert!(gpu.linear(2, &x, &w, None, Store::Overwrite, &mut out).is_err());
    let odd = weight(WeightKind::Bf16, 8, 66, 1);
    let text = gpu.weight(&pack(&odd).unwrap(), Split::Replicated).unwrap_err().to_string();
    assert!(text.contains("multiples of 4"), "{text}");
    assert!(gpu.upload(&HostTensor { rows: 2, width: 2, data: vec![0.0; 3] }).is_err());
    let late = gpu.begin(&plan(&[(0, 1, vec![0])], 9)).unwrap();
    gpu.begin(&plan(&[(0, 1, vec![0])], 9)).unwrap();
    assert!(gpu.embed(&late, &w, &mut same).is_err(), "a step that is over");
}

/// What calibration asks, of 20 rows of 96 columns: maxima, Gram matrix, changes of a rounding, their quadratic forms.
fn statistics<B: Calibrate>(backend: &mut B) -> [Vec<f32>; 4] {
    let (rows, k) = (20, 96);
    let upload =
        |backend: &B, rows, seed| backend.upload(&HostTensor { rows, width: k, data: noise(rows * k, seed) }).unwrap();
    let (x, weights) = (upload(backend, rows, 1), upload(backend, rows, 2));
    let data = noise(k, 3).iter().map(|v| 1.5 + v).collect();
    let scales = backend.upload(&HostTensor { rows: 1, width: k, data }).unwrap();
    let (mut maxima, mut gram) = (backend.buffer(1, k).unwrap(), backend.buffer(k, k).unwrap());
    backend.column_absmax(rows, &x, &mut maxima).unwrap();
    backend.gram(rows, &x, &mut gram).unwrap();
    backend.gram(7, &weights, &mut gram).unwrap();
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
fn statistics_of_calibration() {
    let _alone = alone();
    let (expected, found) = (statistics(&mut cpu()), statistics(&mut Cuda::new(options()).unwrap()));
    let [maxima, gram, changes, forms] = std::array::from_fn(|i| error(&found[i], &expected[i]));
    assert!(maxima == 0.0 && gram < 1e-6 && changes < 1e-6 && forms < 1e-5, "{maxima} {gram} {changes} {forms}");
}
