//! The backend that times another one: the same logits bit for bit, and every kernel of a step with its layer.

use std::path::Path;

use modelprofile_engine::{
    WeightFormat,
    artifact::Store,
    checkpoint::Checkpoint,
    model::{Model, ProfileWeights},
    trace::{Kernel, Step, Traced},
};
use modelprofile_kernels::{
    Backend, HostTensor, KvFormat, KvScales, SequenceSpan, StepPlan, WeightKind, WeightSpec, packed_len,
};
use rstest::rstest;

use crate::support;

const PROMPT: usize = 21;

/// A prompt, then a decode behind it together with a second sequence.
fn plans() -> [StepPlan; 2] {
    let span = |first_row, rows, first_position, blocks: [u32; 2]| SequenceSpan {
        first_row,
        rows,
        first_position,
        blocks: blocks.to_vec(),
    };
    let prompt = StepPlan {
        tokens: (0..PROMPT as u32).map(|row| 3 + row * 5 % 120).collect(),
        sequences: vec![span(0, PROMPT, 0, [0, 1])],
        logit_rows: vec![7, PROMPT - 1],
    };
    let decode = StepPlan {
        tokens: vec![9, 11],
        sequences: vec![span(0, 1, PROMPT, [0, 1]), span(1, 1, 0, [2, 3])],
        logit_rows: vec![0, 1],
    };
    [prompt, decode]
}

/// The bits of all logits of both steps.
fn logits<B: Backend>(backend: &mut B, checkpoint: &Checkpoint, format: WeightFormat) -> Vec<u32> {
    let config = checkpoint.config();
    let folder = tempfile::tempdir().unwrap();
    let artifact = Store::new(folder.path()).prepare(checkpoint, format, &mut |_| {}).unwrap();
    let weights = ProfileWeights::load(backend, config, &artifact).unwrap();
    let layout = config.kv_layout(KvFormat::Bf16);
    let mut kv = backend.kv(layout, &KvScales::unit(&layout), 4, 4).unwrap();
    let mut model = Model::new(backend, config, PROMPT).unwrap();
    let mut bits = Vec::new();
    for plan in plans() {
        let mut keep = |_: std::ops::Range<usize>, logits: &mut HostTensor| {
            bits.extend(logits.data.iter().map(|value| value.to_bits()));
            Ok(())
        };
        model.step(backend, &weights, &[], &mut kv, &plan, &mut keep).unwrap();
    }
    bits
}

#[rstest]
fn a_traced_backend_gives_what_the_backend_gives_bit_for_bit(
    #[values("llama3-tiny", "qwen2-tiny", "qwen3-tiny")] name: &str,
    #[values(WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8, WeightFormat::Q4_1)] format: WeightFormat,
) {
    let checkpoint = open(name);
    let plain = logits(&mut support::cpu(), &checkpoint, format);
    let mut traced = Traced::new(support::cpu());
    assert_eq!(plain, logits(&mut traced, &checkpoint, format));
    assert_eq!(plain.len(), 4 * checkpoint.config().vocab);
    assert_eq!(traced.take_steps().into_iter().map(|step| step.plan).collect::<Vec<_>>(), plans());
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn trace(format: WeightFormat) -> Vec<Step> {
    let mut traced = Traced::new(support::cpu());
    logits(&mut traced, &open("llama3-tiny"), format);
    let steps = traced.take_steps();
    assert_eq!(traced.take_steps(), [], "they are taken once");
    steps
}

#[test]
fn a_step_has_every_kernel_of_every_layer_in_its_order() {
    let layer = |index| {
        let kernels = ["rms_norm", "qkv 128x64 FP8", "rotate_and_store", "attention", "attention_output 64x64 FP8"];
        let rest = ["rms_norm", "gate_up 192x64 FP8", "gated_silu", "down 64x96 FP8"];
        kernels.into_iter().chain(rest).map(move |name| (name.to_owned(), Some(index)))
    };
    let outside = |names: &'static [&str]| names.iter().map(|name| ((*name).to_owned(), None));
    let ends = ["gather_logit_rows", "rms_norm", "output 128x64 INT8:g32", "download", "end"];
    let expected: Vec<_> = outside(&["begin", "embed"])
        .chain(layer(0))
        .chain(layer(1))
        .chain(ends.map(|name| (name.to_owned(), None)))
        .collect();
    for step in trace(WeightFormat::Fp8) {
        let found: Vec<_> = step.calls.iter().map(|call| (call.kernel.to_string(), call.layer)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn kernels_follow_each_other_inside_their_step() {
    let steps = trace(WeightFormat::Bf16);
    for step in &steps {
        let mut end = step.start;
        for call in &step.calls {
            assert!(call.start >= end, "{call:?} before {end:?}");
            end = call.start + call.duration;
        }
        assert!(end <= step.start + step.duration);
    }
    assert!(steps[0].start + steps[0].duration <= steps[1].start);
}

#[test]
fn weights_count_with_their_packed_bytes() {
    let steps = trace(WeightFormat::Fp8);
    let products = steps[1].calls.iter().filter_map(|call| match call.kernel {
        Kernel::Linear(product) => Some((call, product)),
        _ => None,
    });
    for (call, product) in products {
        let WeightSpec { kind, n, k } = product.weight.spec;
        assert_eq!(product.weight.bytes, packed_len(&product.weight.spec));
        let added = if ["attention_output", "down"].contains(&product.part) { 2 * 4 * n } else { 0 };
        let work = call.kernel.work(&steps[1].plan);
        assert_eq!(work.read, (2 * 4 * k + product.weight.bytes + added) as u64, "{}", call.kernel);
        assert_eq!((work.written, work.operations()), ((2 * 4 * n) as u64, (2 * 2 * n * k) as u64), "{}", call.kernel);
        assert_eq!(work.bf16 > 0, kind == WeightKind::Fp8, "{}", call.kernel);
    }
}
