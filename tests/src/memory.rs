//! Resident memory of a process over time, from `/proc`.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinHandle;

/// How often memory is looked at. A peak between two looks goes unseen, so it is well below the length of a switch.
const INTERVAL: Duration = Duration::from_millis(20);

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Anonymous and shared pages: what cannot be dropped.
    pub owned: u64,
    /// Pages of mapped files. Clean ones are cache that the kernel can take back.
    pub file: u64,
}

impl Resident {
    /// What the process holds now.
    ///
    /// # Errors
    /// It has ended, or `/proc` is not Linux's.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text).with_context(|| format!("{path} does not tell resident memory"))
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        Some(Self { owned: field("RssAnon:")? + field("RssShmem:")?, file: field("RssFile:")? })
    }

    /// All of it.
    pub const fn total(self) -> u64 {
        self.owned + self.file
    }
}

/// Watches a process until it is stopped or the process ends.
pub struct Watch(JoinHandle<Peak>, tokio::sync::oneshot::Sender<()>);

/// The most that was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// The most owned memory.
    pub owned: u64,
    /// The most memory in total, which may have been at another time.
    pub total: u64,
}

impl Watch {
    /// Starts watching.
    pub fn start(pid: u32) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        // The first look is taken here, so that there is one however early the end comes.
        let mut peak =
            Resident::of(pid).map_or_else(|_| Peak::default(), |now| Peak { owned: now.owned, total: now.total() });
        let task = tokio::spawn(async move {
            let mut interval = tokio::time::interval(INTERVAL);
            loop {
                tokio::select! {
                    _ = interval.tick() => {}
                    _ = &mut stopped => return peak,
                }
                let Ok(now) = Resident::of(pid) else { return peak };
                peak = Peak { owned: peak.owned.max(now.owned), total: peak.total.max(now.total()) };
            }
        });
        Self(task, stop)
    }

    /// Stops watching.
    ///
    /// # Errors
    /// The watching task died, or the process had ended before its first look.
    pub async fn stop(self) -> anyhow::Result<Peak> {
        // The task has ended by itself if the process has.
        let _ = self.1.send(());
        let peak = self.0.await.context("watching the memory failed")?;
        // Nothing seen would pass for little memory.
        ensure!(peak.total > 0, "the memory of the worker was never seen");
        Ok(peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_was_never_seen_is_an_error() {
        // Process 0 is the scheduler, which /proc does not show.
        let watch = Watch::start(0);
        assert!(watch.stop().await.is_err());
    }

    #[tokio::test]
    async fn the_memory_of_a_living_process_is_seen() {
        let watch = Watch::start(std::process::id());
        assert!(watch.stop().await.unwrap().total > 0);
    }

    #[test]
    fn shared_memory_counts_as_owned() {
        let status = "Name:\tx\nRssAnon:\t    100 kB\nRssFile:\t     20 kB\nRssShmem:\t      3 kB\n";
        assert_eq!(Resident::parse(status), Some(Resident { owned: 103 * 1024, file: 20 * 1024 }));
        assert_eq!(Resident::parse("Name:\tx\n"), None);
    }
}
