//! `bench`: prefill and decode throughput by batch size, beside the machine's own limits measured in the same run.
//!
//! | module | what it holds |
//! |---|---|
//! | `plan` | `--plan`: the same steps on hardware that is not at hand, modelled |
//! | `trace` | `--trace`: what each kernel of a step took |
//! | this one | the measurements |

#[cfg(feature = "cuda")]
mod plan;
mod trace;

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{
    ModelConfig, WeightFormat,
    artifact::Store,
    checkpoint::Checkpoint,
    model::{Forget, Model, ProfileWeights},
    trace::Traced,
};
use modelprofile_kernels::{
    BLOCK_TOKENS, Backend, Device, KvFormat, KvScales, SequenceSpan, StepPlan, cpu::probe::Machine,
};

use super::{Devices, Wish, on_device};
use trace::Trace;

/// Options of `bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// A Hugging Face directory or a GGUF file.
    #[cfg_attr(feature = "cuda", arg(long, value_name = "PATH", required_unless_present = "file"))]
    #[cfg_attr(not(feature = "cuda"), arg(long, value_name = "PATH", required = true))]
    model: Option<PathBuf>,
    /// Formats to measure.
    #[arg(long, value_delimiter = ',', default_value = "BF16,FP8,INT8,Q4_1", value_parser = super::parse_format)]
    format: Vec<WeightFormat>,
    /// Prompt lengths to prefill.
    #[arg(long, value_delimiter = ',', default_value = "512,2048")]
    prefill: Vec<usize>,
    /// Batch sizes to decode.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    batch: Vec<usize>,
    /// Tokens decoded per sequence and measurement.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Tokens in the cache of each sequence before decoding.
    #[arg(long, default_value_t = 256)]
    context: usize,
    /// Rows of a prefill step.
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    /// Print the machine's limits and the size of the first format as one line of JSON, and stop.
    #[arg(long)]
    limits: bool,
    /// Time each kernel, too: print what a step of each measurement goes to, beside what bounds it, and write the kernels of the
    /// last four steps of each to FILE, which https://ui.perfetto.dev opens. On the CPU.
    #[arg(long, value_name = "FILE", conflicts_with = "limits")]
    #[cfg_attr(feature = "cuda", arg(conflicts_with = "plan"))]
    trace: Option<PathBuf>,
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    plan: plan::PlanOptions,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
}

/// What is measured of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// A prompt of so many tokens.
    Prefill(usize),
    /// So many sequences, a token each.
    Decode(usize),
}

/// A model on a device with a cache large enough for the largest case.
struct Rig<B: Backend> {
    device: B,
    model: Model<B>,
    kv: <B as Device>::Kv,
    vocab: usize,
}

impl<B: Backend> Rig<B> {
    fn new(device: B, bench: &Bench, config: &ModelConfig) -> anyhow::Result<Self> {
        let layout = config.kv_layout(KvFormat::Bf16);
        let longest = bench.prefill.iter().copied().max().unwrap_or(0);
        let batch = bench.batch.iter().copied().max().unwrap_or(1);
        let sequence = (bench.context + bench.tokens).div_ceil(BLOCK_TOKENS);
        let blocks = (batch * sequence).max(longest.div_ceil(BLOCK_TOKENS));
        let kv = device.kv(layout, &KvScales::unit(&layout), blocks, blocks)?;
        let model = Model::new(&device, config, bench.chunk.max(batch))?;
        Ok(Self { device, model, kv, vocab: config.vocab })
    }

    /// Computes `rows` tokens at `position` for each of `batch` sequences, and what follows the last row of each: drawn where the
    /// device draws, else its logits on the host.
    fn step(
        &mut self,
        weights: &ProfileWeights<B>,
        batch: usize,
        blocks: usize,
        position: usize,
        rows: usize,
    ) -> anyhow::Result<()> {
        let plan = StepPlan {
            // Spread over the vocabulary, so that the embedding's rows are not all in the cache.
            tokens: (0..batch * rows).map(|i| ((i * 7919 + position * 104_729) % self.vocab) as u32).collect(),
            sequences: (0..batch)
                .map(|s| SequenceSpan {
                    first_row: s * rows,
                    rows,
                    first_position: position,
                    blocks: (s * blocks..(s + 1) * blocks).map(|b| b as u32).collect(),
                })
                .collect(),
            logit_rows: (0..batch).map(|s| s * rows + rows - 1).collect(),
        };
        self.model.step(&mut self.device, weights, &[], &mut self.kv, &plan, &mut Forget)?;
        Ok(())
    }

    /// Tokens per second of one prompt, computed in chunks; best of three.
    fn prefill(&mut self, weights: &ProfileWeights<B>, tokens: usize, chunk: usize) -> anyhow::Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            for position in (0..tokens).step_by(chunk) {
                self.step(weights, 1, tokens.div_ceil(BLOCK_TOKENS), position, chunk.min(tokens - position))?;
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(tokens as f64 / best)
    }

    /// Tokens per second of a batch of decodes; median step.
    fn decode(&mut self, weights: &ProfileWeights<B>, batch: usize, bench: &Bench) -> anyhow::Result<f64> {
        let blocks = (bench.context + bench.tokens).div_ceil(BLOCK_TOKENS);
        let mut times = Vec::with_capacity(bench.tokens);
        for index in 0..bench.tokens {
            let start = Instant::now();
            self.step(weights, batch, blocks, bench.context + index, 1)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(batch as f64 / times[times.len() / 2])
    }
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.tokens > 0 && self.chunk > 0, "--tokens and --chunk must be at least 1");
        #[cfg(feature = "cuda")]
        if self.plan.plan {
            let (batch, prefill) = (&self.batch[..], &self.prefill[..]);
            let sizes = plan::Sizes { batch, context: self.context, prefill, chunk: self.chunk };
            return self.plan.run(self.model.as_deref(), &self.format, &sizes);
        }
        let chosen = self.compute.choose(&self.cache.directory(), Wish::default())?;
        on_device!(chosen, |devices| self.measure(devices))
    }

    fn measure<D: Devices>(&self, devices: &D) -> anyhow::Result<()> {
        let model = self.model.as_ref().context("--model names no checkpoint")?;
        let checkpoint = Checkpoint::open(model).context("the checkpoint cannot be read")?;
        let config = checkpoint.config();
        let store = Store::new(&self.cache.directory());
        let device = devices.open()?;
        let machine = devices.limits(&device);
        if self.limits {
            let machine = machine.context("--limits measures a CPU: run it with --device cpu")?;
            let format = *self.format.first().context("--format names no format")?;
            let artifact = store.prepare(&checkpoint, format, &mut |_| {})?;
            println!(
                "{}",
                serde_json::json!({
                    "threads": machine.threads, "read_bytes_s": machine.read_bandwidth,
                    "int8_operations_s": machine.int8_operations, "bf16_operations_s": machine.bf16_operations,
                    "linear_parameters": linear(config), "weight_bytes": artifact.weight_bytes(),
                })
            );
            return Ok(());
        }
        let Some(path) = &self.trace else {
            return self.cases(Rig::new(device, self, config)?, &store, &checkpoint, machine, &mut |_, _, _| {});
        };
        let machine = machine.with_context(|| trace::refusal(&device.name()))?;
        let mut trace = Trace::create(path, machine, self.chunk)?;
        let rig = Rig::new(Traced::new(device), self, config)?;
        self.cases(rig, &store, &checkpoint, Some(machine), &mut |format, case, device| {
            trace.add(format, case, device.take_steps());
        })?;
        trace.finish()
    }

    /// Measures every case of every format and prints a line for each; `after` sees the device behind each.
    fn cases<B: Backend>(
        &self,
        mut rig: Rig<B>,
        store: &Store,
        checkpoint: &Checkpoint,
        machine: Option<Machine>,
        after: &mut dyn FnMut(WeightFormat, Case, &mut B),
    ) -> anyhow::Result<()> {
        let config = checkpoint.config();
        match &machine {
            Some(machine) => println!(
                "machine: {} threads, {:.1} GB/s read, VNNI {:.2} TOP/s, BF16 {:.2} TFLOP/s",
                machine.threads,
                machine.read_bandwidth / 1e9,
                machine.int8_operations / 1e12,
                machine.bf16_operations / 1e12
            ),
            None => println!("machine: {}", rig.device.name()),
        }
        println!("{:<14} {:<16} {:>10} {:>22}", "format", "case", "tokens/s", "of the machine");
        let line = |format: WeightFormat, case: String, speed: f64, part: Option<(f64, &str)>| {
            let part = part.map_or(String::new(), |(part, of)| format!(" {:>11.1}% {of}", part * 100.0));
            println!("{:<14} {case:<16} {speed:>10.1}{part}", format.canonical());
        };
        for format in &self.format {
            let artifact = store.prepare(checkpoint, *format, &mut |_| {})?;
            let weights = ProfileWeights::load(&rig.device, config, &artifact)?;
            let peak = machine.map(|machine| match format {
                WeightFormat::Bf16
                | WeightFormat::Fp8
                | WeightFormat::Fp8Tensor
                | WeightFormat::Fp8Static
                | WeightFormat::Fp8Block => (machine.bf16_operations, "BF16 peak"),
                _ => (machine.int8_operations, "VNNI peak"),
            });
            for tokens in &self.prefill {
                let speed = rig.prefill(&weights, *tokens, self.chunk)?;
                // The linear layers' two operations per weight and token; attention is not counted.
                let part = peak.map(|(peak, of)| (2.0 * linear(config) * speed / peak, of));
                line(*format, format!("prefill {tokens}"), speed, part);
                after(*format, Case::Prefill(*tokens), &mut rig.device);
            }
            for batch in &self.batch {
                let speed = rig.decode(&weights, *batch, self)?;
                let bytes = artifact.weight_bytes() as f64 * speed / *batch as f64;
                let part = machine.map(|machine| (bytes / machine.read_bandwidth, "bandwidth"));
                line(*format, format!("decode x{batch}"), speed, part);
                after(*format, Case::Decode(*batch), &mut rig.device);
            }
        }
        Ok(())
    }
}

/// Weights of the linear layers.
fn linear(config: &ModelConfig) -> f64 {
    let attention = config.hidden * (2 * config.heads + 2 * config.kv_heads) * config.head_dim;
    (config.layers * (attention + 3 * config.hidden * config.intermediate)) as f64
}
