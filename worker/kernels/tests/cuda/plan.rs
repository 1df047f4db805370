//! The plan of a step against what the device is given: the same kernels with the same grids, bytes and operations, in the
//! same order.

use modelprofile_kernels::{
    Backend, Device, Draw, KvFormat, StepPlan, WeightKind,
    cuda::{Cuda, CudaOptions, PlanOptions, Planner, What, Work},
};
use rstest::rstest;

use crate::{
    model::{Model, Sizes, TINY, Weights, plan},
    sim::{alone, options},
};

/// A model that takes the library's products (sides are multiples of 16) on its way through a prompt.
const SIZES: Sizes = Sizes { layers: 2, vocab: 96, ..TINY };
const ROWS: usize = 320;

/// Prompts of many rows and few, beside a decode and alone; decode steps that are padded and not.
fn steps(vocab: usize) -> Vec<StepPlan> {
    let blocks = |first: u32, count: u32| (first..first + count).collect::<Vec<u32>>();
    vec![
        plan(&[(0, 300, blocks(0, 20))], vocab),
        plan(&[(0, 40, blocks(20, 4))], vocab),
        plan(&[(300, 1, blocks(0, 20)), (40, 7, blocks(20, 4))], vocab),
        plan(&[(301, 1, blocks(0, 20))], vocab),
        plan(&[(302, 1, blocks(0, 20)), (47, 1, blocks(20, 4)), (0, 1, blocks(24, 1))], vocab),
        plan(&(0..5).map(|i| (0, 1, blocks(i, 1))).collect::<Vec<_>>(), vocab),
    ]
}

fn run<B: Backend>(
    model: &mut Model<B>,
    weights: &Weights<B>,
    plan: &StepPlan,
) -> impl FnOnce(&mut B) -> modelprofile_kernels::Result<()> {
    move |device| model.step(device, weights, None, plan).map(|_| ())
}

/// What was planned for the stream, but for copies.
fn launches(planner: &Planner) -> Vec<(&'static str, [u32; 3], Work)> {
    let planned = planner.take().into_iter().filter(|entry| entry.what != What::HostCopy);
    planned.map(|entry| (entry.name, entry.grid, entry.work)).collect()
}

fn compare(sizes: Sizes, kind: WeightKind, ends: WeightKind, format: KvFormat, options: &CudaOptions) {
    let _alone = alone();
    let mut gpu = Cuda::new(options.clone()).unwrap();
    let mut planner = Planner::new(PlanOptions {
        graphs: options.graphs,
        deterministic: options.deterministic,
        ..PlanOptions::new(gpu.info().processors as usize)
    });
    let (real, planned) = (Weights::new(&gpu, &sizes, kind, ends), Weights::new(&planner, &sizes, kind, ends));
    let (mut on_gpu, mut on_paper) =
        (Model::new(&gpu, sizes, format, 30, ROWS), Model::new(&planner, sizes, format, 30, ROWS));
    for (index, step) in steps(sizes.vocab).iter().enumerate() {
        let given = gpu.trace(run(&mut on_gpu, &real, step)).unwrap();
        planner.take();
        run(&mut on_paper, &planned, step)(&mut planner).unwrap();
        let listed = launches(&planner);
        assert!(given.len() > 10);
        assert_eq!(listed, given, "{kind:?} {format:?}, step {index}");
    }
    let plain = Draw::default();
    let greedy = Draw { temperature: 0.0, ..plain.clone() };
    let penalized = Draw { bias: vec![(1, 2.0)], seen: vec![(3, 1), (4, 0)], frequency: 0.5, ..plain.clone() };
    let truncated = Draw { top_k: 5, ..plain.clone() };
    let mut there = gpu.buffer(4, sizes.vocab).unwrap();
    let mut here = planner.buffer(4, sizes.vocab).unwrap();
    for (draws, expected) in [
        (
            vec![greedy.clone(), penalized, plain.clone()],
            &["penalize", "sample_best", "sample_mass", "sample_tokens"][..],
        ),
        (vec![greedy.clone(), greedy], &["sample_best", "sample_tokens"]),
        (vec![truncated, plain], &["sample_best", "sample_mass", "sample_list", "sample_tokens"]),
    ] {
        let given = gpu.trace(|gpu| gpu.sample(&mut there, 1, &draws).map(|_| ())).unwrap();
        assert!(planner.sample(&mut here, 1, &draws).unwrap().is_some());
        let names: Vec<_> = given.iter().map(|entry| entry.0).collect();
        assert_eq!(names, expected);
        assert_eq!(launches(&planner), given);
    }
}

#[rstest]
#[case(WeightKind::Bf16)]
#[case(WeightKind::Fp8)]
#[case(WeightKind::Fp8Static)]
#[case(WeightKind::Fp8Block)]
#[case(WeightKind::Int8)]
#[case(WeightKind::Int8Outliers { columns: 3 })]
#[case(WeightKind::Int4 { group: 64 })]
#[case(WeightKind::Int8Group { group: 32 })]
fn a_plan_lists_what_the_device_is_given(#[case] kind: WeightKind) {
    compare(SIZES, kind, WeightKind::Int8Group { group: 32 }, KvFormat::Fp8E4m3, &options());
}

#[test]
fn with_head_norms_biases_and_a_window_too() {
    let sizes = Sizes { extras: true, window: Some(11), heads: 6, kv_heads: 2, hidden: 256, ..SIZES };
    compare(sizes, WeightKind::Fp8, WeightKind::Bf16, KvFormat::Bf16, &options());
}

#[test]
fn deterministic_and_without_graphs_too() {
    let options = CudaOptions { graphs: false, deterministic: true, ..options() };
    compare(SIZES, WeightKind::Int4 { group: 32 }, WeightKind::Bf16, KvFormat::Bf16, &options);
}

/// Times of an emulated device say nothing; that every kernel has one, and how often a step has it, does.
#[test]
fn each_kind_of_kernel_of_a_step_is_timed() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let weights = Weights::new(&gpu, &SIZES, WeightKind::Fp8, WeightKind::Bf16);
    let mut model = Model::new(&gpu, SIZES, KvFormat::Bf16, 30, ROWS);
    let step = plan(&[(0, 1, vec![0]), (0, 1, vec![1])], SIZES.vocab);
    let given = gpu.trace(run(&mut model, &weights, &step)).unwrap();
    let profiled = gpu.profile(2, run(&mut model, &weights, &step)).unwrap();
    assert_eq!(profiled.iter().map(|kernel| kernel.count).sum::<usize>(), given.len());
    assert!(profiled.iter().all(|kernel| kernel.seconds > 0.0), "{profiled:?}");
    let names: Vec<_> = profiled.iter().map(|kernel| kernel.name).collect();
    assert!(names.contains(&"linear_fp8_m8") && names.contains(&"attention_decode_bf16_64"), "{names:?}");
    let attention = profiled.iter().find(|kernel| kernel.name.starts_with("attention_decode")).unwrap();
    assert_eq!(attention.count, SIZES.layers);
}
