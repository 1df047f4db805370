//! [`Cuda`]: the traits, implemented with the device's kernels.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use super::{
    compile::{Images, Origin},
    content::{Contents, CudaBuffer},
    cublaslt::Lt,
    device::{CudaOptions, DeviceInfo, Gpu, driver_version},
    driver::Address,
    graph::{Command, Machine, Queue},
    kernels::{Kernels, Launch, Ptr, Rows, Side, UnitName},
    kv::CudaKv,
    launch::{attention, linear::Output, rotary, rows, rows::Vocabulary},
    linear,
    memory::{Arena, Block, Physical, lock},
    scratch::{Scratch, Slot},
    shared::Shared,
    step::{CudaStep, Numbers, Staging},
    weights::{CudaWeight, WeightSpace},
};
use crate::{
    AttentionShape, Backend, BlockMove, Device, HostTensor, KernelError, KvLayout, KvScales, PackedWeight, Presence,
    Result, Rotary, Split, StepPlan, Store, WeightSpec, Workload,
};

/// Part of the free memory that a device takes when it is not told how much, in percent: the driver's own structures and
/// graphs need some.
const BUDGET_PERCENT: usize = 92;

/// Modelled: what page-locked copies reach over PCIe 5.0 x16, whose 32 GT/s a lane are 63 GB/s less headers of 256-byte
/// packets.
pub(super) const HOST_BANDWIDTH: f64 = 55e9;

/// A GPU as a device.
///
/// Group-wise weights are multiplied with BF16 activations (W4A16): there is no product with INT8 ones here.
pub struct Cuda {
    pub(super) options: CudaOptions,
    state: Mutex<State>,
    pub(super) weights: Arc<WeightSpace>,
    pub(super) arena: Arc<Arena>,
    pub(super) physical: Arc<Physical>,
    /// Dropped last: waits for the work.
    pub(super) shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    contents: Contents,
    scratch: Scratch,
    staging: Staging,
    next_buffer: u64,
    generation: u64,
    /// The present step, and the frequencies and factor that its angles were computed with.
    rows: usize,
    bucket: Option<usize>,
    angles: Option<(Address, u32)>,
}

impl Cuda {
    /// Opens a device, finds or compiles its kernels and reserves its memory's addresses.
    ///
    /// # Errors
    /// [`KernelError::Device`] with a sentence that says what is missing or refused and what helps;
    /// [`KernelError::OutOfMemory`] when the budget does not even hold the workspace.
    pub fn new(options: CudaOptions) -> Result<Self> {
        let gpu = Gpu::open(&options)?;
        let (free, _) = gpu.context.free_and_total()?;
        let budget = options.budget.unwrap_or(free / 100 * BUDGET_PERCENT);
        if budget > free {
            return Err(KernelError::OutOfMemory(format!(
                "a budget of {budget} bytes, but {free} are free on {}; lower it or end what else runs there",
                gpu.info.name
            )));
        }
        let physical = Physical::new(&gpu.context, budget)?;
        let arena = Arena::new(&physical, budget)?;
        let kernels = Kernels::new(&gpu.context, Images::of(&options), gpu.info.capability, driver_version()?);
        for unit in [UnitName::rows, UnitName::rotary, UnitName::linear] {
            kernels.need(unit)?;
        }
        let mut notes = Vec::new();
        let lt = match Lt::load() {
            Ok(()) => Some(Lt::new(arena.block(options.matmul_workspace)?)?),
            Err(why) => {
                notes.push(format!("own kernels compute all products, slower for many rows: {why}"));
                None
            }
        };
        let mut queue = Queue::new(Machine { stream: gpu.compute.clone(), kernels, lt, member: None }, options.on_note);
        for note in notes {
            queue.note(note);
        }
        let shared = Arc::new(Shared::new(gpu, queue));
        let weights = WeightSpace::new(&physical, &shared);
        Ok(Self { options, state: Mutex::default(), weights, arena, physical, shared })
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.gpu.info
    }

    /// Where the units of kernels that were needed up to now came from.
    pub fn kernel_origins(&self) -> Vec<(&'static str, Origin)> {
        self.shared.queue(|queue| queue.machine.kernels.origins())
    }

    /// Physical memory of this device: budget, use.
    pub fn memory(&self) -> &Physical {
        &self.physical
    }

    /// Sentences for the log that came up since the last call, each once: what runs slower than it could, and why.
    pub fn take_notes(&self) -> Vec<String> {
        self.shared.queue(Queue::take_notes)
    }

    /// Decode steps that ran as a recorded graph.
    pub fn replays(&self) -> u64 {
        self.shared.queue(|queue| queue.replays())
    }

    /// Does something that needs memory; when the budget is in use, once more after all that can be given back was.
    pub(super) fn with_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match work() {
            Err(KernelError::OutOfMemory(_)) => {
                self.shared.finish()?;
                self.weights.settle_all()?;
                self.arena.trim()?;
                work()
            }
            done => done,
        }
    }

    pub(super) fn submit(&self, command: Command) -> Result<()> {
        self.shared.gpu.context.bind()?;
        self.shared.queue(|queue| queue.submit(command))
    }

    fn launch_all(&self, launches: impl IntoIterator<Item = Launch>) -> Result<()> {
        launches.into_iter().try_for_each(|launch| self.submit(Command::Launch(launch)))
    }

    /// Scratch of at least so many bytes.
    pub(super) fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address> {
        Ok(self.scratch_block(slot, bytes)?.address())
    }

    fn scratch_block(&self, slot: Slot, bytes: usize) -> Result<Arc<Block>> {
        {
            let mut state = lock(&self.state);
            if let Some(block) = state.scratch.get(slot, bytes) {
                return Ok(block.clone());
            }
            state.scratch.clear(slot);
        }
        let block = Arc::new(self.with_room(|| self.arena.block(Scratch::size(bytes)))?);
        lock(&self.state).scratch.set(slot, block.clone());
        Ok(block)
    }

    /// Memory of the device, whose content is whatever was there.
    pub(super) fn block(&self, bytes: usize) -> Result<Block> {
        self.with_room(|| self.arena.block(bytes))
    }

    fn new_buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer> {
        let bytes = rows.checked_mul(width).and_then(|count| count.checked_mul(size_of::<f32>()));
        let bytes = bytes.ok_or_else(|| KernelError::OutOfMemory(format!("a buffer of {rows} x {width}")))?;
        let block = Arc::new(self.block(bytes)?);
        let mut state = lock(&self.state);
        state.next_buffer += 1;
        Ok(CudaBuffer { id: state.next_buffer, block, rows, width })
    }

    /// Copies host bytes to a block, behind all work up to now.
    fn copy_in(&self, bytes: &[u8], to: &Block) -> Result<()> {
        self.shared.flush()?;
        lock(&self.state).staging.upload(&self.shared.gpu.compute, bytes, to.address())
    }

    /// Makes a buffer's values be there.
    pub(super) fn read(&self, buffer: &CudaBuffer) -> Result<()> {
        let launch = lock(&self.state).contents.make_plain(buffer)?;
        self.launch_all(launch)
    }

    /// Before a buffer is written.
    pub(super) fn write(&self, buffer: &CudaBuffer) -> Result<()> {
        let launches = lock(&self.state).contents.before_write(buffer);
        self.launch_all(launches)
    }

    /// Rows to compute for `rows` of the step's: all of its bucket where the buffers have them.
    fn padded(&self, rows: usize, buffers: &[&CudaBuffer]) -> Result<Option<Rows>> {
        let state = lock(&self.state);
        // Behind a step's end, rows beyond are the caller's again.
        let bucket = state.bucket.filter(|_| self.shared.queue(|queue| queue.is_in_step()));
        Rows::new(padded_rows(rows, state.rows, bucket, buffers.iter().map(|buffer| buffer.rows)))
    }

    fn check_step(&self, step: &CudaStep) -> Result<()> {
        if lock(&self.state).generation == step.generation {
            return Ok(());
        }
        Err(KernelError::Device("a step is used after a later one began".into()))
    }

    /// Rows of an embedding that holds some of a vocabulary's `all` tokens.
    pub(super) fn embed_from(
        &mut self,
        step: &CudaStep,
        table: &CudaWeight,
        vocabulary: Vocabulary,
        all: u32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.check_step(step)?;
        let spec = table.spec();
        fits("the residual", out, step.shape.rows, spec.k)?;
        if step.shape.top_token >= all {
            return Err(KernelError::Shape(format!("token {} is not in the embedding's {all}", step.shape.top_token)));
        }
        let sides = [Side::new("an embedding", spec.k)?, Side::new("an embedding", table.layout.k)?];
        let Some(count) = self.padded(step.shape.rows, &[out])? else { return Ok(()) };
        self.with_room(|| table.make_ready())?;
        self.write(out)?;
        let launch = rows::embed(count, step.tokens, table.table()?, vocabulary, sides, out.at());
        self.submit(Command::Launch(launch))
    }

    fn note(&self, what: &str, done: Result<()>) {
        if let Err(error) = done {
            self.shared.queue(|queue| queue.note(format!("{what}: {error}")));
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Memory of regions is taken below while nothing runs.
        let _ = self.shared.finish();
    }
}

/// A count as kernels take it.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Rows to compute for `rows` rows of a step of `step_rows` that is padded to a bucket: all of the bucket, where the whole step
/// is computed and the buffers, of so many rows each, have them.
pub(super) fn padded_rows(
    rows: usize,
    step_rows: usize,
    bucket: Option<usize>,
    mut buffers: impl Iterator<Item = usize>,
) -> usize {
    bucket.filter(|bucket| rows == step_rows && buffers.all(|rows| rows >= *bucket)).unwrap_or(rows)
}

pub(super) fn fits(what: &str, buffer: &CudaBuffer, rows: usize, width: usize) -> Result<()> {
    if buffer.width == width && buffer.rows >= rows {
        return Ok(());
    }
    Err(KernelError::Shape(format!("{what} is {} x {}, not {rows} x {width}", buffer.rows, buffer.width)))
}

impl Device for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn name(&self) -> String {
        self.info().name.clone()
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer> {
        let buffer = self.new_buffer(rows, width)?;
        if rows * width > 0 {
            self.submit(Command::Fill { at: buffer.at().address(), word: 0, count: rows * width })?;
        }
        Ok(buffer)
    }

    fn upload(&self, host: &HostTensor) -> Result<CudaBuffer> {
        if host.data.len() != host.rows * host.width {
            return Err(KernelError::Shape(format!(
                "{} values are not {} x {}",
                host.data.len(),
                host.rows,
                host.width
            )));
        }
        let buffer = self.new_buffer(host.rows, host.width)?;
        self.copy_in(bytemuck::cast_slice(&host.data), &buffer.block)?;
        Ok(buffer)
    }

    fn download(&self, buffer: &CudaBuffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        fits("the buffer", buffer, rows, buffer.width)?;
        self.read(buffer)?;
        self.shared.flush()?;
        host.rows = rows;
        host.width = buffer.width;
        host.data.clear();
        host.data.resize(rows * buffer.width, 0.0);
        if host.data.is_empty() {
            return self.shared.gpu.compute.synchronize();
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut host.data);
        let stream = &self.shared.gpu.compute;
        // SAFETY: the slice outlives the copy, which is waited for below whatever it says; the buffer has these rows.
        let copied = unsafe { stream.download(bytes.as_mut_ptr(), buffer.at().address(), bytes.len()) };
        copied.and(stream.synchronize())
    }

    fn weight(&self, packed: &PackedWeight, _split: Split) -> Result<CudaWeight> {
        packed.spec.validate()?;
        if packed.bytes.len() != crate::packed_len(&packed.spec) {
            return Err(KernelError::Format(format!("{} bytes are not {:?}", packed.bytes.len(), packed.spec)));
        }
        Side::new("a weight", packed.spec.k)?;
        self.weights.weight(packed)
    }

    fn weight_bytes(&self, spec: &WeightSpec, _split: Split) -> Result<usize> {
        super::layout::gpu_len(spec)
    }

    fn host_bandwidth(&self) -> Option<f64> {
        Some(HOST_BANDWIDTH)
    }

    fn reserve(&self, workload: &Workload) -> Result<usize> {
        self.set_aside(workload)
    }

    fn presence(&self, weight: &CudaWeight) -> Presence {
        weight.presence().unwrap_or_else(|error| {
            self.note("it is not known whether a weight has come", Err(error));
            Presence::Absent
        })
    }

    fn prefetch(&self, weight: &CudaWeight) {
        self.note("a weight could not be copied ahead", weight.prefetch());
    }

    fn release(&self, weight: &CudaWeight) {
        self.note("a weight's memory could not be given back", weight.release());
    }

    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<CudaKv> {
        let unit = attention::unit(layout.head_dim)?;
        self.shared.gpu.context.bind()?;
        self.shared.queue(|queue| queue.machine.kernels.need(unit))?;
        let kv = self
            .with_room(|| CudaKv::new(&self.physical, &self.arena, &self.shared, layout, scales, blocks, max_blocks))?;
        let both: Vec<f32> = scales.k.iter().chain(&scales.v).copied().collect();
        self.copy_in(bytemuck::cast_slice(&both), kv.scales())?;
        Ok(kv)
    }

    fn kv_resize(&self, kv: &mut CudaKv, blocks: usize) -> Result<()> {
        if blocks < kv.blocks() {
            self.shared.finish()?;
        } else {
            self.weights.settle()?;
        }
        kv.resize(blocks)
    }

    fn kv_move(&self, kv: &mut CudaKv, moves: &[BlockMove]) -> Result<()> {
        let numbers = kv.moves(moves)?;
        let Some(count) = Rows::new(moves.len())? else { return Ok(()) };
        let top = moves.iter().fold(0, |top, m| top.max(m.from.max(m.to) as usize + 1));
        self.with_room(|| kv.back(top))?;
        let list = self.scratch_block(Slot::Moves, numbers.len() * size_of::<u32>())?;
        self.copy_in(bytemuck::cast_slice(&numbers), &list)?;
        let (pool, bytes) = (Ptr::new(kv.base()), kv.layout.block_bytes());
        let launch = rows::move_blocks(pool, bytes, Ptr::new(list.address()), count.get() as u32);
        self.submit(Command::Launch(launch))
    }
}

impl Backend for Cuda {
    type Step = CudaStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<CudaStep> {
        let numbers = Numbers::new(plan, self.options.graphs)?;
        let place = self.scratch_block(Slot::Step, numbers.bytes().len())?;
        self.copy_in(numbers.bytes(), &place)?;
        if let Some(bucket) = numbers.shape.bucket {
            self.shared.queue(|queue| queue.expect(bucket))?;
        }
        let mut state = lock(&self.state);
        state.generation += 1;
        state.rows = numbers.shape.rows;
        state.bucket = numbers.shape.bucket;
        state.angles = None;
        Ok(CudaStep::new(&numbers, Ptr::new(place.address()), state.generation))
    }

    fn embed(&mut self, step: &CudaStep, table: &CudaWeight, out: &mut CudaBuffer) -> Result<()> {
        let vocabulary = Vocabulary { tokens: number(table.spec().n), first: 0, missing: f32::NAN };
        self.embed_from(step, table, vocabulary, vocabulary.tokens, out)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        gain: &CudaBuffer,
        epsilon: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let width = x.width;
        fits("the norm's input", x, rows, width)?;
        fits("the norm's gain", gain, 1, width)?;
        fits("the norm's output", out, rows, width)?;
        let side = Side::new("the norm's input", width)?;
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        self.read(x)?;
        self.read(gain)?;
        self.write(out)?;
        let source = rows::Source::Normed { x: x.at(), gain: gain.at(), epsilon };
        lock(&self.state).contents.promise(out, count, side, source, &[x, gain]);
        Ok(())
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        w: &CudaWeight,
        bias: Option<&CudaBuffer>,
        store: Store,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let spec = w.spec();
        fits("the product's input", x, rows, spec.k)?;
        fits("the product's output", out, rows, spec.n)?;
        if let Some(bias) = bias {
            fits("the bias", bias, 1, spec.n)?;
            self.read(bias)?;
        }
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        let direct = if w.outliers().is_some() { None } else { lock(&self.state).contents.source(x, count.get())? };
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
        let bias = bias.map_or(Ptr::NULL, CudaBuffer::at);
        self.with_room(|| w.make_ready())?;
        linear::product(self, count, source, &w.placed(), Output { out: out.at(), bias, add: store == Store::Add })
    }

    fn rotate_and_store(
        &mut self,
        step: &CudaStep,
        qkv: &mut CudaBuffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, CudaBuffer>,
        kv: &mut CudaKv,
        layer: usize,
    ) -> Result<()> {
        self.check_step(step)?;
        kv.check(shape, layer)?;
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        fits("Q, K and V", qkv, step.shape.rows, width)?;
        if step.shape.blocks > kv.blocks() {
            return Err(KernelError::Shape("a block of the step is outside the pool".into()));
        }
        let frequencies = rotary.inverse_frequencies;
        fits("the rotary frequencies", frequencies, 1, frequencies.width)?;
        for norm in [rotary.query_norm, rotary.key_norm].into_iter().flatten() {
            fits("a head's norm", norm, 1, shape.head_dim)?;
            self.read(norm)?;
        }
        let Some(count) = self.padded(step.shape.rows, &[qkv])? else { return Ok(()) };
        if !kv.is_backed(step.shape.blocks) {
            self.with_room(|| kv.back(step.shape.blocks))?;
        }
        self.read(qkv)?;
        self.write(qkv)?;
        let pairs = frequencies.width;
        let angles = Ptr::new(self.scratch(Slot::Angles, count.get() * 2 * pairs * size_of::<f32>())?);
        let made_of = (frequencies.at().address(), rotary.attention_factor.to_bits());
        if lock(&self.state).angles.replace(made_of) != Some(made_of) {
            self.read(frequencies)?;
            let factor = rotary.attention_factor;
            let launch = rotary::angles(count, step.positions, frequencies.at(), pairs, factor, angles);
            self.submit(Command::Launch(launch))?;
        }
        let norms = rotary::HeadNorms {
            query: rotary.query_norm.map_or(Ptr::NULL, CudaBuffer::at),
            key: rotary.key_norm.map_or(Ptr::NULL, CudaBuffer::at),
            epsilon: rotary.norm_epsilon,
        };
        let launch =
            rotary::rotate_and_store(count, qkv.at(), (angles, pairs), step.slots, shape, norms, &kv.pool(layer))?;
        self.submit(Command::Launch(launch))
    }

    fn attention(
        &mut self,
        step: &CudaStep,
        qkv: &CudaBuffer,
        shape: &AttentionShape,
        kv: &CudaKv,
        layer: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.check_step(step)?;
        kv.check(shape, layer)?;
        let rows = step.shape.rows;
        fits("Q, K and V", qkv, rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)?;
        fits("the attention's output", out, rows, shape.heads * shape.head_dim)?;
        if rows == 0 {
            return Ok(());
        }
        if step.shape.blocks > kv.blocks() || !kv.is_backed(step.shape.blocks) {
            return Err(KernelError::Shape("a block of the step was never stored into".into()));
        }
        self.read(qkv)?;
        self.write(out)?;
        super::attention::attend(self, step, qkv.at(), shape, &kv.pool(layer), out.at())
    }

    fn gated_silu(&mut self, rows: usize, x: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        let width = out.width;
        fits("gate and up", x, rows, 2 * width)?;
        fits("the activation", out, rows, width)?;
        let side = Side::new("the activation", width)?;
        let Some(count) = self.padded(rows, &[x, out])? else { return Ok(()) };
        self.read(x)?;
        self.write(out)?;
        lock(&self.state).contents.promise(out, count, side, rows::Source::Gated(x.at()), &[x]);
        Ok(())
    }

    fn gather_logit_rows(
        &mut self,
        step: &CudaStep,
        x: &CudaBuffer,
        range: Range<usize>,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.check_step(step)?;
        let width = x.width;
        if range.end > step.shape.logit_rows {
            return Err(KernelError::Shape(format!("rows {range:?} of {} with logits", step.shape.logit_rows)));
        }
        fits("the selected rows", out, range.len(), width)?;
        fits("the rows", x, step.shape.rows, width)?;
        let Some(count) = self.padded(range.len(), &[x, out])? else { return Ok(()) };
        self.read(x)?;
        self.write(out)?;
        let list = step.logit_rows.offset(range.start);
        let launch = rows::gather(count, x.at(), list, Side::new("the rows", width)?, out.at());
        self.submit(Command::Launch(launch))
    }

    fn end(&mut self, step: CudaStep) -> Result<()> {
        self.check_step(&step)?;
        self.shared.flush()
    }
}
