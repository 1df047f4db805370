//! Scratch that is set aside before steps come: what they take at most, and nothing more is asked for afterwards.

use modelprofile_kernels::{AttentionShape, Backend, Device, Draw, KvFormat, Presence, WeightKind, Workload};
use rstest::rstest;

use crate::{
    model::{Model, Sizes, TINY, Weights, plan},
    sim::{alone, options},
};
use modelprofile_kernels::cuda::{Cuda, CudaOptions};

const MIB: usize = 1 << 20;

fn workload(sizes: &Sizes, rows: usize, sequences: usize) -> Workload {
    let Sizes { hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = *sizes;
    Workload {
        rows,
        logit_rows: rows,
        products: vec![
            ((heads + 2 * kv_heads) * head_dim, hidden),
            (hidden, heads * head_dim),
            (2 * intermediate, hidden),
            (hidden, intermediate),
        ],
        output: (vocab, hidden),
        attention: AttentionShape { heads, kv_heads, head_dim, sliding_window: None, scale: 1.0 },
        sequences,
        tokens: 256,
        // Two for each row, and those of a prompt.
        blocks: (2 * rows).max(100),
    }
}

/// Inputs wide enough that products of few rows split them.
const DEEP: Sizes = Sizes { hidden: 2048, intermediate: 2048, layers: 1, ..TINY };

#[rstest]
#[case(WeightKind::Bf16, TINY, 70, false)]
#[case(WeightKind::Int8Outliers { columns: 13 }, TINY, 70, false)]
#[case(WeightKind::Fp8Block, TINY, 40, false)]
#[case(WeightKind::Int4 { group: 64 }, TINY, 256, false)]
#[case(WeightKind::Int4 { group: 128 }, DEEP, 3, false)]
#[case(WeightKind::Int8Group { group: 128 }, DEEP, 40, true)]
#[case(WeightKind::Fp8, DEEP, 20, false)]
fn steps_take_what_was_set_aside_and_no_more(
    #[case] kind: WeightKind,
    #[case] sizes: Sizes,
    #[case] rows: usize,
    #[case] deterministic: bool,
) {
    let _alone = alone();
    let mut gpu = Cuda::new(CudaOptions { budget: Some(256 * MIB), deterministic, ..options() }).unwrap();
    let before = gpu.memory().used();
    // The longest lists of tokens that are on the device at once, each of one row and without a token twice.
    let seen: Vec<_> = (0..(1 << 16) / rows as u32).map(|token| (token, 1)).collect();
    let vocab = sizes.vocab.max(seen.len());
    let workload = Workload { output: (vocab, sizes.hidden), ..workload(&sizes, rows, rows) };
    let reserved = gpu.reserve(&workload).unwrap();
    let scratch = gpu.memory().used() - before;
    assert!(scratch <= reserved, "{scratch} of {reserved} bytes");
    let weights = Weights::new(&gpu, &sizes, kind, WeightKind::Bf16);
    let mut model = Model::new(&gpu, sizes, KvFormat::Bf16, workload.blocks, rows);
    weights.each(|weight| gpu.prefetch(weight));
    weights.each(|weight| assert_ne!(gpu.presence(weight), Presence::Absent));
    let mut logits = gpu.buffer(rows, vocab).unwrap();
    let full = gpu.memory().used();
    // A prompt, then as many sequences as there are rows, then the prompt again beside a decode.
    // Each has blocks of its own: two that write to one are a race.
    let decodes: Vec<_> = (0..rows as u32).map(|i| (17, 1, vec![2 * i, 2 * i + 1])).collect();
    for spans in [vec![(0, rows, (0..17).collect())], decodes, vec![(0, rows - 1, (0..17).collect()), (5, 1, vec![60])]]
    {
        model.step(&mut gpu, &weights, None, &plan(&spans, sizes.vocab)).unwrap();
        assert_eq!(gpu.memory().used(), full, "{kind:?}: a step took more");
    }
    gpu.sample(&mut logits, 0, &vec![Draw { presence: 1.0, seen, ..Draw::default() }; rows]).unwrap();
    assert_eq!(gpu.memory().used(), full, "{kind:?}: drawing took more");
    weights.each(|weight| assert_eq!(gpu.presence(weight), Presence::Here));
    weights.each(|weight| gpu.release(weight));
    weights.each(|weight| assert_eq!(gpu.presence(weight), Presence::Absent));
    assert!(gpu.memory().used() < full, "between steps memory is given back at once");
}
