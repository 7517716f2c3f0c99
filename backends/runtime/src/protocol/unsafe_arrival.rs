//! The two sides of an arrival, and the additions that they set off.
//!
//! This is the protocol's one piece of code that touches blocks. Why each access is exclusive:
//!
//! * A slot or tile of epoch `e` is written by its one sender, after the credit of `e − 2` (or `e < 2`)
//!   and before its arrival at the tracker.
//! * It is read only by the arrival that meets the threshold, which synchronises with all earlier
//!   arrivals of that epoch, and before that reader grants the credit of `e`.
//! * A result block is written by its device's producer before its arrival, then by the last arrival
//!   before `complete` counts it, then belongs to the device, which waits for that count.

use std::sync::atomic::Ordering as Relaxation;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::{At, DeviceState, FusedRun, FusedStep};
use crate::Error;
use crate::hooks::{EventKind, Hooks};
use crate::plan::{FusedSpec, Outcome, Plan, Source};
use crate::sync::Ordering;
use crate::tracker::Arrival;
use crate::transport::{Delivery, Slot, Threads, Transport};
use crate::unsafe_memory::{Place, Rows, combine, write_rows};
use crate::watch::Watch;

impl FusedStep {
    /// The step for the devices `members`, connected by threads of this process.
    pub fn new(
        spec: &FusedSpec,
        members: Vec<u32>,
        watch: Arc<Watch>,
        hooks: Arc<Hooks>,
    ) -> Result<FusedStep, Error> {
        let plan = Plan::new(spec, members.len() as u32)?;
        let transport = Box::new(Threads::new(&plan));
        // SAFETY: the plan and the transport were just made, from each other.
        Ok(unsafe { FusedStep::with_transport(plan, members, watch, hooks, transport) })
    }

    /// The step over another transport.
    ///
    /// # Safety
    /// `plan` is as [`Plan::new`] made it for as many devices as `members` has, and `transport` gives
    /// memory for its channels and blocks.
    pub unsafe fn with_transport(
        plan: Plan,
        members: Vec<u32>,
        watch: Arc<Watch>,
        hooks: Arc<Hooks>,
        transport: Box<dyn Transport>,
    ) -> FusedStep {
        let devices = (0..plan.devices).map(|device| DeviceState::new(&plan, device)).collect();
        FusedStep { plan, members, watch, hooks, transport, devices }
    }

    /// Begins the step's next execution on the device at position `device`; the reduced chunk goes to
    /// `result`.
    ///
    /// # Safety
    /// `result` points to [`FusedStep::result_elements`] floats that nothing else uses until
    /// [`FusedRun::finish`] has returned without an error; if it returns one, or is not called, until
    /// no other device runs the step any more (when `Runtime::run` returns). At most one thread calls
    /// this for a device.
    pub unsafe fn begin(&self, device: u32, result: *mut f32) -> Result<FusedRun<'_>, Error> {
        let state = &self.devices[device as usize];
        let epoch = state.begun.load(Relaxation::Relaxed);
        if epoch != state.finished.load(Relaxation::Relaxed) {
            return Err(self.misuse(device, "begun again before it was finished"));
        }
        state.begun.store(epoch + 1, Relaxation::Relaxed);
        // Published by the first arrival at a tracker of the own chunk.
        state.result.store(result, Relaxation::Relaxed);
        let produced = state.entries.iter().map(|blocks| vec![false; blocks.len()]).collect();
        Ok(FusedRun { step: self, device, epoch, produced, complete: false })
    }

    /// The tile of a block whose sum moves on.
    pub(super) fn tile(&self, at: At) -> Place<'_> {
        match &self.devices[at.device as usize].tiles[at.entry] {
            Some(tiles) => tiles.place(at.block, at.epoch),
            None => unreachable!("only forwarded chunks have tiles"),
        }
    }

    /// The producer's side: the device has stored a block at its destination.
    pub(super) fn producer_arrived(&self, at: At) -> Result<(), Error> {
        self.hooks.pause();
        self.record(at.device, at, EventKind::Produced);
        match self.plan.entries[at.entry].outcome {
            Outcome::Remote { to, channel } => {
                let slot = self.slot_at(at.device, to, channel, at.block);
                match self.transport.deliver(slot, at.epoch) {
                    Delivery::Here => self.incoming_arrived(at.device, slot, at.epoch),
                    Delivery::InFlight => Ok(()),
                }
            }
            Outcome::Forward { .. } | Outcome::Result => self.count_update(at.device, at),
        }
    }

    /// The receiver's side: a block lies in `slot`. `worker` is the device whose thread says so.
    pub(super) fn incoming_arrived(&self, worker: u32, slot: Slot, epoch: u64) -> Result<(), Error> {
        self.hooks.pause();
        let entry = self.plan.entry_of(slot.channel);
        let at = At { device: slot.receiver, entry, block: slot.block, epoch };
        self.record(worker, at, EventKind::Incoming);
        self.count_update(worker, at)
    }

    /// Where memory is not shared: forwards what had no credit, and runs the receiver's side of what has
    /// arrived. Never waits.
    pub(super) fn progress(&self, device: u32) {
        if self.transport.is_shared() {
            return;
        }
        let deferred = std::mem::take(&mut *self.deferred(device));
        let retry = |(at, slot)| self.forward(device, at, slot).map(drop);
        let mut outcome = deferred.into_iter().try_for_each(retry);
        while let (Ok(()), Some((slot, epoch))) = (&outcome, self.transport.poll(device)) {
            outcome = self.incoming_arrived(device, slot, epoch);
        }
        if let Err(error) = outcome {
            self.watch.poison(self.members[device as usize], &error.to_string());
        }
    }

    fn deferred(&self, device: u32) -> MutexGuard<'_, Vec<(At, Slot)>> {
        self.devices[device as usize].deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one update and, at the threshold, adds and triggers: on along the ring while the blocks
    /// that it completes meet their own thresholds.
    fn count_update(&self, worker: u32, mut at: At) -> Result<(), Error> {
        loop {
            let entry = &self.plan.entries[at.entry];
            match self.block_state(at).tracker.arrive(at.epoch, entry.threshold) {
                Arrival::Early => return Ok(()),
                Arrival::Last => {}
                Arrival::Overrun(count) => {
                    let device = self.members[at.device as usize];
                    let (place, threshold) = (self.describe(at), entry.threshold);
                    return Err(Error::Overrun { device, place, count, threshold });
                }
            }
            self.hooks.pause();
            let Outcome::Forward { to, channel } = entry.outcome else {
                self.reduce_into_result(at);
                self.record(worker, at, EventKind::Done);
                return Ok(());
            };
            let slot = self.slot_at(at.device, to, channel, at.block);
            if self.forward(worker, at, slot)? == Delivery::InFlight {
                return Ok(());
            }
            self.hooks.pause();
            at = At { device: slot.receiver, entry: self.plan.entry_of(channel), ..at };
            self.record(worker, at, EventKind::Incoming);
        }
    }

    /// Adds a block's contributions straight into the place of the next device's slot, and delivers it.
    /// Without a credit it waits where memory is shared, and otherwise leaves it to `progress`.
    fn forward(&self, worker: u32, at: At, slot: Slot) -> Result<Delivery, Error> {
        if !self.transport.is_shared() && !self.transport.has_credit(slot, at.epoch) {
            self.deferred(at.device).push((at, slot));
            return Ok(Delivery::InFlight);
        }
        self.wait_for_credit(worker, slot, at.epoch)?;
        let place = self.transport.outgoing(slot, at.epoch);
        place.access.write(|| self.add_contributions(at, self.rows(at, place.start, false)));
        self.complete(at);
        self.record(worker, at, EventKind::Sent { to: self.members[slot.receiver as usize] });
        Ok(self.transport.deliver(slot, at.epoch))
    }

    /// Adds a block's contributions into the device's result.
    fn reduce_into_result(&self, at: At) {
        let target = self.result_rows(at);
        self.block_state(at).result.write(|| self.add_contributions(at, target));
        self.complete(at);
    }

    /// `target` = the contributions, in the plan's order. Called by the last arrival only.
    fn add_contributions(&self, at: At, target: Rows) {
        let entry = &self.plan.entries[at.entry];
        let rows = |source: &Source| match *source {
            Source::Incoming(channel) => {
                let slot = Slot { receiver: at.device, channel, block: at.block };
                let place = self.transport.incoming(slot, at.epoch);
                place.access.read(|| self.rows(at, place.start, false))
            }
            Source::Local if entry.outcome == Outcome::Result => target,
            Source::Local => {
                let place = self.tile(at);
                place.access.read(|| self.rows(at, place.start, false))
            }
        };
        let mut two = [Rows::NONE; 2];
        let mut many = Vec::new();
        let sources = if entry.sources.len() <= two.len() {
            two.iter_mut().zip(&entry.sources).for_each(|(place, source)| *place = rows(source));
            &two[..entry.sources.len()]
        } else {
            many.extend(entry.sources.iter().map(rows));
            &many[..]
        };
        // SAFETY: the module's argument: this is the last arrival of the epoch, so the sources are
        // whole and nobody writes them before `complete`; `target` is the slot for which the
        // credit was awaited, or the result block, which is the last arrival's until it is complete.
        unsafe { combine(target, sources, self.plan.reduction) }
    }

    /// The contributions have been added: their memory may be used again, two epochs on, and the device
    /// is done with the block.
    fn complete(&self, at: At) {
        self.hooks.pause();
        let entry = &self.plan.entries[at.entry];
        for source in &entry.sources {
            match *source {
                Source::Incoming(channel) => {
                    let slot = Slot { receiver: at.device, channel, block: at.block };
                    self.transport.free(slot, at.epoch);
                }
                Source::Local => self.block_state(at).tile.grant(at.epoch),
            }
        }
        self.devices[at.device as usize].complete.0.fetch_add(1, Ordering::Release);
    }
}

impl FusedRun<'_> {
    /// Stores a block row by row and lets it arrive: `write` gets each row's index (a row is one piece
    /// of the value before the divided dimension) and its elements.
    pub fn store(
        &mut self,
        position: usize,
        block: usize,
        write: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), Error> {
        let (rows, access, _) = self.destination(position, block)?;
        self.step.hooks.pause();
        // SAFETY: `destination` has waited for the credit of this memory, and the block has not arrived:
        // it is this device's alone.
        access.write(|| unsafe { write_rows(rows, write) });
        self.arrived(position, block)
    }
}
