//! From logits to tokens, against the sampler's definition in FP64. The backend's operation is in `draws`.

use bytemuck::Zeroable;
use half::bf16;
use modelprofile_kernels::Draw;

use crate::device::{Gpu, Shape, noise};

const NO_TOKEN: u32 = u32::MAX;

/// The parameters of a row, as sample.cuh declares them.
#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub struct SampleRow {
    random: f64,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    top_k: u32,
    bias_start: u32,
    bias_count: u32,
    seen_start: u32,
    seen_count: u32,
    unused: u32,
}

const _: () = assert!(size_of::<SampleRow>() == 56);

// SAFETY: plain numbers without padding, which the device may read as bytes.
unsafe impl cudarc::driver::DeviceRepr for SampleRow {}

impl SampleRow {
    /// Without bias and penalties.
    pub fn of(draw: &Draw) -> Self {
        let &Draw { random, temperature, top_k, top_p, min_p, .. } = draw;
        Self { temperature, top_p, min_p, top_k, ..Self::plain(random) }
    }

    /// Plain draws.
    fn plain(random: f64) -> Self {
        Self { random, temperature: 1.0, top_p: 1.0, repetition: 1.0, ..Self::zeroed() }
    }
}

/// `e^x` as the sampler computes it.
fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    let shifted = t + 12_582_912.0;
    let f = (t - (shifted - 12_582_912.0)) * std::f32::consts::LN_2;
    let p = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0))))));
    p * f32::from_bits(((shifted.to_bits() as i32).wrapping_sub(0x4b40_0000).wrapping_add(127) << 23) as u32)
}

/// The sampler's definition: sort everything, cut, add up.
pub fn reference(logits: &[f32], how: &SampleRow) -> u32 {
    if logits.iter().any(|l| l.is_nan()) {
        return NO_TOKEN;
    }
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if how.temperature < 1e-5 {
        return logits.iter().position(|l| *l == best).unwrap() as u32;
    }
    let inverse = 1.0 / how.temperature;
    let mut candidates: Vec<(f32, u32)> =
        logits.iter().map(|l| exp((l - best) * inverse)).zip(0..).filter(|(p, _)| *p > 1e-12).collect();
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if how.top_k > 0 {
        candidates.truncate(how.top_k as usize);
    }
    if how.top_p < 1.0 {
        let wanted = f64::from(how.top_p) * candidates.iter().map(|c| f64::from(c.0)).sum::<f64>();
        let mut sum = 0.0;
        let last = candidates.iter().position(|c| {
            sum += f64::from(c.0);
            sum >= wanted
        });
        candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
    }
    candidates.retain(|c| c.0 >= how.min_p);
    candidates.sort_by_key(|c| c.1);
    let mut target = how.random * candidates.iter().map(|c| f64::from(c.0)).sum::<f64>();
    for (p, token) in &candidates {
        target -= f64::from(*p);
        if target < 0.0 {
            return *token;
        }
    }
    candidates.last().map_or(NO_TOKEN, |c| c.1)
}

/// Rows of logits on the device, padded to a stride; the padding looks like the best of all tokens.
fn padded(logits: &[Vec<f32>], stride: usize) -> Vec<f32> {
    logits.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(1e30, stride - row.len()))).collect()
}

/// Of sample.cuh: tokens of a part of a row, and words of truncated rows behind those of the parts.
const PART_TOKENS: usize = 4096;
const TRUNCATED_WORDS: usize = 1 + 1024 + 4096;

/// All kernels, also those that the backend would leave out.
fn sampled(gpu: &Gpu, logits: &[Vec<f32>], rows: &[SampleRow]) -> Vec<u32> {
    let vocab = logits[0].len();
    let stride = vocab.next_multiple_of(4) + 4;
    let (on_device, how) = (gpu.upload(&padded(logits, stride)), gpu.upload(rows));
    let out = gpu.output::<u32>(rows.len());
    let parts = vocab.div_ceil(PART_TOKENS);
    let words = 2 * parts + TRUNCATED_WORDS;
    let work = gpu.output::<u64>(rows.len() * words);
    let over_parts = Shape { grid: (rows.len(), parts, 1), threads: 256, shared: 0 };
    for kernel in ["sample_best", "sample_mass", "sample_list"] {
        gpu.launch(kernel, over_parts, args![&work, &on_device, &how, vocab, stride, words]);
    }
    let shape = Shape { grid: (rows.len(), 1, 1), threads: 1024, shared: 0 };
    gpu.launch("sample_tokens", shape, args![&out, &work, &on_device, &how, vocab, stride, words]);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(gpu.download(&on_device)) == bits(padded(logits, stride)), "logits stay");
    gpu.download(&out)
}

/// Logits of a spread that a model's have.
pub fn logits(vocab: usize, seed: u32) -> Vec<f32> {
    noise(vocab, seed).iter().map(|v| 12.0 * v * v * v - 2.0).collect()
}

/// The same as a BF16 product gives them: with many equals.
pub fn coarse(vocab: usize, seed: u32) -> Vec<f32> {
    logits(vocab, seed).iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

fn assert_sampled(gpu: &Gpu, logits: &[Vec<f32>], rows: &[SampleRow]) {
    let found = sampled(gpu, logits, rows);
    let expected: Vec<u32> = logits.iter().zip(rows).map(|(logits, how)| reference(logits, how)).collect();
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "{} tokens, {:?}", logits[row].len(), rows[row]);
    }
}

/// Sizes with a part of a quad, of a warp's and of a block's tokens at the end.
const VOCABULARIES: [usize; 6] = [1, 6, 1000, 4096, 4099, 9216];

#[test]
fn greedy_takes_the_lowest_of_equal_tokens() {
    let gpu = Gpu::new(&["sample"]);
    let greedy = SampleRow { temperature: 0.0, ..SampleRow::plain(0.5) };
    for vocab in VOCABULARIES {
        let mut rows = vec![logits(vocab, 1), coarse(vocab, 2), vec![f32::NEG_INFINITY; vocab], vec![-0.0; vocab]];
        rows[3][vocab - 1] = 0.0;
        let best = rows[0].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rows[0][vocab / 2] = best;
        rows[0][vocab - 1] = best;
        assert_sampled(&gpu, &rows, &[greedy; 4]);
    }
}

#[test]
fn draws_are_those_of_the_definition() {
    let gpu = Gpu::new(&["sample"]);
    for vocab in VOCABULARIES {
        for random in [0.0, 0.3, 0.999_999, 1.0 - f64::EPSILON / 2.0] {
            let plain = SampleRow::plain(random);
            let rows = [
                plain,
                SampleRow { temperature: 0.3, ..plain },
                SampleRow { temperature: 2.0, ..plain },
                SampleRow { min_p: 0.05, ..plain },
                SampleRow { min_p: 1.0, ..plain },
            ];
            let logits: Vec<Vec<f32>> = (0..rows.len() as u32).map(|seed| coarse(vocab, seed + 10)).collect();
            assert_sampled(&gpu, &logits, &rows);
        }
    }
}

#[test]
fn truncations_keep_exactly_their_candidates() {
    let gpu = Gpu::new(&["sample"]);
    for vocab in VOCABULARIES {
        for (index, random) in [0.0, 0.61, 0.999_999].into_iter().enumerate() {
            let plain = SampleRow::plain(random);
            let rows = [
                SampleRow { top_k: 1, ..plain },
                SampleRow { top_k: 7, ..plain },
                SampleRow { top_k: 50, temperature: 1.7, ..plain },
                SampleRow { top_k: 100_000, ..plain },
                // More than a list has room for, of the largest vocabulary.
                SampleRow { top_k: 5000, ..plain },
                SampleRow { top_k: 8000, top_p: 0.9999, temperature: 2.0, ..plain },
                SampleRow { top_p: 0.999_999, temperature: 4.0, ..plain },
                SampleRow { top_p: 0.01, ..plain },
                SampleRow { top_p: 0.5, ..plain },
                SampleRow { top_p: 0.95, temperature: 2.0, ..plain },
                SampleRow { top_k: 40, top_p: 0.9, min_p: 0.02, ..plain },
                SampleRow { top_k: 3, min_p: 0.9, ..plain },
            ];
            for make in [logits, coarse] {
                let logits: Vec<Vec<f32>> =
                    (0..rows.len() as u32).map(|seed| make(vocab, seed + 100 * index as u32 + 20)).collect();
                assert_sampled(&gpu, &logits, &rows);
            }
        }
    }
}

/// Of equally likely candidates the lower tokens are kept: by count, by share, and by both.
#[test]
fn equals_are_cut_by_token() {
    let gpu = Gpu::new(&["sample"]);
    // The largest has more equals than a list has room for.
    for vocab in [1000, 4099, 9216] {
        // Two likely tokens at the end, equals, some unlikely ones in front.
        let mut row = vec![1.0f32; vocab];
        row[..10].fill(-3.0);
        row[vocab - 2..].fill(2.0);
        for random in [0.0, 0.5, 0.9, 0.999_999] {
            let plain = SampleRow::plain(random);
            let rows = [
                SampleRow { top_k: 1, ..plain },
                SampleRow { top_k: 2, ..plain },
                SampleRow { top_k: 3, ..plain },
                SampleRow { top_k: 500, ..plain },
                SampleRow { top_p: 0.3, ..plain },
                SampleRow { top_p: 0.7, ..plain },
                SampleRow { top_k: 400, top_p: 0.5, ..plain },
                SampleRow { top_k: 400, top_p: 0.999_9, ..plain },
            ];
            assert_sampled(&gpu, &vec![row.clone(); rows.len()], &rows);
        }
    }
}

#[test]
fn nan_and_nothing_to_draw_are_told() {
    let gpu = Gpu::new(&["sample"]);
    for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 0.9)] {
        let how = SampleRow { temperature, top_p, top_k, ..SampleRow::plain(0.5) };
        for place in [0, 1023, 1500, 1999] {
            let mut with_nan = logits(2000, 3);
            with_nan[place] = f32::NAN;
            let infinite: Vec<f32> = vec![f32::NEG_INFINITY; 2000];
            let found = sampled(&gpu, &[with_nan, infinite, logits(2000, 4)], &[how; 3]);
            assert_eq!(found[0], NO_TOKEN, "{place}");
            assert_eq!(found[1], if temperature == 0.0 { 0 } else { NO_TOKEN });
            assert_eq!(found[2], reference(&logits(2000, 4), &how));
        }
    }
}

#[test]
fn draws_follow_the_softmax() {
    let gpu = Gpu::new(&["sample"]);
    let row = vec![2.0f32, 1.0, 0.0, -1.0];
    let draws = 400;
    let rows: Vec<SampleRow> = (0..draws).map(|i| SampleRow::plain((f64::from(i) + 0.5) / f64::from(draws))).collect();
    let found = sampled(&gpu, &vec![row.clone(); rows.len()], &rows);
    let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
    for (token, logit) in (0u32..).zip(&row) {
        let share = found.iter().filter(|t| **t == token).count() as f64 / f64::from(draws);
        // The random numbers are evenly spread: one draw more or less at either end.
        assert!((share - f64::from(*logit).exp() / total).abs() < 2.0 / f64::from(draws), "{token}");
    }
}

#[test]
fn penalties_and_bias_move_logits_as_defined() {
    let gpu = Gpu::new(&["sample"]);
    let (vocab, stride) = (1003usize, 1004usize);
    let rows = [
        SampleRow { bias_count: 2, ..SampleRow::plain(0.0) },
        SampleRow { repetition: 1.3, bias_start: 2, bias_count: 1, seen_count: 300, ..SampleRow::plain(0.0) },
        SampleRow { presence: 0.5, frequency: 0.25, seen_start: 300, seen_count: 4, ..SampleRow::plain(0.0) },
        // Tokens that were seen, and no penalty.
        SampleRow { seen_start: 300, seen_count: 4, ..SampleRow::plain(0.0) },
    ];
    let (bias_tokens, bias_values) = ([3u32, 1002, 200], [10.0f32, -100.0, 0.5]);
    // The bias of the second row and the penalty of the same token are of different threads. Of the third row's tokens one
    // is in the prompt alone, one in no vocabulary.
    let seen_tokens: Vec<u32> = (7..307).chain([0, 5, 2000, 9]).collect();
    let seen_counts: Vec<u32> = (0..300).map(|i| i % 3).chain([0, 4, 1, 1]).collect();
    let before: Vec<Vec<f32>> = (0..rows.len() as u32).map(|seed| logits(vocab, seed + 40)).collect();
    let on_device = gpu.upload(&padded(&before, stride));
    let how = gpu.upload(&rows);
    let (bt, bv) = (gpu.upload(&bias_tokens), gpu.upload(&bias_values));
    let (st, sc) = (gpu.upload(&seen_tokens), gpu.upload(&seen_counts));
    gpu.launch("penalize", Shape::blocks(rows.len()), args![&on_device, &how, &bt, &bv, &st, &sc, vocab, stride]);
    let found = gpu.download(&on_device);
    for (row, how) in rows.iter().enumerate() {
        let mut expected = before[row].clone();
        for i in how.bias_start as usize..(how.bias_start + how.bias_count) as usize {
            expected[bias_tokens[i] as usize] += bias_values[i];
        }
        let penalized = how.repetition != 1.0 || how.presence != 0.0 || how.frequency != 0.0;
        for i in how.seen_start as usize..(how.seen_start + how.seen_count) as usize {
            let Some(logit) = expected.get_mut(seen_tokens[i] as usize).filter(|_| penalized) else { continue };
            *logit = if *logit > 0.0 { *logit / how.repetition } else { *logit * how.repetition };
            if seen_counts[i] > 0 {
                *logit -= how.presence + how.frequency * seen_counts[i] as f32;
            }
        }
        assert_eq!(found[row * stride..row * stride + vocab], expected, "{how:?}");
        assert_eq!(found[row * stride + vocab], 1e30);
    }
}
