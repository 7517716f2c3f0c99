//! The machine: devices with memory, links, senders, trackers, and the loop that runs their events.
//!
//! Where all devices do the same (even chunks), one is simulated and what it sends arrives at itself:
//! the traffic that its neighbour would send at that very moment. Otherwise all are simulated. Both
//! are the same code; only [`Machine::peer`] differs.

use t3c_schedule::{Op, Trigger, invariants::seen_from};

use crate::{
    Error,
    collective::CollectiveState,
    compute::Units,
    events::Events,
    memory::{Arbitration, Kind, Memory, Request, Stream},
    mover::{Moved, Movers, Sender},
    network::{Line, Port, lines},
    producer::Section,
    recorder::Recorder,
    system::{Straggler, System, Topology},
    tracker::{BlockAt, Counted, From, Trackers, overrun},
    traffic::Traffic,
    units::Picoseconds,
    workload::{Divided, Mover, Operation, Workload},
};

/// What a memory request belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tag {
    /// Operands of the next step of a slot's wave.
    Operands(u32),
    /// A store of a slot in the device's own memory.
    Stored(BlockAt, u64, u32),
    /// Read for sending: the packet, and bytes read for each byte sent.
    Outgoing(Packet, u64),
    /// Received and written.
    Incoming(Packet),
    /// The reading half of a local reduction: its result's bytes, and its parts.
    ReduceRead(u64, u64),
    /// The writing half.
    ReduceWrite,
    /// Counters that the tracker does not hold.
    Spill,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    /// A part of a block, as the receiver counts its chunk.
    Block(BlockAt),
    /// A part of a step of a collective.
    Step(u32),
    /// A part of a sum that the network makes.
    Merged,
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
    /// A packet has come down from a switch.
    Descended(u32),
    /// Compute units have moved a packet.
    Moved(u32),
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

pub(crate) struct Device {
    pub memory: Memory<Tag>,
    pub lines: Vec<Line>,
    pub port: Port,
    pub senders: Vec<Sender>,
    /// The sender whose turn it is.
    pub turn: usize,
    /// Units that run the collective, where a DMA engine does not.
    pub movers: Option<Movers>,
    pub units: Option<Units>,
    pub collective: Option<CollectiveState>,
    pub trackers: Option<Trackers>,
    pub traffic: Traffic,
    /// Bytes that went on the links.
    pub sent: u64,
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub time: Picoseconds,
    /// When device 0's units had multiplied for the last time.
    pub computed: Picoseconds,
    /// Of device 0.
    pub traffic: Traffic,
    /// Blocks that fired on device 0.
    pub fired: u64,
    /// The most tiles that device 0 tracked at a time.
    pub tracker_peak: u64,
    /// Bytes that device 0 put on its links.
    pub sent: u64,
    pub events: u64,
}

/// How to run a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    pub arbitration: Arbitration,
    /// Simulate every device even where one would do.
    pub all_devices: bool,
    /// Units of the producer, and units that run the collective.
    pub units: u64,
    pub moving_units: u64,
}

pub(crate) struct Machine<'a> {
    pub system: &'a System,
    pub events: Events<Event>,
    pub devices: Vec<Device>,
    pub divided: Divided,
    mover: Mover,
    /// Packets between link and destination, and the numbers that are free again. Events carry the
    /// number alone: most of the loop's time is the queue moving its entries.
    pub flying: Vec<Packet>,
    pub landed: Vec<u32>,
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
        Workload::Fused(_, _, divided, _)
        | Workload::Collective(_, divided)
        | Workload::Consume(_, _, divided, _) => *divided,
    };
    let is_symmetric = divided.is_even() && system.straggler.is_none();
    let simulated = if is_symmetric && !mode.all_devices { 1 } else { divided.devices };
    let devices = (0..simulated).map(|index| device(workload, &divided, index, system, mode)).collect();
    let mover = match workload {
        Workload::Fused(_, _, _, mover) | Workload::Consume(_, _, _, mover) => *mover,
        _ => Mover::Engine,
    };
    let mut machine = Machine {
        system,
        events: Events::new(),
        devices,
        divided,
        mover,
        flying: Vec::new(),
        landed: Vec::new(),
        recorder,
    };
    for index in 0..machine.devices.len() {
        machine.advance_collective(index);
        machine.start_units(index);
    }
    while let Some(event) = machine.events.next() {
        machine.handle(event)?;
    }
    machine.finish()
}

fn device(workload: &Workload, divided: &Divided, index: u32, system: &System, mode: Mode) -> Device {
    let mut device = Device {
        memory: Memory::new(mode.arbitration),
        lines: lines(system.link.topology, divided.devices),
        port: Port::default(),
        senders: Vec::new(),
        turn: 0,
        movers: None,
        units: None,
        collective: None,
        trackers: None,
        traffic: Traffic::default(),
        sent: 0,
    };
    let rate = mode.moving_units.saturating_mul(system.compute.unit_bandwidth).max(1);
    match workload {
        Workload::Producer(producer) => {
            let whole = [Section { chunk: None, range: 0..producer.output.extent }];
            device.units = Some(Units::new(producer, &whole, system, mode.units));
        }
        Workload::Fused(producer, space, divided, mover) => {
            let section = |&chunk: &t3c_schedule::Chunk| Section {
                chunk: Some(chunk),
                range: divided.range(index, chunk.relative),
            };
            let sections: Vec<Section> = space.chunks.iter().map(section).collect();
            device.trackers = Some(Trackers::new(space, divided, index, &producer.output, system));
            device.units = Some(Units::new(producer, &sections, system, mode.units));
            device.movers = (*mover == Mover::Units).then(|| Movers::new(rate));
        }
        Workload::Collective(collective, divided) => {
            device.collective = Some(CollectiveState::new(*collective, divided, index));
            let is_near_memory = collective.operation == Operation::ReduceScatterNearMemory;
            device.movers = (!is_near_memory).then(|| Movers::new(rate));
        }
        Workload::Consume(producer, collective, divided, mover) => {
            // Chunks arrive from the device after this one first: its own, then in that order.
            let section = |relative| Section { chunk: None, range: divided.range(index, relative) };
            let sections: Vec<Section> = (0..divided.devices).map(section).collect();
            device.units = Some(Units::waiting(producer, &sections, system, mode.units));
            device.collective = Some(CollectiveState::new(*collective, divided, index));
            device.movers = (*mover == Mover::Units).then(|| Movers::new(rate));
        }
    }
    device
}

impl Machine<'_> {
    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Memory(device) => self.memory_done(device as usize)?,
            Event::Loaded(device, slot) => self.operands_loaded(device as usize, slot),
            Event::Computed(device, slot) => self.step_computed(device as usize, slot),
            Event::Sent(device, link) => self.packet_sent(device as usize, link as usize),
            Event::Arrived(device, number) => self.packet_arrived(device as usize, number),
            Event::Descended(device) => self.packet_descended(device as usize),
            Event::Moved(device) => self.movers_done(device as usize),
            Event::Fire(device, at) => self.fire(device as usize, at),
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome, Error> {
        let waiting: Vec<String> = self
            .devices
            .iter()
            .enumerate()
            .flat_map(|(index, device)| {
                let trackers = device.trackers.iter().flat_map(move |trackers| trackers.waiting(index));
                trackers.chain(device.collective.iter().flat_map(move |state| state.waiting(index)))
            })
            .collect();
        if !waiting.is_empty() {
            return Err(Error::Deadlock { location: String::new(), waiting });
        }
        let first = &self.devices[0];
        let trackers = first.trackers.as_ref();
        debug_assert!(trackers.is_none_or(|trackers| trackers.fired == trackers.len()));
        Ok(Outcome {
            time: self.events.now(),
            computed: first.units.as_ref().map_or(Picoseconds(0), Units::computed),
            traffic: first.traffic,
            sent: first.sent,
            fired: trackers.map_or(0, |trackers| trackers.fired),
            tracker_peak: trackers.map_or(0, |trackers| trackers.peak),
            events: self.events.inserted(),
        })
    }

    /// The straggler, if `device` is it. Work that no other device takes part in is shown on the slow one:
    /// the others wait for it.
    pub fn slow(&self, device: usize) -> Option<Straggler> {
        self.system.straggler.filter(|slow| slow.device as usize == device || self.divided.devices == 1)
    }

    /// The simulated device that stands for the one at distance `to` from `device`.
    pub fn peer(&self, device: usize, to: u32) -> usize {
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
                self.count_update(device, at, bytes, From::Producer)?;
                self.store_accepted(device, slot);
            }
            Tag::Outgoing(packet, reads) => {
                self.move_on(device, Moved::Send(packet), packet.bytes * (reads + 1));
            }
            Tag::Incoming(packet) => match packet.payload {
                Payload::Block(at) => {
                    // A packet that the network summed stands for all that it holds.
                    let copies = match (&self.devices[device].trackers, self.sums_in_network()) {
                        (Some(trackers), true) => trackers.arrivals(at.relative).max(1),
                        _ => 1,
                    };
                    self.count_update(device, at, packet.bytes * copies, From::Link)?;
                }
                Payload::Step(step) => self.step_received(device, step, packet.bytes),
                Payload::Merged => self.step_received(device, 0, packet.bytes),
            },
            Tag::ReduceRead(bytes, parts) => {
                self.move_on(device, Moved::Write(bytes), bytes * (parts + 1));
            }
            Tag::ReduceWrite | Tag::Spill => {}
        }
        Ok(())
    }

    fn sums_in_network(&self) -> bool {
        self.system.link.topology == Topology::ReducingSwitch
    }

    fn step_received(&mut self, device: usize, step: u32, bytes: u64) {
        let Some(state) = &mut self.devices[device].collective else { return };
        state.receive(step, bytes);
        let available = 1 + state.arrived();
        self.advance_collective(device);
        self.open(device, available);
    }

    fn count_update(&mut self, device: usize, at: BlockAt, bytes: u64, from: From) -> Result<(), Error> {
        let Some(trackers) = &mut self.devices[device].trackers else { return Ok(()) };
        let Counted { is_met, spilled, is_full } =
            trackers.update(at, bytes, from).map_err(|at| overrun(device, at))?;
        if let Some(recorder) = &mut self.recorder {
            recorder.tracker(device, self.events.now(), trackers.live());
        }
        if is_met {
            // Software polls a flag in memory; a full tracker reads its counter back.
            let memory = self.system.memory.latency;
            let mut delay = self.system.trigger.latency;
            if is_full {
                delay += memory;
            }
            if self.mover == Mover::Units {
                delay = memory + memory;
            }
            self.events.after(delay, Event::Fire(device as u32, at));
        }
        if spilled > 0 && self.mover == Mover::Engine {
            let counters = spilled * self.system.compute.wavefronts_per_workgroup;
            let bytes = counters.saturating_mul(self.system.memory.access);
            let stream = Stream::Communication;
            self.devices[device].traffic.tracker_spills += 2 * bytes;
            for kind in [Kind::Write, Kind::Read] {
                self.request(device, Request { kind, stream, bytes, tag: Tag::Spill });
            }
        }
        Ok(())
    }

    fn fire(&mut self, device: usize, at: BlockAt) {
        let Some(trackers) = &self.devices[device].trackers else { return };
        let (trigger, bytes, parts) = trackers.trigger(at, self.sums_in_network());
        match (trigger, self.mover) {
            (Trigger::Dma { to, op }, mover) => {
                let relative = seen_from(at.relative, to, self.divided.devices);
                let payload = Payload::Block(BlockAt { relative, ..at });
                // Units add what they send; an engine sends what memory has added.
                let reads = if mover == Mover::Units { parts.max(1) } else { 1 };
                self.transfer(device, Transfer { to, payload, op, left: bytes, reads });
            }
            (Trigger::Done, Mover::Units) if parts > 1 => self.reduce(device, bytes, parts),
            (Trigger::Reduce, _) => self.reduce(device, bytes, parts),
            (Trigger::None | Trigger::Done, _) => {}
        }
    }
}

/// How memory performs an operation.
pub(crate) fn kind_of(op: Op) -> Kind {
    match op {
        Op::Store => Kind::Write,
        Op::Update => Kind::Update,
    }
}
