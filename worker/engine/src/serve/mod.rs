//! Serving: the engine as seen from outside, and the thread behind it.
//!
//! | module | what it does |
//! |---|---|
//! | this one | the [`Engine`] trait and its values: requests in, tokens out, snapshots, switches |
//! | [`start`] | artifacts -> weights -> KV pool -> engine thread |
//! | `handle` | the [`EngineHandle`] that the HTTP layer holds |
//! | `core` | the loop: take commands, schedule, compute, sample, deliver |
//! | `active` | a request that the scheduler knows |
//! | `tokens` | which logits the host reads, and which tokens are drawn on the device |
//! | `switch` | the in-place switch between two steps |
//! | `layers` | the same layer by layer, on a device with a memory of its own |
//! | `ladder` | another ladder between two steps |
//! | `pace` | how many rows a step may have while streams run |
//! | `heartbeat` | the sign of life of the engine thread |
//! | [`memory`] | the budget: blocks of each profile |

mod active;
mod core;
mod handle;
mod heartbeat;
mod ladder;
mod layers;
pub mod memory;
mod pace;
mod start;
mod switch;
mod tokens;

use std::{sync::Arc, time::Instant};

use tokio::sync::{mpsc, oneshot};

use crate::{GenerateRequest, TokenEvent};

pub use handle::{EngineEnd, EngineHandle, EngineLimits};
pub use ladder::Declined;
pub use start::{EngineConfig, prepare, start, start_with};
pub use switch::SHRINK_PATIENCE;

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full. Answer 429 with this Retry-After.
    #[error("the queue is full ({waiting} requests are waiting); try again in {retry_after_seconds} s")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// When a place is likely free.
        retry_after_seconds: u64,
    },
    /// The worker is shutting down. Answer 503.
    #[error("the worker is draining and takes no new requests")]
    Draining,
    /// Prompt plus output cannot fit the context. Answer 400.
    #[error("{tokens} tokens are more than the context of {limit}")]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// Most tokens of prompt and output together.
        limit: usize,
    },
    /// The request's values make no sense (empty prompt, token outside the vocabulary). Answer 400.
    #[error("{0}")]
    Invalid(String),
}

/// Events of one request. Dropping it cancels the request: its blocks are free at the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<TokenEvent>,
}

impl TokenStream {
    /// Wraps the receiving side of a request's channel. The sender notices the drop by `is_closed`.
    pub fn new(events: mpsc::Receiver<TokenEvent>) -> Self {
        Self { events }
    }

    /// The next event; `None` after [`TokenEvent::Finished`] or if the engine died.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.events.recv().await
    }

    /// The next event from a thread without an async runtime.
    pub fn blocking_next(&mut self) -> Option<TokenEvent> {
        self.events.blocking_recv()
    }
}

/// How a switch ended; see the admin API.
#[derive(Clone, Debug, PartialEq)]
pub struct SwitchResult {
    /// Profile before.
    pub from: Arc<str>,
    /// Profile asked for.
    pub to: Arc<str>,
    /// When it was asked for, by the wall clock: a report that is shown again must not move in time.
    pub start: std::time::SystemTime,
    /// From the request to the report.
    pub duration: std::time::Duration,
    /// Time in which no step could run because of the swap. A step that waits for a layer's copy is not a part of it.
    pub pause: std::time::Duration,
    /// Requests preempted to shrink the KV pool.
    pub preempted: usize,
    /// How it ended.
    pub outcome: SwitchEnd,
    /// A sentence for a person.
    pub message: String,
}

/// How a switch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchEnd {
    /// The target is active.
    Completed,
    /// Not possible; the engine serves on in the old profile.
    Refused,
    /// A later request came before the swap began.
    Replaced,
    /// No profile has that name.
    Unknown,
}

/// One rung of the ladder in the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileSnapshot {
    /// Name.
    pub name: Arc<str>,
    /// Artifact key.
    pub artifact_key: String,
    /// Packed bytes.
    pub weight_bytes: u64,
    /// Tokens that fit the KV pool in this profile.
    pub kv_tokens: u64,
}

/// The engine at one moment. Cheap to take; never waits for a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Profile that computes; the less precise one of two while a switch goes on layer by layer.
    pub active: Arc<str>,
    /// Profile of a switch under way.
    pub target: Option<Arc<str>>,
    /// The ladder, and the active profile where that has left it.
    pub profiles: Vec<ProfileSnapshot>,
    /// Requests being computed.
    pub running: usize,
    /// Requests waiting.
    pub waiting: usize,
    /// Since when the oldest waiting request waits.
    pub oldest_waiting: Option<Instant>,
    /// Usable blocks.
    pub blocks_total: usize,
    /// Blocks of running requests.
    pub blocks_used: usize,
    /// Reusable prefix blocks (free for allocation).
    pub blocks_cached: usize,
    /// Blocks that the waiting prompts need.
    pub blocks_waiting: usize,
    /// Bytes: budget, active weights, KV pool, workspace.
    pub memory: MemorySnapshot,
    /// Generated tokens since the start.
    pub generated_tokens: u64,
    /// The latest switch.
    pub last_switch: Option<SwitchResult>,
    /// When the engine got on last, by a layer of a step; `None` while it has nothing to do. Unlike all else here it is as of
    /// the call, not of the last step: it is how one that is stuck is told from one that is calm.
    pub last_progress: Option<Instant>,
    /// True once a drain was asked for.
    pub draining: bool,
}

/// Memory in bytes; `weights + kv + workspace <= budget`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySnapshot {
    /// The limit.
    pub budget: u64,
    /// Packed weights of the active profile.
    pub weights: u64,
    /// KV pool at its present size.
    pub kv: u64,
    /// Activations and scratch.
    pub workspace: u64,
}

/// Something worth counting. Reported from the engine thread; an observer must not block.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A request left the queue after this many seconds.
    Scheduled {
        /// Time in the queue.
        queue_seconds: f64,
    },
    /// A request's first token, seconds after it was submitted.
    FirstToken {
        /// Time to first token.
        seconds: f64,
    },
    /// Gap between two tokens of a request.
    InterToken {
        /// The gap.
        seconds: f64,
    },
    /// A request ended.
    Finished {
        /// Why ("stop", "length", "abort", "error").
        reason: &'static str,
        /// Prompt tokens.
        prompt_tokens: usize,
        /// Generated tokens.
        generated_tokens: usize,
        /// From submission to the end.
        seconds: f64,
    },
    /// Tokens generated by a profile in one step.
    Generated {
        /// The profile.
        profile: Arc<str>,
        /// How many.
        tokens: usize,
    },
    /// Prompt tokens computed in one step.
    Prefilled {
        /// How many.
        tokens: usize,
    },
    /// A request was preempted and will be recomputed.
    Preempted,
    /// A look-up in the prefix cache, in tokens.
    PrefixCache {
        /// Prompt tokens looked up.
        queried: usize,
        /// Tokens found.
        hit: usize,
    },
    /// A switch ended.
    Switched(SwitchResult),
}

/// Receives observations on the engine thread.
pub trait Observer: Send {
    /// Counts one.
    fn observe(&mut self, observation: Observation);
}

/// An engine that serves. The HTTP layer is written against this, so that it can be tested without a model.
pub trait Engine: Send + Sync + 'static {
    /// Queues a request.
    fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError>;
    /// Asks for another profile; the answer comes when the switch ended. Asking for the active profile completes at once.
    fn switch(&self, profile: &str) -> oneshot::Receiver<SwitchResult>;
    /// The state now.
    fn snapshot(&self) -> Snapshot;
    /// Takes no new requests, finishes the ones it has. Resolves when the last one ended.
    fn drain(&self) -> oneshot::Receiver<()>;
    /// Most tokens of prompt and output together.
    fn max_context_tokens(&self) -> usize;
    /// Entries of the vocabulary.
    fn vocab(&self) -> usize;
    /// True when the engine's thread has ended while it is still asked for: nothing will be computed any more.
    fn has_ended(&self) -> bool;
}
