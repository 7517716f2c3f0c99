//! The trackers of one device: how much of each block has arrived.

use t3c_schedule::{Chunk, Trigger, chunks::blocks};

use crate::{
    Error,
    workload::{AddressSpace, Divided},
};

/// One block of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockAt {
    /// The chunk, as the device counts.
    pub relative: u32,
    pub block: u32,
}

#[derive(Clone, Copy, Debug)]
struct Tracker {
    received: u64,
    expected: u64,
    bytes: u64,
}

/// All trackers of one device.
pub(crate) struct Trackers {
    /// By relative chunk, then block.
    trackers: Vec<Vec<Tracker>>,
    triggers: Vec<Trigger>,
    index_bytes: u64,
    block: u64,
    live: u64,
    /// The most blocks that were partly filled at a time.
    pub peak: u64,
    /// Blocks that fired.
    pub fired: u64,
}

impl Trackers {
    pub fn new(space: &AddressSpace, divided: &Divided, device: u32) -> Self {
        let devices = divided.devices as usize;
        let mut trackers = vec![Vec::new(); devices];
        let mut triggers = vec![Trigger::None; devices];
        for &Chunk { relative, threshold, trigger, .. } in &space.chunks {
            let slot = relative as usize % devices;
            triggers[slot] = trigger;
            if trigger == Trigger::None {
                continue;
            }
            trackers[slot] = blocks(divided.range(device, relative), space.block)
                .map(|range| {
                    let bytes = (range.end - range.start) * divided.index_bytes;
                    Tracker { received: 0, expected: bytes * u64::from(threshold), bytes }
                })
                .collect();
        }
        let index_bytes = divided.index_bytes;
        Self { trackers, triggers, index_bytes, block: space.block, live: 0, peak: 0, fired: 0 }
    }

    /// What meeting the threshold of a block does, and the block's bytes.
    pub fn trigger(&self, at: BlockAt) -> (Trigger, u64) {
        let bytes = self.get(at).map_or(0, |tracker| tracker.bytes);
        (self.triggers[at.relative as usize], bytes)
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

    /// Counts an update. `Ok(true)` when it meets the threshold; an error names what overflows it.
    pub fn update(&mut self, at: BlockAt, bytes: u64) -> Result<bool, BlockAt> {
        let chunk = self.trackers.get_mut(at.relative as usize);
        let Some(tracker) = chunk.and_then(|blocks| blocks.get_mut(at.block as usize)) else {
            // An untracked chunk: its updates set nothing off.
            return Ok(false);
        };
        if tracker.received == 0 {
            self.live += 1;
            self.peak = self.peak.max(self.live);
        }
        tracker.received += bytes;
        if tracker.received > tracker.expected {
            return Err(at);
        }
        let is_met = tracker.received == tracker.expected;
        if is_met {
            self.live -= 1;
            self.fired += 1;
        }
        Ok(is_met)
    }

    /// Blocks partly filled now.
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
                if tracker.received < tracker.expected {
                    let indices = tracker.bytes / self.index_bytes.max(1);
                    let of = tracker.expected / tracker.bytes.max(1);
                    let received = tracker.received / tracker.bytes.max(1);
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
