//! `export`: a checkpoint in the formats that other engines read.

mod gguf;
mod hub;

use clap::{Args, Subcommand};

/// Options of `export`.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    /// One GGUF file, for llama.cpp and what is built on it.
    Gguf(gguf::Gguf),
    /// A directory of safetensors, for vLLM, transformers, TensorRT-LLM and what else reads hub checkpoints.
    Hub(hub::Hub),
}

impl Export {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.format {
            Format::Gguf(command) => command.run(),
            Format::Hub(command) => command.run(),
        }
    }
}
