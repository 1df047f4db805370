//! Writes the layout of AutoGPTQ and GPTQModel.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::tensor::{Tensor, f16_scales};
use crate::checkpoint::quantized::{
    Affine,
    bits::{Order, pack_cols, pack_rows, per_word, transpose},
};

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// `gptq`: one less than the zero point, so that 0 has no place.
    One,
    /// `gptq_v2`: the zero point.
    Two,
}

/// The tensors of a linear layer.
///
/// # Errors
/// Why the layout cannot hold the weight.
pub(super) fn tensors(w: &Affine, version: Version) -> Result<Vec<Tensor>, String> {
    let per = per_word(w.bits);
    if !w.n.is_multiple_of(per) || !w.k.is_multiple_of(per) {
        return Err(format!("{} x {} codes do not fill words of {per}", w.n, w.k));
    }
    let mut zeros = w.integer_zeros().ok_or("GPTQ has no free minima")?;
    if version == Version::One {
        for zero in &mut zeros {
            *zero = zero.checked_sub(1).ok_or("a zero point of 0 needs the format gptq_v2")?;
        }
    }
    let (n, k, groups) = (w.n, w.k, w.groups());
    let scales = transpose(&f16_scales(&w.scales, groups)?, groups);
    let group_of = |i: usize| w.groups_of.as_ref().map_or(i / w.group, |of| of[i] as usize) as i32;
    let zeros = pack_cols(&transpose(&zeros, groups), n, w.bits, Order::Sequential);
    Ok(vec![
        Tensor::new("qweight", Dtype::I32, &[k / per, n], pack_rows(&transpose(&w.codes, k), n, w.bits)),
        Tensor::new("qzeros", Dtype::I32, &[groups, n / per], zeros),
        Tensor::new("scales", Dtype::F16, &[groups, n], bytemuck::cast_slice(&scales).to_vec()),
        Tensor::new("g_idx", Dtype::I32, &[k], (0..k).flat_map(|i| group_of(i).to_le_bytes()).collect()),
    ])
}

/// `quantization_config` of `config.json`, and the whole of `quantize_config.json`, which old readers look for.
pub(super) fn config(
    bits: u8,
    group: Option<usize>,
    symmetric: bool,
    activation_order: bool,
    version: Version,
    ignored: &[String],
) -> Value {
    let mut value = json!({
        "quant_method": "gptq",
        "bits": bits,
        "group_size": super::signed(group),
        "sym": symmetric,
        "desc_act": activation_order,
        "lm_head": false,
        "checkpoint_format": if version == Version::One { "gptq" } else { "gptq_v2" },
        "pack_dtype": "int32",
    });
    if !ignored.is_empty() {
        value["modules_to_not_convert"] = json!(ignored);
    }
    value
}
