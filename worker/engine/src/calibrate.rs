//! Static scales of an FP8 E4M3 KV cache: measured once per model on a BF16 pass over calibration tokens, kept as an
//! artifact of their own, shared by all profiles. They never change during the life of a cache.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use modelprofile_kernels::{BLOCK_TOKENS, Backend, HostTensor, KvFormat, KvLayout, KvScales, SequenceSpan, StepPlan};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    EngineError, ModelConfig, Result, WeightFormat,
    artifact::{Progress, Store},
    checkpoint::Checkpoint,
    model::{Model, ProfileWeights},
};

/// Largest finite E4M3 value.
const E4M3_MAX: f32 = 448.0;
/// Head room over the largest calibrated magnitude; larger values saturate.
const MARGIN: f32 = 1.1;
/// Changes when the calibration changes.
const VERSION: u32 = 1;
/// Tokens of the text that are looked at: largest magnitudes settle early, and a first start waits for it.
const MOST_TOKENS: usize = 1024;
/// Tokens of one calibration pass.
const PASS_TOKENS: usize = 512;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    revision: String,
    layers: usize,
    kv_heads: usize,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// The scales of a model's cache: ones for formats without scales, else found in the cache directory or measured on the
/// beginning of a text, `tokens`, and stored there.
///
/// # Errors
/// [`EngineError::Config`] when FP8 E4M3 is asked for without calibration tokens; errors of the checkpoint and the disk.
pub fn kv_scales<B: Backend>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    cache: &Path,
    layout: &KvLayout,
    tokens: &[u32],
    progress: &mut dyn FnMut(Progress),
) -> Result<KvScales> {
    if layout.format != KvFormat::Fp8E4m3 {
        return Ok(KvScales::unit(layout));
    }
    if tokens.is_empty() {
        return Err(EngineError::Config("an FP8E4M3 KV cache needs calibration tokens".into()));
    }
    let tokens = beginning(tokens);
    let path = place(cache, checkpoint.revision(), tokens);
    if let Some(scales) = load(&path, checkpoint.revision(), layout) {
        return Ok(scales);
    }
    // Else it would look as if the profile was made again.
    let told = &mut |mut told: Progress| {
        if !told.activity.is_empty() {
            told.activity = format!("reference for measuring, {}", told.activity);
        }
        progress(told);
    };
    let artifact = Store::new(cache).prepare(checkpoint, WeightFormat::Bf16, told)?;
    let weights = ProfileWeights::load(backend, checkpoint.config(), &artifact)?;
    let scales = measure(backend, checkpoint.config(), &weights, layout, tokens)?;
    let stored = Stored {
        version: VERSION,
        revision: checkpoint.revision().to_owned(),
        layers: layout.layers,
        kv_heads: layout.kv_heads,
        k: scales.k.clone(),
        v: scales.v.clone(),
    };
    let text = serde_json::to_string(&stored)
        .map_err(|e| EngineError::Artifact { path: path.display().to_string(), message: e.to_string() })?;
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    fs::create_dir_all(path.parent().unwrap_or(cache))
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|e| EngineError::io(&path, e))?;
    Ok(scales)
}

/// The scales that [`kv_scales`] has measured on this text for a checkpoint of this revision, if it has: all artifacts of a
/// checkpoint have its scales, because no method changes what the cache holds.
pub fn found(cache: &Path, revision: &str, layout: &KvLayout, tokens: &[u32]) -> Option<KvScales> {
    load(&place(cache, revision, beginning(tokens)), revision, layout)
}

/// What is looked at of a text.
fn beginning(tokens: &[u32]) -> &[u32] {
    &tokens[..tokens.len().min(MOST_TOKENS)]
}

/// The file of a checkpoint's scales on these tokens.
fn place(cache: &Path, revision: &str, tokens: &[u32]) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(format!("kv-e4m3 v{VERSION} {revision}"));
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    let key = &crate::artifact::hex(&hash.finalize())[..32];
    cache.join("kv-scales").join(format!("{key}.json"))
}

/// Stored scales, if they are whole and belong here.
fn load(path: &Path, revision: &str, layout: &KvLayout) -> Option<KvScales> {
    let stored: Stored = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let count = layout.layers * layout.kv_heads;
    let sound = |scales: &[f32]| scales.len() == count && scales.iter().all(|s| s.is_finite() && *s > 0.0);
    let fits = stored.version == VERSION && stored.revision == revision && sound(&stored.k) && sound(&stored.v);
    fits.then_some(KvScales { k: stored.k, v: stored.v })
}

/// `absmax / 448 * margin` of each layer's and head's keys and values over the calibration tokens.
fn measure<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    weights: &ProfileWeights<B>,
    layout: &KvLayout,
    tokens: &[u32],
) -> Result<KvScales> {
    let pass = PASS_TOKENS.min(config.max_positions);
    let layout = KvLayout { format: KvFormat::Bf16, ..*layout };
    let blocks = pass.div_ceil(BLOCK_TOKENS);
    let mut kv = backend.kv(layout, &KvScales::unit(&layout), blocks, blocks)?;
    let mut model = Model::new(backend, config, pass)?;
    let count = layout.layers * layout.kv_heads;
    let (mut k, mut v) = (vec![0.0f32; count], vec![0.0f32; count]);
    let mut host = HostTensor::default();
    for chunk in tokens.chunks(pass) {
        let plan = StepPlan {
            tokens: chunk.to_vec(),
            sequences: vec![SequenceSpan {
                first_row: 0,
                rows: chunk.len(),
                first_position: 0,
                blocks: (0..blocks as u32).collect(),
            }],
            logit_rows: Vec::new(),
        };
        let mut observe = |layer: usize, backend: &B, qkv: &B::Buffer| -> Result<()> {
            // The weights of the whole model in BF16 may be more than the device's memory.
            if backend.host_bandwidth().is_some()
                && let Some(before) = layer.checked_sub(1)
            {
                weights.layers[before].release(backend);
            }
            backend.download(qkv, chunk.len(), &mut host)?;
            for row in host.data.chunks_exact(host.width) {
                let mut heads = row.chunks_exact(config.head_dim).skip(config.heads);
                for maxima in [&mut k, &mut v] {
                    for (head, values) in heads.by_ref().take(layout.kv_heads).enumerate() {
                        let slot = &mut maxima[layer * layout.kv_heads + head];
                        *slot = values.iter().fold(*slot, |m, x| m.max(x.abs()));
                    }
                }
            }
            Ok(())
        };
        let mut ignore = |_: Range<usize>, _: &mut HostTensor| Ok(());
        model.step_observed(backend, &weights.into(), &[], &mut kv, &plan, &mut ignore, &mut observe)?;
    }
    // A head that never carried anything keeps a scale of one.
    let scale = |max: &f32| if *max > 0.0 { max * MARGIN / E4M3_MAX } else { 1.0 };
    Ok(KvScales { k: k.iter().map(scale).collect(), v: v.iter().map(scale).collect() })
}
