//! What `make gpu-check` measures with. Times of an emulated device say nothing; that they are told, and that what is switched
//! for a measurement changes no result, does.

use std::collections::HashSet;

use modelprofile_kernels::{
    KvFormat, WeightKind,
    cuda::{Cuda, CudaOptions, available, entry_points, units},
};
use rstest::rstest;

use crate::{
    model::{Model, Sizes, TINY, Weights, plan},
    sim::{Sim, alone, options},
};

/// Sides of multiples of 16, which the library's products take.
const SIZES: Sizes = Sizes { layers: 2, vocab: 96, ..TINY };

#[test]
fn copies_have_a_rate_and_work_has_a_time() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let mut used = Vec::new();
    for _ in 0..2 {
        let rates = gpu.bandwidth(1 << 20, 2).unwrap();
        assert!(
            [rates.device, rates.from_host, rates.to_host].iter().all(|rate| rate.is_finite() && *rate > 0.0),
            "{rates:?}"
        );
        used.push(gpu.memory().used());
    }
    assert_eq!(used[0], used[1], "what was copied to and fro is used again");
    let seconds = gpu.seconds(|gpu| gpu.bandwidth(1 << 16, 1).map(|_| ())).unwrap();
    assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");
}

#[test]
fn a_step_is_the_same_with_and_without_overlapping_kernels() {
    let _alone = alone();
    let mut gpu = Cuda::new(CudaOptions { overlap: true, ..options() }).unwrap();
    let weights = Weights::new(&gpu, &SIZES, WeightKind::Fp8, WeightKind::Bf16);
    let mut model = Model::new(&gpu, SIZES, KvFormat::Bf16, 6, 48);
    let decode = plan(&[(0, 1, vec![0]), (0, 1, vec![1])], SIZES.vocab);
    let mut steps = |gpu: &mut Cuda| -> Vec<Vec<f32>> {
        (0..4).map(|_| model.step(gpu, &weights, None, &decode).unwrap()).collect()
    };
    let overlapping = steps(&mut gpu);
    let recorded = gpu.replays();
    assert!(recorded > 0, "equal steps are recorded");
    gpu.set_overlap(false).unwrap();
    assert_eq!(steps(&mut gpu), overlapping);
    assert_eq!(gpu.replays(), 2 * recorded, "and are recorded anew: the first of four is no replay");
}

#[test]
fn group_wise_weights_are_unpacked_from_the_rows_on_that_are_asked_for() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let weights = Weights::new(&gpu, &SIZES, WeightKind::Int4 { group: 32 }, WeightKind::Bf16);
    let mut model = Model::new(&gpu, SIZES, KvFormat::Bf16, 6, 48);
    let prompt = plan(&[(0, 40, vec![3, 0, 1])], SIZES.vocab);
    for (rows, unpacks) in [(40, true), (41, false)] {
        gpu.unpack_from(rows);
        let given = gpu.trace(|gpu| model.step(gpu, &weights, None, &prompt).map(|_| ())).unwrap();
        assert_eq!(
            given.iter().any(|(name, ..)| *name == "unpack_bf16_int4"),
            unpacks,
            "from {rows} rows on: {given:?}"
        );
    }
}

#[test]
fn every_entry_point_is_declared_by_the_unit_that_it_is_in() {
    let mut seen = HashSet::new();
    for entry in entry_points() {
        let unit = units().iter().find(|unit| unit.name == entry.unit).unwrap();
        assert!(unit.files.iter().any(|file| file.contains(entry.name)), "{entry:?}");
        assert!(entry.threads.is_power_of_two() && (128..=1024).contains(&entry.threads), "{entry:?}");
        assert!(entry.shared <= 227 * 1024, "{entry:?}: a block of sm_90 has no more");
        assert!(seen.insert((entry.unit, entry.name)), "{entry:?} is there twice");
    }
}

#[rstest]
#[case(2, "give the worker a smaller budget")]
#[case(100, "check `nvidia-smi`")]
#[case(101, "`nvidia-smi -L` lists them")]
#[case(719, "restart the worker")]
#[case(803, "restart the machine")]
fn what_the_driver_says_comes_with_what_helps(#[case] code: i32, #[case] help: &str) {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    available().unwrap();
    sim.fail("cuDevicePrimaryCtxRetain", 1, code);
    let error = Cuda::new(options()).err().map(|error| error.to_string());
    sim.calm();
    let error = error.unwrap();
    assert!(error.contains("cuDevicePrimaryCtxRetain") && error.contains(help), "{error}");
}
