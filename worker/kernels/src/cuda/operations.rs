//! The operations of a step, each written once for the device and the plan: what is checked, which rows are computed, what is
//! launched.
//!
//! Products and attention are several kernels each, of which kinds and shapes decide: see [`linear`](super::linear) and
//! [`attention`](super::attention).

use std::ops::Range;

use super::{
    content::Held,
    executor::{Executor, Located, Paged},
    graph::Command,
    kernels::{Launch, Ptr, Rows, Side},
    launch::{
        linear::Output,
        rotary,
        rows::{self, Source, Vocabulary},
    },
    linear,
    scratch::Slot,
    step::CudaStep,
};
use crate::{AttentionShape, KernelError, KvLayout, Result, Rotary, Store};

/// A count as kernels take it.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// # Errors
/// [`KernelError::Shape`] when a buffer has another width, or fewer rows.
pub(super) fn fits(what: &str, buffer: &impl Held, rows: usize, width: usize) -> Result<()> {
    if buffer.width() == width && buffer.rows() >= rows {
        return Ok(());
    }
    Err(KernelError::Shape(format!("{what} is {} x {}, not {rows} x {width}", buffer.rows(), buffer.width())))
}

/// Makes a buffer's values be there.
pub(super) fn read<E: Executor>(on: &E, buffer: &E::Buffer) -> Result<()> {
    let launch = on.present(|present| present.contents.make_plain(buffer))?;
    launch_all(on, launch)
}

/// Before a buffer is written.
pub(super) fn write<E: Executor>(on: &E, buffer: &E::Buffer) -> Result<()> {
    let launches = on.present(|present| present.contents.before_write(buffer));
    launch_all(on, launches)
}

fn launch_all(on: &impl Executor, launches: impl IntoIterator<Item = Launch>) -> Result<()> {
    launches.into_iter().try_for_each(|launch| on.submit(Command::Launch(launch)))
}

/// Rows to compute for `rows` of the step's: all of its bucket where the buffers have them.
pub(super) fn padded<E: Executor>(on: &E, rows: usize, buffers: &[&E::Buffer]) -> Result<Option<Rows>> {
    let in_step = on.is_in_step();
    on.present(|present| present.padded(rows, in_step, buffers.iter().map(|buffer| buffer.rows())))
}

/// # Errors
/// [`KernelError::Device`] when another step has begun since: its numbers are where this one's were.
pub(super) fn check_step(on: &impl Executor, step: &CudaStep) -> Result<()> {
    if on.present(|present| present.is(step.generation)) {
        return Ok(());
    }
    Err(KernelError::Device("a step is used after a later one began".into()))
}

/// Holds attention's shape against what a pool stores.
fn check_cache(layout: &KvLayout, shape: &AttentionShape, layer: usize) -> Result<()> {
    let KvLayout { layers, kv_heads, head_dim, .. } = *layout;
    let sound = shape.kv_heads == kv_heads
        && shape.head_dim == head_dim
        && kv_heads > 0
        && shape.heads.is_multiple_of(kv_heads)
        && layer < layers;
    if sound {
        return Ok(());
    }
    Err(KernelError::Shape(format!("{shape:?} in layer {layer} is not of {layout:?}")))
}

/// Rows of an embedding that holds some of a vocabulary's `all` tokens.
pub(super) fn embed<E: Executor>(
    on: &E,
    step: &CudaStep,
    table: &E::Weight,
    (vocabulary, all): (Vocabulary, u32),
    out: &E::Buffer,
) -> Result<()> {
    check_step(on, step)?;
    let placed = table.placed();
    let spec = placed.layout.spec;
    fits("the residual", out, step.shape.rows, spec.k)?;
    if step.shape.top_token >= all {
        return Err(KernelError::Shape(format!("token {} is not in the embedding's {all}", step.shape.top_token)));
    }
    let sides = [Side::new("an embedding", spec.k)?, Side::new("an embedding", placed.layout.k)?];
    let Some(count) = padded(on, step.shape.rows, &[out])? else { return Ok(()) };
    on.make_ready(table)?;
    write(on, out)?;
    on.submit(Command::Launch(rows::embed(count, step.tokens, placed.table()?, vocabulary, sides, out.at())))
}

/// See [`Backend::rms_norm`](crate::Backend::rms_norm).
pub(super) fn rms_norm<E: Executor>(
    on: &E,
    rows: usize,
    x: &E::Buffer,
    gain: &E::Buffer,
    epsilon: f32,
    out: &E::Buffer,
) -> Result<()> {
    let width = x.width();
    fits("the norm's input", x, rows, width)?;
    fits("the norm's gain", gain, 1, width)?;
    fits("the norm's output", out, rows, width)?;
    let side = Side::new("the norm's input", width)?;
    let Some(count) = padded(on, rows, &[x, out])? else { return Ok(()) };
    read(on, x)?;
    read(on, gain)?;
    write(on, out)?;
    let source = Source::Normed { x: x.at(), gain: gain.at(), epsilon };
    on.present(|present| present.contents.promise(out, count, side, source, &[x, gain]));
    Ok(())
}

/// See [`Backend::linear`](crate::Backend::linear).
pub(super) fn product<E: Executor>(
    on: &E,
    rows: usize,
    x: &E::Buffer,
    w: &E::Weight,
    bias: Option<&E::Buffer>,
    store: Store,
    out: &E::Buffer,
) -> Result<()> {
    let placed = w.placed();
    let spec = placed.layout.spec;
    fits("the product's input", x, rows, spec.k)?;
    fits("the product's output", out, rows, spec.n)?;
    if let Some(bias) = bias {
        fits("the bias", bias, 1, spec.n)?;
        read(on, bias)?;
    }
    let Some(count) = padded(on, rows, &[x, out])? else { return Ok(()) };
    let direct =
        if placed.outliers().is_some() { None } else { on.present(|present| present.contents.source(x, count.get()))? };
    let source = if let Some(source) = direct {
        source
    } else {
        read(on, x)?;
        Source::Plain(x.at())
    };
    if store == Store::Add {
        read(on, out)?;
    }
    write(on, out)?;
    on.make_ready(w)?;
    let bias = bias.map_or(Ptr::NULL, Held::at);
    linear::product(on, count, source, &placed, Output { out: out.at(), bias, add: store == Store::Add })
}

/// See [`Backend::rotate_and_store`](crate::Backend::rotate_and_store).
pub(super) fn rotate_and_store<E: Executor>(
    on: &E,
    step: &CudaStep,
    qkv: &E::Buffer,
    shape: &AttentionShape,
    rotary: &Rotary<'_, E::Buffer>,
    (kv, layer): (&mut E::Kv, usize),
) -> Result<()> {
    check_step(on, step)?;
    check_cache(kv.layout(), shape, layer)?;
    fits("Q, K and V", qkv, step.shape.rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)?;
    if step.shape.blocks > kv.blocks() {
        return Err(KernelError::Shape("a block of the step is outside the pool".into()));
    }
    let frequencies = rotary.inverse_frequencies;
    let pairs = frequencies.width();
    fits("the rotary frequencies", frequencies, 1, pairs)?;
    for norm in [rotary.query_norm, rotary.key_norm].into_iter().flatten() {
        fits("a head's norm", norm, 1, shape.head_dim)?;
        read(on, norm)?;
    }
    let Some(count) = padded(on, step.shape.rows, &[qkv])? else { return Ok(()) };
    if !kv.is_backed(step.shape.blocks) {
        on.back(kv, step.shape.blocks)?;
    }
    read(on, qkv)?;
    write(on, qkv)?;
    let angles = Ptr::new(on.scratch(Slot::Angles, count.get() * 2 * pairs * size_of::<f32>())?);
    let factor = rotary.attention_factor;
    if on.present(|present| present.take_angles(frequencies.at().address(), factor)) {
        read(on, frequencies)?;
        let launch = rotary::angles(count, step.positions, frequencies.at(), pairs, factor, angles);
        on.submit(Command::Launch(launch))?;
    }
    let norms = rotary::HeadNorms {
        query: rotary.query_norm.map_or(Ptr::NULL, Held::at),
        key: rotary.key_norm.map_or(Ptr::NULL, Held::at),
        epsilon: rotary.norm_epsilon,
    };
    let launch = rotary::rotate_and_store(count, qkv.at(), (angles, pairs), step.slots, shape, norms, &kv.pool(layer))?;
    on.submit(Command::Launch(launch))
}

/// See [`Backend::attention`](crate::Backend::attention).
pub(super) fn attention<E: Executor>(
    on: &E,
    step: &CudaStep,
    qkv: &E::Buffer,
    shape: &AttentionShape,
    (kv, layer): (&E::Kv, usize),
    out: &E::Buffer,
) -> Result<()> {
    check_step(on, step)?;
    check_cache(kv.layout(), shape, layer)?;
    let rows = step.shape.rows;
    fits("Q, K and V", qkv, rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)?;
    fits("the attention's output", out, rows, shape.heads * shape.head_dim)?;
    if rows == 0 {
        return Ok(());
    }
    if step.shape.blocks > kv.blocks() || !kv.is_backed(step.shape.blocks) {
        return Err(KernelError::Shape("a block of the step was never stored into".into()));
    }
    read(on, qkv)?;
    write(on, out)?;
    super::attention::attend(on, step, qkv.at(), shape, &kv.pool(layer), out.at())
}

/// See [`Backend::gated_silu`](crate::Backend::gated_silu).
pub(super) fn gated_silu<E: Executor>(on: &E, rows: usize, x: &E::Buffer, out: &E::Buffer) -> Result<()> {
    let width = out.width();
    fits("gate and up", x, rows, 2 * width)?;
    fits("the activation", out, rows, width)?;
    let side = Side::new("the activation", width)?;
    let Some(count) = padded(on, rows, &[x, out])? else { return Ok(()) };
    read(on, x)?;
    write(on, out)?;
    on.present(|present| present.contents.promise(out, count, side, Source::Gated(x.at()), &[x]));
    Ok(())
}

/// See [`Backend::gather_logit_rows`](crate::Backend::gather_logit_rows).
pub(super) fn gather<E: Executor>(
    on: &E,
    step: &CudaStep,
    x: &E::Buffer,
    range: Range<usize>,
    out: &E::Buffer,
) -> Result<()> {
    check_step(on, step)?;
    let width = x.width();
    if range.end > step.shape.logit_rows {
        return Err(KernelError::Shape(format!("rows {range:?} of {} with logits", step.shape.logit_rows)));
    }
    fits("the selected rows", out, range.len(), width)?;
    fits("the rows", x, step.shape.rows, width)?;
    let Some(count) = padded(on, range.len(), &[x, out])? else { return Ok(()) };
    read(on, x)?;
    write(on, out)?;
    let list = step.logit_rows.offset(range.start);
    on.submit(Command::Launch(rows::gather(count, x.at(), list, Side::new("the rows", width)?, out.at())))
}
