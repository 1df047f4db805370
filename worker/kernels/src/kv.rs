//! The paged KV cache as a layout: formats, scales, block geometry.
//!
//! A block holds the keys and values of [`BLOCK_TOKENS`] consecutive tokens for **all** layers, so that a pool grows and
//! shrinks by whole blocks at its upper end and one move carries everything a token owns.

/// Tokens in one block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// Storage format of cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// bfloat16.
    #[default]
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// FP8 E4M3 with one static scale per layer, K or V, and KV head; saturating.
    Fp8E4m3,
    /// FP8 E5M2, no scale; saturating.
    Fp8E5m2,
}

impl KvFormat {
    /// Bytes of one stored element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::Fp16 => 2,
            Self::Fp8E4m3 | Self::Fp8E5m2 => 1,
        }
    }
}

/// Geometry of the cache of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Storage format of K and V.
    pub format: KvFormat,
}

impl KvLayout {
    /// Bytes of one block: K and V of [`BLOCK_TOKENS`] tokens in all layers, rounded up to 4 KiB pages so that a shrunk
    /// pool gives whole pages back to the operating system.
    pub const fn block_bytes(&self) -> usize {
        (self.layers * self.layer_bytes()).next_multiple_of(4096)
    }

    /// Bytes of one layer's K and V within a block.
    pub const fn layer_bytes(&self) -> usize {
        2 * self.kv_heads * self.head_dim * BLOCK_TOKENS * self.format.bytes()
    }
}

/// Static dequantization scales of an FP8 E4M3 cache: `value = scale * e4m3(code)`. All ones for other formats.
///
/// Scales belong to a model, not to a profile: they never change during the life of a cache (switching keeps it).
#[derive(Clone, Debug, PartialEq)]
pub struct KvScales {
    /// `[layers * kv_heads]`, row-major.
    pub k: Vec<f32>,
    /// `[layers * kv_heads]`, row-major.
    pub v: Vec<f32>,
}

impl KvScales {
    /// Scales of one, for formats without scaling.
    pub fn unit(layout: &KvLayout) -> Self {
        let n = layout.layers * layout.kv_heads;
        Self { k: vec![1.0; n], v: vec![1.0; n] }
    }
}

/// Copy the content of block `from` over block `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockMove {
    /// Source block.
    pub from: u32,
    /// Destination block; must not be in use.
    pub to: u32,
}
