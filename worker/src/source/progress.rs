//! How far a transfer is: bytes of all files, speed, time left.

use std::{
    cell::{Cell, RefCell},
    fmt,
    time::{Duration, Instant},
};

/// What a bar or a status line shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Bytes that are there, of all files; those of an earlier start count.
    pub done: u64,
    /// Bytes of all files; 0 until known.
    pub total: u64,
    /// Bytes per second since this start; `None` until that says something.
    pub per_second: Option<f64>,
    /// What is done when it is no transfer ("waiting for another process"); empty for a transfer.
    pub activity: String,
}

impl Progress {
    /// Time that the rest takes at the speed so far.
    pub fn remaining(&self) -> Option<Duration> {
        let seconds = self.total.saturating_sub(self.done) as f64 / self.per_second.filter(|speed| *speed > 0.0)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// 0 to 100.
    pub fn percent(&self) -> f64 {
        self.done as f64 * 100.0 / self.total.max(1) as f64
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.activity.is_empty() {
            return f.write_str(&self.activity);
        }
        write!(f, "downloading {} of {}", Bytes(self.done as f64), Bytes(self.total as f64))?;
        if let Some(speed) = self.per_second {
            write!(f, ", {}/s", Bytes(speed))?;
        }
        match self.remaining().map(|left| left.as_secs()) {
            None => Ok(()),
            Some(left @ 0..=99) => write!(f, ", {left} s left"),
            Some(left) => write!(f, ", {} min left", left.div_ceil(60)),
        }
    }
}

/// A size as people read it, in powers of 1000 as disks and networks are sold.
struct Bytes(f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (divisor, unit) = match self.0 {
            size if size >= 1e9 => (1e9, "GB"),
            size if size >= 1e6 => (1e6, "MB"),
            _ => (1e3, "kB"),
        };
        write!(f, "{:.1} {unit}", self.0 / divisor)
    }
}

/// Least time between two reports.
const INTERVAL: Duration = Duration::from_millis(200);

/// Counts for all transfers of one model and reports a few times a second.
pub(super) struct Meter<'a> {
    report: RefCell<&'a mut dyn FnMut(Progress)>,
    started: Instant,
    reported: Cell<Option<Instant>>,
    total: Cell<u64>,
    done: Cell<u64>,
    /// Bytes that this start brought, the measure of speed.
    brought: Cell<u64>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(report: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            report: RefCell::new(report),
            started: Instant::now(),
            reported: Cell::new(None),
            total: Cell::new(0),
            done: Cell::new(0),
            brought: Cell::new(0),
        }
    }

    /// Says something that is no transfer.
    pub(super) fn say(&self, activity: &str) {
        let progress = Progress { activity: activity.to_owned(), ..self.progress() };
        (self.report.borrow_mut())(progress);
    }

    /// More is to be fetched than was known.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.set(self.total.get().saturating_add(bytes));
    }

    /// Bytes that are there from an earlier start.
    pub(super) fn found(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_add(bytes));
        self.tell();
    }

    /// Bytes that came.
    pub(super) fn got(&self, bytes: u64) {
        self.brought.set(self.brought.get().saturating_add(bytes));
        self.found(bytes);
    }

    /// Bytes that were thrown away.
    pub(super) fn lost(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_sub(bytes));
    }

    fn progress(&self) -> Progress {
        let (seconds, brought) = (self.started.elapsed().as_secs_f64(), self.brought.get());
        Progress {
            done: self.done.get(),
            total: self.total.get(),
            per_second: (seconds > 0.5 && brought > 0).then(|| brought as f64 / seconds),
            activity: String::new(),
        }
    }

    fn tell(&self) {
        if self.reported.get().is_some_and(|at| at.elapsed() < INTERVAL) && self.done.get() < self.total.get() {
            return;
        }
        self.reported.set(Some(Instant::now()));
        (self.report.borrow_mut())(self.progress());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_reads_as_a_sentence() {
        let progress =
            Progress { done: 1_500_000_000, total: 14_500_000_000, per_second: Some(1e8), activity: String::new() };
        assert_eq!(progress.to_string(), "downloading 1.5 GB of 14.5 GB, 100.0 MB/s, 3 min left");
        assert_eq!(Progress { per_second: None, ..progress.clone() }.to_string(), "downloading 1.5 GB of 14.5 GB");
        assert_eq!(Progress { activity: "waiting".into(), ..progress }.to_string(), "waiting");
    }

    #[test]
    fn what_was_there_before_is_no_speed() {
        let mut last = Progress::default();
        let mut report = |progress| last = progress;
        let meter = Meter::new(&mut report);
        meter.expect(100);
        meter.found(100);
        assert_eq!((last.done, last.total, last.per_second), (100, 100, None));
    }
}
