//! Register tiles: `rows x columns` sums in registers over the steps of two packed operands.

use std::ops::{Add, Mul, Sub};

use crate::cpu::Isa;

/// Elements of the largest tile.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// Rows and columns of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    /// Rows, packed operand A.
    pub(crate) rows: usize,
    /// Columns, packed operand B.
    pub(crate) columns: usize,
}

/// FP32 and FP64.
pub(crate) trait Real:
    Copy + Default + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + 'static
{
    /// The tile of an instruction set.
    fn shape(isa: Isa) -> TileShape;

    /// `out[r * columns + c] = sum over steps of a[step * rows + r] * b[step * columns + c]`.
    ///
    /// # Safety
    /// `isa` must be available.
    unsafe fn tile(isa: Isa, steps: usize, a: &[Self], b: &[Self], out: &mut [Self; MAX_TILE]);
}

/// 24 sums of the 32 registers of AVX-512, 12 of the 16 of AVX2: two vectors of B and one broadcast fit beside them, and
/// each load of B serves all rows.
const AVX512_ROWS: usize = 12;
const AVX2_ROWS: usize = 6;
const PORTABLE: TileShape = TileShape { rows: 4, columns: 8 };

macro_rules! real {
    ($type:ty, $avx512:ident, $avx2:ident) => {
        impl Real for $type {
            fn shape(isa: Isa) -> TileShape {
                match isa {
                    Isa::Avx512 => TileShape { rows: AVX512_ROWS, columns: 2 * 64 / size_of::<$type>() },
                    Isa::Avx2 => TileShape { rows: AVX2_ROWS, columns: 2 * 32 / size_of::<$type>() },
                    Isa::Scalar => PORTABLE,
                }
            }

            unsafe fn tile(isa: Isa, steps: usize, a: &[Self], b: &[Self], out: &mut [Self; MAX_TILE]) {
                let TileShape { rows, columns } = Self::shape(isa);
                assert!(a.len() >= steps * rows && b.len() >= steps * columns, "the operands hold the steps");
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the operands hold the steps, `out` the largest tile; the machine has the instructions.
                    Isa::Avx512 => unsafe { x86::$avx512(steps, a.as_ptr(), b.as_ptr(), out.as_mut_ptr()) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Isa::Avx2 => unsafe { x86::$avx2(steps, a.as_ptr(), b.as_ptr(), out.as_mut_ptr()) },
                    _ => portable(steps, a, b, out),
                }
            }
        }
    };
}

real!(f32, avx512_f32, avx2_f32);
real!(f64, avx512_f64, avx2_f64);

fn portable<T: Real>(steps: usize, a: &[T], b: &[T], out: &mut [T; MAX_TILE]) {
    const COLUMNS: usize = PORTABLE.columns;
    let mut sums = [[T::default(); COLUMNS]; PORTABLE.rows];
    for (a, b) in a.as_chunks::<{ PORTABLE.rows }>().0.iter().zip(b.as_chunks::<COLUMNS>().0).take(steps) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = *sum + *a * *b;
            }
        }
    }
    for (out, sums) in out.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(sums) {
        *out = sums;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{AVX2_ROWS, AVX512_ROWS};

    macro_rules! tile {
        ($name:ident, $features:literal, $type:ty, $rows:ident, $lanes:literal:
         $zero:ident, $load:ident, $store:ident, $splat:ident, $multiply_add:ident) => {
            /// # Safety
            /// The operands hold the steps, `out` holds the tile, the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(steps: usize, mut a: *const $type, mut b: *const $type, out: *mut $type) {
                let mut sums = [[$zero(); 2]; $rows];
                // SAFETY: the caller's promises.
                unsafe {
                    for _ in 0..steps {
                        let columns = [$load(b), $load(b.add($lanes))];
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let row = $splat(*a.add(r));
                            for (sum, columns) in sums.iter_mut().zip(columns) {
                                *sum = $multiply_add(row, columns, *sum);
                            }
                        }
                        a = a.add($rows);
                        b = b.add(2 * $lanes);
                    }
                    for (i, sum) in sums.as_flattened().iter().enumerate() {
                        $store(out.add(i * $lanes), *sum);
                    }
                }
            }
        };
    }

    tile!(avx512_f32, "avx512f", f32, AVX512_ROWS, 16:
          _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps);
    tile!(avx512_f64, "avx512f", f64, AVX512_ROWS, 8:
          _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_fmadd_pd);
    tile!(avx2_f32, "avx2,fma", f32, AVX2_ROWS, 8:
          _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);
    tile!(avx2_f64, "avx2,fma", f64, AVX2_ROWS, 4:
          _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_fmadd_pd);
}
