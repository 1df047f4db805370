//! `compressed-tensors` (names and shapes: the vllm-project/compressed-tensors format description), and our own extension
//! of it.
//!
//! | format | tensors of a linear layer |
//! |---|---|
//! | `float-quantized` | `weight` F8_E4M3 `[n, k]`, `weight_scale` `[n, 1]`, `[1]` or per block, `input_scale` with static activations |
//! | `int-quantized` | `weight` I8 `[n, k]`, `weight_scale` `[n, 1]` or `[1]` |
//! | `pack-quantized` | `weight_packed` I32 `[n, k/8]`, the first code lowest, `weight_scale` `[n, k/group]`, `weight_zero_point` I32 `[n/8, k/group]`, `weight_shape` `[2]` |
//! | `modelprofile-affine` | as before with `weight_min` F32 `[n, k/group]` instead of zero points: `w = s q + m` |
//! | `modelprofile-llm-int8` | as `int-quantized` with codes of 0 in the outlier columns, `outlier_weight` BF16 `[n, c]`, `outlier_columns` I32 `[c]`, ascending |
//!
//! Codes and zero points are signed numbers stored with `2^(bits-1)` added, so that their difference is that of the stored
//! ones. `weight_scale` is of any floating-point type. Activation order of kind `group` adds `weight_g_idx`.

use half::bf16;
use safetensors::Dtype;
use serde_json::Value;

use super::{
    Affine, Fp8Scales, Layout, Quantization, Scheme, Share, StoredWeight, Zeros,
    bits::{Order, per_word, unpack_cols, unpack_rows},
    group_size, groups, names,
    parts::{Expected, FLOATS, Module, scalar_shapes},
    unsupported,
};
use crate::{Result, ZeroPoint, quantize::outlier_columns};

/// `quant_method` of 4 bits with a free minimum.
pub(crate) const OWN_METHOD: &str = "modelprofile-affine";
/// `quant_method` of INT8 with outlier columns in 16 bits.
pub(crate) const OUTLIERS_METHOD: &str = "modelprofile-llm-int8";

/// Reads `quantization_config`.
pub(super) fn parse(json: &Value) -> Result<Quantization> {
    for (field, harmless) in [("sparsity_config", "dense"), ("transform_config", "")] {
        let there = json.get(field).and_then(Value::as_object).filter(|map| !map.is_empty());
        if there.is_some_and(|map| map.get("format").and_then(Value::as_str) != Some(harmless)) {
            return Err(unsupported(&format!("quantization_config: {field}")));
        }
    }
    let schemes: Vec<&Value> =
        json.get("config_groups").and_then(Value::as_object).map(|g| g.values().collect()).unwrap_or_default();
    let [first, others @ ..] = schemes.as_slice() else {
        return Err(unsupported("quantization_config: config_groups names no scheme"));
    };
    if others.iter().any(|other| other.get("weights") != first.get("weights")) {
        return Err(unsupported("quantization_config: several schemes; one for all linear layers is read"));
    }
    let method = json.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    let format = first.get("format").or_else(|| json.get("format")).and_then(Value::as_str).unwrap_or_default();
    let scheme = match (method, scheme(first, format, method == OWN_METHOD)?) {
        (OUTLIERS_METHOD, Scheme::Int8) => Scheme::Int8Outliers,
        (OUTLIERS_METHOD, _) => return Err(unsupported("quantization_config: outlier columns beside other than INT8")),
        (_, scheme) => scheme,
    };
    let own = matches!(method, OWN_METHOD | OUTLIERS_METHOD);
    let layout = if own { Layout::ModelProfile } else { Layout::CompressedTensors };
    let fp8_kv_cache = json.get("kv_cache_scheme").is_some_and(Value::is_object);
    Ok(Quantization { fp8_kv_cache, ..Quantization::new(layout, scheme, names(json.get("ignore"))) })
}

fn scheme(json: &Value, format: &str, own: bool) -> Result<Scheme> {
    let weights = json.get("weights").unwrap_or(&Value::Null);
    let text = |name: &str| weights.get(name).and_then(Value::as_str).unwrap_or_default();
    let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    let bits = weights.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
    let activations = json.get("input_activations").filter(|a| a.is_object());
    let static_activations = activations.is_some_and(|a| !a.get("dynamic").and_then(Value::as_bool).unwrap_or(false));
    let strategy = text("strategy");
    let whole = matches!(format, "float-quantized" | "int-quantized" | "naive-quantized" | OUTLIERS_METHOD);
    match (text("type"), bits, strategy) {
        ("float", 8, "tensor" | "channel" | "block") if whole && symmetric => {
            let share = match strategy {
                "tensor" => Share::Tensor,
                "channel" => Share::Row,
                _ => Share::Block(block(weights.get("block_structure"))?),
            };
            Ok(Scheme::Fp8 { share, static_activations })
        }
        ("int", 8, "tensor" | "channel") if whole && symmetric => Ok(Scheme::Int8),
        ("int", 4 | 8, "group" | "channel") if own || format == "pack-quantized" => {
            let group = if strategy == "group" { group_size(weights.get("group_size"))? } else { None };
            let zero = match (own, symmetric) {
                (true, _) => ZeroPoint::Minimum,
                (false, true) => ZeroPoint::Symmetric,
                (false, false) => ZeroPoint::Integer,
            };
            Ok(Scheme::Grouped { bits: bits as u8, group, zero })
        }
        (kind, bits, strategy) => Err(unsupported(&format!(
            "quantization_config: format {format:?} with {kind} weights of {bits} bits by {strategy:?}{}",
            if symmetric { "" } else { " and zero points" }
        ))),
    }
}

/// `[128, 128]`, or `"128x128"` in old files.
fn block(value: Option<&Value>) -> Result<[usize; 2]> {
    let sizes: Vec<u64> = match value {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).collect(),
        Some(Value::String(text)) => text.split('x').filter_map(|size| size.parse().ok()).collect(),
        _ => Vec::new(),
    };
    match sizes.as_slice() {
        [rows, cols] if (1..=1 << 16).contains(rows) && (1..=1 << 16).contains(cols) => {
            Ok([*rows as usize, *cols as usize])
        }
        _ => Err(unsupported("quantization_config: block_structure is not two sizes")),
    }
}

pub(super) fn parts(scheme: &Scheme, n: usize, k: usize) -> Vec<Expected> {
    let rows = || vec![vec![n, 1], vec![n]];
    match scheme {
        Scheme::Fp8 { share, static_activations } => {
            let input = Expected::any("input_scale", FLOATS, scalar_shapes());
            vec![
                Expected::one("weight", &[Dtype::F8_E4M3], &[n, k]),
                Expected::any(
                    "weight_scale",
                    FLOATS,
                    match share {
                        Share::Tensor => scalar_shapes(),
                        Share::Row => rows(),
                        Share::Block([r, c]) => vec![vec![n.div_ceil(*r), k.div_ceil(*c)]],
                    },
                ),
                if *static_activations { input } else { input.or_absent() },
            ]
        }
        Scheme::Int8 => vec![
            Expected::one("weight", &[Dtype::I8], &[n, k]),
            Expected::any("weight_scale", FLOATS, [rows(), scalar_shapes()].concat()),
            Expected::any("input_scale", FLOATS, scalar_shapes()).or_absent(),
            Expected::any("input_zero_point", &[Dtype::I8], scalar_shapes()).or_absent(),
        ],
        Scheme::Int8Outliers => {
            let columns = outlier_columns(k);
            vec![
                Expected::one("weight", &[Dtype::I8], &[n, k]),
                Expected::any("weight_scale", FLOATS, rows()),
                Expected::one("outlier_weight", &[Dtype::BF16], &[n, columns]),
                Expected::one("outlier_columns", &[Dtype::I32], &[columns]),
            ]
        }
        Scheme::Grouped { bits, group, zero } => {
            let groups = groups(*group, k);
            let mut parts = vec![
                Expected::one("weight_packed", &[Dtype::I32], &[n, k.div_ceil(per_word(*bits))]),
                Expected::one("weight_scale", FLOATS, &[n, groups]),
                Expected::one("weight_shape", &[Dtype::I64, Dtype::I32], &[2]),
                Expected::one("weight_g_idx", &[Dtype::I32], &[k]).or_absent(),
            ];
            match zero {
                ZeroPoint::Symmetric => {}
                ZeroPoint::Integer => {
                    let shape = [n.div_ceil(per_word(*bits)), groups];
                    parts.push(Expected::one("weight_zero_point", &[Dtype::I32], &shape));
                }
                ZeroPoint::Minimum => parts.push(Expected::one("weight_min", FLOATS, &[n, groups])),
            }
            parts
        }
    }
}

pub(super) fn read(quantization: &Quantization, module: &Module<'_>, n: usize, k: usize) -> Result<StoredWeight> {
    let mut scales = module.require("weight_scale")?.floats()?;
    match quantization.scheme {
        Scheme::Fp8 { share, .. } => {
            let codes = module.require("weight")?.bytes.to_vec();
            let scales = match share {
                Share::Tensor => Fp8Scales::Tensor(scales.first().copied().unwrap_or(1.0)),
                Share::Row => Fp8Scales::Rows(scales),
                Share::Block(size) => Fp8Scales::Blocks { size, values: scales },
            };
            let input_scale = match module.get("input_scale") {
                Some(part) => part.floats()?.first().copied(),
                None => None,
            };
            Ok(StoredWeight::Fp8 { n, k, codes, scales, input_scale })
        }
        Scheme::Int8 => {
            let codes = module.require("weight")?.bytes.iter().map(|code| *code as i8).collect();
            if scales.len() == 1 {
                scales = vec![scales[0]; n];
            }
            Ok(StoredWeight::Int8 { n, k, codes, scales })
        }
        Scheme::Int8Outliers => {
            let codes = module.require("weight")?.bytes.iter().map(|code| *code as i8).collect();
            let part = module.require("outlier_columns")?;
            let columns = part.integers()?;
            if !columns.is_sorted_by(|a, b| a < b) || !columns.iter().all(|column| (0..k as i64).contains(column)) {
                return Err(part.error(&format!("is not an ascending list of columns below {k}")));
            }
            let columns = columns.into_iter().map(|column| column as u32).collect();
            let outliers = module.require("outlier_weight")?.floats()?.into_iter().map(bf16::from_f32).collect();
            Ok(StoredWeight::Int8Outliers { n, k, codes, scales, columns, outliers })
        }
        Scheme::Grouped { bits, zero, .. } => {
            let shape = module.require("weight_shape")?;
            if shape.integers()? != [n as i64, k as i64] {
                return Err(shape.error(&format!("says {:?}, the layer is [{n}, {k}]", shape.integers()?)));
            }
            let groups = (scales.len() / n).max(1);
            let zeros = match zero {
                ZeroPoint::Symmetric => Zeros::Middle,
                ZeroPoint::Integer => {
                    Zeros::Integer(unpack_rows(module.require("weight_zero_point")?.bytes, n, groups, bits))
                }
                ZeroPoint::Minimum => Zeros::Minimum(module.require("weight_min")?.floats()?),
            };
            let codes = unpack_cols(module.require("weight_packed")?.bytes, k, bits, Order::Sequential);
            let groups_of = groups_of(module, groups, k)?;
            Ok(StoredWeight::Grouped(Affine { n, k, bits, group: k / groups, codes, scales, zeros, groups_of }))
        }
    }
}

/// The groups of inputs where activation order moved them.
fn groups_of(module: &Module<'_>, groups: usize, k: usize) -> Result<Option<Vec<u32>>> {
    let Some(part) = module.get("weight_g_idx") else { return Ok(None) };
    let of = part.integers()?;
    if let Some(at) = of.iter().position(|g| !(0..groups as i64).contains(g)) {
        return Err(part.error(&format!("puts input {at} into group {} of {groups}", of[at])));
    }
    let in_order = of.iter().enumerate().all(|(i, g)| *g == (i / (k / groups)) as i64);
    Ok((!in_order).then(|| of.iter().map(|g| *g as u32).collect()))
}
