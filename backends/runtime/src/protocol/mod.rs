//! Track and trigger: what happens when a producer has finished a block, and when one arrives.
//!
//! A fused step is driven by its schedule's chunk list alone. The producer stores each block at
//! [`FusedRun::target`] (its own memory, or directly the neighbour's slot) and then calls
//! [`FusedRun::arrived`]. A block stored remotely arrives at its receiver; one stored locally counts as
//! one update at the device's own tracker. An incoming block is a store into the receiver's slot and
//! counts as another update. Whichever arrival meets the threshold adds the contributions, in the
//! order of `ring::addition_order`, writes the sum where the trigger says (the next neighbour's slot,
//! or the result), grants the credits for what it has read, and passes the arrival on. So the sum is
//! the transfer: no block is copied and none is read twice.
//!
//! # Reuse
//! Each execution of the step on a device is an *epoch*. Slots, local tiles, trackers and credits stand
//! twice, by the epoch's parity, and trackers count on and are never reset. A block's memory is
//! overwritten in epoch `e` only after the credit for epoch `e − 2`.
//!
//! # Why no wait is circular
//! A device waits in three places: for a credit before its producer stores (`target`), for a credit
//! before a sum is stored in the neighbour's slot (inside `arrived`, where memory is shared), and for
//! its own chunk and what passes through it (`finish`).
//! All devices of a group run the same steps in the same order; give every execution its index `t` in
//! that order. Producing and forwarding at `t` wait only for credits, which are granted by producing and
//! forwarding at an earlier execution of the same step, hence at some `t' < t`. Finishing at `t` waits
//! for producing and forwarding at `t`. So every wait is for something smaller in the order
//! `(t, produce) < (t, finish) < (t + 1, produce)`: none is for the waiting device's own future, since
//! a device has done all of its part of `t'` before it begins `t > t'`. Where memory is not shared, a
//! sum without a credit is set aside instead, and every wait moves what has arrived and what was set
//! aside; `finish` returns when nothing is left of either.

#[allow(unsafe_code)]
mod unsafe_arrival;
#[allow(unsafe_code)]
mod unsafe_epilogue;

use std::ops::Range;
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, Mutex};

use crate::hooks::{Event, EventKind, Hooks};
use crate::plan::{Entry, Outcome, Plan};
use crate::sync::{AtomicU64, Ordering, Padded};
use crate::tracker::{Credit, Tracker};
use crate::transport::{Slot, Transport};
use crate::unsafe_memory::{Access, Rows};
use crate::watch::Watch;
use crate::{Error, StepKey};

pub use unsafe_epilogue::{BlockArrived, block_arrived};

/// A fused step in one group of devices: trackers, credits, local tiles and the connection.
#[derive(Debug)]
pub struct FusedStep {
    plan: Plan,
    /// The devices of the group, by position.
    members: Vec<u32>,
    watch: Arc<Watch>,
    hooks: Arc<Hooks>,
    transport: Box<dyn Transport>,
    devices: Vec<DeviceState>,
}

/// One device's part of a fused step.
#[derive(Debug)]
struct DeviceState {
    /// For each entry, for each block.
    entries: Vec<Vec<BlockState>>,
    /// For each entry whose producer stores locally and whose sum moves on: the tiles.
    tiles: Vec<Option<crate::transport::Slots>>,
    /// Tracked blocks of an epoch: those that are summed here.
    tracked: u64,
    /// Blocks that have been summed and sent on or are final, over all epochs.
    complete: Padded<AtomicU64>,
    /// Sums that wait for a credit, where memory is not shared.
    deferred: Mutex<Vec<(At, Slot)>>,
    /// Where the result goes in the epoch that runs.
    result: AtomicPtr<f32>,
    /// Epochs begun and finished; only the device's own thread uses them.
    begun: std::sync::atomic::AtomicU64,
    finished: std::sync::atomic::AtomicU64,
}

/// One block at a device.
#[derive(Debug, Default)]
struct BlockState {
    tracker: Tracker,
    /// Whether the local tile may be overwritten.
    tile: Credit,
    /// The result block, for the model checker.
    result: Access,
}

/// What a wait or an event is about.
#[derive(Clone, Copy, Debug)]
struct At {
    /// The device's position in its group.
    device: u32,
    entry: usize,
    block: usize,
    epoch: u64,
}

impl FusedStep {
    /// The step's address space.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Elements of the result of the device at `position`.
    pub fn result_elements(&self, position: u32) -> usize {
        self.plan.cut.elements_of(self.plan.chunk_range(position, self.plan.own_entry()).len())
    }

    /// The rows of a block: strided where it lies in the result, dense in slots and tiles.
    fn rows(&self, at: At, start: *mut f32, in_result: bool) -> Rows {
        let cut = &self.plan.cut;
        let length = self.plan.block_in_chunk(at.device, at.entry, at.block).len() * cut.inner;
        let whole = self.plan.chunk_range(at.device, at.entry).len() * cut.inner;
        Rows { start, count: cut.outer, length, stride: if in_result { whole } else { length } }
    }

    /// The block in the device's result.
    fn result_rows(&self, at: At) -> Rows {
        let first = self.plan.block_in_chunk(at.device, at.entry, at.block).start * self.plan.cut.inner;
        let result = self.devices[at.device as usize].result.load(std::sync::atomic::Ordering::Relaxed);
        self.rows(at, result.wrapping_add(first), true)
    }

    fn block_state(&self, at: At) -> &BlockState {
        &self.devices[at.device as usize].entries[at.entry][at.block]
    }

    fn slot_at(&self, device: u32, to: u32, channel: usize, block: usize) -> Slot {
        Slot { receiver: self.plan.at_distance(device, to), channel, block }
    }

    /// Waits until the sender may store in `slot`.
    fn wait_for_credit(&self, device: u32, slot: Slot, epoch: u64) -> Result<(), Error> {
        let ready = || self.transport.has_credit(slot, epoch);
        let waiting = || {
            let entry = self.plan.entry_of(slot.channel);
            let at = At { device: slot.receiver, entry, block: slot.block, epoch };
            let receiver = self.members[slot.receiver as usize];
            format!("the credit of device {receiver} for {}", self.describe(at))
        };
        self.wait(device, ready, waiting)
    }

    /// Waits on behalf of `device` and meanwhile moves what has arrived for it.
    fn wait(&self, device: u32, ready: impl Fn() -> bool, waiting: impl Fn() -> String) -> Result<(), Error> {
        let ready = || {
            self.progress(device);
            ready()
        };
        self.watch.until(self.members[device as usize], ready, waiting)
    }

    fn describe(&self, at: At) -> String {
        let chunk = self.plan.chunk(at.device, at.entry);
        format!("{}, chunk {chunk}, block {}, epoch {}", self.plan.key, at.block, at.epoch)
    }

    /// A tracker that still waits, in words: one of the device's own chunk if there is one.
    fn unfinished(&self, device: u32, epoch: u64) -> String {
        let own = self.plan.own_entry();
        for entry in std::iter::once(own).chain(self.plan.tracked().filter(|&entry| entry != own)) {
            let threshold = self.plan.entries[entry].threshold;
            for block in 0..self.plan.blocks(device, entry) {
                let at = At { device, entry, block, epoch };
                let count = self.block_state(at).tracker.count(epoch, threshold);
                if count < threshold {
                    let place = self.describe(at);
                    return format!("the tracker of {place} ({count} of {threshold} updates)");
                }
            }
        }
        format!("the last addition of {}, epoch {epoch}", self.plan.key)
    }

    fn record(&self, worker: u32, at: At, kind: EventKind) {
        self.hooks.record(|| Event {
            order: 0,
            time: std::time::Duration::ZERO,
            device: self.members[at.device as usize],
            worker: self.members[worker as usize],
            step: self.plan.key,
            epoch: at.epoch,
            chunk: self.plan.chunk(at.device, at.entry),
            block: at.block as u32,
            kind,
        });
    }
}

impl std::fmt::Debug for dyn Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Transport")
    }
}

impl DeviceState {
    fn new(plan: &Plan, device: u32) -> Self {
        let blocks = |entry: usize| (0..plan.blocks(device, entry)).map(|_| BlockState::default()).collect();
        let tile = |(index, entry): (usize, &Entry)| {
            matches!(entry.outcome, Outcome::Forward { .. })
                .then(|| crate::transport::Slots::new(plan, device, index))
        };
        DeviceState {
            entries: (0..plan.entries.len()).map(blocks).collect(),
            tiles: plan.entries.iter().enumerate().map(tile).collect(),
            tracked: plan.tracked().map(|entry| plan.blocks(device, entry) as u64).sum(),
            complete: Padded(AtomicU64::new(0)),
            deferred: Mutex::default(),
            result: AtomicPtr::new(std::ptr::null_mut()),
            begun: std::sync::atomic::AtomicU64::new(0),
            finished: std::sync::atomic::AtomicU64::new(0),
        }
    }
}

/// Where a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A local tile, summed and sent on later.
    Tile,
    /// The device's result.
    Result,
    /// The memory of another device.
    Remote,
}

/// Where the producer writes a block: `outer` pieces of `extent` indices of `inner` contiguous elements.
///
/// Element `(o, i, j)` goes to `start + o · outer_stride + i · inner + j`. What was there before is
/// undefined: the first write stores.
#[derive(Clone, Copy, Debug)]
pub struct BlockTarget {
    /// The first element.
    pub start: *mut f32,
    /// Product of the extents before the divided dimension.
    pub outer: usize,
    /// Elements from one outer piece to the next.
    pub outer_stride: usize,
    /// Indices of the block along the divided dimension.
    pub extent: usize,
    /// Product of the extents after the divided dimension.
    pub inner: usize,
    /// Whose memory it is.
    pub destination: Destination,
}

/// A chunk of the producer's output, as its device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkView {
    /// Its place in production order, which names it in the calls of [`FusedRun`].
    pub position: usize,
    /// Its index.
    pub index: u32,
    /// Its indices along the divided dimension.
    pub range: Range<usize>,
    /// Its blocks.
    pub blocks: usize,
}

/// One execution of a fused step on one device.
///
/// Must be finished: dropping it before [`FusedRun::finish`] has succeeded stops all devices.
#[derive(Debug)]
pub struct FusedRun<'a> {
    step: &'a FusedStep,
    device: u32,
    epoch: u64,
    produced: Vec<Vec<bool>>,
    complete: bool,
}

impl<'a> FusedRun<'a> {
    /// The chunks, in production order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = ChunkView> + use<'a> {
        let (plan, device) = (&self.step.plan, self.device);
        (0..plan.entries.len()).map(move |position| ChunkView {
            position,
            index: plan.chunk(device, position),
            range: plan.chunk_range(device, position),
            blocks: plan.blocks(device, position),
        })
    }

    /// The indices of a block along the divided dimension of the whole value.
    pub fn block_range(&self, position: usize, block: usize) -> Range<usize> {
        let chunk = self.step.plan.chunk_range(self.device, position);
        let within = self.step.plan.block_in_chunk(self.device, position, block);
        chunk.start + within.start..chunk.start + within.end
    }

    /// How often the step had run before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where to store a block; waits until that memory may be overwritten.
    pub fn target(&self, position: usize, block: usize) -> Result<BlockTarget, Error> {
        let (rows, _, destination) = self.destination(position, block)?;
        Ok(BlockTarget {
            start: rows.start,
            outer: rows.count,
            outer_stride: rows.stride,
            extent: self.block_range(position, block).len(),
            inner: self.step.plan.cut.inner,
            destination,
        })
    }

    /// The device's producer has stored the block: the epilogue of a fused kernel.
    ///
    /// Runs the addition and the trigger if this arrival meets the threshold, here or along the ring.
    pub fn arrived(&mut self, position: usize, block: usize) -> Result<(), Error> {
        let at = self.at(position, block)?;
        self.produced[position][block] = true;
        self.step.producer_arrived(at)
    }

    /// Waits until the device's own chunk is reduced, and until everything that passes through the
    /// device has been sent on. The result is then complete.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.produced.iter().flatten().any(|&produced| !produced) {
            // If an arrival in generated code failed, that is the reason.
            self.step.watch.check()?;
            return Err(self.misuse("finished before every block has arrived"));
        }
        let (step, epoch) = (self.step, self.epoch);
        let state = &step.devices[self.device as usize];
        let ready = || state.complete.0.load(Ordering::Acquire) >= (epoch + 1) * state.tracked;
        step.wait(self.device, ready, || step.unfinished(self.device, epoch))?;
        state.finished.store(epoch + 1, std::sync::atomic::Ordering::Relaxed);
        self.complete = true;
        Ok(())
    }

    /// The rows of a block's destination, once they may be written.
    fn destination(&self, position: usize, block: usize) -> Result<(Rows, &'a Access, Destination), Error> {
        let at = self.at(position, block)?;
        let step = self.step;
        match step.plan.entries[position].outcome {
            Outcome::Remote { to, channel } => {
                let slot = step.slot_at(self.device, to, channel, block);
                step.wait_for_credit(self.device, slot, self.epoch)?;
                let place = step.transport.outgoing(slot, self.epoch);
                Ok((step.rows(at, place.start, false), place.access, Destination::Remote))
            }
            Outcome::Result => Ok((step.result_rows(at), &step.block_state(at).result, Destination::Result)),
            Outcome::Forward { .. } => {
                let credit = &step.block_state(at).tile;
                let ready = || credit.is_granted(self.epoch);
                let waiting = || format!("its own tile of {}", step.describe(at));
                step.wait(self.device, ready, waiting)?;
                let place = step.tile(at);
                Ok((step.rows(at, place.start, false), place.access, Destination::Tile))
            }
        }
    }

    /// Whether this is a run of `step` on the device at position `device`.
    pub(crate) fn is_of(&self, step: &FusedStep, device: u32) -> bool {
        std::ptr::eq(self.step, step) && self.device == device
    }

    fn at(&self, position: usize, block: usize) -> Result<At, Error> {
        match self.produced.get(position).and_then(|blocks| blocks.get(block)) {
            Some(false) => Ok(At { device: self.device, entry: position, block, epoch: self.epoch }),
            Some(true) => Err(self.misuse(&format!("block {block} of chunk {position} has already arrived"))),
            None => Err(self.misuse(&format!("there is no block {block} of chunk {position}"))),
        }
    }

    fn misuse(&self, reason: &str) -> Error {
        self.step.misuse(self.device, reason)
    }
}

impl Drop for FusedRun<'_> {
    fn drop(&mut self) {
        if !self.complete {
            let device = self.step.members[self.device as usize];
            let cause = format!("{} was left unfinished in epoch {}", self.step.plan.key, self.epoch);
            self.step.watch.poison(device, &cause);
        }
    }
}

impl FusedStep {
    pub(crate) fn misuse(&self, device: u32, reason: &str) -> Error {
        let device = self.members[device as usize];
        Error::Misuse { device, step: self.plan.key, reason: reason.to_string() }
    }
}

/// The step's name in messages.
impl std::fmt::Display for StepKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "step {} of program {}", self.step, self.program)
    }
}
