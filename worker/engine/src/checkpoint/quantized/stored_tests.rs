use half::{bf16, f16};
use modelprofile_kernels::{WeightKind, rtn};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::checkpoint::quantized::Zeros;

/// Two rows of two groups of 32 with the given scales and zero points.
fn affine(scales: [f32; 4], zeros: Zeros) -> Affine {
    let codes = (0..128).map(|i| (i * 7 % 16) as u8).collect();
    Affine { n: 2, k: 64, bits: 4, group: 32, codes, scales: scales.to_vec(), zeros, groups_of: None }
}

fn values(weight: &HostWeight) -> Vec<f32> {
    let mut out = vec![0.0; 128];
    for (row, out) in out.chunks_exact_mut(64).enumerate() {
        weight.dequantize_row(row, out);
    }
    out
}

#[test]
fn half_precision_scales_on_a_symmetric_grid_are_held_bit_for_bit() {
    let half = |bits: u16| f16::from_bits(bits).to_f32();
    // The last one is subnormal in FP16: its row gets a row scale.
    let stored = affine([half(0x2a3b), half(0x1fff), half(0xa001), half(0x0003)], Zeros::Middle);
    let (host, rounding) = stored.to_host().unwrap();
    assert_eq!(rounding, Rounding::default());
    assert_eq!(values(&host), stored.dequantize());
    assert_eq!(Affine::from_host(&host, ZeroPoint::Symmetric).unwrap(), stored);
}

#[test]
fn bf16_scales_out_of_fp16s_range_are_held_by_the_row_scale() {
    let scale = |v: f32| bf16::from_f32(v).to_f32();
    let stored = affine([scale(1e-9), scale(2.5e-9), scale(3e8), scale(1e9)], Zeros::Middle);
    let (host, rounding) = stored.to_host().unwrap();
    assert_eq!(rounding, Rounding::default());
    assert_eq!(values(&host), stored.dequantize());
}

#[test]
fn what_an_fp32_scale_loses_is_reported() {
    let (_, rounding) = affine([0.1, 0.25, 0.5, 1.0], Zeros::Middle).to_host().unwrap();
    // 0.1 in FP16 is 0.0999755859375.
    assert!((rounding.scales - 2.4414e-4).abs() < 1e-7, "{rounding:?}");
}

#[test]
fn integer_zero_points_come_back_though_their_minima_are_rounded() {
    let stored = affine([1.001, 0.75, 0.3, 0.1].map(|v| f16::from_f32(v).to_f32()), Zeros::Integer(vec![7, 0, 15, 11]));
    let (host, rounding) = stored.to_host().unwrap();
    assert_eq!(rounding.scales, 0.0);
    assert!(rounding.minima > 0.0 && rounding.minima <= 2f32.powi(-11), "{rounding:?}");
    assert_eq!(Affine::from_host(&host, ZeroPoint::Integer).unwrap(), stored);
    assert!(Affine::from_host(&host, ZeroPoint::Symmetric).unwrap_err().contains("row 0, group 0"));
}

#[test]
fn a_group_wider_than_ours_is_held_as_several() {
    let stored = Affine { group: 64, scales: vec![0.5, 0.25], ..affine([0.0; 4], Zeros::Integer(vec![3, 9])) };
    let (host, _) = stored.to_host().unwrap();
    assert_eq!(host.spec().kind, WeightKind::Int4 { group: 64 });
    let wide = Affine { n: 1, k: 128, scales: vec![0.5], group: 128, ..stored };
    let wider = Affine { k: 256, group: 256, codes: [wide.codes.clone(), wide.codes.clone()].concat(), ..wide };
    let wider = Affine { zeros: Zeros::Integer(vec![3]), ..wider };
    let (host, _) = wider.to_host().unwrap();
    assert_eq!(host.spec().kind, WeightKind::Int4 { group: 128 });
    let mut row = vec![0.0; 256];
    host.dequantize_row(0, &mut row);
    assert_eq!(row, wider.dequantize());
}

#[test]
fn groups_in_activation_order_are_dequantized_but_not_taken_over() {
    let of = (0..64u32).map(|i| 1 - i / 32).collect();
    let moved = Affine { groups_of: Some(of), ..affine([1.0, 2.0, 4.0, 8.0], Zeros::Middle) };
    assert!(moved.to_host().unwrap_err().to_string().contains("static_groups"));
    // The first input has code 0 and now the second group's scale.
    assert_eq!(moved.dequantize()[0], -16.0);
}

#[test]
fn fp8_scales_of_a_block_and_of_a_tensor_are_each_applied_where_they_belong() {
    let codes = vec![0x38u8; 12]; // 1.0
    let weight = |scales| StoredWeight::Fp8 { n: 3, k: 4, codes: codes.clone(), scales, input_scale: None };
    let blocks = weight(Fp8Scales::Blocks { size: [2, 3], values: vec![1.0, 2.0, 3.0, 4.0] });
    assert_eq!(blocks.dequantize(), [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0]);
    assert!(blocks.to_host().unwrap_err().to_string().contains("block"));
    let (host, _) = weight(Fp8Scales::Tensor(0.5)).to_host().unwrap();
    assert_eq!(host, HostWeight::Fp8 { n: 3, k: 4, codes, scales: vec![0.5; 3] });
}

/// FP8 of two rows of four: 1 in the first row, zeros of both signs in the second.
fn fp8(scales: Fp8Scales, input_scale: Option<f32>) -> StoredWeight {
    StoredWeight::Fp8 { n: 2, k: 4, codes: [[0x38; 4], [0, 0x80, 0, 0]].concat(), scales, input_scale }
}

/// INT8 of two rows of two, the second zeros.
fn int8(scales: [f32; 2]) -> StoredWeight {
    StoredWeight::Int8 { n: 2, k: 2, codes: vec![0, 3, 0, 0], scales: scales.to_vec() }
}

/// [`int8`] with the second input in 16 bits.
fn outliers(codes: [i8; 4]) -> StoredWeight {
    let outliers = vec![bf16::ONE; 2];
    StoredWeight::Int8Outliers { n: 2, k: 2, codes: codes.to_vec(), scales: vec![1.0; 2], columns: vec![1], outliers }
}

#[rstest]
#[case::negative_row(fp8(Fp8Scales::Rows(vec![-0.5, 1.0]), None), "row 0, column 0 is -0.5")]
#[case::zero_row(fp8(Fp8Scales::Rows(vec![0.0, 1.0]), None), "row 0, column 0 is 0")]
#[case::negative_tensor(fp8(Fp8Scales::Tensor(-2.0), None), "row 0, column 0 is -2")]
#[case::block(fp8(Fp8Scales::Blocks { size: [2, 2], values: vec![1.0, -1.0] }, None), "row 0, column 2 is -1")]
#[case::inputs(fp8(Fp8Scales::Tensor(1.0), Some(0.0)), "scale of the inputs is 0")]
#[case::int8(int8([-1.0, 1.0]), "row 0, column 1 is -1")]
#[case::int8_beside_an_outlier(outliers([1, 0, 2, 5]), "row 1 has INT8 codes in the outlier columns")]
fn scales_of_no_use_are_refused_by_place(#[case] weight: StoredWeight, #[case] expected: &str) {
    let message = weight.check().unwrap_err();
    assert!(message.contains(expected), "{message}");
}

#[rstest]
#[case::zeros_of_fp8(fp8(Fp8Scales::Rows(vec![0.5, 0.0]), Some(0.1)))]
#[case::zeros_of_int8(int8([1.0, 0.0]))]
#[case::outliers(outliers([1, 0, 2, 0]))]
#[case::negative_groups(StoredWeight::Grouped(affine([1.0, -2.0, 0.0, 4.0], Zeros::Middle)))]
fn any_scale_stands_over_zeros_and_either_sign_over_groups(#[case] weight: StoredWeight) {
    assert_eq!(weight.check(), Ok(()));
}

#[test]
fn fp8_blocks_and_static_scales_are_held_and_come_back() {
    let codes: Vec<u8> = (0..130 * 256).map(|i| (i % 0x7f) as u8).collect();
    let weight = |scales, input_scale| StoredWeight::Fp8 { n: 130, k: 256, codes: codes.clone(), scales, input_scale };
    let blocks = Fp8Scales::Blocks { size: [128, 128], values: vec![1.0, 2.0, 3.0, 4.0] };
    for stored in [weight(blocks, None), weight(Fp8Scales::Tensor(0.5), Some(0.25))] {
        let (host, _) = stored.to_host().unwrap();
        let mut row = vec![0.0; 256];
        for (at, expected) in stored.dequantize().chunks_exact(256).enumerate() {
            host.dequantize_row(at, &mut row);
            assert_eq!(row, expected, "row {at}");
        }
        assert_eq!(StoredWeight::from_host(&host, ZeroPoint::Symmetric).unwrap(), stored);
    }
}

proptest! {
    #[test]
    fn what_our_quantizer_made_survives_both_ways(
        rows in proptest::collection::vec(-1.0f32..1.0, 128), exponent in -20i32..10
    ) {
        let rows: Vec<f32> = rows.iter().map(|v| v * 2f32.powi(exponent)).collect();
        for (grid, zero) in [
            (rtn::Grid::Symmetric, ZeroPoint::Symmetric),
            (rtn::Grid::Integer, ZeroPoint::Integer),
            (rtn::Grid::Minimum, ZeroPoint::Minimum),
        ] {
            let host = rtn::quantize(WeightKind::Int4 { group: 32 }, grid, 2, 64, &rows).unwrap();
            let stored = Affine::from_host(&host, zero).unwrap();
            let (again, rounding) = stored.to_host().unwrap();
            prop_assert_eq!(rounding.scales, 0.0);
            prop_assert_eq!(values(&again), values(&host), "{:?}", grid);
        }
    }
}
