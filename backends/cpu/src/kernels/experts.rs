//! Mixtures of experts: which rows go to which expert, and checks of such a division.

/// The extents of a routing: scores `[tokens, experts]`, of which each token takes its best `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// N: tokens.
    pub tokens: usize,
    /// E: experts.
    pub experts: usize,
    /// Experts a token.
    pub k: usize,
    /// P: groups of tokens.
    pub groups: usize,
    /// S: slots of experts.
    pub slots: usize,
    /// C: rows of a group in a slot.
    pub rows: usize,
}

/// Where a routing's results go.
#[derive(Debug)]
pub struct Routed<'r> {
    /// `[P, S, C]`: the token of each row; the group's first for padding.
    pub source: &'r mut [i32],
    /// `[P, S, C]`: the expert of each row; −1 for padding.
    pub expert: &'r mut [i32],
    /// `[P, S, E/S + 1]`: where each expert's rows begin.
    pub offsets: &'r mut [i32],
}

impl Routing {
    /// Divides the tokens: rows sorted by expert, then token. A score that is no number counts as the lowest; of
    /// equal scores the lower expert is the better.
    ///
    /// # Panics
    /// Where the slices do not have the extents.
    pub fn run(&self, scores: &[f32], mut routed: Routed) {
        let mut chosen = vec![false; self.tokens * self.experts];
        for (scores, chosen) in scores.chunks(self.experts).zip(chosen.chunks_mut(self.experts)) {
            self.choose(scores, chosen);
        }
        for group in 0..self.groups {
            for slot in 0..self.slots {
                self.fill(&chosen, (group, slot), &mut routed);
            }
        }
    }

    fn choose(&self, scores: &[f32], chosen: &mut [bool]) {
        let score = |expert: usize| if scores[expert].is_nan() { f32::NEG_INFINITY } else { scores[expert] };
        for _ in 0..self.k.min(self.experts) {
            let free = (0..self.experts).filter(|&expert| !chosen[expert]);
            // The first of equal ones: a later one must be greater.
            let best = free.fold(None, |best: Option<usize>, expert| match best {
                Some(best) if score(expert) <= score(best) => Some(best),
                _ => Some(expert),
            });
            if let Some(best) = best {
                chosen[best] = true;
            }
        }
    }

    fn fill(&self, chosen: &[bool], (group, slot): (usize, usize), routed: &mut Routed) {
        let (per_group, per_slot) = (self.tokens / self.groups, self.experts / self.slots);
        let (first, place) = (group * per_group, group * self.slots + slot);
        let source = &mut routed.source[place * self.rows..][..self.rows];
        let expert = &mut routed.expert[place * self.rows..][..self.rows];
        let offsets = &mut routed.offsets[place * (per_slot + 1)..][..per_slot + 1];
        let mut row = 0;
        offsets[0] = 0;
        for local in 0..per_slot {
            let number = slot * per_slot + local;
            for token in first..first + per_group {
                if chosen[token * self.experts + number] {
                    source[row] = token as i32;
                    expert[row] = number as i32;
                    row += 1;
                }
            }
            offsets[local + 1] = row as i32;
        }
        source[row..].fill(first as i32);
        expert[row..].fill(-1);
    }
}

/// The extents of a product of rows with the matrix of their expert: x `[P, S, C, D]`, w `[S, L, F, D]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// P: groups of tokens.
    pub groups: usize,
    /// S: slots of experts.
    pub slots: usize,
    /// C: rows of a group in a slot.
    pub rows: usize,
    /// L: experts of a slot.
    pub experts: usize,
}

impl Grouped {
    /// Checks offsets `[P, S, L + 1]`: each expert's rows begin where the last one's end, from 0 to at most C.
    ///
    /// # Errors
    /// The number of the first entry that does not.
    pub fn check(&self, offsets: &[i32]) -> Result<(), usize> {
        for (place, offsets) in offsets.chunks(self.experts + 1).enumerate() {
            let mut last = 0;
            for (index, &offset) in offsets.iter().enumerate() {
                let fits =
                    i64::from(offset) <= self.rows as i64 && offset >= last && (index > 0 || offset == 0);
                if !fits {
                    return Err(place * (self.experts + 1) + index);
                }
                last = offset;
            }
        }
        Ok(())
    }

    /// For each expert with rows in each group and slot: expert (over all slots), and its rows (over all places).
    pub fn pieces<'o>(
        &self,
        offsets: &'o [i32],
    ) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + 'o {
        let Grouped { slots, rows, experts, .. } = *self;
        offsets.chunks(experts + 1).enumerate().flat_map(move |(place, offsets)| {
            offsets.windows(2).enumerate().filter(|(_, pair)| pair[0] < pair[1]).map(move |(local, pair)| {
                let expert = place % slots * experts + local;
                (expert, place * rows + pair[0] as usize..place * rows + pair[1] as usize)
            })
        })
    }

    /// The rows of padding of each group and slot, over all places.
    pub fn padding<'o>(&self, offsets: &'o [i32]) -> impl Iterator<Item = std::ops::Range<usize>> + 'o {
        let Grouped { rows, experts, .. } = *self;
        offsets
            .chunks(experts + 1)
            .enumerate()
            .map(move |(place, offsets)| place * rows + offsets[experts] as usize..(place + 1) * rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_expert_then_token_and_padded() {
        let routing = Routing { tokens: 4, experts: 4, k: 2, groups: 2, slots: 2, rows: 4 };
        let nan = f32::NAN;
        let scores = [0.1, 0.9, 0.5, 0.5, nan, nan, nan, nan, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 3.0, 3.0];
        let (mut source, mut expert, mut offsets) = ([9; 16], [9; 16], [9; 12]);
        let routed = Routed { source: &mut source, expert: &mut expert, offsets: &mut offsets };
        routing.run(&scores, routed);
        // Token 0: experts 1, 2; token 1: 0, 1; token 2: 3, 0; token 3: 2, 3.
        assert_eq!(source, [1, 0, 1, 0, 0, 0, 0, 0, 2, 2, 2, 2, 3, 2, 3, 2]);
        assert_eq!(expert, [0, 1, 1, -1, 2, -1, -1, -1, 0, -1, -1, -1, 2, 3, 3, -1]);
        assert_eq!(offsets, [0, 1, 3, 0, 1, 1, 0, 1, 1, 0, 1, 3]);
        let grouped = Grouped { groups: 2, slots: 2, rows: 4, experts: 2 };
        assert_eq!(grouped.check(&offsets), Ok(()));
        let pieces: Vec<_> = grouped.pieces(&offsets).collect();
        assert_eq!(pieces, [(0, 0..1), (1, 1..3), (2, 4..5), (0, 8..9), (2, 12..13), (3, 13..15)]);
        assert_eq!(grouped.padding(&offsets).collect::<Vec<_>>(), [3..4, 5..8, 9..12, 15..16]);
    }

    #[test]
    fn offsets_that_leave_the_rows_are_refused() {
        let grouped = Grouped { groups: 1, slots: 1, rows: 4, experts: 2 };
        assert_eq!(grouped.check(&[0, 2, 5]), Err(2));
        assert_eq!(grouped.check(&[0, 3, 2]), Err(2));
        assert_eq!(grouped.check(&[1, 3, 4]), Err(0));
        assert_eq!(grouped.check(&[-1, 3, 4]), Err(0));
    }
}
