//! The kernels of a device, and launches of them as values.
//!
//! [`table`](super::table) has their entry points, [`arguments`](super::arguments) the types of what they take. The functions
//! that make launches are in [`launch`](super::launch); nothing else does.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    compile::{Images, Origin},
    driver::{Context, Function, Module, Parameters, Stream},
    table::{ENTRIES, UNITS},
    work::Work,
};
use crate::Result;

pub(super) use super::{
    arguments::{Half, Ptr, Rows, Side},
    table::{Kernel, MOST_SHARED, UnitName},
};

/// A launch by value.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    kernel: Kernel,
    grid: [u32; 3],
    shared: u32,
    parameters: Parameters,
    work: Work,
}

/// Equal launches do the same to the same memory. How much that is may depend on what lies there: attention's work follows
/// the lengths of sequences, which a recorded step does not know.
impl PartialEq for Launch {
    fn eq(&self, other: &Self) -> bool {
        (self.kernel, self.grid, self.shared) == (other.kernel, other.grid, other.shared)
            && self.parameters == other.parameters
    }
}

impl Launch {
    #[allow(clippy::large_types_passed_by_value, reason = "moved into its place")]
    pub(super) fn new(kernel: Kernel, grid: [u32; 3], parameters: Parameters) -> Self {
        Self { kernel, grid, shared: 0, parameters, work: Work::default() }
    }

    pub(super) fn with_shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }

    pub(super) fn with_work(mut self, work: Work) -> Self {
        self.work = work;
        self
    }

    /// The kernel's entry point.
    pub(super) fn name(&self) -> &'static str {
        ENTRIES[self.kernel as usize].name
    }

    pub(super) fn grid(&self) -> [u32; 3] {
        self.grid
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }
}

/// The kernels of a device: each unit is compiled or found, and loaded, when it is first needed. A model needs attention for
/// one head size, and none of calibration's kernels to serve.
pub(super) struct Kernels {
    context: Arc<Context>,
    images: Images,
    capability: (i32, i32),
    driver: i32,
    units: Vec<OnceCell<Loaded>>,
}

struct Loaded {
    origin: Origin,
    /// Of the unit's kernels, by their place among all; others are not here.
    first: usize,
    functions: Vec<Function>,
}

impl Kernels {
    /// Nothing is loaded yet.
    pub(super) fn new(context: &Arc<Context>, images: Images, capability: (i32, i32), driver: i32) -> Self {
        let units = UNITS.iter().map(|_| OnceCell::new()).collect();
        Self { context: context.clone(), images, capability, driver, units }
    }

    /// Loads a unit and looks all its entry points up, so that a missing one is told now.
    pub(super) fn need(&self, unit: UnitName) -> Result<()> {
        self.unit(unit).map(|_| ())
    }

    /// Where the loaded units came from.
    pub(super) fn origins(&self) -> Vec<(&'static str, Origin)> {
        let loaded = UNITS.iter().zip(&self.units).filter_map(|(unit, cell)| Some((unit.name, cell.get()?.origin)));
        loaded.collect()
    }

    fn unit(&self, unit: UnitName) -> Result<&Loaded> {
        let cell = &self.units[unit as usize];
        if let Some(loaded) = cell.get() {
            return Ok(loaded);
        }
        let (image, origin) = self.images.get(&UNITS[unit as usize], self.capability, self.driver)?;
        let module = Module::load(&self.context, &image)?;
        let first = ENTRIES.iter().position(|entry| entry.unit == unit).unwrap_or(0);
        let entries = ENTRIES[first..].iter().take_while(|entry| entry.unit == unit);
        let functions = entries.map(|entry| module.function(entry.name, entry.shared)).collect::<Result<_>>()?;
        Ok(cell.get_or_init(|| Loaded { origin, first, functions }))
    }

    /// Submits a launch.
    pub(super) fn submit(&self, stream: &Stream, launch: &Launch) -> Result<()> {
        let entry = &ENTRIES[launch.kernel as usize];
        let loaded = self.unit(entry.unit)?;
        let function = &loaded.functions[launch.kernel as usize - loaded.first];
        // SAFETY: launches are made by `launch`'s functions alone, with the parameters that the kernel declares; their
        // pointers are the backend's, which unmaps memory only when the work before has been done. Every kernel of the table
        // waits for the one ahead (`grid_wait`), which the emulated device sees to.
        unsafe { function.launch(stream, launch.grid, entry.threads, launch.shared, &launch.parameters) }
    }
}

/// Whether all kernels came with the program, or can be compiled.
///
/// # Errors
/// [`KernelError::Device`](crate::KernelError::Device) when NVRTC is needed and missing.
pub(super) fn obtainable(images: &Images, capability: (i32, i32)) -> Result<()> {
    images.obtainable(UNITS, capability)
}

/// Compiles all kernels for a compute capability into a folder that is shipped beside the program; returns the files.
///
/// # Errors
/// [`KernelError::Device`](crate::KernelError::Device) when NVRTC is missing or refuses a source;
/// [`KernelError::Io`](crate::KernelError::Io) for the folder.
pub fn ship(folder: &Path, capability: (i32, i32)) -> Result<Vec<PathBuf>> {
    UNITS.iter().map(|unit| Images::ship(folder, unit, capability)).collect()
}
