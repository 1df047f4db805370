//! Quantized checkpoints for other engines: from one layout to another without rounding a weight.
//!
//! ```text
//! Checkpoint --quantized(role)--> StoredWeight --tensors--> model.safetensors     codes, scales and zero points move,
//!            --tensor(role)-----> bytes as they are ---------^                     no value is computed
//!            config.json --quantization_config exchanged--> config.json
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | this one | [`export`], and which weights a layout can say |
//! | `compressed_tensors`, `awq`, `gptq`, `modelopt` | tensors and configuration of each layout |
//! | `tensor`, `file` | a tensor to write, and the file |
//! | `companions` | the files beside the weights |
//! | `kv_cache` | scales of an FP8 KV cache |
//! | [`rope`] | rotary scaling in words that other tools know |

mod awq;
mod companions;
pub(crate) mod compressed_tensors;
mod file;
mod gptq;
mod kv_cache;
mod modelopt;
pub mod rope;
mod tensor;

use std::{
    fs,
    path::{Path, PathBuf},
};

use modelprofile_kernels::KvScales;
use safetensors::Dtype;
use serde_json::{Value, json};

pub(crate) use companions::CARD;
pub use companions::companions;
pub use kv_cache::holds_kv_scales;
pub(crate) use tensor::Tensor;

use self::{compressed_tensors::ScaleType, file::TensorFile, gptq::Version};
use crate::{
    EngineError, ModelConfig, Result, RopeScaling, ZeroPoint,
    artifact::Progress,
    checkpoint::{
        Checkpoint, Role, SourceDtype, StoredWeight,
        quantized::{HF_QUANT_CONFIG, Layout, Scheme, Share, Zeros},
    },
    quantize::Recipe,
};

/// What an export wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// Length of `model.safetensors`.
    pub bytes: u64,
    /// What the reader of the checkpoint should know, a sentence each.
    pub notes: Vec<String>,
}

/// What is decided about a checkpoint before its first tensor is written.
struct Target {
    layout: Layout,
    scheme: Scheme,
    version: Version,
    activation_order: bool,
    /// Linear layers that stay in 16 bits.
    ignored: Vec<String>,
    /// Scales of an FP8 KV cache, where some are written.
    kv_scales: Option<kv_cache::LayerScales>,
}

/// Writes a quantized checkpoint (an artifact of ours, or a published one) to `output` in another layout.
///
/// # Guarantees
/// Codes, scales and zero points are those of the checkpoint; nothing is rounded. `output` appears as a whole or not at all.
///
/// # Errors
/// [`EngineError::Config`] when `output` is there already, the checkpoint is not quantized, or the layout cannot say what
/// the checkpoint holds, with what can; [`EngineError::Checkpoint`] and [`EngineError::Artifact`] for a damaged one.
pub fn export(
    checkpoint: &Checkpoint,
    layout: Layout,
    output: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Exported> {
    export_with_kv_scales(checkpoint, layout, None, output, progress)
}

/// [`export`] with these scales of an FP8 KV cache (see [`crate::calibrate`]) in place of the checkpoint's own.
///
/// # Errors
/// As [`export`], and [`holds_kv_scales`].
pub fn export_with_kv_scales(
    checkpoint: &Checkpoint,
    layout: Layout,
    kv_scales: Option<&KvScales>,
    output: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Exported> {
    crate::artifact::check_files(checkpoint.directory())?;
    let target = plan(checkpoint, layout, kv_scales)?;
    let config = config_json(checkpoint, &target)?;
    if output.exists() {
        return Err(EngineError::Config(format!("{} exists; name a new directory", output.display())));
    }
    let temporary = temporary(output)?;
    fs::create_dir(&temporary).map_err(|e| EngineError::io(&temporary, e))?;
    let written = write(checkpoint, &target, &config, &temporary, progress)
        .and_then(|bytes| fs::rename(&temporary, output).map_err(|e| EngineError::io(output, e)).map(|()| bytes));
    match written {
        Ok(bytes) => Ok(Exported { bytes, notes: notes(checkpoint, &target) }),
        Err(error) => {
            // Half a checkpoint may be what filled the disk. Its own error would hide the one that matters.
            let _ = fs::remove_dir_all(&temporary);
            Err(error)
        }
    }
}

/// A new directory beside the output, so that renaming stays on one file system.
fn temporary(output: &Path) -> Result<PathBuf> {
    let name = output.file_name().ok_or_else(|| EngineError::Config(format!("{} has no name", output.display())))?;
    let mut name = name.to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    Ok(output.with_file_name(name))
}

fn plan(checkpoint: &Checkpoint, layout: Layout, kv_scales: Option<&KvScales>) -> Result<Target> {
    if kv_scales.is_some() {
        holds_kv_scales(layout)?;
    }
    let quantization = checkpoint.quantization().ok_or_else(|| {
        EngineError::Config(format!(
            "{} is no quantized directory: name with --format what to make of it, or give an artifact's directory",
            checkpoint.name()
        ))
    })?;
    let scheme = quantization.scheme;
    says(layout, &scheme, &quantization.describe())?;
    let mut target = Target {
        layout,
        scheme,
        version: Version::One,
        activation_order: false,
        ignored: ignored(checkpoint),
        kv_scales: match kv_scales {
            Some(scales) => Some(kv_cache::of_layers(scales, checkpoint.config().layers)),
            None => kv_cache::names(layout).and_then(|_| kv_cache::stored(checkpoint)),
        },
    };
    // What the configuration says of all layers takes a look at all of them.
    if matches!(scheme, Scheme::Grouped { .. }) && layout != Layout::AutoAwq {
        for role in linear(checkpoint) {
            let Some(StoredWeight::Grouped(weight)) = checkpoint.quantized(role)? else { continue };
            target.activation_order |= weight.groups_of.is_some();
            if matches!(&weight.zeros, Zeros::Integer(zeros) if zeros.contains(&0)) {
                target.version = Version::Two;
            }
        }
        if target.activation_order && layout == Layout::ModelOpt {
            return Err(EngineError::Config("modelopt has no activation order; gptq and compressed-tensors do".into()));
        }
    }
    Ok(target)
}

/// Holds that a layout can say what a recipe makes of a model, before it is made.
///
/// # Errors
/// [`EngineError::Config`] with a layout or a format that can.
pub fn holds_recipe(layout: Layout, recipe: Recipe, config: &ModelConfig) -> Result<()> {
    match crate::artifact::scheme(recipe.kind(config.hidden), recipe.format) {
        Some(scheme) => says(layout, &scheme, &recipe.canonical()),
        None => Err(EngineError::Config("BF16 is not quantized: copy the original's directory".into())),
    }
}

fn says(layout: Layout, scheme: &Scheme, what: &str) -> Result<()> {
    match cannot_say(layout, scheme) {
        None => Ok(()),
        Some(instead) => Err(EngineError::Config(format!("{what} cannot be written as {}: {instead}", layout.name()))),
    }
}

/// Why a layout cannot say a scheme, with one that can; `None` when it can.
fn cannot_say(layout: Layout, scheme: &Scheme) -> Option<&'static str> {
    if matches!(scheme, Scheme::Grouped { zero: ZeroPoint::Minimum, .. }) {
        return Some(
            "a free minimum is in none of these layouts; quantize to INT4 with `symmetric` or `integer`, or export GGUF",
        );
    }
    if *scheme == Scheme::Int8Outliers {
        return Some("columns in 16 bits are in none of these layouts; quantize to INT8 with `smoothquant`");
    }
    match (layout, scheme) {
        (Layout::CompressedTensors, _)
        | (Layout::AutoAwq, Scheme::Grouped { bits: 4, .. })
        | (Layout::Gptq, Scheme::Grouped { .. }) => None,
        (Layout::AutoAwq, _) => Some("it holds INT4; write compressed-tensors"),
        (Layout::Gptq, _) => Some("it holds INT4 and INT8 in groups; write compressed-tensors"),
        (Layout::ModelOpt, scheme) if modelopt::algorithm(scheme).is_some() => None,
        (Layout::ModelOpt, _) => Some("it holds FP8 and symmetric INT4 in groups; write compressed-tensors"),
        (Layout::ModelProfile, _) => Some("that layout is for artifacts; write compressed-tensors"),
    }
}

/// The roles that a quantized checkpoint may have as codes.
fn linear(checkpoint: &Checkpoint) -> Vec<Role> {
    Role::all(checkpoint.config()).into_iter().filter(|role| role.module().is_some()).collect()
}

/// Linear layers that the files hold as values, and the output layer, which a tied model has in code alone.
fn ignored(checkpoint: &Checkpoint) -> Vec<String> {
    let kept = linear(checkpoint).into_iter().filter(|role| checkpoint.tensor(*role).is_some());
    let mut names: Vec<String> = kept.filter_map(Role::module).collect();
    if checkpoint.config().tied_embeddings {
        names.extend(Role::Output.module());
    }
    names
}

/// Writes all files but leaves the directory's name to the caller.
fn write(
    checkpoint: &Checkpoint,
    target: &Target,
    config: &Value,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<u64> {
    let roles = Role::all(checkpoint.config());
    // Room for five tensors of each role's name, and two scales a layer.
    let names = roles.iter().flat_map(|role| std::iter::repeat_n(role.hugging_face_name().len() + 16, 6));
    let mut file = TensorFile::create(&directory.join("model.safetensors"), names)?;
    let total = roles.iter().map(|role| checkpoint.stored_bytes(*role)).sum();
    let mut done = 0;
    for role in roles {
        progress(Progress { done, total, activity: role.hugging_face_name() });
        if let Some((weight, module)) = checkpoint.quantized(role)?.zip(role.module()) {
            let tensors = tensors(target, role, &weight)
                .map_err(|e| EngineError::Config(format!("{module} as {}: {e}", target.layout.name())))?;
            for tensor in tensors {
                let name = format!("{module}.{}", tensor.suffix);
                file.put(&name, tensor.dtype, &tensor.shape, &tensor.bytes)?;
            }
        } else {
            let tensor = checkpoint.require(role)?;
            let shape = if tensor.rows == 1 { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
            let dtype = match tensor.dtype {
                SourceDtype::F32 => Dtype::F32,
                SourceDtype::F16 => Dtype::F16,
                SourceDtype::Bf16 => Dtype::BF16,
                other => return Err(EngineError::Config(format!("{}: {other:?} is no plain type", tensor.name))),
            };
            file.put(&role.hugging_face_name(), dtype, &shape, tensor.bytes)?;
        }
        done += checkpoint.stored_bytes(role);
    }
    if let (Some(scales), Some(names)) = (&target.kv_scales, kv_cache::names(target.layout)) {
        for (layer, pair) in scales.iter().enumerate() {
            for (name, scale) in names.into_iter().zip(pair) {
                let name = format!("model.layers.{layer}.self_attn.{name}");
                file.put(&name, Dtype::F32, &[1], &scale.to_le_bytes())?;
            }
        }
    }
    let bytes = file.finish()?;
    companions(checkpoint, directory)?;
    companions::card(checkpoint, directory)?;
    write_json(&directory.join("config.json"), config)?;
    match target.layout {
        Layout::ModelOpt => {
            let value = modelopt::config(&target.scheme, &target.ignored, target.kv_scales.is_some());
            write_json(&directory.join(HF_QUANT_CONFIG), &value)?;
        }
        Layout::Gptq => write_json(&directory.join("quantize_config.json"), &config["quantization_config"])?,
        _ => {}
    }
    progress(Progress { done: total, total, activity: String::new() });
    Ok(bytes)
}

fn tensors(target: &Target, role: Role, weight: &StoredWeight) -> std::result::Result<Vec<Tensor>, String> {
    match (target.layout, weight) {
        (Layout::AutoAwq, StoredWeight::Grouped(weight)) => awq::tensors(weight),
        (Layout::Gptq, StoredWeight::Grouped(weight)) => gptq::tensors(weight, target.version),
        (Layout::ModelOpt, weight) => {
            modelopt::tensors(weight, matches!(role, Role::AttentionOutput(_) | Role::Down(_)))
        }
        (Layout::CompressedTensors, weight) => Ok(compressed_tensors::tensors(weight, ScaleType::Narrowest)),
        _ => Err("the layout has no such weights".to_owned()),
    }
}

/// The checkpoint's `config.json` with the target's quantization.
fn config_json(checkpoint: &Checkpoint, target: &Target) -> Result<Value> {
    if matches!(rope::named(checkpoint.config()), RopeScaling::Factors(_)) {
        return Err(EngineError::Config(format!(
            "{}: its rotary scaling is a list of factors that no published scaling explains, and no other engine reads \
             such a list; quantize the original checkpoint's directory",
            checkpoint.name()
        )));
    }
    let path = checkpoint.directory().join("config.json");
    let text = fs::read(&path).map_err(|e| EngineError::io(&path, e))?;
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|e| EngineError::checkpoint(path.display(), e.to_string()))?;
    let map = config.as_object_mut().ok_or_else(|| EngineError::checkpoint(path.display(), "is no JSON object"))?;
    map.remove("compression_config");
    map.remove("quantization_config");
    let Target { scheme, ignored, .. } = target;
    let quantization = match (target.layout, scheme) {
        (Layout::AutoAwq, Scheme::Grouped { group, .. }) => Some(awq::config(*group, ignored)),
        (Layout::Gptq, Scheme::Grouped { bits, group, zero }) => {
            let symmetric = *zero == ZeroPoint::Symmetric;
            Some(gptq::config(*bits, *group, symmetric, target.activation_order, target.version, ignored))
        }
        // TensorRT-LLM looks for the file beside it.
        (Layout::ModelOpt, _) => None,
        _ => {
            let mut value = compressed_tensors::config(scheme, ignored, target.activation_order);
            if target.kv_scales.is_some() {
                value["kv_cache_scheme"] = json!({
                    "num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor", "dynamic": false,
                });
            }
            Some(value)
        }
    };
    if let Some(quantization) = quantization {
        map.insert("quantization_config".into(), quantization);
    }
    if matches!(target.layout, Layout::AutoAwq | Layout::Gptq) {
        // Their scales are FP16, and their kernels compute in it.
        let field = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        map.insert(field.into(), json!("float16"));
    }
    Ok(config)
}

/// What a reader should know of the result.
fn notes(checkpoint: &Checkpoint, target: &Target) -> Vec<String> {
    let mut notes = Vec::new();
    if target.layout == Layout::Gptq && target.version == Version::Two {
        notes.push("zero points of 0 need the format gptq_v2, which old readers of GPTQ do not know".to_owned());
    }
    if matches!(target.scheme, Scheme::Fp8 { share: Share::Tensor, .. }) && target.layout == Layout::CompressedTensors {
        // vLLM's `requantize_with_max_scale`.
        notes.push(
            "vLLM joins query, key and value, and gate and up, under the largest of their scales and rounds the others' \
             codes again; FP8 with a scale per row is loaded as it is"
                .to_owned(),
        );
    }
    if kv_cache::stored(checkpoint).is_some() && target.kv_scales.is_none() {
        notes.push("the scales of an FP8 KV cache are left out; this layout has none".to_owned());
    }
    notes
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = format!("{value:#}");
    text.push('\n');
    fs::write(path, text).map_err(|e| EngineError::io(path, e))
}

/// A group size as configurations write it.
fn signed(group: Option<usize>) -> i64 {
    group.map_or(-1, |group| group as i64)
}
