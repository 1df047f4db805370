use modelprofile_kernels::{KvFormat, SequenceSpan};

use super::*;

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, sliding_window: None, scale: 0.25 };
const KV: KvLayout = KvLayout { layers: 2, kv_heads: 2, head_dim: 16, format: KvFormat::Bf16 };

fn span(first_row: usize, rows: usize, first_position: usize, blocks: &[u32]) -> SequenceSpan {
    SequenceSpan { first_row, rows, first_position, blocks: blocks.to_vec() }
}

/// A step of these sequences; the tokens are 0, 1, 2, 0, 1, 2 and so on.
fn plan(sequences: Vec<SequenceSpan>) -> StepPlan {
    let rows = sequences.iter().map(|sequence| sequence.rows).sum::<usize>();
    StepPlan { tokens: (0..rows as u32).map(|row| row % 3).collect(), sequences, logit_rows: vec![rows - 1] }
}

/// A decode behind 20 tokens, and a prompt of 20.
fn mixed() -> StepPlan {
    plan(vec![span(0, 1, 20, &[0, 1]), span(1, 20, 0, &[2, 3])])
}

fn work(read: u64, written: u64, bf16: u64, int8: u64) -> Work {
    Work { read, written, bf16, int8 }
}

fn product(kind: WeightKind, bytes: usize) -> Product {
    let weight = Weight { spec: WeightSpec { kind, n: 32, k: 64 }, bytes };
    Product { part: "qkv", rows: 3, weight, bias: false, store: Store::Overwrite, grouped: GroupedActivations::Int8 }
}

#[test]
fn a_product_reads_its_packed_weight_and_multiplies_as_its_kind_says() {
    // 3 rows of 64 inputs and of 32 outputs in FP32; 2 x 3 x 32 x 64 operations.
    let of = |product| Kernel::Linear(product).work(&mixed());
    assert_eq!(of(product(WeightKind::Bf16, 4224)), work(768 + 4224, 384, 12288, 0));
    assert_eq!(of(product(WeightKind::Fp8, 2176)), work(768 + 2176, 384, 12288, 0));
    assert_eq!(of(product(WeightKind::Int8, 2304)), work(768 + 2304, 384, 0, 12288));
    assert_eq!(of(product(WeightKind::Int4 { group: 32 }, 1408)), work(768 + 1408, 384, 0, 12288));
    let wide = Product { grouped: GroupedActivations::Bf16, ..product(WeightKind::Int4 { group: 32 }, 1408) };
    assert_eq!(of(wide), work(768 + 1408, 384, 12288, 0));
    // Each column is multiplied once, the outliers as BF16: 2 x 3 x 32 x 8 of them.
    assert_eq!(of(product(WeightKind::Int8Outliers { columns: 8 }, 3000)), work(768 + 3000, 384, 1536, 10752));
}

#[test]
fn a_bias_is_read_and_so_is_what_is_added_to() {
    let added = Product { bias: true, store: Store::Add, ..product(WeightKind::Int8, 2304) };
    assert_eq!(Kernel::Linear(added).work(&mixed()), work(768 + 2304 + 128 + 384, 384, 0, 12288));
}

#[test]
fn attention_reads_the_blocks_that_some_row_sees_and_multiplies_what_each_row_sees() {
    let attention = |window| Kernel::Attention { shape: AttentionShape { sliding_window: window, ..SHAPE }, kv: KV };
    // 21 rows of 4 heads of 16 in FP32 are 5376 bytes; a block of a layer is 2048. The rows see 21, and 1 + 2 + ... + 20.
    assert_eq!(attention(None).work(&mixed()), work(5376 + 4 * 2048, 5376, 4 * (21 + 210) * 64, 0));
    // A window of 8: 8, and 1 + ... + 8 + 12 x 8.
    assert_eq!(attention(Some(8)).work(&mixed()), work(5376 + 4 * 2048, 5376, 4 * (8 + 132) * 64, 0));
    // From position 33 on, which is in the third block.
    let far = plan(vec![span(0, 1, 40, &[5, 6, 7])]);
    assert_eq!(attention(Some(8)).work(&far), work(256 + 2048, 256, 4 * 8 * 64, 0));
    // Blocks that two sequences share are read once, and those that a sequence has but does not fill are not.
    let shared = plan(vec![span(0, 1, 16, &[0, 1, 9]), span(1, 1, 16, &[0, 2, 8])]);
    assert_eq!(attention(None).work(&shared), work(512 + 3 * 2048, 512, 4 * 34 * 64, 0));
}

#[test]
fn keys_and_values_are_stored_in_the_caches_format() {
    let of = |format| Kernel::RotateAndStore { shape: SHAPE, kv: KvLayout { format, ..KV } }.work(&mixed());
    // A row of 8 heads in FP32 is read, 6 of them are written back, 4 of them are stored.
    assert_eq!(of(KvFormat::Bf16), work(21 * 512, 21 * (384 + 128), 0, 0));
    assert_eq!(of(KvFormat::Fp8E4m3), work(21 * 512, 21 * (384 + 64), 0, 0));
}

#[test]
fn what_is_done_row_by_row_moves_its_rows() {
    let of = |kernel: Kernel| kernel.work(&mixed());
    // Three tokens are different, of 128 rows of the table.
    let table = Weight { spec: WeightSpec { kind: WeightKind::Bf16, n: 128, k: 64 }, bytes: 16_896 };
    assert_eq!(of(Kernel::Embed(table)), work(396, 21 * 256, 0, 0));
    assert_eq!(of(Kernel::RmsNorm { rows: 5, width: 64 }), work(6 * 256, 5 * 256, 0, 0));
    assert_eq!(of(Kernel::GatedSilu { rows: 5, width: 96 }), work(5 * 768, 5 * 384, 0, 0));
    assert_eq!(of(Kernel::GatherLogitRows { rows: 2, width: 64 }), work(512, 512, 0, 0));
    assert_eq!(of(Kernel::Download { rows: 2, width: 128 }), work(1024, 1024, 0, 0));
    assert_eq!(of(Kernel::Sample { rows: 2, width: 128 }), work(1024, 0, 0, 0));
    assert_eq!((of(Kernel::Begin), of(Kernel::End)), (Work::default(), Work::default()));
}

#[test]
fn the_bound_is_the_limit_that_takes_longest() {
    let machine = Machine { threads: 2, read_bandwidth: 1e9, int8_operations: 8e9, bf16_operations: 2e9 };
    assert_eq!(work(0, 0, 0, 0).bound(&machine), None);
    assert_eq!(work(3_000_000, 1_000_000, 0, 8_000_000).bound(&machine), Some((0.004, Bound::Memory)));
    // Operations of both kinds come one after the other.
    assert_eq!(work(1_000_000, 0, 2_000_000, 8_000_000).bound(&machine), Some((0.002, Bound::Compute)));
}

#[test]
fn products_are_named_by_part_shape_and_format() {
    let name = |kind| Kernel::Linear(product(kind, 0)).to_string();
    assert_eq!(name(WeightKind::Fp8), "qkv 32x64 FP8");
    assert_eq!(name(WeightKind::Int4 { group: 32 }), "qkv 32x64 INT4:g32");
    assert_eq!(format!("{:>12}", Kernel::RmsNorm { rows: 1, width: 1 }), "    rms_norm");
}
