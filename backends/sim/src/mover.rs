//! Moving data: the sender that reads memory for the links, and the compute units that run a collective.
//!
//! A DMA engine is a window of packets for each destination. A collective that compute units run
//! passes, besides, through them: each unit moves so many bytes a second, loads and stores together, which
//! is what makes a collective on few units slow.

use std::collections::VecDeque;

use crate::{
    machine::{Event, Machine, Origin, Packet, Tag, Transfer},
    memory::{Kind, Request, Stream},
    units::duration,
};

/// Transfers to one destination.
pub(crate) struct Sender {
    to: u32,
    queue: VecDeque<Transfer>,
    /// Packets between memory and link.
    outstanding: u64,
}

/// What compute units do with data that they have loaded.
#[derive(Clone, Copy)]
pub(crate) enum Moved {
    Send(Packet),
    Write(u64),
}

/// Compute units that run a collective.
pub(crate) struct Movers {
    /// Bytes a second, loads and stores together.
    pub rate: u64,
    queue: VecDeque<(Moved, u64)>,
    in_service: Option<Moved>,
}

impl Movers {
    pub fn new(rate: u64) -> Self {
        Self { rate, queue: VecDeque::new(), in_service: None }
    }
}

impl Machine<'_> {
    pub fn transfer(&mut self, device: usize, transfer: Transfer) {
        let senders = &mut self.devices[device].senders;
        match senders.iter_mut().find(|sender| sender.to == transfer.to) {
            Some(sender) => sender.queue.push_back(transfer),
            None => {
                senders.push(Sender { to: transfer.to, queue: [transfer].into(), outstanding: 0 });
            }
        }
        self.pump(device);
    }

    /// A packet is on the wire: its sender may read another one.
    pub fn sender_is_free(&mut self, device: usize, to: u32) {
        if let Some(sender) = self.devices[device].senders.iter_mut().find(|sender| sender.to == to) {
            sender.outstanding -= 1;
        }
        self.record_transfers(device);
        self.pump(device);
    }

    /// Reads the next packets for sending, a destination after the other, as far as windows reach.
    fn pump(&mut self, device: usize) {
        let window = self.system.trigger.outstanding;
        let mut idle = 0;
        loop {
            let state = &mut self.devices[device];
            let count = state.senders.len();
            if idle >= count {
                return;
            }
            let turn = state.turn % count;
            state.turn = turn + 1;
            let sender = &mut state.senders[turn];
            let has_room = sender.outstanding < window;
            let Some(transfer) = sender.queue.front_mut().filter(|_| has_room) else {
                idle += 1;
                continue;
            };
            idle = 0;
            let bytes = transfer.left.min(self.system.link.packet);
            transfer.left -= bytes;
            let Transfer { to, payload, op, left, reads } = *transfer;
            if left == 0 {
                sender.queue.pop_front();
            }
            if bytes == 0 {
                continue;
            }
            sender.outstanding += 1;
            let is_gather = state.collective.as_ref().is_some_and(|collective| collective.is_gather());
            *state.traffic.communication_reads(is_gather) += bytes * reads;
            let packet = Packet { to, payload, op, bytes, origin: Origin::Sender };
            let tag = Tag::Outgoing(packet, reads);
            let (kind, stream) = (Kind::Read, Stream::Communication);
            self.request(device, Request { kind, stream, bytes: bytes * reads, tag });
            self.record_transfers(device);
        }
    }

    fn record_transfers(&mut self, device: usize) {
        if let Some(recorder) = &mut self.recorder {
            let packets = self.devices[device].senders.iter().map(|sender| sender.outstanding).sum();
            recorder.transfers(device, self.events.now(), packets);
        }
    }

    /// Data has been loaded: through the compute units, where they run the collective, or straight on.
    pub fn move_on(&mut self, device: usize, what: Moved, bytes: u64) {
        match &mut self.devices[device].movers {
            None => self.moved(device, what),
            Some(movers) => {
                movers.queue.push_back((what, bytes));
                self.advance_movers(device);
            }
        }
    }

    fn advance_movers(&mut self, device: usize) {
        let Some(movers) = &mut self.devices[device].movers else { return };
        if movers.in_service.is_some() {
            return;
        }
        let Some((what, bytes)) = movers.queue.pop_front() else { return };
        movers.in_service = Some(what);
        self.events.after(duration(bytes, movers.rate), Event::Moved(device as u32));
    }

    pub fn movers_done(&mut self, device: usize) {
        let movers = self.devices[device].movers.as_mut();
        if let Some(what) = movers.and_then(|movers| movers.in_service.take()) {
            self.advance_movers(device);
            self.moved(device, what);
        }
    }

    fn moved(&mut self, device: usize, what: Moved) {
        match what {
            Moved::Send(packet) => self.send(device, packet),
            Moved::Write(bytes) => {
                self.devices[device].traffic.rs_writes += bytes;
                let (kind, stream) = (Kind::Write, Stream::Communication);
                self.request(device, Request { kind, stream, bytes, tag: Tag::ReduceWrite });
            }
        }
    }

    /// Reads `parts` values of `bytes` each and writes their sum.
    pub fn reduce(&mut self, device: usize, bytes: u64, parts: u64) {
        let mut left = bytes;
        while left > 0 {
            let bytes = left.min(self.system.link.packet);
            left -= bytes;
            self.devices[device].traffic.rs_reads += parts * bytes;
            let tag = Tag::ReduceRead(bytes, parts);
            let (kind, stream) = (Kind::Read, Stream::Communication);
            self.request(device, Request { kind, stream, bytes: parts * bytes, tag });
        }
    }
}
