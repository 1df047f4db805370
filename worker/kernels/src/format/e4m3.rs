//! E4M3 ("fn"): bias 7, largest 448, smallest normal 2^-6, smallest subnormal 2^-9, one NaN code per sign, no infinity.

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// The value of a code. The NaN codes 0x7f and 0xff give NaN.
pub const fn decode(code: u8) -> f32 {
    let magnitude = code & 0x7f;
    if magnitude == 0x7f {
        return f32::NAN;
    }
    // Exponent and mantissa moved to FP32's place, then the bias corrected by an exact power of two; subnormals included.
    let value = f32::from_bits((magnitude as u32) << 20) * f32::from_bits((120 + 127) << 23);
    if code & 0x80 == 0 { value } else { -value }
}

/// The nearest code, ties to even, saturating at [`MAX`]. NaN saturates too: a NaN code is never produced.
///
/// Both cases are computed and one is chosen, without a branch: loops over it become vectors.
#[inline]
pub fn encode(value: f32) -> u8 {
    let bits = value.to_bits() & 0x7fff_ffff;
    // Subnormals are multiples of 2^-9; adding 2^14 leaves exactly those bits, rounded to even.
    let subnormal = (f32::from_bits(bits) + 16384.0).to_bits().wrapping_sub(16384.0f32.to_bits());
    let normal = ((bits + 0x0007_ffff + ((bits >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    let code = if bits < (127 - 6) << 23 { subnormal } else { normal };
    let sign = (value.to_bits() >> 24) & 0x80;
    // All that is compared is far below 2^31; signed numbers are what every instruction set compares.
    (sign | (code as i32).min(0x7e) as u32) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips() {
        for code in 0..=255u8 {
            if code & 0x7f != 0x7f {
                assert_eq!(encode(decode(code)), code, "{code:#x}");
            }
        }
        assert_eq!(decode(0x7e).to_bits(), MAX.to_bits());
        assert_eq!(decode(0x01).to_bits(), 2f32.powi(-9).to_bits());
        assert_eq!(decode(0x08).to_bits(), 2f32.powi(-6).to_bits());
    }

    #[test]
    fn values_between_codes_round_to_the_nearest_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(encode(middle), if code & 1 == 0 { code } else { code + 1 }, "{code:#x}");
            assert_eq!(encode(middle * (1.0 - 1e-6)), code);
            assert_eq!(encode(middle * (1.0 + 1e-6)), code + 1);
            assert_eq!(encode(-middle * (1.0 + 1e-6)), 0x80 | (code + 1));
        }
    }

    #[test]
    fn large_values_and_nan_saturate() {
        for value in [448.0, 449.0, 464.0, 480.0, 512.0, 1e30, f32::MAX, f32::INFINITY, f32::NAN] {
            assert_eq!(encode(value), 0x7e, "{value}");
            assert_eq!(encode(-value), 0xfe, "{value}");
        }
    }

    #[test]
    fn small_values_round_to_zero_with_their_sign() {
        for value in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 2f32.powi(-10)] {
            assert_eq!((encode(value), encode(-value)), (0, 0x80), "{value}");
        }
    }
}
