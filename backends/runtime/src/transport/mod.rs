//! Transports: how blocks, credits and whole buffers get from one device to another.
//!
//! A transport knows neither chunks nor rings nor sums. It gives a sender a place for its stores, says
//! when that place may be reused, and reports arrivals; what an arrival means is the protocol's
//! business ([`crate::protocol`]). On shared memory the place is the receiver's slot itself and the
//! sender runs the receiver's side of the arrival. Where memory is not shared the place is a staging
//! buffer, [`Transport::deliver`] starts a non-blocking send, and the receiver learns of the arrival
//! from [`Transport::poll`]. Credits are then messages too.

#[allow(unsafe_code)]
mod unsafe_board;
#[allow(unsafe_code)]
mod unsafe_threads;

pub use unsafe_board::Board;
pub(crate) use unsafe_threads::Slots;
pub use unsafe_threads::Threads;

use crate::Error;
use crate::unsafe_memory::Place;
use crate::watch::Watch;

/// The slot of one block: whose memory, which stream, which block. Each stands twice, by epoch parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The receiver's position in its group.
    pub receiver: u32,
    /// Index into the plan's channels.
    pub channel: usize,
    /// The block within the chunk.
    pub block: usize,
}

/// Who runs the receiver's side of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The block lies in the receiver's slot: the caller does.
    Here,
    /// The block is on its way: the receiver does, when [`Transport::poll`] reports it.
    InFlight,
}

/// The connection of one fused step among the devices of one group.
///
/// # Safety
/// `outgoing` and `incoming` give memory for a whole block of the channel's chunk, apart from that of
/// every other slot and of the slot's other parity, for as long as the transport lives. What the sender
/// wrote before `deliver` is what the receiver reads; `has_credit` is true in epochs 0 and 1, and later
/// only after `free` two epochs before, which happens before it.
#[allow(unsafe_code)]
pub unsafe trait Transport: Send + Sync {
    /// Where the sender's stores for `slot` go in `epoch`.
    fn outgoing(&self, slot: Slot, epoch: u64) -> Place<'_>;

    /// Whether the receiver has freed the slot's content of two epochs ago, so that `outgoing` may be
    /// written.
    fn has_credit(&self, slot: Slot, epoch: u64) -> bool;

    /// Whether the sender can run the receiver's side of an arrival. Then a device may wait for a credit
    /// without moving what arrives for it.
    fn is_shared(&self) -> bool;

    /// The sender's stores for `slot` are complete.
    fn deliver(&self, slot: Slot, epoch: u64) -> Delivery;

    /// Where the receiver reads what has arrived.
    fn incoming(&self, slot: Slot, epoch: u64) -> Place<'_>;

    /// The receiver has read the slot for the last time in `epoch`.
    fn free(&self, slot: Slot, epoch: u64);

    /// A block that has arrived at `receiver` in flight and that nobody has been told of.
    fn poll(&self, receiver: u32) -> Option<(Slot, u64)>;
}

/// Collectives that are not fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Call {
    ReduceScatter,
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Barrier,
}

impl Call {
    const ALL: [Call; 6] = [
        Call::ReduceScatter,
        Call::AllGather,
        Call::AllReduce,
        Call::AllToAll,
        Call::Broadcast,
        Call::Barrier,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Call::ReduceScatter => "reduce_scatter",
            Call::AllGather => "all_gather",
            Call::AllReduce => "all_reduce",
            Call::AllToAll => "all_to_all",
            Call::Broadcast => "broadcast",
            Call::Barrier => "barrier",
        }
    }
}

/// What a device does with the buffers of all devices of its group, in the order of their positions.
pub type Read<'a> = dyn FnMut(&[&[u8]]) -> Result<(), Error> + 'a;

/// The meeting point of one group for collectives that are not fused.
///
/// # Safety
/// The buffers given to `read` are those that the members of the group passed in the same call, by
/// position, and stay borrowed while `read` runs.
#[allow(unsafe_code)]
pub unsafe trait Exchange: Send + Sync {
    /// Shows `mine` to the group, calls `read` with everybody's buffers, and returns once everybody has
    /// read `mine`. `read` must not wait for another device. Devices that meet in different calls get
    /// an error. Any error stops all devices.
    fn exchange(
        &self,
        watch: &Watch,
        position: u32,
        call: Call,
        mine: &[u8],
        read: &mut Read<'_>,
    ) -> Result<(), Error>;
}
