//! Writes NVIDIA ModelOpt's layout for TensorRT-LLM: FP8 and symmetric 4 bits.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::tensor::{ScaleType, Tensor};
use crate::checkpoint::{
    StoredWeight,
    quantized::{Fp8Scales, Scheme, Share, Zeros},
};

/// ModelOpt's name of the numbers; `None` when it has none for them.
pub(super) fn algorithm(scheme: &Scheme) -> Option<&'static str> {
    match scheme {
        Scheme::Fp8 { share: Share::Tensor, static_activations: true } => Some("FP8"),
        // A scale per tensor without one for activations is written once per row: the same weights.
        Scheme::Fp8 { share: Share::Tensor | Share::Row, static_activations: false } => {
            Some("FP8_PER_CHANNEL_PER_TOKEN")
        }
        Scheme::Fp8 { share: Share::Block([128, 128]), static_activations: false } => Some("FP8_PB_WO"),
        Scheme::Grouped { bits: 4, group: Some(_), zero: crate::ZeroPoint::Symmetric } => Some("W4A16_AWQ"),
        _ => None,
    }
}

/// The tensors of a linear layer. `scales_inputs`: TensorRT-LLM demands `pre_quant_scale` of it, here ones.
///
/// # Errors
/// Why the layout cannot hold the weight.
pub(super) fn tensors(weight: &StoredWeight, scales_inputs: bool) -> Result<Vec<Tensor>, String> {
    match weight {
        StoredWeight::Fp8 { n, k, codes, scales, input_scale } => {
            let codes = Tensor::new("weight", Dtype::F8_E4M3, &[*n, *k], codes.clone());
            // Scalars: the format has shapes without dimensions.
            Ok(match (scales, input_scale) {
                (Fp8Scales::Tensor(scale), Some(input)) => {
                    vec![codes, Tensor::f32("weight_scale", &[], &[*scale]), Tensor::f32("input_scale", &[], &[*input])]
                }
                (Fp8Scales::Tensor(scale), None) => {
                    vec![codes, Tensor::f32("weight_scale", &[*n], &vec![*scale; *n])]
                }
                (Fp8Scales::Rows(scales), _) => vec![codes, Tensor::f32("weight_scale", &[*n], scales)],
                (Fp8Scales::Blocks { size: [rows, cols], values }, _) => {
                    let shape = [n.div_ceil(*rows), 1, k.div_ceil(*cols), 1];
                    vec![codes, Tensor::f32("weight_scale", &shape, values)]
                }
            })
        }
        StoredWeight::Grouped(w) if w.bits == 4 && w.zeros == Zeros::Middle && w.groups_of.is_none() => {
            let (n, k) = (w.n, w.k);
            if !n.is_multiple_of(2) {
                return Err(format!("{n} outputs do not fill bytes of two"));
            }
            // Signed nibbles, the even output low.
            let signed = |row: usize, col: usize| w.codes[row * k + col] ^ 8;
            let byte = |i: usize| signed(i / k * 2, i % k) | signed(i / k * 2 + 1, i % k) << 4;
            let mut tensors = vec![
                Tensor::new("weight", Dtype::U8, &[n / 2, k], (0..n / 2 * k).map(byte).collect()),
                Tensor::scales("weight_scale", &[n, w.groups()], &w.scales, ScaleType::Narrowest),
            ];
            if scales_inputs {
                tensors.push(Tensor::scales("pre_quant_scale", &[k], &vec![1.0; k], ScaleType::Narrowest));
            }
            Ok(tensors)
        }
        _ => Err("ModelOpt has no such weights".to_owned()),
    }
}

/// The whole of `hf_quant_config.json`.
pub(super) fn config(scheme: &Scheme, ignored: &[String], fp8_kv_cache: bool) -> Value {
    let mut quantization = json!({
        "quant_algo": algorithm(scheme),
        "kv_cache_quant_algo": if fp8_kv_cache { Some("FP8") } else { None },
        "exclude_modules": ignored,
    });
    if let Scheme::Grouped { group, .. } = scheme {
        quantization["group_size"] = json!(group);
        quantization["has_zero_point"] = json!(false);
        quantization["pre_quant_scale"] = json!(true);
    }
    json!({"producer": {"name": "modelprofile", "version": env!("CARGO_PKG_VERSION")}, "quantization": quantization})
}
