//! How the parts of a gather reach a device, so that readers can use each as it arrives (T3 paper, section 7.2:
//! the consumer's side).
//!
//! Ring all-gather: device `d` sends to `d − 1`, as in the reduce-scatter, so that parts arrive in the order
//! `d, d + 1, …` and each but the last is sent on as it arrives. Direct: the own part goes to every other device.
//! All-to-all: each device's piece goes to it alone.

use serde::{Deserialize, Serialize};

use crate::{Algorithm, ArrivalError, CollectiveKind, invariants::seen_from, ring};

/// One part of a gathered value on device `d`, in terms of its coordinate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arrival {
    /// The part is that of device `(d + relative) mod N`, and lies at its index of the whole.
    pub relative: u32,
    /// The distance `+k` of the device that sends it here; 0 for the own part, which is there from the start.
    pub from: u32,
    /// The distances to which it is sent once it is here. For the own entry of an all-to-all: where the other
    /// pieces of the operand go, to each device its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sends: Vec<u32>,
}

/// The arrivals of a ring all-gather.
pub fn configure_ring_all_gather(devices: u32) -> Vec<Arrival> {
    let to = ring::neighbour_distance(devices);
    (0..devices)
        .map(|relative| Arrival {
            relative,
            from: u32::from(relative > 0),
            sends: if relative + 1 < devices { vec![to] } else { vec![] },
        })
        .collect()
}

/// The arrivals where every device sends straight to every other: an all-gather of the own part, or an all-to-all
/// of pieces. Sends are staggered, so that no two devices send to one at the same time.
pub fn configure_direct_arrivals(devices: u32) -> Vec<Arrival> {
    let own = Arrival { relative: 0, from: 0, sends: (1..devices).rev().collect() };
    let others = (1..devices).map(|relative| Arrival { relative, from: relative, sends: vec![] });
    std::iter::once(own).chain(others).collect()
}

/// The arrivals of a collective; `None` for those that readers do not follow part by part.
pub fn configure_arrivals(kind: CollectiveKind, algorithm: Algorithm, devices: u32) -> Option<Vec<Arrival>> {
    match (kind, algorithm) {
        (CollectiveKind::AllGather, Algorithm::Ring) => Some(configure_ring_all_gather(devices)),
        (CollectiveKind::AllGather, Algorithm::Direct) | (CollectiveKind::AllToAll, _) => {
            Some(configure_direct_arrivals(devices))
        }
        _ => None,
    }
}

/// Checks that arrivals perform the collective: every device gets each part once, from a device that has it and
/// sends it, and its own part comes first.
pub fn verify_arrivals(kind: CollectiveKind, arrivals: &[Arrival], devices: u32) -> Result<(), ArrivalError> {
    if !matches!(kind, CollectiveKind::AllGather | CollectiveKind::AllToAll) {
        return Err(ArrivalError::Collective);
    }
    let parts = by_relative(arrivals, devices)?;
    if !matches!(arrivals.first(), Some(Arrival { relative: 0, from: 0, .. })) {
        return Err(ArrivalError::OwnFirst);
    }
    for part in parts.iter().skip(1) {
        let &Arrival { relative, from, .. } = *part;
        if from == 0 {
            return Err(ArrivalError::NotSent { relative, from });
        }
        if kind == CollectiveKind::AllToAll && from != relative {
            return Err(ArrivalError::HandedOn { relative, from });
        }
        let at_sender = parts[seen_from(relative, from, devices) as usize];
        if at_sender.sends.iter().filter(|&&to| to == devices - from).count() != 1 {
            return Err(ArrivalError::NotSent { relative, from });
        }
    }
    sends_are_taken(kind, &parts, devices)?;
    parts_start_at_their_owner(&parts, devices)
}

/// The arrivals in order of their parts, when each part arrives once and all distances are in the group.
fn by_relative(arrivals: &[Arrival], devices: u32) -> Result<Vec<&Arrival>, ArrivalError> {
    if devices == 0 || arrivals.len() as u64 != u64::from(devices) {
        return Err(ArrivalError::WrongCount { entries: arrivals.len(), devices });
    }
    let mut parts: Vec<Option<&Arrival>> = vec![None; arrivals.len()];
    for arrival in arrivals {
        let relative = arrival.relative;
        let out_of_range = |distance| ArrivalError::OutOfRange { relative, distance, devices };
        let distances = arrival.sends.iter().copied().chain([relative, arrival.from]);
        if let Some(distance) = distances.into_iter().find(|&distance| distance >= devices) {
            return Err(out_of_range(distance));
        }
        if arrival.sends.contains(&0) {
            return Err(out_of_range(0));
        }
        if parts[relative as usize].replace(arrival).is_some() {
            return Err(ArrivalError::Twice { relative });
        }
    }
    Ok(parts.into_iter().flatten().collect())
}

/// What is sent is taken where it goes, so that nothing lands in a buffer twice.
fn sends_are_taken(kind: CollectiveKind, parts: &[&Arrival], devices: u32) -> Result<(), ArrivalError> {
    for part in parts {
        for &to in &part.sends {
            // A piece of an all-to-all is the sender's own part wherever it lands.
            let there = seen_from(part.relative, to, devices);
            let owner_only = kind == CollectiveKind::AllGather || part.relative == 0;
            if !owner_only || parts[there as usize].from != (devices - to) % devices {
                return Err(ArrivalError::NotTaken { relative: part.relative, to });
            }
        }
    }
    Ok(())
}

/// Following a part from sender to sender ends at the device that made it.
fn parts_start_at_their_owner(parts: &[&Arrival], devices: u32) -> Result<(), ArrivalError> {
    for part in parts {
        let mut at = part.relative;
        for _ in 0..devices {
            at = seen_from(at, parts[at as usize].from, devices);
        }
        if at != 0 {
            return Err(ArrivalError::CycleOfWaits { relative: part.relative });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plays the arrivals on every device until nothing moves: which parts each device ends with.
    fn play(arrivals: &[Arrival], devices: u32) -> Vec<Vec<u32>> {
        let n = devices as usize;
        let mut here: Vec<Vec<u32>> = (0..n).map(|device| vec![device as u32]).collect();
        let mut next = 0;
        while next < n * n {
            for device in 0..n {
                let Some(&part) = here[device].get(next / n) else { continue };
                let relative = (part + devices - device as u32) % devices;
                for &to in &arrivals.iter().find(|arrival| arrival.relative == relative).unwrap().sends {
                    here[(device + to as usize) % n].push(part);
                }
            }
            next += n;
        }
        here
    }

    #[test]
    fn each_fault_has_its_name() {
        use ArrivalError::*;
        let broken = |kind, change: &dyn Fn(&mut Vec<Arrival>)| {
            let mut arrivals = configure_arrivals(kind, Algorithm::Ring, 4).unwrap();
            change(&mut arrivals);
            verify_arrivals(kind, &arrivals, 4).unwrap_err()
        };
        let (gather, exchange) = (CollectiveKind::AllGather, CollectiveKind::AllToAll);
        assert_eq!(broken(gather, &|a| a.truncate(3)), WrongCount { entries: 3, devices: 4 });
        assert_eq!(broken(gather, &|a| a[2].relative = 1), Twice { relative: 1 });
        assert_eq!(broken(gather, &|a| a[1].from = 4), OutOfRange { relative: 1, distance: 4, devices: 4 });
        assert_eq!(broken(gather, &|a| a.swap(0, 1)), OwnFirst);
        assert_eq!(broken(gather, &|a| a[1].sends.clear()), NotSent { relative: 2, from: 1 });
        assert_eq!(broken(gather, &|a| a[3].sends.push(3)), NotTaken { relative: 3, to: 3 });
        assert_eq!(broken(exchange, &|a| a[0].sends = vec![3, 2]), NotSent { relative: 3, from: 3 });
        assert_eq!(broken(exchange, &|a| a[2].from = 1), HandedOn { relative: 2, from: 1 });
        assert_eq!(verify_arrivals(CollectiveKind::AllReduce, &[], 4), Err(Collective));
    }

    #[test]
    fn a_part_that_nobody_starts_is_found() {
        // On three devices, part +1 comes from +1 and part +2 from +2 … of which neither is the owner's copy.
        let arrivals = vec![
            Arrival { relative: 0, from: 0, sends: vec![] },
            Arrival { relative: 1, from: 2, sends: vec![2] },
            Arrival { relative: 2, from: 1, sends: vec![1] },
        ];
        assert!(matches!(
            verify_arrivals(CollectiveKind::AllGather, &arrivals, 3),
            Err(ArrivalError::CycleOfWaits { .. } | ArrivalError::NotSent { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_device_ends_with_each_part_once(devices in 1u32..18, direct: bool) {
            let algorithm = if direct { Algorithm::Direct } else { Algorithm::Ring };
            let arrivals = configure_arrivals(CollectiveKind::AllGather, algorithm, devices).unwrap();
            verify_arrivals(CollectiveKind::AllGather, &arrivals, devices).unwrap();
            for (device, parts) in play(&arrivals, devices).into_iter().enumerate() {
                let order: Vec<u32> = arrivals.iter().map(|a| (device as u32 + a.relative) % devices).collect();
                let mut sorted = parts.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..devices).collect::<Vec<_>>());
                if !direct {
                    prop_assert_eq!(parts, order);
                }
            }
        }

        #[test]
        fn no_mutation_passes(devices in 2u32..18, at in 0usize..17, kind in 0..3, exchange: bool) {
            let collective = if exchange { CollectiveKind::AllToAll } else { CollectiveKind::AllGather };
            let mut arrivals = configure_arrivals(collective, Algorithm::Ring, devices).unwrap();
            let at = at % arrivals.len();
            match kind {
                0 => arrivals[at].relative = (arrivals[at].relative + 1) % devices,
                1 => arrivals[at].from = (arrivals[at].from + 1) % devices,
                _ => match arrivals[at].sends.pop() {
                    Some(_) => {}
                    None => arrivals[at].sends.push(1),
                },
            }
            prop_assert!(verify_arrivals(collective, &arrivals, devices).is_err());
        }
    }
}
