//! The table of kernels: entry points, their translation units, and launches of them as values.
//!
//! The functions that make launches are in [`launch`](super::launch); nothing else does. Pointers have the type of what
//! they point to, sides are [`Side`]s and rows [`Rows`]: what a kernel cannot take has no value, and an argument in the
//! wrong place does not compile.

use std::{
    cell::OnceCell,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    compile::{Images, Origin, Unit},
    driver::{Address, Context, Function, Module, Parameters, Stream},
    launch::{
        attention::{decode_shared, prefill_shared},
        linear::{GROUPED_M16_SHARED, grouped_shared},
    },
    work::Work,
};
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

impl Parameters {
    pub(super) fn ptr<T>(self, value: Ptr<T>) -> Self {
        self.with(value.0)
    }

    pub(super) fn side(self, value: Side) -> Self {
        self.with(value.0)
    }
}

/// A source file, or the one line that asks a file for a head size.
macro_rules! source_file {
    ("attention_64.cuh") => {
        "#define ATTENTION_DIM 64\n"
    };
    ("attention_96.cuh") => {
        "#define ATTENTION_DIM 96\n"
    };
    ("attention_128.cuh") => {
        "#define ATTENTION_DIM 128\n"
    };
    ("attention_256.cuh") => {
        "#define ATTENTION_DIM 256\n"
    };
    ($name:tt) => {
        include_str!(concat!("kernels/", $name))
    };
}

/// The kernels: units with their files, and of each kernel the name in Rust, the entry point, the threads of a block and the
/// most dynamic shared memory.
macro_rules! kernels {
    ($($unit:ident = [$($file:tt),+ $(,)?] { $($kernel:ident $entry:literal $threads:literal $shared:expr,)+ })+) => {
        /// The translation units.
        static UNITS: &[Unit] = &[$(Unit { name: stringify!($unit), files: &[$(source_file!($file)),+] },)+];

        /// A translation unit.
        #[allow(non_camel_case_types, reason = "units are named as their files are")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum UnitName { $($unit,)+ }

        /// An entry point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kernel { $($($kernel,)+)+ }

        static ENTRIES: &[Entry] = &[
            $($(Entry { unit: UnitName::$unit, name: $entry, threads: $threads, shared: $shared },)+)+
        ];
    };
}

struct Entry {
    unit: UnitName,
    name: &'static str,
    threads: u32,
    shared: u32,
}

kernels! {
    rows = ["prim.cuh", "rows.cuh", "norm.cu", "quantize.cu", "activation.cu", "gather.cu", "kv_move.cu", "embed.cu"] {
        RmsNorm "rms_norm" 256 0,
        NormBf16 "norm_quantize_bf16" 256 0,
        NormE4m3 "norm_quantize_e4m3" 256 0,
        NormE4m3Static "norm_quantize_e4m3_static" 256 0,
        NormE4m3Block "norm_quantize_e4m3_block" 256 0,
        NormInt8 "norm_quantize_int8" 256 0,
        PlainBf16 "quantize_bf16" 256 0,
        PlainE4m3 "quantize_e4m3" 256 0,
        PlainE4m3Static "quantize_e4m3_static" 256 0,
        PlainE4m3Block "quantize_e4m3_block" 256 0,
        PlainInt8 "quantize_int8" 256 0,
        PlainInt8Outliers "quantize_int8_outliers" 256 MOST_SHARED,
        GatedSilu "gated_silu" 256 0,
        GatedBf16 "silu_quantize_bf16" 256 0,
        GatedE4m3 "silu_quantize_e4m3" 256 0,
        GatedE4m3Static "silu_quantize_e4m3_static" 256 0,
        GatedE4m3Block "silu_quantize_e4m3_block" 256 0,
        GatedInt8 "silu_quantize_int8" 256 0,
        GatherRows "gather_rows" 256 0,
        KvMove "kv_move" 256 0,
        EmbedBf16 "embed_bf16" 256 0,
        EmbedE4m3 "embed_e4m3" 256 0,
        EmbedE4m3Block "embed_e4m3_block" 256 0,
        EmbedInt8 "embed_int8" 256 0,
        EmbedGrouped "embed_grouped" 256 0,
    }
    rotary = ["prim.cuh", "rotary.cu"] {
        RotaryAngles "rotary_angles" 256 0,
        RotateStoreBf16 "rotate_store_bf16" 256 0,
        RotateStoreF16 "rotate_store_f16" 256 0,
        RotateStoreE4m3 "rotate_store_e4m3" 256 0,
        RotateStoreE5m2 "rotate_store_e5m2" 256 0,
    }
    linear = [
        "prim.cuh", "linear.cuh", "linear_int4.cuh", "linear_bf16.cu", "linear_fp8.cu", "linear_int8.cu",
        "linear_int4.cu", "linear_int4_gemv.cu", "unpack_int4.cu", "epilogue.cu",
    ] {
        Bf16M8 "linear_bf16_m8" 256 0,
        Bf16M16 "linear_bf16_m16" 256 0,
        Bf16M32 "linear_bf16_m32" 256 0,
        Fp8M8 "linear_fp8_m8" 256 0,
        Fp8M16 "linear_fp8_m16" 256 0,
        Fp8M32 "linear_fp8_m32" 256 0,
        Fp8BlockM8 "linear_fp8_block_m8" 256 0,
        Fp8BlockM16 "linear_fp8_block_m16" 256 0,
        Fp8BlockM32 "linear_fp8_block_m32" 256 0,
        Int8M8 "linear_int8_m8" 256 0,
        Int8M16 "linear_int8_m16" 256 0,
        Int8M32 "linear_int8_m32" 256 0,
        Int4M8 "linear_int4_m8" 256 0,
        Int4M16 "linear_int4_m16" 256 GROUPED_M16_SHARED,
        Int4M32 "linear_int4_m32" 128 grouped_shared(32, 1),
        Int4M64 "linear_int4_m64" 128 grouped_shared(64, 1),
        Int8GroupM8 "linear_int8g_m8" 256 0,
        Int8GroupM16 "linear_int8g_m16" 256 GROUPED_M16_SHARED,
        Int8GroupM64 "linear_int8g_m64" 128 grouped_shared(64, 2),
        UnpackInt4 "unpack_bf16_int4" 256 0,
        UnpackInt8Group "unpack_bf16_int8g" 256 0,
        ScaleStoreInt32 "scale_store_int32" 256 0,
        ScaleStoreF32 "scale_store_f32" 256 0,
        LinearReduce "linear_reduce" 256 0,
    }
    attention_64 = [
        "attention_64.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cu",
    ] {
        DecodeBf1664 "attention_decode_bf16_64" 128 decode_shared(64, 2),
        DecodeFp1664 "attention_decode_fp16_64" 128 decode_shared(64, 2),
        DecodeE4m364 "attention_decode_e4m3_64" 128 decode_shared(64, 1),
        DecodeE5m264 "attention_decode_e5m2_64" 128 decode_shared(64, 1),
        PrefillBf1664 "attention_prefill_bf16_64" 128 prefill_shared(64, 2),
        PrefillFp1664 "attention_prefill_fp16_64" 128 prefill_shared(64, 2),
        PrefillE4m364 "attention_prefill_e4m3_64" 128 prefill_shared(64, 1),
        PrefillE5m264 "attention_prefill_e5m2_64" 128 prefill_shared(64, 1),
        Reduce64 "attention_reduce" 128 0,
    }
    attention_96 = [
        "attention_96.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cu",
    ] {
        DecodeBf1696 "attention_decode_bf16_96" 128 decode_shared(96, 2),
        DecodeFp1696 "attention_decode_fp16_96" 128 decode_shared(96, 2),
        DecodeE4m396 "attention_decode_e4m3_96" 128 decode_shared(96, 1),
        DecodeE5m296 "attention_decode_e5m2_96" 128 decode_shared(96, 1),
        PrefillBf1696 "attention_prefill_bf16_96" 128 prefill_shared(96, 2),
        PrefillFp1696 "attention_prefill_fp16_96" 128 prefill_shared(96, 2),
        PrefillE4m396 "attention_prefill_e4m3_96" 128 prefill_shared(96, 1),
        PrefillE5m296 "attention_prefill_e5m2_96" 128 prefill_shared(96, 1),
        Reduce96 "attention_reduce" 128 0,
    }
    attention_128 = [
        "attention_128.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cu",
    ] {
        DecodeBf16128 "attention_decode_bf16_128" 128 decode_shared(128, 2),
        DecodeFp16128 "attention_decode_fp16_128" 128 decode_shared(128, 2),
        DecodeE4m3128 "attention_decode_e4m3_128" 128 decode_shared(128, 1),
        DecodeE5m2128 "attention_decode_e5m2_128" 128 decode_shared(128, 1),
        PrefillBf16128 "attention_prefill_bf16_128" 128 prefill_shared(128, 2),
        PrefillFp16128 "attention_prefill_fp16_128" 128 prefill_shared(128, 2),
        PrefillE4m3128 "attention_prefill_e4m3_128" 128 prefill_shared(128, 1),
        PrefillE5m2128 "attention_prefill_e5m2_128" 128 prefill_shared(128, 1),
        Reduce128 "attention_reduce" 128 0,
    }
    attention_256 = [
        "attention_256.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cu",
    ] {
        DecodeBf16256 "attention_decode_bf16_256" 128 decode_shared(256, 2),
        DecodeFp16256 "attention_decode_fp16_256" 128 decode_shared(256, 2),
        DecodeE4m3256 "attention_decode_e4m3_256" 128 decode_shared(256, 1),
        DecodeE5m2256 "attention_decode_e5m2_256" 128 decode_shared(256, 1),
        PrefillBf16256 "attention_prefill_bf16_256" 128 prefill_shared(256, 2),
        PrefillFp16256 "attention_prefill_fp16_256" 128 prefill_shared(256, 2),
        PrefillE4m3256 "attention_prefill_e4m3_256" 128 prefill_shared(256, 1),
        PrefillE5m2256 "attention_prefill_e5m2_256" 128 prefill_shared(256, 1),
        Reduce256 "attention_reduce" 128 0,
    }
    sample = ["prim.cuh", "sample.cuh", "penalize.cu", "sample_parts.cu", "sample.cu"] {
        Penalize "penalize" 256 0,
        SampleBest "sample_best" 256 0,
        SampleMass "sample_mass" 256 0,
        SampleList "sample_list" 256 0,
        SampleTokens "sample_tokens" 1024 0,
    }
    calibrate = ["prim.cuh", "rows.cuh", "tiles.cuh", "gram.cu", "rounding.cu", "quadratic.cu"] {
        Gram "gram" 256 0,
        ColumnAbsmax "column_absmax" 256 0,
        RoundingChanges "rounding_changes" 256 0,
        QuadraticPartials "quadratic_partials" 256 0,
        QuadraticForms "quadratic_forms" 256 0,
    }
}

/// Shared memory of a block on the oldest architecture that is taken (232,448 bytes on 9.0), less what kernels declare.
pub(super) const MOST_SHARED: u32 = 224 * 1024;

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
/// [`KernelError::Device`] when NVRTC is needed and missing.
pub(super) fn obtainable(images: &Images, capability: (i32, i32)) -> Result<()> {
    images.obtainable(UNITS, capability)
}

/// An entry point as the table has it: what tools that look at compiled kernels need to know of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// Its name in the image.
    pub name: &'static str,
    /// The unit that it is in.
    pub unit: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// The most dynamic shared memory that a block of it is launched with, in bytes.
    pub shared: u32,
}

/// The translation units: what a worker compiles, each by itself.
pub fn units() -> &'static [Unit] {
    UNITS
}

/// The entry points of all units.
pub fn entry_points() -> impl Iterator<Item = EntryPoint> {
    ENTRIES.iter().map(|entry| EntryPoint {
        name: entry.name,
        unit: UNITS[entry.unit as usize].name,
        threads: entry.threads,
        shared: entry.shared,
    })
}

/// Compiles all kernels for a compute capability into a folder that is shipped beside the program; returns the files.
///
/// # Errors
/// [`KernelError::Device`] when NVRTC is missing or refuses a source; [`KernelError::Io`] for the folder.
pub fn ship(folder: &Path, capability: (i32, i32)) -> Result<Vec<PathBuf>> {
    UNITS.iter().map(|unit| Images::ship(folder, unit, capability)).collect()
}
