use proptest::prelude::*;

use super::*;
use crate::rtn::{self, Grid};

const KINDS: [WeightKind; 9] = [
    WeightKind::Bf16,
    WeightKind::Fp8,
    WeightKind::Fp8Static,
    WeightKind::Fp8Block,
    WeightKind::Int8,
    WeightKind::Int8Outliers { columns: 5 },
    WeightKind::Int4 { group: 32 },
    WeightKind::Int4 { group: 128 },
    WeightKind::Int8Group { group: 64 },
];

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(next).collect()
}

fn weight(kind: WeightKind, n: usize, k: usize) -> HostWeight {
    let rows = values(n * k, 3);
    match kind {
        WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, 0.25),
        WeightKind::Int8Outliers { .. } => rtn::int8_outliers(n, k, &rows, &[1, 100, 130, 131, k as u32 - 1]),
        _ => rtn::quantize(kind, Grid::Minimum, n, k, &rows),
    }
    .unwrap()
}

fn dense(weight: &HostWeight) -> Vec<f32> {
    let WeightSpec { n, k, .. } = weight.spec();
    let mut all = vec![0.0; n * k];
    for (row, out) in all.chunks_exact_mut(k).enumerate() {
        weight.dequantize_row(row, out);
    }
    all
}

/// The parts of a weight, each sound by itself.
fn parts(weight: &HostWeight, split: Split, devices: usize) -> Vec<HostWeight> {
    let share = Share::new(&weight.spec(), split, devices).unwrap();
    let part = |device| {
        let part = share.part(weight, device);
        let told = share.spec(&weight.spec(), device);
        assert_eq!((part.spec().n, part.spec().k), (told.n, told.k));
        crate::pack::check_lengths(&part).unwrap();
        part.spec().validate().unwrap();
        part
    };
    (0..devices).map(part).collect()
}

#[test]
fn outputs_of_all_devices_are_the_weight() {
    for kind in KINDS {
        let whole = weight(kind, 96, 256);
        for devices in [1, 2, 3, 4] {
            let joined = HostWeight::concat_rows(parts(&whole, Split::Outputs, devices)).unwrap();
            assert_eq!(joined, whole, "{kind:?} over {devices}");
        }
    }
}

#[test]
fn each_device_has_its_heads_of_all_three() {
    let split = Split::Heads { heads: 4, kv_heads: 2, head_dim: 8 };
    for kind in KINDS {
        let whole = weight(kind, 64, 256);
        let all = dense(&whole);
        for (device, part) in parts(&whole, split, 2).iter().enumerate() {
            let rows =
                [device * 16..device * 16 + 16, 32 + device * 8..40 + device * 8, 48 + device * 8..56 + device * 8];
            assert_eq!(dense(part), pick(&all, 256, &rows), "{kind:?}, device {device}");
        }
    }
}

#[test]
fn each_device_has_the_same_rows_of_gate_and_up() {
    for kind in KINDS {
        let whole = weight(kind, 96, 256);
        let all = dense(&whole);
        for (device, part) in parts(&whole, Split::Halves, 3).iter().enumerate() {
            let rows = [device * 16..device * 16 + 16, 48 + device * 16..64 + device * 16];
            assert_eq!(dense(part), pick(&all, 256, &rows), "{kind:?}, device {device}");
        }
    }
}

#[test]
fn parts_of_the_inputs_sum_to_the_product() {
    let (n, k) = (20, 512);
    let x = values(k, 9);
    let product = |weight: &HostWeight, x: &[f32]| -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        dense(weight).chunks_exact(x.len()).map(row).collect()
    };
    for kind in KINDS {
        let whole = weight(kind, n, k);
        let mut sum = vec![0.0; n];
        for (part, x) in parts(&whole, Split::Inputs, 4).iter().zip(x.chunks_exact(k / 4)) {
            sum.iter_mut().zip(product(part, x)).for_each(|(sum, part)| *sum += part);
        }
        for (sum, whole) in sum.iter().zip(product(&whole, &x)) {
            assert!((sum - whole).abs() < 1e-9, "{kind:?}: {sum} for {whole}");
        }
    }
}

#[test]
fn outlier_columns_go_where_their_inputs_are() {
    let whole = weight(WeightKind::Int8Outliers { columns: 5 }, 8, 256);
    let columns = parts(&whole, Split::Inputs, 2).into_iter().map(|part| match part {
        HostWeight::Int8Outliers { columns, .. } => columns,
        other => panic!("{other:?}"),
    });
    assert_eq!(columns.collect::<Vec<_>>(), [vec![1, 100], vec![2, 3, 127]]);
    let none = parts(&rtn::int8_outliers(8, 256, &values(8 * 256, 3), &[3]).unwrap(), Split::Inputs, 2);
    assert_eq!(none[1].spec().kind, WeightKind::Int8Outliers { columns: 0 });
}

#[test]
fn what_cannot_be_divided_is_refused_with_the_numbers_that_work() {
    let refused =
        |kind, n, k, split, devices| Share::new(&WeightSpec { kind, n, k }, split, devices).unwrap_err().to_string();
    let heads = Split::Heads { heads: 32, kv_heads: 8, head_dim: 16 };
    let text = refused(WeightKind::Bf16, 768, 64, heads, 3);
    assert!(text.contains("8 key/value heads") && text.ends_with("that work: 1, 2, 4, 8"), "{text}");
    let text = refused(WeightKind::Int4 { group: 128 }, 64, 18_944, Split::Inputs, 8);
    assert!(text.contains("pieces of 128") && text.ends_with("1, 2, 4"), "{text}");
    let text = refused(WeightKind::Fp8Block, 64, 384, Split::Inputs, 2);
    assert!(text.ends_with("1, 3"), "{text}");
    let text = refused(WeightKind::Int4 { group: 32 }, 64, 48, Split::Inputs, 2);
    assert!(text.ends_with("none"), "{text}");
    let text = refused(WeightKind::Bf16, 2 * 9, 64, Split::Halves, 2);
    assert!(text.contains("9 gated") && text.ends_with("1, 3, 9"), "{text}");
    let text = refused(WeightKind::Bf16, 20, 64, Split::Outputs, 3);
    assert!(text.ends_with("1, 2"), "{text}");
    let text = refused(WeightKind::Bf16, 760, 64, heads, 2);
    assert!(text.contains("760 outputs"), "{text}");
    assert!(refused(WeightKind::Bf16, 9, 64, Split::Halves, 1).contains("9 outputs"));
}

#[test]
fn a_cache_has_the_scales_of_its_heads() {
    let layout = KvLayout { layers: 2, kv_heads: 4, head_dim: 64, format: crate::KvFormat::Fp8E4m3 };
    let list = |first: f32| (0..8).map(|i| first + i as f32).collect();
    let scales = KvScales { k: list(0.0), v: list(10.0) };
    let (part, own) = cache(layout, &scales, 1, 2);
    assert_eq!(part, KvLayout { kv_heads: 2, ..layout });
    assert_eq!(own, KvScales { k: vec![2.0, 3.0, 6.0, 7.0], v: vec![12.0, 13.0, 16.0, 17.0] });
}

proptest! {
    #[test]
    fn a_vocabulary_is_covered_in_order_by_pieces_that_products_take(tokens in 1usize..5000, devices in 1usize..9) {
        match Division::vocabulary(tokens, devices) {
            Ok(division) => {
                let mut end = 0;
                for device in 0..devices {
                    let [range] = division.of(device) else { panic!("one range") };
                    prop_assert_eq!(range.start, end);
                    prop_assert!(!range.is_empty() && range.start % VOCABULARY_UNIT == 0);
                    end = range.end;
                }
                prop_assert_eq!(end, tokens);
                let widths: Vec<usize> = (0..devices).map(|device| division.width(device)).collect();
                prop_assert!(widths.iter().max().unwrap() - widths.iter().min().unwrap() <= 2 * VOCABULARY_UNIT);
            }
            Err(_) => prop_assert!(tokens.div_ceil(VOCABULARY_UNIT) < devices),
        }
    }

    #[test]
    fn columns_that_were_taken_are_put_back(head_dim in 1usize..9, kv_heads in 1usize..4, per_kv in 1usize..4, devices in 1usize..5) {
        let (kv_heads, heads) = (kv_heads * devices, kv_heads * devices * per_kv);
        let division = Division::heads(heads, kv_heads, head_dim, devices).unwrap();
        let width = (heads + 2 * kv_heads) * head_dim;
        let rows = values(3 * width, 1);
        let mut found = vec![0.0; rows.len()];
        for device in 0..devices {
            let part: Vec<f32> = rows.chunks_exact(width).flat_map(|row| division.take(device, row)).collect();
            division.put(device, &part, width, &mut found);
        }
        prop_assert_eq!(found, rows);
    }
}
