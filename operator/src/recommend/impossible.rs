//! What to say where nothing fits.

use modelprofile_api::KvCacheFormat;

use super::ladder::{
    Choice, ROOM_PERCENT, Rung, formats, gib, parallel, replicas, requests_per_worker, rung, tokens_needed,
};
use super::{Compute, Request};

/// Why there is no plan, and what would make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(pub String);

/// The densest worker that was possible, and what it lacks.
pub(super) fn impossible(request: &Request) -> Impossible {
    let kv = KvCacheFormat::Fp8E4m3;
    let densest = |request: &Request| -> Vec<(u32, Rung)> {
        let all = formats(request);
        let rungs = parallel(request).flat_map(|tensor_parallel| {
            let choice = |base| Choice { base, kv, tensor_parallel };
            all.iter().filter_map(|&f| rung(request, choice(f), f)).map(|r| (tensor_parallel, r)).collect::<Vec<_>>()
        });
        rungs.collect()
    };
    let context = u64::from(request.context_tokens);
    let workers = densest(request);
    let most = |f: &dyn Fn(&(u32, Rung)) -> u64| workers.iter().map(f).max().unwrap_or(0);
    let concurrency = most(&|(tp, rung)| rung.kv_tokens / context * u64::from(replicas(request, *tp)));
    let longest = most(&|(tp, rung)| rung.kv_tokens / requests_per_worker(request, *tp));
    let memory = workers
        .iter()
        .map(|(tp, rung)| {
            let per_token = request.shape.kv_bytes_per_token(kv) / u64::from(*tp);
            let needed =
                u128::from(rung.weight_bytes) + u128::from(tokens_needed(request, *tp)) * u128::from(per_token);
            (needed * 100).div_ceil(u128::from(ROOM_PERCENT))
        })
        .min()
        .unwrap_or(0);
    let gpus = (request.machine.compute != Compute::Cpu)
        .then(|| {
            (0..=14).map(|i| 1u32 << i).find(|&gpus| {
                let more = Request { gpus, ..request.clone() };
                gpus > request.gpus && densest(&more).iter().any(|(tp, r)| r.kv_tokens >= tokens_needed(&more, *tp))
            })
        })
        .flatten();
    let mut ways = Vec::new();
    ways.extend(gpus.map(|gpus| format!("{gpus} x {}", request.machine.name)));
    ways.push(format!("{} of memory each", gib(u64::try_from(memory).unwrap_or(u64::MAX))));
    if concurrency > 0 {
        ways.push(format!("a concurrency of {concurrency}"));
    }
    if longest >= 16 {
        ways.push(format!("a context of {longest} tokens"));
    }
    Impossible(format!(
        "{} with {} requests of {context} tokens fits in no format on {} x {} ({} each); any of these would fit: {}",
        request.shape.name,
        request.concurrency,
        request.gpus,
        request.machine.name,
        gib(request.machine.memory_bytes),
        ways.join(", or "),
    ))
}
