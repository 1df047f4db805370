//! The command line.

use std::path::PathBuf;

use anyhow::{Context, bail};
use modelprofile_engine::{ModelConfig, WeightFormat, ZeroPoint};
use modelprofile_roofline::ModelShape;
use modelprofile_worker::plan;

/// What to measure, and where results go.
#[derive(Debug)]
pub struct Options {
    /// Sizes for the emulated device.
    pub tiny: bool,
    /// Hardware to model, else by the device's name.
    pub hardware: Option<String>,
    /// Formats to measure.
    pub formats: Vec<Format>,
    /// Kernels alone, without steps and switches.
    pub only_kernels: bool,
    /// Layers of the model.
    pub layers: usize,
    /// Seconds after which nothing new is begun.
    pub seconds: f64,
    /// Folder of compiled kernels.
    pub kernels: Option<PathBuf>,
    /// What other programs measured here (`tests/cuda/peers.py`).
    pub peers: Option<PathBuf>,
    /// What the tests' program printed.
    pub tests: Option<PathBuf>,
    /// Where JSON goes, else standard output.
    pub json: Option<PathBuf>,
    /// Where Markdown goes, beside standard error.
    pub markdown: Option<PathBuf>,
    /// Compile the kernels into this folder and end.
    pub ship: Option<PathBuf>,
    /// For these.
    pub capabilities: Vec<(i32, i32)>,
}

/// A format and its name.
pub type Format = (&'static str, WeightFormat);

impl Options {
    /// # Errors
    /// An option that is not known or lacks its value.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self {
            tiny: false,
            hardware: None,
            formats: Self::known_formats().to_vec(),
            only_kernels: false,
            layers: 8,
            seconds: 170.0,
            kernels: None,
            peers: None,
            tests: None,
            json: None,
            markdown: None,
            ship: None,
            capabilities: vec![(9, 0)],
        };
        while let Some(option) = arguments.next() {
            if option == "--tiny" {
                (options.tiny, options.layers) = (true, 2);
                continue;
            }
            if option == "--only-kernels" {
                options.only_kernels = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--hardware" => options.hardware = Some(value),
                "--formats" => {
                    let known = |name: &str| Self::known_formats().into_iter().find(|(known, _)| *known == name);
                    let all: Option<Vec<_>> = value.split(',').map(known).collect();
                    options.formats = all.context("--formats takes names such as FP8,INT4")?;
                }
                "--layers" => options.layers = value.parse().context("--layers")?,
                "--seconds" => options.seconds = value.parse().context("--seconds")?,
                "--kernels" => options.kernels = Some(value.into()),
                "--peers" => options.peers = Some(value.into()),
                "--tests" => options.tests = Some(value.into()),
                "--json" => options.json = Some(value.into()),
                "--markdown" => options.markdown = Some(value.into()),
                "--ship" => options.ship = Some(value.into()),
                "--capability" => {
                    let one = |text: &str| -> Option<(i32, i32)> {
                        let (major, minor) = text.split_once('.')?;
                        Some((major.parse().ok()?, minor.parse().ok()?))
                    };
                    let all: Option<Vec<_>> = value.split(',').map(one).collect();
                    options.capabilities = all.context("--capability takes numbers such as 9.0,10.0")?;
                }
                _ => bail!("{option} is not known; the options stand in worker/examples/gpu-check/main.rs"),
            }
        }
        if options.layers == 0 {
            bail!("--layers must be at least 1");
        }
        Ok(options)
    }

    /// The model: layers of Llama-3.1-8B, or what the emulated device computes in seconds.
    pub fn model(&self) -> anyhow::Result<ModelConfig> {
        let mut shape = modelprofile_roofline::model("llama-3.1-8b")?;
        if self.tiny {
            shape = ModelShape {
                hidden: 256,
                intermediate: 512,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocabulary: 512,
                ..shape
            };
        }
        shape.layers = self.layers as u32;
        // One table less to pack and to copy: a step reads a few rows of the embedding, whichever it is.
        shape.tied_embeddings = true;
        Ok(plan::config(&shape))
    }

    /// The formats that can be measured.
    fn known_formats() -> [Format; 4] {
        let int4 = WeightFormat::Int4 { group: 128, zero: ZeroPoint::Minimum };
        [("FP8", WeightFormat::Fp8), ("INT4", int4), ("INT8", WeightFormat::Int8), ("BF16", WeightFormat::Bf16)]
    }

    /// Batches that decode.
    pub fn batches(&self) -> &'static [usize] {
        if self.tiny { &[1, 3] } else { &[1, 2, 4, 8, 16, 32, 64] }
    }

    /// Batches whose kernels are measured one by one.
    pub fn profiled(&self) -> &'static [usize] {
        if self.tiny { &[1] } else { &[1, 16, 64] }
    }

    /// Prompts.
    pub fn prompts(&self) -> &'static [usize] {
        if self.tiny { &[40] } else { &[512, 2048] }
    }

    /// Rows at which own kernels of group-wise weights are measured beside unpacking and cuBLASLt.
    pub fn crossover(&self) -> &'static [usize] {
        if self.tiny { &[40] } else { &[32, 48, 64, 96, 128, 192, 256, 384] }
    }

    /// Tokens in the cache of a sequence that decodes.
    pub fn context(&self) -> usize {
        if self.tiny { 20 } else { 1024 }
    }

    /// Measured steps; the median counts.
    pub fn steps(&self) -> usize {
        if self.tiny { 3 } else { 20 }
    }

    /// Rounds of each kernel.
    pub fn repeats(&self) -> usize {
        if self.tiny { 1 } else { 10 }
    }

    /// Bytes of a copy that bandwidth is measured with.
    pub fn copy_bytes(&self) -> usize {
        if self.tiny { 1 << 20 } else { 1 << 30 }
    }
}
