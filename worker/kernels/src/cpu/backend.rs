//! [`Cpu`]: the traits, implemented with the CPU's kernels and threads.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Isa,
    activations::Activations,
    attention::{self, Item, Scratch},
    elementwise,
    kv::KvPool,
    linear::{self, Output},
    threads::Pool,
};
use crate::{
    AttentionShape, Backend, BlockMove, Device, GroupedActivations, HostTensor, KernelError, KvLayout, KvScales,
    PackedWeight, Result, Rotary, Split, StepPlan, Store, WeightSpec,
    pack::{PanelLayout, panel_count},
};

/// How a [`Cpu`] computes.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Compute threads, the caller's included.
    pub threads: usize,
    /// Instruction set; `None` takes the best of the machine.
    pub isa: Option<Isa>,
    /// Activations of the group-wise kinds.
    pub grouped_activations: GroupedActivations,
}

/// The CPU as a device.
pub struct Cpu {
    isa: Isa,
    grouped: GroupedActivations,
    /// Locked for a whole operation; `Device` methods take `&self`, and only one thread computes at a time.
    pool: Mutex<Pool>,
    activations: Activations,
    /// Inputs without their outlier columns, and these columns: of weights that keep them apart.
    rest: Vec<f32>,
    picked: Vec<f32>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Cpu {
    /// A device with its own threads.
    ///
    /// # Errors
    /// When a thread cannot be started, or the instruction set is not available here.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !Isa::available().contains(&isa) {
            return Err(KernelError::Device(format!("this machine has no {isa:?}")));
        }
        let threads = options.threads.max(1);
        let pool = Pool::new(threads).map_err(|e| KernelError::Device(format!("compute threads: {e}")))?;
        Ok(Self {
            isa,
            grouped: options.grouped_activations,
            pool: Mutex::new(pool),
            activations: Activations::default(),
            rest: Vec::new(),
            picked: Vec::new(),
            scratch: (0..threads).map(|_| Mutex::new(Scratch::default())).collect(),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `out (+)= w x + bias` of one weight whose activations are all of one form; the shapes were checked.
    fn product(
        &mut self,
        rows: usize,
        x: &[f32],
        w: &PackedWeight,
        bias: Option<&Matrix>,
        add: bool,
        out: &mut Matrix,
    ) -> Result<()> {
        let (n, k) = (w.spec.n, w.spec.k);
        let layout = PanelLayout::new(&w.spec);
        let isa = self.isa;
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (kind, scale) = (w.spec.kind, w.input_scale()?);
        let writer = self.activations.writer(isa, &x[..rows * k], rows, k, &layout, kind, self.grouped, scale);
        pool.for_chunks(writer.tiles(), 1, |_, range| {
            for tile in range {
                // SAFETY: tiles are claimed once; the instruction set is the machine's.
                unsafe { writer.tile(tile) };
            }
        });
        let output = Output { base: out.data.as_mut_ptr(), stride: n, bias: bias.map(|b| &b.data[..]), add };
        let panels = panel_count(&w.spec);
        let (grouped, activations) = (self.grouped, &self.activations);
        // About four chunks a thread: enough to even out, multiples of four panels for the single-row kernels.
        let chunk = panels.div_ceil(4 * pool.threads()).next_multiple_of(4);
        pool.for_chunks(panels, chunk, |_, range| {
            // SAFETY: panel ranges are disjoint and the shapes were checked.
            unsafe { linear::linear_panels(isa, activations, rows, w, grouped, range, output) };
        });
        Ok(())
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows of FP32 values.
pub struct Matrix {
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
}

impl Matrix {
    fn rows(&self) -> usize {
        self.data.len() / self.width.max(1)
    }
}

/// A pointer that threads may share because they write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Disjoint(pub(super) *mut f32);
// SAFETY: see the uses: every job writes rows or columns of its own.
unsafe impl Send for Disjoint {}
// SAFETY: as above.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// # Safety
    /// The range must be inside the matrix, and no other thread may use it meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the ranges are disjoint")]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

pub(super) fn fits(what: &str, matrix: &Matrix, rows: usize, width: usize) -> Result<()> {
    if matrix.width == width && matrix.rows() >= rows {
        return Ok(());
    }
    Err(KernelError::Shape(format!("{what} is {} x {}, not {rows} x {width}", matrix.rows(), matrix.width)))
}

impl Device for Cpu {
    type Buffer = Matrix;
    type Weight = PackedWeight;
    type Kv = KvPool;

    fn name(&self) -> String {
        format!("CPU ({:?}, {} threads)", self.isa, self.scratch.len())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Matrix> {
        Ok(Matrix { width, data: vec![0.0; rows * width] })
    }

    fn upload(&self, host: &HostTensor) -> Result<Matrix> {
        if host.data.len() != host.rows * host.width {
            return Err(KernelError::Shape(format!(
                "{} values are not {} x {}",
                host.data.len(),
                host.rows,
                host.width
            )));
        }
        Ok(Matrix { width: host.width, data: host.data.clone() })
    }

    fn download(&self, buffer: &Matrix, rows: usize, host: &mut HostTensor) -> Result<()> {
        fits("the buffer", buffer, rows, buffer.width)?;
        host.rows = rows;
        host.width = buffer.width;
        host.data.clear();
        host.data.extend_from_slice(&buffer.data[..rows * buffer.width]);
        Ok(())
    }

    fn weight(&self, packed: &PackedWeight, _split: Split) -> Result<PackedWeight> {
        packed.spec.validate()?;
        if packed.bytes.len() != crate::packed_len(&packed.spec) {
            return Err(KernelError::Format(format!("{} bytes are not {:?}", packed.bytes.len(), packed.spec)));
        }
        packed.outliers()?;
        packed.input_scale()?;
        Ok(packed.clone())
    }

    fn weight_bytes(&self, spec: &WeightSpec, _split: Split) -> Result<usize> {
        spec.validate()?;
        Ok(crate::packed_len(spec))
    }

    fn grouped_activations(&self) -> GroupedActivations {
        self.grouped
    }

    fn prefetch(&self, weight: &PackedWeight) {
        weight.bytes.prefetch();
    }

    fn release(&self, weight: &PackedWeight) {
        weight.bytes.release();
    }

    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<KvPool> {
        KvPool::new(layout, scales, blocks, max_blocks)
    }

    fn kv_resize(&self, kv: &mut KvPool, blocks: usize) -> Result<()> {
        kv.resize(blocks)
    }

    fn kv_move(&self, kv: &mut KvPool, moves: &[BlockMove]) -> Result<()> {
        kv.move_blocks(moves)
    }
}

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
