//! Products: which kernel computes one, and what comes before and behind it.
//!
//! # Which kernel
//! A product of few rows waits for the weight's bytes, one of many for its multiplications. Own kernels stream the weight
//! once and are made for few rows; cuBLASLt's are made for many. Modelled for an H100 (3.35 TB/s; 989 TFLOP/s BF16, 1,979
//! FP8 and INT8 of which a library reaches some 70 %; measured on one: `docs/h100.md`):
//!
//! | weight | bytes bound up to | own kernel | beyond |
//! |---|---|---|---|
//! | BF16 | 200 rows | up to 16 rows, one pass over the weight | cuBLASLt |
//! | FP8, INT8 | 200 rows | up to 32 rows | cuBLASLt |
//! | FP8 with blocks | | 32 rows a pass | own kernel (cuBLASLt's block mode has other scales) |
//! | 4-bit groups | 75 rows | up to 8 rows GEMV; 16, 32 and 64 rows a block | 256 rows: unpacked to BF16, cuBLASLt |
//! | 8-bit groups | 130 rows | the same | the same |
//!
//! Own kernels end at 32 rows although bytes bound a product up to 200: both then take the time of the bytes, and the
//! library's has been tuned on hardware. For 4-bit groups unpacking costs 2.5 bytes a weight where the codes have half a one:
//! at 256 rows own products (`mma.sync`, some 60 % of what `wgmma` reaches) cost more than that.
//!
//! Without cuBLASLt own kernels compute everything, 32 or 64 rows at a time. With `deterministic` too, and the tile does not
//! depend on the rows either: then a row's sums are the same in every batch.

use super::{
    cublaslt::{Operands, Product, Shape},
    executor::Executor,
    graph::Command,
    kernels::{Half, Ptr, Rows, Side},
    launch::{
        linear::{self as launch, Choice, Grouped, Operand, Output, Raw, Tile, Weight},
        rows::{self, Form, Source},
    },
    layout::ROW_PIECE,
    operand::Placed,
    scratch::Slot,
};
use crate::{KernelError, Result, WeightKind};

/// Rows up to which own kernels compute what cuBLASLt could.
const FEW_ROWS: usize = 32;
/// The same for BF16, which the library does as fast from few rows on.
const FEW_ROWS_BF16: usize = 16;
/// Rows from which group-wise weights are unpacked for cuBLASLt.
pub(super) const UNPACK_ROWS: usize = 256;
/// Rows that the GEMV of group-wise weights takes.
const GEMV_ROWS: usize = 8;

/// Rows of a launch that has one block row for each (the second dimension of a grid).
const MOST_ROWS: usize = 65_535;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// By own kernels.
    Own(Tile),
    /// By cuBLASLt; what it gives is scaled afterwards unless it scales itself.
    Library(Operands),
    /// Unpacked to BF16, then by cuBLASLt.
    Unpacked,
}

/// The choice. `takes` says whether cuBLASLt is there and has an algorithm.
fn route(
    weight: &Weight,
    rows: usize,
    (deterministic, unpack_rows): (bool, usize),
    takes: impl Fn(Operands) -> Result<bool>,
) -> Result<Route> {
    let own = Route::Own(match weight {
        Weight::Grouped(_) if deterministic => Tile::M16,
        Weight::Grouped(_) if rows <= GEMV_ROWS => Tile::M8,
        Weight::Grouped(_) if rows <= 16 => Tile::M16,
        Weight::Grouped(_) if rows > 32 => Tile::M64,
        Weight::Grouped(_) => Tile::M32,
        _ if rows <= 8 => Tile::M8,
        _ if rows <= 16 => Tile::M16,
        _ => Tile::M32,
    });
    let few = if matches!(weight, Weight::Bf16(_)) { FEW_ROWS_BF16 } else { FEW_ROWS };
    if deterministic || rows <= few {
        return Ok(own);
    }
    let first = |choices: &[Operands]| -> Result<Option<Operands>> {
        for choice in choices {
            if takes(*choice)? {
                return Ok(Some(*choice));
            }
        }
        Ok(None)
    };
    let library = match weight {
        Weight::Bf16(_) => first(&[Operands::Bf16])?.map(Route::Library),
        Weight::Fp8 { .. } => first(&[Operands::Fp8Scaled, Operands::Fp8])?.map(Route::Library),
        Weight::Int8 { .. } => first(&[Operands::Int8])?.map(Route::Library),
        Weight::Grouped(_) if rows >= unpack_rows => first(&[Operands::Bf16])?.map(|_| Route::Unpacked),
        Weight::Fp8Block { .. } | Weight::Grouped(_) => None,
    };
    Ok(library.unwrap_or(own))
}

/// A product's sides: rows, outputs, inputs as the operands have them in memory.
#[derive(Clone, Copy, Debug)]
struct Sides {
    rows: usize,
    n: usize,
    k: usize,
}

/// `out (+)= w source + bias`. The shapes were checked and the weight is there; `input` is FP32 where the source is plain.
pub(super) fn product(on: &impl Executor, rows: Rows, source: Source, w: &Placed, to: Output) -> Result<()> {
    if rows.get() > MOST_ROWS {
        return Err(KernelError::Shape(format!("a product of {} rows; a launch takes {MOST_ROWS}", rows.get())));
    }
    let layout = w.layout;
    let (width, pitch) = (Side::new("a weight", layout.spec.k)?, Side::new("a weight", layout.k)?);
    let sides = Sides { rows: rows.get(), n: layout.spec.n, k: layout.k };
    let Some((columns, outliers, outlier_k)) = w.outliers() else {
        let x = quantized(on, rows, source, [width, pitch], w)?;
        return multiply(on, sides, x, &w.operand(), to);
    };
    // The other columns in INT8, their scale per token untouched by the outliers; then the outliers in BF16 on top.
    let Source::Plain(x) = source else {
        return Err(KernelError::Shape("outlier columns are split off plain rows".into()));
    };
    let codes = on.scratch(Slot::Codes, rows.get() * layout.k)?;
    let scales = on.scratch(Slot::Scales, rows.get() * size_of::<f32>())?;
    let picked = on.scratch(Slot::Picked, rows.get() * outlier_k * size_of::<Half>())?;
    let picked_pitch = Side::new("outlier columns", outlier_k)?;
    let split = rows::split_outliers(
        rows,
        x,
        [width, pitch],
        columns,
        (Ptr::new(codes), Ptr::new(scales)),
        (Ptr::new(picked), picked_pitch),
    )?;
    on.submit(Command::Launch(split))?;
    let rest = Operand { codes: Ptr::new(codes), scales: Ptr::new(scales) };
    multiply(on, sides, rest, &w.operand(), to)?;
    let picked = Operand { codes: Ptr::new(picked), scales: Ptr::NULL };
    let on_top = Output { bias: Ptr::NULL, add: true, ..to };
    multiply(on, Sides { k: outlier_k, ..sides }, picked, &outliers, on_top)
}

/// The rows in the form that the weight is multiplied with.
fn quantized(on: &impl Executor, rows: Rows, source: Source, [width, pitch]: [Side; 2], w: &Placed) -> Result<Operand> {
    let count = rows.get();
    let kind = w.layout.spec.kind;
    let halves = matches!(kind, WeightKind::Bf16 | WeightKind::Int4 { .. } | WeightKind::Int8Group { .. });
    let codes = on.scratch(Slot::Codes, count * pitch.get() * if halves { 2 } else { 1 })?;
    if halves {
        let launch = rows::quantize(rows, source, width, pitch, Form::Bf16(Ptr::new(codes)));
        on.submit(Command::Launch(launch))?;
        return Ok(Operand { codes: Ptr::new(codes), scales: Ptr::NULL });
    }
    let scales_of_row = if kind == WeightKind::Fp8Block { width.get() / crate::FP8_BLOCK } else { 1 };
    let scales = Ptr::new(on.scratch(Slot::Scales, count * scales_of_row * size_of::<f32>())?);
    let codes = Ptr::new(codes);
    let form = match (kind, w.input_scale) {
        (WeightKind::Fp8Block, _) => Form::E4m3Block { codes, scales },
        (WeightKind::Fp8 | WeightKind::Fp8Static, Some(scale)) => {
            // Products take a scale per row: the same for all.
            on.submit(Command::Fill { at: scales.address(), word: scale.to_bits(), count })?;
            Form::E4m3Static { codes, scale: scales }
        }
        (WeightKind::Fp8 | WeightKind::Fp8Static, None) => Form::E4m3 { codes, scales },
        _ => Form::Int8 { codes, scales },
    };
    on.submit(Command::Launch(rows::quantize(rows, source, width, pitch, form)))?;
    Ok(Operand { codes, scales })
}

fn multiply(on: &impl Executor, sides: Sides, x: Operand, w: &Weight, to: Output) -> Result<()> {
    let shape = |operands, add| Shape { operands, rows: sides.rows, n: sides.n, k: sides.k, add };
    let takes = |operands| {
        // INT32 products are never added to: whether a product is follows from the route below.
        let add = to.add && to.bias.is_null() && matches!(operands, Operands::Bf16 | Operands::Fp8Scaled);
        on.takes(shape(operands, add))
    };
    match route(w, sides.rows, (on.deterministic(), on.unpack_rows()), takes)? {
        Route::Own(tile) => multiply_ourselves(on, sides, x, w, to, tile),
        Route::Library(operands) => multiply_by_library(on, sides, x, w, to, operands),
        Route::Unpacked => {
            let Weight::Grouped(grouped) = w else {
                return Err(KernelError::Shape("only group-wise weights are unpacked".into()));
            };
            let values = unpacked(on, grouped, sides)?;
            multiply_by_library(on, sides, x, &Weight::Bf16(values), to, Operands::Bf16)
        }
    }
}

fn unpacked(on: &impl Executor, w: &Grouped, Sides { n, k, .. }: Sides) -> Result<Ptr<Half>> {
    let values = Ptr::new(on.scratch(Slot::Unpacked, n * k * size_of::<Half>())?);
    on.submit(Command::Launch(launch::unpack(w, [n, k], values)))?;
    Ok(values)
}

/// Whether a product of so many rows unpacks a group-wise weight.
pub(super) fn unpacks(on: &impl Executor, rows: usize, n: usize, k: usize) -> Result<bool> {
    let shape = Shape { operands: Operands::Bf16, rows, n, k, add: false };
    Ok(rows >= on.unpack_rows() && !on.deterministic() && on.takes(shape)?)
}

/// The most scratch for parts of products of up to so many rows, whatever the weight's kind.
pub(super) fn partial_bytes(on: &impl Executor, rows: usize, n: usize, k: usize) -> Result<usize> {
    let row_bytes = 2 * k.next_multiple_of(ROW_PIECE);
    // Kernels of one tile take up to 32 rows a launch; the group-wise ones all that are not unpacked.
    let grouped = if unpacks(on, rows, n, k)? { on.unpack_rows() - 1 } else { rows };
    let launches = [(launch::STRIP, rows.min(FEW_ROWS)), (launch::WIDE_STRIP, grouped)];
    let bytes = launches.map(|(strip, rows)| match splits(on, n.div_ceil(strip), row_bytes) {
        1 => 0,
        splits => splits as usize * rows * n * size_of::<f32>(),
    });
    Ok(bytes[0].max(bytes[1]))
}

fn multiply_ourselves(on: &impl Executor, sides: Sides, x: Operand, w: &Weight, to: Output, tile: Tile) -> Result<()> {
    let Sides { rows, n, k } = sides;
    let choice = Choice::new(w, tile);
    let most = choice.most_rows();
    let (row_bytes, row_scales) = (w.row_bytes(k), w.row_scales(k));
    // Blocks of one tile of rows: the same for every number of rows.
    let splits = splits(on, choice.blocks(n), row_bytes);
    for first in (0..rows).step_by(most.min(rows)) {
        let Some(part) = Rows::new(most.min(rows - first))? else { continue };
        let to = Output { out: to.out.offset(first * n), ..to };
        let x = Operand { codes: x.codes.offset(first * row_bytes), scales: x.scales.offset(first * row_scales) };
        let partial = match splits {
            1 => Ptr::NULL,
            _ => Ptr::new(on.scratch(Slot::Partial, splits as usize * part.get() * n * size_of::<f32>())?),
        };
        on.submit(Command::Launch(launch::product(choice, part, [n, k], x, w, &to, (partial, splits))))?;
        if splits > 1 {
            on.submit(Command::Launch(launch::reduce(part, n, partial, splits, &to)))?;
        }
    }
    Ok(())
}

/// Parts of k, so that there are two blocks for each multiprocessor, but none with less than 2 KiB of a row to read.
fn splits(on: &impl Executor, blocks: usize, row_bytes: usize) -> u32 {
    let wanted = 2 * on.processors() / blocks.max(1);
    wanted.clamp(1, (row_bytes / 2048).clamp(1, 8)) as u32
}

fn multiply_by_library(
    on: &impl Executor,
    sides: Sides,
    x: Operand,
    w: &Weight,
    to: Output,
    operands: Operands,
) -> Result<()> {
    let Sides { rows, n, k } = sides;
    let (codes, column_scales) = match w {
        Weight::Bf16(values) => (values.address(), Ptr::NULL),
        Weight::Fp8 { codes, scales } | Weight::Int8 { codes, scales } => (codes.address(), *scales),
        Weight::Fp8Block { .. } | Weight::Grouped(_) => {
            return Err(KernelError::Shape("cuBLASLt multiplies row-major weights with scales of rows".into()));
        }
    };
    let finished = matches!(operands, Operands::Bf16 | Operands::Fp8Scaled);
    // What comes out is what is wanted: no second pass over it.
    let direct = finished && to.bias.is_null();
    let target = if direct { to.out.address() } else { on.scratch(Slot::Raw, rows * n * size_of::<f32>())? };
    let shape = Shape { operands, rows, n, k, add: direct && to.add };
    let scales = [x.scales.address(), column_scales.address()];
    on.submit(Command::Product(Product { shape, x: x.codes.address(), w: codes, out: target, scales }))?;
    let Some(count) = Rows::new(rows)?.filter(|_| !direct) else { return Ok(()) };
    let raw = if operands == Operands::Int8 { Raw::Integer(Ptr::new(target)) } else { Raw::Float(Ptr::new(target)) };
    let (row_scales, column_scales) = if finished { (Ptr::NULL, Ptr::NULL) } else { (x.scales, column_scales) };
    let n = Side::new("a product", n)?;
    on.submit(Command::Launch(launch::scale_store(count, n, raw, row_scales, column_scales, &to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FP8: Weight = Weight::Fp8 { codes: Ptr::NULL, scales: Ptr::NULL };
    const INT4: Weight = Weight::Grouped(Grouped {
        codes: Ptr::NULL,
        affine: Ptr::NULL,
        row_scales: Ptr::NULL,
        group: 128,
        eight_bits: false,
    });

    #[test]
    fn few_rows_are_ours_and_many_the_librarys() {
        let all = |_| Ok(true);
        let of = |weight: &Weight, rows| route(weight, rows, (false, UNPACK_ROWS), all).unwrap();
        assert_eq!(of(&FP8, 8), Route::Own(Tile::M8));
        assert_eq!(of(&FP8, 9), Route::Own(Tile::M16));
        let bf16 = Weight::Bf16(Ptr::NULL);
        assert_eq!([16, 17].map(|rows| of(&bf16, rows)), [Route::Own(Tile::M16), Route::Library(Operands::Bf16)]);
        assert_eq!(of(&FP8, 32), Route::Own(Tile::M32));
        assert_eq!(of(&FP8, 33), Route::Library(Operands::Fp8Scaled));
        assert_eq!([8, 9, 17, 33, 255].map(|rows| of(&INT4, rows)), {
            [Tile::M8, Tile::M16, Tile::M32, Tile::M64, Tile::M64].map(Route::Own)
        });
        assert_eq!(of(&INT4, 256), Route::Unpacked);
        let block = Weight::Fp8Block { codes: Ptr::NULL, scales: Ptr::NULL };
        assert_eq!(of(&block, 4096), Route::Own(Tile::M32));
    }

    #[test]
    fn scales_are_applied_afterwards_where_the_library_cannot() {
        let unscaled = |operands| Ok(operands != Operands::Fp8Scaled);
        assert_eq!(route(&FP8, 100, (false, UNPACK_ROWS), unscaled).unwrap(), Route::Library(Operands::Fp8));
        assert_eq!(route(&FP8, 100, (false, UNPACK_ROWS), |_| Ok(false)).unwrap(), Route::Own(Tile::M32));
    }

    #[test]
    fn deterministic_tiles_do_not_depend_on_the_rows() {
        for rows in [1, 9, 33, 1000] {
            assert_eq!(route(&INT4, rows, (true, UNPACK_ROWS), |_| Ok(true)).unwrap(), Route::Own(Tile::M16));
        }
    }
}
