//! The invariants of an address space: what must hold so that the stores of a producer, their
//! trackers and their triggers together perform a reduce-scatter.
//!
//! One function each, pure arithmetic on the map and the number of devices. The map is the same on
//! every device, in terms of its coordinate, so following one chunk around the group says everything.

use crate::{AddressSpaceError, Chunk, Fused, Op, StepError, Store, Trigger, chunks::chunk_range};

/// Checks everything below: the map performs a reduce-scatter over `devices` devices.
pub fn verify_address_space(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    chunks_partition_the_output(chunks, devices)?;
    distances_stay_in_the_group(chunks, devices)?;
    first_chunk_is_not_tracked(chunks, devices)?;
    transfers_do_not_wait_for_themselves(chunks, devices)?;
    contributions_arrive_once(chunks, devices)?;
    thresholds_equal_arrivals(chunks, devices)
}

/// Checks that the map performs an all-to-all: every piece is stored once, at its owner, in a slot of its own,
/// and the owner is done when one piece of every device has arrived.
pub fn verify_exchange(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    chunks_partition_the_output(chunks, devices)?;
    distances_stay_in_the_group(chunks, devices)?;
    for chunk in chunks {
        let relative = chunk.relative;
        if chunk.op == Op::Update {
            return Err(AddressSpaceError::Added { relative });
        }
        match chunk.trigger {
            Trigger::Dma { .. } | Trigger::Reduce => return Err(AddressSpaceError::Forwarded { relative }),
            _ if landing(chunk, devices) != 0 => {
                return Err(AddressSpaceError::ContributionMissing { relative });
            }
            Trigger::Done if relative != 0 => return Err(AddressSpaceError::WrongOwner { relative }),
            Trigger::None if relative == 0 => return Err(AddressSpaceError::Owners { owners: 0 }),
            _ => {}
        }
    }
    thresholds_equal_arrivals(chunks, devices)
}

/// Each of the group's chunks is produced exactly once.
pub fn chunks_partition_the_output(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    if devices == 0 {
        return Err(AddressSpaceError::NoDevices);
    }
    if chunks.len() as u64 != u64::from(devices) {
        return Err(AddressSpaceError::WrongCount { entries: chunks.len(), devices });
    }
    let mut seen = vec![false; devices as usize];
    for &Chunk { relative, .. } in chunks {
        match seen.get_mut(relative as usize) {
            None => return Err(AddressSpaceError::ChunkOutOfRange { relative, devices }),
            Some(true) => return Err(AddressSpaceError::ProducedTwice { relative }),
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// Remote stores and transfers go to another device of the group.
pub fn distances_stay_in_the_group(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    for chunk in chunks {
        let stored = if let Store::Remote(distance) = chunk.store { Some(distance) } else { None };
        let sent = if let Trigger::Dma { to, .. } = chunk.trigger { Some(to) } else { None };
        for distance in stored.into_iter().chain(sent) {
            if distance == 0 || distance >= devices {
                return Err(AddressSpaceError::DistanceOutOfRange {
                    relative: chunk.relative,
                    distance,
                    devices,
                });
            }
        }
    }
    Ok(())
}

/// Nothing arrives for the chunk that is produced first: its stores are themselves the transfer.
pub fn first_chunk_is_not_tracked(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    match chunks.first() {
        Some(first) if devices > 1 && (first.threshold != 0 || first.trigger != Trigger::None) => {
            Err(AddressSpaceError::FirstTracked { relative: first.relative })
        }
        _ => Ok(()),
    }
}

/// No transfer waits, around the group, for its own arrival.
pub fn transfers_do_not_wait_for_themselves(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    let by_relative = by_relative(chunks, devices)?;
    for start in chunks {
        let mut relative = start.relative;
        for _ in 0..devices {
            let Trigger::Dma { to, .. } = by_relative[relative as usize].trigger else { break };
            relative = seen_from(relative, to, devices);
            if relative == start.relative {
                return Err(AddressSpaceError::CycleOfWaits { relative });
            }
        }
    }
    Ok(())
}

/// Each device ends with its own chunk, and every device's contribution reaches it along one path.
pub fn contributions_arrive_once(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    let by_relative = by_relative(chunks, devices)?;
    let is_owner = |chunk: &&Chunk| matches!(chunk.trigger, Trigger::Done | Trigger::Reduce);
    let owners: Vec<&Chunk> = chunks.iter().filter(is_owner).collect();
    match owners[..] {
        [Chunk { relative: 0, .. }] => {}
        [Chunk { relative, .. }] => return Err(AddressSpaceError::WrongOwner { relative: *relative }),
        _ => return Err(AddressSpaceError::Owners { owners: owners.len() }),
    }
    for chunk in chunks {
        let mut at = landing(chunk, devices);
        let mut hops = 0;
        while let Trigger::Dma { to, .. } = by_relative[at as usize].trigger {
            at = seen_from(at, to, devices);
            hops += 1;
            if hops > devices {
                return Err(AddressSpaceError::CycleOfWaits { relative: at });
            }
        }
        if at != 0 {
            return Err(AddressSpaceError::ContributionMissing { relative: chunk.relative });
        }
    }
    no_contribution_is_overwritten(chunks, devices)
}

/// Where several contributions meet in one place, all of them add.
fn no_contribution_is_overwritten(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    let arrivals = arrivals(chunks, devices)?;
    let meets_others = |at: u32| {
        let target = chunks.iter().find(|chunk| chunk.relative == at);
        arrivals[at as usize] > 1 && target.is_some_and(|chunk| chunk.trigger != Trigger::Reduce)
    };
    for chunk in chunks {
        let stored = (landing(chunk, devices), chunk.op);
        let sent = match chunk.trigger {
            Trigger::Dma { to, op } => Some((seen_from(chunk.relative, to, devices), op)),
            _ => None,
        };
        for (at, op) in std::iter::once(stored).chain(sent) {
            if op == Op::Store && meets_others(at) {
                return Err(AddressSpaceError::Overwritten { relative: at, arrivals: arrivals[at as usize] });
            }
        }
    }
    Ok(())
}

/// A tracked element receives exactly its threshold of updates; an untracked one none.
pub fn thresholds_equal_arrivals(chunks: &[Chunk], devices: u32) -> Result<(), AddressSpaceError> {
    let arrivals = arrivals(chunks, devices)?;
    for &Chunk { relative, threshold, trigger, .. } in chunks {
        let arrivals = arrivals[relative as usize];
        if trigger == Trigger::None && arrivals > 0 {
            return Err(AddressSpaceError::Lost { relative, arrivals });
        }
        if threshold != arrivals {
            return Err(AddressSpaceError::WrongThreshold { relative, threshold, arrivals });
        }
    }
    Ok(())
}

/// Updates that an element of each chunk receives on a device, by relative number.
pub fn arrivals(chunks: &[Chunk], devices: u32) -> Result<Vec<u32>, AddressSpaceError> {
    chunks_partition_the_output(chunks, devices)?;
    let mut arrivals = vec![0; devices as usize];
    for chunk in chunks {
        arrivals[landing(chunk, devices) as usize] += 1;
        if let Trigger::Dma { to, .. } = chunk.trigger {
            arrivals[seen_from(chunk.relative, to, devices) as usize] += 1;
        }
    }
    Ok(arrivals)
}

/// Every tracked block of every device fires exactly once an epoch.
pub fn tracked_blocks_fire_once(fused: &Fused, devices: u32) -> Result<(), StepError> {
    if fused.block == 0 {
        return Err(StepError::EmptyBlock);
    }
    let arrivals = arrivals(&fused.chunks, devices)?;
    let extent = *fused
        .shape
        .get(fused.dimension)
        .ok_or(StepError::NoDimension { dimension: fused.dimension, rank: fused.shape.len() })?;
    for chunk in fused.chunks.iter().filter(|chunk| chunk.trigger != Trigger::None) {
        for device in 0..devices {
            let range = chunk_range(extent, devices, chunk.index(device, devices));
            for (block, indices) in crate::chunks::blocks(range, fused.block).enumerate() {
                let size = indices.end - indices.start;
                let expected = u64::from(chunk.threshold) * size;
                let received = u64::from(arrivals[chunk.relative as usize]) * size;
                let fired = received.checked_div(expected).unwrap_or(0);
                if fired != 1 || received != expected {
                    return Err(StepError::Fires { relative: chunk.relative, block: block as u64, fired });
                }
            }
        }
    }
    Ok(())
}

/// How the device at distance `distance` counts the chunk that this device counts as `relative`.
pub fn seen_from(relative: u32, distance: u32, devices: u32) -> u32 {
    let devices = u64::from(devices.max(1));
    ((u64::from(relative) + devices - u64::from(distance) % devices) % devices) as u32
}

/// Where the producer's stores of `chunk` land, as the receiving device counts it.
fn landing(chunk: &Chunk, devices: u32) -> u32 {
    match chunk.store {
        Store::Local => chunk.relative,
        Store::Remote(distance) => seen_from(chunk.relative, distance, devices),
    }
}

fn by_relative(chunks: &[Chunk], devices: u32) -> Result<Vec<Chunk>, AddressSpaceError> {
    chunks_partition_the_output(chunks, devices)?;
    let mut sorted = chunks.to_vec();
    sorted.sort_by_key(|chunk| chunk.relative);
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{configure_all_to_all, configure_direct_reduce_scatter, configure_ring_reduce_scatter};

    #[test]
    fn direct_stores_are_an_address_space_too() {
        for devices in 2..18 {
            verify_address_space(&configure_direct_reduce_scatter(devices), devices).unwrap();
        }
    }

    #[test]
    fn an_exchange_is_no_reduction() {
        for devices in 2..18 {
            let chunks = configure_all_to_all(devices);
            verify_exchange(&chunks, devices).unwrap();
            assert!(matches!(
                verify_address_space(&chunks, devices),
                Err(AddressSpaceError::Overwritten { .. })
            ));
            let reduction = verify_exchange(&configure_direct_reduce_scatter(devices), devices);
            assert_eq!(reduction, Err(AddressSpaceError::Forwarded { relative: 0 }));
        }
        let broken = |change: &dyn Fn(&mut Vec<Chunk>)| {
            let mut chunks = configure_all_to_all(4);
            change(&mut chunks);
            verify_exchange(&chunks, 4).unwrap_err()
        };
        use AddressSpaceError::*;
        assert_eq!(broken(&|c| c[0].store = Store::Remote(2)), ContributionMissing { relative: 1 });
        assert_eq!(broken(&|c| c[1].op = Op::Update), Added { relative: 2 });
        assert_eq!(
            broken(&|c| c[3].threshold = 3),
            WrongThreshold { relative: 0, threshold: 3, arrivals: 4 }
        );
        assert_eq!(broken(&|c| c[3].trigger = Trigger::None), Owners { owners: 0 });
    }

    #[test]
    fn one_device_keeps_everything() {
        verify_address_space(&configure_ring_reduce_scatter(1), 1).unwrap();
        assert_eq!(verify_address_space(&[], 0), Err(AddressSpaceError::NoDevices));
    }

    #[test]
    fn each_fault_has_its_name() {
        let ring = configure_ring_reduce_scatter(4);
        let broken = |change: &dyn Fn(&mut Vec<Chunk>)| {
            let mut chunks = ring.clone();
            change(&mut chunks);
            verify_address_space(&chunks, 4).unwrap_err()
        };
        use AddressSpaceError::*;
        assert_eq!(broken(&|c| c.truncate(3)), WrongCount { entries: 3, devices: 4 });
        assert_eq!(broken(&|c| c[1].relative = 4), ChunkOutOfRange { relative: 4, devices: 4 });
        assert_eq!(broken(&|c| c[1].relative = 3), ProducedTwice { relative: 3 });
        assert_eq!(
            broken(&|c| c[0].store = Store::Remote(4)),
            DistanceOutOfRange { relative: 1, distance: 4, devices: 4 }
        );
        assert_eq!(broken(&|c| c[0].threshold = 1), FirstTracked { relative: 1 });
        assert_eq!(
            broken(&|c| c[2].threshold = 3),
            WrongThreshold { relative: 3, threshold: 3, arrivals: 2 }
        );
        assert_eq!(broken(&|c| c[3].trigger = Trigger::None), Owners { owners: 0 });
        assert_eq!(broken(&|c| c[2].trigger = Trigger::Done), Owners { owners: 2 });
        assert_eq!(broken(&|c| c[1].trigger = Trigger::None), ContributionMissing { relative: 1 });
        assert_eq!(broken(&|c| c[2].op = Op::Store), Overwritten { relative: 3, arrivals: 2 });
        assert_eq!(broken(&|c| c.swap(0, 1)), FirstTracked { relative: 2 });
    }

    #[test]
    fn a_cycle_of_transfers_is_found() {
        let mut chunks = configure_ring_reduce_scatter(3);
        for chunk in &mut chunks {
            chunk.trigger = Trigger::Dma { to: 2, op: Op::Update };
        }
        assert!(matches!(
            transfers_do_not_wait_for_themselves(&chunks, 3),
            Err(AddressSpaceError::CycleOfWaits { .. })
        ));
    }

    #[test]
    fn every_error_is_one_sentence() {
        let error = AddressSpaceError::WrongThreshold { relative: 3, threshold: 1, arrivals: 2 };
        assert_eq!(error.to_string(), "chunk +3 expects 1 updates an element, but the map delivers 2");
    }

    proptest! {
        #[test]
        fn rings_of_any_size_verify(devices in 2u32..18) {
            verify_address_space(&configure_ring_reduce_scatter(devices), devices).unwrap();
        }

        /// Runs the map on real numbers: contribution of device `d` is `2^d`, so that a missing or
        /// doubled one shows in the sum.
        #[test]
        fn the_sum_holds_every_contribution_once(devices in 2u32..18, extent in 1u64..200, block in 1u64..9) {
            let chunks = configure_ring_reduce_scatter(devices);
            let fused = crate::testing::fused(&[extent, 1], 0, block, devices);
            tracked_blocks_fire_once(&fused, devices).unwrap();
            let n = devices as usize;
            let mut memory = vec![vec![0u64; n]; n];
            for (device, chunk) in (0..n).flat_map(|d| chunks.iter().map(move |c| (d, c))) {
                let index = chunk.index(device as u32, devices) as usize;
                let at = match chunk.store {
                    Store::Local => device,
                    Store::Remote(k) => (device + k as usize) % n,
                };
                memory[at][index] += 1 << device;
            }
            // Middle chunks leave in production order, which is also the order in which they complete.
            for chunk in &chunks {
                let Trigger::Dma { to, .. } = chunk.trigger else { continue };
                for device in 0..n {
                    let index = chunk.index(device as u32, devices) as usize;
                    let sum = memory[device][index];
                    memory[(device + to as usize) % n][index] += sum;
                }
            }
            for (device, chunks) in memory.iter().enumerate() {
                prop_assert_eq!(chunks[device], (1 << n) - 1);
            }
        }

        /// Direct maps on real numbers: the owner's slots hold one contribution of every device, whatever the extents.
        #[test]
        fn slots_hold_every_contribution_once(devices in 2u32..18, extent in 1u64..200, block in 1u64..9, exchange: bool) {
            let mut fused = crate::testing::fused(&[extent, 1], 0, block, devices);
            fused.chunks = match exchange {
                true => configure_all_to_all(devices),
                false => configure_direct_reduce_scatter(devices),
            };
            tracked_blocks_fire_once(&fused, devices).unwrap();
            let n = devices as usize;
            let mut slots = vec![vec![0; n]; n];
            for (device, chunk) in (0..n).flat_map(|d| fused.chunks.iter().map(move |c| (d, c))) {
                let owner = match chunk.store {
                    Store::Local => device,
                    Store::Remote(k) => (device + k as usize) % n,
                };
                prop_assert_eq!(chunk.index(device as u32, devices) as usize, owner);
                slots[owner][device] += 1;
            }
            prop_assert!(slots.iter().flatten().all(|&stores| stores == 1));
            // In each step of production, every owner is stored to by one device.
            for chunk in &fused.chunks {
                let mut owners: Vec<u32> = (0..devices).map(|d| chunk.index(d, devices)).collect();
                owners.sort_unstable();
                prop_assert!(owners.into_iter().eq(0..devices));
            }
        }

        /// Any single change of a threshold, a distance or a trigger of the ring is noticed.
        #[test]
        fn no_mutation_passes(devices in 2u32..18, at in 0usize..17, kind in 0..3, direct: bool) {
            let mut chunks = match direct {
                true => configure_direct_reduce_scatter(devices),
                false => configure_ring_reduce_scatter(devices),
            };
            let at = at % chunks.len();
            match kind {
                0 => chunks[at].threshold += 1,
                1 => chunks[at].relative = (chunks[at].relative + 1) % devices,
                _ => chunks[at].trigger = match chunks[at].trigger {
                    Trigger::Done | Trigger::Reduce => Trigger::None,
                    _ => Trigger::Done,
                },
            }
            prop_assert!(verify_address_space(&chunks, devices).is_err());
        }
    }
}
