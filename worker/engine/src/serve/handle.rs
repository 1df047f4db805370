//! The engine's handle: what the HTTP layer holds. Requests and switches go to the engine thread over a channel; the
//! state comes back through a shared snapshot that the engine thread replaces after each step.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc as events, oneshot};

use super::{
    Declined, Engine, Snapshot, SubmitError, SwitchEnd, SwitchResult, TokenStream, heartbeat::Heartbeat,
    ladder::LadderCommand, memory::MemoryPlan,
};
use crate::{GenerateRequest, TokenEvent, artifact::Artifact};

/// A request on its way to the engine thread.
pub(super) struct Submission {
    pub(super) request: GenerateRequest,
    pub(super) events: events::Sender<TokenEvent>,
    pub(super) submitted: Instant,
}

/// A switch on its way to the engine thread.
pub(super) struct SwitchCommand {
    pub(super) profile: String,
    pub(super) requested: Instant,
    pub(super) reply: oneshot::Sender<SwitchResult>,
}

pub(super) enum Command {
    Submit(Box<Submission>),
    Switch(SwitchCommand),
    Ladder(LadderCommand),
    Drain(oneshot::Sender<()>),
}

/// State that both sides see.
pub(super) struct Shared {
    /// Replaced after each step; held only to copy, so a plain mutex does.
    pub(super) snapshot: Mutex<Snapshot>,
    /// Requests submitted and not yet running: bounds the channel.
    pub(super) queued: AtomicUsize,
    pub(super) draining: AtomicBool,
    pub(super) heartbeat: Heartbeat,
    /// The engine thread is no more.
    pub(super) ended: AtomicBool,
}

/// Says so when the engine's thread ends, also by a panic.
pub(super) struct EndOfThread(pub(super) Arc<Shared>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

/// An engine's end, to be waited for: knows of the thread and does not keep the engine.
///
/// A program that ends while the thread still gives its memory back may crash: a GPU's driver frees its state below it.
#[derive(Clone)]
pub struct EngineEnd(Arc<Shared>);

impl EngineEnd {
    /// Waits until the engine's thread has given back what it had, at most so long; false when it has not by then.
    pub fn wait(&self, most: Duration) -> bool {
        let start = Instant::now();
        while !self.0.ended.load(Ordering::Acquire) {
            if start.elapsed() > most {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// Fixed facts of the running engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Most tokens of prompt and output together.
    pub max_context_tokens: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Most requests that may wait.
    pub max_waiting: usize,
    /// The memory that it has.
    pub memory: MemoryPlan,
}

/// A running engine. Cheap to clone; the engine thread ends when the last handle is gone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) limits: EngineLimits,
}

impl EngineHandle {
    /// Its fixed facts.
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    /// Its end, which comes some time after the last handle is gone.
    pub fn end(&self) -> EngineEnd {
        EngineEnd(self.shared.clone())
    }

    /// Gives the engine another ladder, best quality first, while it serves. The answer comes between two steps, with the
    /// profiles that could not join; it does not come from an engine that has ended.
    ///
    /// # Guarantees
    /// Requests in flight go on in the active profile. One that is missing in the ladder serves until another one is switched
    /// to; a pending switch to such a one is refused.
    pub fn set_ladder(&self, ladder: Vec<(String, Artifact)>) -> oneshot::Receiver<Vec<Declined>> {
        let (reply, receiver) = oneshot::channel();
        // The sender of a lost command is dropped, which the receiver sees.
        let _ = self.commands.send(Command::Ladder(LadderCommand { ladder, reply }));
        receiver
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::Invalid("the prompt has no tokens".into()));
        }
        if let Some(token) = request.prompt.iter().find(|t| **t as usize >= self.limits.vocab) {
            let vocab = self.limits.vocab;
            return Err(SubmitError::Invalid(format!("token {token} is outside the vocabulary of {vocab}")));
        }
        request.sampling.validate(self.limits.vocab).map_err(SubmitError::Invalid)?;
        let tokens = request.prompt.len().saturating_add(request.max_tokens);
        if tokens > self.limits.max_context_tokens {
            return Err(SubmitError::TooLong { tokens, limit: self.limits.max_context_tokens });
        }
        Ok(())
    }
}

impl Engine for EngineHandle {
    fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        self.check(&request)?;
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        let waiting = self.shared.queued.fetch_add(1, Ordering::AcqRel);
        if waiting >= self.limits.max_waiting {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            // A place is free when a request ends; one second is the shortest that Retry-After can say.
            return Err(SubmitError::QueueFull { waiting, retry_after_seconds: 1 + waiting as u64 / 16 });
        }
        // Room for every event: sending never blocks the engine thread.
        let (sender, receiver) = events::channel(request.max_tokens + 2);
        let submission = Submission { request, events: sender, submitted: Instant::now() };
        if self.commands.send(Command::Submit(Box::new(submission))).is_err() {
            // The thread has ended; `has_ended` says so to who wants to know why.
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::Draining);
        }
        Ok(TokenStream::new(receiver))
    }

    fn switch(&self, profile: &str) -> oneshot::Receiver<SwitchResult> {
        let (reply, receiver) = oneshot::channel();
        let command = SwitchCommand { profile: profile.to_owned(), requested: Instant::now(), reply };
        if let Err(mpsc::SendError(Command::Switch(command))) = self.commands.send(Command::Switch(command)) {
            let active = self.snapshot().active;
            let _ = command.reply.send(SwitchResult {
                from: active,
                to: command.profile.into(),
                start: std::time::SystemTime::now(),
                duration: command.requested.elapsed(),
                pause: std::time::Duration::ZERO,
                preempted: 0,
                outcome: SwitchEnd::Refused,
                message: "the engine has stopped".into(),
            });
        }
        receiver
    }

    fn snapshot(&self) -> Snapshot {
        let snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Snapshot { last_progress: self.shared.heartbeat.last(), ..snapshot }
    }

    fn drain(&self) -> oneshot::Receiver<()> {
        self.shared.draining.store(true, Ordering::Release);
        let (done, receiver) = oneshot::channel();
        // A stopped engine has nothing left to finish: dropping the sender resolves the receiver.
        let _ = self.commands.send(Command::Drain(done));
        receiver
    }

    fn max_context_tokens(&self) -> usize {
        self.limits.max_context_tokens
    }

    fn vocab(&self) -> usize {
        self.limits.vocab
    }

    fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }
}
