//! The machine: devices with memory, links, senders, trackers, and the loop that runs their events.
//!
//! Where all devices do the same (even chunks), one is simulated and what it sends arrives at itself:
//! the traffic that its neighbour would send at that very moment. Otherwise all are simulated. Both
//! are the same code; only [`Machine::peer`] differs.

use std::collections::VecDeque;

use t3c_schedule::{Op, Trigger, invariants::seen_from, ring};

use crate::{
    Error,
    compute::Units,
    events::Events,
    memory::{Arbitration, Kind, Memory, Request, Stream},
    producer::Section,
    recorder::Recorder,
    ring::RingState,
    system::{System, Topology},
    tracker::{BlockAt, Trackers, overrun},
    traffic::Traffic,
    units::{Picoseconds, duration},
    workload::{Divided, Ring, Workload},
};

/// What a memory request belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tag {
    /// Operands of the next step of a slot's wave.
    Operands(u32),
    /// A store of a slot in the device's own memory.
    Stored(BlockAt, u64, u32),
    /// Read for sending.
    Outgoing(Packet),
    /// Received and written.
    Incoming(Packet),
    /// The reading half of a local reduction; its result's bytes.
    ReduceRead(u64),
    /// The writing half.
    ReduceWrite,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    /// A part of a block, as the receiver counts its chunk.
    Block(BlockAt),
    /// A part of a step of a ring collective.
    RingStep(u32),
}

/// Who waits until a packet is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The producer's slot.
    Producer(u32),
    Sender,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub to: u32,
    pub payload: Payload,
    pub op: Op,
    pub bytes: u64,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A burst is over.
    Memory(u32),
    /// Operands of a slot are at the compute units.
    Loaded(u32, u32),
    /// A slot's step is computed.
    Computed(u32, u32),
    /// A packet is on the wire.
    Sent(u32, u32),
    /// A packet, by its number among those in flight, is at its destination.
    Arrived(u32, u32),
    /// A met threshold sets its trigger off.
    Fire(u32, BlockAt),
}

/// A transfer from memory to the link, packet by packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub to: u32,
    pub payload: Payload,
    pub op: Op,
    pub left: u64,
    /// Bytes read for each byte sent: two where a received part is added to the device's own.
    pub reads: u64,
}

#[derive(Default)]
struct LinkState {
    queue: VecDeque<Packet>,
    in_flight: Option<Packet>,
}

pub(crate) struct Device {
    pub memory: Memory<Tag>,
    links: Vec<LinkState>,
    transfers: VecDeque<Transfer>,
    /// Packets between memory and link.
    outstanding: u64,
    pub units: Option<Units>,
    pub ring: Option<RingState>,
    pub trackers: Option<Trackers>,
    pub traffic: Traffic,
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub time: Picoseconds,
    /// Of device 0.
    pub traffic: Traffic,
    /// Blocks that fired on device 0.
    pub fired: u64,
    /// The most blocks that device 0 tracked at a time.
    pub tracker_peak: u64,
    pub events: u64,
}

/// How to run a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    pub arbitration: Arbitration,
    /// Simulate every device even where one would do.
    pub all_devices: bool,
}

pub(crate) struct Machine<'a> {
    pub system: &'a System,
    pub events: Events<Event>,
    pub devices: Vec<Device>,
    pub divided: Divided,
    /// Packets between link and destination, and the numbers that are free again. Events carry the
    /// number alone: most of the loop's time is the queue moving its entries.
    flying: Vec<Packet>,
    landed: Vec<u32>,
    pub recorder: Option<&'a mut Recorder>,
}

/// Runs `workload` until nothing happens any more.
pub(crate) fn run(
    workload: &Workload,
    system: &System,
    mode: Mode,
    recorder: Option<&mut Recorder>,
) -> Result<Outcome, Error> {
    let divided = match workload {
        Workload::Producer(producer) => {
            Divided { extent: producer.output.extent, index_bytes: producer.output.index_bytes(), devices: 1 }
        }
        Workload::Fused(_, _, divided) | Workload::Ring(_, divided) => *divided,
    };
    let simulated = if divided.is_even() && !mode.all_devices { 1 } else { divided.devices };
    let devices = (0..simulated).map(|index| device(workload, &divided, index, system, mode)).collect();
    let mut machine = Machine {
        system,
        events: Events::new(),
        devices,
        divided,
        flying: Vec::new(),
        landed: Vec::new(),
        recorder,
    };
    for index in 0..machine.devices.len() {
        machine.start_units(index);
        machine.advance_ring(index);
    }
    while let Some(event) = machine.events.next() {
        machine.handle(event)?;
    }
    machine.finish()
}

fn device(workload: &Workload, divided: &Divided, index: u32, system: &System, mode: Mode) -> Device {
    let (units, trackers, ring) = match workload {
        Workload::Producer(producer) => {
            let whole = [Section { chunk: None, range: 0..producer.output.extent }];
            (Some(Units::new(producer, &whole, system)), None, None)
        }
        Workload::Fused(producer, space, divided) => {
            let sections: Vec<Section> = space
                .chunks
                .iter()
                .map(|&chunk| Section { chunk: Some(chunk), range: divided.range(index, chunk.relative) })
                .collect();
            let trackers = Trackers::new(space, divided, index);
            (Some(Units::new(producer, &sections, system)), Some(trackers), None)
        }
        Workload::Ring(kind, divided) => (None, None, Some(RingState::new(*kind, divided, index))),
    };
    let links = match system.link.topology {
        Topology::Ring => 2,
        Topology::FullyConnected => divided.devices.saturating_sub(1).max(1) as usize,
    };
    Device {
        memory: Memory::new(mode.arbitration),
        links: (0..links).map(|_| LinkState::default()).collect(),
        transfers: VecDeque::new(),
        outstanding: 0,
        units,
        ring,
        trackers,
        traffic: Traffic::default(),
    }
}

impl Machine<'_> {
    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Memory(device) => self.memory_done(device as usize)?,
            Event::Loaded(device, slot) => self.operands_loaded(device as usize, slot),
            Event::Computed(device, slot) => self.step_computed(device as usize, slot),
            Event::Sent(device, link) => self.packet_sent(device as usize, link as usize),
            Event::Arrived(device, number) => self.packet_arrived(device as usize, number),
            Event::Fire(device, at) => self.fire(device as usize, at),
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome, Error> {
        let waiting: Vec<String> = self
            .devices
            .iter()
            .enumerate()
            .flat_map(|(index, device)| device.trackers.iter().flat_map(move |t| t.waiting(index)))
            .collect();
        if !waiting.is_empty() {
            return Err(Error::Deadlock { location: String::new(), waiting });
        }
        let first = &self.devices[0];
        let trackers = first.trackers.as_ref();
        debug_assert!(trackers.is_none_or(|trackers| trackers.fired == trackers.len()));
        Ok(Outcome {
            time: self.events.now(),
            traffic: first.traffic,
            fired: trackers.map_or(0, |trackers| trackers.fired),
            tracker_peak: trackers.map_or(0, |trackers| trackers.peak),
            events: self.events.inserted(),
        })
    }

    /// The simulated device that stands for the one at distance `to` from `device`.
    fn peer(&self, device: usize, to: u32) -> usize {
        (device + to as usize) % self.devices.len()
    }

    /// Hands a request to memory.
    pub fn request(&mut self, device: usize, request: Request<Tag>) {
        let now = self.events.now();
        self.devices[device].memory.push(request, now);
        self.advance_memory(device);
    }

    fn advance_memory(&mut self, device: usize) {
        if let Some(time) = self.devices[device].memory.advance(self.events.now(), self.system) {
            self.events.after(time, Event::Memory(device as u32));
        }
    }

    fn memory_done(&mut self, device: usize) -> Result<(), Error> {
        let now = self.events.now();
        if let Some((stream, bytes, finished)) = self.devices[device].memory.complete() {
            if let Some(recorder) = &mut self.recorder {
                recorder.memory(device, now, stream, bytes);
            }
            if let Some(tag) = finished {
                self.request_done(device, tag)?;
            }
        }
        self.advance_memory(device);
        Ok(())
    }

    fn request_done(&mut self, device: usize, tag: Tag) -> Result<(), Error> {
        match tag {
            Tag::Operands(slot) => {
                self.events.after(self.system.memory.latency, Event::Loaded(device as u32, slot));
            }
            Tag::Stored(at, bytes, slot) => {
                self.count_update(device, at, bytes)?;
                self.store_accepted(device, slot);
            }
            Tag::Outgoing(packet) => self.send(device, packet),
            Tag::Incoming(packet) => match packet.payload {
                Payload::Block(at) => self.count_update(device, at, packet.bytes)?,
                Payload::RingStep(step) => {
                    if let Some(ring) = &mut self.devices[device].ring {
                        ring.receive(step, packet.bytes);
                    }
                    self.advance_ring(device);
                }
            },
            Tag::ReduceRead(bytes) => {
                self.devices[device].traffic.rs_writes += bytes;
                let (kind, stream) = (Kind::Write, Stream::Communication);
                self.request(device, Request { kind, stream, bytes, tag: Tag::ReduceWrite });
            }
            Tag::ReduceWrite => {}
        }
        Ok(())
    }

    fn count_update(&mut self, device: usize, at: BlockAt, bytes: u64) -> Result<(), Error> {
        let Some(trackers) = &mut self.devices[device].trackers else { return Ok(()) };
        if trackers.update(at, bytes).map_err(|at| overrun(device, at))? {
            self.events.after(self.system.trigger.latency, Event::Fire(device as u32, at));
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.tracker(device, self.events.now(), trackers.live());
        }
        Ok(())
    }

    fn fire(&mut self, device: usize, at: BlockAt) {
        let Some(trackers) = &self.devices[device].trackers else { return };
        let (trigger, bytes) = trackers.trigger(at);
        match trigger {
            Trigger::None | Trigger::Done => {}
            Trigger::Dma { to, op } => {
                let relative = seen_from(at.relative, to, self.divided.devices);
                let payload = Payload::Block(BlockAt { relative, ..at });
                self.transfer(device, Transfer { to, payload, op, left: bytes, reads: 1 });
            }
            Trigger::Reduce => self.reduce(device, bytes, u64::from(self.divided.devices)),
        }
    }

    /// Reads `parts` values of `bytes` each and writes their sum.
    pub fn reduce(&mut self, device: usize, bytes: u64, parts: u64) {
        if bytes == 0 {
            return;
        }
        self.devices[device].traffic.rs_reads += parts * bytes;
        let tag = Tag::ReduceRead(bytes);
        let (kind, stream) = (Kind::Read, Stream::Communication);
        self.request(device, Request { kind, stream, bytes: parts * bytes, tag });
    }

    pub fn transfer(&mut self, device: usize, transfer: Transfer) {
        self.devices[device].transfers.push_back(transfer);
        self.pump(device);
    }

    /// Reads the next packets for sending, as far as the sender's window reaches.
    fn pump(&mut self, device: usize) {
        let window = self.system.trigger.outstanding;
        while self.devices[device].outstanding < window {
            let state = &mut self.devices[device];
            let Some(transfer) = state.transfers.front_mut() else { return };
            let bytes = transfer.left.min(self.system.link.packet);
            transfer.left -= bytes;
            let Transfer { to, payload, op, left, reads } = *transfer;
            if left == 0 {
                state.transfers.pop_front();
            }
            if bytes == 0 {
                continue;
            }
            state.outstanding += 1;
            let is_gather = state.ring.as_ref().is_some_and(|ring| ring.kind == Ring::AllGather);
            *state.traffic.communication_reads(is_gather) += bytes * reads;
            let packet = Packet { to, payload, op, bytes, origin: Origin::Sender };
            let (kind, stream) = (Kind::Read, Stream::Communication);
            let tag = Tag::Outgoing(packet);
            self.request(device, Request { kind, stream, bytes: bytes * reads, tag });
        }
    }

    /// The link that leads to distance `to`, and how many of its like a packet passes.
    fn route(&self, to: u32) -> (usize, u64) {
        let devices = self.divided.devices;
        match self.system.link.topology {
            Topology::FullyConnected => (to.saturating_sub(1) as usize, 1),
            Topology::Ring if to * 2 > devices || to == ring::neighbour_distance(devices) => {
                (0, u64::from(devices - to))
            }
            Topology::Ring => (1, u64::from(to)),
        }
    }

    pub fn send(&mut self, device: usize, packet: Packet) {
        let (link, _) = self.route(packet.to);
        self.devices[device].links[link].queue.push_back(packet);
        self.advance_link(device, link);
    }

    fn advance_link(&mut self, device: usize, link: usize) {
        let state = &mut self.devices[device].links[link];
        if state.in_flight.is_some() {
            return;
        }
        let Some(packet) = state.queue.pop_front() else { return };
        state.in_flight = Some(packet);
        // On a ring, a packet that passes other devices occupies their links, and theirs this one's.
        let (_, hops) = self.route(packet.to);
        let time = duration(packet.bytes * hops, self.system.link.bandwidth);
        if let Some(recorder) = &mut self.recorder {
            recorder.link(device, link, self.events.now(), time);
        }
        self.events.after(time, Event::Sent(device as u32, link as u32));
    }

    fn packet_sent(&mut self, device: usize, link: usize) {
        let Some(packet) = self.devices[device].links[link].in_flight.take() else { return };
        let (_, hops) = self.route(packet.to);
        let latency = Picoseconds(self.system.link.latency.0.saturating_mul(hops));
        let peer = self.peer(device, packet.to);
        let number = match self.landed.pop() {
            Some(number) => {
                self.flying[number as usize] = packet;
                number
            }
            None => {
                self.flying.push(packet);
                self.flying.len() as u32 - 1
            }
        };
        self.events.after(latency, Event::Arrived(peer as u32, number));
        self.advance_link(device, link);
        match packet.origin {
            Origin::Producer(slot) => self.store_accepted(device, slot),
            Origin::Sender => {
                self.devices[device].outstanding -= 1;
                self.pump(device);
            }
        }
    }

    fn packet_arrived(&mut self, device: usize, number: u32) {
        let packet = self.flying[number as usize];
        self.landed.push(number);
        let state = &mut self.devices[device];
        let bytes = packet.bytes;
        let is_gather = state.ring.as_ref().is_some_and(|ring| ring.kind == Ring::AllGather);
        *state.traffic.communication_writes(is_gather) += bytes;
        let kind = kind_of(packet.op);
        if kind == Kind::Update {
            state.traffic.updates += bytes;
        }
        let (stream, tag) = (Stream::Communication, Tag::Incoming(packet));
        self.request(device, Request { kind, stream, bytes, tag });
    }
}

/// How memory performs an operation.
pub(crate) fn kind_of(op: Op) -> Kind {
    match op {
        Op::Store => Kind::Write,
        Op::Update => Kind::Update,
    }
}
