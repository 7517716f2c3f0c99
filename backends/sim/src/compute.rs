//! The compute units running a producer: load, multiply, store, wave after wave.

use t3c_schedule::{Chunk, Op, Store, invariants::seen_from};

use crate::{
    Error,
    machine::{Event, Machine, Origin, Packet, Payload, Tag, kind_of},
    memory::{Kind, Request, Stream},
    producer::{Plan, Section},
    system::System,
    tracker::BlockAt,
    units::Picoseconds,
    workload::Producer,
};

/// The compute units of one device.
pub(crate) struct Units {
    plan: Plan,
    sections: Vec<Section>,
    inner: u64,
    element_bytes: u64,
    wave: usize,
    /// The step that computes or waits to.
    step: usize,
    is_computing: bool,
    /// The time of the step whose operands have arrived or are on their way.
    loading: Option<Picoseconds>,
    loaded: Option<Picoseconds>,
    /// Stores on their way to memory or link.
    stores: u64,
    /// A wave has finished its last step, but an earlier wave's stores are still on their way.
    must_store: bool,
    wave_started: Picoseconds,
    first_stage_over: bool,
}

impl Units {
    pub fn new(producer: &Producer, sections: &[Section], system: &System) -> Self {
        Self {
            plan: Plan::new(producer, sections, system),
            sections: sections.to_vec(),
            inner: producer.output.inner,
            element_bytes: producer.output.element_bytes,
            wave: 0,
            step: 0,
            is_computing: false,
            loading: None,
            loaded: None,
            stores: 0,
            must_store: false,
            wave_started: Picoseconds(0),
            first_stage_over: false,
        }
    }
}

/// One store of a tile: where it goes, and the chunk's block that it belongs to.
struct Piece {
    chunk: Option<Chunk>,
    block: u32,
    bytes: u64,
}

impl Machine<'_> {
    /// Starts `wave`, or nothing after the last one.
    pub fn start_wave(&mut self, device: usize, wave: usize) -> Result<(), Error> {
        let now = self.events.now();
        let Some(units) = &mut self.devices[device].units else { return Ok(()) };
        units.wave = wave;
        units.step = 0;
        units.wave_started = now;
        let is_second_stage = units.plan.wave(wave).first().is_some_and(|tile| tile.chunk > 0);
        if is_second_stage && !units.first_stage_over {
            units.first_stage_over = true;
            self.devices[device].memory.choose_threshold(now, self.system);
        }
        self.load(device, 0);
        Ok(())
    }

    fn load(&mut self, device: usize, step: usize) {
        let Some(units) = &mut self.devices[device].units else { return };
        if units.wave >= units.plan.waves() {
            return;
        }
        let loaded = units.plan.load(units.wave, step, self.system);
        units.loading = Some(loaded.time);
        if loaded.missing == 0 {
            self.events.after(self.system.cache.latency, Event::Loaded(device as u32));
            return;
        }
        let bytes = loaded.missing;
        self.devices[device].traffic.gemm_reads += bytes;
        let (kind, stream) = (Kind::Read, Stream::Compute);
        self.request(device, Request { kind, stream, bytes, tag: Tag::Operands });
    }

    pub fn operands_loaded(&mut self, device: usize) {
        let Some(units) = &mut self.devices[device].units else { return };
        units.loaded = units.loading.take();
        self.compute(device);
    }

    /// Computes the loaded step if the units are free, and loads the one after it.
    fn compute(&mut self, device: usize) {
        let Some(units) = &mut self.devices[device].units else { return };
        if units.is_computing {
            return;
        }
        let Some(time) = units.loaded.take() else { return };
        units.is_computing = true;
        let next = units.step + 1;
        let has_next = next < units.plan.steps();
        self.events.after(time, Event::Computed(device as u32));
        if has_next {
            self.load(device, next);
        }
    }

    pub fn step_computed(&mut self, device: usize) -> Result<(), Error> {
        let Some(units) = &mut self.devices[device].units else { return Ok(()) };
        units.is_computing = false;
        units.step += 1;
        if units.step < units.plan.steps() {
            self.compute(device);
            return Ok(());
        }
        if units.stores > 0 {
            units.must_store = true;
            return Ok(());
        }
        self.store_wave(device)
    }

    /// A store has been taken by memory or link.
    pub fn store_accepted(&mut self, device: usize) -> Result<(), Error> {
        let Some(units) = &mut self.devices[device].units else { return Ok(()) };
        units.stores = units.stores.saturating_sub(1);
        if units.stores == 0 && units.must_store {
            units.must_store = false;
            return self.store_wave(device);
        }
        Ok(())
    }

    /// Sends the wave's tiles where the address space says, and starts the next wave.
    fn store_wave(&mut self, device: usize) -> Result<(), Error> {
        let now = self.events.now();
        let pieces = self.pieces(device);
        let Some(units) = &mut self.devices[device].units else { return Ok(()) };
        let wave = units.wave;
        let began = units.wave_started;
        if units.sections.iter().all(|section| section.chunk.is_none()) {
            // Near-memory updates and remote stores bypass the cache; plain stores do not.
            units.plan.keep_outputs(wave);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.wave(device, wave, began, now);
        }
        for piece in pieces {
            self.store(device, piece);
        }
        self.start_wave(device, wave + 1)
    }

    fn pieces(&self, device: usize) -> Vec<Piece> {
        let Device { units: Some(units), trackers } = Device::of(self, device) else { return vec![] };
        let mut pieces = Vec::new();
        for tile in units.plan.wave(units.wave) {
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

    fn store(&mut self, device: usize, piece: Piece) {
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
                self.expect_store(device);
                let tag = Tag::Stored(at, piece.bytes);
                self.request(device, Request { kind, stream: Stream::Compute, bytes: piece.bytes, tag });
            }
            Store::Remote(to) => {
                let relative = seen_from(relative, to, self.divided.devices);
                let payload = Payload::Block(BlockAt { relative, block: piece.block });
                let mut left = piece.bytes;
                while left > 0 {
                    let bytes = left.min(self.system.link.packet);
                    left -= bytes;
                    self.expect_store(device);
                    let origin = Origin::Producer;
                    self.send(device, Packet { to, payload, op, bytes, origin });
                }
            }
        }
    }

    fn expect_store(&mut self, device: usize) {
        if let Some(units) = &mut self.devices[device].units {
            units.stores += 1;
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
