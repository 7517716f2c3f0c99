//! The same work for many inputs, on as many threads as there are, with results in the inputs' order.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// `work` of every item, in order; the first error in that order is the result. `finished` is called
/// after each item with the number of those that are done.
///
/// # Errors
/// The error of the earliest item that has one.
pub fn map<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
    finished: impl Fn(usize) + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R, E>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let result = work(item);
                    if let Ok(mut slot) = results[index].lock() {
                        *slot = Some(result);
                    }
                    finished(done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    // Every item has a result: a thread that panicked has ended the scope with its panic.
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

/// Threads of this machine.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_their_items() {
        let items: Vec<u64> = (0..100).collect();
        let doubled = map(&items, 4, |item| Ok::<_, ()>(item * 2), |_| {}).unwrap();
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        let failed = map(&items, 4, |&item| if item % 30 == 29 { Err(item) } else { Ok(item) }, |_| {});
        assert_eq!(failed, Err(29));
    }
}
