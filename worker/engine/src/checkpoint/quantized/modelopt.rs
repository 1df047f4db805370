//! NVIDIA ModelOpt's unified checkpoints, which TensorRT-LLM and vLLM read (`hf_quant_config.json`).
//!
//! | algorithm | tensors of a linear layer |
//! |---|---|
//! | `FP8` | `weight` F8_E4M3 `[n, k]`, `weight_scale` and `input_scale` F32 scalars |
//! | `FP8_PER_CHANNEL_PER_TOKEN` | `weight` F8_E4M3, `weight_scale` F32 `[n]`; activation scales per token |
//! | `FP8_PB_WO` | `weight` F8_E4M3, `weight_scale` F32 per block of 128 x 128 |
//! | `W4A16_AWQ` | `weight` U8 `[n/2, k]`: signed codes, the even output low; `weight_scale` `[n, k/group]`; `pre_quant_scale` `[k]` on some |
//!
//! `pre_quant_scale` multiplies the inputs. Where a norm precedes the layer, ModelOpt folds it away; `o_proj` and
//! `down_proj` keep it, and our layers multiply no inputs: only ones are read.

use safetensors::Dtype;
use serde_json::Value;

use super::{
    Affine, Fp8Scales, HF_QUANT_CONFIG, Layout, Quantization, Scheme, Share, StoredWeight, Zeros, group_size, groups,
    names,
    parts::{Expected, FLOATS, Module, scalar_shapes},
};
use crate::{EngineError, Result, ZeroPoint};

/// Rows and columns of a block of `FP8_PB_WO`.
const BLOCK: usize = 128;

/// Reads `hf_quant_config.json`.
pub(super) fn parse_file(bytes: &[u8]) -> Result<Quantization> {
    let json: Value =
        serde_json::from_slice(bytes).map_err(|error| EngineError::checkpoint(HF_QUANT_CONFIG, error.to_string()))?;
    parse(json.get("quantization").unwrap_or(&Value::Null))
}

/// Reads the `quantization` part of it, which newer exports also put into `config.json`.
pub(super) fn parse(json: &Value) -> Result<Quantization> {
    let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or_default();
    let unsupported = |message: String| EngineError::Unsupported(format!("{HF_QUANT_CONFIG}: {message}"));
    if json.get("has_zero_point").and_then(Value::as_bool) == Some(true) {
        return Err(unsupported("zero points".to_owned()));
    }
    let fp8 = |share, static_activations| Scheme::Fp8 { share, static_activations };
    let scheme = match text("quant_algo") {
        "FP8" => fp8(Share::Tensor, true),
        "FP8_PER_CHANNEL_PER_TOKEN" => fp8(Share::Row, false),
        "FP8_PB_WO" => fp8(Share::Block([BLOCK, BLOCK]), false),
        "W4A16_AWQ" => {
            Scheme::Grouped { bits: 4, group: group_size(json.get("group_size"))?, zero: ZeroPoint::Symmetric }
        }
        other => {
            return Err(unsupported(format!(
                "quant_algo {other:?}; read are FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO and W4A16_AWQ"
            )));
        }
    };
    let excluded = json.get("exclude_modules").or_else(|| json.get("ignore"));
    let fp8_kv_cache =
        text("kv_cache_quant_algo") == "FP8" || json.get("kv_cache_scheme").is_some_and(Value::is_object);
    Ok(Quantization { fp8_kv_cache, ..Quantization::new(Layout::ModelOpt, scheme, names(excluded)) })
}

pub(super) fn parts(scheme: &Scheme, n: usize, k: usize) -> Vec<Expected> {
    match scheme {
        Scheme::Fp8 { share, .. } => vec![
            Expected::one("weight", &[Dtype::F8_E4M3], &[n, k]),
            match share {
                Share::Tensor => Expected::any("weight_scale", FLOATS, scalar_shapes()),
                Share::Row => Expected::any("weight_scale", FLOATS, vec![vec![n], vec![n, 1]]),
                Share::Block([rows, cols]) => {
                    let (rows, cols) = (n.div_ceil(*rows), k.div_ceil(*cols));
                    Expected::any("weight_scale", FLOATS, vec![vec![rows, cols], vec![rows, 1, cols, 1]])
                }
            },
            Expected::any("input_scale", FLOATS, scalar_shapes()).or_absent(),
        ],
        Scheme::Grouped { group, .. } => vec![
            Expected::one("weight", &[Dtype::U8], &[n.div_ceil(2), k]),
            Expected::one("weight_scale", FLOATS, &[n, groups(*group, k)]),
            Expected::one("pre_quant_scale", FLOATS, &[k]).or_absent(),
            Expected::any("input_scale", FLOATS, scalar_shapes()).or_absent(),
        ],
        Scheme::Int8 | Scheme::Int8Outliers => Vec::new(),
    }
}

pub(super) fn read(quantization: &Quantization, module: &Module<'_>, n: usize, k: usize) -> Result<StoredWeight> {
    let weight = module.require("weight")?;
    let scales = module.require("weight_scale")?.floats()?;
    let Scheme::Fp8 { share, .. } = quantization.scheme else {
        if let Some(part) = module.get("pre_quant_scale")
            && part.floats()?.iter().any(|scale| scale.to_bits() != 1.0f32.to_bits())
        {
            return Err(EngineError::Unsupported(format!(
                "tensor {} scales the layer's inputs, which no layer of ours does; give the original checkpoint, \
                 this worker quantizes it itself",
                part.name
            )));
        }
        return Ok(StoredWeight::Grouped(Affine {
            n,
            k,
            bits: 4,
            group: k / (scales.len() / n).max(1),
            codes: codes(weight.bytes, n, k),
            scales,
            zeros: Zeros::Middle,
            groups_of: None,
        }));
    };
    let scales = match share {
        Share::Tensor => Fp8Scales::Tensor(scales.first().copied().unwrap_or(1.0)),
        Share::Row => Fp8Scales::Rows(scales),
        Share::Block(size) => Fp8Scales::Blocks { size, values: scales },
    };
    let input_scale = match module.get("input_scale") {
        Some(part) => part.floats()?.first().copied(),
        None => None,
    };
    Ok(StoredWeight::Fp8 { n, k, codes: weight.bytes.to_vec(), scales, input_scale })
}

/// Two's-complement nibbles of two outputs a byte, as unsigned codes around 8.
fn codes(bytes: &[u8], n: usize, k: usize) -> Vec<u8> {
    let code = |i: usize| {
        let (row, col) = (i / k, i % k);
        let nibble = (bytes[row / 2 * k + col] >> (row % 2 * 4)) & 15;
        nibble ^ 8
    };
    (0..n * k).map(code).collect()
}
