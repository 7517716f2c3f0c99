//! The last-level cache, at the granularity of operand panels.

use crate::system::Replacement;

/// Densely numbered items of different sizes, linked from the newest to the oldest.
pub(crate) struct Cache {
    capacity: u64,
    replacement: Replacement,
    used: u64,
    slots: Vec<Slot>,
    newest: u32,
    oldest: u32,
    /// Under random replacement: the present items in no order, and the generator's state.
    present: Vec<u32>,
    random: u64,
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    /// 0 when absent.
    bytes: u64,
    newer: u32,
    older: u32,
}

impl Cache {
    pub fn new(capacity: u64, replacement: Replacement, items: usize) -> Self {
        let absent = Slot { bytes: 0, newer: NONE, older: NONE };
        let slots = vec![absent; items];
        // Any odd constant: the same victims on every run.
        let random = 0x9e37_79b9_7f4a_7c15;
        Self { capacity, replacement, used: 0, slots, newest: NONE, oldest: NONE, present: vec![], random }
    }

    /// Touches `item` of `bytes`; returns whether it was present. It is afterwards, and others have
    /// left to make room.
    pub fn touch(&mut self, item: usize, bytes: u64) -> bool {
        let is_hit = self.slots[item].bytes > 0;
        if !is_hit && bytes > self.capacity {
            return false;
        }
        match self.replacement {
            Replacement::LeastRecentlyUsed => self.touch_recent(item, bytes, is_hit),
            Replacement::Random if is_hit => {}
            Replacement::Random => self.insert_random(item, bytes),
        }
        is_hit
    }

    fn touch_recent(&mut self, item: usize, bytes: u64, is_hit: bool) {
        if is_hit {
            self.unlink(item as u32);
        } else {
            self.slots[item].bytes = bytes;
            self.used += bytes;
        }
        self.link(item as u32);
        while self.used > self.capacity {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.used -= std::mem::take(&mut self.slots[oldest as usize].bytes);
        }
    }

    fn insert_random(&mut self, item: usize, bytes: u64) {
        while self.used + bytes > self.capacity && !self.present.is_empty() {
            // xorshift64
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let victim = self.present.swap_remove((self.random % self.present.len() as u64) as usize);
            self.used -= std::mem::take(&mut self.slots[victim as usize].bytes);
        }
        self.slots[item].bytes = bytes;
        self.used += bytes;
        self.present.push(item as u32);
    }

    fn link(&mut self, item: u32) {
        self.slots[item as usize].older = self.newest;
        self.slots[item as usize].newer = NONE;
        match self.newest {
            NONE => self.oldest = item,
            newest => self.slots[newest as usize].newer = item,
        }
        self.newest = item;
    }

    fn unlink(&mut self, item: u32) {
        let Slot { newer, older, .. } = self.slots[item as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Replacement::*;

    #[test]
    fn the_least_recently_used_leaves() {
        let mut cache = Cache::new(10, LeastRecentlyUsed, 4);
        assert!(!cache.touch(0, 4));
        assert!(!cache.touch(1, 4));
        assert!(cache.touch(0, 4));
        assert!(!cache.touch(2, 4), "item 1 leaves, not item 0");
        assert!(cache.touch(0, 4));
        assert!(!cache.touch(1, 4));
    }

    #[test]
    fn a_cyclic_sweep_beyond_capacity_never_hits() {
        let mut cache = Cache::new(10, LeastRecentlyUsed, 4);
        for _ in 0..3 {
            for item in 0..4 {
                assert!(!cache.touch(item, 3));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        let mut cache = Cache::new(10, LeastRecentlyUsed, 2);
        assert!(!cache.touch(0, 11));
        assert!(!cache.touch(0, 11));
    }

    #[test]
    fn random_replacement_keeps_a_part_of_a_cyclic_sweep() {
        let mut cache = Cache::new(100, Random, 120);
        let hits = (0..12_000).filter(|touch| cache.touch(touch % 120, 1)).count();
        assert!((6_000..10_000).contains(&hits), "{hits}");
    }
}
