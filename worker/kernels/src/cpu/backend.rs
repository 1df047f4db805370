//! [`Backend`] for [`Cpu`]: the operations of a step, with the CPU's kernels and threads.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{
    attention::{self, Item},
    device::{Cpu, Disjoint, Matrix, fits},
    elementwise,
    kv::KvPool,
    threads::Pool,
};
use crate::{AttentionShape, Backend, KernelError, PackedWeight, Result, Rotary, StepPlan, Store};

/// A step's plan and, computed once for all layers, its rotation angles.
pub struct CpuStep {
    plan: StepPlan,
    positions: Vec<usize>,
    /// Cache slot of each row.
    slots: Vec<usize>,
    /// Cosines and sines `[rows, 2, pairs]`, filled by the first layer.
    angles: Mutex<Vec<f32>>,
}

impl Backend for Cpu {
    type Step = CpuStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<CpuStep> {
        let mut positions = Vec::with_capacity(plan.rows());
        let mut slots = Vec::with_capacity(plan.rows());
        for sequence in &plan.sequences {
            if sequence.first_row != positions.len() {
                return Err(KernelError::Shape("the step's spans do not follow each other".into()));
            }
            for position in sequence.first_position..sequence.first_position + sequence.rows {
                let block = sequence
                    .blocks
                    .get(position / crate::BLOCK_TOKENS)
                    .ok_or_else(|| KernelError::Shape(format!("position {position} has no block")))?;
                positions.push(position);
                slots.push(*block as usize * crate::BLOCK_TOKENS + position % crate::BLOCK_TOKENS);
            }
        }
        if positions.len() != plan.rows() || plan.logit_rows.iter().any(|r| *r >= plan.rows()) {
            return Err(KernelError::Shape("the step's spans do not cover its rows".into()));
        }
        Ok(CpuStep { plan: plan.clone(), positions, slots, angles: Mutex::new(Vec::new()) })
    }

    fn embed(&mut self, step: &CpuStep, table: &PackedWeight, out: &mut Matrix) -> Result<()> {
        let width = out.width;
        fits("the residual", out, step.plan.rows(), table.spec.k)?;
        let tokens = &step.plan.tokens;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= table.spec.n) {
            return Err(KernelError::Shape(format!("token {token} is not in the embedding's {}", table.spec.n)));
        }
        let target = Disjoint(out.data.as_mut_ptr());
        let failed = Mutex::new(Ok(()));
        self.pool().for_chunks(tokens.len(), row_chunk(tokens.len()), |_, range| {
            for row in range {
                // SAFETY: rows are disjoint.
                let out = unsafe { target.slice(row * width..(row + 1) * width) };
                if let Err(error) = table.dequantize_row(tokens[row] as usize, out) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn rms_norm(&mut self, rows: usize, x: &Matrix, gain: &Matrix, epsilon: f32, out: &mut Matrix) -> Result<()> {
        let width = x.width;
        fits("the norm's input", x, rows, width)?;
        fits("the norm's gain", gain, 1, width)?;
        fits("the norm's output", out, rows, width)?;
        let (isa, target) = (self.isa, Disjoint(out.data.as_mut_ptr()));
        self.pool().for_chunks(rows, row_chunk(rows), |_, range| {
            for row in range {
                let span = row * width..(row + 1) * width;
                // SAFETY: rows are disjoint; the instruction set is the machine's.
                unsafe { elementwise::rms_norm(isa, &x.data[span.clone()], &gain.data, epsilon, target.slice(span)) };
            }
        });
        Ok(())
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &Matrix,
        w: &PackedWeight,
        bias: Option<&Matrix>,
        store: Store,
        out: &mut Matrix,
    ) -> Result<()> {
        let (n, k) = (w.spec.n, w.spec.k);
        fits("the product's input", x, rows, k)?;
        fits("the product's output", out, rows, n)?;
        if let Some(bias) = bias {
            fits("the bias", bias, 1, n)?;
        }
        let Some((outliers, columns)) = w.outliers()? else {
            self.product(rows, &x.data, w, bias, store == Store::Add, out)?;
            return Ok(());
        };
        // The other columns in INT8, their scale per token untouched by the outliers; then the outliers in BF16 on top.
        let (mut rest, mut picked) = (std::mem::take(&mut self.rest), std::mem::take(&mut self.picked));
        split_columns(&mut self.pool(), &x.data[..rows * k], k, &columns, &mut rest, &mut picked);
        let done = self
            .product(rows, &rest, w, bias, store == Store::Add, out)
            .and_then(|()| self.product(rows, &picked, &outliers, None, true, out));
        (self.rest, self.picked) = (rest, picked);
        done
    }

    fn rotate_and_store(
        &mut self,
        step: &CpuStep,
        qkv: &mut Matrix,
        shape: &AttentionShape,
        rotary: &Rotary<'_, Matrix>,
        kv: &mut KvPool,
        layer: usize,
    ) -> Result<()> {
        kv.check(shape, layer)?;
        let (dim, rows) = (shape.head_dim, step.plan.rows());
        let width = (shape.heads + 2 * shape.kv_heads) * dim;
        fits("Q, K and V", qkv, rows, width)?;
        let frequencies = &rotary.inverse_frequencies.data;
        let pairs = frequencies.len();
        if pairs * 2 > dim {
            return Err(KernelError::Shape(format!("{pairs} rotary pairs do not fit a head of {dim}")));
        }
        if step.slots.iter().any(|slot| *slot >= kv.blocks() * crate::BLOCK_TOKENS) {
            return Err(KernelError::Shape("a block of the step is outside the pool".into()));
        }
        let mut angles = step.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if angles.is_empty() {
            for position in &step.positions {
                for function in [f32::cos as fn(f32) -> f32, f32::sin] {
                    let turned = |f: &f32| function(*position as f32 * f) * rotary.attention_factor;
                    angles.extend(frequencies.iter().map(turned));
                }
            }
        }
        let angles = &angles[..];
        let target = Disjoint(qkv.data.as_mut_ptr());
        let kv = &*kv;
        self.pool().for_chunks(rows, row_chunk(rows), |_, range| {
            for row in range {
                // SAFETY: rows are disjoint.
                let values = unsafe { target.slice(row * width..(row + 1) * width) };
                let (cos, sin) = angles[row * 2 * pairs..(row + 1) * 2 * pairs].split_at(pairs);
                let (queries, rest) = values.split_at_mut(shape.heads * dim);
                let (keys, values) = rest.split_at_mut(shape.kv_heads * dim);
                for (heads, norm) in [(queries, rotary.query_norm), (&mut *keys, rotary.key_norm)] {
                    for head in heads.chunks_exact_mut(dim) {
                        if let Some(norm) = norm {
                            elementwise::rms_norm_inplace(head, &norm.data, rotary.norm_epsilon);
                        }
                        elementwise::rotate(&mut head[..2 * pairs], cos, sin);
                    }
                }
                for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
                    // SAFETY: every row has a slot of its own.
                    unsafe { kv.write_token(step.slots[row], layer, head, key, value) };
                }
            }
        });
        Ok(())
    }

    fn attention(
        &mut self,
        step: &CpuStep,
        qkv: &Matrix,
        shape: &AttentionShape,
        kv: &KvPool,
        layer: usize,
        out: &mut Matrix,
    ) -> Result<()> {
        kv.check(shape, layer)?;
        let rows = step.plan.rows();
        fits("Q, K and V", qkv, rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)?;
        fits("the attention's output", out, rows, shape.heads * shape.head_dim)?;
        // Rows of one item share the decoded keys and values of a block.
        const ROWS: usize = 16;
        let mut items = Vec::new();
        for sequence in &step.plan.sequences {
            for first in (0..sequence.rows).step_by(ROWS) {
                for head in 0..shape.kv_heads {
                    items.push(Item { sequence, first, rows: ROWS.min(sequence.rows - first), head });
                }
            }
        }
        let target = Disjoint(out.data.as_mut_ptr());
        let (isa, scratch) = (self.isa, &self.scratch);
        self.pool().for_chunks(items.len(), 1, |worker, range| {
            let mut scratch = scratch[worker].lock().unwrap_or_else(PoisonError::into_inner);
            for item in &items[range] {
                let whole = target;
                // SAFETY: items write disjoint rows and heads; the shapes were checked.
                unsafe { attention::attend(isa, *item, shape, kv, layer, &qkv.data, whole.0, &mut scratch) };
            }
        });
        Ok(())
    }

    fn gated_silu(&mut self, rows: usize, x: &Matrix, out: &mut Matrix) -> Result<()> {
        let width = out.width;
        fits("gate and up", x, rows, 2 * width)?;
        fits("the activation", out, rows, width)?;
        let (isa, target) = (self.isa, Disjoint(out.data.as_mut_ptr()));
        self.pool().for_chunks(rows, row_chunk(rows), |_, range| {
            for row in range {
                let x = &x.data[row * 2 * width..(row + 1) * 2 * width];
                // SAFETY: rows are disjoint; the instruction set is the machine's.
                unsafe { elementwise::gated_silu(isa, x, target.slice(row * width..(row + 1) * width)) };
            }
        });
        Ok(())
    }

    fn gather_logit_rows(&mut self, step: &CpuStep, x: &Matrix, range: Range<usize>, out: &mut Matrix) -> Result<()> {
        let width = x.width;
        fits("the selected rows", out, range.len(), width)?;
        for (row, out) in step.plan.logit_rows[range].iter().zip(out.data.chunks_exact_mut(width)) {
            out.copy_from_slice(&x.data[row * width..(row + 1) * width]);
        }
        Ok(())
    }

    fn end(&mut self, _step: CpuStep) -> Result<()> {
        Ok(())
    }
}

/// Rows of a chunk of row-wise work: few rows are not worth a fork.
fn row_chunk(rows: usize) -> usize {
    if rows < 8 { rows } else { 4 }
}

/// Copies rows of `k` to `rest` with zeros in the given columns, and these columns to `picked`.
fn split_columns(pool: &mut Pool, x: &[f32], k: usize, columns: &[u32], rest: &mut Vec<f32>, picked: &mut Vec<f32>) {
    let rows = x.len() / k;
    rest.resize(rows * k, 0.0);
    picked.resize(rows * columns.len(), 0.0);
    let (rest, picked) = (Disjoint(rest.as_mut_ptr()), Disjoint(picked.as_mut_ptr()));
    pool.for_chunks(rows, row_chunk(rows), |_, range| {
        for row in range {
            let span = row * k..(row + 1) * k;
            // SAFETY: rows are disjoint.
            let (rest, picked) =
                unsafe { (rest.slice(span.clone()), picked.slice(row * columns.len()..(row + 1) * columns.len())) };
            rest.copy_from_slice(&x[span]);
            for (picked, column) in picked.iter_mut().zip(columns) {
                *picked = std::mem::take(&mut rest[*column as usize]);
            }
        }
    });
}
