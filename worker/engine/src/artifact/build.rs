//! Quantizing a checkpoint into a packed file, tensor by tensor or layer by layer: peak memory is the codes of one fused
//! tensor, or one layer where a method looks at whole layers, not the model; and what is written meanwhile, at most 16 MiB of
//! each file.
//!
//! ```text
//! rows ──> threads round them ──> threads pack panels ──> packed file      each file is written and hashed by threads of
//!                           └───> threads pack words ───> interchange file its own, beside the next rows
//! ```

use std::{fs::File, io::Write, path::Path, sync::Arc};

use modelprofile_kernels::{HostWeight, Stack, WeightKind};

use super::{
    FORMAT_VERSION, Manifest, Progress, config, digest::file_sha256, journal::Journal, packed::PackedWriter, store,
    stream::Synced, tensors,
};
use crate::{
    EngineError, Result,
    checkpoint::{Checkpoint, Role},
    interchange,
    quantize::{self, Recipe},
};

/// Layers start at a page, so that one layer's pages can be released without touching its neighbours'.
const LAYER_ALIGNMENT: u64 = 4096;

/// A method that looks at whole layers: asked for each in turn.
pub(crate) trait Layers {
    /// Quantizes a layer; `progress` gets the share that is done.
    fn layer(&mut self, index: usize, progress: &mut dyn FnMut(f64)) -> Result<quantize::QuantizedLayer>;
    /// What a later run needs to go on after the layers so far.
    fn state(&self) -> &[f32];
    /// Takes such a state up; `false` when it does not fit.
    fn resume(&mut self, state: Vec<f32>) -> bool;
}

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
fn parts(checkpoint: &Checkpoint, recipe: Recipe) -> Vec<(String, Vec<Part>)> {
    let config = checkpoint.config();
    let output = recipe.format.output_kind(config.hidden);
    let mut head = vec![
        Part::Weight("embedding".into(), vec![Role::Embedding], output),
        Part::Vector("final_norm".into(), vec![Role::FinalNorm]),
    ];
    if !config.tied_embeddings {
        head.push(Part::Weight("output".into(), vec![Role::Output], output));
    }
    let mut groups = vec![("quantizing the embedding".to_owned(), head)];
    let kind = |inputs: usize| recipe.kind(inputs);
    let (hidden, heads) = (config.hidden, config.heads * config.head_dim);
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let mut parts = vec![
            Part::Vector(name("attention_norm"), vec![Role::AttentionNorm(layer)]),
            Part::Weight(name("qkv"), vec![Role::Query(layer), Role::Key(layer), Role::Value(layer)], kind(hidden)),
        ];
        if config.qkv_bias {
            let roles = vec![Role::QueryBias(layer), Role::KeyBias(layer), Role::ValueBias(layer)];
            parts.push(Part::Vector(name("qkv_bias"), roles));
        }
        if config.qk_norm {
            parts.push(Part::Vector(name("query_norm"), vec![Role::QueryNorm(layer)]));
            parts.push(Part::Vector(name("key_norm"), vec![Role::KeyNorm(layer)]));
        }
        parts.push(Part::Weight(name("attention_output"), vec![Role::AttentionOutput(layer)], kind(heads)));
        parts.push(Part::Vector(name("mlp_norm"), vec![Role::MlpNorm(layer)]));
        parts.push(Part::Weight(name("gate_up"), vec![Role::Gate(layer), Role::Up(layer)], kind(hidden)));
        parts.push(Part::Weight(name("down"), vec![Role::Down(layer)], kind(config.intermediate)));
        groups.push((format!("quantizing layer {} of {}", layer + 1, config.layers), parts));
    }
    groups
}

/// Writes the files of an artifact into `directory`, all synced to disk. A build of the same key that was killed there is
/// gone on with. `threads` round and pack; the files' threads, which mostly wait, come on top.
///
/// # Errors
/// A malformed tensor (NaN, infinity) by name, a shape that the format cannot hold, or a full disk.
pub(crate) fn build(
    directory: &Path,
    key: &str,
    checkpoint: &Checkpoint,
    recipe: Recipe,
    threads: usize,
    mut layers: Option<&mut dyn Layers>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    quantize::admits(checkpoint, recipe)?;
    let mut plan = tensors::TensorPlan::new(recipe.format);
    for (role, kind) in parts(checkpoint, recipe).iter().flat_map(|(_, parts)| parts).flat_map(Part::roles) {
        let (rows, cols) = role.shape(checkpoint.config());
        match kind {
            Some(kind) => plan.weight(&hub_name(role), stored_kind(role, kind), rows, cols),
            None => plan.vector(&hub_name(role), rows * cols),
        }
    }
    let mut writer = Writer::open(directory, key, checkpoint, recipe, threads, plan, &mut layers)?;
    let groups = parts(checkpoint, recipe);
    let count = groups.len();
    let total = Role::all(checkpoint.config()).into_iter().map(|role| checkpoint.stored_bytes(role)).sum();
    let mut done = 0;
    for (index, (activity, parts)) in groups.into_iter().enumerate() {
        let roles = || parts.iter().flat_map(Part::roles).map(|(role, _)| role);
        let bytes: u64 = roles().map(|role| checkpoint.stored_bytes(role)).sum();
        if index < writer.groups {
            done += bytes;
            continue;
        }
        progress(Progress { done, total, activity: activity.clone() });
        // The first group is the model's ends, which no method looks at.
        let layer = match (&mut layers, index.checked_sub(1)) {
            (Some(layers), Some(layer)) => layers.layer(layer, &mut |share| {
                let within = (bytes as f64 * share.clamp(0.0, 1.0)) as u64;
                progress(Progress { done: done + within, total, activity: activity.clone() });
            })?,
            _ => quantize::QuantizedLayer::default(),
        };
        writer.group(parts, layer, &mut |bytes| {
            progress(Progress { done: done + bytes, total, activity: activity.clone() });
        })?;
        done += bytes;
        if index + 1 < count {
            writer.commit(index + 1, layers.as_ref().map(|layers| layers.state()))?;
        }
    }
    writer.finish(count)?;
    progress(Progress { done: total, total, activity: String::new() });
    Ok(())
}

/// The files of an artifact under construction.
struct Writer<'a> {
    directory: &'a Path,
    key: &'a str,
    checkpoint: &'a Checkpoint,
    recipe: Recipe,
    threads: usize,
    packed: PackedWriter,
    hub: tensors::TensorWriter,
    /// Groups that an earlier build wrote.
    groups: usize,
}

impl<'a> Writer<'a> {
    /// New files, or those of a killed build cut back to what is whole.
    fn open(
        directory: &'a Path,
        key: &'a str,
        checkpoint: &'a Checkpoint,
        recipe: Recipe,
        threads: usize,
        plan: tensors::TensorPlan,
        layers: &mut Option<&mut dyn Layers>,
    ) -> Result<Self> {
        let (packed_path, hub_path) = (directory.join(store::PACKED), directory.join("model.safetensors"));
        let usable = |state: Option<Vec<f32>>, layers: &mut Option<&mut dyn Layers>| match (layers, state) {
            (None, None) => true,
            (Some(layers), Some(state)) => layers.resume(state),
            _ => false,
        };
        if let Some((journal, state)) = Journal::read(directory, key)
            && usable(state, layers)
        {
            tracing::info!(groups = journal.groups, "going on with a build that was interrupted");
            // Both are read again, for their hashes.
            let (packed, hub) = std::thread::scope(|scope| {
                let io = |e| EngineError::io(&packed_path, e);
                let read = || PackedWriter::resume(&packed_path, journal.packed, journal.entries);
                let packed = std::thread::Builder::new().spawn_scoped(scope, read).map_err(io)?;
                let hub = plan.resume(&hub_path, journal.tensors, threads);
                let ended = |_| io(std::io::Error::other("the thread that read it has panicked"));
                Ok::<_, EngineError>((packed.join().map_err(ended)??, hub?))
            })?;
            return Ok(Self { directory, key, checkpoint, recipe, threads, packed, hub, groups: journal.groups });
        }
        let (packed, hub) = (PackedWriter::create(&packed_path)?, plan.create(&hub_path, threads)?);
        Ok(Self { directory, key, checkpoint, recipe, threads, packed, hub, groups: 0 })
    }

    /// Writes a group: what the method made of it, and the rest rounded to the nearest. `progress` gets the bytes read.
    fn group(
        &mut self,
        parts: Vec<Part>,
        mut layer: quantize::QuantizedLayer,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut done = 0;
        self.packed.align(LAYER_ALIGNMENT)?;
        for part in parts {
            match part {
                Part::Weight(name, roles, kind) => {
                    let mut weights: Vec<Arc<HostWeight>> = Vec::new();
                    for role in roles {
                        let parts = match layer.weights.remove(&role) {
                            Some(weight) => vec![Arc::new(weight)],
                            None => quantize::linear(self.checkpoint, role, self.recipe, kind, self.threads)?,
                        };
                        if stored_kind(role, kind) == kind {
                            self.hub.weight(&parts)?;
                        } else {
                            self.hub.bf16(&self.checkpoint.require(role)?)?;
                        }
                        weights.extend(parts);
                        done += self.checkpoint.stored_bytes(role);
                        self.checkpoint.release(role);
                        progress(done);
                    }
                    let stack = Stack::new(weights.iter().map(|part| &**part).collect())?;
                    self.packed.weight(name, &stack, self.threads)?;
                }
                Part::Vector(name, roles) => {
                    let mut values = Vec::new();
                    for role in roles {
                        let tensor = self.checkpoint.require(role)?;
                        let part = match layer.vectors.remove(&role) {
                            Some(vector) => vector,
                            None => quantize::vector(&tensor)?,
                        };
                        self.hub.vector(&part)?;
                        values.extend(part);
                        done += tensor.bytes.len() as u64;
                    }
                    self.packed.vector(name, &values)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the groups so far the ones that a later build goes on from, as soon as they are on disk: the next group does not
    /// wait for it, unless there is a state, which changes with it.
    fn commit(&mut self, groups: usize, state: Option<&[f32]>) -> Result<()> {
        let (packed, entries) = self.packed.so_far();
        let journal = Journal {
            key: self.key.to_owned(),
            groups,
            packed,
            entries: entries.to_vec(),
            tensors: self.hub.so_far(),
            state: None,
            sha256: String::new(),
        };
        let Some(state) = state else {
            let directory = self.directory.to_owned();
            return self.sync(&Synced::all(2, move || journal.write(&directory, None)));
        };
        let (done, waits) = std::sync::mpsc::channel();
        // Nobody waits any more if the other file failed.
        let told = move || {
            // Whoever waited may be gone.
            let _ = done.send(());
            Ok(())
        };
        self.sync(&Synced::all(2, told))?;
        match waits.recv() {
            Ok(()) => journal.write(self.directory, Some(state)),
            Err(_) => self.packed.end().and(self.hub.end()),
        }
    }

    fn sync(&mut self, then: &Arc<Synced>) -> Result<()> {
        self.hub.sync(then)?;
        self.packed.sync(then)
    }

    fn finish(mut self, groups: usize) -> Result<()> {
        let config = config::config_json(self.checkpoint.config(), self.recipe);
        write_json(&self.directory.join("config.json"), &config)?;
        interchange::companions(self.checkpoint, self.directory)?;
        self.packed.align(LAYER_ALIGNMENT)?;
        // The other file goes to disk meanwhile.
        self.hub.sync(&Synced::all(1, || Ok(())))?;
        let (sha256, bytes, entries) = self.packed.finish()?;
        let [config, tensors] = store::HUB_FILES.map(str::to_owned);
        let hub = self.hub.finish()?;
        let files = [(config.clone(), file_sha256(&self.directory.join(config))?), (tensors, hub)].into();
        let manifest = Manifest {
            version: FORMAT_VERSION,
            key: self.key.to_owned(),
            source: self.checkpoint.name().to_owned(),
            revision: self.checkpoint.revision().to_owned(),
            license: self.checkpoint.licence().map(str::to_owned),
            format: self.recipe.canonical(),
            source_quantization: quantize::BlockTypes::requantized(self.checkpoint, self.recipe),
            sha256,
            bytes,
            files,
            entries,
        };
        Journal::remove(self.directory, groups - 1)?;
        write_json(&self.directory.join(store::MANIFEST), &manifest)
    }
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
