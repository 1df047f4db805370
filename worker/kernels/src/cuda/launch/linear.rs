//! Launches of products. The contracts are in `kernels/linear.cuh`, `int4.cuh` and the files behind them.

use super::blocks;
use crate::cuda::{
    driver::Parameters,
    kernels::{Half, Kernel, Launch, Ptr, Rows, Side},
    work::{Cores, Work, floats},
};

/// A weight's parts on the device. Outputs are padded to [`STRIP`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) enum Weight {
    /// `[n, k]`.
    Bf16(Ptr<Half>),
    /// E4M3 `[n, k]`, scales `[n]`.
    Fp8 { codes: Ptr<u8>, scales: Ptr<f32> },
    /// E4M3 `[n, k]`, scales `[n, k / 128]`.
    Fp8Block { codes: Ptr<u8>, scales: Ptr<f32> },
    /// INT8 `[n, k]`, scales `[n]`.
    Int8 { codes: Ptr<u8>, scales: Ptr<f32> },
    /// Codes of 4 or 8 bits in groups.
    Grouped(Grouped),
}

impl Weight {
    /// Bytes of an `[n, k]`, which is padded to strips.
    fn bytes(&self, [n, k]: [usize; 2]) -> usize {
        let n = n.next_multiple_of(STRIP);
        match self {
            Self::Bf16(_) => 2 * n * k,
            Self::Fp8 { .. } | Self::Int8 { .. } => n * k + floats(n),
            Self::Fp8Block { .. } => n * k + floats(n * (k / crate::FP8_BLOCK)),
            Self::Grouped(w) => w.bytes([n, k]),
        }
    }

    /// Bytes of one row of activations `[k]` in the form that it is multiplied with.
    pub(in crate::cuda) fn row_bytes(&self, k: usize) -> usize {
        match self {
            Self::Bf16(_) | Self::Grouped(_) => 2 * k,
            Self::Fp8 { .. } | Self::Fp8Block { .. } | Self::Int8 { .. } => k,
        }
    }

    /// Scales of such a row.
    pub(in crate::cuda) fn row_scales(&self, k: usize) -> usize {
        match self {
            Self::Bf16(_) | Self::Grouped(_) => 0,
            Self::Fp8 { .. } | Self::Int8 { .. } => 1,
            Self::Fp8Block { .. } => k / crate::FP8_BLOCK,
        }
    }
}

impl Grouped {
    fn bytes(&self, [n, k]: [usize; 2]) -> usize {
        let codes = if self.eight_bits { n * k } else { n * k / 2 };
        codes + n * (k / self.group as usize) * 4 + floats(n)
    }
}

/// A group-wise weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Grouped {
    pub(in crate::cuda) codes: Ptr<u8>,
    /// Scales and minima.
    pub(in crate::cuda) affine: Ptr<u8>,
    pub(in crate::cuda) row_scales: Ptr<f32>,
    pub(in crate::cuda) group: u32,
    pub(in crate::cuda) eight_bits: bool,
}

/// Quantized rows `[rows, k]` of the form that the weight is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Operand {
    /// Codes: BF16 for BF16 and group-wise weights, else bytes.
    pub(in crate::cuda) codes: Ptr<u8>,
    /// Scales `[rows]`, or `[rows, k / 128]`; none with BF16.
    pub(in crate::cuda) scales: Ptr<f32>,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Output {
    /// `[rows, n]`.
    pub(in crate::cuda) out: Ptr<f32>,
    /// `[n]` or null.
    pub(in crate::cuda) bias: Ptr<f32>,
    /// Adds to what is there.
    pub(in crate::cuda) add: bool,
}

impl Output {
    /// Bytes that are read of where a product of so many rows and outputs goes.
    fn bytes_read(&self, rows: usize, n: usize) -> usize {
        floats(if self.add { rows * n } else { 0 } + if self.bias.is_null() { 0 } else { n })
    }
}

/// Outputs of a block of the kernels for few rows; weights are padded to it.
pub(in crate::cuda) const STRIP: usize = 32;
/// Outputs of a block of the group-wise kernels for more than 16 rows.
pub(in crate::cuda) const WIDE_STRIP: usize = 128;
/// Outputs of a block of those for 16.
const TWO_STRIPS: usize = 64;

/// The rows of a tile: which kernel of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) enum Tile {
    /// Up to 8 rows.
    M8,
    /// Up to 16 rows; with group-wise weights 16 a block.
    M16,
    /// Up to 32 rows; with 4-bit groups 32 a block.
    M32,
    /// 64 rows a block; group-wise weights.
    M64,
}

/// Shared memory of a block of the group-wise kernels for more than 16 rows: four stages (three with two planes) of activations
/// and codes (planes of 4 bits), one more of scales and minima, and the sums of two stages' activations.
pub(in crate::cuda) const fn grouped_shared(rows: u32, planes: u32) -> u32 {
    let stages = if planes == 1 { 4 } else { 3 };
    stages * (rows * 256 + planes * 8192) + (stages + 1) * 2048 + 32 * rows
}
/// And of those for 16: eight rings of four stages of 3 KiB, or with 8 bits of three of 4 KiB.
pub(in crate::cuda) const GROUPED_M16_SHARED: u32 = 96 << 10;

/// A kernel for a weight and a number of rows: what [`product`] launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct Choice {
    kernel: Kernel,
    /// Rows of a block.
    tile: usize,
    /// A launch takes any number of rows, block by block; else up to one tile.
    any_rows: bool,
    /// Outputs of a block.
    strip: usize,
    shared: u32,
}

impl Choice {
    /// The kernel of a family with a tile; the next larger tile where the family has none of this size.
    pub(in crate::cuda) fn new(weight: &Weight, tile: Tile) -> Self {
        let few = |kernel, tile| Self { kernel, tile, any_rows: false, strip: STRIP, shared: 0 };
        let small = tile == Tile::M8;
        let sized = |kernels: [Kernel; 3]| match tile {
            Tile::M8 => few(kernels[0], 8),
            Tile::M16 => few(kernels[1], 16),
            Tile::M32 | Tile::M64 => few(kernels[2], 32),
        };
        match weight {
            Weight::Bf16(_) => sized([Kernel::Bf16M8, Kernel::Bf16M16, Kernel::Bf16M32]),
            Weight::Fp8 { .. } => sized([Kernel::Fp8M8, Kernel::Fp8M16, Kernel::Fp8M32]),
            Weight::Fp8Block { .. } => sized([Kernel::Fp8BlockM8, Kernel::Fp8BlockM16, Kernel::Fp8BlockM32]),
            Weight::Int8 { .. } => sized([Kernel::Int8M8, Kernel::Int8M16, Kernel::Int8M32]),
            Weight::Grouped(w) if small => few(if w.eight_bits { Kernel::Int8GroupM8 } else { Kernel::Int4M8 }, 8),
            Weight::Grouped(w) => {
                let (kernel, tile) = match (tile, w.eight_bits) {
                    (Tile::M16, false) => (Kernel::Int4M16, 16),
                    (Tile::M16, true) => (Kernel::Int8GroupM16, 16),
                    (Tile::M32, false) => (Kernel::Int4M32, 32),
                    (_, false) => (Kernel::Int4M64, 64),
                    (_, true) => (Kernel::Int8GroupM64, 64),
                };
                let (strip, shared) = match tile {
                    16 => (TWO_STRIPS, GROUPED_M16_SHARED),
                    _ => (WIDE_STRIP, grouped_shared(tile as u32, if w.eight_bits { 2 } else { 1 })),
                };
                Self { kernel, tile, any_rows: true, strip, shared }
            }
        }
    }

    /// Rows that one launch takes.
    pub(in crate::cuda) fn most_rows(&self) -> usize {
        if self.any_rows { usize::MAX } else { self.tile }
    }

    /// Operations that products of `rows` rows with a weight `[n, k]` are issued as: whole tiles of rows, and with codes in
    /// groups the sums of activations beside the products (`kernels/linear_int4.cu`, `kernels/linear_int4_gemv.cu`).
    fn operations(&self, w: &Weight, rows: usize, [n, k]: [usize; 2]) -> usize {
        let products = 2 * rows.next_multiple_of(self.tile) * n * k;
        match w {
            Weight::Grouped(_) => products + products / (self.tile / 4),
            _ => products,
        }
    }

    /// Blocks of a launch of one tile of rows, without splits.
    pub(in crate::cuda) fn blocks(&self, n: usize) -> usize {
        n.div_ceil(self.strip)
    }
}

/// A product of up to [`Choice::most_rows`] rows by own kernels. With more than one part of k, `partial` has room for
/// `[splits, rows, n]` and [`reduce`] comes behind.
pub(in crate::cuda) fn product(
    choice: Choice,
    rows: Rows,
    [n, k]: [usize; 2],
    x: Operand,
    w: &Weight,
    to: &Output,
    (partial, splits): (Ptr<f32>, u32),
) -> Launch {
    let parameters = Parameters::new().ptr(to.out).ptr(partial).ptr(x.codes);
    let parameters = match w {
        Weight::Bf16(values) => parameters.ptr(*values),
        Weight::Fp8 { codes, scales } | Weight::Fp8Block { codes, scales } | Weight::Int8 { codes, scales } => {
            parameters.ptr(x.scales).ptr(*codes).ptr(*scales)
        }
        Weight::Grouped(w) => parameters.ptr(w.codes).ptr(w.affine).ptr(w.row_scales),
    };
    let parameters = parameters.ptr(to.bias).with(rows.get() as u32).with(n as u32).with(k as u32);
    let parameters = match w {
        Weight::Grouped(w) => parameters.with(w.group),
        _ => parameters,
    };
    let parameters = parameters.with(u32::from(to.add));
    let strips = blocks(n, choice.strip);
    let grid = if choice.any_rows { [strips, blocks(rows.get(), choice.tile), splits] } else { [strips, splits, 1] };
    let rows = rows.get();
    let read = w.bytes([n, k]) + rows * (w.row_bytes(k) + floats(w.row_scales(k)));
    let work = match splits {
        1 => Work::bytes(read + to.bytes_read(rows, n), floats(rows * n)),
        _ => Work::bytes(read, floats(splits as usize * rows * n)),
    };
    let cores = if matches!(w, Weight::Int8 { .. }) { Cores::MmaInt8 } else { Cores::Mma };
    let work = work.with(choice.operations(w, rows, [n, k]), cores);
    Launch::new(choice.kernel, grid, parameters).with_shared(choice.shared).with_work(work)
}

/// Adds up the parts of a product whose k was split.
pub(in crate::cuda) fn reduce(rows: Rows, n: usize, partial: Ptr<f32>, splits: u32, to: &Output) -> Launch {
    let parameters =
        Parameters::new().ptr(to.out).ptr(partial).ptr(to.bias).with(n as u32).with(splits).with(u32::from(to.add));
    let values = rows.get() * n;
    let work = Work::bytes(floats(splits as usize * values) + to.bytes_read(rows.get(), n), floats(values));
    Launch::new(Kernel::LinearReduce, [blocks(n, 256), rows.get() as u32, 1], parameters).with_work(work)
}

/// A group-wise weight as BF16 `[n, k]`.
pub(in crate::cuda) fn unpack(w: &Grouped, [n, k]: [usize; 2], out: Ptr<Half>) -> Launch {
    let parameters = Parameters::new()
        .ptr(out)
        .ptr(w.codes)
        .ptr(w.affine)
        .ptr(w.row_scales)
        .with(n as u32)
        .with(k as u32)
        .with(w.group);
    let kernel = if w.eight_bits { Kernel::UnpackInt8Group } else { Kernel::UnpackInt4 };
    // A block takes eight units of 32 inputs at a time.
    let work = Work::bytes(w.bytes([n.next_multiple_of(STRIP), k]), 2 * n * k);
    Launch::new(kernel, [blocks(n, STRIP), blocks(k, 32 * 8), 1], parameters).with_work(work)
}

/// An unscaled product of cuBLASLt in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) enum Raw {
    /// FP32.
    Float(Ptr<f32>),
    /// INT32.
    Integer(Ptr<i32>),
}

/// Scales, bias and residual behind a product `[rows, n]` of cuBLASLt; null scales are one. `n` is a multiple of 4.
pub(in crate::cuda) fn scale_store(
    rows: Rows,
    n: Side,
    raw: Raw,
    row_scales: Ptr<f32>,
    column_scales: Ptr<f32>,
    to: &Output,
) -> Launch {
    let parameters = Parameters::new().ptr(to.out);
    let (kernel, parameters) = match raw {
        Raw::Float(values) => (Kernel::ScaleStoreF32, parameters.ptr(values)),
        Raw::Integer(values) => (Kernel::ScaleStoreInt32, parameters.ptr(values)),
    };
    let parameters = parameters.ptr(row_scales).ptr(column_scales).ptr(to.bias).side(n).side(n).with(u32::from(to.add));
    let values = rows.get() * n.get();
    let work = Work::bytes(floats(values) + to.bytes_read(rows.get(), n.get()), floats(values));
    Launch::new(kernel, [blocks(n.get(), 1024), rows.get() as u32, 1], parameters).with_work(work)
}
