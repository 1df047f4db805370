//! Writes the `compressed-tensors` layout: tensors as [`crate::checkpoint::quantized`] reads them, and its configuration.

use safetensors::Dtype;
use serde_json::{Value, json};

pub(crate) use super::tensor::ScaleType;
use super::tensor::Tensor;
use crate::{
    ZeroPoint,
    checkpoint::{
        StoredWeight,
        quantized::{
            Fp8Scales, Scheme, Share, Zeros,
            bits::{Order, pack_cols, pack_rows, per_word},
            compressed_tensors::{OUTLIERS_METHOD, OWN_METHOD},
        },
    },
};

/// The tensors of a linear layer.
pub(crate) fn tensors(weight: &StoredWeight, scale: ScaleType) -> Vec<Tensor> {
    match weight {
        StoredWeight::Fp8 { n, k, codes, scales, input_scale } => {
            let scales = match scales {
                Fp8Scales::Tensor(scale) => Tensor::f32("weight_scale", &[1], &[*scale]),
                Fp8Scales::Rows(scales) => Tensor::f32("weight_scale", &[*n, 1], scales),
                Fp8Scales::Blocks { size: [rows, cols], values } => {
                    Tensor::f32("weight_scale", &[n.div_ceil(*rows), k.div_ceil(*cols)], values)
                }
            };
            let input = input_scale.map(|scale| Tensor::f32("input_scale", &[1], &[scale]));
            let codes = Tensor::new("weight", Dtype::F8_E4M3, &[*n, *k], codes.clone());
            [codes, scales].into_iter().chain(input).collect()
        }
        StoredWeight::Int8 { n, k, codes, scales } => {
            let bytes = codes.iter().map(|code| *code as u8).collect();
            vec![Tensor::new("weight", Dtype::I8, &[*n, *k], bytes), Tensor::f32("weight_scale", &[*n, 1], scales)]
        }
        StoredWeight::Int8Outliers { n, k, codes, scales, columns, outliers } => {
            let bytes = codes.iter().map(|code| *code as u8).collect();
            let outliers = bytemuck::cast_slice(outliers).to_vec();
            vec![
                Tensor::new("weight", Dtype::I8, &[*n, *k], bytes),
                Tensor::f32("weight_scale", &[*n, 1], scales),
                Tensor::new("outlier_weight", Dtype::BF16, &[*n, columns.len()], outliers),
                Tensor::new("outlier_columns", Dtype::I32, &[columns.len()], bytemuck::cast_slice(columns).to_vec()),
            ]
        }
        StoredWeight::Grouped(w) => {
            let (n, k, groups, per) = (w.n, w.k, w.groups(), per_word(w.bits));
            let packed = pack_cols(&w.codes, k, w.bits, Order::Sequential);
            let shape = [n as i64, k as i64].iter().flat_map(|dim| dim.to_le_bytes()).collect();
            let mut tensors = vec![
                Tensor::new("weight_packed", Dtype::I32, &[n, k.div_ceil(per)], packed),
                Tensor::scales("weight_scale", &[n, groups], &w.scales, scale),
                Tensor::new("weight_shape", Dtype::I64, &[2], shape),
            ];
            match &w.zeros {
                Zeros::Middle => {}
                Zeros::Integer(zeros) => {
                    let packed = pack_rows(zeros, groups, w.bits);
                    tensors.push(Tensor::new("weight_zero_point", Dtype::I32, &[n.div_ceil(per), groups], packed));
                }
                Zeros::Minimum(minima) => tensors.push(Tensor::f32("weight_min", &[n, groups], minima)),
            }
            if let Some(of) = &w.groups_of {
                let bytes = of.iter().flat_map(|group| group.to_le_bytes()).collect();
                tensors.push(Tensor::new("weight_g_idx", Dtype::I32, &[k], bytes));
            }
            tensors
        }
    }
}

/// `quantization_config` of `config.json`.
pub(crate) fn config(scheme: &Scheme, ignored: &[String], activation_order: bool) -> Value {
    let mut weights = json!({
        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "group_size": null, "dynamic": false,
    });
    let activations = |kind: &str, dynamic: bool| {
        json!({
            "num_bits": 8, "type": kind, "symmetric": true, "strategy": if dynamic { "token" } else { "tensor" },
            "group_size": null, "dynamic": dynamic,
        })
    };
    let (format, inputs) = match scheme {
        Scheme::Fp8 { share, static_activations } => {
            weights["type"] = json!("float");
            match share {
                Share::Tensor => weights["strategy"] = json!("tensor"),
                Share::Row => {}
                Share::Block([rows, cols]) => {
                    weights["strategy"] = json!("block");
                    weights["block_structure"] = json!([rows, cols]);
                }
            }
            let mut inputs = activations("float", !static_activations);
            if let (Share::Block([_, cols]), false) = (share, static_activations) {
                // Activations follow the blocks: one scale per token and block of inputs.
                inputs["strategy"] = json!("group");
                inputs["group_size"] = json!(cols);
            }
            ("float-quantized", inputs)
        }
        Scheme::Int8 => ("int-quantized", activations("int", true)),
        // No other tool has the columns in 16 bits.
        Scheme::Int8Outliers => (OUTLIERS_METHOD, activations("int", true)),
        Scheme::Grouped { bits, group, zero } => {
            weights["num_bits"] = json!(bits);
            weights["symmetric"] = json!(*zero == ZeroPoint::Symmetric);
            if let Some(group) = group {
                weights["strategy"] = json!("group");
                weights["group_size"] = json!(group);
            }
            if activation_order {
                weights["actorder"] = json!("group");
            }
            (if *zero == ZeroPoint::Minimum { OWN_METHOD } else { "pack-quantized" }, Value::Null)
        }
    };
    json!({
        "quant_method": if matches!(format, OWN_METHOD | OUTLIERS_METHOD) { format } else { "compressed-tensors" },
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": null,
                "format": format,
            },
        },
        "ignore": ignored,
        "kv_cache_scheme": null,
    })
}
