//! Buffers, weights and pools of several devices: one part on each.

use std::sync::{Arc, Mutex, OnceLock};

use super::{
    ranks::{Rank, Ranks},
    split::{Division, Share},
};
use crate::{
    Device, KernelError, KvLayout, KvScales, Result, WeightSpec,
    cuda::{CudaBuffer, CudaKv, CudaWeight, memory::lock},
};

/// Something that each device has a part of; a part is touched by its device's thread only.
#[derive(Debug)]
pub(super) struct Parts<T>(Arc<[Mutex<Option<T>>]>);

impl<T> Clone for Parts<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Parts<T> {
    pub(super) fn new(parts: Vec<T>) -> Self {
        Self(parts.into_iter().map(|part| Mutex::new(Some(part))).collect())
    }

    /// None there yet.
    pub(super) fn empty(devices: usize) -> Self {
        Self((0..devices).map(|_| Mutex::new(None)).collect())
    }

    /// Does something with a device's part.
    pub(super) fn with<R>(&self, index: usize, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut part = lock(&self.0[index]);
        let gone = || KernelError::Device("a part of a value is missing, since making it failed before".into());
        work(part.as_mut().ok_or_else(gone)?)
    }

    pub(super) fn take(&self, rank: &Rank) -> Option<T> {
        lock(&self.0[rank.index]).take()
    }

    pub(super) fn put(&self, rank: &Rank, part: T) {
        *lock(&self.0[rank.index]) = Some(part);
    }
}

impl Parts<CudaBuffer> {
    /// A device's buffer, as another name of it.
    pub(super) fn get(&self, rank: &Rank) -> Result<CudaBuffer> {
        self.with(rank.index, |buffer| Ok(buffer.alias()))
    }
}

/// An FP32 matrix `[rows, width]`, whole on every device or divided by columns.
///
/// Which of the two follows from what writes it: a new buffer is whole, so that a model that has its buffers has their memory,
/// and gets smaller when a product whose outputs are divided first writes it.
#[derive(Debug)]
pub struct ParallelBuffer {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// None: each device has all columns.
    pub(super) division: Option<Division>,
    pub(super) parts: Parts<CudaBuffer>,
    /// The values of an uploaded row: a bias of a divided product is cut from them.
    pub(super) row: Option<Arc<[f32]>>,
    /// This bias.
    pub(super) bias: OnceLock<(Division, Parts<CudaBuffer>)>,
}

impl ParallelBuffer {
    /// Whole; `row` are its values where it is an uploaded row.
    pub(super) fn new(rows: usize, width: usize, parts: Vec<CudaBuffer>, row: Option<Arc<[f32]>>) -> Self {
        Self { rows, width, division: None, parts: Parts::new(parts), row, bias: OnceLock::new() }
    }

    /// Makes it be divided so (or whole) before all of it is written. What it held is lost where that changes.
    pub(super) fn divide(&mut self, ranks: &Ranks, division: Option<&Division>) {
        // Its values are about to be others.
        self.row = None;
        self.bias = OnceLock::new();
        if self.division.as_ref() == division {
            return;
        }
        self.division = division.cloned();
        let (rows, width, division, parts) = (self.rows, self.width, division.cloned(), self.parts.clone());
        ranks.submit(move |rank| {
            // Given back first: the new one may need its place.
            drop(parts.take(rank));
            let own = division.as_ref().map_or(width, |division| division.width(rank.index));
            let buffer = rank.cuda.buffer(rows, own)?;
            parts.put(rank, buffer);
            Ok(())
        });
    }

    /// # Errors
    /// [`KernelError::Shape`] when it has not so many rows and columns.
    pub(super) fn check(&self, what: &str, rows: usize, width: usize) -> Result<()> {
        if self.width == width && self.rows >= rows {
            return Ok(());
        }
        Err(KernelError::Shape(format!("{what} is {} x {}, not {rows} x {width}", self.rows, self.width)))
    }

    /// # Errors
    /// [`KernelError::Shape`] when it is not divided so (or whole).
    pub(super) fn check_division(&self, what: &str, division: Option<&Division>) -> Result<()> {
        if self.division.as_ref() == division {
            return Ok(());
        }
        let name = |division: Option<&Division>| {
            if division.is_some() { "divided over the GPUs" } else { "whole on each GPU" }
        };
        Err(KernelError::Shape(format!(
            "{what} is {}{}; here it must be {}{}",
            name(self.division.as_ref()),
            if self.division.is_some() && division.is_some() { " by other columns" } else { "" },
            name(division),
            if self.division.is_some() && division.is_some() { " as its weight is" } else { "" },
        )))
    }
}

/// A linear weight, divided as its [`Split`](crate::Split) says.
#[derive(Debug)]
pub struct ParallelWeight {
    pub(super) spec: WeightSpec,
    pub(super) share: Share,
    pub(super) parts: Parts<CudaWeight>,
    pub(super) ranks: Arc<Ranks>,
}

impl Drop for ParallelWeight {
    fn drop(&mut self) {
        give_back(&self.ranks, &self.parts);
    }
}

/// A paged KV pool: each device has its heads of every block.
#[derive(Debug)]
pub struct ParallelKv {
    pub(super) layout: KvLayout,
    pub(super) scales: KvScales,
    /// False: each device has all heads (a model whose weights are not divided).
    pub(super) divided: bool,
    /// Something was stored: how it is divided is settled.
    pub(super) used: bool,
    pub(super) blocks: usize,
    pub(super) max_blocks: usize,
    pub(super) parts: Parts<CudaKv>,
    pub(super) ranks: Arc<Ranks>,
}

impl Drop for ParallelKv {
    fn drop(&mut self) {
        give_back(&self.ranks, &self.parts);
    }
}

/// Drops parts on their devices' threads, behind what each has been given: dropping ends the step and may wait for the device, so
/// all devices must do it, each at the same point of its work.
fn give_back<T: Send + 'static>(ranks: &Ranks, parts: &Parts<T>) {
    let parts = parts.clone();
    ranks.each(move |rank| drop(parts.take(rank)));
}

/// A step's metadata on the devices.
#[derive(Debug)]
pub struct ParallelStep {
    /// Which call of `begin` it is of.
    pub(super) number: u64,
    pub(super) rows: usize,
    pub(super) logit_rows: usize,
}
