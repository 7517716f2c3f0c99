//! Places of buffers in one arena: buffers that live at the same time never overlap.

/// A buffer that is needed from step `start` to step `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The step that writes it first.
    pub start: usize,
    /// The last step that touches it.
    pub end: usize,
    /// Its size.
    pub bytes: usize,
}

/// Every place is a multiple of this: one cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// An offset for each request, and the size of the arena. Greedy by size: the largest buffer is placed first, at
/// the lowest offset where it overlaps none that lives at the same time.
pub fn place(requests: &[Request]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(requests[index].bytes), index));
    let mut offsets = vec![0; requests.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for index in order {
        let request = requests[index];
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&other| requests[other].start <= request.end && request.start <= requests[other].end)
            .map(|&other| (offsets[other], offsets[other] + rounded(requests[other].bytes)))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (from, to) in taken {
            if offset + rounded(request.bytes) <= from {
                break;
            }
            offset = offset.max(to);
        }
        offsets[index] = offset;
        total = total.max(offset + rounded(request.bytes));
        placed.push(index);
    }
    (offsets, total)
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn live_buffers_never_overlap(parts in prop::collection::vec((0usize..20, 0usize..6, 0usize..500), 0..40)) {
            let requests: Vec<Request> =
                parts.into_iter().map(|(start, length, bytes)| Request { start, end: start + length, bytes }).collect();
            let (offsets, total) = place(&requests);
            for (a, first) in requests.iter().enumerate() {
                prop_assert!(offsets[a] + first.bytes <= total && offsets[a] % ALIGNMENT == 0);
                for (b, second) in requests.iter().enumerate().skip(a + 1) {
                    let together = first.start <= second.end && second.start <= first.end;
                    let apart = offsets[a] + first.bytes <= offsets[b] || offsets[b] + second.bytes <= offsets[a];
                    prop_assert!(!together || apart);
                }
            }
        }
    }

    #[test]
    fn buffers_that_follow_each_other_share() {
        let requests = [Request { start: 0, end: 1, bytes: 100 }, Request { start: 2, end: 3, bytes: 100 }];
        assert_eq!(place(&requests).1, 128);
    }
}
