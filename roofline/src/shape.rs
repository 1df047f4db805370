//! The dimensions of a decoder-only model, and the bytes and operations that follow from them.

use std::path::Path;

use modelprofile_api::{FieldError, KvCacheFormat, WeightFormat};
use serde::Deserialize;

use crate::fields::{self, Described, DescriptionError, above_zero};

/// Dimensions of a model of the Llama family (grouped-query attention, gated MLP).
///
/// Biases and norms are left out of all counts: they are less than a thousandth.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelShape {
    /// Name for reports.
    pub name: String,
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the MLP.
    pub intermediate: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Entries of the vocabulary.
    pub vocabulary: u32,
    /// Whether the output layer is the embedding.
    pub tied_embeddings: bool,
    /// Longest context that the checkpoint supports, in tokens.
    pub max_context_tokens: u32,
}

impl ModelShape {
    /// Reads a file of `deploy/models`, or one of the same form.
    ///
    /// # Errors
    /// The file can not be read, has unknown or missing fields, or holds numbers that are not above zero; every such
    /// field is named.
    pub fn load(path: &Path) -> Result<Self, DescriptionError> {
        fields::load(path)
    }

    /// Reads `text`; `name` stands in errors.
    ///
    /// # Errors
    /// As [`ModelShape::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, DescriptionError> {
        fields::parse(text, name)
    }

    /// All parameters.
    pub fn parameters(&self) -> u64 {
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        self.linear_parameters() + embeddings * self.embedding_parameters()
    }

    /// Parameters of the layers' matrices: what a weight format other than 16 bits applies to.
    pub fn linear_parameters(&self) -> u64 {
        let hidden = u64::from(self.hidden);
        let queries = u64::from(self.heads) * u64::from(self.head_dim);
        let keys = u64::from(self.kv_heads) * u64::from(self.head_dim);
        let attention = hidden * (2 * queries + 2 * keys);
        let mlp = 3 * hidden * u64::from(self.intermediate);
        u64::from(self.layers) * (attention + mlp)
    }

    /// Parameters of the embedding, and of the output layer.
    pub fn embedding_parameters(&self) -> u64 {
        u64::from(self.vocabulary) * u64::from(self.hidden)
    }

    /// Bytes of all weights in memory, over all accelerators of a worker. `group` is the group size of INT4 and without
    /// effect elsewhere.
    ///
    /// Embedding and output layer stay at 16 bits, but for GGUF, whose files quantize them too.
    pub fn weight_bytes(&self, format: WeightFormat, group: u32) -> u64 {
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        self.bytes(format, group, embeddings)
    }

    /// Bytes of weights that one step reads: all but the embedding, of which a step looks up single rows.
    pub fn step_weight_bytes(&self, format: WeightFormat, group: u32) -> u64 {
        self.bytes(format, group, 1)
    }

    fn bytes(&self, format: WeightFormat, group: u32, embeddings: u64) -> u64 {
        let bits = bits_per_weight(format, group);
        let embedding_bits = if is_gguf(format) { bits } else { 16.0 };
        let all =
            self.linear_parameters() as f64 * bits + (embeddings * self.embedding_parameters()) as f64 * embedding_bits;
        (all / 8.0) as u64
    }

    /// Bytes that the keys and values of one token take, over all accelerators of a worker.
    pub fn kv_bytes_per_token(&self, format: KvCacheFormat) -> u64 {
        let element = match format {
            KvCacheFormat::Bf16 | KvCacheFormat::Fp16 => 2,
            KvCacheFormat::Fp8E4m3 | KvCacheFormat::Fp8E5m2 => 1,
        };
        2 * u64::from(self.layers) * u64::from(self.kv_heads) * u64::from(self.head_dim) * element
    }

    /// Operations of the layers' matrices for one token.
    pub fn linear_flops_per_token(&self) -> f64 {
        2.0 * self.linear_parameters() as f64
    }

    /// Operations of the output layer for one token that is sampled.
    pub fn head_flops_per_token(&self) -> f64 {
        2.0 * self.embedding_parameters() as f64
    }

    /// Operations of attention for one token and one token of its context.
    pub fn attention_flops(&self) -> f64 {
        4.0 * f64::from(self.layers) * f64::from(self.heads) * f64::from(self.head_dim)
    }
}

/// Bits of one weight with its share of scales.
pub fn bits_per_weight(format: WeightFormat, group: u32) -> f64 {
    match format {
        WeightFormat::Bf16 | WeightFormat::Fp16 => 16.0,
        WeightFormat::Fp8 | WeightFormat::Int8 => 8.0,
        // A 16-bit scale and a 16-bit minimum for each group.
        WeightFormat::Int4 => 4.0 + 32.0 / f64::from(group.max(1)),
        WeightFormat::Q8_0 => 8.5,
        WeightFormat::Q6K => 6.5625,
        // The K mixtures keep some matrices finer; these are the usual averages.
        WeightFormat::Q5KM => 5.7,
        WeightFormat::Q4KM => 4.85,
        WeightFormat::Q4_1 => 5.0,
        WeightFormat::Q4_0 => 4.5,
    }
}

fn is_gguf(format: WeightFormat) -> bool {
    use WeightFormat::{Q4_0, Q4_1, Q4KM, Q5KM, Q6K, Q8_0};
    matches!(format, Q8_0 | Q6K | Q5KM | Q4KM | Q4_1 | Q4_0)
}

impl Described for ModelShape {
    fn faults(&self) -> Vec<FieldError> {
        let mut faults = above_zero(&[
            ("layers", self.layers.into()),
            ("hidden", self.hidden.into()),
            ("intermediate", self.intermediate.into()),
            ("heads", self.heads.into()),
            ("kvHeads", self.kv_heads.into()),
            ("headDim", self.head_dim.into()),
            ("vocabulary", self.vocabulary.into()),
            ("maxContextTokens", self.max_context_tokens.into()),
        ]);
        if self.kv_heads > 0 && !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide heads ({})", self.kv_heads, self.heads);
            faults.push(FieldError::new("kvHeads", message));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/models");

    fn shape(file: &str) -> ModelShape {
        ModelShape::load(&Path::new(DIR).join(file)).unwrap()
    }

    #[test]
    fn parameter_counts_are_those_of_the_model_cards() {
        let tens_of_millions = |file| shape(file).parameters() / 10_000_000;
        assert_eq!(tens_of_millions("llama-3.1-8b.yaml"), 802);
        assert_eq!(tens_of_millions("llama-3.3-70b.yaml"), 7055);
        assert_eq!(tens_of_millions("qwen2.5-32b.yaml"), 3276);
        assert_eq!(shape("smollm2-135m.yaml").parameters() / 1_000_000, 134);
    }

    #[test]
    fn bytes_are_those_that_a_hand_calculation_gives() {
        let llama = shape("llama-3.1-8b.yaml");
        let tens_of_mb = |bytes: u64| bytes / 10_000_000;
        assert_eq!(tens_of_mb(llama.step_weight_bytes(WeightFormat::Bf16, 128)), 1500);
        assert_eq!(tens_of_mb(llama.step_weight_bytes(WeightFormat::Fp8, 128)), 802);
        assert_eq!(tens_of_mb(llama.step_weight_bytes(WeightFormat::Int4, 128)), 475);
        assert_eq!(tens_of_mb(llama.weight_bytes(WeightFormat::Fp8, 128)), 908);
        assert_eq!(llama.kv_bytes_per_token(KvCacheFormat::Bf16), 128 << 10);
        assert_eq!(shape("llama-3.3-70b.yaml").kv_bytes_per_token(KvCacheFormat::Fp8E4m3), 160 << 10);
    }

    #[test]
    fn all_dimensions_that_make_no_sense_are_named_at_once() {
        let text = "{name: x, layers: 0, hidden: 8, intermediate: 8, heads: 5, kvHeads: 2, headDim: 4, vocabulary: 0, \
                    tiedEmbeddings: false, maxContextTokens: 1}";
        let error = ModelShape::parse(text, "m.yaml").unwrap_err().to_string();
        let fields: Vec<_> = error.lines().map(|line| line.split(':').nth(1).unwrap().trim()).collect();
        assert_eq!(fields, ["layers", "vocabulary", "kvHeads"]);
    }
}
