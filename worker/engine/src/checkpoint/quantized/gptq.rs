//! GPTQ checkpoints (Frantar et al. 2022; tensors as AutoGPTQ and GPTQModel write them).
//!
//! | tensor | type, shape | holds |
//! |---|---|---|
//! | `qweight` | I32 `[k/8, n]` | eight inputs a word, the first lowest (four at 8 bits) |
//! | `qzeros` | I32 `[k/group, n/8]` | zero points, eight outputs a word; one less than `z` in format `gptq`, `z` in `gptq_v2` |
//! | `scales` | F16 `[k/group, n]` | `w = s (q - z)` |
//! | `g_idx` | I32 `[k]` | group of each input |

use safetensors::Dtype;
use serde_json::Value;

use super::{
    Affine, Layout, Quantization, Scheme, StoredWeight, Zeros,
    bits::{Order, per_word, transpose, unpack_cols, unpack_rows},
    group_size, groups, names,
    parts::{Expected, FLOATS, Module},
    unsupported,
};
use crate::{Result, ZeroPoint};

/// Reads `quantization_config`.
pub(super) fn parse(json: &Value) -> Result<Quantization> {
    let flag = |name: &str| json.get(name).and_then(Value::as_bool);
    let bits = match json.get("bits").and_then(Value::as_u64) {
        Some(4) => 4,
        Some(8) => 8,
        other => return Err(unsupported(&format!("GPTQ of {other:?} bits; 4 and 8 are read"))),
    };
    if json.get("dynamic").and_then(Value::as_object).is_some_and(|rules| !rules.is_empty()) {
        return Err(unsupported("GPTQ with other numbers for some layers (dynamic)"));
    }
    let format = json.get("checkpoint_format").or_else(|| json.get("format")).and_then(Value::as_str).unwrap_or("gptq");
    let zero_offset = match format {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(unsupported(&format!("GPTQ in the format {other}; gptq and gptq_v2 are read"))),
    };
    let zero = if flag("sym").unwrap_or(true) { ZeroPoint::Symmetric } else { ZeroPoint::Integer };
    let scheme = Scheme::Grouped { bits, group: group_size(json.get("group_size"))?, zero };
    let mut ignored = names(json.get("modules_to_not_convert"));
    if flag("lm_head") != Some(true) && ignored.is_empty() {
        ignored.push("lm_head".to_owned());
    }
    Ok(Quantization { zero_offset, ..Quantization::new(Layout::Gptq, scheme, ignored) })
}

pub(super) fn parts(scheme: &Scheme, n: usize, k: usize) -> Vec<Expected> {
    let Scheme::Grouped { bits, group, .. } = scheme else { return Vec::new() };
    let (per, groups) = (per_word(*bits), groups(*group, k));
    vec![
        Expected::one("qweight", &[Dtype::I32], &[k.div_ceil(per), n]),
        Expected::one("qzeros", &[Dtype::I32], &[groups, n.div_ceil(per)]),
        Expected::one("scales", FLOATS, &[groups, n]),
        // Needed: whether the groups lie in order cannot be told without it.
        Expected::one("g_idx", &[Dtype::I32], &[k]),
    ]
}

pub(super) fn read(quantization: &Quantization, module: &Module<'_>, n: usize, k: usize) -> Result<StoredWeight> {
    let Scheme::Grouped { bits, zero, .. } = quantization.scheme else {
        return Err(module.error("GPTQ has groups"));
    };
    let codes = transpose(&unpack_rows(module.require("qweight")?.bytes, k, n, bits), n);
    let scales = transpose(&module.require("scales")?.floats()?, n);
    let groups = (scales.len() / n).max(1);
    let group = k / groups;

    let qzeros = module.require("qzeros")?;
    let stored = transpose(&unpack_cols(qzeros.bytes, n, bits, Order::Sequential), n);
    let (middle, top) = (1u8 << (bits - 1), u8::MAX >> (8 - bits));
    // Readers disagree on the largest number of the first format: 2^bits for some, 0 for others.
    if quantization.zero_offset == 1
        && let Some(at) = stored.iter().position(|z| *z == top)
    {
        let (row, group) = (at / groups, at % groups);
        let message =
            format!("has {top} for output {row}, group {group}, which readers of format gptq take differently");
        return Err(qzeros.error(&message));
    }
    let zeros: Vec<u8> = stored.iter().map(|z| z + quantization.zero_offset).collect();
    let zeros = match (zero, zeros.iter().position(|z| *z != middle)) {
        (ZeroPoint::Symmetric, None) => Zeros::Middle,
        (ZeroPoint::Symmetric, Some(at)) => {
            let message = format!("holds the zero point {}, but the configuration says sym", zeros[at]);
            return Err(qzeros.error(&message));
        }
        _ => Zeros::Integer(zeros),
    };

    let g_idx = module.require("g_idx")?;
    let of = g_idx.integers()?;
    if let Some(at) = of.iter().position(|g| !(0..groups as i64).contains(g)) {
        return Err(g_idx.error(&format!("puts input {at} into group {} of {groups}", of[at])));
    }
    let in_order = of.iter().enumerate().all(|(i, g)| *g == (i / group.max(1)) as i64);
    let groups_of = (!in_order).then(|| of.iter().map(|g| *g as u32).collect());
    Ok(StoredWeight::Grouped(Affine { n, k, bits, group, codes, scales, zeros, groups_of }))
}
