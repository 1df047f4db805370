//! What a step's time goes to: a backend around another one, which times each of its operations.
//!
//! ```text
//! Model ──> Traced ──> Cpu
//!             └──> Step { plan, calls: [Call { kernel, layer, start, duration }] }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`work`] | bytes and operations of a kernel, by its shapes |
//! | `backend` | the operations of a step, timed |
//! | this one | [`Traced`] as a device, and what it records |
//!
//! Nothing is paid for where nothing is traced: it is another type, not a question that a step asks. Weights, buffers and the
//! cache are wrapped with their shapes, since a device does not tell them.

mod backend;
pub mod work;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use modelprofile_kernels::{
    Backend, BlockMove, Device, GroupedActivations, HostTensor, KvLayout, KvScales, PackedWeight, Presence, Result,
    Split, StepPlan, WeightSpec, Workload,
};

pub use work::{Bound, Kernel, Product, Work};

/// A backend that records when each of its operations started and how long it took.
///
/// The time is the host's, around each call: it is the kernel's on a backend that has computed when a call returns, as
/// [`Cpu`](modelprofile_kernels::cpu::Cpu) has. On one that only hands work on it would be the time of handing on.
pub struct Traced<B: Backend> {
    backend: B,
    /// What times count from.
    origin: Instant,
    /// Shared, because [`Device::download`] takes `&self`; a device is not shared between threads.
    recorder: RefCell<Recorder>,
}

/// A step that came to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it computed.
    pub plan: StepPlan,
    /// From the backend's opening.
    pub start: Duration,
    /// From before [`Kernel::Begin`] until behind [`Kernel::End`].
    pub duration: Duration,
    /// Its kernels, one after the other.
    pub calls: Vec<Call>,
}

/// A kernel of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What was computed.
    pub kernel: Kernel,
    /// Of which layer; `None` before the first and behind the last.
    pub layer: Option<usize>,
    /// From the backend's opening.
    pub start: Duration,
    /// How long.
    pub duration: Duration,
}

/// Steps, and where in the model the current one is.
#[derive(Default)]
struct Recorder {
    steps: Vec<Step>,
    /// The step that has begun. One that failed stays here until the next begins.
    current: Option<Step>,
    layer: Option<usize>,
}

impl Recorder {
    /// Adds a kernel to the current step; outside of one, such as a download between steps, nothing is recorded.
    fn add(&mut self, kernel: Kernel, start: Duration, end: Duration) {
        let Some(step) = &mut self.current else { return };
        // A layer is what follows the embedding, and ends with the product behind the activation.
        let activated = step.calls.last().is_some_and(|call| matches!(call.kernel, Kernel::GatedSilu { .. }));
        if matches!(kernel, Kernel::GatherLogitRows { .. } | Kernel::End) {
            self.layer = None;
        }
        step.calls.push(Call { kernel, layer: self.layer, start, duration: end.saturating_sub(start) });
        if matches!(kernel, Kernel::Embed(_)) {
            self.layer = Some(0);
        } else if activated {
            self.layer = self.layer.map(|layer| layer + 1);
        }
    }

    /// The product that comes next with a weight divided like this; the names are those of an artifact's tensors.
    fn part(&self, split: Split) -> &'static str {
        let last = self.current.as_ref().and_then(|step| step.calls.last()).map(|call| call.kernel);
        match split {
            Split::Heads { .. } => "qkv",
            Split::Halves => "gate_up",
            Split::Inputs if matches!(last, Some(Kernel::GatedSilu { .. })) => "down",
            Split::Inputs => "attention_output",
            Split::Outputs => "output",
            Split::Replicated => "product",
        }
    }
}

/// Something of the device's with what it is like.
pub struct Known<T, A> {
    inner: T,
    about: A,
}

/// What is known of a weight.
#[derive(Clone, Copy, Debug)]
pub struct AboutWeight {
    weight: work::Weight,
    split: Split,
}

impl<B: Backend> Traced<B> {
    /// Times the operations of this backend from now on.
    pub fn new(backend: B) -> Self {
        Self { backend, origin: Instant::now(), recorder: RefCell::default() }
    }

    /// The steps that ended since they were taken last.
    pub fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.recorder.get_mut().steps)
    }
}

impl<B: Backend> Device for Traced<B> {
    /// With its columns.
    type Buffer = Known<B::Buffer, usize>;
    type Weight = Known<B::Weight, AboutWeight>;
    type Kv = Known<B::Kv, KvLayout>;

    fn name(&self) -> String {
        self.backend.name()
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer> {
        Ok(Known { inner: self.backend.buffer(rows, width)?, about: width })
    }

    fn upload(&self, host: &HostTensor) -> Result<Self::Buffer> {
        Ok(Known { inner: self.backend.upload(host)?, about: host.width })
    }

    fn download(&self, buffer: &Self::Buffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        let start = self.origin.elapsed();
        let result = self.backend.download(&buffer.inner, rows, host);
        let end = self.origin.elapsed();
        self.recorder.borrow_mut().add(Kernel::Download { rows, width: buffer.about }, start, end);
        result
    }

    fn weight(&self, packed: &PackedWeight, split: Split) -> Result<Self::Weight> {
        let inner = self.backend.weight(packed, split)?;
        let bytes = self.backend.weight_bytes(&packed.spec, split)?;
        Ok(Known { inner, about: AboutWeight { weight: work::Weight { spec: packed.spec, bytes }, split } })
    }

    fn weight_bytes(&self, spec: &WeightSpec, split: Split) -> Result<usize> {
        self.backend.weight_bytes(spec, split)
    }

    fn kv_block_bytes(&self, layout: &KvLayout) -> usize {
        self.backend.kv_block_bytes(layout)
    }

    fn grouped_activations(&self) -> GroupedActivations {
        self.backend.grouped_activations()
    }

    fn host_bandwidth(&self) -> Option<f64> {
        self.backend.host_bandwidth()
    }

    fn reserve(&self, workload: &Workload) -> Result<usize> {
        self.backend.reserve(workload)
    }

    fn prefetch(&self, weight: &Self::Weight) {
        self.backend.prefetch(&weight.inner);
    }

    fn presence(&self, weight: &Self::Weight) -> Presence {
        self.backend.presence(&weight.inner)
    }

    fn release(&self, weight: &Self::Weight) {
        self.backend.release(&weight.inner);
    }

    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<Self::Kv> {
        Ok(Known { inner: self.backend.kv(layout, scales, blocks, max_blocks)?, about: layout })
    }

    fn kv_resize(&self, kv: &mut Self::Kv, blocks: usize) -> Result<()> {
        self.backend.kv_resize(&mut kv.inner, blocks)
    }

    fn kv_move(&self, kv: &mut Self::Kv, moves: &[BlockMove]) -> Result<()> {
        self.backend.kv_move(&mut kv.inner, moves)
    }
}
