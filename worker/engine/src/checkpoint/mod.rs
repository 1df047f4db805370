//! Reading checkpoints: Hugging Face directories and GGUF files, memory-mapped, parsed as hostile input.

use half::{bf16, f16};

use crate::{ModelConfig, Result};

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

/// A tensor in a mapped checkpoint. Bounds were checked when the checkpoint was opened.
#[derive(Clone, Copy, Debug)]
pub struct SourceTensor<'a> {
    /// Name in the file, for messages.
    pub name: &'a str,
    /// File, for messages.
    pub file: &'a str,
    /// Rows (output features); 1 for vectors.
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Element type.
    pub dtype: SourceDtype,
    /// Row-major bytes, exactly `rows * row_bytes`.
    pub bytes: &'a [u8],
}

/// The tensors of one decoder layer and of the model, by role: names differ between families and containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
