//! A kernel's parameters as one value.

use std::{ffi::c_void, ptr};

/// Most parameters of a kernel, and most words of them: a structure passed by value takes several.
const MAX_PARAMETERS: usize = 24;
const MAX_WORDS: usize = 48;

/// A kernel's parameters by value, comparable: two launches with equal parameters do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct Parameters {
    words: [u64; MAX_WORDS],
    /// Where each parameter starts.
    starts: [u8; MAX_PARAMETERS],
    count: u8,
    used: u8,
}

impl Parameters {
    pub(in crate::cuda) const fn new() -> Self {
        Self { words: [0; MAX_WORDS], starts: [0; MAX_PARAMETERS], count: 0, used: 0 }
    }

    /// Appends a parameter: a number, an address or a structure of them, as the kernel declares it.
    pub(in crate::cuda) fn with<T: bytemuck::NoUninit>(mut self, value: T) -> Self {
        const { assert!(align_of::<T>() <= 8, "parameters start at words") };
        let (start, words) = (usize::from(self.used), size_of::<T>().div_ceil(8));
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words[start..start + words]);
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        self.starts[usize::from(self.count)] = self.used;
        self.count += 1;
        self.used += words as u8;
        self
    }

    /// Where each parameter is, as the driver wants to be told.
    pub(super) fn pointers(&self) -> [*mut c_void; MAX_PARAMETERS] {
        let mut pointers = [ptr::null_mut(); MAX_PARAMETERS];
        for (pointer, start) in pointers.iter_mut().zip(&self.starts[..usize::from(self.count)]) {
            *pointer = ptr::from_ref(&self.words[usize::from(*start)]).cast_mut().cast();
        }
        pointers
    }
}
