//! What kernels take, by type: pointers have the type of what they point to, sides are [`Side`]s and rows [`Rows`]. What a
//! kernel cannot take has no value, and an argument in the wrong place does not compile.

use std::marker::PhantomData;

use super::driver::{Address, Parameters};
use crate::{KernelError, Result};

/// An address of elements of a type.
#[derive(Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Ptr<T>(Address, PhantomData<T>);

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}

impl<T> Ptr<T> {
    pub(super) const NULL: Self = Self(0, PhantomData);

    pub(super) fn new(address: Address) -> Self {
        Self(address, PhantomData)
    }

    pub(super) fn address(self) -> Address {
        self.0
    }

    pub(super) fn is_null(self) -> bool {
        self.0 == 0
    }

    /// `count` elements further; null stays null.
    pub(super) fn offset(self, count: usize) -> Self {
        if self.is_null() { self } else { Self::new(self.0 + (count * size_of::<T>()) as Address) }
    }
}

/// BF16 on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Half(#[allow(dead_code, reason = "gives the size of an element")] u16);

/// The columns of a matrix that kernels take 16 bytes at a time: a multiple of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side(u32);

impl Side {
    /// # Errors
    /// [`KernelError::Shape`] for sides that are no multiple of 4 or zero.
    pub(super) fn new(what: &str, side: usize) -> Result<Self> {
        match u32::try_from(side) {
            Ok(value) if value > 0 && value % 4 == 0 => Ok(Self(value)),
            _ => Err(KernelError::Shape(format!("{what} has {side} columns; the GPU's kernels take multiples of 4"))),
        }
    }

    pub(super) fn get(self) -> usize {
        self.0 as usize
    }
}

/// Rows of a launch, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows(u32);

impl Rows {
    /// None without rows: then there is nothing to launch.
    ///
    /// # Errors
    /// [`KernelError::Shape`] beyond what a grid can have.
    pub(super) fn new(rows: usize) -> Result<Option<Self>> {
        match u32::try_from(rows) {
            Ok(rows) if i32::try_from(rows).is_ok() => Ok((rows > 0).then_some(Self(rows))),
            _ => Err(KernelError::Shape(format!("{rows} rows are more than a launch can have"))),
        }
    }

    pub(super) fn get(self) -> usize {
        self.0 as usize
    }
}

impl Parameters {
    pub(super) fn ptr<T>(self, value: Ptr<T>) -> Self {
        self.with(value.0)
    }

    pub(super) fn side(self, value: Side) -> Self {
        self.with(value.0)
    }
}
