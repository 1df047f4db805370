//! Writing GGUF files: a checkpoint, quantized as llama.cpp's files are.
//!
//! ```text
//! Checkpoint --mix--> a type per tensor --+
//!            --metadata, vocabulary-------+--> export --quants, row by row--> writer --> FILE.gguf
//! Importance (imatrix file, calibration) -+
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `export` | [`export`]: plans all tensors, then quantizes and writes them one by one |
//! | `mix` | [`FileType`], and which tensor takes which type in it |
//! | `quants` | the block quantizers |
//! | `importance` | [`Importance`]: what an error in each column costs; llama.cpp's imatrix files |
//! | `metadata`, `vocabulary` | the key-value section; tokenizers of Hugging Face directories |
//! | `writer` | the container |
//!
//! Reading GGUF files is part of [`crate::checkpoint`].

mod export;
mod importance;
mod metadata;
mod mix;
mod quants;
mod vocabulary;
mod writer;

pub use export::{Options, Summary, check, export};
pub use importance::Importance;
pub use mix::FileType;
