//! How long one step takes: the larger of the time that bytes and that operations take, plus what neither explains.

use modelprofile_api::{KvCacheFormat, Profile, WeightFormat};

use crate::{Ceilings, Constants, Hardware, ModelShape, Unit};

/// Memory that an engine needs beside weights and KV cache, in bytes per accelerator: activations, graphs, libraries.
const WORKSPACE_BYTES: f64 = 2e9;

/// The precision of one profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Group size of INT4; without effect elsewhere.
    pub group: u32,
    /// Format of keys and values.
    pub kv: KvCacheFormat,
    /// Accelerators that share the model.
    pub tensor_parallel: u32,
}

impl From<&Profile> for Precision {
    fn from(profile: &Profile) -> Self {
        Self {
            weights: profile.weights.format,
            group: profile.weights.effective_group_size().unwrap_or(128),
            kv: profile.kv_cache.format,
            tensor_parallel: profile.tensor_parallel,
        }
    }
}

/// What one step works on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// Sequences that get one more token.
    pub decode: f64,
    /// Tokens in the contexts of those sequences, together.
    pub decode_context: f64,
    /// Prompt tokens.
    pub prefill: f64,
    /// For each prompt token the tokens that it looks back at, together.
    pub prefill_context: f64,
}

/// Step times of one model in one precision on one worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    weight_seconds: f64,
    token_seconds: f64,
    head_seconds: f64,
    context_seconds: f64,
    lookback_seconds: f64,
    exchange_seconds_per_token: f64,
    fixed_seconds: f64,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    accelerators: u32,
}

impl Roofline {
    /// The model `shape` in `precision` on as many of `hardware` as it is split over.
    pub fn new(hardware: &Hardware, shape: &ModelShape, precision: Precision, constants: Constants) -> Self {
        let accelerators = f64::from(precision.tensor_parallel);
        let ceilings = Ceilings::new(hardware, constants);
        let bandwidth = ceilings.memory * accelerators;
        let bf16 = ceilings.operations(Unit::Bf16) * accelerators;
        // W4A16 is unpacked and computed in BF16.
        let unit = match precision.weights {
            WeightFormat::Fp8 => Unit::Fp8,
            WeightFormat::Int8 => Unit::Int8,
            _ => Unit::Bf16,
        };
        let matrix = ceilings.operations(unit) * accelerators;
        let layers = f64::from(shape.layers);
        // Two all-reduces a layer, of 16 bits a value.
        let all_reduce = |bytes: f64| 2.0 * layers * ceilings.all_reduce(bytes, precision.tensor_parallel).seconds;
        let exchange_latency = all_reduce(0.0);
        let kv_bytes_per_token = shape.kv_bytes_per_token(precision.kv);
        Self {
            weight_seconds: shape.step_weight_bytes(precision.weights, precision.group) as f64 / bandwidth,
            token_seconds: shape.linear_flops_per_token() / matrix,
            head_seconds: shape.head_flops_per_token() / bf16,
            context_seconds: kv_bytes_per_token as f64 / bandwidth,
            lookback_seconds: shape.attention_flops() / bf16,
            exchange_seconds_per_token: all_reduce(2.0 * f64::from(shape.hidden)) - exchange_latency,
            fixed_seconds: constants.layer_overhead_seconds * layers + exchange_latency,
            weight_bytes: shape.weight_bytes(precision.weights, precision.group),
            kv_bytes_per_token,
            accelerators: precision.tensor_parallel,
        }
    }

    /// Time of a step, in seconds.
    ///
    /// Weights are read while they are multiplied: the slower of the two counts. Attention comes after: decoding is bound
    /// by the bytes of its context, prompts by their operations.
    pub fn step_seconds(&self, batch: Batch) -> f64 {
        let tokens = batch.decode + batch.prefill;
        let compute = self.token_seconds * tokens + self.head_seconds * batch.decode;
        self.weight_seconds.max(compute)
            + self.context_seconds * batch.decode_context
            + self.lookback_seconds * batch.prefill_context
            + self.exchange_seconds_per_token * tokens
            + self.fixed_seconds
    }

    /// Tokens of a step from which on `other` computes slower than this; `None` if it never does.
    pub fn crossover(&self, other: &Self) -> Option<f64> {
        let matrices = |roofline: &Self, tokens: f64| roofline.weight_seconds.max(roofline.token_seconds * tokens);
        // Beyond this both are bound by compute, and nothing changes any more.
        (1..=8192).map(f64::from).find(|tokens| matrices(other, *tokens) > matrices(self, *tokens))
    }

    /// Bytes of the weights in memory, over all accelerators of the worker.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Accelerators of the worker.
    pub fn accelerators(&self) -> u32 {
        self.accelerators
    }

    /// Bytes of the keys and values of one token, over all accelerators of the worker.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.kv_bytes_per_token
    }

    /// Tokens that the KV cache holds when weights, workspace and cache share `budget` bytes per accelerator, and the cache
    /// takes `share` of what is left; 0 if the weights do not fit.
    pub fn kv_capacity(&self, budget: f64, share: f64) -> u64 {
        let free = (budget - WORKSPACE_BYTES) * f64::from(self.accelerators) - self.weight_bytes as f64;
        (free.max(0.0) * share / self.kv_bytes_per_token as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::{h100, llama_8b, llama_70b};

    fn roofline(weights: WeightFormat, tensor_parallel: u32) -> Roofline {
        let precision = Precision { weights, group: 128, kv: KvCacheFormat::Fp8E4m3, tensor_parallel };
        Roofline::new(&h100(), &llama_70b(), precision, Constants::default())
    }

    fn decode(batch: f64) -> Batch {
        Batch { decode: batch, decode_context: batch * 500.0, ..Batch::default() }
    }

    #[test]
    fn int4_is_faster_for_small_batches_and_slower_for_large_ones() {
        let (fp8, int4) = (roofline(WeightFormat::Fp8, 1), roofline(WeightFormat::Int4, 1));
        assert!(int4.step_seconds(decode(8.0)) < 0.7 * fp8.step_seconds(decode(8.0)));
        assert!(int4.step_seconds(decode(400.0)) > 1.2 * fp8.step_seconds(decode(400.0)));
        let crossover = (1..400).find(|n| {
            let batch = decode(f64::from(*n));
            int4.step_seconds(batch) > fp8.step_seconds(batch)
        });
        assert!(crossover.is_some_and(|n| (60..=180).contains(&n)), "{crossover:?}");
    }

    #[test]
    fn freed_weight_bytes_become_cache() {
        let budget = 0.92 * 80.0 * f64::from(1 << 30);
        let thousands = |format| roofline(format, 1).kv_capacity(budget, 1.0) / 1000;
        assert_eq!((thousands(WeightFormat::Fp8), thousands(WeightFormat::Int4)), (26, 222));
        assert_eq!(roofline(WeightFormat::Bf16, 1).kv_capacity(budget, 1.0), 0);
    }

    #[test]
    fn two_accelerators_are_less_than_twice_as_fast() {
        let (one, two) = (roofline(WeightFormat::Fp8, 1), roofline(WeightFormat::Fp8, 2));
        let ratio = one.step_seconds(decode(64.0)) / two.step_seconds(decode(64.0));
        assert!((1.2..2.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn hardware_without_fp8_computes_it_in_bf16() {
        let mut hardware = h100();
        let precision =
            Precision { weights: WeightFormat::Fp8, group: 128, kv: KvCacheFormat::Bf16, tensor_parallel: 1 };
        let batch = Batch { prefill: 8192.0, ..Batch::default() };
        let with = Roofline::new(&hardware, &llama_8b(), precision, Constants::default()).step_seconds(batch);
        hardware.flops.fp8 = None;
        let without = Roofline::new(&hardware, &llama_8b(), precision, Constants::default()).step_seconds(batch);
        assert!(without > 1.8 * with, "{without} {with}");
    }
}
