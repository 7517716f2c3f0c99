//! Ring order: who produces which chunk when, and in which order contributions are added.
//!
//! Device `d` sends to `d − 1` and produces chunks `d + 1, d + 2, …, d` (all modulo the number of
//! devices), so that no two devices produce the same chunk at the same time and each device's own
//! chunk comes last (T3 paper, section 4.4: staggered production).

/// The chunk that `device` produces as its `step`-th (`0 ≤ step < devices`).
pub fn produced_chunk(device: u32, step: u32, devices: u32) -> u32 {
    (device + 1 + step) % devices
}

/// The device to which `device` sends: its neighbour down the ring.
pub fn neighbour(device: u32, devices: u32) -> u32 {
    (device + devices - 1) % devices
}

/// The distance `+k` from a device to its ring neighbour, as address spaces name it.
pub fn neighbour_distance(devices: u32) -> u32 {
    devices - 1
}

/// The devices whose contributions make up `chunk`, in the order in which they are added:
/// `((p[c−1] + p[c−2]) + …) + p[c]`. Every backend, transport and the interpreter add in this order.
pub fn addition_order(chunk: u32, devices: u32) -> impl Iterator<Item = u32> {
    (1..=devices).map(move |hop| (chunk + devices - hop) % devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_adds_last_and_produces_its_chunk_last() {
        for devices in 1..9 {
            for chunk in 0..devices {
                assert_eq!(addition_order(chunk, devices).last(), Some(chunk));
                assert_eq!(produced_chunk(chunk, devices - 1, devices), chunk);
            }
        }
    }

    #[test]
    fn a_chunk_travels_along_neighbours() {
        let order: Vec<u32> = addition_order(2, 5).collect();
        assert_eq!(order, [1, 0, 4, 3, 2]);
        for pair in order.windows(2) {
            assert_eq!(neighbour(pair[0], 5), pair[1]);
        }
    }
}
