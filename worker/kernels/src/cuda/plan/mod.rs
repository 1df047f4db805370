//! [`Planner`]: the kernels of a step, without a device.
//!
//! It implements the traits, so that model code runs on it as on a GPU; what comes out is a list of the kernels that the
//! GPU would be given, with their grids, bytes and operations. Operations are the device's own code (see
//! [`executor`](super::executor)); a test on the emulated device compares the lists.
//!
//! | module | what it holds |
//! |---|---|
//! | this one | the options, the list |
//! | [`values`] | what stands for buffers, weights, the pool and a step |
//! | [`backend`] | the traits |

mod backend;
mod values;

use std::sync::Mutex;

use self::values::address;
pub use self::values::{PlanBuffer, PlanKv, PlanStep, PlanWeight};
use super::{
    content::Held,
    cublaslt::{Operands, Shape},
    driver::Address,
    executor::Executor,
    graph::Command,
    layout::GpuLayout,
    linear,
    memory::lock,
    operand::Placed,
    operations,
    present::Present,
    scratch::Slot,
    work::Work,
};
use crate::{Result, Split, WeightSpec};

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
    present: Present,
    /// A step has begun and is not over.
    in_step: bool,
    planned: Vec<Planned>,
    /// The operation that commands are of.
    part: &'static str,
    next_buffer: u64,
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
    /// [`KernelError::Shape`](crate::KernelError::Shape) when the kind cannot hold the shape.
    pub fn planned_weight(&self, part: &'static str, spec: &WeightSpec, split: Split) -> Result<PlanWeight> {
        let layout = GpuLayout::new(spec)?;
        let input_scale = (spec.kind == crate::WeightKind::Fp8Static).then_some(1.0);
        let placed = Placed { layout, input_scale, at: address(1 << 20) };
        Ok(PlanWeight { placed, part, split })
    }

    /// Adds an entry to the part that began last.
    fn plan(&self, what: What, name: &'static str, grid: [u32; 3], work: Work) {
        let mut state = lock(&self.state);
        let part = state.part;
        state.planned.push(Planned { what, name, part, grid, work });
    }

    /// A sum over the devices of the rows of `out` that were computed, where each has a part of them.
    fn sum(&self, is_part: bool, rows: usize, inputs: &[&PlanBuffer], out: &PlanBuffer) -> Result<()> {
        if !is_part || self.options.devices == 1 {
            return Ok(());
        }
        let buffers: Vec<&PlanBuffer> = inputs.iter().copied().chain([out]).collect();
        let Some(count) = operations::padded(self, rows, &buffers)? else { return Ok(()) };
        self.submit(Command::AllReduce { at: out.at().address(), count: count.get() * out.width })
    }

    /// Names the operation that what follows is of.
    fn begin_part(&self, part: &'static str) {
        lock(&self.state).part = part;
    }
}

impl Executor for Planner {
    type Buffer = PlanBuffer;
    type Weight = PlanWeight;
    type Kv = PlanKv;

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

    fn send(&self, slot: Slot, bytes: &[u8]) -> Result<Address> {
        self.plan(What::HostCopy, "copy_to_device", [0; 3], Work::bytes(0, bytes.len()));
        // As on a device, what is recorded of a step is over.
        lock(&self.state).in_step = false;
        self.scratch(slot, bytes.len())
    }

    fn present<T>(&self, work: impl FnOnce(&mut Present) -> T) -> T {
        work(&mut lock(&self.state).present)
    }

    fn is_in_step(&self) -> bool {
        lock(&self.state).in_step
    }

    fn make_ready(&self, _weight: &PlanWeight) -> Result<()> {
        Ok(())
    }

    fn back(&self, _kv: &mut PlanKv, _blocks: usize) -> Result<()> {
        Ok(())
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
