//! What calibration text makes of a linear layer's inputs.

use modelprofile_kernels::{Calibrate, HostTensor};

use super::{
    dense::Stage,
    runner::{DeviceLayer, Runner},
};
use crate::{EngineError, ModelConfig, Result};

/// Figures per input column, over all calibration tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Columns {
    /// Rows seen.
    pub(super) rows: usize,
    /// Largest magnitude.
    pub(super) absmax: Vec<f32>,
    /// Sum of magnitudes.
    pub(super) abs_sum: Vec<f64>,
    /// Sum of squares.
    pub(super) square_sum: Vec<f64>,
}

impl Columns {
    pub(super) fn new(columns: usize) -> Self {
        Self { rows: 0, absmax: vec![0.0; columns], abs_sum: vec![0.0; columns], square_sum: vec![0.0; columns] }
    }

    /// Adds rows of `absmax.len()` values.
    pub(super) fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.absmax.len()) {
            self.rows += 1;
            for (max, value) in self.absmax.iter_mut().zip(row) {
                *max = max.max(value.abs());
            }
            for (sum, value) in self.abs_sum.iter_mut().zip(row) {
                *sum += f64::from(value.abs());
            }
            for (sum, value) in self.square_sum.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
    }

    /// Mean magnitude of each column.
    pub(super) fn abs_mean(&self) -> Vec<f32> {
        self.abs_sum.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// Mean square of each column: the importance of a weight's column.
    pub(super) fn square_mean(&self) -> Vec<f32> {
        self.square_sum.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }
}

/// Collects figures, the Gram matrix and a sample of rows while a [`Runner`] shows the inputs of a stage.
pub(super) struct Collector<B: Calibrate> {
    pub(super) columns: Columns,
    /// `sum x x^T`, `[k, k]`, on the device.
    pub(super) gram: Option<B::Buffer>,
    /// Some rows, evenly spread.
    pub(super) sample: HostTensor,
    every: usize,
    seen: usize,
    host: HostTensor,
    stage: Stage,
}

/// Rows that a sample keeps.
pub(super) const SAMPLE_ROWS: usize = 512;

impl<B: Calibrate> Collector<B> {
    /// A collector for a stage with `columns` inputs of a text of `tokens` tokens.
    pub(super) fn new(backend: &B, stage: Stage, columns: usize, tokens: usize, gram: bool) -> Result<Self> {
        Ok(Self {
            columns: Columns::new(columns),
            gram: gram.then(|| backend.buffer(columns, columns)).transpose()?,
            sample: HostTensor { rows: 0, width: columns, data: Vec::new() },
            every: tokens.div_ceil(SAMPLE_ROWS).max(1),
            seen: 0,
            host: HostTensor::default(),
            stage,
        })
    }

    /// The figures of all stages of a layer; the residual stream goes on to the next.
    pub(super) fn all(
        backend: &mut B,
        runner: &mut Runner<B>,
        layer: &DeviceLayer<B>,
        config: &ModelConfig,
        gram: bool,
    ) -> Result<[Self; 4]> {
        let tokens = runner.tokens();
        let new = |backend: &B, stage: Stage| Self::new(backend, stage, stage.inputs(config), tokens, gram);
        let mut qkv = new(backend, Stage::Qkv)?;
        runner.visit(backend, layer, Stage::Qkv, &mut |b, rows, x| qkv.add(b, rows, x))?;
        let mut output = new(backend, Stage::Output)?;
        runner.through_attention(backend, layer, &mut |b, rows, x| output.add(b, rows, x))?;
        let mut gate_up = new(backend, Stage::GateUp)?;
        runner.visit(backend, layer, Stage::GateUp, &mut |b, rows, x| gate_up.add(b, rows, x))?;
        let mut down = new(backend, Stage::Down)?;
        runner.through_mlp(backend, layer, &mut |b, rows, x| down.add(b, rows, x))?;
        Ok([qkv, output, gate_up, down])
    }

    /// Takes rows in.
    ///
    /// # Errors
    /// Inputs that are not finite: the model does not survive this text in BF16.
    pub(super) fn add(&mut self, backend: &mut B, rows: usize, x: &B::Buffer) -> Result<()> {
        backend.download(x, rows, &mut self.host)?;
        if let Some(at) = self.host.data.iter().position(|v| !v.is_finite()) {
            let (row, column) = (at / self.host.width, at % self.host.width);
            return Err(EngineError::Config(format!(
                "the calibration text gives {} at row {row}, input {column} of {:?}: the checkpoint is damaged or needs \
                 another text",
                self.host.data[at], self.stage
            )));
        }
        self.columns.add(&self.host.data);
        if let Some(gram) = &mut self.gram {
            backend.gram(rows, x, gram)?;
        }
        for row in self.host.data.chunks_exact(self.host.width) {
            if self.seen.is_multiple_of(self.every) {
                self.sample.data.extend_from_slice(row);
                self.sample.rows += 1;
            }
            self.seen += 1;
        }
        Ok(())
    }

    /// The Gram matrix on the host; empty when none was collected.
    pub(super) fn gram_to_host(&self, backend: &B) -> Result<Vec<f32>> {
        let Some(gram) = &self.gram else { return Ok(Vec::new()) };
        let mut host = HostTensor::default();
        backend.download(gram, self.columns.absmax.len(), &mut host)?;
        Ok(host.data)
    }
}

/// The figures of one stage's inputs, the residual stream left where it is.
pub(super) fn collect<B: Calibrate>(
    backend: &mut B,
    runner: &mut Runner<B>,
    layer: &DeviceLayer<B>,
    stage: Stage,
    columns: usize,
) -> Result<Collector<B>> {
    let mut collector = Collector::new(backend, stage, columns, runner.tokens(), true)?;
    runner.visit(backend, layer, stage, &mut |backend, rows, x| collector.add(backend, rows, x))?;
    Ok(collector)
}
