//! The closed-form bound by which a pass decides whether fusing pays, before anything is simulated.

use crate::CollectiveKind;

/// What the bound needs to know of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations a second of the matrix units.
    pub flops_per_second: f64,
    /// Bytes a second of a device's memory.
    pub memory_bytes_per_second: f64,
    /// Bytes a second from a device to its neighbour.
    pub link_bytes_per_second: f64,
    /// Seconds from one end of a link to the other.
    pub link_latency_seconds: f64,
    /// Seconds that one trigger costs: the tracker's update, the transfer's start.
    pub trigger_seconds: f64,
    /// Seconds to start a kernel.
    pub launch_seconds: f64,
}

/// A collective and the work that overlaps with it: its producer, or the readers of what it gathers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Floating-point operations of the work on one device.
    pub flops: u64,
    /// Bytes that the work reads and writes.
    pub producer_bytes: u64,
    /// Bytes of the whole value: partial, gathered or exchanged.
    pub bytes: u64,
    /// Devices of the group.
    pub devices: u32,
    /// Triggers that one device fires.
    pub triggers: u64,
}

/// The bound, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The work alone: the producer's, or the readers'.
    pub producer: f64,
    /// The collective's transfers alone.
    pub transfer: f64,
    /// One after the other.
    pub sequential: f64,
    /// `max(producer, transfer)` plus the triggers.
    pub fused: f64,
}

impl Bound {
    /// Whether fusing pays.
    pub fn is_profitable(&self) -> bool {
        self.fused < self.sequential
    }
}

/// Sequential time against `max(producer, transfer)` plus the cost of the triggers, for a ring reduce-scatter.
pub fn bound(pair: &Pair, rates: &Rates) -> Bound {
    producer_bound(CollectiveKind::ReduceScatter, pair, rates)
}

/// The bound of a producer and the collective that takes its result.
pub fn producer_bound(kind: CollectiveKind, pair: &Pair, rates: &Rates) -> Bound {
    let (producer, transfer) = (work(pair, rates), transfer(kind, pair, rates));
    // A fused producer waits for its first block before anything moves, and for the last one's transfer.
    let block = pair.bytes as f64 / pair.triggers.max(1) as f64;
    let exposed = block / rates.link_bytes_per_second + rates.link_latency_seconds;
    Bound {
        producer,
        transfer,
        sequential: producer + transfer + alone(kind, pair, rates),
        fused: producer.max(transfer) + exposed + pair.triggers as f64 * rates.trigger_seconds,
    }
}

/// The bound of a collective and the readers of what it gathers.
pub fn reader_bound(kind: CollectiveKind, pair: &Pair, rates: &Rates) -> Bound {
    let (readers, transfer) = (work(pair, rates), transfer(kind, pair, rates));
    // The own part is there from the start; the readers of the last block start when it has arrived.
    let blocks = pair.triggers.max(1) as f64 * f64::from(pair.devices) / f64::from(pair.devices.max(2) - 1);
    let exposed = readers / blocks;
    Bound {
        producer: readers,
        transfer,
        sequential: readers + transfer + alone(kind, pair, rates),
        fused: readers.max(transfer) + exposed + pair.triggers as f64 * rates.trigger_seconds,
    }
}

fn work(pair: &Pair, rates: &Rates) -> f64 {
    let arithmetic = pair.flops as f64 / rates.flops_per_second;
    let traffic = pair.producer_bytes as f64 / rates.memory_bytes_per_second;
    arithmetic.max(traffic) + rates.launch_seconds
}

/// What a device's link is busy with. On a ring each step moves a chunk to the neighbour; the pieces of an
/// all-to-all travel a quarter of the way around on average, and share the links on it.
fn transfer(kind: CollectiveKind, pair: &Pair, rates: &Rates) -> f64 {
    let steps = f64::from(pair.devices.saturating_sub(1));
    let chunk = pair.bytes as f64 / f64::from(pair.devices.max(1));
    let hops = match kind {
        CollectiveKind::AllToAll => f64::from(pair.devices.div_ceil(4)),
        _ => 1.0,
    };
    steps * (hops * chunk / rates.link_bytes_per_second + rates.link_latency_seconds)
}

/// What a collective costs beside its transfers where it is a kernel of its own: its start, and the memory traffic
/// that no transfer hides.
fn alone(kind: CollectiveKind, pair: &Pair, rates: &Rates) -> f64 {
    let chunk = pair.bytes as f64 / f64::from(pair.devices.max(1));
    let chunks = match kind {
        // It ends by reading the received and its own chunk and writing the sum.
        CollectiveKind::ReduceScatter => 3.0,
        // The own part is copied to its place.
        _ => 2.0,
    };
    chunks * chunk / rates.memory_bytes_per_second + rates.launch_seconds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATES: Rates = Rates {
        flops_per_second: 114.7e12,
        memory_bytes_per_second: 1e12,
        link_bytes_per_second: 150e9,
        link_latency_seconds: 500e-9,
        trigger_seconds: 10e-9,
        launch_seconds: 3e-6,
    };

    fn pair(m: u64, n: u64, k: u64, devices: u32) -> Pair {
        Pair {
            flops: 2 * m * n * k,
            producer_bytes: 2 * (m * k + k * n + m * n),
            bytes: 2 * m * n,
            devices,
            triggers: m.div_ceil(128),
        }
    }

    #[test]
    fn large_products_pay_and_tiny_ones_with_slow_triggers_do_not() {
        assert!(bound(&pair(8192, 4256, 2128, 8), &RATES).is_profitable());
        let slow = Rates { trigger_seconds: 50e-6, ..RATES };
        assert!(!bound(&pair(8, 64, 64, 8), &slow).is_profitable());
    }

    proptest! {
        #[test]
        fn the_bound_is_never_under_its_parts(m in 1u64..10_000, n in 1u64..10_000, k in 1u64..10_000, devices in 2u32..65) {
            let bound = bound(&pair(m, n, k, devices), &RATES);
            prop_assert!(bound.fused >= bound.producer.max(bound.transfer));
            prop_assert!(bound.sequential > bound.producer + bound.transfer);
        }

        #[test]
        fn readers_and_exchanges_have_bounds_too(m in 1u64..10_000, n in 1u64..10_000, k in 1u64..10_000, devices in 2u32..65) {
            let pair = pair(m, n, k, devices);
            for kind in [CollectiveKind::AllGather, CollectiveKind::AllToAll] {
                for bound in [producer_bound(kind, &pair, &RATES), reader_bound(kind, &pair, &RATES)] {
                    prop_assert!(bound.fused >= bound.producer.max(bound.transfer));
                    prop_assert!(bound.sequential > bound.producer + bound.transfer);
                }
            }
        }
    }
}
