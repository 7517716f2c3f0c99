//! The transport between threads of one process: slots and credits in shared memory.

use crate::layout::block_range;
use crate::plan::Plan;
use crate::tracker::Credit;
use crate::transport::{Delivery, Slot, Transport};
use crate::unsafe_memory::{Access, Buffer, Place};

/// Slots and credits of one fused step in one group.
#[derive(Debug)]
pub struct Threads {
    channels: usize,
    /// For each receiver, for each channel.
    streams: Vec<Stream>,
}

/// What one device receives on one channel.
#[derive(Debug)]
struct Stream {
    slots: Slots,
    credits: Vec<Credit>,
}

impl Threads {
    /// Slots for everything that arrives under `plan`.
    pub fn new(plan: &Plan) -> Self {
        let streams = (0..plan.devices)
            .flat_map(|receiver| (0..plan.channels.len()).map(move |channel| (receiver, channel)))
            .map(|(receiver, channel)| {
                let slots = Slots::new(plan, receiver, plan.entry_of(channel));
                let credits = (0..slots.blocks()).map(|_| Credit::default()).collect();
                Stream { slots, credits }
            })
            .collect();
        Threads { channels: plan.channels.len(), streams }
    }

    fn stream(&self, slot: Slot) -> &Stream {
        &self.streams[slot.receiver as usize * self.channels + slot.channel]
    }
}

// SAFETY: each stream has its own buffers, one a parity, whose blocks do not overlap; credits are the
// release and acquire pair of `Credit`.
unsafe impl Transport for Threads {
    fn outgoing(&self, slot: Slot, epoch: u64) -> Place<'_> {
        self.incoming(slot, epoch)
    }

    fn has_credit(&self, slot: Slot, epoch: u64) -> bool {
        self.stream(slot).credits[slot.block].is_granted(epoch)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn deliver(&self, _: Slot, _: u64) -> Delivery {
        Delivery::Here
    }

    fn incoming(&self, slot: Slot, epoch: u64) -> Place<'_> {
        self.stream(slot).slots.place(slot.block, epoch)
    }

    fn free(&self, slot: Slot, epoch: u64) {
        self.stream(slot).credits[slot.block].grant(epoch);
    }

    fn poll(&self, _: u32) -> Option<(Slot, u64)> {
        None
    }
}

/// Dense memory for the blocks of one chunk, twice.
#[derive(Debug)]
pub(crate) struct Slots {
    memory: [Buffer; 2],
    access: [Vec<Access>; 2],
    starts: Vec<usize>,
}

impl Slots {
    /// Memory for the chunk of `entry` on `device`.
    pub(crate) fn new(plan: &Plan, device: u32, entry: usize) -> Self {
        let length = plan.chunk_range(device, entry).len();
        let blocks = plan.blocks(device, entry);
        let start = |block| plan.cut.elements_of(block_range(length, plan.block, block).start);
        let buffer = || Buffer::new(plan.cut.elements_of(length));
        let access = || (0..blocks).map(|_| Access::default()).collect();
        Slots {
            memory: [buffer(), buffer()],
            access: [access(), access()],
            starts: (0..blocks).map(start).collect(),
        }
    }

    fn blocks(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn place(&self, block: usize, epoch: u64) -> Place<'_> {
        let parity = (epoch % 2) as usize;
        Place { start: self.memory[parity].at(self.starts[block]), access: &self.access[parity][block] }
    }
}
