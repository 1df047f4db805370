//! When a switch that did not come about is asked for again: after a pause that doubles, so that a peak is never stranded and
//! a worker never pestered.

use std::time::{Duration, Instant};

/// Why a switch did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There was no report: the worker may be ending, busy or cut off, which says nothing about the profile.
    NoReport,
    /// The worker refused it, which it mostly does again; what it lacked (memory, a file) may come back all the same.
    Refused,
    /// The worker ended meanwhile, perhaps of the switch. The pause begins when the next one is ready, and soon lasts longer
    /// than [`super::restart::Restarts`] takes to call a worker settled: a switch that kills every time must not use up the
    /// starts of a model that serves well without it.
    WorkerEnded,
}

impl Failure {
    /// The first pause and the longest one.
    const fn pauses(self) -> (Duration, Duration) {
        let (first, longest) = match self {
            Self::NoReport => (1, 60),
            Self::Refused => (60, 960),
            Self::WorkerEnded => (10, 3600),
        };
        (Duration::from_secs(first), Duration::from_secs(longest))
    }
}

/// The latest switch that did not come about, if none has come about since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    failed: Option<Failed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failed {
    profile: String,
    failure: Failure,
    /// Failures of switches to this profile before this one.
    before: u32,
    /// End of the pause; `None` until it begins.
    due: Option<Instant>,
}

impl Failed {
    fn pause(&self) -> Duration {
        let (first, longest) = self.failure.pauses();
        first.saturating_mul(2_u32.saturating_pow(self.before)).min(longest)
    }
}

impl Retries {
    /// The worker refused the switch to `profile`, or gave no report of it: the pause after which it may be asked again.
    pub fn failed(&mut self, profile: &str, failure: Failure, now: Instant) -> Duration {
        let failed = self.count(profile, failure);
        let pause = failed.pause();
        failed.due = Some(now + pause);
        pause
    }

    /// The worker ended; `asked` is the switch that it had not answered. The end may be seen after the lost answer.
    pub fn worker_ended(&mut self, asked: Option<&str>) {
        match (asked, &mut self.failed) {
            (Some(profile), _) => self.count(profile, Failure::WorkerEnded).due = None,
            (None, Some(last)) if last.failure == Failure::NoReport => {
                (last.failure, last.due) = (Failure::WorkerEnded, None);
            }
            // The next worker may have what this one lacked.
            (None, Some(last)) if last.failure == Failure::Refused => self.clear(),
            (None, _) => {}
        }
    }

    /// A worker got ready.
    pub fn worker_ready(&mut self, now: Instant) {
        if let Some(last) = &mut self.failed {
            let pause = last.pause();
            last.due.get_or_insert(now + pause);
        }
    }

    /// Whether a switch to `profile` may be asked for.
    pub fn may_ask(&self, profile: &str, now: Instant) -> bool {
        self.failed.as_ref().is_none_or(|last| last.profile != profile || last.due.is_some_and(|due| now >= due))
    }

    /// The profile that the worker refused last.
    pub fn refused(&self) -> Option<&str> {
        self.failed.as_ref().filter(|last| last.failure == Failure::Refused).map(|last| &*last.profile)
    }

    /// Forgets what failed: a switch came about, or the manifest is another one now.
    pub fn clear(&mut self) {
        self.failed = None;
    }

    fn count(&mut self, profile: &str, failure: Failure) -> &mut Failed {
        let same = self.failed.as_ref().filter(|last| last.profile == profile);
        let before = same.map_or(0, |last| last.before.saturating_add(1));
        self.failed.insert(Failed { profile: profile.to_owned(), failure, before, due: None })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[rstest]
    #[case(Failure::NoReport, [1, 2, 4, 8, 16, 32, 60, 60])]
    #[case(Failure::Refused, [60, 120, 240, 480, 960, 960, 960, 960])]
    fn pauses_double_up_to_the_longest_and_never_end(#[case] failure: Failure, #[case] pauses: [u64; 8]) {
        let (mut retries, now) = (Retries::default(), Instant::now());
        assert_eq!([(); 8].map(|()| retries.failed("density", failure, now).as_secs()), pauses);
        for _ in 0..100 {
            retries.failed("density", failure, now);
        }
        assert!(!retries.may_ask("density", now));
        assert!(retries.may_ask("density", now + seconds(pauses[7])));
    }

    #[test]
    fn a_profile_waits_for_its_own_pause_only() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        assert!(retries.may_ask("density", now));
        retries.failed("density", Failure::Refused, now);
        assert_eq!(retries.refused(), Some("density"));
        assert!(!retries.may_ask("density", now + seconds(59)));
        assert!(retries.may_ask("density", now + seconds(60)));
        assert!(retries.may_ask("quality", now));
        retries.clear();
        assert_eq!((retries.refused(), retries.may_ask("density", now)), (None, true));
    }

    #[test]
    fn a_refusal_ends_with_its_worker_and_a_lost_answer_is_none() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        retries.failed("density", Failure::Refused, now);
        retries.worker_ended(None);
        assert_eq!(retries, Retries::default());
        retries.failed("density", Failure::NoReport, now);
        assert_eq!(retries.refused(), None);
    }

    #[rstest]
    #[case::answer_lost_first(true)]
    #[case::end_seen_first(false)]
    fn a_switch_that_kills_is_asked_for_when_the_next_worker_has_been_ready_for_a_while(#[case] lost: bool) {
        let (mut retries, now) = (Retries::default(), Instant::now());
        let die = |retries: &mut Retries| {
            if lost {
                retries.failed("density", Failure::NoReport, now);
            }
            retries.worker_ended((!lost).then_some("density"));
            // A crash that has nothing to do with it, while the next one loads.
            retries.worker_ended(None);
        };
        for pause in [10, 20, 40, 80] {
            die(&mut retries);
            assert!(!retries.may_ask("density", now + seconds(3600)), "nobody is ready");
            let ready = now + seconds(600);
            retries.worker_ready(ready);
            assert!(!retries.may_ask("density", ready + seconds(pause - 1)));
            assert!(retries.may_ask("density", ready + seconds(pause)));
        }
        for _ in 0..100 {
            die(&mut retries);
        }
        retries.worker_ready(now);
        assert!(retries.may_ask("density", now + seconds(3600)));
    }
}
