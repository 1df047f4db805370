//! The rungs that are considered, and what each holds. All bytes are of one accelerator (of the machine, on a CPU), since
//! that is what overflows.

use modelprofile_api::{KvCacheFormat, Method, WeightFormat};
use serde::Serialize;

use super::{Compute, Priority, Request};
use crate::simulate::ModelShape;

/// Weights and KV cache together stay below this share of the memory.
pub(super) const ROOM_PERCENT: u64 = 90;
/// A further rung pays if it holds at least this many percent more tokens.
pub(super) const PAYS_PERCENT: u64 = 25;
/// From this context on the KV cache dominates, in tokens.
pub(super) const LONG_CONTEXT: u32 = 32_768;
/// Most accelerators of a worker that a manifest may name.
const MAX_TENSOR_PARALLEL: u32 = 64;

/// One rung of the recommended ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rung {
    /// Format of the weights.
    pub format: WeightFormat,
    /// How they are rounded.
    pub method: Method,
    /// Group size, for INT4.
    pub group_size: Option<u32>,
    /// Bytes of weights on one accelerator.
    pub weight_bytes: u64,
    /// Tokens that the KV cache of a worker holds within the room.
    pub kv_tokens: u64,
}

/// A worker that is considered.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) base: WeightFormat,
    pub(super) kv: KvCacheFormat,
    pub(super) tensor_parallel: u32,
}

/// Formats to consider, finest first.
pub(super) fn formats(request: &Request) -> Vec<WeightFormat> {
    use WeightFormat::{Bf16, Fp8, Int4, Int8, Q4_0, Q4KM, Q8_0};
    let shape = &request.shape;
    match request.machine.compute {
        // K mixtures take blocks of 256 inputs.
        Compute::Cpu if widths(shape).iter().all(|w| w.is_multiple_of(256)) => vec![Q8_0, Q4KM],
        Compute::Cpu => vec![Q8_0, Q4_0],
        Compute::Accelerator { fp8, int8 } => {
            let eight = if fp8 { Some(Fp8) } else { int8.then_some(Int8) };
            let bf16 = match request.priority {
                Priority::Quality => true,
                Priority::Balanced => !fp8,
                Priority::Density => eight.is_none(),
            };
            bf16.then_some(Bf16).into_iter().chain(eight).chain([Int4]).collect()
        }
    }
}

pub(super) fn denser(request: &Request, base: WeightFormat) -> impl Iterator<Item = WeightFormat> {
    formats(request).into_iter().skip_while(move |f| *f != base).skip(1)
}

/// Workers to consider, best first: quality asks for the format first, the others for few accelerators.
pub(super) fn choices(request: &Request) -> Vec<Choice> {
    let kvs: &[KvCacheFormat] = if request.context_tokens >= LONG_CONTEXT {
        &[KvCacheFormat::Fp8E4m3]
    } else {
        &[KvCacheFormat::Bf16, KvCacheFormat::Fp8E4m3]
    };
    let mut choices = Vec::new();
    let formats = formats(request);
    for tensor_parallel in parallel(request) {
        for (i, &base) in formats.iter().enumerate() {
            choices.extend(kvs.iter().map(|&kv| (i, Choice { base, kv, tensor_parallel })));
        }
    }
    if request.priority == Priority::Quality {
        // A coarser cache costs quality too, so more accelerators come before it.
        choices.sort_by_key(|(i, choice)| (*i, choice.kv == KvCacheFormat::Fp8E4m3, choice.tensor_parallel));
    }
    choices.into_iter().map(|(_, choice)| choice).collect()
}

/// Powers of two that share the KV heads evenly (and so the heads, a multiple of them).
pub(super) fn parallel(request: &Request) -> impl Iterator<Item = u32> {
    let heads = request.shape.kv_heads;
    let most = if request.machine.compute == Compute::Cpu { 1 } else { request.gpus.min(MAX_TENSOR_PARALLEL) };
    (0..7).map(|i| 1 << i).filter(move |tp| *tp <= most && heads.is_multiple_of(*tp))
}

/// The rungs from `base` on: each that pays beside the one before it, or is needed to hold all requests.
pub(super) fn ladder(request: &Request, choice: Choice, base: Rung) -> Vec<Rung> {
    let needed = tokens_needed(request, choice.tensor_parallel);
    let mut rungs = vec![base];
    for format in denser(request, choice.base) {
        let Some(next) = rung(request, choice, format) else { continue };
        let last = &rungs[rungs.len() - 1];
        let carries = last.kv_tokens < needed && next.kv_tokens >= needed;
        if gain_percent(last, &next) >= PAYS_PERCENT || carries {
            rungs.push(next);
        }
    }
    rungs
}

/// `None` if no group size suits the widths of the model.
pub(super) fn rung(request: &Request, choice: Choice, format: WeightFormat) -> Option<Rung> {
    let shape = &request.shape;
    let tp = choice.tensor_parallel;
    let mut group_size = None;
    if format == WeightFormat::Int4 {
        let fits = |group: u32| widths(shape).iter().all(|w| w.is_multiple_of(tp) && (w / tp).is_multiple_of(group));
        group_size = Some([128, 64, 32].into_iter().find(|g| fits(*g))?);
    }
    let weight_bytes = shape.weight_bytes(format, group_size.unwrap_or(128)).div_ceil(u64::from(tp));
    // KV heads are shared evenly.
    let per_token = (shape.kv_bytes_per_token(choice.kv) / u64::from(tp)).max(1);
    let kv_tokens = room(request).saturating_sub(weight_bytes) / per_token;
    let method = if format == WeightFormat::Int4 { Method::Awq } else { Method::RoundToNearest };
    Some(Rung { format, method, group_size, weight_bytes, kv_tokens })
}

/// Input widths of the layers' matrices.
pub(super) fn widths(shape: &ModelShape) -> [u32; 3] {
    [shape.hidden, shape.intermediate, shape.heads.saturating_mul(shape.head_dim)]
}

pub(super) fn room(request: &Request) -> u64 {
    percent(request.machine.memory_bytes, ROOM_PERCENT)
}

pub(super) fn replicas(request: &Request, tensor_parallel: u32) -> u32 {
    if request.machine.compute == Compute::Cpu { 1 } else { request.gpus / tensor_parallel }
}

pub(super) fn requests_per_worker(request: &Request, tensor_parallel: u32) -> u64 {
    u64::from(request.concurrency.div_ceil(replicas(request, tensor_parallel).max(1)))
}

pub(super) fn tokens_needed(request: &Request, tensor_parallel: u32) -> u64 {
    requests_per_worker(request, tensor_parallel) * u64::from(request.context_tokens)
}

/// How much more `next` holds than `last`, rounded to whole percents.
pub(super) fn gain_percent(last: &Rung, next: &Rung) -> u64 {
    let more = u128::from(next.kv_tokens.saturating_sub(last.kv_tokens)) * 100;
    let of = u128::from(last.kv_tokens.max(1));
    u64::try_from((more + of / 2) / of).unwrap_or(u64::MAX)
}

pub(super) fn percent(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
