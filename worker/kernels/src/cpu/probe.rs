//! The machine's own limits, measured: what a throughput is compared with.

use std::{
    hint::black_box,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{Cpu, Isa, threads::Pool};

/// Limits of the machine with the backend's threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Threads used.
    pub threads: usize,
    /// Bytes per second read from memory.
    pub read_bandwidth: f64,
    /// INT8 operations per second (a multiply-add counts two): of VNNI; with AVX2 of byte products whose sums stay at 16 bits,
    /// which is the least that a product of small codes takes; else of FP32 in portable code.
    pub int8_operations: f64,
    /// BF16 operations per second: of BF16's own instructions; with AVX2 of FP32 multiply-adds, which widened values take;
    /// else of FP32 in portable code.
    pub bf16_operations: f64,
}

impl Machine {
    /// Measures for about two seconds.
    pub fn measure(cpu: &Cpu) -> Self {
        let pool = &mut *cpu.pool();
        Self {
            threads: pool.threads(),
            read_bandwidth: read_bandwidth(pool),
            int8_operations: peak(pool, cpu.isa(), int8_round),
            bf16_operations: peak(pool, cpu.isa(), bf16_round),
        }
    }
}

/// Best of five passes over a buffer that no cache holds.
fn read_bandwidth(pool: &mut Pool) -> f64 {
    let words = vec![1u64; (256 << 20) / 8];
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        pool.for_chunks(words.len(), 1 << 17, |_, range| {
            let mut lanes = [0u64; 16];
            for chunk in words[range].chunks_exact(16) {
                for (lane, word) in lanes.iter_mut().zip(chunk) {
                    *lane = lane.wrapping_add(*word);
                }
            }
            black_box(lanes);
        });
        best = best.min(start.elapsed());
    }
    (words.len() * 8) as f64 / best.as_secs_f64()
}

/// Operations per second of a round of register work on all threads; best of five.
fn peak(pool: &mut Pool, isa: Isa, round: fn(Isa) -> f64) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..5 {
        let total = Mutex::new(0.0);
        let start = Instant::now();
        pool.run(|_| {
            let mut operations = 0.0;
            while start.elapsed() < Duration::from_millis(60) {
                operations += round(isa);
            }
            if let Ok(mut total) = total.lock() {
                *total += operations;
            }
        });
        let operations = total.into_inner().unwrap_or(0.0);
        best = best.max(operations / start.elapsed().as_secs_f64());
    }
    best
}

const ROUNDS: usize = 2000;

/// Sums in registers, each a chain of its own: enough of them to hide the latency of what is measured.
const CHAINS: usize = 12;

fn int8_round(isa: Isa) -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            // SAFETY: the instruction set is available.
            unsafe { vnni() };
            (ROUNDS * CHAINS * 128) as f64
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // SAFETY: the instruction set is available.
            unsafe { byte_products() };
            (ROUNDS * CHAINS * 64) as f64
        }
        _ => portable(),
    }
}

fn bf16_round(isa: Isa) -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            // SAFETY: the instruction set is available.
            unsafe { bf16() };
            (ROUNDS * CHAINS * 64) as f64
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // SAFETY: the instruction set is available.
            unsafe { multiply_adds() };
            (ROUNDS * CHAINS * 16) as f64
        }
        _ => portable(),
    }
}

fn portable() -> f64 {
    let mut lanes = black_box([1.0f32; 64]);
    let factor = black_box(0.999f32);
    for _ in 0..ROUNDS {
        for lane in &mut lanes {
            *lane = *lane * factor + factor;
        }
    }
    black_box(lanes);
    (ROUNDS * 64 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni() {
    use std::arch::x86_64::*;
    let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(2)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16() {
    use std::arch::x86_64::*;
    let one = black_box(_mm512_set1_epi16(0x3f80));
    // SAFETY: 64 bytes of plain data.
    let one = unsafe { std::mem::transmute::<__m512i, __m512bh>(one) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, one, one);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn byte_products() {
    use std::arch::x86_64::*;
    let factor = black_box(_mm256_set1_epi8(1));
    let mut sums = black_box([_mm256_set1_epi8(1); CHAINS]);
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            // Of the sum itself: a product that is always the same would be computed once.
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, factor));
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_adds() {
    use std::arch::x86_64::*;
    let factor = black_box(_mm256_set1_ps(0.999));
    let mut sums = [_mm256_setzero_ps(); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
}
