use super::*;
use crate::WeightSpec;

#[test]
fn branchless_rounding_is_encode_then_decode() {
    for bits in (0..0x43e8_0000u32).step_by(997) {
        let v = f32::from_bits(bits);
        for v in [v, -v] {
            let expected = e4m3::decode(e4m3::encode(v));
            assert_eq!(e4m3_round(v).to_bits(), expected.to_bits(), "{v}");
        }
    }
}

/// A value of BF16 activations.
fn half(x: &Activations, row: usize, at: usize) -> f32 {
    if x.words.is_empty() {
        x.floats[row * x.steps * 2 + at]
    } else {
        bf16::from_bits((x.word(row, at / 2) >> (16 * (at % 2))) as u16).to_f32()
    }
}

fn quantized(isa: Isa, kind: WeightKind, grouped: GroupedActivations, x: &[f32], rows: usize) -> Activations {
    let mut activations = Activations::default();
    let mut write = |kind, grouped, x: &[f32]| {
        let k = x.len() / rows;
        let layout = PanelLayout::new(&WeightSpec { kind, n: 16, k });
        let writer = activations.writer(isa, x, rows, k, &layout, kind, grouped, None);
        for tile in 0..writer.tiles() {
            // SAFETY: one thread, tiles in range, the instruction set is one of the available.
            unsafe { writer.tile(tile) };
        }
    };
    // What was there before, of other kinds and longer rows, leaves nothing behind.
    let before = vec![f32::NAN; x.len() + rows * 40];
    write(WeightKind::Int8, GroupedActivations::Int8, &before);
    write(WeightKind::Bf16, GroupedActivations::Int8, &before);
    write(kind, grouped, x);
    activations
}

#[test]
fn every_instruction_set_gives_the_codes_of_the_definition() {
    let (rows, k) = (11, 96);
    let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    for isa in Isa::available() {
        let bytes = quantized(isa, WeightKind::Int4 { group: 32 }, GroupedActivations::Int8, &x, rows);
        let wide = quantized(isa, WeightKind::Int8, GroupedActivations::Int8, &x, rows);
        let halves = quantized(isa, WeightKind::Int4 { group: 32 }, GroupedActivations::Bf16, &x, rows);
        for row in 0..rows {
            let values = &x[row * k..(row + 1) * k];
            let top = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (group, values) in values.chunks_exact(32).enumerate() {
                let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                let mut sum = 0.0;
                for (i, v) in values.iter().enumerate() {
                    let at = group * 32 + i;
                    let code = (v * (1.0 / scale)).round_ties_even();
                    sum += code;
                    assert_eq!(f32::from(bytes.word(row, at / 4).to_le_bytes()[at % 4] as i8), code);
                    let row_code = (v * (1.0 / (top / 127.0))).round_ties_even() + 128.0;
                    assert_eq!(f32::from(wide.word(row, at / 4).to_le_bytes()[at % 4]), row_code);
                    assert_eq!(half(&halves, row, at), bf16::from_f32(*v).to_f32());
                }
                assert_eq!(bytes.group(row, group), (scale, scale * sum), "{isa:?}");
            }
        }
    }
}

#[test]
fn a_row_of_zeros_and_a_short_rest_are_quantized() {
    for isa in Isa::available() {
        let zeros = quantized(isa, WeightKind::Int8, GroupedActivations::Int8, &[0.0; 13], 1);
        assert!((0..zeros.steps).all(|step| zeros.word(0, step) == 0x8080_8080), "{isa:?}");
        let values: Vec<f32> = (1..=13).map(|i| i as f32).collect();
        let halves = quantized(isa, WeightKind::Bf16, GroupedActivations::Int8, &values, 1);
        let found: Vec<f32> = (0..16).map(|i| half(&halves, 0, i)).collect();
        assert_eq!(found[..13], values[..], "{isa:?}");
        assert_eq!(found[13..], [0.0; 3], "{isa:?}");
    }
}
