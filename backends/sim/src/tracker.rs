//! The trackers of one device: how much of each block has arrived, and what the hardware holds of it.
//!
//! A trigger belongs to a block of the schedule; the hardware counts the tiles of the producer's
//! work-groups, in a table of sets and ways. A tile needs a place from its first update to its last.
//! Both the producer and the transfers go through a block in the same order, so the tiles in
//! between are those by which one is ahead of the other. What the table does not hold waits in memory:
//! its counters are written there and read back, and its triggers come a memory access later.

use t3c_schedule::{Chunk, Store, Trigger, chunks::blocks};

use crate::{
    Error,
    system::System,
    workload::{AddressSpace, Divided, Output},
};

/// One block of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockAt {
    /// The chunk, as the device counts.
    pub relative: u32,
    pub block: u32,
}

/// Where an update comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Producer,
    Link,
}

#[derive(Clone, Copy, Debug)]
struct Tracker {
    /// Bytes of the producer, and bytes from the links.
    local: u64,
    incoming: u64,
    expected: u64,
    bytes: u64,
    /// Tiles that have a place in the table.
    tiles: u64,
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// The threshold is met.
    pub is_met: bool,
    /// Tiles whose counters went to memory.
    pub spilled: u64,
    /// The table is full: this block's counters may be in memory.
    pub is_full: bool,
}

#[derive(Clone, Copy)]
struct ChunkTracking {
    trigger: Trigger,
    /// Contributions of an element that arrive over links.
    arrivals: u64,
    has_local: bool,
}

/// All trackers of one device.
pub(crate) struct Trackers {
    /// By relative chunk, then block.
    trackers: Vec<Vec<Tracker>>,
    chunks: Vec<ChunkTracking>,
    index_bytes: u64,
    block: u64,
    tile_bytes: u64,
    capacity: u64,
    live: u64,
    /// The most tiles that were in between at a time.
    pub peak: u64,
    /// Blocks that fired.
    pub fired: u64,
}

impl Trackers {
    pub fn new(
        space: &AddressSpace,
        divided: &Divided,
        device: u32,
        output: &Output,
        system: &System,
    ) -> Self {
        let devices = divided.devices as usize;
        let mut trackers = vec![Vec::new(); devices];
        let untracked = ChunkTracking { trigger: Trigger::None, arrivals: 0, has_local: false };
        let mut chunks = vec![untracked; devices];
        for &Chunk { relative, store, threshold, trigger, .. } in &space.chunks {
            let slot = relative as usize % devices;
            let has_local = store == Store::Local;
            let arrivals = u64::from(threshold).saturating_sub(u64::from(has_local));
            chunks[slot] = ChunkTracking { trigger, arrivals, has_local };
            if trigger == Trigger::None {
                continue;
            }
            trackers[slot] = blocks(divided.range(device, relative), space.block)
                .map(|range| {
                    let bytes = (range.end - range.start) * divided.index_bytes;
                    let expected = bytes * u64::from(threshold);
                    Tracker { local: 0, incoming: 0, expected, bytes, tiles: 0 }
                })
                .collect();
        }
        let compute = &system.compute;
        let tile = compute.tile_rows.saturating_mul(compute.tile_columns);
        let counters = system.trigger.tracker_entries.saturating_mul(system.trigger.tracker_ways);
        Self {
            trackers,
            chunks,
            index_bytes: divided.index_bytes,
            block: space.block,
            tile_bytes: tile.saturating_mul(output.element_bytes).max(1),
            capacity: (counters / compute.wavefronts_per_workgroup).max(1),
            live: 0,
            peak: 0,
            fired: 0,
        }
    }

    /// What meeting the threshold of a block does, the block's bytes, and the parts that its reduction
    /// or, in software, its transfer reads.
    pub fn trigger(&self, at: BlockAt, is_summed_in_network: bool) -> (Trigger, u64, u64) {
        let bytes = self.get(at).map_or(0, |tracker| tracker.bytes);
        let ChunkTracking { trigger, arrivals, has_local } = self.chunks[at.relative as usize];
        let arrivals = if is_summed_in_network { arrivals.min(1) } else { arrivals };
        (trigger, bytes, arrivals + u64::from(has_local))
    }

    /// Contributions of an element of `relative` that arrive over links.
    pub fn arrivals(&self, relative: u32) -> u64 {
        self.chunks.get(relative as usize).map_or(1, |chunk| chunk.arrivals)
    }

    /// The blocks that rows `start..end` of a chunk touch, with the rows in each. Rows are counted
    /// from the chunk's start, `inner` to an index.
    pub fn pieces(&self, start: u64, end: u64, inner: u64) -> impl Iterator<Item = (u32, u64)> + use<> {
        let block_rows = self.block.saturating_mul(inner).max(1);
        (start / block_rows..end.div_ceil(block_rows)).map(move |block| {
            let first = block * block_rows;
            let rows = end.min(first.saturating_add(block_rows)) - start.max(first);
            (block as u32, rows)
        })
    }

    fn get(&self, at: BlockAt) -> Option<&Tracker> {
        self.trackers.get(at.relative as usize)?.get(at.block as usize)
    }

    /// Counts an update. An error names what overflows it.
    pub fn update(&mut self, at: BlockAt, bytes: u64, from: From) -> Result<Counted, BlockAt> {
        let arrivals = self.arrivals(at.relative);
        let (tile_bytes, has_local) =
            (self.tile_bytes, self.chunks.get(at.relative as usize).is_some_and(|chunk| chunk.has_local));
        let chunk = self.trackers.get_mut(at.relative as usize);
        let Some(tracker) = chunk.and_then(|blocks| blocks.get_mut(at.block as usize)) else {
            // An untracked chunk: its updates set nothing off.
            return Ok(Counted::default());
        };
        match from {
            From::Producer => tracker.local += bytes,
            From::Link => tracker.incoming += bytes,
        }
        let received = tracker.local + tracker.incoming;
        if received > tracker.expected {
            return Err(at);
        }
        let is_met = received == tracker.expected;
        let came = tracker.incoming / arrivals.max(1);
        let between = match is_met {
            true => 0,
            false if has_local && arrivals > 0 => tracker.local.abs_diff(came).div_ceil(tile_bytes).max(1),
            false => 1,
        };
        let before = std::mem::replace(&mut tracker.tiles, between);
        self.live = self.live + between - before;
        self.peak = self.peak.max(self.live);
        self.fired += u64::from(is_met);
        let is_full = self.live > self.capacity;
        let spilled = (self.live.saturating_sub(self.capacity)).min(between.saturating_sub(before));
        Ok(Counted { is_met, spilled, is_full })
    }

    /// Tiles in between now.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Blocks in all.
    pub fn len(&self) -> u64 {
        self.trackers.iter().map(|blocks| blocks.len() as u64).sum()
    }

    /// The trackers that have not met their thresholds, in words.
    pub fn waiting(&self, device: usize) -> Vec<String> {
        let mut waiting = Vec::new();
        for (relative, blocks) in self.trackers.iter().enumerate() {
            for (block, tracker) in blocks.iter().enumerate() {
                let received = tracker.local + tracker.incoming;
                if received < tracker.expected {
                    let indices = tracker.bytes / self.index_bytes.max(1);
                    let of = tracker.expected / tracker.bytes.max(1);
                    let received = received / tracker.bytes.max(1);
                    waiting.push(format!(
                        "device {device}, chunk +{relative}, block {block} ({indices} indices) has {received} of {of} updates"
                    ));
                }
            }
        }
        waiting
    }
}

/// Names the place of an overrun.
pub(crate) fn overrun(device: usize, at: BlockAt) -> Error {
    Error::Overrun { location: String::new(), device, relative: at.relative, block: at.block as usize }
}
