//! A fixed number of streams kept running: one that finishes is replaced by a new one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::client::{Client, Finished};

/// How the streams look.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Streams at any time.
    pub streams: usize,
    /// Tokens of each answer.
    pub max_tokens: u32,
}

/// What one stream saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When each token came.
    pub tokens: Vec<Instant>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Running streams. Dropping the value closes their connections.
pub struct Load {
    tasks: JoinSet<()>,
    seen: Arc<Mutex<Vec<Seen>>>,
    progress: Arc<Progress>,
}

/// Tokens per slot, over all streams that ran in it.
struct Progress {
    tokens: Vec<AtomicU64>,
    /// A slot gave up.
    failed: AtomicBool,
    changed: Notify,
}

impl Load {
    /// Starts the streams.
    pub fn start(client: &Client, shape: &Shape) -> Self {
        let progress = Arc::new(Progress {
            tokens: (0..shape.streams).map(|_| AtomicU64::new(0)).collect(),
            failed: AtomicBool::new(false),
            changed: Notify::new(),
        });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for slot in 0..shape.streams {
            tasks.spawn(keep_streaming(
                client.clone(),
                slot,
                shape.max_tokens,
                Arc::clone(&seen),
                Arc::clone(&progress),
            ));
        }
        Self { tasks, seen, progress }
    }

    /// Waits until every stream got `tokens` more tokens.
    ///
    /// # Errors
    /// One did not within the limit, or failed.
    pub async fn advance(&self, tokens: u64, limit: Duration) -> anyhow::Result<()> {
        let goal: Vec<u64> = self.progress.tokens.iter().map(|slot| slot.load(Ordering::Relaxed) + tokens).collect();
        let reached =
            || self.progress.tokens.iter().zip(&goal).all(|(slot, goal)| slot.load(Ordering::Relaxed) >= *goal);
        let wait = async {
            loop {
                let changed = self.progress.changed.notified();
                if self.progress.failed.load(Ordering::Relaxed) {
                    bail!("a stream failed");
                }
                if reached() {
                    return Ok(());
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, wait)
            .await
            .with_context(|| format!("a stream did not get {tokens} tokens within {} s", limit.as_secs()))?
    }

    /// Closes the streams and returns what all of them saw, those that had finished before too.
    pub async fn stop(mut self) -> Vec<Seen> {
        self.tasks.shutdown().await;
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn keep_streaming(
    client: Client,
    slot: usize,
    max_tokens: u32,
    seen: Arc<Mutex<Vec<Seen>>>,
    progress: Arc<Progress>,
) {
    for round in 0_u64.. {
        let number = {
            let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(Seen::default());
            all.len() - 1
        };
        let record = |change: &dyn Fn(&mut Seen)| {
            let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stream) = all.get_mut(number) {
                change(stream);
            }
        };
        let prompt = format!("Story number {slot}.{round}. Once upon a time, in a town with {} gates,", slot + 2);
        let result = client
            .stream(&prompt, max_tokens, round * 1000 + slot as u64, || {
                let now = Instant::now();
                record(&|stream| stream.tokens.push(now));
                progress.tokens[slot].fetch_add(1, Ordering::Relaxed);
                progress.changed.notify_waiters();
            })
            .await;
        if let Err(error) = result.and_then(|finished| complete(&finished, max_tokens)) {
            // The slot stays empty: what follows on a broken server would only repeat the failure.
            record(&|stream| stream.failure = Some(format!("{error:#}")));
            progress.failed.store(true, Ordering::Relaxed);
            progress.changed.notify_waiters();
            return;
        }
    }
}

/// A stream that was cut short is a failed one, even if it ended in good form.
fn complete(finished: &Finished, max_tokens: u32) -> anyhow::Result<()> {
    ensure!(
        *finished == Finished { reason: "length".to_owned(), tokens: u64::from(max_tokens) },
        "the stream ended after {} of {max_tokens} tokens with finish_reason {}",
        finished.tokens,
        finished.reason
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_too_short_is_a_failure() {
        let finished = |reason: &str, tokens| Finished { reason: reason.to_owned(), tokens };
        assert!(complete(&finished("length", 10), 10).is_ok());
        assert!(complete(&finished("length", 9), 10).is_err());
        assert!(complete(&finished("stop", 10), 10).is_err());
    }
}
