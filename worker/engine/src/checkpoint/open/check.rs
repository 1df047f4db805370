//! What a checkpoint must be before anything of it is used.

use std::collections::BTreeSet;

use super::{Checkpoint, ROPE_FACTORS};
use crate::{EngineError, ModelConfig, Result, RopeScaling, checkpoint::store::StoredTensor};

/// Counts above these are no model but a damaged or hostile file. They bound the work and memory of opening one, and
/// keep every product of two of them far from overflow.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;

/// Suffixes of the scales of a quantized KV cache and of outputs, which this worker calibrates itself.
const CACHE_SCALES: [&str; 5] = [".k_scale", ".v_scale", ".kv_scale", ".output_scale", ".q_scale"];

impl Checkpoint {
    /// Compares the files with the configuration: every role's tensor there and of its shape, and no tensor left over
    /// but those that `needless` names.
    pub(super) fn check_tensors(&self, place: &str, needless: impl Fn(&str) -> bool) -> Result<()> {
        let mut used = BTreeSet::new();
        for (role, (name, _)) in &self.roles {
            let (rows, cols) = role.shape(&self.config);
            if let Some((quantization, module)) = self.quantized_layer(*role) {
                let parts = quantization.parts(rows, cols).map_err(|e| EngineError::checkpoint(&module, e))?;
                used.extend(self.all().module(&module).check(&parts)?);
                continue;
            }
            let Some(stored) = self.tensors.get(name) else {
                return Err(EngineError::checkpoint(
                    place,
                    format!("tensor {name} is missing; the checkpoint is incomplete"),
                ));
            };
            let vector = rows == 1 && stored.shape == [cols];
            if !vector && stored.shape != [rows, cols] {
                return Err(EngineError::checkpoint(
                    &self.files[stored.file].name,
                    format!(
                        "tensor {name} has the shape {:?}, the configuration demands [{rows}, {cols}]",
                        stored.shape
                    ),
                ));
            }
            used.insert(name.clone());
        }
        // A tensor that no part of the model reads would change its result: say so instead of answering wrongly.
        let left_over = |name: &&String| !used.contains(*name) && !needless(name) && !self.without_effect(name);
        match self.tensors.keys().chain(self.codes.keys()).find(left_over) {
            None => Ok(()),
            Some(name) if self.quantization.is_none() && self.codes.contains_key(name) => {
                Err(EngineError::Unsupported(format!(
                    "{place}: tensor {name} is {:?}, but config.json has no quantization_config; directories are read with \
                     F32, F16 and BF16",
                    self.codes[name].dtype
                )))
            }
            Some(name) => Err(EngineError::Unsupported(format!(
                "{place}: tensor {name} has no place in {:?} models",
                self.config.architecture
            ))),
        }
    }

    /// Tensors of a quantized checkpoint that change no result: scales of the KV cache, and the biases of zeros that old
    /// GPTQ tools write for layers that have none.
    fn without_effect(&self, name: &str) -> bool {
        if self.quantization.is_none() {
            return false;
        }
        let zeros = |stored: &StoredTensor| {
            let bytes = &self.files[stored.file].map[stored.offset..stored.offset + stored.len];
            bytes.iter().all(|byte| *byte == 0)
        };
        CACHE_SCALES.iter().any(|suffix| name.ends_with(suffix))
            || (name.rsplit_once('.').is_some_and(|(_, part)| part == "bias")
                && self.tensors.get(name).is_some_and(zeros))
    }
}

/// Refuses configurations that no model has and that the model code need not defend against.
pub(super) fn check_config(config: &ModelConfig, file: &str) -> Result<()> {
    let bounded = [
        ("layers", config.layers, MAX_LAYERS),
        ("hidden size", config.hidden, MAX_WIDTH),
        ("MLP width", config.intermediate, MAX_WIDTH),
        ("attention heads", config.heads, MAX_LAYERS),
        ("key/value heads", config.kv_heads, MAX_LAYERS),
        ("head size", config.head_dim, MAX_LAYERS),
        ("vocabulary", config.vocab, MAX_WIDTH),
        ("context length", config.max_positions, u32::MAX as usize),
    ];
    for (what, value, most) in bounded {
        if value == 0 || value > most {
            return Err(EngineError::checkpoint(file, format!("{what} is {value}; 1 to {most} are possible")));
        }
    }
    let wrong = |message: String| Err(EngineError::checkpoint(file, message));
    if !config.heads.is_multiple_of(config.kv_heads) {
        return wrong(format!("{} heads are no multiple of {} key/value heads", config.heads, config.kv_heads));
    }
    if !config.head_dim.is_multiple_of(2) {
        return wrong(format!("the head size {} is odd; rotary embedding needs halves", config.head_dim));
    }
    if !(config.rms_epsilon.is_finite() && config.rms_epsilon >= 0.0) {
        return wrong(format!("the RMS epsilon is {}", config.rms_epsilon));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 0.0) {
        return wrong(format!("the rotary base is {}", config.rope_theta));
    }
    match &config.rope_scaling {
        RopeScaling::Linear { factor } if !(factor.is_finite() && *factor > 0.0) => {
            wrong(format!("the rotary scaling factor is {factor}"))
        }
        RopeScaling::Factors(factors)
            if factors.len() != config.head_dim / 2
                || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) =>
        {
            wrong(format!("{ROPE_FACTORS} does not hold {} positive factors", config.head_dim / 2))
        }
        _ => Ok(()),
    }
}
