//! Atomics and yielding, from `std` or from `loom`: what the model checker explores is what runs.
//!
//! Only the protocol's state goes through here: trackers, credits and `done` counters. Poisoning,
//! tracing and the worker pool are not part of the model and use `std` directly.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps counters that different devices write off each other's cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// How a waiting device spends its time: it spins, then yields, then sleeps.
#[derive(Debug)]
pub(crate) struct Backoff {
    rounds: u32,
    /// Rounds of spinning.
    #[cfg_attr(loom, allow(dead_code))]
    spins: u32,
}

impl Backoff {
    /// Where every device has a core, spinning for some 20 us costs nobody anything.
    const PATIENT_SPINS: u32 = 1 << 10;
    /// Where devices share cores: about as long as a cache line takes to arrive.
    const SPINS: u32 = 1 << 4;
    /// Yields after which the peer is evidently not running: sleeping frees the core for it.
    #[cfg(not(loom))]
    const YIELDS: u32 = 1 << 12;

    /// For a wait among `patient` devices, which have a core each, or among others.
    pub(crate) fn new(patient: bool) -> Self {
        Backoff { rounds: 0, spins: if patient { Self::PATIENT_SPINS } else { Self::SPINS } }
    }

    /// Waits a little, longer from round to round.
    #[cfg(not(loom))]
    pub(crate) fn snooze(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds < self.spins {
            std::hint::spin_loop();
        } else if self.rounds < self.spins + Self::YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }

    /// Lets another modelled thread run.
    #[cfg(loom)]
    pub(crate) fn snooze(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
        loom::thread::yield_now();
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }
}
