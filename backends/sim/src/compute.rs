//! The compute units running a producer: load, multiply, store, wave after wave.

use std::collections::VecDeque;

use t3c_schedule::{Chunk, Op, Store, invariants::seen_from};

use crate::{
    machine::{Event, Machine, Origin, Packet, Payload, Tag, kind_of},
    memory::{Kind, Request, Stream},
    producer::{Plan, Section},
    system::System,
    tracker::BlockAt,
    units::Picoseconds,
    workload::Producer,
};

/// One work-group a compute unit, together a wave, on its way through the reduction dimension.
#[derive(Clone, Copy, Default)]
struct Slot {
    wave: usize,
    /// The step that computes or waits to.
    step: usize,
    /// The time of the step whose operands are on their way.
    loading: Option<Picoseconds>,
    /// The time of the step whose operands are there.
    loaded: Option<Picoseconds>,
    is_computing: bool,
    /// Stores on their way to memory or link: the registers are not free before.
    stores: u64,
    /// The wave has finished its last step, but the stores of the one before are still on their way.
    must_store: bool,
    started: Picoseconds,
}

/// The compute units of one device. Each holds a work-group a slot and multiplies for one at a time.
pub(crate) struct Units {
    plan: Plan,
    sections: Vec<Section>,
    inner: u64,
    element_bytes: u64,
    slots: Vec<Slot>,
    next_wave: usize,
    is_computing: bool,
    /// Slots whose operands are there, in order of arrival.
    ready: VecDeque<u32>,
    first_stage_over: bool,
    /// Sections whose operands are in memory, and slots that wait for more.
    available: usize,
    stalled: Vec<u32>,
    computed: Picoseconds,
}

impl Units {
    /// When the last step was over.
    pub fn computed(&self) -> Picoseconds {
        self.computed
    }

    /// Units whose operands are all there; `units` of them compute.
    pub fn new(producer: &Producer, sections: &[Section], system: &System, units: u64) -> Self {
        Self {
            plan: Plan::new(producer, sections, system, units),
            sections: sections.to_vec(),
            inner: producer.output.inner,
            element_bytes: producer.output.element_bytes,
            slots: vec![Slot::default(); system.compute.workgroups_per_unit as usize],
            next_wave: 0,
            is_computing: false,
            ready: VecDeque::new(),
            first_stage_over: false,
            available: sections.len(),
            stalled: Vec::new(),
            computed: Picoseconds(0),
        }
    }

    /// Units that wait for the operands of each section but the first.
    pub fn waiting(producer: &Producer, sections: &[Section], system: &System, units: u64) -> Self {
        Self { available: 1, ..Self::new(producer, sections, system, units) }
    }
}

/// One store of a tile: where it goes, and the chunk's block that it belongs to.
struct Piece {
    chunk: Option<Chunk>,
    block: u32,
    bytes: u64,
}

impl Machine<'_> {
    /// Starts the first wave of every slot.
    pub fn start_units(&mut self, device: usize) {
        let slots = self.devices[device].units.as_ref().map_or(0, |units| units.slots.len());
        for slot in 0..slots as u32 {
            self.start_wave(device, slot);
        }
    }

    /// Starts the next wave in `slot`, or nothing after the last one.
    fn start_wave(&mut self, device: usize, slot: u32) {
        let now = self.events.now();
        let Some(units) = &mut self.devices[device].units else { return };
        let wave = units.next_wave;
        if wave >= units.plan.waves() {
            return;
        }
        let needed = units.plan.wave(wave).last().map_or(0, |tile| tile.chunk + 1);
        if needed > units.available {
            units.stalled.push(slot);
            return;
        }
        units.next_wave += 1;
        let state = &mut units.slots[slot as usize];
        *state = Slot { wave, started: now, stores: state.stores, ..Slot::default() };
        let is_second_stage = units.plan.wave(wave).first().is_some_and(|tile| tile.chunk > 0);
        if is_second_stage && !units.first_stage_over {
            units.first_stage_over = true;
            self.devices[device].memory.choose_threshold(now, self.system);
        }
        self.load(device, slot, 0);
    }

    /// The operands of the first `available` sections are there.
    pub fn open(&mut self, device: usize, available: usize) {
        let Some(units) = &mut self.devices[device].units else { return };
        if available <= units.available {
            return;
        }
        units.available = available;
        for slot in std::mem::take(&mut units.stalled) {
            self.start_wave(device, slot);
        }
    }

    fn load(&mut self, device: usize, slot: u32, step: usize) {
        let Some(units) = &mut self.devices[device].units else { return };
        let state = &mut units.slots[slot as usize];
        let loaded = units.plan.load(state.wave, step, self.system);
        state.loading = Some(loaded.time);
        if loaded.missing == 0 {
            self.events.after(self.system.cache.latency, Event::Loaded(device as u32, slot));
            return;
        }
        let bytes = loaded.missing;
        self.devices[device].traffic.gemm_reads += bytes;
        let (kind, stream) = (Kind::Read, Stream::Compute);
        self.request(device, Request { kind, stream, bytes, tag: Tag::Operands(slot) });
    }

    pub fn operands_loaded(&mut self, device: usize, slot: u32) {
        let Some(units) = &mut self.devices[device].units else { return };
        let state = &mut units.slots[slot as usize];
        state.loaded = state.loading.take();
        if !state.is_computing {
            units.ready.push_back(slot);
            self.compute(device);
        }
    }

    /// If the units are free, computes the step of the slot that has waited longest, and loads the
    /// one after it.
    fn compute(&mut self, device: usize) {
        let slow = self.slow(device);
        let Some(units) = &mut self.devices[device].units else { return };
        if units.is_computing {
            return;
        }
        let Some(slot) = units.ready.pop_front() else { return };
        let state = &mut units.slots[slot as usize];
        let Some(time) = state.loaded.take() else { return };
        state.is_computing = true;
        units.is_computing = true;
        let next = state.step + 1;
        let has_next = next < units.plan.steps();
        let time = match slow {
            Some(slow) => Picoseconds(time.0.saturating_mul(100) / slow.compute_percent),
            None => time,
        };
        self.events.after(time, Event::Computed(device as u32, slot));
        if has_next {
            self.load(device, slot, next);
        }
    }

    pub fn step_computed(&mut self, device: usize, slot: u32) {
        let Some(units) = &mut self.devices[device].units else { return };
        units.is_computing = false;
        units.computed = self.events.now();
        let state = &mut units.slots[slot as usize];
        state.is_computing = false;
        state.step += 1;
        if state.step == units.plan.steps() {
            if state.stores > 0 {
                state.must_store = true;
            } else {
                self.store_wave(device, slot);
            }
        } else if state.loaded.is_some() {
            units.ready.push_back(slot);
        }
        self.compute(device);
    }

    /// A store has been taken by memory or link.
    pub fn store_accepted(&mut self, device: usize, slot: u32) {
        let Some(units) = &mut self.devices[device].units else { return };
        let Some(state) = units.slots.get_mut(slot as usize) else { return };
        state.stores = state.stores.saturating_sub(1);
        if state.stores == 0 && state.must_store {
            state.must_store = false;
            self.store_wave(device, slot);
        }
    }

    /// Sends the wave's tiles where the address space says, and starts the slot's next wave.
    fn store_wave(&mut self, device: usize, slot: u32) {
        let now = self.events.now();
        let pieces = self.pieces(device, slot);
        let Some(units) = &mut self.devices[device].units else { return };
        let Slot { wave, started, .. } = units.slots[slot as usize];
        if units.sections.iter().all(|section| section.chunk.is_none()) {
            // Near-memory updates and remote stores bypass the cache; plain stores do not.
            units.plan.keep_outputs(wave);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.wave(device, slot, wave, started, now);
        }
        for piece in pieces {
            self.store(device, slot, piece);
        }
        self.start_wave(device, slot);
    }

    fn pieces(&self, device: usize, slot: u32) -> Vec<Piece> {
        let Device { units: Some(units), trackers } = Device::of(self, device) else { return vec![] };
        let mut pieces = Vec::new();
        for tile in units.plan.wave(units.slots[slot as usize].wave) {
            let section = &units.sections[tile.chunk];
            let row_bytes = tile.columns * units.element_bytes;
            match trackers {
                None => {
                    let bytes = (tile.rows.end - tile.rows.start) * row_bytes;
                    pieces.push(Piece { chunk: section.chunk, block: 0, bytes });
                }
                Some(trackers) => {
                    let first = section.range.start * units.inner;
                    let (start, end) = (tile.rows.start - first, tile.rows.end - first);
                    pieces.extend(trackers.pieces(start, end, units.inner).map(|(block, rows)| Piece {
                        chunk: section.chunk,
                        block,
                        bytes: rows * row_bytes,
                    }));
                }
            }
        }
        pieces
    }

    fn store(&mut self, device: usize, slot: u32, piece: Piece) {
        let (store, op, relative) = match piece.chunk {
            None => (Store::Local, Op::Store, 0),
            Some(chunk) => (chunk.store, chunk.op, chunk.relative),
        };
        match store {
            Store::Local => {
                let at = BlockAt { relative, block: piece.block };
                let kind = kind_of(op);
                let state = &mut self.devices[device];
                state.traffic.gemm_writes += piece.bytes;
                if kind == Kind::Update {
                    state.traffic.updates += piece.bytes;
                }
                self.expect_store(device, slot);
                let tag = Tag::Stored(at, piece.bytes, slot);
                self.request(device, Request { kind, stream: Stream::Compute, bytes: piece.bytes, tag });
            }
            Store::Remote(to) => {
                let relative = seen_from(relative, to, self.divided.devices);
                let payload = Payload::Block(BlockAt { relative, block: piece.block });
                let mut left = piece.bytes;
                while left > 0 {
                    let bytes = left.min(self.system.link.packet);
                    left -= bytes;
                    self.expect_store(device, slot);
                    let origin = Origin::Producer(slot);
                    self.send(device, Packet { to, payload, op, bytes, origin });
                }
            }
        }
    }

    fn expect_store(&mut self, device: usize, slot: u32) {
        if let Some(units) = &mut self.devices[device].units {
            units.slots[slot as usize].stores += 1;
        }
    }
}

/// The parts of a device that cutting tiles into blocks needs.
struct Device<'a> {
    units: Option<&'a Units>,
    trackers: Option<&'a crate::tracker::Trackers>,
}

impl<'a> Device<'a> {
    fn of(machine: &'a Machine, device: usize) -> Self {
        let device = &machine.devices[device];
        Self { units: device.units.as_ref(), trackers: device.trackers.as_ref() }
    }
}
