//! What can be attached to a run without changing it: a trace of the protocol's events, and random
//! delays at its stores and arrivals. Both are off by default and then cost one predictable branch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::StepKey;

/// What happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The device's producer finished it.
    Produced,
    /// It arrived from another device.
    Incoming,
    /// The threshold was met and the sum left for device `to`.
    Sent {
        /// The receiving device.
        to: u32,
    },
    /// The threshold was met and the block of the result is final.
    Done,
}

/// One event of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Place in the order of all events.
    pub order: u64,
    /// Time since the runtime was built.
    pub time: Duration,
    /// The device whose tracker, or whose producer, it concerns.
    pub device: u32,
    /// The device whose thread did the work.
    pub worker: u32,
    /// The fused step.
    pub step: StepKey,
    /// How often the step had run before on this runtime.
    pub epoch: u64,
    /// The chunk's index.
    pub chunk: u32,
    /// The block within the chunk.
    pub block: u32,
    /// What happened.
    pub kind: EventKind,
}

/// Random delays that make rare interleavings common.
#[derive(Debug)]
pub struct Delays {
    state: AtomicU64,
}

impl Delays {
    /// Delays drawn from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Delays { state: AtomicU64::new(seed) }
    }

    /// Nothing, a few spins, a yield or, rarely, a sleep.
    fn pause(&self) {
        let draw = splitmix64(self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed));
        match draw % 64 {
            0..32 => {}
            32..48 => (0..draw >> 8 & 0x3FF).for_each(|_| std::hint::spin_loop()),
            48..63 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(draw >> 8 & 0x3F)),
        }
    }
}

/// The finalizer of SplitMix64.
fn splitmix64(state: u64) -> u64 {
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The attached hooks.
#[derive(Debug, Default)]
pub struct Hooks {
    delays: Option<Delays>,
    trace: Option<Trace>,
}

#[derive(Debug)]
struct Trace {
    started: Instant,
    next: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl Hooks {
    /// Hooks with `delays`, and with a trace if `trace`.
    pub fn new(delays: Option<Delays>, trace: bool) -> Self {
        let trace = trace.then(|| Trace {
            started: Instant::now(),
            next: AtomicU64::new(0),
            events: Mutex::new(Vec::new()),
        });
        Hooks { delays, trace }
    }

    /// A point at which another device may get ahead.
    pub(crate) fn pause(&self) {
        if let Some(delays) = &self.delays {
            delays.pause();
        }
    }

    /// Records the event that `event` describes; `order` and `time` are set here.
    pub(crate) fn record(&self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &self.trace {
            let order = trace.next.fetch_add(1, Ordering::Relaxed);
            let event = Event { order, time: trace.started.elapsed(), ..event() };
            trace.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }

    /// The events so far, in order; they are forgotten.
    pub fn take(&self) -> Vec<Event> {
        let Some(trace) = &self.trace else { return Vec::new() };
        let mut events = std::mem::take(&mut *trace.events.lock().unwrap_or_else(PoisonError::into_inner));
        events.sort_by_key(|event| event.order);
        events
    }
}
