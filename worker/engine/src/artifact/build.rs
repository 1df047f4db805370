//! Quantizing a checkpoint into a packed file, tensor by tensor: peak memory is one fused tensor, not the model.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use modelprofile_kernels::{HostWeight, WeightKind};
use sha2::{Digest, Sha256};

use super::{Entry, EntryKind, FORMAT_VERSION, Manifest, Progress, store, tensors};
use crate::{
    EngineError, Result, WeightFormat,
    checkpoint::{Checkpoint, Role},
    quantize,
};

/// Layers start at a page, so that one layer's pages can be released without touching its neighbours'.
const LAYER_ALIGNMENT: u64 = 4096;
const TENSOR_ALIGNMENT: u64 = 64;

/// What the packed file holds, in file order: name, and the roles whose rows it joins.
enum Part {
    Weight(String, Vec<Role>, WeightKind),
    Vector(String, Vec<Role>),
}

impl Part {
    /// Its roles, with the kind of a weight and `None` for a vector.
    fn roles(&self) -> Vec<(Role, Option<WeightKind>)> {
        match self {
            Self::Weight(_, roles, kind) => roles.iter().map(|r| (*r, Some(*kind))).collect(),
            Self::Vector(_, roles) => roles.iter().map(|r| (*r, None)).collect(),
        }
    }
}

/// The packed tensors of a layer group: `None` is the model's own part, before the layers.
fn parts(checkpoint: &Checkpoint, format: WeightFormat) -> Vec<(String, Vec<Part>)> {
    let config = checkpoint.config();
    let output = format.output_kind(config.hidden);
    let mut head = vec![
        Part::Weight("embedding".into(), vec![Role::Embedding], output),
        Part::Vector("final_norm".into(), vec![Role::FinalNorm]),
    ];
    if !config.tied_embeddings {
        head.push(Part::Weight("output".into(), vec![Role::Output], output));
    }
    let mut groups = vec![("quantizing the embedding".to_owned(), head)];
    let kind = format.kind();
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let mut parts = vec![
            Part::Vector(name("attention_norm"), vec![Role::AttentionNorm(layer)]),
            Part::Weight(name("qkv"), vec![Role::Query(layer), Role::Key(layer), Role::Value(layer)], kind),
        ];
        if config.qkv_bias {
            let roles = vec![Role::QueryBias(layer), Role::KeyBias(layer), Role::ValueBias(layer)];
            parts.push(Part::Vector(name("qkv_bias"), roles));
        }
        if config.qk_norm {
            parts.push(Part::Vector(name("query_norm"), vec![Role::QueryNorm(layer)]));
            parts.push(Part::Vector(name("key_norm"), vec![Role::KeyNorm(layer)]));
        }
        parts.push(Part::Weight(name("attention_output"), vec![Role::AttentionOutput(layer)], kind));
        parts.push(Part::Vector(name("mlp_norm"), vec![Role::MlpNorm(layer)]));
        parts.push(Part::Weight(name("gate_up"), vec![Role::Gate(layer), Role::Up(layer)], kind));
        parts.push(Part::Weight(name("down"), vec![Role::Down(layer)], kind));
        groups.push((format!("quantizing layer {} of {}", layer + 1, config.layers), parts));
    }
    groups
}

/// Writes `packed-cpu.bin` and `manifest.json` into `directory`, both synced to disk.
///
/// # Errors
/// A malformed tensor (NaN, infinity) by name, a shape that the format cannot hold, or a full disk.
pub fn build(
    directory: &Path,
    key: &str,
    checkpoint: &Checkpoint,
    format: WeightFormat,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut file = PackedWriter::create(&directory.join(store::PACKED))?;
    let mut plan = tensors::TensorPlan::default();
    for (role, kind) in parts(checkpoint, format).iter().flat_map(|(_, parts)| parts).flat_map(Part::roles) {
        let tensor = checkpoint.require(role)?;
        match kind {
            Some(kind) => plan.weight(&hub_name(role), stored_kind(role, kind), tensor.rows, tensor.cols),
            None => plan.vector(&hub_name(role), tensor.rows * tensor.cols),
        }
    }
    let mut hub = plan.create(&directory.join("model.safetensors"))?;
    let total = checkpoint.tensors().map(|t| t.bytes.len() as u64).sum();
    let mut done = 0;
    for (activity, parts) in parts(checkpoint, format) {
        file.align(LAYER_ALIGNMENT)?;
        for part in parts {
            progress(Progress { done, total, activity: activity.clone() });
            match part {
                Part::Weight(name, roles, kind) => {
                    let mut weights: Vec<HostWeight> = Vec::with_capacity(roles.len());
                    for role in roles {
                        let tensor = checkpoint.require(role)?;
                        let weight = quantize::round_to_nearest(&tensor, format, kind)?;
                        if stored_kind(role, kind) == kind {
                            hub.weight(&weight)?;
                        } else {
                            hub.bf16(&quantize::values(&tensor)?)?;
                        }
                        weights.push(weight);
                        done += tensor.bytes.len() as u64;
                    }
                    let fused = HostWeight::concat_rows(weights)?;
                    let packed = modelprofile_kernels::pack(&fused)?;
                    file.entry(name, packed.spec.kind.into(), packed.spec.n, packed.spec.k, &packed.bytes)?;
                }
                Part::Vector(name, roles) => {
                    let mut values = Vec::new();
                    for role in roles {
                        let tensor = checkpoint.require(role)?;
                        let part = quantize::vector(&tensor)?;
                        hub.vector(&part)?;
                        values.extend(part);
                        done += tensor.bytes.len() as u64;
                    }
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    file.entry(name, EntryKind::F32, 1, values.len(), &bytes)?;
                }
            }
        }
    }
    hub.finish()?;
    write_json(&directory.join("config.json"), &tensors::config_json(checkpoint.config(), format))?;
    file.align(LAYER_ALIGNMENT)?;
    let (sha256, bytes, entries) = file.finish()?;
    progress(Progress { done: total, total, activity: String::new() });
    let manifest = Manifest {
        version: FORMAT_VERSION,
        key: key.to_owned(),
        source: checkpoint.name().to_owned(),
        revision: checkpoint.revision().to_owned(),
        license: checkpoint.licence().map(str::to_owned),
        format: format.canonical(),
        sha256,
        bytes,
        entries,
    };
    write_json(&directory.join(store::MANIFEST), &manifest)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| EngineError::Artifact { path: path.display().to_string(), message: e.to_string() })?;
    let io = |e| EngineError::io(path, e);
    let mut out = File::create(path).map_err(io)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(io)
}

/// Embedding and output layer stay BF16 for other tools, whatever the backend packs.
fn stored_kind(role: Role, kind: WeightKind) -> WeightKind {
    match role {
        Role::Embedding | Role::Output => WeightKind::Bf16,
        _ => kind,
    }
}

/// The tensor's name in a Hugging Face checkpoint; without `.weight` for the linear layers, whose parts get suffixes.
fn hub_name(role: Role) -> String {
    let layer = |index: usize, name: &str| format!("model.layers.{index}.{name}");
    match role {
        Role::Embedding => "model.embed_tokens".into(),
        Role::Output => "lm_head".into(),
        Role::FinalNorm => "model.norm.weight".into(),
        Role::AttentionNorm(i) => layer(i, "input_layernorm.weight"),
        Role::Query(i) => layer(i, "self_attn.q_proj"),
        Role::Key(i) => layer(i, "self_attn.k_proj"),
        Role::Value(i) => layer(i, "self_attn.v_proj"),
        Role::QueryBias(i) => layer(i, "self_attn.q_proj.bias"),
        Role::KeyBias(i) => layer(i, "self_attn.k_proj.bias"),
        Role::ValueBias(i) => layer(i, "self_attn.v_proj.bias"),
        Role::QueryNorm(i) => layer(i, "self_attn.q_norm.weight"),
        Role::KeyNorm(i) => layer(i, "self_attn.k_norm.weight"),
        Role::AttentionOutput(i) => layer(i, "self_attn.o_proj"),
        Role::MlpNorm(i) => layer(i, "post_attention_layernorm.weight"),
        Role::Gate(i) => layer(i, "mlp.gate_proj"),
        Role::Up(i) => layer(i, "mlp.up_proj"),
        Role::Down(i) => layer(i, "mlp.down_proj"),
    }
}

/// Writes aligned entries and hashes what it writes.
struct PackedWriter {
    path: std::path::PathBuf,
    out: BufWriter<File>,
    hash: Sha256,
    position: u64,
    entries: Vec<Entry>,
}

impl PackedWriter {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| EngineError::io(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            out: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            position: 0,
            entries: Vec::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| EngineError::io(&self.path, e))
    }

    fn align(&mut self, alignment: u64) -> Result<()> {
        let gap = self.position.next_multiple_of(alignment) - self.position;
        self.write(&vec![0; gap as usize])
    }

    fn entry(&mut self, name: String, kind: EntryKind, n: usize, k: usize, bytes: &[u8]) -> Result<()> {
        self.align(TENSOR_ALIGNMENT)?;
        self.entries.push(Entry { name, kind, n, k, offset: self.position, len: bytes.len() as u64 });
        self.write(bytes)
    }

    fn finish(mut self) -> Result<(String, u64, Vec<Entry>)> {
        let io = |e| EngineError::io(&self.path, e);
        self.out.flush().map_err(io)?;
        self.out.get_ref().sync_all().map_err(io)?;
        Ok((store::hex(&self.hash.finalize()), self.position, self.entries))
    }
}
