//! The producer's output address space: where the stores of each chunk go, what the tracker counts
//! and what the last update triggers (T3 paper, section 4.2: `remote_map` and `dma_map`).

use serde::{Deserialize, Serialize};

use crate::{Algorithm, CollectiveKind, ring};

/// Where the producer's stores of a chunk land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// In the producing device's own memory.
    Local,
    /// In the memory of the device at distance `+k` in the group.
    Remote(u32),
}

/// What a store does at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Overwrites.
    Store,
    /// Adds: the first arrival of an epoch stores, later ones add, so nothing is zeroed beforehand.
    Update,
}

/// What the update that meets the threshold sets off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Nothing: the chunk is not tracked here.
    None,
    /// A transfer of the block to the device at distance `to`.
    Dma {
        /// Distance `+k` in the group.
        to: u32,
        /// What the transfer does at its destination.
        op: Op,
    },
    /// The owner adds the contributions in their slots, in ring order.
    Reduce,
    /// The block is final.
    Done,
}

/// One chunk of a fused producer's output, in terms of the executing device's coordinate `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chunk {
    /// The chunk's index is `(d + relative) mod devices`.
    pub relative: u32,
    /// Where the producer's stores go.
    pub store: Store,
    /// What they do there.
    pub op: Op,
    /// Updates an element that the tracker expects; 0 when the chunk is not tracked here.
    pub threshold: u32,
    /// What meeting the threshold does.
    pub trigger: Trigger,
}

impl Chunk {
    /// The index of the chunk on `device`.
    pub fn index(&self, device: u32, devices: u32) -> u32 {
        (device + self.relative) % devices
    }
}

/// The address space of a producer followed by a ring reduce-scatter, in production order.
///
/// The chunk produced first is stored in the neighbour's memory and not tracked here; the chunks in
/// the middle are tracked (one local and one incoming update an element) and sent on by DMA; the
/// device's own chunk comes last and is done at its second update.
pub fn configure_ring_reduce_scatter(devices: u32) -> Vec<Chunk> {
    let to = ring::neighbour_distance(devices);
    (0..devices)
        .map(|step| {
            let relative = ring::produced_chunk(0, step, devices);
            let (store, threshold, trigger) = match step {
                _ if devices == 1 => (Store::Local, 1, Trigger::Done),
                0 => (Store::Remote(to), 0, Trigger::None),
                _ if step + 1 == devices => (Store::Local, 2, Trigger::Done),
                _ => (Store::Local, 2, Trigger::Dma { to, op: Op::Update }),
            };
            Chunk { relative, store, op: Op::Update, threshold, trigger }
        })
        .collect()
}

/// The address space of a producer whose every chunk goes straight to its owner: `N` slots there, which the owner
/// adds in ring order once all are filled.
///
/// Production is staggered as on the ring, so that no two devices store to one owner at the same time.
pub fn configure_direct_reduce_scatter(devices: u32) -> Vec<Chunk> {
    direct(devices, Trigger::Reduce)
}

/// The address space of a producer followed by an all-to-all: piece `d + k` is stored at device `d + k`, in the
/// slot of its sender. A device is done when one piece of every device has arrived.
pub fn configure_all_to_all(devices: u32) -> Vec<Chunk> {
    direct(devices, Trigger::Done)
}

fn direct(devices: u32, last: Trigger) -> Vec<Chunk> {
    (0..devices)
        .map(|step| match ring::produced_chunk(0, step, devices) {
            0 => {
                let trigger = if devices == 1 { Trigger::Done } else { last };
                Chunk { relative: 0, store: Store::Local, op: Op::Store, threshold: devices, trigger }
            }
            relative => Chunk {
                relative,
                store: Store::Remote(relative),
                op: Op::Store,
                threshold: 0,
                trigger: Trigger::None,
            },
        })
        .collect()
}

/// The address space of a producer followed by a collective; `None` for collectives that none feeds chunk by chunk.
pub fn configure_address_space(
    kind: CollectiveKind,
    algorithm: Algorithm,
    devices: u32,
) -> Option<Vec<Chunk>> {
    match (kind, algorithm) {
        (CollectiveKind::ReduceScatter, Algorithm::Ring) => Some(configure_ring_reduce_scatter(devices)),
        (CollectiveKind::ReduceScatter, Algorithm::Direct) => Some(configure_direct_reduce_scatter(devices)),
        (CollectiveKind::AllToAll, _) => Some(configure_all_to_all(devices)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_stores_go_to_the_owner_and_the_owner_comes_last() {
        let chunks = configure_direct_reduce_scatter(3);
        assert_eq!(
            chunks.iter().map(|c| c.store).collect::<Vec<_>>(),
            [Store::Remote(1), Store::Remote(2), Store::Local]
        );
        assert_eq!((chunks[2].threshold, chunks[2].trigger), (3, Trigger::Reduce));
        assert_eq!(configure_all_to_all(3)[2].trigger, Trigger::Done);
        assert_eq!(configure_address_space(CollectiveKind::AllReduce, Algorithm::Ring, 3), None);
    }

    #[test]
    fn four_devices_as_in_the_paper() {
        let chunks = configure_ring_reduce_scatter(4);
        assert_eq!(chunks.iter().map(|c| c.relative).collect::<Vec<_>>(), [1, 2, 3, 0]);
        assert_eq!(chunks[0].store, Store::Remote(3));
        assert_eq!(chunks[0].trigger, Trigger::None);
        assert_eq!(chunks[1].trigger, Trigger::Dma { to: 3, op: Op::Update });
        assert_eq!(chunks[3].trigger, Trigger::Done);
    }
}
