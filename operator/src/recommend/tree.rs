//! The decision tree. All bytes are of one accelerator (of the machine, on a CPU), since that is what overflows.

use std::fmt;

use modelprofile_api::{KvCacheFormat, Method, WeightFormat};
use serde::Serialize;

use super::{Compute, Priority, Request};
use crate::simulate::ModelShape;

/// Weights and KV cache together stay below this share of the memory.
const ROOM_PERCENT: u64 = 90;
/// The budget of a worker: the room, and the workspace.
const BUDGET_PERCENT: u64 = 95;
/// A further rung pays if it holds at least this many percent more tokens.
const PAYS_PERCENT: u64 = 25;
/// From this context on the KV cache dominates, in tokens.
const LONG_CONTEXT: u32 = 32_768;
/// Most accelerators of a worker that a manifest may name.
const MAX_TENSOR_PARALLEL: u32 = 64;

/// A question of the tree, the numbers that it was answered with, and the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Distance from the root.
    pub depth: usize,
    /// What was asked.
    pub question: String,
    /// The numbers that decide.
    pub numbers: String,
    /// What follows.
    pub answer: String,
}

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

/// What is recommended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The ladder, finest first; 1 to 3 rungs.
    pub rungs: Vec<Rung>,
    /// Format of the KV cache, the same in all rungs, so that switches happen in place.
    pub kv_format: KvCacheFormat,
    /// Accelerators of a worker.
    pub tensor_parallel: u32,
    /// Most workers that the accelerators suffice for.
    pub replicas: u32,
    /// Budget of weights, KV cache and workspace on one accelerator, in MiB.
    pub memory_budget_mib: u64,
    /// How the tree was walked.
    pub reasons: Vec<Answer>,
    /// What a user may expect and does not get.
    pub warnings: Vec<String>,
}

/// Why there is no plan, and what would make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(pub String);

/// Walks the tree.
///
/// # Guarantees
/// Weights and the KV cache of `concurrency / replicas` full contexts stay within 90 % of the memory in the last rung, and
/// of one full context in every rung.
///
/// # Errors
/// No ladder holds the requests; the error says what would.
pub fn recommend(request: &Request) -> Result<Plan, Impossible> {
    let limit = request.shape.max_context_tokens;
    if request.context_tokens > limit {
        let model = &request.shape.name;
        return Err(Impossible(format!("{model} supports at most {limit} tokens of context; ask for that or less")));
    }
    if request.context_tokens < 16 || request.concurrency == 0 || request.gpus == 0 {
        return Err(Impossible("ask for at least 16 tokens of context, 1 request and 1 accelerator".to_owned()));
    }
    let mut walk = Walk { request, reasons: Vec::new() };
    walk.formats_asked();
    walk.kv_asked();
    let found = walk.search();
    let Some(mut plan) = found else { return Err(impossible(request)) };
    plan.reasons = walk.reasons;
    Ok(plan)
}

struct Walk<'a> {
    request: &'a Request,
    reasons: Vec<Answer>,
}

/// A worker that is considered.
#[derive(Clone, Copy)]
struct Choice {
    base: WeightFormat,
    kv: KvCacheFormat,
    tensor_parallel: u32,
}

impl Walk<'_> {
    fn say(
        &mut self,
        depth: usize,
        question: impl Into<String>,
        numbers: impl Into<String>,
        answer: impl Into<String>,
    ) {
        let (question, numbers, answer) = (question.into(), numbers.into(), answer.into());
        self.reasons.push(Answer { depth, question, numbers, answer });
    }

    fn formats_asked(&mut self) {
        let machine = &self.request.machine;
        let name = machine.name.clone();
        let numbers = match machine.compute {
            Compute::Cpu => format!("{name}: no data-centre GPU, {}", gib(machine.memory_bytes)),
            Compute::Accelerator { fp8, int8 } => {
                let has = |yes| if yes { "yes" } else { "no" };
                format!("{name}: {}, FP8 {}, INT8 {}", gib(machine.memory_bytes), has(fp8), has(int8))
            }
        };
        let list: Vec<_> = formats(self.request).iter().map(|f| f.as_str()).collect();
        self.say(0, "Which weight formats suit the hardware and the priority?", numbers, list.join(", then "));
    }

    fn kv_asked(&mut self) {
        let context = self.request.context_tokens;
        let long = context >= LONG_CONTEXT;
        let answer = if long { "yes: FP8 KV cache" } else { "no: BF16 KV cache, FP8 where BF16 does not fit" };
        self.say(0, "Are the contexts long?", format!("{context} tokens, long from {LONG_CONTEXT}"), answer);
    }

    fn search(&mut self) -> Option<Plan> {
        for choice in choices(self.request) {
            let Some(base) = rung(self.request, choice, choice.base) else { continue };
            let rungs = ladder(self.request, choice, base);
            let each = requests_per_worker(self.request, choice.tensor_parallel);
            let needed = tokens_needed(self.request, choice.tensor_parallel);
            let context = u64::from(self.request.context_tokens);
            // 16 bits are a luxury for when all requests fit beside them; 8 bits may leave the peak to a denser rung.
            let all = self.request.priority == Priority::Density || choice.base == WeightFormat::Bf16;
            let base_must = if all { needed } else { context };
            let fits = rungs[0].kv_tokens >= base_must && rungs[rungs.len() - 1].kv_tokens >= needed;
            let last = &rungs[rungs.len() - 1];
            let per = if choice.tensor_parallel > 1 { "GPUs" } else { "device" };
            self.say(
                0,
                format!(
                    "Does {} with {} KV fit on {} {per} per worker?",
                    choice.base.as_str(),
                    choice.kv.as_str(),
                    choice.tensor_parallel
                ),
                format!(
                    "weights {} of {} room each; KV holds {} tokens, {} in {}; needed {needed} ({each} x {context})",
                    gib(rungs[0].weight_bytes),
                    gib(room(self.request)),
                    rungs[0].kv_tokens,
                    last.kv_tokens,
                    last.format.as_str(),
                ),
                match (fits, rungs[0].kv_tokens >= needed) {
                    (true, true) => "yes, with room for all requests".to_owned(),
                    (true, false) => format!("yes at rest; {} carries the peak", last.format.as_str()),
                    (false, _) => "no".to_owned(),
                },
            );
            if fits {
                return Some(self.plan(choice, rungs));
            }
        }
        None
    }

    fn plan(&mut self, choice: Choice, rungs: Vec<Rung>) -> Plan {
        let mut warnings = Vec::new();
        let mut last = &rungs[0];
        for format in denser(self.request, choice.base) {
            let Some(next) = rung(self.request, choice, format) else { continue };
            let gain = gain_percent(last, &next);
            let taken = rungs.iter().find(|r| r.format == format);
            let question = format!("Does {} pay beside {}?", format.as_str(), last.format.as_str());
            let numbers = format!(
                "{} -> {} KV tokens, {gain} % more; pays from {PAYS_PERCENT} %",
                last.kv_tokens, next.kv_tokens
            );
            if let Some(taken) = taken {
                self.say(1, question, numbers, "yes: a rung of its own");
                last = taken;
            } else {
                let (to, from) = (format.as_str(), last.format.as_str());
                warnings.push(format!("density does not pay: {to} holds only {gain} % more KV tokens than {from}"));
                self.say(1, question, numbers, "no: left out");
            }
        }
        let replicas = replicas(self.request, choice.tensor_parallel);
        Plan {
            rungs,
            kv_format: choice.kv,
            tensor_parallel: choice.tensor_parallel,
            replicas,
            memory_budget_mib: percent(self.request.machine.memory_bytes, BUDGET_PERCENT) >> 20,
            reasons: Vec::new(),
            warnings,
        }
    }
}

/// Formats to consider, finest first.
fn formats(request: &Request) -> Vec<WeightFormat> {
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

fn denser(request: &Request, base: WeightFormat) -> impl Iterator<Item = WeightFormat> {
    formats(request).into_iter().skip_while(move |f| *f != base).skip(1)
}

/// Workers to consider, best first: quality asks for the format first, the others for few accelerators.
fn choices(request: &Request) -> Vec<Choice> {
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
fn parallel(request: &Request) -> impl Iterator<Item = u32> {
    let heads = request.shape.kv_heads;
    let most = if request.machine.compute == Compute::Cpu { 1 } else { request.gpus.min(MAX_TENSOR_PARALLEL) };
    (0..7).map(|i| 1 << i).filter(move |tp| *tp <= most && heads.is_multiple_of(*tp))
}

/// The rungs from `base` on: each that pays beside the one before it, or is needed to hold all requests.
fn ladder(request: &Request, choice: Choice, base: Rung) -> Vec<Rung> {
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
fn rung(request: &Request, choice: Choice, format: WeightFormat) -> Option<Rung> {
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
fn widths(shape: &ModelShape) -> [u32; 3] {
    [shape.hidden, shape.intermediate, shape.heads.saturating_mul(shape.head_dim)]
}

fn room(request: &Request) -> u64 {
    percent(request.machine.memory_bytes, ROOM_PERCENT)
}

fn replicas(request: &Request, tensor_parallel: u32) -> u32 {
    if request.machine.compute == Compute::Cpu { 1 } else { request.gpus / tensor_parallel }
}

fn requests_per_worker(request: &Request, tensor_parallel: u32) -> u64 {
    u64::from(request.concurrency.div_ceil(replicas(request, tensor_parallel).max(1)))
}

fn tokens_needed(request: &Request, tensor_parallel: u32) -> u64 {
    requests_per_worker(request, tensor_parallel) * u64::from(request.context_tokens)
}

/// How much more `next` holds than `last`, rounded to whole percents.
fn gain_percent(last: &Rung, next: &Rung) -> u64 {
    let more = u128::from(next.kv_tokens.saturating_sub(last.kv_tokens)) * 100;
    let of = u128::from(last.kv_tokens.max(1));
    u64::try_from((more + of / 2) / of).unwrap_or(u64::MAX)
}

fn percent(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// The densest worker that was possible, and what it lacks.
fn impossible(request: &Request) -> Impossible {
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

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:indent$}{} {}: {}", "", self.question, self.numbers, self.answer, indent = 2 * self.depth)
    }
}
