//! The table of kernels: translation units with their files, and entry points with what a launch of them needs.

use super::{
    compile::Unit,
    launch::{
        attention::{decode_shared, prefill_shared},
        linear::{GROUPED_M16_SHARED, grouped_shared},
    },
};

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
        pub(super) static UNITS: &[Unit] = &[$(Unit { name: stringify!($unit), files: &[$(source_file!($file)),+] },)+];

        /// A translation unit.
        #[allow(non_camel_case_types, reason = "units are named as their files are")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum UnitName { $($unit,)+ }

        /// An entry point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kernel { $($($kernel,)+)+ }

        /// By [`Kernel`].
        pub(super) static ENTRIES: &[Entry] = &[
            $($(Entry { unit: UnitName::$unit, name: $entry, threads: $threads, shared: $shared },)+)+
        ];
    };
}

/// A row of the table.
pub(super) struct Entry {
    pub(super) unit: UnitName,
    pub(super) name: &'static str,
    pub(super) threads: u32,
    pub(super) shared: u32,
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
        "attention_64.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cuh",
        "attention_prefill_lines.cuh", "attention_prefill.cu",
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
        "attention_96.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cuh",
        "attention_prefill_lines.cuh", "attention_prefill.cu",
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
        "attention_128.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cuh",
        "attention_prefill_lines.cuh", "attention_prefill.cu",
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
        "attention_256.cuh", "prim.cuh", "attention.cuh", "attention_decode.cu", "attention_prefill.cuh",
        "attention_prefill_lines.cuh", "attention_prefill.cu",
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
