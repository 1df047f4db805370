//! When each ModelProfile is looked at again: what is due first comes first.
//!
//! The controller's queue keeps what is late in a hash set and takes of it in no order, so that where there is not time for
//! all, of thousands some are never served. Here they wait in the order in which they are due, no more are handed over than
//! passes can begin with, and all become late alike. Changes go past this queue: they find the other one empty.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::index::Key;

/// The next look at each ModelProfile.
pub struct Looks {
    queue: Mutex<Queue>,
    /// Wakes who hands out.
    changed: Notify,
}

impl Looks {
    /// No look at anything; at most `most` will be under way at once.
    pub fn new(most: usize) -> Self {
        Self { queue: Mutex::new(Queue::new(most)), changed: Notify::new() }
    }

    /// A pass begins, for whatever reason: it is a look, too, and says when the next one is due.
    pub fn begun(&self, key: &Key) {
        self.queue().begun(key);
    }

    /// A pass ended; the next look is due `after` this time, or with the next change only.
    pub fn ended(&self, key: &Key, after: Option<Duration>) {
        let due = after.map(|after| Instant::now() + after);
        if self.queue().ended(key, due) {
            self.changed.notify_one();
        }
    }

    /// Forgets the ModelProfiles that are gone.
    pub fn keep(&self, exists: impl Fn(&Key) -> bool) {
        self.queue().keep(exists);
        self.changed.notify_one();
    }

    /// Sends what is due, and tells how late each is; ends when nobody receives any more.
    pub async fn hand_out(&self, to: &mpsc::Sender<Key>, late: impl Fn(Duration)) {
        loop {
            let now = Instant::now();
            let next = self.queue().next(now);
            match next {
                Next::HandOut(key, due) => {
                    late(now.duration_since(due));
                    if to.send(key).await.is_err() {
                        return;
                    }
                }
                Next::WaitUntil(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.changed.notified() => {}
                    }
                }
                Next::Wait => self.changed.notified().await,
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Queue {
    waiting: BTreeSet<(Instant, Arc<Key>)>,
    known: HashMap<Arc<Key>, Look>,
    handed_out: usize,
    /// Looks that may be handed over and not ended.
    most: usize,
}

#[derive(Clone, Copy)]
enum Look {
    Due(Instant),
    HandedOut,
}

/// What to do now.
#[derive(Debug, PartialEq)]
enum Next {
    /// This one, due at this time.
    HandOut(Key, Instant),
    WaitUntil(Instant),
    /// Until something changes.
    Wait,
}

impl Queue {
    fn new(most: usize) -> Self {
        Self { waiting: BTreeSet::new(), known: HashMap::new(), handed_out: 0, most }
    }

    fn begun(&mut self, key: &Key) {
        if let Some(Look::Due(at)) = self.known.get(key).copied() {
            self.remove(key, at);
        }
    }

    /// Whether who hands out has something else to wait for.
    fn ended(&mut self, key: &Key, due: Option<Instant>) -> bool {
        let was_full = self.handed_out >= self.most;
        let first = self.waiting.first().map(|(at, _)| *at);
        self.forget(key);
        if let Some(at) = due {
            let key = Arc::new(key.clone());
            self.waiting.insert((at, key.clone()));
            self.known.insert(key, Look::Due(at));
        }
        was_full || due.is_some_and(|due| first.is_none_or(|first| due < first))
    }

    fn keep(&mut self, exists: impl Fn(&Key) -> bool) {
        let gone: Vec<Arc<Key>> = self.known.keys().filter(|key| !exists(key)).cloned().collect();
        for key in gone {
            self.forget(&key);
        }
    }

    fn next(&mut self, now: Instant) -> Next {
        if self.handed_out >= self.most {
            return Next::Wait;
        }
        let Some((at, key)) = self.waiting.first().cloned() else { return Next::Wait };
        if at > now {
            return Next::WaitUntil(at);
        }
        self.waiting.pop_first();
        self.known.insert(key.clone(), Look::HandedOut);
        self.handed_out += 1;
        Next::HandOut(Key::clone(&key), at)
    }

    fn forget(&mut self, key: &Key) {
        match self.known.get(key).copied() {
            Some(Look::Due(at)) => self.remove(key, at),
            Some(Look::HandedOut) => {
                self.known.remove(key);
                self.handed_out -= 1;
            }
            None => {}
        }
    }

    fn remove(&mut self, key: &Key, at: Instant) {
        if let Some((key, _)) = self.known.remove_entry(key) {
            self.waiting.remove(&(at, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        ("n".to_owned(), format!("model-{number}"))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_that_is_due_comes_first_and_when_it_is_due() {
        let (mut queue, start) = (Queue::new(8), Instant::now());
        for (number, after, earlier) in [(0, 7, true), (1, 3, true), (2, 5, false)] {
            let changes = queue.ended(&key(number), Some(start + seconds(after)));
            assert_eq!(changes, earlier, "only one that comes before all others changes what is waited for");
        }
        // A pass that came meanwhile moves its next look, and one that wants none has none.
        queue.begun(&key(2));
        queue.ended(&key(2), Some(start + seconds(9)));
        queue.ended(&key(3), Some(start + seconds(1)));
        queue.ended(&key(3), None);
        for (number, after) in [(1, 3), (0, 7), (2, 9)] {
            let at = start + seconds(after);
            assert_eq!(queue.next(at.checked_sub(Duration::from_millis(1)).unwrap()), Next::WaitUntil(at));
            assert_eq!(queue.next(at), Next::HandOut(key(number), at));
        }
        assert_eq!(queue.next(start + seconds(100)), Next::Wait);
    }

    #[test]
    fn where_there_is_not_time_for_all_each_is_served_as_often() {
        const COUNT: usize = 500;
        let (mut queue, mut now) = (Queue::new(4), Instant::now());
        let mut served = vec![0; COUNT];
        for number in 0..COUNT {
            queue.ended(&key(number), Some(now));
        }
        // Each takes 20 ms, so that one round of all is twice the interval of five seconds.
        for _ in 0..20 * COUNT {
            let Next::HandOut(found, _) = queue.next(now) else { panic!("all are late") };
            queue.begun(&found);
            now += Duration::from_millis(20);
            served[found.1["model-".len()..].parse::<usize>().unwrap()] += 1;
            queue.ended(&found, Some(now + seconds(5)));
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(*least >= 19 && *most <= 21, "{least} to {most} looks");
    }

    #[test]
    fn no_more_are_handed_out_than_may_be_and_one_that_is_gone_holds_no_place() {
        let (mut queue, now) = (Queue::new(2), Instant::now());
        for number in 0..4 {
            queue.ended(&key(number), Some(now));
        }
        assert_eq!(queue.next(now), Next::HandOut(key(0), now));
        assert_eq!(queue.next(now), Next::HandOut(key(1), now));
        assert_eq!(queue.next(now), Next::Wait, "two are under way");
        assert!(queue.ended(&key(0), None), "a place became free");
        assert_eq!(queue.next(now), Next::HandOut(key(2), now));
        // The controller makes no pass for one that was deleted while it waited there.
        queue.keep(|known| *known != key(1) && *known != key(2));
        assert_eq!(queue.next(now), Next::HandOut(key(3), now));
        assert_eq!((queue.known.len(), queue.handed_out), (1, 1));
    }

    #[tokio::test]
    async fn who_hands_out_hears_of_one_that_is_earlier_than_what_it_waits_for() {
        let looks = Looks::new(1);
        let (to, mut from) = mpsc::channel(1);
        looks.ended(&key(0), Some(seconds(3600)));
        let told = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            looks.ended(&key(1), Some(Duration::from_millis(20)));
            let first = from.recv().await.unwrap();
            looks.ended(&key(2), Some(Duration::ZERO));
            // The place is taken until the first one ended.
            assert!(tokio::time::timeout(Duration::from_millis(50), from.recv()).await.is_err());
            looks.ended(&first, None);
            (first, from.recv().await.unwrap())
        };
        let found = tokio::select! {
            () = looks.hand_out(&to, |_| {}) => panic!("nobody closed the channel"),
            found = tokio::time::timeout(seconds(20), told) => found.expect("it was not told"),
        };
        assert_eq!(found, (key(1), key(2)));
    }
}
