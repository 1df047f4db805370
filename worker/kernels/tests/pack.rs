//! Weights that are packed one below the other come out as if they had been joined before.
#![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

use modelprofile_kernels::{HostWeight, Stack, WeightKind, pack, packed_len, rtn};
use rstest::rstest;

/// `n` rows of `k` values, of both signs and of sizes from row to row.
fn rows(n: usize, k: usize) -> Vec<f32> {
    (0..n * k).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 1.5f32.powi((i / k) as i32 % 9 - 4)).collect()
}

fn weight(kind: WeightKind, n: usize, k: usize) -> HostWeight {
    let rows = rows(n, k);
    match kind {
        WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, 0.5).unwrap(),
        WeightKind::Int8Outliers { .. } => rtn::int8_outliers(n, k, &rows, &[1, 5, 77]).unwrap(),
        _ => rtn::quantize(kind, rtn::Grid::Minimum, n, k, &rows).unwrap(),
    }
}

#[rstest]
#[case(WeightKind::Bf16, 128)]
#[case(WeightKind::Bf16, 129)]
#[case(WeightKind::Fp8, 256)]
#[case(WeightKind::Fp8, 131)]
#[case(WeightKind::Fp8Static, 130)]
#[case(WeightKind::Fp8Block, 256)]
#[case(WeightKind::Int8, 256)]
#[case(WeightKind::Int8, 125)]
#[case(WeightKind::Int8Outliers { columns: 3 }, 99)]
#[case(WeightKind::Int4 { group: 32 }, 96)]
#[case(WeightKind::Int8Group { group: 64 }, 192)]
fn a_stack_packs_as_its_parts_joined(#[case] kind: WeightKind, #[case] k: usize) {
    // Parts that end within a panel, one that begins and ends within the same, and whole ones.
    let parts: Vec<HostWeight> = [5, 3, 40, 16, 32, 1].map(|n| weight(kind, n, k)).into();
    let whole = pack(&HostWeight::concat_rows(parts.clone()).unwrap()).unwrap();
    let stack = Stack::new(parts.iter().collect()).unwrap();
    assert_eq!(stack.spec(), whole.spec);
    assert_eq!(stack.panels() * stack.panel_bytes() + stack.tail_bytes(), packed_len(&whole.spec));
    let mut found = Vec::new();
    for (first, count) in [(0, 2), (2, 1), (3, stack.panels() - 3)] {
        let mut panels = vec![0; count * stack.panel_bytes()];
        stack.pack_panels(first, &mut panels);
        found.extend(panels);
    }
    let mut tail = vec![0; stack.tail_bytes()];
    stack.pack_tail(&mut tail);
    found.extend(tail);
    assert!(found == *whole.bytes, "{kind:?} of {k}");
    assert_eq!(whole.unpack().unwrap(), HostWeight::concat_rows(parts).unwrap());
}

#[test]
fn what_does_not_join_is_no_stack() {
    let [four, eight] = [WeightKind::Int4 { group: 32 }, WeightKind::Int8Group { group: 32 }].map(|k| weight(k, 4, 64));
    assert!(Stack::new(vec![&four, &eight]).is_err());
    let (a, b) = (rtn::fp8_static(1, 2, &[1.0, 2.0], 0.5).unwrap(), rtn::fp8_static(1, 2, &[1.0, 2.0], 0.25).unwrap());
    assert!(Stack::new(vec![&a, &b]).unwrap_err().to_string().contains("input scales"));
    assert!(Stack::new(Vec::new()).is_err());
}
