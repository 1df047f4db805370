//! Tokens drawn on the device: those of the host's sampler, beside requests whose logits the host reads, and without copies of
//! logits.
//!
//! A request for log-probabilities has the host choose its tokens, from the same logits: so each text is there twice.

use modelprofile_engine::{
    FinishReason, GenerateRequest, SamplingParams, TokenEvent, WeightFormat,
    serve::{Engine, EngineConfig, EngineHandle, TokenStream, start},
};
use modelprofile_kernels::cuda::{Cuda, CudaOptions};
use rstest::rstest;

use crate::{
    device::{alone, engine, noted},
    sim::{self, Sim},
    support,
    tiny::{Family, Shape, TINY, VOCAB, changed, checkpoint, prompt},
};

fn config() -> EngineConfig {
    EngineConfig {
        max_context_tokens: Some(256),
        max_batched_tokens: 64,
        max_running: 8,
        ..support::config(vec![support::profile("one", WeightFormat::Bf16)], 64)
    }
}

/// An engine whose logits are the same in every batch.
fn deterministic() -> EngineHandle {
    let config = config();
    let options = CudaOptions { deterministic: true, budget: Some(config.memory_budget as usize), ..sim::options() };
    let gpu = Cuda::new(options).unwrap();
    noted(start(gpu, &checkpoint(TINY), &config, Box::new(support::Ignore), &mut |_, _| {}).unwrap())
}

fn request(sampling: SamplingParams, index: u32) -> GenerateRequest {
    GenerateRequest { sampling, ..support::greedy(&prompt(9 + index as usize, index), 24) }
}

/// The same request, whose tokens the host chooses.
fn read(request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest { logprobs: Some(1), ..request.clone() }
}

/// A text, and of how many of its tokens there are log-probabilities.
fn text(stream: &mut TokenStream) -> (Vec<u32>, usize) {
    let (mut tokens, mut scored) = (Vec::new(), 0);
    loop {
        match stream.blocking_next().unwrap() {
            TokenEvent::Token { token, logprob, .. } => {
                tokens.push(token);
                if let Some(logprob) = logprob {
                    assert_eq!((logprob.token, logprob.top.len()), (token, 1));
                    scored += 1;
                }
            }
            TokenEvent::Finished { reason, error, .. } => {
                assert_ne!(reason, FinishReason::Error, "{error:?}");
                return (tokens, scored);
            }
            TokenEvent::Prompt(scores) => assert!(scores[1..].iter().all(Option::is_some)),
        }
    }
}

fn alone_in_its_batch(engine: &EngineHandle, request: GenerateRequest) -> Vec<u32> {
    text(&mut engine.submit(request).unwrap()).0
}

fn seeded() -> SamplingParams {
    SamplingParams { seed: Some(7), ..SamplingParams::default() }
}

/// Every parameter, alone and with others.
fn parameters() -> Vec<SamplingParams> {
    let greedy = SamplingParams { temperature: 0.0, ..seeded() };
    vec![
        greedy.clone(),
        seeded(),
        SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.9, min_p: 0.01, ..seeded() },
        SamplingParams { repetition_penalty: 1.8, ..greedy.clone() },
        SamplingParams { presence_penalty: 1.5, frequency_penalty: 1.0, ..seeded() },
        // The same token twice, and one that cannot be drawn.
        SamplingParams { logit_bias: vec![(5, 4.0), (9, -100.0), (5, 3.0)], ..seeded() },
        SamplingParams {
            temperature: 1.4,
            top_p: 0.8,
            repetition_penalty: 0.7,
            frequency_penalty: -0.5,
            logit_bias: vec![(11, 5.0)],
            seed: Some(u64::MAX),
            ..seeded()
        },
    ]
}

#[test]
fn the_device_draws_what_the_hosts_sampler_draws() {
    let _alone = alone();
    let engine = engine(&checkpoint(TINY), &config());
    for (index, parameters) in (0..).zip(parameters()) {
        let request = request(parameters, index);
        let expected = alone_in_its_batch(&engine, read(&request));
        assert_eq!(alone_in_its_batch(&engine, request.clone()), expected, "{:?}", request.sampling);
    }
}

#[test]
fn requests_whose_logits_are_read_are_served_beside_others() {
    let _alone = alone();
    let engine = deterministic();
    let requests: Vec<GenerateRequest> =
        (0..).zip(parameters()).map(|(index, parameters)| request(parameters, index)).collect();
    let expected: Vec<Vec<u32>> = requests.iter().map(|r| alone_in_its_batch(&engine, r.clone())).collect();
    // Every second one has its logits read, the fourth its prompt's alone.
    let beside = requests.iter().enumerate().map(|(index, request)| match index {
        3 => GenerateRequest { prompt_logprobs: Some(1), ..request.clone() },
        index if index % 2 == 1 => read(request),
        _ => request.clone(),
    });
    let mut streams: Vec<TokenStream> = beside.map(|request| engine.submit(request).unwrap()).collect();
    for (index, (stream, expected)) in streams.iter_mut().zip(&expected).enumerate() {
        let (tokens, scored) = text(stream);
        assert_eq!(&tokens, expected, "{:?}", requests[index].sampling);
        assert_eq!(scored, if index % 2 == 1 && index != 3 { tokens.len() } else { 0 });
    }
}

/// Bytes that come to the host, and steps that run as graphs, while something is computed.
fn copied(sim: &Sim, work: impl FnOnce()) -> (u64, u64) {
    let counts = || (sim.bytes_to_host(), sim.calls("cuGraphLaunch"));
    let before = counts();
    work();
    let after = counts();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn logits_that_nobody_reads_are_not_copied() {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let engine = engine(&checkpoint(TINY), &config());
    let (plain, tokens) = (request(seeded(), 0), 24);
    let (token, logits) = (size_of::<u32>() as u64, (VOCAB * size_of::<f32>()) as u64);
    let run = |requests: &[GenerateRequest]| {
        let mut streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for stream in &mut streams {
            assert_eq!(text(stream).0.len() as u64, tokens);
        }
    };
    let (bytes, graphs) = copied(&sim, || run(std::slice::from_ref(&plain)));
    assert_eq!(bytes, tokens * token);
    // All but the prompt's step and the first of its kind.
    assert_eq!(graphs, tokens - 2, "drawing ends no step's graph early");
    assert_eq!(copied(&sim, || run(&[read(&plain)])).0, tokens * logits);
    let beside = [plain.clone(), read(&plain), plain.clone()];
    assert_eq!(copied(&sim, || run(&beside)).0, tokens * (2 * token + logits));
    // Of a prompt that is scored the last row scores nothing.
    let scored = GenerateRequest { prompt_logprobs: Some(0), ..plain.clone() };
    let rows = plain.prompt.len() as u64 - 1;
    assert_eq!(copied(&sim, || run(&[scored])).0, rows * logits + tokens * token);
}

#[rstest]
#[case(0.0)]
#[case(1.0)]
fn logits_that_are_not_numbers_end_the_request_with_the_hosts_error(#[case] temperature: f32) {
    let _alone = alone();
    // Sums of infinities of both signs.
    let damaged = changed(Shape::of(Family::Llama), &|name, values| {
        if name == "model.norm.weight" {
            values.fill(3e38);
        }
    });
    let engine = engine(&damaged, &config());
    let drawn = request(SamplingParams { temperature, ..seeded() }, 0);
    let end = |request: GenerateRequest| match engine.submit(request).unwrap().blocking_next().unwrap() {
        TokenEvent::Finished { reason: FinishReason::Error, error, .. } => error.unwrap(),
        event => panic!("{event:?}"),
    };
    let expected = end(read(&drawn));
    assert!(expected.contains("the logits hold NaN"), "{expected}");
    assert_eq!(end(drawn), expected);
}
