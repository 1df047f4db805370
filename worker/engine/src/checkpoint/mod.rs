//! Reading checkpoints: Hugging Face directories and GGUF files, memory-mapped, parsed as hostile input.
//!
//! ```text
//! directory --config.json, *.safetensors--> hugging_face, safetensors --+
//!                                                                       +--> tensors by name --roles--> Checkpoint
//! .gguf ----metadata, tensor directory----> gguf, gguf_config ----------+
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`Checkpoint`] | open, ask for the configuration and for tensors by [`Role`] |
//! | `tensor` | [`SourceTensor`]: rows as bytes or FP32, in the Hugging Face order |
//! | `ggml` | the block formats |
//! | `take_over` | blocks taken over exactly into our own formats |
//! | `hugging_face`, `safetensors` | `config.json`, and the weight files of a directory |
//! | `gguf`, `gguf_metadata`, `gguf_config` | the container, its metadata, and the configuration in it |
//! | [`quantized`] | linear layers that a directory stores quantized: compressed-tensors, AutoAWQ, GPTQ, ModelOpt |
//! | `roles` | names and shapes of tensors by family and container |
//! | `identity` | name, licence, content hash |
//! | [`Remains`] | a checkpoint whose weight files were removed |

pub(crate) mod ggml;
pub(crate) mod gguf;
pub(crate) mod gguf_config;
mod gguf_metadata;
mod hugging_face;
mod identity;
mod open;
mod pruned;
pub mod quantized;
mod roles;
mod safetensors;
mod store;
mod take_over;
mod tensor;
#[doc(hidden)]
pub mod testing;

pub use gguf_metadata::{Metadata, Value};
pub(crate) use hugging_face::OWN_ROPE_FACTORS;
pub use open::Checkpoint;
pub use pruned::{GgufHead, Remains};
pub use quantized::{Quantization, StoredWeight};
pub use tensor::{RowMap, SourceTensor};

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum SourceDtype {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The tensors of one decoder layer and of the model, by role: names differ between families and containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Role {
    Embedding,
    FinalNorm,
    /// Absent when the embedding is tied.
    Output,
    AttentionNorm(usize),
    Query(usize),
    Key(usize),
    Value(usize),
    QueryBias(usize),
    KeyBias(usize),
    ValueBias(usize),
    QueryNorm(usize),
    KeyNorm(usize),
    AttentionOutput(usize),
    MlpNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
}
