use super::*;

fn params() -> SamplingParams {
    SamplingParams { seed: Some(1), ..SamplingParams::default() }
}

#[test]
fn the_nucleus_is_the_shortest_prefix_of_the_sorted_candidates() {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let all: Vec<(f32, u32)> = (0..5000u32).map(|t| (((t * 7919) % 997 + 1) as f32 / 997.0, t)).collect();
    for p in [0.001, 0.3, 0.9, 0.999] {
        let mut sorted = all.clone();
        sorted.sort_unstable_by(order);
        let (total, mut sum) = (sorted.iter().map(|c| f64::from(c.0)).sum::<f64>(), 0.0);
        let kept = sorted.iter().take_while(|c| {
            let before = sum;
            sum += f64::from(c.0);
            before < p * total
        });
        let kept: Vec<_> = kept.copied().collect();
        let mut found = all.clone();
        keep_nucleus(&mut found, p, order);
        assert_eq!(found, kept, "{p}");
    }
}

/// Frequencies of 4,000 draws from the same logits.
fn frequencies(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let mut sampler = Sampler::new(params, &[], 0);
    for _ in 0..4000 {
        let mut logits = logits.to_vec();
        counts[sampler.sample(&mut logits).unwrap() as usize] += 1.0 / 4000.0;
    }
    counts
}

const LOGITS: [f32; 4] = [2.0, 1.0, 0.0, -1.0];

#[test]
fn draws_follow_the_softmax() {
    let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
    for (found, logit) in frequencies(&params(), &LOGITS).iter().zip(LOGITS) {
        assert!((found - f64::from(logit).exp() / total).abs() < 0.03, "{found}");
    }
}

#[test]
fn truncations_keep_exactly_their_sets() {
    let kept = |params: SamplingParams| frequencies(&params, &LOGITS).iter().filter(|f| **f > 0.0).count();
    assert_eq!(kept(SamplingParams { top_k: 2, ..params() }), 2);
    // 0.644, 0.881, 0.968, 1
    assert_eq!(kept(SamplingParams { top_p: 0.6, ..params() }), 1);
    assert_eq!(kept(SamplingParams { top_p: 0.9, ..params() }), 3);
    // Relative to the best: 1, 0.368, 0.135, 0.050
    assert_eq!(kept(SamplingParams { min_p: 0.2, ..params() }), 2);
}

#[test]
fn greedy_takes_the_lowest_of_equal_tokens() {
    let mut sampler = Sampler::new(&SamplingParams { temperature: 0.0, ..params() }, &[], 0);
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0]), Ok(1));
}

#[test]
fn nan_is_an_error() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(&SamplingParams { temperature, ..params() }, &[], 0);
        assert_eq!(sampler.sample(&mut [1.0, f32::NAN, 3.0]), Err(SampleError::NotANumber));
    }
}

#[test]
fn penalties_and_bias_move_logits_as_defined() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(3, 10.0)],
        temperature: 0.0,
        ..params()
    };
    let mut sampler = Sampler::new(&params, &[0, 1], 0);
    let mut logits = [4.0, -4.0, 1.0, 0.0];
    assert_eq!(sampler.sample(&mut logits), Ok(3));
    assert_eq!(logits, [2.0, -8.0, 1.0, 10.0]);
    let mut logits = [4.0, -4.0, 1.0, 0.0];
    sampler.sample(&mut logits).unwrap();
    assert_eq!(logits, [2.0, -8.0, 1.0, 10.0 / 2.0 - 0.75]);
}

#[test]
fn a_draw_says_what_the_sampler_would_do_next() {
    let plain = Sampler::new(&params(), &[4], 0).draw();
    assert_eq!((plain.temperature, plain.bias, plain.seen), (1.0, vec![], vec![]), "what was seen is no matter");
    let logit_bias = vec![(3, 1.0), (2, 5.0), (3, 0.5)];
    let params = SamplingParams { frequency_penalty: 0.25, top_k: 9, logit_bias, ..params() };
    let mut sampler = Sampler::new(&params, &[4], 0);
    let first = sampler.draw();
    assert_eq!((first.frequency, first.top_k), (0.25, 9));
    assert_eq!((&first.bias, &first.seen), (&vec![(2, 5.0), (3, 1.5)], &vec![(4, 0)]));
    assert_eq!(first, sampler.draw(), "nothing is chosen by it");
    assert_eq!(sampler.take(None), Err(SampleError::NotANumber));
    assert_eq!(sampler.take(Some(4)), Ok(4));
    let second = sampler.draw();
    assert_eq!(second.seen, [(4, 1)]);
    assert_ne!(second.random, first.random);
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let draw = || {
        let mut sampler = Sampler::new(&params(), &[], 99);
        (0..20).map(|_| sampler.sample(&mut LOGITS.clone()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw());
}

#[test]
fn logprobs_are_the_log_softmax_and_sorted() {
    let scored = logprobs(&LOGITS, 2, 2);
    let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
    assert!((scored.logprob - (1.0 / total).ln()).abs() < 1e-5);
    assert_eq!(scored.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn ranges_are_named() {
    let wrong = SamplingParams { top_p: 0.0, ..params() };
    assert!(wrong.validate(10).unwrap_err().contains("top_p"));
    let wrong = SamplingParams { logit_bias: vec![(11, 1.0)], ..params() };
    assert!(wrong.validate(10).unwrap_err().contains("token 11"));
    assert_eq!(params().validate(10), Ok(()));
}
