//! A transport without shared memory, as message passing between processes would be: staging buffers,
//! messages that overtake each other, receivers that learn of arrivals by polling. It shows that the
//! protocol needs no more than the trait promises.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use t3c_runtime::Delays;
use t3c_runtime::hooks::Hooks;
use t3c_runtime::plan::Plan;
use t3c_runtime::protocol::FusedStep;
use t3c_runtime::tracker::Credit;
use t3c_runtime::transport::{Delivery, Slot, Transport};
use t3c_runtime::unsafe_memory::{Access, Buffer, Place};
use t3c_runtime::watch::Watch;

use crate::reference::{bits, partial, reduced, spec};

/// A slot, an epoch and a copy of the block.
type Message = (Slot, u64, Vec<f32>);

struct Mailbox {
    plan: Plan,
    /// For each slot (receiver, channel, block) and parity: the sender's staging, the receiver's memory.
    staging: Vec<Buffer>,
    arrived: Vec<Buffer>,
    credits: Vec<Credit>,
    boxes: Vec<Mutex<Vec<Message>>>,
    draws: AtomicU64,
    access: Access,
}

impl Mailbox {
    fn new(plan: &Plan) -> Self {
        let places = plan.devices as usize * plan.channels.len() * Self::most_blocks(plan);
        let buffers = || (0..2 * places).map(|_| Buffer::new(plan.cut.elements())).collect();
        Mailbox {
            plan: plan.clone(),
            staging: buffers(),
            arrived: buffers(),
            credits: (0..places).map(|_| Credit::default()).collect(),
            boxes: (0..plan.devices).map(|_| Mutex::default()).collect(),
            draws: AtomicU64::new(7),
            access: Access::default(),
        }
    }

    fn most_blocks(plan: &Plan) -> usize {
        plan.cut.extent.div_ceil(plan.block)
    }

    fn place(&self, slot: Slot) -> usize {
        let stream = slot.receiver as usize * self.plan.channels.len() + slot.channel;
        stream * Self::most_blocks(&self.plan) + slot.block
    }

    fn memory<'a>(&'a self, buffers: &'a [Buffer], slot: Slot, epoch: u64) -> Place<'a> {
        let start = buffers[2 * self.place(slot) + (epoch % 2) as usize].at(0);
        Place { start, access: &self.access }
    }

    fn draw(&self) -> usize {
        let draw = self.draws.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        (draw.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as usize
    }
}

// SAFETY: a buffer for each slot and parity; messages carry copies under a lock; credits are `Credit`s.
unsafe impl Transport for Mailbox {
    fn outgoing(&self, slot: Slot, epoch: u64) -> Place<'_> {
        self.memory(&self.staging, slot, epoch)
    }

    fn has_credit(&self, slot: Slot, epoch: u64) -> bool {
        // A credit is a message as well: it may be late.
        !self.draw().is_multiple_of(4) && self.credits[self.place(slot)].is_granted(epoch)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn deliver(&self, slot: Slot, epoch: u64) -> Delivery {
        let entry = self.plan.entry_of(slot.channel);
        let elements = self.plan.block_elements(slot.receiver, entry, slot.block);
        let start = self.outgoing(slot, epoch).start;
        // SAFETY: the sender has stored the block and does not touch it before the next credit.
        let message = unsafe { std::slice::from_raw_parts(start, elements) }.to_vec();
        self.boxes[slot.receiver as usize].lock().unwrap().push((slot, epoch, message));
        Delivery::InFlight
    }

    fn incoming(&self, slot: Slot, epoch: u64) -> Place<'_> {
        self.memory(&self.arrived, slot, epoch)
    }

    fn free(&self, slot: Slot, epoch: u64) {
        self.credits[self.place(slot)].grant(epoch);
    }

    fn poll(&self, receiver: u32) -> Option<(Slot, u64)> {
        let mut messages = self.boxes[receiver as usize].lock().unwrap();
        let late = messages.is_empty() || self.draw().is_multiple_of(3);
        let (slot, epoch, message) = (!late).then(|| {
            let any = self.draw() % messages.len();
            messages.swap_remove(any)
        })?;
        let to = self.incoming(slot, epoch).start;
        // SAFETY: the buffer holds the whole value, and the sender had the credit for this slot.
        unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), to, message.len()) }
        Some((slot, epoch))
    }
}

#[test]
fn the_protocol_runs_over_messages_that_overtake_each_other() {
    for (devices, dimension, block) in [(2, 0, 1), (3, 1, 2), (4, 0, 2), (5, 1, 1)] {
        let spec = spec(devices, &[11, 13], dimension, block);
        let plan = Plan::new(&spec, devices).unwrap();
        let (cut, mailbox) = (plan.cut, Box::new(Mailbox::new(&plan)));
        let hooks = Arc::new(Hooks::new(Some(Delays::seeded(2)), false));
        let watch = Arc::new(Watch::new(devices, Some(std::time::Duration::from_secs(20))));
        let members = (0..devices).collect();
        // SAFETY: the mailbox has a buffer for every slot of this plan.
        let step = unsafe { FusedStep::with_transport(plan, members, watch, hooks, mailbox) };
        let program = |device: u32| {
            let mut result = vec![0.0; step.result_elements(device)];
            for epoch in 0..60 {
                let whole = partial(device, epoch, cut.elements());
                // SAFETY: `result` is read after `finish`, and a failure ends the test.
                let mut run = unsafe { step.begin(device, result.as_mut_ptr()) }.unwrap();
                for chunk in run.chunks() {
                    for block in 0..chunk.blocks {
                        let range = run.block_range(chunk.position, block);
                        let copy = |row, to: &mut [f32]| to.copy_from_slice(&whole[cut.row(row, &range)]);
                        run.store(chunk.position, block, copy).unwrap();
                    }
                }
                run.finish().unwrap();
                assert_eq!(bits(&result), bits(&reduced(cut, devices, device, epoch)));
            }
        };
        std::thread::scope(|scope| {
            let program = &program;
            (0..devices).for_each(|device| drop(scope.spawn(move || program(device))));
        });
    }
}
