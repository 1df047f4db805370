//! Weights: a page-locked copy on the host for good, a copy on the device while it is used.
//!
//! ```text
//! absent --prefetch or use: map, copy on the side stream--> coming --its event--> resident --release--> absent
//! ```
//!
//! A weight has an address of its own for as long as it lives, resident or not: graphs that were captured with a profile
//! are right again when that profile's weights are back. Weights lie behind each other in the order in which they are
//! made, so that those of a layer, and the layers of a profile, share chunks: a chunk has memory while one of the weights
//! in it is in use.
//!
//! # Order
//! - A copy runs beside the computation; work that uses the weight waits for the copy's event, and only that work.
//! - Memory of a released weight is taken only when all work submitted before the release is done. The memory that a
//!   copy writes was therefore not in use when it was mapped, and no copy has to wait.
//! - When the budget is in use, the oldest released weight is waited for: a switch within one step goes on layer by
//!   layer, each as the other profile's has left.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex},
};

use super::{
    driver::{Address, Event, Pinned},
    executor::Located,
    layout::{self, GpuLayout},
    memory::{ALIGNMENT, Region, lock},
    operand::Placed,
    physical::Physical,
    shared::Shared,
};
use crate::{HostWeight, KernelError, PackedWeight, Presence, Result, WeightSpec};

/// Addresses reserved at once, unless a weight needs more: many weights of a layer, few reservations.
pub(super) const SEGMENT: usize = 16 << 30;

/// Where weights live on the device.
#[derive(Debug)]
pub(super) struct WeightSpace {
    physical: Arc<Physical>,
    shared: Arc<Shared>,
    /// The segment that new weights are placed in, and where.
    open: Mutex<Option<(Arc<Segment>, usize)>>,
    /// Released weights whose memory may still be in use, the oldest first.
    leaving: Mutex<VecDeque<Leaving>>,
}

/// A reserved range that weights lie in.
#[derive(Debug)]
struct Segment {
    base: Address,
    state: Mutex<SegmentState>,
}

#[derive(Debug)]
struct SegmentState {
    region: Region,
    /// Weights in use that touch each chunk.
    users: Vec<u32>,
}

#[derive(Debug)]
struct Leaving {
    /// Behind the last work that may use it; none when there was none.
    event: Option<Event>,
    segment: Arc<Segment>,
    bytes: Range<usize>,
}

/// A linear weight.
#[derive(Debug)]
pub struct CudaWeight {
    pub(super) layout: GpuLayout,
    /// Scale of all inputs (FP8 with static activations).
    pub(super) input_scale: Option<f32>,
    host: Pinned,
    segment: Arc<Segment>,
    offset: usize,
    space: Arc<WeightSpace>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Absent,
    /// Being copied; the event is behind the copy.
    Coming(Event),
    Resident,
}

impl WeightSpace {
    pub(super) fn new(physical: &Arc<Physical>, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            physical: physical.clone(),
            shared: shared.clone(),
            open: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// A weight from the CPU's layout, repacked for the device; absent.
    pub(super) fn weight(self: &Arc<Self>, packed: &PackedWeight) -> Result<CudaWeight> {
        self.weight_of(&packed.unpack()?)
    }

    /// A weight from its rows, packed for the device; absent.
    pub(super) fn weight_of(self: &Arc<Self>, rows: &HostWeight) -> Result<CudaWeight> {
        let input_scale = match rows {
            HostWeight::Fp8Static { input_scale, .. } => Some(*input_scale),
            _ => None,
        };
        let len = layout::gpu_len(&rows.spec())?;
        // What could never be resident is said when it is made, not when it is used.
        if len > self.physical.budget() {
            return Err(KernelError::OutOfMemory(format!(
                "a weight of {len} bytes does not fit the GPU's budget of {}",
                self.physical.budget()
            )));
        }
        let mut host = Pinned::zeroed(&self.shared.gpu.context, len)?;
        let layout = layout::pack_into(rows, host.bytes_mut())?;
        let (segment, offset) = self.place(len)?;
        let state = Mutex::new(State::Absent);
        Ok(CudaWeight { layout, input_scale, host, segment, offset, space: self.clone(), state })
    }

    fn place(&self, len: usize) -> Result<(Arc<Segment>, usize)> {
        let size = len.next_multiple_of(ALIGNMENT);
        let mut open = lock(&self.open);
        if let Some((segment, end)) = &mut *open
            && *end + size <= segment.bytes(&self.physical)
        {
            let offset = *end;
            *end += size;
            return Ok((segment.clone(), offset));
        }
        let region = Region::reserve(&self.physical, size.max(SEGMENT))?;
        let (base, chunks) = (region.base(), region.len());
        let state = Mutex::new(SegmentState { region, users: vec![0; chunks] });
        let segment = Arc::new(Segment { base, state });
        *open = Some((segment.clone(), size));
        Ok((segment, 0))
    }

    /// Takes the memory of released weights whose work is done.
    pub(super) fn settle(&self) -> Result<()> {
        let mut leaving = lock(&self.leaving);
        while let Some(first) = leaving.front() {
            if let Some(event) = &first.event
                && !event.is_done()?
            {
                break;
            }
            let Some(first) = leaving.pop_front() else { break };
            first.segment.give(&first.bytes)?;
        }
        Ok(())
    }

    /// Waits for the oldest released weight and takes its memory; false when there is none.
    fn settle_one(&self) -> Result<bool> {
        let mut leaving = lock(&self.leaving);
        let Some(first) = leaving.front() else { return Ok(false) };
        if let Some(event) = &first.event {
            event.wait()?;
        }
        let Some(first) = leaving.pop_front() else { return Ok(false) };
        first.segment.give(&first.bytes)?;
        Ok(true)
    }

    /// Waits for all released weights and takes their memory.
    pub(super) fn settle_all(&self) -> Result<()> {
        while self.settle_one()? {}
        Ok(())
    }

    /// Marks a range as leaving once the work up to now is done, that of a step that is being followed included. Between steps
    /// there is none: then it leaves at once, and a copy that comes next finds its memory.
    fn leave(&self, segment: &Arc<Segment>, bytes: Range<usize>) -> Result<()> {
        self.shared.flush()?;
        let compute = &self.shared.gpu.compute;
        let event = if compute.is_idle()? { None } else { Some(Event::record(compute)?) };
        lock(&self.leaving).push_back(Leaving { event, segment: segment.clone(), bytes });
        Ok(())
    }
}

impl Drop for WeightSpace {
    fn drop(&mut self) {
        // Regions must not be unmapped below running work.
        let _ = self.settle_all();
    }
}

impl Segment {
    fn bytes(&self, physical: &Physical) -> usize {
        lock(&self.state).region.len() * physical.chunk_bytes()
    }

    /// Puts memory below a range for one more user.
    fn take(&self, bytes: &Range<usize>) -> Result<()> {
        let mut state = lock(&self.state);
        let chunks = state.region.chunks_of(bytes.clone());
        state.region.map(chunks.clone())?;
        for users in &mut state.users[chunks] {
            *users += 1;
        }
        Ok(())
    }

    /// One user less: takes the memory of chunks that have none. A chunk that the driver would not unmap stays, and is
    /// used again or freed with the region.
    fn give(&self, bytes: &Range<usize>) -> Result<()> {
        let mut state = lock(&self.state);
        let chunks = state.region.chunks_of(bytes.clone());
        let mut done = Ok(());
        for chunk in chunks {
            state.users[chunk] -= 1;
            if state.users[chunk] == 0 {
                done = done.and(state.region.unmap(chunk..chunk + 1));
            }
        }
        done
    }
}

impl Located for CudaWeight {
    fn placed(&self) -> Placed {
        Placed { layout: self.layout, input_scale: self.input_scale, at: self.address() }
    }
}

impl CudaWeight {
    /// Kind and shape.
    pub fn spec(&self) -> WeightSpec {
        self.layout.spec
    }

    /// Its first address: fixed.
    pub(super) fn address(&self) -> Address {
        self.segment.base + self.offset as Address
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.host.bytes().len()
    }

    /// True while it has memory on the device.
    pub fn is_resident(&self) -> bool {
        !matches!(*lock(&self.state), State::Absent)
    }

    /// Where its bytes are; does not wait for a copy.
    pub(super) fn presence(&self) -> Result<Presence> {
        let state = lock(&self.state);
        Ok(match &*state {
            State::Absent => Presence::Absent,
            State::Resident => Presence::Here,
            State::Coming(event) => {
                self.space.shared.gpu.context.bind()?;
                if event.is_done()? { Presence::Here } else { Presence::Coming }
            }
        })
    }

    /// Starts the copy to the device if the budget has room for it now; else nothing happens, and the first use copies.
    pub(super) fn prefetch(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if !matches!(*state, State::Absent) {
            return Ok(());
        }
        self.space.settle()?;
        match self.start(&mut state) {
            Err(KernelError::OutOfMemory(_)) => Ok(()),
            done => done,
        }
    }

    /// Makes the work submitted to the compute stream from now on see the weight; copies it if it is not there.
    pub(super) fn make_ready(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Absent) {
            self.space.settle()?;
            loop {
                match self.start(&mut state) {
                    Err(KernelError::OutOfMemory(reason)) => {
                        if !self.space.settle_one()? {
                            return Err(KernelError::OutOfMemory(reason));
                        }
                    }
                    done => break done?,
                }
            }
        }
        if let State::Coming(event) = &*state {
            // The compute stream is in order: whoever comes later on it is behind this wait too.
            self.space.shared.gpu.compute.wait(event)?;
            if event.is_done()? {
                *state = State::Resident;
            }
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<()> {
        let range = self.range();
        self.segment.take(&range)?;
        // SAFETY: the page-locked copy lives and stays unchanged until `drop` has waited for the event; the range was
        // mapped just now and stays so until `release`, which comes behind the copy.
        let copied =
            unsafe { self.space.shared.gpu.copies.upload(self.address(), self.host.bytes().as_ptr(), range.len()) }
                .and_then(|()| Event::record(&self.space.shared.gpu.copies));
        match copied {
            Ok(event) => {
                *state = State::Coming(event);
                Ok(())
            }
            Err(error) => {
                // The copy may have been submitted all the same.
                let _ = self.space.shared.gpu.copies.synchronize();
                let _ = self.segment.give(&range);
                Err(error)
            }
        }
    }

    /// Gives its memory back when the work submitted up to now is done.
    pub(super) fn release(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if let State::Coming(event) = &*state {
            // Never used since its copy began: the compute stream has not waited for it.
            self.space.shared.gpu.compute.wait(event)?;
        }
        if !matches!(*state, State::Absent) {
            self.space.leave(&self.segment, self.range())?;
            *state = State::Absent;
        }
        self.space.settle()
    }
}

impl Drop for CudaWeight {
    fn drop(&mut self) {
        // The host's copy must outlive the copy to the device.
        if let State::Coming(event) = &*lock(&self.state) {
            let _ = event.wait();
        }
        if self.release().is_err() {
            let _ = self.space.shared.finish();
        }
    }
}
