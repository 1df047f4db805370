//! Scales of an FP8 KV cache, as other engines read them from a checkpoint: one for a layer's keys, one for its values.

use modelprofile_kernels::KvScales;

use crate::{
    EngineError, Result,
    checkpoint::{Checkpoint, quantized::Layout},
};

/// `[keys, values]` of each layer.
pub(super) type LayerScales = Vec<[f32; 2]>;

/// Names of the two below `self_attn`; `None` for a layout that has none.
pub(super) fn names(layout: Layout) -> Option<[&'static str; 2]> {
    match layout {
        Layout::CompressedTensors => Some(["k_scale", "v_scale"]),
        Layout::ModelOpt => Some(["k_proj.k_scale", "v_proj.v_scale"]),
        Layout::AutoAwq | Layout::Gptq | Layout::ModelProfile => None,
    }
}

/// Holds that a layout has such scales.
///
/// # Errors
/// [`EngineError::Config`] names the layouts that have.
pub fn holds_kv_scales(layout: Layout) -> Result<()> {
    if names(layout).is_some() {
        return Ok(());
    }
    Err(EngineError::Config(format!(
        "{} has no scales of an FP8 KV cache; compressed-tensors and modelopt have",
        layout.name()
    )))
}

/// Those that a checkpoint brings along, where it has all of them.
pub(super) fn stored(checkpoint: &Checkpoint) -> Option<LayerScales> {
    let scale = |layer: usize, name: &str| {
        let names = [format!("{name}_scale"), format!("{name}_proj.{name}_scale")];
        let tensor = names.iter().find_map(|n| checkpoint.named(&format!("model.layers.{layer}.self_attn.{n}")))?;
        tensor.to_f32().ok()?.first().copied()
    };
    (0..checkpoint.config().layers).map(|layer| Some([scale(layer, "k")?, scale(layer, "v")?])).collect()
}

/// Ours, of each layer and head: the largest of a layer holds the values of all its heads.
pub(super) fn of_layers(scales: &KvScales, layers: usize) -> LayerScales {
    let heads = (scales.k.len() / layers.max(1)).max(1);
    let largest = |heads: &[f32]| heads.iter().copied().fold(0.0, f32::max);
    let layers = scales.k.chunks(heads).zip(scales.v.chunks(heads));
    layers.map(|(keys, values)| [largest(keys), largest(values)]).collect()
}
