//! The crate's error type.

use crate::StepKey;

/// What can go wrong while a schedule is prepared or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The address space of a fused step is not one that this runtime can carry out.
    #[error("{step}: address space: {reason}")]
    AddressSpace {
        /// The step.
        step: StepKey,
        /// What is wrong with it.
        reason: String,
    },
    /// The partial value's shape, dimension or block is unusable.
    #[error("{step}: {reason}")]
    Shape {
        /// The step.
        step: StepKey,
        /// What is wrong with it.
        reason: String,
    },
    /// The grid has no devices, or an axis is named that it lacks.
    #[error("device grid: {0}")]
    Grid(String),
    /// The schedule has no fused step with this key.
    #[error("{0} is not a fused step of this runtime")]
    UnknownStep(StepKey),
    /// Calls on a fused step came in an order that the protocol does not allow.
    #[error("device {device}, {step}: {reason}")]
    Misuse {
        /// The device that called.
        device: u32,
        /// The step.
        step: StepKey,
        /// What was wrong.
        reason: String,
    },
    /// A buffer has another length than the collective needs.
    #[error("device {device}: {collective}: {what} holds {found} elements, expected {expected}")]
    Length {
        /// The device.
        device: u32,
        /// The collective.
        collective: &'static str,
        /// Which buffer.
        what: &'static str,
        /// Elements that it holds.
        found: usize,
        /// Elements that it must hold.
        expected: usize,
    },
    /// Devices of a group called different collectives.
    #[error("device {device} is in `{collective}` while device {peer} is in `{other}`")]
    Mismatch {
        /// The device that noticed.
        device: u32,
        /// What it called.
        collective: &'static str,
        /// The other device.
        peer: u32,
        /// What that one called.
        other: &'static str,
    },
    /// More updates arrived than the tracker's threshold: a block would be overwritten.
    #[error("device {device}: the tracker of {place} counts {count} updates, expected at most {threshold}")]
    Overrun {
        /// The tracker's device.
        device: u32,
        /// Step, chunk, block and epoch.
        place: String,
        /// Updates counted this epoch.
        count: u64,
        /// Updates expected.
        threshold: u64,
    },
    /// A wait lasted longer than the timeout.
    #[error("device {device} waited longer than {milliseconds} ms for {waiting}")]
    Timeout {
        /// The device that waited.
        device: u32,
        /// The timeout.
        milliseconds: u64,
        /// Which tracker, credit or peer it waited for.
        waiting: String,
    },
    /// A device's program panicked.
    #[error("device {device} panicked: {message}")]
    Panicked {
        /// The device.
        device: u32,
        /// The panic's message.
        message: String,
    },
    /// Another device failed first; its own error says why.
    #[error("device {device} stopped: {cause}")]
    Stopped {
        /// The device that failed first.
        device: u32,
        /// Its failure.
        cause: String,
    },
    /// The operating system started no thread for a device.
    #[error("cannot start the thread of device {device}: {reason}")]
    Spawn {
        /// The device.
        device: u32,
        /// The system's reason.
        reason: String,
    },
}
