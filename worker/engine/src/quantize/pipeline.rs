//! Calibrated quantization, layer by layer: one layer's weights in FP32, its inputs' figures, and the residual stream of the
//! calibration text are all that is in memory.
//!
//! | method | order |
//! |---|---|
//! | GPTQ | figures of a stage, round it, then the next stage: each sees what rounding made of the earlier ones |
//! | AWQ, SmoothQuant | figures of all stages from the exact layer, then scales from the last stage to the first |
//! | LLM.int8, static FP8 | figures of all stages from the exact layer, then the outlier columns, or the inputs' scale |

use std::collections::BTreeMap;

use modelprofile_kernels::{Calibrate, HostWeight, WeightKind, rtn};

use super::{
    Calibration, Recipe, awq,
    dense::{DenseLayer, Stage, restored},
    gptq,
    grid::Target,
    llm_int8,
    runner::{DeviceLayer, Runner},
    smoothquant,
    statistics::{Collector, collect},
};
use crate::{
    EngineError, Method, Result,
    artifact::build::Layers,
    checkpoint::{Checkpoint, Role},
};

/// The stages in the order of the computation.
pub(super) const STAGES: [Stage; 4] = [Stage::Qkv, Stage::Output, Stage::GateUp, Stage::Down];

/// A decoder layer as it is stored.
#[derive(Debug, Default)]
pub(crate) struct QuantizedLayer {
    /// The linear layers.
    pub(crate) weights: BTreeMap<Role, HostWeight>,
    /// Norm gains (with what methods fold into them) and biases.
    pub(crate) vectors: BTreeMap<Role, Vec<f32>>,
}

/// Quantizes the layers of a checkpoint, first to last.
pub(crate) struct Pipeline<'a, B: Calibrate> {
    backend: &'a mut B,
    checkpoint: &'a Checkpoint,
    recipe: Recipe,
    threads: usize,
    runner: Runner<B>,
}

impl<'a, B: Calibrate> Pipeline<'a, B> {
    /// Embeds the calibration text; the first layer comes next.
    ///
    /// # Errors
    /// A method that does not make the format, and the checkpoint's and the device's errors.
    pub(crate) fn new(
        backend: &'a mut B,
        threads: usize,
        checkpoint: &'a Checkpoint,
        recipe: Recipe,
        calibration: &Calibration,
    ) -> Result<Self> {
        recipe.validate()?;
        let runner = Runner::new(backend, checkpoint, calibration)?;
        Ok(Self { backend, checkpoint, recipe, threads, runner })
    }

    fn gptq(&mut self, layer: DenseLayer, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let target = Target::of(self.recipe)?;
        let mut device = DeviceLayer::new(self.backend, &layer)?;
        let mut weights = BTreeMap::new();
        for (done, stage) in STAGES.into_iter().enumerate() {
            if stage == Stage::GateUp {
                self.runner.through_attention(self.backend, &device, &mut |_, _, _| Ok(()))?;
            }
            let columns = stage.inputs(self.checkpoint.config());
            let figures = collect(self.backend, &mut self.runner, &device, stage, columns)?;
            let gram = figures.gram_to_host(self.backend)?;
            // The device's copy is the largest thing in memory beside what comes now.
            drop(figures);
            let solver = gptq::Solver::new(self.threads, columns, &gram)?;
            drop(gram);
            let mut parts = Vec::new();
            for role in stage.roles(layer.index) {
                let weight = solver.quantize(layer.matrix(role)?, target);
                parts.push(restored(&weight));
                weights.insert(role, weight);
            }
            device.replace(self.backend, stage, &HostWeight::concat_rows(parts)?)?;
            progress((done + 1) as f64 / 5.0);
        }
        self.runner.through_mlp(self.backend, &device, &mut |_, _, _| Ok(()))?;
        Ok(QuantizedLayer { weights, vectors: layer.into_vectors() })
    }

    /// The figures of all stages of the exact layer; the residual stream goes on to the next.
    fn figures(&mut self, layer: &DenseLayer, gram: bool) -> Result<[Collector<B>; 4]> {
        let device = DeviceLayer::new(self.backend, layer)?;
        Collector::all(self.backend, &mut self.runner, &device, self.checkpoint.config(), gram)
    }

    /// Divides a stage's inputs by `scales`, in what comes before, and multiplies its weights.
    fn fold(layer: &mut DenseLayer, stage: Stage, scales: &[f32]) -> Result<()> {
        let index = layer.index;
        match stage {
            Stage::Qkv => layer.divide_gain(Role::AttentionNorm(index), scales)?,
            Stage::GateUp => layer.divide_gain(Role::MlpNorm(index), scales)?,
            Stage::Down => layer.matrix_mut(Role::Up(index))?.divide_rows(scales),
            Stage::Output => return Err(EngineError::Config("nothing folds across the KV cache".into())),
        }
        for role in stage.roles(index) {
            layer.matrix_mut(role)?.scale_columns(scales);
        }
        Ok(())
    }

    fn awq(&mut self, mut layer: DenseLayer, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let target = Target::of(self.recipe)?;
        let mut figures = self.figures(&layer, true)?.map(Some);
        progress(0.3);
        // Down first: its scales change the rows of up, which the search for gate and up must see.
        for (done, at) in [3, 2, 1, 0].into_iter().enumerate() {
            let stage = STAGES[at];
            let Some(inputs) = figures[at].take() else { continue };
            let Some(gram) = &inputs.gram else { continue };
            let columns = stage.inputs(self.checkpoint.config());
            let mut blocks = awq::blocks(&inputs.gram_to_host(self.backend)?, columns, target)?;
            // Queries and keys meet in a product of their own, where an error of many small parts hurts less than cut peaks.
            let (uncut, cut): (Vec<_>, Vec<_>) =
                stage.roles(layer.index).into_iter().partition(|r| matches!(r, Role::Query(_) | Role::Key(_)));
            if stage != Stage::Output {
                let uncut = uncut.into_iter().map(|role| Ok(layer.matrix(role)?.rows)).sum::<Result<usize>>()?;
                let stacked = layer.stacked(stage)?;
                let figures = awq::Inputs { magnitudes: &inputs.columns.abs_mean(), gram, blocks: &blocks };
                let scales = awq::search_scales(self.backend, &stacked, uncut, &figures, target)?;
                Self::fold(&mut layer, stage, &scales)?;
                awq::divide_blocks(&mut blocks, &scales);
            }
            drop(inputs);
            for role in cut {
                awq::clip(self.backend, &mut layer.matrix_mut(role)?.data, columns, &blocks, target)?;
            }
            progress(0.3 + 0.7 * (done + 1) as f64 / 4.0);
        }
        let weights = Self::round(&layer, |n, k, rows| awq::round(target, n, k, rows))?;
        Ok(QuantizedLayer { weights, vectors: layer.into_vectors() })
    }

    fn smoothquant(&mut self, mut layer: DenseLayer, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let figures = self.figures(&layer, false)?;
        progress(0.4);
        for (done, at) in [3, 2, 0].into_iter().enumerate() {
            let (stage, inputs) = (STAGES[at], &figures[at]);
            let stacked = layer.stacked(stage)?;
            let found = smoothquant::search_scales(self.backend, &stacked, &inputs.columns.absmax, &inputs.sample)?;
            Self::fold(&mut layer, stage, &found)?;
            progress(0.4 + 0.2 * (done + 1) as f64);
        }
        let weights =
            Self::round(&layer, |n, k, rows| Ok(rtn::quantize(WeightKind::Int8, rtn::Grid::Symmetric, n, k, rows)?))?;
        Ok(QuantizedLayer { weights, vectors: layer.into_vectors() })
    }

    /// FP8 with one scale for all inputs of a stage: the largest magnitude that the text made of them.
    fn fp8_static(&mut self, layer: DenseLayer, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let figures = self.figures(&layer, false)?;
        progress(0.9);
        let mut weights = BTreeMap::new();
        for (stage, figures) in STAGES.into_iter().zip(&figures) {
            let scale = rtn::fp8_scale(figures.columns.absmax.iter().fold(0.0f32, |m, v| m.max(*v)));
            for role in stage.roles(layer.index) {
                let matrix = layer.matrix(role)?;
                weights.insert(role, rtn::fp8_static(matrix.rows, matrix.cols, &matrix.data, scale)?);
            }
        }
        Ok(QuantizedLayer { weights, vectors: layer.into_vectors() })
    }

    fn llm_int8(&mut self, layer: &DenseLayer, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let figures = self.figures(layer, false)?;
        progress(0.9);
        let mut weights = BTreeMap::new();
        for (stage, figures) in STAGES.into_iter().zip(&figures) {
            let columns = llm_int8::outliers(&figures.columns.absmax);
            for role in stage.roles(layer.index) {
                weights.insert(role, llm_int8::quantize(layer.matrix(role)?, &columns)?);
            }
        }
        Ok(QuantizedLayer { weights, vectors: BTreeMap::new() })
    }

    /// Rounds every matrix of a layer as it now is.
    fn round(
        layer: &DenseLayer,
        quantize: impl Fn(usize, usize, &[f32]) -> Result<HostWeight>,
    ) -> Result<BTreeMap<Role, HostWeight>> {
        let roles = STAGES.into_iter().flat_map(|stage| stage.roles(layer.index));
        roles
            .map(|role| {
                let matrix = layer.matrix(role)?;
                Ok((role, quantize(matrix.rows, matrix.cols, &matrix.data)?))
            })
            .collect()
    }
}

impl<B: Calibrate> Layers for Pipeline<'_, B> {
    fn layer(&mut self, index: usize, progress: &mut dyn FnMut(f64)) -> Result<QuantizedLayer> {
        let layer = DenseLayer::load(self.checkpoint, index, self.threads)?;
        match self.recipe.method {
            Method::RoundToNearest => self.fp8_static(layer, progress),
            Method::Gptq => self.gptq(layer, progress),
            Method::Awq => self.awq(layer, progress),
            Method::SmoothQuant => self.smoothquant(layer, progress),
            Method::LlmInt8 => self.llm_int8(&layer, progress),
        }
    }

    /// The residual stream that enters the next layer.
    fn state(&self) -> &[f32] {
        self.runner.residual()
    }

    fn resume(&mut self, state: Vec<f32>) -> bool {
        self.runner.set_residual(state)
    }
}
