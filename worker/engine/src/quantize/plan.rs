//! What quantizing will take, before it starts: operations counted from the model's shape, divided by speeds that are measured
//! on the device in a second, and bytes of what is in memory at the worst moment.
//!
//! The counts follow the methods' code (`pipeline.rs`); what they leave out (rotary embedding, norms, reading the
//! files) is small beside them.

use std::time::Instant;

use half::bf16;
use modelprofile_kernels::{Calibrate, HostTensor, HostWeight, Store, dense};

use super::{Recipe, dense::Stage, pipeline::STAGES, runner::resident};
use crate::{Method, ModelConfig, Result, WeightFormat};

/// How fast a device and its host are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// Operations per second of a BF16 product (the forward pass).
    pub forward: f64,
    /// Operations per second of Gram matrices and quadratic forms, counted as full products.
    pub gram: f64,
    /// Seconds of GPTQ's factor for one input, to be multiplied with the third power of the inputs.
    pub factor: f64,
    /// Weights per second that a search rounds.
    pub rounding: f64,
    /// Weights per second that a build rounds, hashes and writes.
    pub building: f64,
}

/// Sizes of the measurement: small enough for a second, large enough to be typical.
const WIDTH: usize = 1024;
const ROWS: usize = 256;
/// Weights that a search rounds per second, seen between 30 and 60 million.
const SEARCHED: f64 = 40e6;
/// Weights that a build rounds and packs per second and thread.
const ROUNDED_PER_THREAD: f64 = 80e6;
/// Weights that it hashes and writes per second, beside: a disk takes a gigabyte a second, two bytes of each weight.
const WRITTEN: f64 = 500e6;

impl Speeds {
    /// Measures a device for about a second.
    ///
    /// # Errors
    /// The device's.
    pub fn measure<B: Calibrate>(backend: &mut B, threads: usize) -> Result<Self> {
        let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) & 0xffff) as f32 / 65_536.0 - 0.5;
        let data: Vec<f32> = (0..ROWS * WIDTH).map(noise).collect();
        let x = backend.upload(&HostTensor { rows: ROWS, width: WIDTH, data })?;
        let values = (0..WIDTH * WIDTH).map(|i| bf16::from_f32(noise(i))).collect();
        let weight = resident(backend, &HostWeight::Bf16 { n: WIDTH, k: WIDTH, values })?;
        let mut out = backend.buffer(ROWS, WIDTH)?;
        let mut gram = backend.buffer(WIDTH, WIDTH)?;
        let product = 2.0 * (ROWS * WIDTH * WIDTH) as f64;
        let forward = best(|| {
            backend.linear(ROWS, &x, &weight, None, Store::Overwrite, &mut out)?;
            Ok(())
        })?;
        let gram_seconds = best(|| {
            backend.gram(ROWS, &x, &mut gram)?;
            Ok(())
        })?;
        let k = WIDTH / 2;
        let factor = best(|| {
            let mut hessian: Vec<f64> = (0..k * k).map(|i| if i / k == i % k { 2.0 } else { 1.0 / k as f64 }).collect();
            // The matrix is positive definite by its diagonal; how long it takes is all that matters here.
            let _ = dense::inverse_cholesky_upper(threads, k, &mut hessian);
            Ok(())
        })?;
        Ok(Self {
            forward: product / forward,
            gram: product / gram_seconds,
            factor: factor / (k as f64).powi(3),
            rounding: SEARCHED,
            building: (threads as f64 * ROUNDED_PER_THREAD).min(WRITTEN),
        })
    }
}

/// Seconds of the fastest of a few runs.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        run()?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok(seconds.max(1e-9))
}

/// What quantizing a model will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Weights of the model.
    pub parameters: u64,
    /// Calibration text through the layers, Gram matrices included.
    pub calibration_seconds: f64,
    /// The method itself: factors, updates, searches.
    pub search_seconds: f64,
    /// Rounding and writing.
    pub rounding_seconds: f64,
    /// Text through the reference and the artifact, see [`Self::with_measuring`].
    pub measuring_seconds: f64,
    /// Most bytes in memory at once, mapped files not counted.
    pub peak_bytes: u64,
    /// Bytes written: the packed file and the interchange file.
    pub disk_bytes: u64,
}

impl Plan {
    /// Seconds in all.
    pub fn seconds(&self) -> f64 {
        self.calibration_seconds + self.search_seconds + self.rounding_seconds + self.measuring_seconds
    }

    /// The plan with what measuring the artifact's quality takes: `windows` of `window` tokens through the BF16 reference and
    /// through the artifact, with the logits of each window's second half. The reference itself is another artifact, with a
    /// plan of its own: one for all recipes of a model.
    ///
    /// The artifact's pass is counted at the speed of BF16, too. Reading the weights again for each window, where memory does
    /// not hold both models, comes on top.
    #[must_use]
    pub fn with_measuring(self, config: &ModelConfig, windows: usize, window: usize, speeds: &Speeds) -> Self {
        let (count, tokens) = (windows as f64, window as f64);
        let scored = (window - window / 2) as f64;
        let vocab = config.vocab as f64;
        let weights: f64 = STAGES.map(|stage| (outputs(stage, config) * stage.inputs(config)) as f64).iter().sum();
        let layers = config.layers as f64 * (2.0 * tokens * weights + attention(config, tokens, tokens));
        let logits = 2.0 * scored * vocab * config.hidden as f64;
        let measuring_seconds = count * 2.0 * (layers + logits) / speeds.forward;
        // The logits of both, and one window's activations.
        let memory = 2.0 * scored * vocab * 4.0 + tokens * row_bytes(config) + 30e6;
        Self { measuring_seconds, peak_bytes: self.peak_bytes.max(memory as u64), ..self }
    }

    /// The plan of a recipe for a model of this shape, with `tokens` calibration tokens in sequences of `sequence`.
    pub fn of(config: &ModelConfig, recipe: Recipe, tokens: usize, sequence: usize, speeds: &Speeds) -> Self {
        let layers = config.layers as f64;
        let shapes = STAGES.map(|stage| (outputs(stage, config) as f64, stage.inputs(config) as f64));
        let layer: f64 = shapes.iter().map(|(n, k)| n * k).sum();
        let ends = (config.vocab * config.hidden * if config.tied_embeddings { 1 } else { 2 }) as f64;
        let parameters = layers * layer + ends;
        let (t, s) = (tokens as f64, sequence as f64);
        let [qkv, output, gate_up, down] = shapes.map(|(n, k)| n * k);
        let attention = attention(config, t, s);
        let squares: f64 = shapes.iter().map(|(_, k)| k * k).sum();
        // Every stage's passes, as the pipeline runs them.
        let forward = match recipe.method {
            Method::RoundToNearest if !recipe.needs_calibration() => 0.0,
            Method::Gptq => 2.0 * t * (2.0 * qkv + output + 2.0 * gate_up + down) + 2.0 * attention,
            _ => 2.0 * t * layer + attention,
        };
        let gram = match recipe.method {
            Method::Gptq | Method::Awq => 2.0 * t * squares,
            _ => 0.0,
        };
        let search = match recipe.method {
            Method::RoundToNearest | Method::LlmInt8 => 0.0,
            Method::Gptq => {
                let factors: f64 = shapes.iter().map(|(_, k)| k.powi(3) * speeds.factor).sum();
                let updates: f64 = shapes.iter().map(|(n, k)| n * k * k).sum();
                factors + updates / speeds.gram
            }
            Method::Awq => {
                // Two forms with 26 exponents each, nine candidates with ranges cut for them; and the ranges, 20 for each of
                // those and once at the end, which read the Gram matrix within the groups only.
                let group = if let WeightFormat::Int4 { group, .. } = recipe.format { f64::from(group) } else { 0.0 };
                let searched = [shapes[0], shapes[2], shapes[3]];
                let forms: f64 = searched.iter().map(|(n, k)| 61.0 * 2.0 * n * k * k).sum();
                let cuts = 10.0 * 20.0;
                forms / speeds.gram + cuts * 2.0 * layer * group / speeds.gram + (61.0 + cuts) * layer / speeds.rounding
            }
            Method::SmoothQuant => {
                let products = 12.0 * 2.0 * 512.0 * (qkv + gate_up + down);
                products / speeds.forward + 12.0 * (qkv + gate_up + down) / speeds.rounding
            }
        };
        Self {
            parameters: parameters as u64,
            calibration_seconds: layers * (forward / speeds.forward + gram / speeds.gram),
            search_seconds: layers * search,
            rounding_seconds: parameters / speeds.building,
            measuring_seconds: 0.0,
            peak_bytes: peak(config, recipe, tokens, sequence, layer),
            disk_bytes: disk(config, recipe.format, parameters - ends, ends),
        }
    }
}

/// Operations of a layer's attention on `tokens` tokens in sequences of `sequence`: logits and weighted sum of a causal pass,
/// half of the positions.
fn attention(config: &ModelConfig, tokens: f64, sequence: f64) -> f64 {
    2.0 * tokens * sequence * (config.heads * config.head_dim) as f64
}

/// Bytes of a token's activations in all buffers of a pass.
fn row_bytes(config: &ModelConfig) -> f64 {
    (2 * config.hidden + outputs(Stage::Qkv, config) + 4 * config.intermediate) as f64 * 4.0
}

/// Rows of a stage's weights.
fn outputs(stage: Stage, config: &ModelConfig) -> usize {
    match stage {
        Stage::Qkv => (config.heads + 2 * config.kv_heads) * config.head_dim,
        Stage::Output | Stage::Down => config.hidden,
        Stage::GateUp => 2 * config.intermediate,
    }
}

/// Bytes per weight of the packed layers and of the interchange file's.
fn bytes_per_weight(format: WeightFormat) -> f64 {
    match format.kind() {
        modelprofile_kernels::WeightKind::Bf16 => 2.0,
        modelprofile_kernels::WeightKind::Int4 { group } => 0.5 + 4.0 / f64::from(group),
        modelprofile_kernels::WeightKind::Int8Group { group } => 1.0 + 4.0 / f64::from(group),
        _ => 1.0,
    }
}

fn disk(config: &ModelConfig, format: WeightFormat, layers: f64, ends: f64) -> u64 {
    let packed_ends = match format.output_kind(config.hidden) {
        modelprofile_kernels::WeightKind::Bf16 => 2.0,
        _ => 1.125,
    };
    (2.0 * layers * bytes_per_weight(format) + ends * (packed_ends + 2.0)) as u64
}

/// Bytes that wait to be written to two files, and some rows of each thread in FP32.
const WAITING: f64 = 2.0 * 48e6 + 32e6;

/// The ends of the model are rounded first, a matrix at a time; then come the layers.
fn peak(config: &ModelConfig, recipe: Recipe, tokens: usize, sequence: usize, layer: f64) -> u64 {
    // Codes of the whole matrix, the scales of their groups, and those of the matrix before it, which are still written.
    let end = (config.vocab * config.hidden) as f64 * 2.25 + WAITING;
    let widest = STAGES.map(|stage| stage.inputs(config)).into_iter().max().unwrap_or(0) as f64;
    let squares: f64 = STAGES.map(|stage| (stage.inputs(config) as f64).powi(2)).iter().sum();
    let text = tokens as f64 * config.hidden as f64 * 4.0;
    let buffers = sequence as f64 * row_bytes(config);
    let matrices = match recipe.method {
        // The largest fused tensor: its codes, and its values as BF16 if that is the format.
        Method::RoundToNearest if !recipe.needs_calibration() => {
            3.0 * (outputs(Stage::GateUp, config) * config.hidden) as f64 + WAITING
        }
        // FP32, BF16 on the device, codes; the Gram matrix in FP32, its factor in FP64 and FP32; the free weights.
        Method::Gptq => {
            layer * 7.0 + widest * widest * 16.0 + (outputs(Stage::GateUp, config) * config.hidden) as f64 * 8.0
        }
        // All four Gram matrices, one of them on the host too; a difference in chunks.
        Method::Awq => layer * 8.0 + squares * 4.0 + widest * widest * 8.0 + 4096.0 * widest * 8.0,
        Method::SmoothQuant => layer * 11.0,
        Method::LlmInt8 | Method::RoundToNearest => layer * 7.0,
    };
    let calibration = if recipe.needs_calibration() { text + buffers } else { 0.0 };
    (end.max(matrices + calibration) + 30e6) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, RopeScaling, ZeroPoint};

    const SPEEDS: Speeds = Speeds { forward: 3e11, gram: 1e11, factor: 3e-10, rounding: 4e7, building: 4e7 };

    fn llama_8b() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            layers: 32,
            hidden: 4096,
            intermediate: 14_336,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab: 128_256,
            max_positions: 8192,
            rms_epsilon: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            tied_embeddings: false,
            qkv_bias: false,
            qk_norm: false,
            bos_token: None,
            eos_tokens: Vec::new(),
        }
    }

    fn plan(method: Method, format: WeightFormat) -> Plan {
        Plan::of(&llama_8b(), Recipe { format, method }, 32_768, 512, &SPEEDS)
    }

    const INT4: WeightFormat = WeightFormat::Int4 { group: 128, zero: ZeroPoint::Integer };

    #[test]
    fn the_weights_of_a_known_model_are_counted() {
        // Llama-3.1-8B has 8.03e9.
        let parameters = plan(Method::RoundToNearest, INT4).parameters;
        assert!((parameters as f64 / 8.03e9 - 1.0).abs() < 0.001, "{parameters}");
    }

    #[test]
    fn a_calibrated_method_takes_the_time_of_its_passes_and_of_its_matrices() {
        let [nearest, gptq, awq] = [Method::RoundToNearest, Method::Gptq, Method::Awq].map(|m| plan(m, INT4));
        assert_eq!(nearest.calibration_seconds, 0.0);
        // 32,768 tokens through 7e9 weights are 4.6e14 operations; GPTQ computes some stages twice.
        assert!(awq.calibration_seconds > 4.5e14 / 3e11 && gptq.calibration_seconds > awq.calibration_seconds);
        assert!(gptq.seconds() > nearest.seconds() && awq.search_seconds > 0.0);
    }

    #[test]
    fn measuring_takes_two_passes_of_its_text_and_its_logits() {
        let without = plan(Method::RoundToNearest, INT4);
        let with = without.with_measuring(&llama_8b(), 8, 512, &SPEEDS);
        // 4,096 tokens twice through 7.0e9 weights of layers, and half of them through an output layer of 0.5e9.
        let operations = 2.0 * (2.0 * 4096.0 * 7.0e9 + 2.0 * 2048.0 * 0.53e9);
        let expected = operations / SPEEDS.forward;
        assert!((with.measuring_seconds / expected - 1.0).abs() < 0.05, "{} of {expected}", with.measuring_seconds);
        assert_eq!(with.seconds(), without.seconds() + with.measuring_seconds);
        // Logits in FP32, of the reference and of the artifact: more than rounding needs at once for a wide vocabulary.
        let wide = ModelConfig { vocab: 1 << 20, hidden: 64, ..llama_8b() };
        let narrow = Plan::of(&wide, INT4.into(), 32_768, 512, &SPEEDS);
        assert!(narrow.with_measuring(&wide, 8, 512, &SPEEDS).peak_bytes > (2 * 256 * 4) << 20);
    }

    #[test]
    fn methods_without_a_matrix_of_all_inputs_keep_below_a_quarter_of_the_model_in_bf16() {
        // GPTQ's factor for 14,336 inputs takes 2.5 GB for a moment, whatever the model's depth.
        for (method, format) in [
            (Method::RoundToNearest, INT4),
            (Method::SmoothQuant, WeightFormat::Int8),
            (Method::LlmInt8, WeightFormat::Int8),
        ] {
            let plan = plan(method, format);
            let limit = plan.parameters / 2 + 300_000_000;
            assert!(plan.peak_bytes < limit, "{method:?}: {} of {limit}", plan.peak_bytes);
        }
    }
}
