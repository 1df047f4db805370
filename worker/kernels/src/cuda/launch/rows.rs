//! Launches of the kernels that work row by row. The contracts are in `kernels/rows.cuh` and the files behind it.

use super::{blocks, per_row};
use crate::{
    KernelError, Result,
    cuda::{
        driver::Parameters,
        kernels::{Half, Kernel, Launch, MOST_SHARED, Ptr, Rows, Side},
        work::{Work, floats},
    },
};

/// Where the values of a row come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) enum Source {
    /// A matrix as it is.
    Plain(Ptr<f32>),
    /// Its RMS norm.
    Normed {
        /// `[rows, width]`.
        x: Ptr<f32>,
        /// `[1, width]`.
        gain: Ptr<f32>,
        /// Added to the mean of squares.
        epsilon: f32,
    },
    /// `silu(gate) * up` of `[rows, 2 width]`.
    Gated(Ptr<f32>),
}

impl Source {
    /// Bytes that rows of a width are made of.
    fn bytes(&self, rows: usize, width: usize) -> usize {
        match self {
            Self::Plain(_) => floats(rows * width),
            Self::Normed { .. } => floats(rows * width + width),
            Self::Gated(_) => floats(2 * rows * width),
        }
    }
}

/// The form that a product takes activations in, and where to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) enum Form {
    /// BF16.
    Bf16(Ptr<Half>),
    /// E4M3 with a scale per row.
    E4m3 { codes: Ptr<u8>, scales: Ptr<f32> },
    /// E4M3 with a given scale for all rows.
    E4m3Static { codes: Ptr<u8>, scale: Ptr<f32> },
    /// E4M3 with a scale per 128 values; the width is a multiple of 128.
    E4m3Block { codes: Ptr<u8>, scales: Ptr<f32> },
    /// INT8 with a scale per row.
    Int8 { codes: Ptr<u8>, scales: Ptr<f32> },
}

impl Form {
    /// Bytes of rows in this form, with their scales.
    fn bytes(&self, rows: usize, width: usize, pitch: usize) -> usize {
        match self {
            Self::Bf16(_) => 2 * rows * pitch,
            Self::E4m3 { .. } | Self::Int8 { .. } => rows * pitch + floats(rows),
            Self::E4m3Static { .. } => rows * pitch,
            Self::E4m3Block { .. } => rows * pitch + floats(rows * (width / crate::FP8_BLOCK)),
        }
    }
}

/// Quantizes rows. Rows of codes are `pitch` elements apart, zeros behind the width.
pub(in crate::cuda) fn quantize(rows: Rows, source: Source, width: Side, pitch: Side, form: Form) -> Launch {
    let kernel = match (source, form) {
        (Source::Plain(_), Form::Bf16(_)) => Kernel::PlainBf16,
        (Source::Plain(_), Form::E4m3 { .. }) => Kernel::PlainE4m3,
        (Source::Plain(_), Form::E4m3Static { .. }) => Kernel::PlainE4m3Static,
        (Source::Plain(_), Form::E4m3Block { .. }) => Kernel::PlainE4m3Block,
        (Source::Plain(_), Form::Int8 { .. }) => Kernel::PlainInt8,
        (Source::Normed { .. }, Form::Bf16(_)) => Kernel::NormBf16,
        (Source::Normed { .. }, Form::E4m3 { .. }) => Kernel::NormE4m3,
        (Source::Normed { .. }, Form::E4m3Static { .. }) => Kernel::NormE4m3Static,
        (Source::Normed { .. }, Form::E4m3Block { .. }) => Kernel::NormE4m3Block,
        (Source::Normed { .. }, Form::Int8 { .. }) => Kernel::NormInt8,
        (Source::Gated(_), Form::Bf16(_)) => Kernel::GatedBf16,
        (Source::Gated(_), Form::E4m3 { .. }) => Kernel::GatedE4m3,
        (Source::Gated(_), Form::E4m3Static { .. }) => Kernel::GatedE4m3Static,
        (Source::Gated(_), Form::E4m3Block { .. }) => Kernel::GatedE4m3Block,
        (Source::Gated(_), Form::Int8 { .. }) => Kernel::GatedInt8,
    };
    let parameters = match form {
        Form::Bf16(codes) => Parameters::new().ptr(codes),
        Form::E4m3 { codes, scales } | Form::E4m3Block { codes, scales } | Form::Int8 { codes, scales } => {
            Parameters::new().ptr(codes).ptr(scales)
        }
        Form::E4m3Static { codes, scale } => Parameters::new().ptr(codes).ptr(scale),
    };
    let parameters = match source {
        Source::Plain(x) | Source::Gated(x) => parameters.ptr(x),
        Source::Normed { x, gain, .. } => parameters.ptr(x).ptr(gain),
    };
    // A scale per block needs whole blocks, so there is nothing behind the width.
    let parameters = match form {
        Form::E4m3Block { .. } => parameters.side(width),
        _ => parameters.side(width).side(pitch),
    };
    let parameters = match source {
        Source::Normed { epsilon, .. } => parameters.with(epsilon),
        Source::Plain(_) | Source::Gated(_) => parameters,
    };
    let (count, width) = (rows.get(), width.get());
    let work = Work::bytes(source.bytes(count, width), form.bytes(count, width, pitch.get()));
    Launch::new(kernel, per_row(rows), parameters).with_work(work)
}

/// Writes a norm or a gated activation as FP32; none for what is FP32 already.
pub(in crate::cuda) fn plain(rows: Rows, source: Source, width: Side, out: Ptr<f32>) -> Option<Launch> {
    let (kernel, parameters) = match source {
        Source::Plain(_) => return None,
        Source::Normed { x, gain, epsilon } => {
            (Kernel::RmsNorm, Parameters::new().ptr(out).ptr(x).ptr(gain).side(width).with(epsilon))
        }
        Source::Gated(x) => (Kernel::GatedSilu, Parameters::new().ptr(out).ptr(x).side(width)),
    };
    let work = Work::bytes(source.bytes(rows.get(), width.get()), floats(rows.get() * width.get()));
    Some(Launch::new(kernel, per_row(rows), parameters).with_work(work))
}

/// The outlier columns of a weight, ascending: on the device, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Columns {
    /// `[count]`.
    pub(in crate::cuda) at: Ptr<u32>,
    /// At most [`crate::MAX_OUTLIERS`].
    pub(in crate::cuda) count: u32,
}

/// INT8 codes of all columns but some, which go to `picked` as BF16.
///
/// # Errors
/// [`KernelError::Shape`] for rows that leave no room in a block's shared memory.
pub(in crate::cuda) fn split_outliers(
    rows: Rows,
    x: Ptr<f32>,
    [width, pitch]: [Side; 2],
    columns: Columns,
    (codes, scales): (Ptr<u8>, Ptr<f32>),
    (picked, picked_pitch): (Ptr<Half>, Side),
) -> Result<Launch> {
    let shared = width.get() as u32;
    if shared > MOST_SHARED {
        return Err(KernelError::Shape(format!("outlier columns of {shared} inputs; at most {MOST_SHARED} are taken")));
    }
    let parameters = Parameters::new()
        .ptr(codes)
        .ptr(scales)
        .ptr(picked)
        .ptr(x)
        .ptr(columns.at)
        .side(width)
        .side(pitch)
        .with(columns.count)
        .side(picked_pitch);
    let written = rows.get() * (pitch.get() + size_of::<f32>() + 2 * picked_pitch.get());
    let work = Work::bytes(floats(rows.get() * width.get()), written);
    Ok(Launch::new(Kernel::PlainInt8Outliers, per_row(rows), parameters).with_shared(shared).with_work(work))
}

/// `out[i] = x[list[i]]`.
pub(in crate::cuda) fn gather(rows: Rows, x: Ptr<f32>, list: Ptr<u32>, width: Side, out: Ptr<f32>) -> Launch {
    let bytes = floats(rows.get() * width.get());
    Launch::new(Kernel::GatherRows, per_row(rows), Parameters::new().ptr(out).ptr(x).ptr(list).side(width))
        .with_work(Work::bytes(bytes, bytes))
}

/// Copies blocks of the cache in order: `moves` is `[count, 2]`, from and to.
pub(in crate::cuda) fn move_blocks(pool: Ptr<u8>, block_bytes: usize, moves: Ptr<u32>, count: u32) -> Launch {
    let parameters = Parameters::new().ptr(pool).ptr(moves).with(block_bytes as u64).with(count);
    let bytes = count as usize * block_bytes;
    Launch::new(Kernel::KvMove, [blocks(block_bytes, 16 * 256), 1, 1], parameters).with_work(Work::bytes(bytes, bytes))
}

/// An embedding table in the device's layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) enum Table {
    /// `[vocab, pitch]`.
    Bf16(Ptr<Half>),
    /// Codes `[vocab, pitch]`, scales `[vocab]`.
    E4m3 { codes: Ptr<u8>, scales: Ptr<f32> },
    /// Codes `[vocab, pitch]`, scales `[vocab, width / 128]`.
    E4m3Block { codes: Ptr<u8>, scales: Ptr<f32> },
    /// Codes `[vocab, pitch]`, scales `[vocab]`.
    Int8 { codes: Ptr<u8>, scales: Ptr<f32> },
    /// Groups of 4 bits (one plane) or 8 (two).
    Grouped { codes: Ptr<u8>, group_scales: Ptr<u8>, row_scales: Ptr<f32>, group: u32, planes: u32 },
}

/// Which tokens an embedding table has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Vocabulary {
    /// So many.
    pub(in crate::cuda) tokens: u32,
    /// From this one on.
    pub(in crate::cuda) first: u32,
    /// What the row of any other token is filled with.
    pub(in crate::cuda) missing: f32,
}

impl Table {
    /// Bytes of one row.
    fn row_bytes(&self, width: usize, pitch: usize) -> usize {
        match *self {
            Self::Bf16(_) => 2 * pitch,
            Self::E4m3 { .. } | Self::Int8 { .. } => pitch + size_of::<f32>(),
            Self::E4m3Block { .. } => pitch + floats(width / crate::FP8_BLOCK),
            Self::Grouped { group, planes, .. } => {
                width * planes as usize / 2 + width / group as usize * 4 + size_of::<f32>()
            }
        }
    }
}

/// `out[r] = table[tokens[r]]`.
pub(in crate::cuda) fn embed(
    rows: Rows,
    tokens: Ptr<u32>,
    table: Table,
    vocabulary: Vocabulary,
    [width, pitch]: [Side; 2],
    out: Ptr<f32>,
) -> Launch {
    let Vocabulary { tokens: count, first, missing } = vocabulary;
    let of = |parameters: Parameters| parameters.with(count).with(first).with(missing).side(width);
    let parameters = Parameters::new().ptr(out).ptr(tokens);
    let (kernel, parameters) = match table {
        Table::Bf16(values) => (Kernel::EmbedBf16, of(parameters.ptr(values)).side(pitch)),
        Table::E4m3 { codes, scales } => (Kernel::EmbedE4m3, of(parameters.ptr(codes).ptr(scales)).side(pitch)),
        Table::E4m3Block { codes, scales } => {
            (Kernel::EmbedE4m3Block, of(parameters.ptr(codes).ptr(scales)).side(pitch))
        }
        Table::Int8 { codes, scales } => (Kernel::EmbedInt8, of(parameters.ptr(codes).ptr(scales)).side(pitch)),
        Table::Grouped { codes, group_scales, row_scales, group, planes } => {
            let parameters = of(parameters.ptr(codes).ptr(group_scales).ptr(row_scales));
            (Kernel::EmbedGrouped, parameters.with(group).with(planes))
        }
    };
    let read = rows.get() * table.row_bytes(width.get(), pitch.get());
    Launch::new(kernel, per_row(rows), parameters).with_work(Work::bytes(read, floats(rows.get() * width.get())))
}
