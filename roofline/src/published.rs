//! Published throughput that step times are held against, with the hardware and the models that it is of.

use crate::{Hardware, ModelShape};

/// Output tokens per second on H100 80GB with TensorRT-LLM 1.0, FP8 weights and cache, requests always waiting: prompt
/// tokens, output tokens, Llama-3.1-8B on one GPU, Llama-3.3-70B on two.
pub const ROWS: [(f64, f64, f64, f64); 9] = [
    (128.0, 128.0, 28_312.0, 6_378.0),
    (128.0, 2048.0, 22_714.0, 6_651.0),
    (128.0, 4096.0, 14_325.0, 4_199.0),
    (500.0, 2000.0, 17_660.0, 5_222.0),
    (1000.0, 1000.0, 15_220.0, 4_205.0),
    (2048.0, 128.0, 3_450.0, 762.0),
    (2048.0, 2048.0, 9_305.0, 3_082.0),
    (5000.0, 500.0, 3_459.0, 898.0),
    (20_000.0, 2000.0, 1_351.0, 437.0),
];

/// The hardware of [`ROWS`].
pub fn h100() -> Hardware {
    shipped(crate::hardware("h100-80gb"))
}

/// The smaller model of [`ROWS`].
pub fn llama_8b() -> ModelShape {
    shipped(crate::model("llama-3.1-8b"))
}

/// The larger model of [`ROWS`].
pub fn llama_70b() -> ModelShape {
    shipped(crate::model("llama-3.3-70b"))
}

/// These files are part of the program, and tests read them.
fn shipped<T, E: std::fmt::Display>(parsed: Result<T, E>) -> T {
    parsed.unwrap_or_else(|error| unreachable!("{error:#}"))
}
