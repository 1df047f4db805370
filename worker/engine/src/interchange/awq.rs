//! Writes AutoAWQ's layout, version GEMM: 4 bits with integer zero points.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::tensor::{Tensor, f16_scales};
use crate::checkpoint::quantized::{
    Affine,
    bits::{Order, pack_cols, transpose},
};

/// The tensors of a linear layer. A symmetric grid has the zero point 8 everywhere.
///
/// # Errors
/// Why the layout cannot hold the weight.
pub(super) fn tensors(w: &Affine) -> Result<Vec<Tensor>, String> {
    if !w.n.is_multiple_of(8) {
        return Err(format!("{} outputs do not fill words of eight", w.n));
    }
    if w.groups_of.is_some() {
        return Err("AutoAWQ has no activation order".to_owned());
    }
    let zeros = w.integer_zeros().ok_or("AutoAWQ has no free minima")?;
    let (n, groups) = (w.n, w.groups());
    let scales = transpose(&f16_scales(&w.scales, groups)?, groups);
    let pack = |codes: &[u8], cols: usize| pack_cols(&transpose(codes, cols), n, 4, Order::Awq);
    Ok(vec![
        Tensor::new("qweight", Dtype::I32, &[w.k, n / 8], pack(&w.codes, w.k)),
        Tensor::new("qzeros", Dtype::I32, &[groups, n / 8], pack(&zeros, groups)),
        Tensor::new("scales", Dtype::F16, &[groups, n], bytemuck::cast_slice(&scales).to_vec()),
    ])
}

/// `quantization_config` of `config.json`.
pub(super) fn config(group: Option<usize>, ignored: &[String]) -> Value {
    json!({
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": super::signed(group),
        "zero_point": true,
        "modules_to_not_convert": ignored,
    })
}
