//! Compute threads: fork and join, tens of times per layer, so the barrier spins before it sleeps.
//!
//! The caller is worker 0. A job is published by opening a gate; helpers spin on it for a bounded time, then sleep on a
//! condition variable. Work inside a job is claimed in chunks from an atomic counter, and the caller waits only for helpers
//! that entered: one whose core a neighbour took away is not missed, the others do its share.

use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a helper spins for the next job before it sleeps: longer than the gaps inside a step, shorter than a step.
const SPIN: Duration = Duration::from_micros(60);

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Low bits of the gate: helpers that entered the job.
const ENTERED: u64 = 0x7fff;
/// Bit of the gate: nobody may enter any more.
const CLOSED: u64 = 0x8000;
/// Lowest bit of the job's number.
const JOB: u64 = 0x1_0000;

struct Shared {
    /// Number of the job, [`CLOSED`], and how many helpers [`ENTERED`]: one word, so that entering and closing exclude
    /// each other.
    gate: AtomicU64,
    /// The job behind the gate: a pointer to a `Job`, valid until the gate is closed and all that entered have finished.
    job: AtomicPtr<()>,
    /// Helpers that finished the job.
    finished: AtomicU64,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// Helpers that sleep, guarded so that a wake is never lost.
    sleeping: Mutex<usize>,
    wake: Condvar,
}

/// A pool of compute threads.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool that computes on `threads` threads, the caller's included.
    ///
    /// # Errors
    /// The operating system's, when a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            job: AtomicPtr::new(std::ptr::null_mut()),
            finished: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            sleeping: Mutex::new(0),
            wake: Condvar::new(),
        });
        let helpers = (1..threads.max(1))
            .map(|index| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || helper(&shared, index))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { shared, helpers })
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `job(worker)` here and on every helper that is free to enter before it ends here; returns when all have
    /// finished. The job must be complete when the caller's part is: helpers take work over, they own none.
    ///
    /// # Panics
    /// When the job panicked on any thread, after all have finished.
    pub fn run(&mut self, job: impl Fn(usize) + Sync) {
        let job: Job<'_> = &job;
        if self.helpers.is_empty() {
            job(0);
            return;
        }
        let shared = &self.shared;
        shared.finished.store(0, Ordering::Relaxed);
        shared.job.store(std::ptr::from_ref(&job).cast_mut().cast(), Ordering::Relaxed);
        let number = shared.gate.load(Ordering::Relaxed) / JOB + 1;
        shared.gate.store(number * JOB, Ordering::SeqCst);
        if *shared.sleeping.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let join = Join(shared);
        job(0);
        drop(join);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a compute thread panicked");
    }

    /// Splits `0..count` into chunks of `chunk` that the threads claim one after the other.
    pub fn for_chunks(&mut self, count: usize, chunk: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        let chunk = chunk.max(1);
        if count <= chunk {
            if count > 0 {
                work(0, 0..count);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(|worker| {
            loop {
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= count {
                    return;
                }
                work(worker, start..count.min(start + chunk));
            }
        });
    }
}

/// Closes the gate and waits for those inside, also when the caller's part panics: the job lives on the caller's stack.
struct Join<'a>(&'a Shared);

impl Drop for Join<'_> {
    fn drop(&mut self) {
        let entered = self.0.gate.fetch_or(CLOSED, Ordering::SeqCst) & ENTERED;
        let mut spins = 0u32;
        while self.0.finished.load(Ordering::Acquire) < entered {
            spins += 1;
            if spins.is_multiple_of(4096) {
                // A helper has lost its core: let it have this one.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.gate.fetch_add(JOB, Ordering::SeqCst);
        drop(self.shared.sleeping.lock());
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

fn helper(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let gate = next_gate(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if gate & CLOSED != 0 {
            seen = gate / JOB;
            continue;
        }
        if shared.gate.compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            // Closed, or another helper entered: look again.
            continue;
        }
        seen = gate / JOB;
        let job = shared.job.load(Ordering::Relaxed).cast::<Job<'_>>();
        // SAFETY: `run` stored a pointer to its job before it opened the gate, and does not return (nor unwind past
        // `Join`) before all that entered have finished.
        let job = unsafe { *job };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.finished.fetch_add(1, Ordering::Release);
    }
}

/// Waits for a job after number `seen`; returns its gate.
fn next_gate(shared: &Shared, seen: u64) -> u64 {
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            let gate = shared.gate.load(Ordering::SeqCst);
            if gate / JOB != seen {
                return gate;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            break;
        }
    }
    let mut sleeping = shared.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
    *sleeping += 1;
    while shared.gate.load(Ordering::SeqCst) / JOB == seen {
        sleeping = shared.wake.wait(sleeping).unwrap_or_else(PoisonError::into_inner);
    }
    *sleeping -= 1;
    shared.gate.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_worked_exactly_once() {
        for threads in [1, 2, 3] {
            let mut pool = Pool::new(threads).unwrap();
            for count in [0, 1, 7, 1000] {
                let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.for_chunks(count, 3, |_, range| {
                    for i in range {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    /// Both threads are inside the job at once.
    fn meet(pool: &mut Pool, then: impl Fn(usize) + Sync) {
        let inside = AtomicUsize::new(0);
        pool.run(|worker| {
            inside.fetch_add(1, Ordering::SeqCst);
            while inside.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            then(worker);
        });
    }

    #[test]
    fn many_small_jobs_with_pauses_lose_no_wake() {
        let mut pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..2000 {
            if round % 500 == 0 {
                let pause = Instant::now();
                while pause.elapsed() < 3 * SPIN {
                    std::hint::spin_loop();
                }
            }
            // Would wait for ever if the helper slept through it.
            meet(&mut pool, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.load(Ordering::Relaxed), 4000);
    }

    #[test]
    fn a_job_that_helpers_come_too_late_for_is_done_by_the_caller() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..20_000 {
            let done = AtomicUsize::new(0);
            pool.for_chunks(2, 1, |_, range| {
                done.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(done.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            meet(&mut pool, |worker| assert_ne!(worker, 1, "on purpose"));
        }));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        meet(&mut pool, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
