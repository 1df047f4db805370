//! One decoder layer's weights as FP32 matrices: what calibrated methods change before and while they quantize.

use std::collections::BTreeMap;

use half::bf16;
use modelprofile_kernels::HostWeight;

use super::{values, vector};
use crate::{
    EngineError, ModelConfig, Result,
    checkpoint::{Checkpoint, Role},
};

/// A row-major matrix `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Vec<f32>,
}

impl Matrix {
    /// Multiplies column `j` by `factors[j]`.
    pub(super) fn scale_columns(&mut self, factors: &[f32]) {
        for row in self.data.chunks_exact_mut(self.cols) {
            for (value, factor) in row.iter_mut().zip(factors) {
                *value *= factor;
            }
        }
    }

    /// Divides row `i` by `divisors[i]`.
    pub(super) fn divide_rows(&mut self, divisors: &[f32]) {
        for (row, divisor) in self.data.chunks_exact_mut(self.cols).zip(divisors) {
            for value in row {
                *value /= divisor;
            }
        }
    }
}

/// The linear layers that share one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Queries, keys and values.
    Qkv,
    /// The attention's output.
    Output,
    /// Gate and up.
    GateUp,
    /// Down.
    Down,
}

impl Stage {
    /// Its roles, in the order in which a profile joins their rows.
    pub(super) fn roles(self, layer: usize) -> Vec<Role> {
        match self {
            Self::Qkv => vec![Role::Query(layer), Role::Key(layer), Role::Value(layer)],
            Self::Output => vec![Role::AttentionOutput(layer)],
            Self::GateUp => vec![Role::Gate(layer), Role::Up(layer)],
            Self::Down => vec![Role::Down(layer)],
        }
    }

    /// Columns of its weights.
    pub(super) fn inputs(self, config: &ModelConfig) -> usize {
        match self {
            Self::Qkv | Self::GateUp => config.hidden,
            Self::Output => config.heads * config.head_dim,
            Self::Down => config.intermediate,
        }
    }
}

/// All weights of a layer.
pub(super) struct DenseLayer {
    pub(super) index: usize,
    matrices: BTreeMap<Role, Matrix>,
    vectors: BTreeMap<Role, Vec<f32>>,
}

impl DenseLayer {
    /// Reads a layer. Its pages of the checkpoint are given back.
    ///
    /// # Errors
    /// A missing tensor, NaN or infinity; names file and tensor.
    pub(super) fn load(checkpoint: &Checkpoint, index: usize, threads: usize) -> Result<Self> {
        let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for stage in [Stage::Qkv, Stage::Output, Stage::GateUp, Stage::Down] {
            for role in stage.roles(index) {
                let tensor = checkpoint.require(role)?;
                let data = values(&tensor, threads)?;
                matrices.insert(role, Matrix { rows: tensor.rows, cols: tensor.cols, data });
                checkpoint.release(role);
            }
        }
        let config = checkpoint.config();
        let mut wanted = vec![Role::AttentionNorm(index), Role::MlpNorm(index)];
        if config.qkv_bias {
            wanted.extend([Role::QueryBias(index), Role::KeyBias(index), Role::ValueBias(index)]);
        }
        if config.qk_norm {
            wanted.extend([Role::QueryNorm(index), Role::KeyNorm(index)]);
        }
        for role in wanted {
            vectors.insert(role, vector(&checkpoint.require(role)?)?);
        }
        Ok(Self { index, matrices, vectors })
    }

    pub(super) fn matrix(&self, role: Role) -> Result<&Matrix> {
        self.matrices.get(&role).ok_or_else(|| missing(role))
    }

    pub(super) fn matrix_mut(&mut self, role: Role) -> Result<&mut Matrix> {
        self.matrices.get_mut(&role).ok_or_else(|| missing(role))
    }

    pub(super) fn vector(&self, role: Role) -> Result<&[f32]> {
        self.vectors.get(&role).map(Vec::as_slice).ok_or_else(|| missing(role))
    }

    /// Divides a norm's gain by `divisors`.
    pub(super) fn divide_gain(&mut self, role: Role, divisors: &[f32]) -> Result<()> {
        let gain = self.vectors.get_mut(&role).ok_or_else(|| missing(role))?;
        for (gain, divisor) in gain.iter_mut().zip(divisors) {
            *gain /= divisor;
        }
        Ok(())
    }

    /// A stage's matrices, one below the other.
    pub(super) fn stacked(&self, stage: Stage) -> Result<Matrix> {
        let mut all = Matrix { rows: 0, cols: 0, data: Vec::new() };
        for role in stage.roles(self.index) {
            let matrix = self.matrix(role)?;
            all.rows += matrix.rows;
            all.cols = matrix.cols;
            all.data.extend_from_slice(&matrix.data);
        }
        Ok(all)
    }

    /// The vectors, to be stored.
    pub(super) fn into_vectors(self) -> BTreeMap<Role, Vec<f32>> {
        self.vectors
    }
}

fn missing(role: Role) -> EngineError {
    EngineError::Config(format!("{role:?} is not part of this layer"))
}

/// FP32 values rounded to BF16.
pub(super) fn rounded(matrix: &Matrix) -> HostWeight {
    let values = matrix.data.iter().map(|v| bf16::from_f32(*v)).collect();
    HostWeight::Bf16 { n: matrix.rows, k: matrix.cols, values }
}

/// What a quantized weight stands for, rounded to BF16.
pub(super) fn restored(weight: &HostWeight) -> HostWeight {
    let spec = weight.spec();
    let mut row = vec![0.0; spec.k];
    let mut values = Vec::with_capacity(spec.n * spec.k);
    for index in 0..spec.n {
        weight.dequantize_row(index, &mut row);
        values.extend(row.iter().map(|v| bf16::from_f32(*v)));
    }
    HostWeight::Bf16 { n: spec.n, k: spec.k, values }
}
