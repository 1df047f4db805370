//! [`Cpu`] as a device: its threads and buffers, and products of weights with rows.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Isa,
    activations::Activations,
    attention::Scratch,
    kv::KvPool,
    linear::{self, Output},
    threads::Pool,
};
use crate::{
    BlockMove, Device, GroupedActivations, HostTensor, KernelError, KvLayout, KvScales, PackedWeight, Result, Split,
    WeightSpec,
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
    pub(super) isa: Isa,
    grouped: GroupedActivations,
    /// Locked for a whole operation; `Device` methods take `&self`, and only one thread computes at a time.
    pub(super) pool: Mutex<Pool>,
    activations: Activations,
    /// Inputs without their outlier columns, and these columns: of weights that keep them apart.
    pub(super) rest: Vec<f32>,
    pub(super) picked: Vec<f32>,
    pub(super) scratch: Vec<Mutex<Scratch>>,
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
    pub(super) fn product(
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
    pub(super) fn rows(&self) -> usize {
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
        host.check()?;
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
