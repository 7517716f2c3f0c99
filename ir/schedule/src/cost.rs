//! The closed-form bound by which a pass decides whether fusing pays, before anything is simulated.

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

/// A producer and its reducing collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Floating-point operations of the producer on one device.
    pub flops: u64,
    /// Bytes that the producer reads and writes.
    pub producer_bytes: u64,
    /// Bytes of the partial value.
    pub bytes: u64,
    /// Devices of the group.
    pub devices: u32,
    /// Triggers that one device fires.
    pub triggers: u64,
}

/// The bound, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The producer alone.
    pub producer: f64,
    /// The ring reduce-scatter alone.
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

/// Sequential time against `max(producer, transfer)` plus the cost of the triggers.
pub fn bound(pair: &Pair, rates: &Rates) -> Bound {
    let arithmetic = pair.flops as f64 / rates.flops_per_second;
    let traffic = pair.producer_bytes as f64 / rates.memory_bytes_per_second;
    let producer = arithmetic.max(traffic) + rates.launch_seconds;
    let steps = f64::from(pair.devices.saturating_sub(1));
    let chunk = pair.bytes as f64 / f64::from(pair.devices.max(1));
    let transfer = steps * (chunk / rates.link_bytes_per_second + rates.link_latency_seconds);
    // A kernel of its own, which ends by reading the received and its own chunk and writing the sum.
    let collective = transfer + 3.0 * chunk / rates.memory_bytes_per_second + rates.launch_seconds;
    // A fused producer waits for its first block before anything moves, and for the last one's transfer.
    let block = pair.bytes as f64 / pair.triggers.max(1) as f64;
    let exposed = block / rates.link_bytes_per_second + rates.link_latency_seconds;
    Bound {
        producer,
        transfer,
        sequential: producer + collective,
        fused: producer.max(transfer) + exposed + pair.triggers as f64 * rates.trigger_seconds,
    }
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
    }
}
