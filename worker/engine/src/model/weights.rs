//! One profile's weights on a device.

use modelprofile_kernels::{Device, HostTensor, Split};

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

impl<D: Device> ProfileWeights<D> {
    /// Makes an artifact's weights usable. On the CPU nothing is read yet.
    pub fn load(device: &D, config: &ModelConfig, artifact: &Artifact) -> Result<Self> {
        let weight = |name: String, split| -> Result<D::Weight> { Ok(device.weight(&artifact.weight(&name)?, split)?) };
        let &ModelConfig { heads, kv_heads, head_dim, .. } = config;
        let heads = Split::Heads { heads, kv_heads, head_dim };
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
                    qkv: weight(name("qkv"), heads)?,
                    qkv_bias: optional(name("qkv_bias"), config.qkv_bias)?,
                    query_norm: optional(name("query_norm"), config.qk_norm)?,
                    key_norm: optional(name("key_norm"), config.qk_norm)?,
                    attention_output: weight(name("attention_output"), Split::Inputs)?,
                    mlp_norm: vector(name("mlp_norm"))?,
                    gate_up: weight(name("gate_up"), Split::Halves)?,
                    down: weight(name("down"), Split::Inputs)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            embedding: weight("embedding".into(), Split::Outputs)?,
            output: (!config.tied_embeddings).then(|| weight("output".into(), Split::Outputs)).transpose()?,
            final_norm: vector("final_norm".into())?,
            layers,
        })
    }

    /// Starts reading all weights toward the device.
    pub fn prefetch(&self, device: &D) {
        for weight in [Some(&self.embedding), self.output.as_ref()].into_iter().flatten() {
            device.prefetch(weight);
        }
        for layer in &self.layers {
            layer.each(|weight| device.prefetch(weight));
        }
    }

    /// Gives back the memory of all of them: they are read again when they are used again.
    pub fn release(&self, device: &D) {
        self.release_ends(device);
        self.layers.iter().for_each(|layer| layer.release(device));
    }

    /// Gives back the memory of the embedding and the output layer.
    pub fn release_ends(&self, device: &D) {
        for weight in [Some(&self.embedding), self.output.as_ref()].into_iter().flatten() {
            device.release(weight);
        }
    }
}

impl<D: Device> LayerWeights<D> {
    fn each(&self, mut f: impl FnMut(&D::Weight)) {
        for weight in [&self.qkv, &self.attention_output, &self.gate_up, &self.down] {
            f(weight);
        }
    }

    /// Gives back the memory of this layer's weights.
    pub fn release(&self, device: &D) {
        self.each(|weight| device.release(weight));
    }
}
