//! Launches of paged attention. The contracts are in `kernels/attention.cuh` and the files behind it.

use super::{Pool, blocks};
use crate::{
    AttentionShape, BLOCK_TOKENS, KernelError, KvFormat, Result,
    cuda::{
        driver::Parameters,
        kernels::{Kernel, Launch, Ptr, UnitName},
        step::Reach,
        work::{Cores, Work, floats},
    },
};

/// Lines (query heads of a row) of a decode block.
const DECODE_LINES: usize = 16;
/// Stages of shared memory of a decode block's warps, of a block of the cache each.
const DECODE_STAGES: u32 = 3;
const DECODE_WARPS: u32 = 4;
/// Steps that are on their way to a prefill block.
const PREFILL_AHEAD: u32 = 2;

/// The arguments, as `struct Attention` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Arguments {
    out: u64,
    partial: u64,
    partial_state: u64,
    qkv: u64,
    kv: u64,
    k_scales: u64,
    v_scales: u64,
    tables: u64,
    table_start: u64,
    first_row: u64,
    row_count: u64,
    first_position: u64,
    block_bytes: u64,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    window: u32,
    splits: u32,
    scale: f32,
}
const _: () = assert!(size_of::<Arguments>() == 13 * 8 + 6 * 4);

// SAFETY: numbers without padding between or behind them, by the assertion above.
unsafe impl bytemuck::Zeroable for Arguments {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Arguments {}

/// The step's sequences on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Sequences {
    /// Sequences, those that pad the step included.
    pub(in crate::cuda) count: usize,
    pub(in crate::cuda) first_row: Ptr<u32>,
    pub(in crate::cuda) row_count: Ptr<u32>,
    pub(in crate::cuda) first_position: Ptr<u32>,
    pub(in crate::cuda) table_start: Ptr<u32>,
    pub(in crate::cuda) tables: Ptr<u32>,
}

/// Scratch of decode steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Parts {
    /// `[sequences, heads, splits, head_dim]`.
    pub(in crate::cuda) sums: Ptr<f32>,
    /// `[sequences, heads, splits, 2]`.
    pub(in crate::cuda) states: Ptr<f32>,
    /// Most parts of a sequence.
    pub(in crate::cuda) splits: u32,
}

impl Parts {
    /// Elements of `sums` and `states`.
    pub(in crate::cuda) fn sizes(sequences: usize, shape: &AttentionShape, splits: u32) -> [usize; 2] {
        let lines = sequences * shape.heads * splits as usize;
        [lines * shape.head_dim, lines * 2]
    }
}

/// One layer's attention: its launches are [`Self::decode`] with [`Self::reduce`], and [`Self::prefill`].
pub(in crate::cuda) struct Attention {
    arguments: Arguments,
    format: KvFormat,
    sequences: usize,
    /// Query heads of a KV head.
    group: usize,
    /// What the step's sequences see.
    reach: Reach,
}

impl Attention {
    /// # Errors
    /// [`KernelError::Shape`] when more query heads share a KV head than a block has lines.
    pub(in crate::cuda) fn new(
        qkv: Ptr<f32>,
        shape: &AttentionShape,
        pool: &Pool,
        (sequences, reach): (&Sequences, Reach),
        parts: Parts,
        out: Ptr<f32>,
    ) -> Result<Self> {
        let group = shape.heads / shape.kv_heads;
        let most = prefill_lines(shape.head_dim as u32);
        if group > most {
            return Err(KernelError::Shape(format!(
                "{group} query heads share a KV head; the GPU's attention takes up to {most}"
            )));
        }
        let window = match shape.sliding_window {
            None => 0,
            Some(0) => return Err(KernelError::Shape("a sliding window of no positions".into())),
            // No position comes near 2^32: a larger window sees all.
            Some(window) => u32::try_from(window).unwrap_or(0),
        };
        let [k_scales, v_scales] = pool.scales;
        let arguments = Arguments {
            out: out.address(),
            partial: parts.sums.address(),
            partial_state: parts.states.address(),
            qkv: qkv.address(),
            kv: pool.base + (pool.layer * pool.layout.layer_bytes()) as u64,
            k_scales,
            v_scales,
            tables: sequences.tables.address(),
            table_start: sequences.table_start.address(),
            first_row: sequences.first_row.address(),
            row_count: sequences.row_count.address(),
            first_position: sequences.first_position.address(),
            block_bytes: pool.layout.block_bytes() as u64,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
            window,
            splits: parts.splits,
            scale: shape.scale,
        };
        Ok(Self { arguments, format: pool.layout.format, sequences: sequences.count, group, reach })
    }

    /// Sequences with one row.
    pub(in crate::cuda) fn decode(&self) -> Result<Launch> {
        let tiles = blocks(self.group, DECODE_LINES);
        let grid = [self.arguments.splits, self.arguments.kv_heads * tiles, self.sequences as u32];
        let kernel = match (self.format, self.arguments.dim) {
            (KvFormat::Bf16, 64) => Kernel::DecodeBf1664,
            (KvFormat::Bf16, 96) => Kernel::DecodeBf1696,
            (KvFormat::Bf16, 128) => Kernel::DecodeBf16128,
            (KvFormat::Bf16, 256) => Kernel::DecodeBf16256,
            (KvFormat::Fp16, 64) => Kernel::DecodeFp1664,
            (KvFormat::Fp16, 96) => Kernel::DecodeFp1696,
            (KvFormat::Fp16, 128) => Kernel::DecodeFp16128,
            (KvFormat::Fp16, 256) => Kernel::DecodeFp16256,
            (KvFormat::Fp8E4m3, 64) => Kernel::DecodeE4m364,
            (KvFormat::Fp8E4m3, 96) => Kernel::DecodeE4m396,
            (KvFormat::Fp8E4m3, 128) => Kernel::DecodeE4m3128,
            (KvFormat::Fp8E4m3, 256) => Kernel::DecodeE4m3256,
            (KvFormat::Fp8E5m2, 64) => Kernel::DecodeE5m264,
            (KvFormat::Fp8E5m2, 96) => Kernel::DecodeE5m296,
            (KvFormat::Fp8E5m2, 128) => Kernel::DecodeE5m2128,
            (KvFormat::Fp8E5m2, 256) => Kernel::DecodeE5m2256,
            (_, dim) => return Err(no_kernel(dim)),
        };
        let Arguments { heads, kv_heads, dim, .. } = self.arguments;
        let read =
            self.reach.decode_tokens * self.token_bytes() + floats(self.reach.decode_rows * (heads * dim) as usize);
        // Keys and values are each multiplied with all lines of a block, there or not.
        let lines = (kv_heads * tiles) as usize * DECODE_LINES;
        let operations = 4 * self.reach.decode_tokens * dim as usize * lines;
        let work = Work::bytes(read, self.partial_bytes()).with(operations, Cores::Mma);
        let shared = decode_shared(self.arguments.dim, self.format.bytes() as u32);
        Ok(self.launch(kernel, grid, shared).with_work(work))
    }

    /// Joins the parts of [`Self::decode`].
    pub(in crate::cuda) fn reduce(&self) -> Result<Launch> {
        let kernel = match self.arguments.dim {
            64 => Kernel::Reduce64,
            96 => Kernel::Reduce96,
            128 => Kernel::Reduce128,
            256 => Kernel::Reduce256,
            dim => return Err(no_kernel(dim)),
        };
        let written = floats(self.reach.decode_rows * (self.arguments.heads * self.arguments.dim) as usize);
        let work = Work::bytes(self.partial_bytes(), written);
        Ok(self.launch(kernel, [self.arguments.heads, self.sequences as u32, 1], 0).with_work(work))
    }

    /// Sequences with more rows, of which the longest has `longest`.
    pub(in crate::cuda) fn prefill(&self, longest: usize) -> Result<Launch> {
        let tiles = blocks(longest, prefill_lines(self.arguments.dim) / self.group);
        let grid = [tiles, self.arguments.kv_heads, self.sequences as u32];
        let kernel = match (self.format, self.arguments.dim) {
            (KvFormat::Bf16, 64) => Kernel::PrefillBf1664,
            (KvFormat::Bf16, 96) => Kernel::PrefillBf1696,
            (KvFormat::Bf16, 128) => Kernel::PrefillBf16128,
            (KvFormat::Bf16, 256) => Kernel::PrefillBf16256,
            (KvFormat::Fp16, 64) => Kernel::PrefillFp1664,
            (KvFormat::Fp16, 96) => Kernel::PrefillFp1696,
            (KvFormat::Fp16, 128) => Kernel::PrefillFp16128,
            (KvFormat::Fp16, 256) => Kernel::PrefillFp16256,
            (KvFormat::Fp8E4m3, 64) => Kernel::PrefillE4m364,
            (KvFormat::Fp8E4m3, 96) => Kernel::PrefillE4m396,
            (KvFormat::Fp8E4m3, 128) => Kernel::PrefillE4m3128,
            (KvFormat::Fp8E4m3, 256) => Kernel::PrefillE4m3256,
            (KvFormat::Fp8E5m2, 64) => Kernel::PrefillE5m264,
            (KvFormat::Fp8E5m2, 96) => Kernel::PrefillE5m296,
            (KvFormat::Fp8E5m2, 128) => Kernel::PrefillE5m2128,
            (KvFormat::Fp8E5m2, 256) => Kernel::PrefillE5m2256,
            (_, dim) => return Err(no_kernel(dim)),
        };
        let values = (self.arguments.heads * self.arguments.dim) as usize;
        let rows = floats(self.reach.prefill_rows * values);
        let read = self.reach.prefill_tokens * self.token_bytes() + rows;
        let work = Work::bytes(read, rows).with(4 * self.reach.prefill_pairs * values, Cores::Mma);
        let shared = prefill_shared(self.arguments.dim, self.format.bytes() as u32);
        Ok(self.launch(kernel, grid, shared).with_work(work))
    }

    fn launch(&self, kernel: Kernel, grid: [u32; 3], shared: u32) -> Launch {
        Launch::new(kernel, grid, Parameters::new().with(self.arguments)).with_shared(shared)
    }

    /// Bytes of one layer's keys and values of a token.
    fn token_bytes(&self) -> usize {
        2 * (self.arguments.kv_heads * self.arguments.dim) as usize * self.format.bytes()
    }

    /// Bytes of the parts that decode writes and reduce joins.
    fn partial_bytes(&self) -> usize {
        // A part has at least 128 tokens, however many there may be.
        let parts = self.reach.decode_parts.min(self.reach.decode_rows * self.arguments.splits as usize);
        floats(parts * (self.arguments.heads * (self.arguments.dim + 2)) as usize)
    }
}

/// Shared memory of a decode block: its queries, and the stages of all warps.
pub(in crate::cuda) const fn decode_shared(dim: u32, bytes: u32) -> u32 {
    DECODE_LINES as u32 * query_pitch(dim) + DECODE_STAGES * DECODE_WARPS * block_bytes(dim, bytes)
}

/// Lines (query heads of a row) of a prefill block: what the registers of four warps hold.
const fn prefill_lines(dim: u32) -> usize {
    if dim <= 128 { 128 } else { 64 }
}

/// Shared memory of a prefill block: its queries, the tiles of keys and values of its steps, and the pieces of 8-bit keys and
/// values that are to be converted into tiles.
pub(in crate::cuda) const fn prefill_shared(dim: u32, bytes: u32) -> u32 {
    let (lines, tokens) = (prefill_lines(dim) as u32, if dim <= 128 { 32 } else { 16 });
    let row = 2 * dim + 16;
    let (tiles, pieces) = if bytes == 1 { (2, PREFILL_AHEAD * 2 * tokens * dim) } else { (PREFILL_AHEAD + 1, 0) };
    (lines + tiles * 2 * tokens) * row + pieces
}

/// Bytes from query to query in shared memory of a decode block: neighbours meet different banks.
const fn query_pitch(dim: u32) -> u32 {
    if 2 * dim % 128 == 64 { 2 * dim } else { 2 * dim + 64 }
}

/// Bytes of K and V of one block of the cache and one head in shared memory, of elements of one or two bytes.
const fn block_bytes(dim: u32, bytes: u32) -> u32 {
    let key = match bytes {
        2 => query_pitch(dim),
        _ if dim % 64 == 32 => dim,
        _ => dim + 32,
    };
    BLOCK_TOKENS as u32 * (key + dim * bytes + 16)
}

/// The unit of a head size.
pub(in crate::cuda) fn unit(head_dim: usize) -> Result<UnitName> {
    match head_dim {
        64 => Ok(UnitName::attention_64),
        96 => Ok(UnitName::attention_96),
        128 => Ok(UnitName::attention_128),
        256 => Ok(UnitName::attention_256),
        _ => Err(no_kernel(head_dim as u32)),
    }
}

fn no_kernel(dim: u32) -> KernelError {
    KernelError::Shape(format!(
        "heads of {dim} elements: the GPU's attention has kernels for 64, 96, 128 and 256; run this model on the CPU"
    ))
}
