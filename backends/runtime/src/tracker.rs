//! Trackers and credits: the two counters of the protocol, counting by epoch and never reset.
//!
//! Each stands twice, once for even and once for odd epochs, like the memory that it guards: a
//! neighbour may be one epoch ahead, so updates of epochs `e` and `e + 1` interleave, but those of `e`
//! and `e + 2` cannot (a store of `e + 2` waits for the credit that the last update of `e` grants).
//!
//! Memory order. [`Tracker::arrive`] is one `fetch_add` with acquire-release: the release half
//! publishes the block that the caller just stored; the acquire half, at the arrival that meets the
//! threshold, makes every earlier contribution visible (read-modify-writes continue a release
//! sequence, so it synchronises with all of them). [`Credit::grant`] is a release store after the last
//! read of the block, and [`Credit::is_granted`] an acquire load before its next write.

use crate::sync::{AtomicU64, Ordering};

fn parity(epoch: u64) -> usize {
    (epoch % 2) as usize
}

/// Epochs with the same parity before `epoch`.
fn earlier(epoch: u64) -> u64 {
    epoch / 2
}

/// What an arrival meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// More updates are expected.
    Early,
    /// The threshold is met: the caller, and nobody else, adds and triggers.
    Last,
    /// More updates than the threshold: the protocol was broken.
    Overrun(u64),
}

/// Counts the updates of one block.
#[derive(Debug)]
pub struct Tracker {
    updates: [AtomicU64; 2],
}

impl Default for Tracker {
    fn default() -> Self {
        Tracker { updates: [AtomicU64::new(0), AtomicU64::new(0)] }
    }
}

impl Tracker {
    /// Counts one update of `epoch`.
    pub fn arrive(&self, epoch: u64, threshold: u64) -> Arrival {
        let before = self.updates[parity(epoch)].fetch_add(1, Ordering::AcqRel);
        match before.checked_sub(earlier(epoch) * threshold) {
            Some(count) if count + 1 < threshold => Arrival::Early,
            Some(count) if count + 1 == threshold => Arrival::Last,
            Some(count) => Arrival::Overrun(count + 1),
            None => Arrival::Overrun(before + 1),
        }
    }

    /// Updates of `epoch` so far, for messages.
    pub fn count(&self, epoch: u64, threshold: u64) -> u64 {
        self.updates[parity(epoch)].load(Ordering::Relaxed).saturating_sub(earlier(epoch) * threshold)
    }
}

/// Says whether the memory of one block may be overwritten.
#[derive(Debug)]
pub struct Credit {
    frees: [AtomicU64; 2],
}

impl Default for Credit {
    fn default() -> Self {
        Credit { frees: [AtomicU64::new(0), AtomicU64::new(0)] }
    }
}

impl Credit {
    /// The block stored in `epoch` has been read for the last time.
    pub fn grant(&self, epoch: u64) {
        self.frees[parity(epoch)].store(earlier(epoch) + 1, Ordering::Release);
    }

    /// Whether the block may be stored in `epoch`: its content of two epochs ago has been read.
    pub fn is_granted(&self, epoch: u64) -> bool {
        self.frees[parity(epoch)].load(Ordering::Acquire) >= earlier(epoch)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_has_one_last_arrival() {
        let tracker = Tracker::default();
        for epoch in 0..6 {
            assert_eq!(tracker.arrive(epoch, 2), Arrival::Early);
            assert_eq!(tracker.count(epoch, 2), 1);
            assert_eq!(tracker.arrive(epoch, 2), Arrival::Last);
        }
        assert_eq!(tracker.arrive(5, 2), Arrival::Overrun(3));
        assert_eq!(tracker.arrive(4, 2), Arrival::Overrun(3));
    }

    #[test]
    fn neighbouring_epochs_interleave() {
        let tracker = Tracker::default();
        assert_eq!(tracker.arrive(1, 2), Arrival::Early);
        assert_eq!(tracker.arrive(0, 2), Arrival::Early);
        assert_eq!(tracker.arrive(1, 2), Arrival::Last);
        assert_eq!(tracker.arrive(0, 2), Arrival::Last);
    }

    #[test]
    fn a_block_is_reusable_two_epochs_later_and_only_once_it_was_read() {
        let credit = Credit::default();
        assert!(credit.is_granted(0) && credit.is_granted(1));
        assert!(!credit.is_granted(2));
        credit.grant(0);
        assert!(credit.is_granted(2) && !credit.is_granted(3) && !credit.is_granted(4));
    }
}
