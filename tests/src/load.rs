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
    /// All its tokens came, and it ended in good form.
    pub complete: bool,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl Seen {
    /// Notes tokens that came in one event: the time since the event before it is that of all of them.
    fn came(&mut self, now: Instant, tokens: u64) {
        let Some(before) = self.tokens.last().copied() else {
            self.tokens.extend(std::iter::repeat_n(now, tokens as usize));
            return;
        };
        let each = now.duration_since(before).div_f64(tokens as f64);
        self.tokens.extend((1..tokens).map(|earlier| before + each.mul_f64(earlier as f64)).chain([now]));
    }
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
    /// No stream follows one that ends.
    closing: AtomicBool,
    changed: Notify,
}

impl Load {
    /// Starts the streams.
    pub fn start(client: &Client, shape: &Shape) -> Self {
        let progress = Arc::new(Progress {
            tokens: (0..shape.streams).map(|_| AtomicU64::new(0)).collect(),
            failed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
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

    /// Lets the streams come to their end and returns what all of them saw, those that had finished before too. One that
    /// has not delivered all its tokens within the limit has failed.
    pub async fn finish(mut self, limit: Duration) -> Vec<Seen> {
        self.progress.closing.store(true, Ordering::Relaxed);
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        // Those that are left are told by what they saw.
        let _ = tokio::time::timeout(limit, all_ended).await;
        self.tasks.shutdown().await;
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in seen.iter_mut().filter(|stream| !stream.complete && stream.failure.is_none()) {
            let tokens = stream.tokens.len();
            stream.failure = Some(format!("the stream did not end within {} s; {tokens} pieces came", limit.as_secs()));
        }
        seen
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
            .stream(&prompt, max_tokens, round * 1000 + slot as u64, |tokens| {
                let now = Instant::now();
                record(&|stream| stream.came(now, tokens));
                progress.tokens[slot].fetch_add(tokens, Ordering::Relaxed);
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
        record(&|stream| stream.complete = true);
        if progress.closing.load(Ordering::Relaxed) {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_that_is_too_short_is_a_failure() {
        let finished = |reason: &str, tokens| Finished { reason: reason.to_owned(), tokens };
        assert!(complete(&finished("length", 10), 10).is_ok());
        assert!(complete(&finished("length", 9), 10).is_err());
        assert!(complete(&finished("stop", 10), 10).is_err());
    }

    #[test]
    fn the_time_of_an_event_is_divided_among_its_tokens() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut seen = Seen::default();
        seen.came(at(100), 2);
        seen.came(at(150), 1);
        seen.came(at(350), 4);
        assert_eq!(seen.tokens, [100, 100, 150, 200, 250, 300, 350].map(at));
    }

    const FIRST: &str = "data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": null}], \
                         \"usage\": {\"completion_tokens\": 1}}\n\n";
    const SECOND: &str = "data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": null}], \
                          \"usage\": {\"completion_tokens\": 2}}\n\n";
    const END: &str = "data: {\"choices\": [{\"text\": \"\", \"finish_reason\": \"length\"}]}\n\n\
                       data: {\"choices\": [], \"usage\": {\"completion_tokens\": 2}}\n\n";

    /// A server that gives this answer to every request, then closes the connection or falls silent.
    async fn server(answer: String, silent: bool) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    // The body is JSON, so its last byte is known.
                    while request.last() != Some(&b'}') {
                        connection.read_buf(&mut request).await.unwrap();
                    }
                    connection.write_all(answer.as_bytes()).await.unwrap();
                    if silent {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Client::new(&base, "model").unwrap()
    }

    /// What one stream of two tokens saw, once it has two or has failed.
    async fn one_stream(answer: String, silent: bool, limit: Duration) -> Vec<Seen> {
        let load = Load::start(&server(answer, silent).await, &Shape { streams: 1, max_tokens: 2 });
        let _ = load.advance(2, Duration::from_secs(30)).await;
        load.finish(limit).await
    }

    fn ok(events: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{events}")
    }

    #[tokio::test]
    async fn a_stream_that_delivers_everything_has_not_failed() {
        let answer = ok(&format!("{FIRST}{SECOND}{END}data: [DONE]\n\n"));
        let seen = one_stream(answer, false, Duration::from_secs(30)).await;
        assert!(!seen.is_empty());
        for stream in seen {
            assert_eq!((stream.complete, stream.failure, stream.tokens.len()), (true, None, 2));
        }
    }

    #[rstest::rstest]
    #[case(ok(&format!("{FIRST}{SECOND}{END}")), "the stream broke off before [DONE]")]
    #[case(ok(&format!("{FIRST}data: [DONE]\n\n")), "without a finish_reason")]
    #[case(ok(&format!("{FIRST}data: {{\"error\": \"out of memory\"}}\n\n")), "carried an error")]
    #[case(ok("data: {\"choices\": [{\"text\": \"a\"}], \"usage\": null}\n\n"), "without the tokens so far")]
    #[case("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy".to_owned(), "answered 429")]
    #[tokio::test]
    async fn a_stream_that_does_not_end_in_good_form_has_failed(#[case] answer: String, #[case] why: &str) {
        let seen = one_stream(answer, false, Duration::from_secs(30)).await;
        let failures: Vec<String> = seen.into_iter().filter_map(|stream| stream.failure).collect();
        assert!(failures.len() == 1 && failures[0].contains(why), "{failures:?}");
    }

    #[tokio::test]
    async fn a_stream_that_is_not_over_at_the_end_has_failed() {
        let seen = one_stream(ok(&format!("{FIRST}{SECOND}")), true, Duration::from_millis(50)).await;
        assert_eq!(seen[0].tokens.len(), 2);
        assert!(seen[0].failure.as_ref().unwrap().contains("did not end within"), "{seen:?}");
    }
}
