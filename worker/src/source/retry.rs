//! When a failed request is sent again.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use super::{Result, SourceError};

/// How often and how soon. Failures count in a row: any byte of progress starts the count anew.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts in a row before giving up.
    pub attempts: u32,
    /// Pause after the first failure; each further one doubles it.
    pub first: Duration,
    /// Longest pause of the doubling.
    pub most: Duration,
    /// Longest `Retry-After` that is waited for; a server that asks for more is given up.
    pub longest_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            first: Duration::from_secs(1),
            most: Duration::from_secs(30),
            // The hub counts requests in windows of five minutes.
            longest_wait: Duration::from_secs(310),
        }
    }
}

impl Retry {
    /// The pause before the next attempt; `None` gives up. `failures` is at least 1; `jitter` in [0, 1) keeps many workers
    /// that failed together from coming back together: the pause lies between half and all of its nominal length, but never
    /// below what the server asked for.
    pub fn pause(&self, failures: u32, retry_after: Option<Duration>, jitter: f64) -> Option<Duration> {
        if failures >= self.attempts || retry_after.is_some_and(|wait| wait > self.longest_wait) {
            return None;
        }
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let nominal = self.first.saturating_mul(doubled).min(self.most);
        let pause = nominal.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        Some(retry_after.map_or(pause, |wait| wait.max(pause)))
    }
}

/// How one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another attempt: a cut connection, a busy or broken server.
    Passing {
        /// What happened.
        reason: String,
        /// What the server asked to wait.
        after: Option<Duration>,
    },
    /// Another attempt would end the same way.
    Final(SourceError),
}

impl Failure {
    /// A passing failure without a wish of the server.
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing { reason: reason.into(), after: None }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

/// Runs `attempt` until it succeeds, fails for good, or the policy gives up. `attempt` adds to its argument when it got
/// bytes, which makes the next failure count as the first.
pub(super) async fn retrying<T>(
    policy: &Retry,
    what: &str,
    mut attempt: impl AsyncFnMut(&mut u64) -> std::result::Result<T, Failure>,
) -> Result<T> {
    let mut failures = 0;
    loop {
        let mut progress = 0;
        let (reason, after) = match attempt(&mut progress).await {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { reason, after }) => (reason, after),
        };
        failures = if progress > 0 { 1 } else { failures + 1 };
        let Some(pause) = policy.pause(failures, after, jitter()) else {
            let reason = match after {
                Some(wait) if wait > policy.longest_wait => {
                    format!("{reason}, and asks to wait {} s", wait.as_secs())
                }
                _ => reason,
            };
            return Err(SourceError::Unreachable { what: what.to_owned(), reason, attempts: failures });
        };
        tracing::warn!(%what, %reason, pause_ms = pause.as_millis() as u64, "trying again");
        tokio::time::sleep(pause).await;
    }
}

/// A number in [0, 1) that differs between processes and calls.
fn jitter() -> f64 {
    (entropy() >> 11) as f64 / (1u64 << 53) as f64
}

/// Bits that nobody else has; not for secrets.
pub(super) fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_limit_and_end() {
        let policy = Retry { attempts: 5, first: SECOND, most: 3 * SECOND, longest_wait: 60 * SECOND };
        let pauses: Vec<_> = (1..=5).map(|failures| policy.pause(failures, None, 1.0)).collect();
        assert_eq!(pauses, [Some(SECOND), Some(2 * SECOND), Some(3 * SECOND), Some(3 * SECOND), None]);
        assert_eq!(policy.pause(1, None, 0.0), Some(SECOND / 2));
    }

    #[test]
    fn the_servers_own_wish_is_kept_unless_it_is_too_long() {
        let policy = Retry { longest_wait: 60 * SECOND, ..Retry::default() };
        assert_eq!(policy.pause(1, Some(7 * SECOND), 0.3), Some(7 * SECOND));
        assert_eq!(policy.pause(1, Some(61 * SECOND), 0.3), None);
    }

    #[test]
    fn any_number_of_failures_has_a_pause() {
        let policy = Retry { attempts: u32::MAX, ..Retry::default() };
        assert_eq!(policy.pause(1000, None, 1.0), Some(policy.most));
    }
}
