//! The last-level cache: least recently used, at the granularity of operand panels.

/// An LRU list over densely numbered items of different sizes.
pub(crate) struct Cache {
    capacity: u64,
    used: u64,
    slots: Vec<Slot>,
    newest: u32,
    oldest: u32,
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
    pub fn new(capacity: u64, items: usize) -> Self {
        let absent = Slot { bytes: 0, newer: NONE, older: NONE };
        Self { capacity, used: 0, slots: vec![absent; items], newest: NONE, oldest: NONE }
    }

    /// Touches `item` of `bytes`; returns whether it was present. It is afterwards, and the least
    /// recently used ones have left to make room.
    pub fn touch(&mut self, item: usize, bytes: u64) -> bool {
        let is_hit = self.slots[item].bytes > 0;
        if is_hit {
            self.unlink(item as u32);
        } else if bytes > self.capacity {
            return false;
        } else {
            self.slots[item].bytes = bytes;
            self.used += bytes;
        }
        self.link(item as u32);
        while self.used > self.capacity {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.used -= self.slots[oldest as usize].bytes;
            self.slots[oldest as usize].bytes = 0;
        }
        is_hit
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

    #[test]
    fn the_least_recently_used_leaves() {
        let mut cache = Cache::new(10, 4);
        assert!(!cache.touch(0, 4));
        assert!(!cache.touch(1, 4));
        assert!(cache.touch(0, 4));
        assert!(!cache.touch(2, 4), "item 1 leaves, not item 0");
        assert!(cache.touch(0, 4));
        assert!(!cache.touch(1, 4));
    }

    #[test]
    fn a_cyclic_sweep_beyond_capacity_never_hits() {
        let mut cache = Cache::new(10, 4);
        for _ in 0..3 {
            for item in 0..4 {
                assert!(!cache.touch(item, 3));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        let mut cache = Cache::new(10, 2);
        assert!(!cache.touch(0, 11));
        assert!(!cache.touch(0, 11));
    }
}
