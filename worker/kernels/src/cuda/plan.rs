//! [`Planner`]: the kernels of a step, without a device.
//!
//! It implements the traits, so that model code runs on it as on a GPU; what comes out is a list of the kernels that the
//! GPU would be given, with their grids, bytes and operations. Products and attention are the backend's own code, launches
//! are made by the same functions; a test on the emulated device compares the lists.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use super::{
    backend,
    content::{Contents, Held, Kept},
    cublaslt::{Operands, Shape},
    driver::Address,
    executor::Executor,
    graph::Command,
    kernels::{Launch, Ptr, Rows, Side},
    launch::{
        Pool,
        linear::Output,
        rotary,
        rows::{self, Vocabulary},
    },
    layout::{self, GpuLayout},
    linear,
    memory::lock,
    operand::Placed,
    scratch::Slot,
    step::{CudaStep, Numbers},
    work::{Work, floats},
};
use crate::{
    AttentionShape, Backend, BlockMove, Device, HostTensor, KernelError, KvLayout, KvScales, PackedWeight, Result,
    Rotary, Split, StepPlan, Store, WeightSpec,
};

/// The device that is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one of the device's own switches")]
pub struct PlanOptions {
    /// Streaming multiprocessors of the device.
    pub processors: usize,
    /// Decode steps are padded to be recorded, as [`CudaOptions::graphs`](super::CudaOptions::graphs) says.
    pub graphs: bool,
    /// As [`CudaOptions::deterministic`](super::CudaOptions::deterministic).
    pub deterministic: bool,
    /// cuBLASLt is there.
    pub library: bool,
    /// It multiplies with scales of rows itself (12.9 and later on compute capability 9.0).
    pub row_scales: bool,
    /// Rows from which group-wise weights are unpacked for cuBLASLt: the backend's own number, unless somebody asks what
    /// another one would give.
    pub unpack_rows: usize,
    /// Devices that compute the model together. What is planned is one of them, with its share of the shapes.
    pub devices: usize,
}

impl PlanOptions {
    /// One device with so many multiprocessors and a current cuBLASLt.
    pub fn new(processors: usize) -> Self {
        Self {
            processors,
            graphs: true,
            deterministic: false,
            library: true,
            row_scales: true,
            unpack_rows: linear::UNPACK_ROWS,
            devices: 1,
        }
    }
}

/// What an entry of a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A kernel of this crate.
    Kernel,
    /// A product of cuBLASLt.
    Library,
    /// The driver fills memory.
    Fill,
    /// A copy between the host and the device.
    HostCopy,
    /// The devices add up what each has; [`Work::written`] are the bytes of the sum.
    AllReduce,
}

/// One entry of a plan, in the order of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Planned {
    /// What it is.
    pub what: What,
    /// The kernel's name.
    pub name: &'static str,
    /// The operation that it belongs to, for people: the name of a weight, `attention`, `rotate and store`.
    pub part: &'static str,
    /// Blocks; zeros where the library or the driver chooses.
    pub grid: [u32; 3],
    /// Bytes and operations.
    pub work: Work,
}

/// Stands for a device. See the module.
#[derive(Debug)]
pub struct Planner {
    options: PlanOptions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    planned: Vec<Planned>,
    /// The operation that commands are of.
    part: &'static str,
    next_buffer: u64,
    generation: u64,
    rows: usize,
    bucket: Option<usize>,
    angles: bool,
}

/// A buffer of a [`Planner`]: its sides.
#[derive(Debug)]
pub struct PlanBuffer {
    id: u64,
    kept: Arc<()>,
    rows: usize,
    width: usize,
}

/// A weight of a [`Planner`]: its layout.
#[derive(Debug)]
pub struct PlanWeight {
    placed: Placed,
    part: &'static str,
    split: Split,
}

/// A pool of a [`Planner`]: its geometry.
#[derive(Debug)]
pub struct PlanKv {
    layout: KvLayout,
    blocks: usize,
    max_blocks: usize,
}

/// A step of a [`Planner`].
#[derive(Debug)]
pub struct PlanStep(CudaStep);

/// Addresses that nobody reads: apart, aligned, and not null.
const fn address(index: u64) -> Address {
    (index + 1) << 36
}

impl PlanBuffer {
    fn at(&self) -> Ptr<f32> {
        Ptr::new(address(self.id))
    }
}

impl Held for PlanBuffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn at(&self) -> Ptr<f32> {
        Self::at(self)
    }

    fn kept(&self) -> Kept {
        self.kept.clone()
    }
}

impl Executor for Planner {
    fn submit(&self, command: Command) -> Result<()> {
        let (name, grid, work) = command.summary();
        let what = match command {
            Command::Launch(_) => What::Kernel,
            Command::Product(_) => What::Library,
            Command::Fill { .. } => What::Fill,
            Command::AllReduce { .. } => What::AllReduce,
        };
        self.plan(what, name, grid, work);
        Ok(())
    }

    fn scratch(&self, slot: Slot, _bytes: usize) -> Result<Address> {
        Ok(address(1 << 16) + ((slot as Address) << 32))
    }

    fn takes(&self, shape: Shape) -> Result<bool> {
        let scaled = shape.operands == Operands::Fp8Scaled;
        Ok(self.options.library && shape.is_aligned() && (self.options.row_scales || !scaled))
    }

    fn processors(&self) -> usize {
        self.options.processors
    }

    fn deterministic(&self) -> bool {
        self.options.deterministic
    }

    fn unpack_rows(&self) -> usize {
        self.options.unpack_rows
    }
}

impl Planner {
    /// Nothing is planned yet.
    pub fn new(options: PlanOptions) -> Self {
        Self { options, state: Mutex::default() }
    }

    /// What was planned since the last call.
    pub fn take(&self) -> Vec<Planned> {
        std::mem::take(&mut lock(&self.state).planned)
    }

    /// A weight by its kind and shape on one device, and its name in the plan.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the kind cannot hold the shape.
    pub fn planned_weight(&self, part: &'static str, spec: &WeightSpec, split: Split) -> Result<PlanWeight> {
        let layout = GpuLayout::new(spec)?;
        let input_scale = (spec.kind == crate::WeightKind::Fp8Static).then_some(1.0);
        let placed = Placed { layout, input_scale, at: address(1 << 20) };
        Ok(PlanWeight { placed, part, split })
    }

    fn plan(&self, what: What, name: &'static str, grid: [u32; 3], work: Work) {
        let mut state = lock(&self.state);
        let part = state.part;
        state.planned.push(Planned { what, name, part, grid, work });
    }

    /// A sum over the devices, where each has a part of what was computed.
    fn sum(&self, is_part: bool, at: Ptr<f32>, count: usize) -> Result<()> {
        if !is_part || self.options.devices == 1 {
            return Ok(());
        }
        self.submit(Command::AllReduce { at: at.address(), count })
    }

    fn begin_part(&self, part: &'static str) {
        lock(&self.state).part = part;
    }

    fn launch_all(&self, launches: impl IntoIterator<Item = Launch>) -> Result<()> {
        launches.into_iter().try_for_each(|launch| self.submit(Command::Launch(launch)))
    }

    fn read(&self, buffer: &PlanBuffer) -> Result<()> {
        let launch = lock(&self.state).contents.make_plain(buffer)?;
        self.launch_all(launch)
    }

    fn write(&self, buffer: &PlanBuffer) -> Result<()> {
        let launches = lock(&self.state).contents.before_write(buffer);
        self.launch_all(launches)
    }

    /// Rows to compute: all of the step's bucket where the buffers have them.
    fn padded(&self, rows: usize, buffers: &[&PlanBuffer]) -> Result<Option<Rows>> {
        let state = lock(&self.state);
        let sizes = buffers.iter().map(|buffer| buffer.rows);
        Rows::new(backend::padded_rows(rows, state.rows, state.bucket, sizes))
    }
}

fn fits(what: &str, buffer: &PlanBuffer, rows: usize, width: usize) -> Result<()> {
    if buffer.width == width && buffer.rows >= rows {
        return Ok(());
    }
    Err(KernelError::Shape(format!("{what} is {} x {}, not {rows} x {width}", buffer.rows, buffer.width)))
}

impl Device for Planner {
    type Buffer = PlanBuffer;
    type Weight = PlanWeight;
    type Kv = PlanKv;

    fn name(&self) -> String {
        format!("a plan for {} multiprocessors", self.options.processors)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<PlanBuffer> {
        let mut state = lock(&self.state);
        state.next_buffer += 1;
        Ok(PlanBuffer { id: state.next_buffer, kept: Arc::new(()), rows, width })
    }

    fn upload(&self, host: &HostTensor) -> Result<PlanBuffer> {
        self.buffer(host.rows, host.width)
    }

    fn download(&self, buffer: &PlanBuffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        fits("the buffer", buffer, rows, buffer.width)?;
        self.begin_part("to the host");
        self.read(buffer)?;
        self.plan(What::HostCopy, "copy_to_host", [0; 3], Work::bytes(floats(rows * buffer.width), 0));
        *host = HostTensor { rows, width: buffer.width, data: vec![0.0; rows * buffer.width] };
        // As on a device, a step is over when its results are asked for.
        lock(&self.state).bucket = None;
        Ok(())
    }

    fn weight(&self, packed: &PackedWeight, split: Split) -> Result<PlanWeight> {
        self.planned_weight("product", &packed.spec, split)
    }

    fn weight_bytes(&self, spec: &WeightSpec, _split: Split) -> Result<usize> {
        layout::gpu_len(spec)
    }

    fn prefetch(&self, _weight: &PlanWeight) {}

    fn release(&self, _weight: &PlanWeight) {}

    fn kv(&self, layout: KvLayout, _scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<PlanKv> {
        super::launch::attention::unit(layout.head_dim)?;
        Ok(PlanKv { layout, blocks, max_blocks })
    }

    fn kv_resize(&self, kv: &mut PlanKv, blocks: usize) -> Result<()> {
        if blocks > kv.max_blocks {
            return Err(KernelError::OutOfMemory(format!("{blocks} KV blocks; {} are reserved", kv.max_blocks)));
        }
        kv.blocks = blocks;
        Ok(())
    }

    fn kv_move(&self, kv: &mut PlanKv, moves: &[BlockMove]) -> Result<()> {
        self.begin_part("moves of blocks");
        let bytes = kv.layout.block_bytes();
        self.submit(Command::Launch(rows::move_blocks(Ptr::new(address(0)), bytes, Ptr::NULL, moves.len() as u32)))
    }
}

impl Backend for Planner {
    type Step = PlanStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<PlanStep> {
        let numbers = Numbers::new(plan, self.options.graphs)?;
        self.begin_part("the step's numbers");
        self.plan(What::HostCopy, "copy_to_device", [0; 3], Work::bytes(0, numbers.bytes().len()));
        let mut state = lock(&self.state);
        state.generation += 1;
        state.rows = numbers.shape.rows;
        state.bucket = numbers.shape.bucket;
        state.angles = false;
        Ok(PlanStep(CudaStep::new(&numbers, Ptr::new(address(1 << 17)), state.generation)))
    }

    fn end(&mut self, _step: PlanStep) -> Result<()> {
        lock(&self.state).bucket = None;
        Ok(())
    }

    fn embed(&mut self, step: &PlanStep, table: &PlanWeight, out: &mut PlanBuffer) -> Result<()> {
        let spec = table.placed.layout.spec;
        fits("the residual", out, step.0.shape.rows, spec.k)?;
        let sides = [Side::new("an embedding", spec.k)?, Side::new("an embedding", table.placed.layout.k)?];
        let Some(count) = self.padded(step.0.shape.rows, &[out])? else { return Ok(()) };
        self.begin_part("embedding");
        self.write(out)?;
        let vocabulary = Vocabulary { tokens: spec.n as u32, first: 0, missing: 0.0 };
        let launch = rows::embed(count, step.0.tokens, table.placed.table()?, vocabulary, sides, out.at());
        self.submit(Command::Launch(launch))?;
        // Each device has the rows of its tokens, and zeros.
        self.sum(table.split == Split::Outputs, out.at(), count.get() * spec.k)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &PlanBuffer,
        gain: &PlanBuffer,
        epsilon: f32,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        fits("the norm's output", out, rows, x.width)?;
        let side = Side::new("the norm's input", x.width)?;
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        self.begin_part("norm");
        self.read(x)?;
        self.write(out)?;
        let source = rows::Source::Normed { x: x.at(), gain: gain.at(), epsilon };
        lock(&self.state).contents.promise(out, count, side, source, &[x, gain]);
        Ok(())
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &PlanBuffer,
        w: &PlanWeight,
        bias: Option<&PlanBuffer>,
        store: Store,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        let spec = w.placed.layout.spec;
        fits("the product's input", x, rows, spec.k)?;
        fits("the product's output", out, rows, spec.n)?;
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        self.begin_part(w.part);
        let split = w.placed.outliers().is_some();
        let direct = if split { None } else { lock(&self.state).contents.source(x, count.get())? };
        let source = if let Some(source) = direct {
            source
        } else {
            self.read(x)?;
            rows::Source::Plain(x.at())
        };
        if store == Store::Add {
            self.read(out)?;
        }
        self.write(out)?;
        let bias = bias.map_or(Ptr::NULL, PlanBuffer::at);
        linear::product(&*self, count, source, &w.placed, Output { out: out.at(), bias, add: store == Store::Add })?;
        // What each device has of the vocabulary is put together on the host.
        self.sum(w.split == Split::Inputs, out.at(), count.get() * spec.n)
    }

    fn rotate_and_store(
        &mut self,
        step: &PlanStep,
        qkv: &mut PlanBuffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, PlanBuffer>,
        kv: &mut PlanKv,
        layer: usize,
    ) -> Result<()> {
        let Some(count) = self.padded(step.0.shape.rows, &[qkv])? else { return Ok(()) };
        self.begin_part("rotate and store");
        self.read(qkv)?;
        self.write(qkv)?;
        let pairs = rotary.inverse_frequencies.width;
        let angles = Ptr::new(self.scratch(Slot::Angles, 0)?);
        if !std::mem::replace(&mut lock(&self.state).angles, true) {
            let frequencies = rotary.inverse_frequencies.at();
            let factor = rotary.attention_factor;
            let launch = rotary::angles(count, step.0.positions, frequencies, pairs, factor, angles);
            self.submit(Command::Launch(launch))?;
        }
        let norms = rotary::HeadNorms {
            query: rotary.query_norm.map_or(Ptr::NULL, PlanBuffer::at),
            key: rotary.key_norm.map_or(Ptr::NULL, PlanBuffer::at),
            epsilon: rotary.norm_epsilon,
        };
        let pool = pool(kv, layer);
        let launch = rotary::rotate_and_store(count, qkv.at(), (angles, pairs), step.0.slots, shape, norms, &pool)?;
        self.submit(Command::Launch(launch))
    }

    fn attention(
        &mut self,
        step: &PlanStep,
        qkv: &PlanBuffer,
        shape: &AttentionShape,
        kv: &PlanKv,
        layer: usize,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        if step.0.shape.rows == 0 {
            return Ok(());
        }
        if step.0.shape.blocks > kv.blocks {
            return Err(KernelError::Shape("a block of the step is outside the pool".into()));
        }
        self.begin_part("attention");
        self.read(qkv)?;
        self.write(out)?;
        super::attention::attend(&*self, &step.0, qkv.at(), shape, &pool(kv, layer), out.at())
    }

    fn gated_silu(&mut self, rows: usize, x: &PlanBuffer, out: &mut PlanBuffer) -> Result<()> {
        fits("gate and up", x, rows, 2 * out.width)?;
        let side = Side::new("the activation", out.width)?;
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        self.begin_part("activation");
        self.read(x)?;
        self.write(out)?;
        lock(&self.state).contents.promise(out, count, side, rows::Source::Gated(x.at()), &[x]);
        Ok(())
    }

    fn gather_logit_rows(
        &mut self,
        step: &PlanStep,
        x: &PlanBuffer,
        range: Range<usize>,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        fits("the selected rows", out, range.len(), x.width)?;
        let Some(count) = self.padded(range.len(), &[x, out])? else { return Ok(()) };
        self.begin_part("rows with logits");
        self.read(x)?;
        self.write(out)?;
        let list = step.0.logit_rows.offset(range.start);
        let launch = rows::gather(count, x.at(), list, Side::new("the rows", x.width)?, out.at());
        self.submit(Command::Launch(launch))
    }
}

fn pool(kv: &PlanKv, layer: usize) -> Pool {
    Pool { base: address(0), layout: kv.layout, layer, scales: [address(1 << 18); 2] }
}
