//! AutoAWQ, version GEMM (Lin et al. 2023; tensors as AutoAWQ's `WQLinear_GEMM` has them).
//!
//! | tensor | type, shape | holds |
//! |---|---|---|
//! | `qweight` | I32 `[k, n/8]` | eight outputs a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits |
//! | `qzeros` | I32 `[k/group, n/8]` | zero points, packed the same way |
//! | `scales` | F16 `[k/group, n]` | `w = s (q - z)` |

use safetensors::Dtype;
use serde_json::Value;

use super::{
    Affine, Layout, Quantization, Scheme, StoredWeight, Zeros,
    bits::{Order, transpose, unpack_cols},
    group_size, groups, names,
    parts::{Expected, FLOATS, Module},
    unsupported,
};
use crate::{Result, ZeroPoint};

/// Reads `quantization_config`, in the spelling of transformers or of AutoAWQ itself.
pub(super) fn parse(json: &Value) -> Result<Quantization> {
    let field = |name: &str, old: &str| json.get(name).or_else(|| json.get(old));
    let bits = field("bits", "w_bit").and_then(Value::as_u64);
    if bits != Some(4) {
        return Err(unsupported(&format!("AWQ of {bits:?} bits; 4 are read")));
    }
    let version = json.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(unsupported(&format!("AWQ version {version}; gemm is read, convert it with AutoAWQ")));
    }
    if json.get("zero_point").and_then(Value::as_bool) == Some(false) {
        return Err(unsupported("AWQ without zero points"));
    }
    let group = group_size(field("group_size", "q_group_size"))?;
    let scheme = Scheme::Grouped { bits: 4, group, zero: ZeroPoint::Integer };
    Ok(Quantization::new(Layout::AutoAwq, scheme, names(json.get("modules_to_not_convert"))))
}

pub(super) fn parts(scheme: &Scheme, n: usize, k: usize) -> Vec<Expected> {
    let Scheme::Grouped { group, .. } = scheme else { return Vec::new() };
    let groups = groups(*group, k);
    vec![
        Expected::one("qweight", &[Dtype::I32], &[k, n.div_ceil(8)]),
        Expected::one("qzeros", &[Dtype::I32], &[groups, n.div_ceil(8)]),
        Expected::one("scales", FLOATS, &[groups, n]),
    ]
}

pub(super) fn read(_: &Quantization, module: &Module<'_>, n: usize, k: usize) -> Result<StoredWeight> {
    let matrix = |suffix: &str| -> Result<Vec<u8>> {
        Ok(transpose(&unpack_cols(module.require(suffix)?.bytes, n, 4, Order::Awq), n))
    };
    let scales = transpose(&module.require("scales")?.floats()?, n);
    let group = k / (scales.len() / n).max(1);
    let (codes, zeros) = (matrix("qweight")?, Zeros::Integer(matrix("qzeros")?));
    Ok(StoredWeight::Grouped(Affine { n, k, bits: 4, group, codes, scales, zeros, groups_of: None }))
}
