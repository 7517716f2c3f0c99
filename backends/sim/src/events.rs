//! The event queue: earliest first, equal times in insertion order.

use std::{cmp::Ordering, collections::BinaryHeap};

use crate::units::Picoseconds;

struct Entry<E> {
    time: Picoseconds,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    /// The greatest leaves the heap first, so earlier is greater.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.time, other.number).cmp(&(self.time, self.number))
    }
}

/// Events to come.
pub(crate) struct Events<E> {
    heap: BinaryHeap<Entry<E>>,
    inserted: u64,
    now: Picoseconds,
}

impl<E> Events<E> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), inserted: 0, now: Picoseconds(0) }
    }

    /// The time of the event that was taken last.
    pub fn now(&self) -> Picoseconds {
        self.now
    }

    pub fn after(&mut self, delay: Picoseconds, event: E) {
        self.heap.push(Entry { time: self.now + delay, number: self.inserted, event });
        self.inserted += 1;
    }

    /// The next event, whose time becomes now.
    pub fn next(&mut self) -> Option<E> {
        let Entry { time, event, .. } = self.heap.pop()?;
        self.now = time;
        Some(event)
    }

    /// Events so far.
    pub fn inserted(&self) -> u64 {
        self.inserted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_times_keep_insertion_order() {
        let mut events = Events::new();
        for (delay, name) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            events.after(Picoseconds(delay), name);
        }
        assert_eq!(std::iter::from_fn(|| events.next()).collect::<String>(), "abcd");
        assert_eq!(events.now(), Picoseconds(5));
    }
}
