//! E5M2: the upper byte of an FP16 value; bias 15, largest finite 57344.

use half::f16;

/// Largest finite value.
pub const MAX: f32 = 57344.0;

/// The value of a code.
pub const fn decode(code: u8) -> f32 {
    f16::from_bits((code as u16) << 8).to_f32_const()
}

/// The nearest code, ties to even, saturating at [`MAX`]; NaN saturates too.
pub fn encode(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    if magnitude >= MAX || magnitude.is_nan() {
        return sign | 0x7b;
    }
    // One rounding only: through FP16 it would be two.
    let bits = magnitude.to_bits();
    if magnitude < f32::from_bits((127 - 14) << 23) {
        // Subnormals are multiples of 2^-16: adding 2^7 leaves exactly those bits.
        return sign | ((magnitude + 128.0).to_bits() - 128.0f32.to_bits()) as u8;
    }
    let rounded = bits + 0x000f_ffff + ((bits >> 21) & 1);
    let code = (rounded >> 21) - (112 << 2);
    sign | code.min(0x7b) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_code_round_trips() {
        for code in 0..=255u8 {
            if code & 0x7c != 0x7c {
                assert_eq!(encode(decode(code)), code, "{code:#x}");
            }
        }
    }

    #[test]
    fn large_values_saturate() {
        assert_eq!(encode(1e9), 0x7b);
        assert_eq!(encode(-1e9), 0xfb);
        assert_eq!(decode(0x7b).to_bits(), MAX.to_bits());
    }
}
