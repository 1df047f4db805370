//! Random weights, packed once for each kind and shape: what a kernel takes does not depend on what it multiplies, but for a
//! few percent of power.

use std::collections::HashMap;

use half::{bf16, f16};
use modelprofile_kernels::{FP8_BLOCK, HostWeight, PackedWeight, Result, WeightKind, WeightSpec, pack};

/// Packed weights by kind and shape.
#[derive(Default)]
pub struct Packed {
    known: HashMap<(String, usize, usize), PackedWeight>,
}

impl Packed {
    /// The weight of a kind and shape.
    pub fn get(&mut self, spec: &WeightSpec) -> Result<&PackedWeight> {
        let key = (format!("{:?}", spec.kind), spec.n, spec.k);
        if !self.known.contains_key(&key) {
            self.known.insert(key.clone(), pack(&random(spec))?);
        }
        Ok(&self.known[&key])
    }
}

/// Bytes that repeat themselves after a long time.
fn bytes(count: usize) -> impl Iterator<Item = u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

/// Values whose sums over `k` stay near one.
fn random(spec: &WeightSpec) -> HostWeight {
    let WeightSpec { kind, n, k } = *spec;
    let small = 1.0 / (k as f32).sqrt();
    match kind {
        WeightKind::Bf16 | WeightKind::Int8Outliers { .. } => {
            let value = |byte: u8| bf16::from_f32((f32::from(byte) / 128.0 - 1.0) * small);
            HostWeight::Bf16 { n, k, values: bytes(n * k).map(value).collect() }
        }
        // Codes of up to 1.875 of either sign: no NaN among them.
        WeightKind::Fp8 | WeightKind::Fp8Static => {
            HostWeight::Fp8 { n, k, codes: bytes(n * k).map(|byte| byte & 0xbf).collect(), scales: vec![small; n] }
        }
        WeightKind::Fp8Block => HostWeight::Fp8Block {
            n,
            k,
            codes: bytes(n * k).map(|byte| byte & 0xbf).collect(),
            scales: vec![small; n * (k / FP8_BLOCK)],
        },
        WeightKind::Int8 => HostWeight::Int8 {
            n,
            k,
            codes: bytes(n * k).map(|byte| (byte as i8).max(-127)).collect(),
            scales: vec![small / 64.0; n],
        },
        WeightKind::Int4 { group } => grouped([n, k], 4, usize::from(group), small),
        WeightKind::Int8Group { group } => grouped([n, k], 8, usize::from(group), small),
    }
}

fn grouped([n, k]: [usize; 2], bits: u8, group: usize, small: f32) -> HostWeight {
    let middle = f32::from(1u8 << (bits - 1));
    let scale = small / middle;
    let groups = n * (k / group);
    HostWeight::Grouped {
        n,
        k,
        bits,
        group,
        codes: bytes(n * k).map(|byte| byte >> (8 - bits)).collect(),
        scales: vec![f16::from_f32(scale); groups],
        mins: vec![f16::from_f32(-middle * scale); groups],
        row_scales: vec![1.0; n],
    }
}
