//! Work shared out to threads, with the same outcome whatever their number.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread::Builder,
};

use crate::{EngineError, Result};

/// Calls `f` for every item, one per row; consecutive items go to one thread. What each row gives must not depend on the
/// others, so the number of threads changes nothing but the time.
pub(super) fn for_row_chunks<T: Send>(threads: usize, rows: usize, items: Vec<T>, f: impl Fn(T) + Sync) {
    let share = rows.div_ceil(threads.max(1)).max(1);
    let mut items = items.into_iter();
    std::thread::scope(|scope| {
        loop {
            let chunk: Vec<T> = items.by_ref().take(share).collect();
            if chunk.is_empty() {
                break;
            }
            let f = &f;
            scope.spawn(move || chunk.into_iter().for_each(f));
        }
    });
}

/// A thread's stack: the work holds its values on the heap, and a machine of many cores need not set aside megabytes each.
const STACK: usize = 512 << 10;

/// Computes `work` of every item on up to `threads` threads and gives the results to `each` on the calling one, in the order of
/// the items. `S` is a thread's own scratch.
///
/// No more than two results per thread wait for their turn: an `each` that is slow makes the threads wait, too.
///
/// # Errors
/// The first in the order of the items, of `work` or of `each`, whatever the number of threads. Nothing begins after it.
pub(crate) fn in_order<I, S, T>(
    threads: usize,
    mut items: impl ExactSizeIterator<Item = I> + Send,
    work: impl Fn(&mut S, I) -> Result<T> + Sync,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<()>
where
    I: Send,
    S: Default,
    T: Send,
{
    let count = items.len();
    let threads = threads.min(count);
    if threads <= 1 {
        let mut scratch = S::default();
        return items.try_for_each(|item| each(work(&mut scratch, item)?));
    }
    let state = State { items, taken: 0, given: 0, done: BTreeMap::new(), stopped: false };
    let queue = Queue { state: Mutex::new(state), room: Condvar::new(), ready: Condvar::new(), ahead: 2 * threads };
    std::thread::scope(|scope| {
        let _end = End(&queue);
        for index in 0..threads {
            let (queue, work) = (&queue, &work);
            let work = move || {
                let end = End(queue);
                let mut scratch = S::default();
                while let Some((index, item)) = queue.take() {
                    queue.put(index, work(&mut scratch, item));
                }
                // The others go on: only a panic ends them.
                std::mem::forget(end);
            };
            match Builder::new().stack_size(STACK).spawn_scoped(scope, work) {
                // Fewer threads than wished for do the same.
                Err(_) if index > 0 => break,
                Err(error) => return Err(EngineError::Unsupported(format!("the system gives no thread: {error}"))),
                Ok(_) => {}
            }
        }
        for _ in 0..count {
            // Without a result a thread has panicked, which the scope passes on.
            let Some(result) = queue.next() else { break };
            each(result?)?;
        }
        Ok(())
    })
}

/// What the threads of [`in_order`] share.
struct Queue<N, T> {
    state: Mutex<State<N, T>>,
    room: Condvar,
    ready: Condvar,
    /// Items that may be taken beyond the last result that was given out.
    ahead: usize,
}

struct State<N, T> {
    items: N,
    taken: usize,
    given: usize,
    done: BTreeMap<usize, Result<T>>,
    /// Nothing more is taken, or waited for: a result was an error, a thread panicked, or all is done.
    stopped: bool,
}

impl<N, T> Queue<N, T> {
    fn lock(&self) -> MutexGuard<'_, State<N, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next item and its place; waits for the results before it to be given out.
    fn take(&self) -> Option<(usize, N::Item)>
    where
        N: Iterator,
    {
        let full = |state: &mut State<N, T>| !state.stopped && state.taken >= state.given + self.ahead;
        let mut state = self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        let index = state.taken;
        let item = state.items.next()?;
        state.taken += 1;
        Some((index, item))
    }

    fn put(&self, index: usize, result: Result<T>) {
        self.lock().done.insert(index, result);
        self.ready.notify_one();
    }

    /// The next result in order; `None` when it will not come.
    fn next(&self) -> Option<Result<T>> {
        let missing = |state: &mut State<N, T>| !state.stopped && !state.done.contains_key(&state.given);
        let mut state = self.ready.wait_while(self.lock(), missing).unwrap_or_else(PoisonError::into_inner);
        let at = state.given;
        let result = state.done.remove(&at)?;
        state.given += 1;
        drop(state);
        self.room.notify_one();
        Some(result)
    }
}

/// Ends the waiting of all: dropped by the calling thread in the end, and by a thread that panics.
struct End<'a, N, T>(&'a Queue<N, T>);

impl<N, T> Drop for End<'_, N, T> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.room.notify_all();
        self.0.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use rstest::rstest;

    use super::*;

    fn numbered(message: usize) -> EngineError {
        EngineError::Unsupported(message.to_string())
    }

    #[rstest]
    fn results_come_in_order_and_few_wait(#[values(1, 2, 3, 16)] threads: usize) {
        let (begun, mut given) = (Mutex::new(0), Vec::new());
        let work = |(): &mut (), item: usize| {
            *begun.lock().unwrap() += 1;
            // The first of each pair is the slower one.
            std::thread::sleep(std::time::Duration::from_micros(200 * (1 - item as u64 % 2)));
            Ok(item * 10)
        };
        in_order(threads, 0..100, work, |result| {
            given.push(result);
            assert!(*begun.lock().unwrap() <= given.len() + 2 * threads);
            Ok(())
        })
        .unwrap();
        assert_eq!(given, (0..100).map(|item| item * 10).collect::<Vec<_>>());
    }

    #[rstest]
    fn the_first_error_in_order_is_told_and_ends_the_work(#[values(1, 2, 3, 16)] threads: usize) {
        let given = Mutex::new(0);
        let work = |(): &mut (), item: usize| {
            // A later error is found long before the first.
            std::thread::sleep(std::time::Duration::from_millis(if item == 4 { 20 } else { 0 }));
            if item >= 4 { Err(numbered(item)) } else { Ok(()) }
        };
        let error = in_order(threads, 0..50, work, |()| {
            *given.lock().unwrap() += 1;
            Ok(())
        });
        assert_eq!((error.unwrap_err().to_string(), *given.lock().unwrap()), (numbered(4).to_string(), 4));
        let error = in_order(
            threads,
            0..50,
            |(): &mut (), item| Ok(item),
            |item| if item == 7 { Err(numbered(7)) } else { Ok(()) },
        );
        assert_eq!(error.unwrap_err().to_string(), numbered(7).to_string());
    }

    #[rstest]
    #[should_panic(expected = "scoped thread")]
    fn a_panic_ends_the_work() {
        let work = |(): &mut (), item: usize| {
            assert_ne!(item, 9, "the test's panic");
            Ok(())
        };
        let _ = in_order(2, 0..50, work, |()| Ok(()));
    }

    #[test]
    fn nothing_to_do_is_done() {
        in_order(4, 0..0, |(): &mut (), _| Ok(()), |()| Ok(())).unwrap();
    }
}
