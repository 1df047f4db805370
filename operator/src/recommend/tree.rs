//! The decision tree: its questions, with the numbers that answer them.

use std::fmt;

use modelprofile_api::{KvCacheFormat, Method, WeightFormat};
use serde::Serialize;

use super::impossible::{Impossible, impossible};
use super::ladder::{
    Choice, LONG_CONTEXT, PAYS_PERCENT, Rung, choices, denser, formats, gain_percent, gib, ladder, percent, replicas,
    requests_per_worker, room, rung, tokens_needed, widths,
};
use super::{Compute, Priority, Request};

/// The budget of a worker: the room, and the workspace.
const BUDGET_PERCENT: u64 = 95;

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

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:indent$}{} {}: {}", "", self.question, self.numbers, self.answer, indent = 2 * self.depth)
    }
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

    /// No dimension of a model says that GPTQ would be better, so it is told when a person should choose it.
    fn method_asked(&mut self) {
        let widest = u64::from(widths(&self.request.shape).into_iter().max().unwrap_or(0));
        // GPTQ's second-order information relates every input of a layer to every other, in 32 bits.
        let matrix = gib(4 * widest * widest);
        self.say(
            1,
            "Which method rounds INT4?",
            format!(
                "AWQ measures the mean of each input, GPTQ a matrix of {matrix} for {widest} inputs; AWQ's published \
                 perplexities on WikiText-2 are 0.02 to 0.03 lower (QServe's table, 5 models, group 128)"
            ),
            "AWQ. GPTQ is the alternative where the kernel takes no zero points; write method: GPTQ, zeroPoint: Symmetric",
        );
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
        if rungs.iter().any(|rung| rung.method == Method::Awq) {
            self.method_asked();
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
