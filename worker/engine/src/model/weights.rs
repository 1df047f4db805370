//! One profile's weights on a device, and what a step takes them from.

use modelprofile_kernels::{Device, HostTensor, Presence, Split};

use crate::{ModelConfig, Result, artifact::Artifact};

/// Weights of one decoder layer. Norm gains are `[1, width]`.
#[allow(missing_docs)]
pub struct LayerWeights<D: Device> {
    pub attention_norm: D::Buffer,
    /// Q, K and V as one product.
    pub qkv: D::Weight,
    pub qkv_bias: Option<D::Buffer>,
    pub query_norm: Option<D::Buffer>,
    pub key_norm: Option<D::Buffer>,
    pub attention_output: D::Weight,
    pub mlp_norm: D::Buffer,
    /// Gate and up as one product, `[gate; up]`.
    pub gate_up: D::Weight,
    pub down: D::Weight,
}

/// All weights of a profile. Norms belong to the profile, because methods that rescale activations fold into them.
///
/// Its *parts* are what changes places at once when a switch goes layer by layer: each layer, then the embedding, then the output
/// layer if that is another. They are made in this order, so that they lie behind each other in a device's memory.
pub struct ProfileWeights<D: Device> {
    /// `[vocab, hidden]`, also the output layer when [`Self::output`] is `None`.
    pub embedding: D::Weight,
    /// `[vocab, hidden]` of an untied output layer.
    pub output: Option<D::Weight>,
    /// Gain of the last norm.
    pub final_norm: D::Buffer,
    /// Layers in order.
    pub layers: Vec<LayerWeights<D>>,
}

/// What a step takes each part from: one profile, or two while a switch goes on. All profiles have one residual stream and one
/// KV cache, so that a layer of the one may follow a layer of the other.
pub struct StepWeights<'a, D: Device> {
    pub(super) embedding: &'a D::Weight,
    pub(super) layers: Vec<&'a LayerWeights<D>>,
    pub(super) final_norm: &'a D::Buffer,
    pub(super) output: &'a D::Weight,
}

impl<'a, D: Device> StepWeights<'a, D> {
    /// The parts of `new` that `is_taken` names, the others of `old`.
    pub fn mixed(new: &'a ProfileWeights<D>, is_taken: &dyn Fn(usize) -> bool, old: &'a ProfileWeights<D>) -> Self {
        let of = |part| if is_taken(part) { new } else { old };
        let last = of(new.parts() - 1);
        Self {
            embedding: &of(new.layers.len()).embedding,
            layers: (0..new.layers.len()).map(|part| &of(part).layers[part]).collect(),
            final_norm: &last.final_norm,
            output: last.output.as_ref().unwrap_or(&last.embedding),
        }
    }
}

impl<'a, D: Device> From<&'a ProfileWeights<D>> for StepWeights<'a, D> {
    fn from(weights: &'a ProfileWeights<D>) -> Self {
        Self::mixed(weights, &|_| true, weights)
    }
}

/// How a weight of this name is divided over the devices of one model.
fn split(config: &ModelConfig, name: &str) -> Split {
    let &ModelConfig { heads, kv_heads, head_dim, .. } = config;
    match name.rsplit('.').next().unwrap_or(name) {
        "qkv" => Split::Heads { heads, kv_heads, head_dim },
        "gate_up" => Split::Halves,
        "attention_output" | "down" => Split::Inputs,
        _ => Split::Outputs,
    }
}

/// Bytes that a vector takes at most: devices align buffers.
fn vector_bytes(width: usize) -> u64 {
    (width * size_of::<f32>()).next_multiple_of(256) as u64
}

impl<D: Device> ProfileWeights<D> {
    /// Makes an artifact's weights usable. On the CPU nothing is read yet.
    pub fn load(device: &D, config: &ModelConfig, artifact: &Artifact) -> Result<Self> {
        let weight =
            |name: String| -> Result<D::Weight> { Ok(device.weight(&artifact.weight(&name)?, split(config, &name))?) };
        let vector = |name: String| -> Result<D::Buffer> {
            let data = artifact.vector(&name)?;
            Ok(device.upload(&HostTensor { rows: 1, width: data.len(), data })?)
        };
        let optional = |name: String, wanted: bool| wanted.then(|| vector(name)).transpose();
        let layers = (0..config.layers)
            .map(|layer| {
                let name = |part: &str| format!("layers.{layer}.{part}");
                Ok(LayerWeights {
                    attention_norm: vector(name("attention_norm"))?,
                    qkv: weight(name("qkv"))?,
                    qkv_bias: optional(name("qkv_bias"), config.qkv_bias)?,
                    query_norm: optional(name("query_norm"), config.qk_norm)?,
                    key_norm: optional(name("key_norm"), config.qk_norm)?,
                    attention_output: weight(name("attention_output"))?,
                    mlp_norm: vector(name("mlp_norm"))?,
                    gate_up: weight(name("gate_up"))?,
                    down: weight(name("down"))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            embedding: weight("embedding".into())?,
            output: (!config.tied_embeddings).then(|| weight("output".into())).transpose()?,
            final_norm: vector("final_norm".into())?,
            layers,
        })
    }

    /// Bytes of an artifact's weights on the device while they are used; on a device without a memory of its own those of the
    /// mapped file.
    ///
    /// # Errors
    /// A weight that the device cannot hold.
    pub fn bytes(device: &D, config: &ModelConfig, artifact: &Artifact) -> Result<u64> {
        if device.host_bandwidth().is_none() {
            return Ok(artifact.weight_bytes());
        }
        artifact
            .specs()
            .try_fold(0, |all, (name, spec)| Ok(all + device.weight_bytes(&spec, split(config, name))? as u64))
    }

    /// Bytes of the vectors of a profile, which are on the device whether it is active or not.
    pub fn vector_bytes(config: &ModelConfig) -> u64 {
        let heads = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let bias = if config.qkv_bias { vector_bytes(heads) } else { 0 };
        let head_norms = if config.qk_norm { 2 * vector_bytes(config.head_dim) } else { 0 };
        let layer = 2 * vector_bytes(config.hidden) + bias + head_norms;
        config.layers as u64 * layer + vector_bytes(config.hidden)
    }

    /// Starts reading all weights toward the device.
    pub fn prefetch(&self, device: &D) {
        let layers = self.layers.len();
        (layers..self.parts()).chain(0..layers).for_each(|part| self.prefetch_part(device, part));
    }

    /// Gives back the memory of all of them: they are read again when they are used again.
    pub fn release(&self, device: &D) {
        (0..self.parts()).for_each(|part| self.release_part(device, part));
    }

    /// Gives back the memory of the embedding and the output layer.
    pub fn release_ends(&self, device: &D) {
        (self.layers.len()..self.parts()).for_each(|part| self.release_part(device, part));
    }

    /// Number of parts.
    pub fn parts(&self) -> usize {
        self.layers.len() + 1 + usize::from(self.output.is_some())
    }

    fn each_of(&self, part: usize, mut f: impl FnMut(&D::Weight)) {
        match part.checked_sub(self.layers.len()) {
            None => self.layers[part].each(f),
            Some(0) => f(&self.embedding),
            Some(_) => self.output.iter().for_each(f),
        }
    }

    /// Starts reading a part's weights toward the device, as far as it has room for them.
    pub fn prefetch_part(&self, device: &D, part: usize) {
        self.each_of(part, |weight| device.prefetch(weight));
    }

    /// Gives back the memory of a part's weights.
    pub fn release_part(&self, device: &D, part: usize) {
        self.each_of(part, |weight| device.release(weight));
    }

    /// Where a part's weights are: where the one is that is furthest from being used.
    pub fn presence_of_part(&self, device: &D, part: usize) -> Presence {
        let mut presence = Presence::Here;
        self.each_of(part, |weight| presence = presence.min(device.presence(weight)));
        presence
    }
}

impl<D: Device> LayerWeights<D> {
    fn each(&self, f: impl FnMut(&D::Weight)) {
        [&self.qkv, &self.attention_output, &self.gate_up, &self.down].into_iter().for_each(f);
    }

    /// Gives back the memory of this layer's weights.
    pub fn release(&self, device: &D) {
        self.each(|weight| device.release(weight));
    }
}
