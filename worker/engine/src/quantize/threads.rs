//! Rows shared out to threads.

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
