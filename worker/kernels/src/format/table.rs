//! 8-bit formats as BF16, which holds every value of them exactly, by look-up.

use super::{e4m3, e5m2};

/// BF16 of the codes 0..128 (those without the sign bit): low and high bytes, two byte permutations of 128 entries each.
///
/// Aligned for whole-register loads: 128 bytes are two registers.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bf16Table {
    /// Low bytes.
    pub low: [u8; 128],
    /// High bytes.
    pub high: [u8; 128],
}

/// Fills a table from a format's `decode`: a macro, since constants cannot call a function by pointer.
macro_rules! table {
    ($decode:path) => {{
        let mut table = Bf16Table { low: [0; 128], high: [0; 128] };
        let mut code = 0;
        while code < 128 {
            table.set(code, $decode(code as u8));
            code += 1;
        }
        table
    }};
}

/// Of [`e4m3`].
pub static E4M3: Bf16Table = table!(e4m3::decode);

/// Of [`e5m2`].
pub static E5M2: Bf16Table = table!(e5m2::decode);

impl Bf16Table {
    const fn set(&mut self, code: usize, value: f32) {
        let bits = value.to_bits();
        self.low[code] = (bits >> 16) as u8;
        self.high[code] = (bits >> 24) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_hold_the_value_of_every_finite_code() {
        type Decode = fn(u8) -> f32;
        for (table, decode, finite) in [(&E4M3, e4m3::decode as Decode, 0x7f), (&E5M2, e5m2::decode as Decode, 0x7c)] {
            for code in 0..finite {
                let bits = u32::from(table.high[code]) << 24 | u32::from(table.low[code]) << 16;
                assert_eq!(bits, decode(code as u8).to_bits(), "{code:#x}");
            }
        }
    }
}
