//! How long each kernel of a step takes on the device, between two events.
//!
//! A step's commands are written down while they run, then repeated kind by kind: all commands of one kernel, grid and
//! work behind each other, so that the layers' weights follow one another as in a step and do not all come from the L2
//! cache. What they compute meanwhile is of no use: residuals are added to again and again.

use std::ptr;

use cudarc::driver::sys;

use super::{
    Cuda,
    driver::{Pinned, Stream, check},
    graph::{Command, Queue},
    work::Work,
};
use crate::Result;

/// A kernel of a step, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiled {
    /// Its name, as in [`Planned::name`](super::Planned::name).
    pub name: &'static str,
    /// Blocks; zeros where the library or the driver chooses.
    pub grid: [u32; 3],
    /// Bytes and operations.
    pub work: Work,
    /// How often the step has it.
    pub count: usize,
    /// Seconds of one, the gap to the next included.
    pub seconds: f64,
}

impl Cuda {
    /// Runs a step (or several), then measures each of its kinds of kernels in `repeats` rounds.
    ///
    /// Buffers and cache hold nothing sensible afterwards. Nothing that the step used may have been dropped by it.
    ///
    /// # Errors
    /// The step's and the driver's.
    pub fn profile(&mut self, repeats: usize, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<Vec<Profiled>> {
        self.shared.flush()?;
        self.shared.queue(|queue| queue.write_down(true));
        let ran = step(self);
        let commands = self.shared.queue(|queue| queue.write_down(false));
        ran?;
        self.shared.finish()?;
        groups(commands)
            .into_iter()
            .map(|group| {
                let (name, grid, work) = group[0].summary();
                let seconds = self.time(repeats, &group)?;
                Ok(Profiled { name, grid, work, count: group.len(), seconds })
            })
            .collect()
    }

    /// From now on kernels overlap, or do not ([`CudaOptions::overlap`](super::CudaOptions::overlap)): to measure what it is worth.
    /// Recorded steps are forgotten.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_overlap(&mut self, on: bool) -> Result<()> {
        self.shared.finish()?;
        self.shared.queue(Queue::forget);
        self.shared.gpu.compute.overlap(on);
        Ok(())
    }

    /// From now on products with group-wise weights unpack these from so many rows on: to measure where it begins to pay.
    pub fn unpack_from(&mut self, rows: usize) {
        self.options.unpack_rows = rows;
    }

    /// Every command that a step submits, in order: name, blocks, work. Steps are not recorded as graphs meanwhile.
    ///
    /// # Errors
    /// The step's and the driver's.
    pub fn trace(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<Vec<(&'static str, [u32; 3], Work)>> {
        self.shared.flush()?;
        self.shared.queue(|queue| queue.write_down(true));
        let ran = step(self);
        let commands = self.shared.queue(|queue| queue.write_down(false));
        ran?;
        Ok(commands.iter().map(Command::summary).collect())
    }

    /// Seconds of one command of a group.
    fn time(&self, repeats: usize, group: &[Command]) -> Result<f64> {
        let round = || group.iter().try_for_each(|command| self.submit(command.clone()));
        round()?;
        let stream = &self.shared.gpu.compute;
        let (start, end) = (Timestamp::new()?, Timestamp::new()?);
        start.record(stream)?;
        (0..repeats).try_for_each(|_| round())?;
        end.record(stream)?;
        stream.synchronize()?;
        Ok(end.seconds_since(&start)? / (repeats * group.len()).max(1) as f64)
    }

    /// Seconds that the device takes for what `work` submits, by its own clock.
    ///
    /// # Errors
    /// Of `work`, and the driver's.
    pub fn seconds(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<f64> {
        self.shared.finish()?;
        let (start, end) = (Timestamp::new()?, Timestamp::new()?);
        start.record(&self.shared.gpu.compute)?;
        let done = work(self);
        let flushed = self.shared.flush();
        end.record(&self.shared.gpu.compute)?;
        self.shared.gpu.compute.synchronize()?;
        done.and(flushed)?;
        end.seconds_since(&start)
    }
}

/// Bytes per second of plain copies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Within the device's memory, bytes read and written counted together.
    pub device: f64,
    /// From page-locked memory of the host.
    pub from_host: f64,
    /// To page-locked memory of the host.
    pub to_host: f64,
}

impl Cuda {
    /// Copies `bytes` to and fro, `repeats` times each way.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`](crate::KernelError::OutOfMemory) when the budget does not hold them twice; the driver's.
    pub fn bandwidth(&mut self, bytes: usize, repeats: usize) -> Result<Bandwidth> {
        let [from, to] = [self.block(bytes)?, self.block(bytes)?];
        let mut host = Pinned::zeroed(&self.shared.gpu.context, bytes)?;
        let host_at = host.bytes_mut().as_mut_ptr();
        let stream = self.shared.gpu.compute.clone();
        let mut rate = |moved: usize, copy: &dyn Fn() -> Result<()>| -> Result<f64> {
            copy()?;
            let seconds = self.seconds(|_| (0..repeats).try_for_each(|_| copy()))?;
            Ok((moved * repeats) as f64 / seconds)
        };
        let device = rate(2 * bytes, &|| {
            // SAFETY: both blocks have so many bytes and live until the stream was waited for in `seconds`.
            let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), bytes, stream.raw()) };
            check("cuMemcpyDtoDAsync", copied)
        })?;
        // SAFETY: as above; so does the host's memory.
        let from_host = rate(bytes, &|| unsafe { stream.upload(to.address(), host_at, bytes) })?;
        // SAFETY: as above; nobody looks at the host's memory meanwhile.
        let to_host = rate(bytes, &|| unsafe { stream.download(host_at, from.address(), bytes) })?;
        Ok(Bandwidth { device, from_host, to_host })
    }
}

/// Commands of the same name, grid and work, in the order of each kind's first.
fn groups(commands: Vec<Command>) -> Vec<Vec<Command>> {
    let mut groups: Vec<Vec<Command>> = Vec::new();
    for command in commands {
        match groups.iter_mut().find(|group| group[0].summary() == command.summary()) {
            Some(group) => group.push(command),
            None => groups.push(vec![command]),
        }
    }
    groups
}

/// An event with a time.
struct Timestamp(sys::CUevent);

impl Timestamp {
    /// In the current context.
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place to write; every caller has bound the context.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&raw mut raw, sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
        })?;
        Ok(Self(raw))
    }

    fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.raw()) })
    }

    fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        let mut milliseconds = 0.0f32;
        // SAFETY: both live and are over.
        let asked = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, earlier.0, self.0) };
        check("cuEventElapsedTime", asked)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Timestamp {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
