//! Tokens that the backend draws, against the sampler's definition: of some rows, with lists of any length, on several devices.

use modelprofile_kernels::{
    Backend, Device, Draw, HostTensor, Split, Store, WeightKind,
    cuda::{Cuda, Parallel, available},
    pack,
};

use crate::{
    device::noise,
    model::weight,
    sample::{SampleRow, coarse, logits, reference},
    sim::{Sim, alone, options},
};

/// What a draw gives by definition: bias and penalties, then the rest.
fn expected(logits: &[f32], draw: &Draw) -> Option<u32> {
    let mut logits = logits.to_vec();
    for (token, bias) in &draw.bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    for (token, count) in &draw.seen {
        let Some(logit) = logits.get_mut(*token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / draw.repetition } else { *logit * draw.repetition };
        if *count > 0 {
            *logit -= draw.presence + draw.frequency * *count as f32;
        }
    }
    Some(reference(&logits, &SampleRow::of(draw))).filter(|token| *token != u32::MAX)
}

fn upload<B: Device>(backend: &B, rows: &[Vec<f32>]) -> B::Buffer {
    backend.upload(&HostTensor { rows: rows.len(), width: rows[0].len(), data: rows.concat() }).unwrap()
}

fn download<B: Device>(backend: &B, buffer: &B::Buffer, rows: usize) -> Vec<f32> {
    let mut host = HostTensor::default();
    backend.download(buffer, rows, &mut host).unwrap();
    host.data
}

/// Greedy, and draws with everything that there is.
fn draws() -> Vec<Draw> {
    let seen = |step: u32| (0..300).map(|i| (i * step, i % 3)).collect();
    let (greedy, plain) = (Draw { temperature: 0.0, ..Draw::default() }, Draw { random: 0.7, ..Draw::default() });
    vec![
        greedy.clone(),
        plain.clone(),
        Draw { bias: vec![(17, 30.0), (3, -100.0)], ..greedy.clone() },
        Draw { repetition: 1.7, seen: seen(2), ..greedy },
        Draw { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.02, ..plain.clone() },
        Draw { presence: 1.5, frequency: 0.5, seen: seen(3), bias: vec![(400, 6.0), (5000, 9.0)], ..plain.clone() },
        Draw { random: 0.999_999, temperature: 2.0, top_p: 0.3, ..plain },
    ]
}

fn assert_drawn<B: Backend>(backend: &mut B, rows: &[Vec<f32>], first: usize, draws: &[Draw]) {
    let mut buffer = upload(backend, rows);
    let found = backend.sample(&mut buffer, first, draws).unwrap().unwrap();
    let expected: Vec<_> = rows[first..].iter().zip(draws).map(|(row, draw)| expected(row, draw)).collect();
    assert_eq!(found, expected);
}

#[test]
fn rows_from_the_first_on_are_drawn_and_the_others_stay() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let draws = draws();
    for make in [logits, coarse] {
        let rows: Vec<Vec<f32>> = (0..draws.len() as u32 + 4).map(|seed| make(1000, seed + 70)).collect();
        for first in [0, 3] {
            assert_drawn(&mut gpu, &rows, first, &draws);
        }
        let mut buffer = upload(&gpu, &rows);
        let sim = Sim::find();
        let before = sim.as_ref().map(Sim::bytes_to_host);
        gpu.sample(&mut buffer, 2, &draws).unwrap();
        let tokens = draws.len() as u64 * 4;
        assert_eq!(sim.as_ref().map(Sim::bytes_to_host), before.map(|before| before + tokens), "tokens, and no logits");
        let after = download(&gpu, &buffer, rows.len());
        let behind = 2 + draws.len();
        assert_eq!(after[..2 * 1000], rows[..2].concat());
        assert_eq!(after[behind * 1000..], rows[behind..].concat());
    }
    assert_eq!(gpu.sample(&mut gpu.buffer(1, 8).unwrap(), 1, &[]).unwrap(), Some(vec![]));
}

/// A list of all tokens for each row: more than are on the device at once.
#[test]
fn lists_of_any_length_are_taken() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let vocab = 40_000;
    let rows: Vec<Vec<f32>> = (0..4).map(|seed| logits(vocab, seed + 90)).collect();
    let seen: Vec<(u32, u32)> = (0..vocab as u32).map(|token| (token, token % 5)).collect();
    let long = Draw { temperature: 0.0, frequency: 0.9, seen, ..Draw::default() };
    let draws =
        [long.clone(), Draw { temperature: 0.0, ..Draw::default() }, Draw { repetition: 2.0, ..long.clone() }, long];
    assert_drawn(&mut gpu, &rows, 0, &draws);
}

#[test]
fn nan_and_nothing_to_draw_are_no_token() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    let mut damaged = logits(2000, 3);
    damaged[1500] = f32::NAN;
    let rows = [damaged, vec![f32::NEG_INFINITY; 2000], logits(2000, 4)];
    assert_drawn(&mut gpu, &rows, 0, &vec![Draw { random: 0.5, ..Draw::default() }; 3]);
    let mut buffer = upload(&gpu, &rows);
    let greedy = Draw { temperature: 0.0, ..Draw::default() };
    assert_eq!(gpu.sample(&mut buffer, 0, &[greedy]).unwrap(), Some(vec![None]));
}

#[test]
fn what_the_kernels_do_not_take_is_left_to_the_caller() {
    let _alone = alone();
    let mut gpu = Cuda::new(options()).unwrap();
    for vocab in [1003, (1 << 20) + 4] {
        let rows = [noise(vocab, 1)];
        let mut buffer = upload(&gpu, &rows);
        assert_eq!(gpu.sample(&mut buffer, 0, &[Draw::default()]).unwrap(), None);
        assert_eq!(download(&gpu, &buffer, 1), rows[0]);
    }
    let mut buffer = gpu.buffer(2, 64).unwrap();
    assert!(gpu.sample(&mut buffer, 1, &vec![Draw::default(); 2]).is_err(), "a row that is not there");
}

#[test]
fn a_failure_of_the_driver_is_an_error_and_passes() {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let mut gpu = Cuda::new(options()).unwrap();
    let rows = [logits(1000, 5)];
    let draw = Draw { bias: vec![(7, 1.0)], ..Draw::default() };
    let calls = [
        ("cuLaunchKernelEx", 1),
        ("cuLaunchKernelEx", 2),
        ("cuLaunchKernelEx", 4),
        ("cuMemcpyHtoDAsync_v2", 2),
        ("cuMemcpyDtoHAsync_v2", 1),
    ];
    for (function, nth) in calls {
        let mut buffer = upload(&gpu, &rows);
        sim.fail(function, nth, 999);
        let failed = gpu.sample(&mut buffer, 0, std::slice::from_ref(&draw));
        sim.calm();
        assert!(failed.is_err(), "{function}, call {nth}");
        assert_drawn(&mut gpu, &rows, 0, std::slice::from_ref(&draw));
    }
}

/// The first of several devices draws from logits that are whole there; of a divided output layer nobody has them whole.
#[test]
fn several_devices_draw_where_one_has_the_whole_logits() {
    let _alone = alone();
    if available().unwrap().len() < 2 {
        eprintln!("skipped: 2 GPUs are needed");
        return;
    }
    let several: Vec<_> =
        (0..2).map(|ordinal| modelprofile_kernels::cuda::CudaOptions { ordinal, ..options() }).collect();
    let mut parallel = Parallel::new(&several).unwrap();
    let draws = draws();
    let rows: Vec<Vec<f32>> = (0..=draws.len() as u32).map(|seed| logits(1000, seed + 70)).collect();
    assert_drawn(&mut parallel, &rows, 1, &draws);
    let packed = pack(&weight(WeightKind::Bf16, 64, 32, 1)).unwrap();
    let x = upload(&parallel, &[noise(32, 2)]);
    for (split, drawn) in [(Split::Replicated, true), (Split::Outputs, false)] {
        let w = parallel.weight(&packed, split).unwrap();
        let mut out = parallel.buffer(1, 64).unwrap();
        parallel.linear(1, &x, &w, None, Store::Overwrite, &mut out).unwrap();
        let before = download(&parallel, &out, 1);
        let found = parallel.sample(&mut out, 0, &draws[..1]).unwrap();
        assert_eq!(found, drawn.then(|| vec![expected(&before, &draws[0])]), "{split:?}");
        if !drawn {
            assert_eq!(download(&parallel, &out, 1), before);
        }
    }
    if let Some(sim) = Sim::find() {
        let mut buffer = upload(&parallel, &rows);
        sim.fail("cuMemcpyDtoHAsync_v2", 1, 999);
        let failed = parallel.sample(&mut buffer, 0, &draws[..1]);
        sim.calm();
        assert!(failed.unwrap_err().to_string().contains("GPU 0 of the model"));
    }
}
