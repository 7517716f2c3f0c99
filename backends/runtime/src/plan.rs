//! The address space of a fused step, read once and checked, in the form in which the protocol uses it:
//! for each chunk where the producer stores, what its tracker expects, what is added in which order,
//! and where the sum goes.
//!
//! Everything follows from the schedule's list of [`Chunk`]s. All devices have the same list in terms
//! of their coordinate, so what arrives at a device follows from it too: a store or transfer to `+k`
//! of the chunk at `relative` arrives, seen from the receiver, from distance `k` at `relative − k`.

use std::ops::Range;

use t3c_schedule::{Chunk, Fused, Reduction, Store, Trigger, ring};

use crate::layout::{Cut, block_count, block_range};
use crate::{Error, StepKey};

/// A fused step as the runtime needs it: sizes and address space.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedSpec {
    /// Which step of which program.
    pub key: StepKey,
    /// Grid axes of the group.
    pub axes: Vec<usize>,
    /// The shape of the whole partial value.
    pub shape: Vec<u64>,
    /// The dimension that is divided into chunks.
    pub dimension: usize,
    /// Indices along `dimension` that one trigger moves.
    pub block: u64,
    /// How contributions are combined.
    pub reduction: Reduction,
    /// The address space, in production order.
    pub chunks: Vec<Chunk>,
}

impl FusedSpec {
    /// The part of a schedule's fused step that concerns the runtime.
    pub fn of(key: StepKey, fused: &Fused) -> Self {
        FusedSpec {
            key,
            axes: fused.collective.axes.clone(),
            shape: fused.shape.clone(),
            dimension: fused.dimension,
            block: fused.block,
            reduction: fused.collective.reduction,
            chunks: fused.chunks.clone(),
        }
    }
}

/// A stream of blocks into a device: one slot of each parity a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The chunk that it carries is `(receiver + relative) mod devices`.
    pub relative: u32,
    /// The sender is `(receiver − distance) mod devices`.
    pub distance: u32,
}

/// One summand of a chunk at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What the device's own producer stored.
    Local,
    /// What arrived on a channel.
    Incoming(usize),
}

/// Where a chunk goes from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The producer stores it in the memory of the device at distance `to`, on that device's channel.
    Remote {
        /// Distance.
        to: u32,
        /// The receiver's channel.
        channel: usize,
    },
    /// Once complete, its sum is sent to the device at distance `to`.
    Forward {
        /// Distance.
        to: u32,
        /// The receiver's channel.
        channel: usize,
    },
    /// Once complete, its sum is the device's result.
    Result,
}

/// One chunk at a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The chunk's index is `(device + relative) mod devices`.
    pub relative: u32,
    /// Updates of each block that the tracker expects.
    pub threshold: u64,
    /// The summands, in the order of addition.
    pub sources: Vec<Source>,
    /// Where it goes.
    pub outcome: Outcome,
}

/// A fused step's address space, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The step.
    pub key: StepKey,
    /// Devices of a group.
    pub devices: u32,
    /// The partial value around the divided dimension.
    pub cut: Cut,
    /// Indices that one trigger moves.
    pub block: usize,
    /// How contributions are combined.
    pub reduction: Reduction,
    /// The chunks, in production order.
    pub entries: Vec<Entry>,
    /// What arrives at each device.
    pub channels: Vec<Channel>,
    /// For each `relative`, its place in `entries`.
    position: Vec<usize>,
}

impl Plan {
    /// Reads and checks `spec` for groups of `devices`.
    pub fn new(spec: &FusedSpec, devices: u32) -> Result<Plan, Error> {
        let shape = |reason: String| Error::Shape { step: spec.key, reason };
        let cut = Cut::of(&spec.shape, spec.dimension).ok_or_else(|| {
            shape(format!("cannot divide dimension {} of a value of shape {:?}", spec.dimension, spec.shape))
        })?;
        let block = usize::try_from(spec.block).ok().filter(|&block| block > 0);
        let block = block.ok_or_else(|| shape(format!("a block of {} indices", spec.block)))?;
        let mut plan = Plan {
            key: spec.key,
            devices,
            cut,
            block,
            reduction: spec.reduction,
            entries: Vec::new(),
            channels: Vec::new(),
            position: positions(&spec.chunks, devices).map_err(|reason| plan_error(spec.key, reason))?,
        };
        plan.channels = channels(&spec.chunks, devices);
        plan.entries = spec
            .chunks
            .iter()
            .map(|chunk| plan.entry(chunk))
            .collect::<Result<_, String>>()
            .map_err(|reason| plan_error(spec.key, reason))?;
        plan.check_contributions().map_err(|reason| plan_error(spec.key, reason))?;
        Ok(plan)
    }

    /// The index of the entry's chunk on the device at `position` in its group.
    pub fn chunk(&self, device: u32, entry: usize) -> u32 {
        (device + self.entries[entry].relative) % self.devices
    }

    /// The indices of the entry's chunk.
    pub fn chunk_range(&self, device: u32, entry: usize) -> Range<usize> {
        self.cut.chunk(self.devices, self.chunk(device, entry))
    }

    /// Blocks of the entry's chunk.
    pub fn blocks(&self, device: u32, entry: usize) -> usize {
        block_count(self.chunk_range(device, entry).len(), self.block)
    }

    /// The indices of a block, within its chunk.
    pub fn block_in_chunk(&self, device: u32, entry: usize, block: usize) -> Range<usize> {
        block_range(self.chunk_range(device, entry).len(), self.block, block)
    }

    /// The entry of the device's own chunk, whose sum is the result.
    pub fn own_entry(&self) -> usize {
        self.position[0]
    }

    /// The entries that are summed on the device itself.
    pub fn tracked(&self) -> impl Iterator<Item = usize> {
        let tracked = |&entry: &usize| !matches!(self.entries[entry].outcome, Outcome::Remote { .. });
        (0..self.entries.len()).filter(tracked)
    }

    /// Elements of a block.
    pub fn block_elements(&self, device: u32, entry: usize, block: usize) -> usize {
        self.cut.elements_of(self.block_in_chunk(device, entry, block).len())
    }

    /// The entry of what arrives on `channel`.
    pub fn entry_of(&self, channel: usize) -> usize {
        self.position[self.channels[channel].relative as usize]
    }

    /// The device at distance `to` from `device`.
    pub fn at_distance(&self, device: u32, to: u32) -> u32 {
        (device + to) % self.devices
    }

    /// The device that sends on `channel` of `receiver`.
    pub fn sender(&self, receiver: u32, channel: usize) -> u32 {
        (receiver + self.devices - self.channels[channel].distance) % self.devices
    }

    fn entry(&self, chunk: &Chunk) -> Result<Entry, String> {
        let hop = |to: u32| -> Result<(u32, usize), String> {
            let seen = (1..self.devices).contains(&to).then(|| Channel {
                relative: (chunk.relative + self.devices - to) % self.devices,
                distance: to,
            });
            let channel = seen.and_then(|seen| self.channels.iter().position(|&channel| channel == seen));
            Ok((to, channel.ok_or_else(|| format!("no device receives a transfer to +{to}"))?))
        };
        let mut sources = Vec::new();
        let incoming = self.channels.iter().enumerate().filter(|(_, way)| way.relative == chunk.relative);
        sources.extend(incoming.map(|(index, _)| Source::Incoming(index)));
        let outcome = match (chunk.store, chunk.trigger) {
            (Store::Remote(to), Trigger::None) => {
                let (to, channel) = hop(to)?;
                Outcome::Remote { to, channel }
            }
            (_, Trigger::None) => return Err(format!("chunk +{} has no trigger", chunk.relative)),
            (_, Trigger::Dma { to, .. }) => {
                let (to, channel) = hop(to)?;
                Outcome::Forward { to, channel }
            }
            (_, Trigger::Reduce | Trigger::Done) => Outcome::Result,
        };
        if let (Store::Remote(_), Outcome::Forward { .. } | Outcome::Result) = (chunk.store, outcome) {
            return Err(format!("chunk +{} is stored remotely and tracked", chunk.relative));
        }
        if chunk.store == Store::Local {
            sources.push(Source::Local);
        }
        if sources.len() as u32 != chunk.threshold {
            return Err(format!(
                "chunk +{} has threshold {}, but {} updates arrive",
                chunk.relative,
                chunk.threshold,
                sources.len()
            ));
        }
        self.sort(chunk.relative, &mut sources);
        Ok(Entry { relative: chunk.relative, threshold: u64::from(chunk.threshold), sources, outcome })
    }

    /// Sorts a chunk's summands by the place of their senders in the order of addition.
    fn sort(&self, relative: u32, sources: &mut [Source]) {
        sources.sort_by_key(|source| {
            let sender = match source {
                Source::Local => 0,
                Source::Incoming(channel) => self.sender(0, *channel),
            };
            ring::addition_order(relative, self.devices).position(|device| device == sender)
        });
    }

    /// One result, the device's own chunk, to which every device contributes once, added as
    /// `ring::addition_order` says.
    fn check_contributions(&self) -> Result<(), String> {
        let results = self.entries.iter().filter(|entry| entry.outcome == Outcome::Result);
        if results.map(|entry| entry.relative).ne([0]) {
            return Err("the device's own chunk, and no other, must end in `done` or `reduce`".to_string());
        }
        let mut order = Vec::new();
        self.collect_contributions(0, self.own_entry(), &mut order)?;
        if !order.iter().copied().eq(ring::addition_order(0, self.devices)) {
            return Err(format!("contributions are added in the order {order:?} of devices"));
        }
        Ok(())
    }

    fn collect_contributions(&self, device: u32, entry: usize, order: &mut Vec<u32>) -> Result<(), String> {
        for (place, source) in self.entries[entry].sources.iter().enumerate() {
            if order.len() >= self.devices as usize {
                return Err("a contribution arrives twice".to_string());
            }
            let Source::Incoming(channel) = *source else {
                order.push(device);
                continue;
            };
            let sender = self.sender(device, channel);
            let chunk = (device + self.entries[entry].relative) % self.devices;
            let from = self.position[((chunk + self.devices - sender) % self.devices) as usize];
            match self.entries[from].outcome {
                Outcome::Remote { .. } => order.push(sender),
                Outcome::Forward { .. } if place == 0 => self.collect_contributions(sender, from, order)?,
                _ => return Err("a partial sum is not the first summand".to_string()),
            }
        }
        Ok(())
    }
}

fn plan_error(step: StepKey, reason: String) -> Error {
    Error::AddressSpace { step, reason }
}

/// Where each `relative` stands in production order: each chunk exactly once.
fn positions(chunks: &[Chunk], devices: u32) -> Result<Vec<usize>, String> {
    if devices == 0 || chunks.len() != devices as usize {
        return Err(format!("{} chunks for {devices} devices", chunks.len()));
    }
    let mut position = vec![usize::MAX; chunks.len()];
    for (index, chunk) in chunks.iter().enumerate() {
        match position.get_mut(chunk.relative as usize) {
            Some(place) if *place == usize::MAX => *place = index,
            _ => return Err(format!("chunk +{} is produced twice or does not exist", chunk.relative)),
        }
    }
    Ok(position)
}

/// Every stream that arrives at a device.
fn channels(chunks: &[Chunk], devices: u32) -> Vec<Channel> {
    let mut channels = Vec::new();
    for chunk in chunks {
        let store = match chunk.store {
            Store::Remote(to) => Some(to),
            Store::Local => None,
        };
        let trigger = match chunk.trigger {
            Trigger::Dma { to, .. } => Some(to),
            _ => None,
        };
        for distance in [store, trigger].into_iter().flatten().filter(|to| (1..devices).contains(to)) {
            let relative = (chunk.relative + devices - distance) % devices;
            channels.push(Channel { relative, distance });
        }
    }
    channels
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use t3c_schedule::{Op, configure_ring_reduce_scatter};

    fn spec(chunks: Vec<Chunk>) -> FusedSpec {
        FusedSpec {
            key: StepKey { program: 0, step: 0 },
            axes: vec![0],
            shape: vec![12, 3],
            dimension: 0,
            block: 2,
            reduction: Reduction::Sum,
            chunks,
        }
    }

    /// Every device stores its contributions with the owner, which reduces.
    pub(crate) fn direct(devices: u32) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = (1..devices)
            .map(|relative| Chunk {
                relative,
                store: Store::Remote(relative),
                op: Op::Store,
                threshold: 0,
                trigger: Trigger::None,
            })
            .collect();
        let trigger = Trigger::Reduce;
        chunks.push(Chunk { relative: 0, store: Store::Local, op: Op::Store, threshold: devices, trigger });
        chunks
    }

    #[test]
    fn rings_and_direct_maps_are_accepted() {
        for devices in 1..9 {
            let ring = Plan::new(&spec(configure_ring_reduce_scatter(devices)), devices).unwrap();
            assert_eq!(ring.channels.len(), devices as usize - 1);
            let direct = Plan::new(&spec(direct(devices)), devices).unwrap();
            assert_eq!(direct.entries[direct.own_entry()].sources.len(), devices as usize);
        }
    }

    #[test]
    fn the_incoming_sum_comes_first() {
        let plan = Plan::new(&spec(configure_ring_reduce_scatter(3)), 3).unwrap();
        assert!(matches!(plan.entries[1].sources[..], [Source::Incoming(_), Source::Local]));
        assert!(matches!(plan.entries[2].sources[..], [Source::Incoming(_), Source::Local]));
    }

    #[test]
    fn broken_maps_are_refused_with_a_reason() {
        let reason = |change: fn(&mut Vec<Chunk>)| {
            let mut chunks = configure_ring_reduce_scatter(4);
            change(&mut chunks);
            Plan::new(&spec(chunks), 4).unwrap_err().to_string()
        };
        assert!(reason(|chunks| chunks[1].threshold = 3).contains("threshold 3, but 2 updates"));
        assert!(reason(|chunks| chunks[2].relative = 1).contains("produced twice"));
        assert!(
            reason(|chunks| chunks[0].store = Store::Remote(9))
                .contains("no device receives a transfer to +9")
        );
        assert!(reason(|chunks| chunks[1].trigger = Trigger::Done).contains("updates arrive"));
        assert!(reason(|chunks| chunks.truncate(3)).contains("3 chunks for 4 devices"));
        assert!(reason(|chunks| chunks[3].trigger = Trigger::None).contains("no trigger"));
    }
}
