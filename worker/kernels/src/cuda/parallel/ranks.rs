//! One thread a device, and what they are given to do.
//!
//! Every thread gets the same operations in the same order. An operation is *submitted*: the caller does not wait, as a wait for
//! each of some ten operations a layer would cost more than a decode step; or *asked*: the caller waits for what all say.
//!
//! # Failures
//! A device that fails in a submitted operation goes on with the others, and takes part in all later sums: the devices wait in these
//! for each other. What they compute is void, and the first failure is told at the end of the step ([`Rank::tell`]). Only a device
//! that cannot take part in a sum, or has lost its context, parts the devices for good ([`Group::part`]).
//!
//! # No deadlock
//! Whatever is asked first ends the step on all devices (`Cuda::flush`): so a device that waits, in it, for a sum has every
//! other device's part of it on its way.

use std::{
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
};

use super::group::{Group, Member};
use crate::{
    Backend, KernelError, Result, StepPlan,
    cuda::{Cuda, CudaOptions, CudaStep},
};

/// A device, on its thread.
pub(super) struct Rank {
    /// Its place among the devices.
    pub(super) index: usize,
    pub(super) cuda: Cuda,
    /// The present step; none when beginning it failed.
    pub(super) step: Option<CudaStep>,
    group: Option<Arc<Group>>,
    /// The first failure that was not told.
    failed: Option<KernelError>,
}

type Work = Arc<dyn Fn(&mut Rank) + Send + Sync>;

/// The devices' threads.
#[derive(Debug)]
pub(super) struct Ranks {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    work: Option<mpsc::Sender<Work>>,
    handle: Option<JoinHandle<()>>,
}

impl Rank {
    /// A step of this number begins on all devices.
    pub(super) fn begin_step(&mut self, number: u64, plan: &StepPlan) -> Result<()> {
        // The last one ends, if nothing has ended it.
        let ended = self.cuda.flush();
        self.step = None;
        let begun = self.cuda.begin(plan).map(|step| self.step = Some(step));
        // Where it did not begin, too: the others wait for this device's vote. And not before: to begin is to flush once more.
        self.cuda.begin_together(number);
        ended.and(begun)
    }

    /// Sums a buffer's first rows over the devices, and parts them if this one cannot.
    pub(super) fn all_reduce(&mut self, buffer: Result<crate::cuda::CudaBuffer>, rows: usize) -> Result<()> {
        let done = buffer.and_then(|buffer| self.cuda.all_reduce(&buffer, rows));
        if let (Err(error), Some(group)) = (&done, &self.group) {
            group.part(format!("GPU {} of the model: {error}", self.index));
        }
        done
    }

    /// The present step on this device.
    pub(super) fn step(&self) -> Result<CudaStep> {
        self.step.clone().ok_or_else(|| KernelError::Device("the step did not begin on this GPU".into()))
    }

    /// What failed since this was asked last.
    pub(super) fn tell(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Does something unless the devices are parted, and parts them if this device is lost afterwards.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Some(group) = self.group.clone() else { return work(self) };
        group.check()?;
        let done = work(self);
        if let Err(error) = &done
            && self.cuda.is_lost()
        {
            group.part(format!("GPU {} of the model: {error}", self.index));
        }
        // Sums that were on their way when the devices were parted have no result.
        if done.is_ok() { group.check().and(done) } else { done }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(group) = &self.group
        {
            group.part(format!("the thread of GPU {} ended", self.index));
        }
    }
}

impl Ranks {
    /// Opens each device on a thread of its own, all at once.
    ///
    /// # Errors
    /// The first device's that cannot be opened.
    pub(super) fn open(options: &[CudaOptions]) -> Result<Self> {
        let (opened, results) = mpsc::channel();
        let mut threads = Vec::with_capacity(options.len());
        for (index, options) in options.iter().enumerate() {
            let (work, tasks) = mpsc::channel::<Work>();
            let (opened, options) = (opened.clone(), options.clone());
            let run = move || {
                let cuda = match Cuda::new(options) {
                    Ok(cuda) => cuda,
                    Err(error) => {
                        let _ = opened.send((index, Err(error)));
                        return;
                    }
                };
                let _ = opened.send((index, Ok(())));
                drop(opened);
                let mut rank = Rank { index, cuda, step: None, group: None, failed: None };
                while let Ok(task) = tasks.recv() {
                    task(&mut rank);
                }
            };
            let spawned = Builder::new().name(format!("gpu-{index}")).spawn(run);
            let handle = spawned.map_err(|source| KernelError::Io { path: "a thread".into(), source })?;
            threads.push(Thread { work: Some(work), handle: Some(handle) });
        }
        drop(opened);
        let ranks = Self { threads };
        gather(&results, ranks.len()).map(|_: Vec<()>| ranks)
    }

    /// Devices.
    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Makes the devices, of these numbers, a group.
    pub(super) fn join(&self, group: &Arc<Group>, ordinals: &[usize]) -> Result<()> {
        let (group, ordinals) = (group.clone(), ordinals.to_vec());
        self.ask(move |rank| {
            rank.cuda.join(Member::new(&group, rank.index), &ordinals)?;
            rank.group = Some(group.clone());
            Ok(())
        })
        .map(|_| ())
    }

    /// Gives all devices something to do, without waiting. What fails is told at the end of the step.
    pub(super) fn submit(&self, work: impl Fn(&mut Rank) -> Result<()> + Send + Sync + 'static) {
        self.each(move |rank| {
            if let Err(error) = rank.attempt(&work) {
                rank.failed.get_or_insert(error);
            }
        });
    }

    /// Ends the step on all devices, has them do something, and waits for what they say.
    ///
    /// # Errors
    /// The first device's, in the order of the devices.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Rank) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        let (answer, answers) = mpsc::channel();
        self.each(move |rank| {
            let done = rank.attempt(|rank| {
                rank.cuda.flush()?;
                work(rank)
            });
            // The caller may have heard enough.
            let _ = answer.send((rank.index, done));
        });
        gather(&answers, self.len())
    }

    /// Gives all devices something to do, also when they are parted.
    pub(super) fn each(&self, work: impl Fn(&mut Rank) + Send + Sync + 'static) {
        let work: Work = Arc::new(work);
        for thread in &self.threads {
            if let Some(sender) = &thread.work {
                // A thread that is gone is told by whoever waits for its answer.
                let _ = sender.send(work.clone());
            }
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.work = None;
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// All devices' answers in their order.
fn gather<T>(answers: &mpsc::Receiver<(usize, Result<T>)>, devices: usize) -> Result<Vec<T>> {
    let mut all: Vec<Option<Result<T>>> = (0..devices).map(|_| None).collect();
    while let Ok((index, answer)) = answers.recv() {
        all[index] = Some(answer);
        if all.iter().all(Option::is_some) {
            break;
        }
    }
    let ended = || Err(KernelError::Device("its thread ended; restart the worker".into()));
    let answers: Vec<Result<T>> = all.into_iter().map(|answer| answer.unwrap_or_else(ended)).collect();
    // Of several the one that says why: the others were parted by it.
    let mut values = Vec::with_capacity(devices);
    let mut failed: Option<KernelError> = None;
    for (index, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(value) => values.push(value),
            Err(error) if failed.is_none() => failed = Some(of_device(index, error)),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(values), Err)
}

/// Says which device an error is of.
fn of_device(index: usize, error: KernelError) -> KernelError {
    let of = |text: String| format!("GPU {index} of the model: {text}");
    match error {
        KernelError::Shape(text) => KernelError::Shape(text),
        KernelError::Format(text) => KernelError::Format(text),
        KernelError::OutOfMemory(text) => KernelError::OutOfMemory(of(text)),
        KernelError::Device(text) => KernelError::Device(of(text)),
        KernelError::Io { path, source } => KernelError::Io { path, source },
    }
}
