//! How a tensor lies on the device grid, and the collectives that change it: plain data, no MLIR.

use t3c_schedule::{Grid, Reduction};

/// How one value lies on the grid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    /// The grid axis that splits each dimension.
    pub splits: Vec<Option<usize>>,
    /// Grid axes along which every device holds a contribution to the value, sorted.
    pub partial: Vec<(usize, Reduction)>,
}

impl Sharding {
    /// Whole on every device.
    pub fn replicated(rank: usize) -> Self {
        Self { splits: vec![None; rank], partial: vec![] }
    }

    /// Split, and complete.
    pub fn split(splits: impl Into<Vec<Option<usize>>>) -> Self {
        Self { splits: splits.into(), partial: vec![] }
    }

    /// The same splits with every contribution combined.
    pub fn resolved(&self) -> Self {
        Self::split(self.splits.clone())
    }

    /// The extents on one device.
    pub fn local(&self, shape: &[u64], grid: &Grid) -> Vec<u64> {
        let size = |axis: usize| u64::from(grid.axes[axis].size);
        shape
            .iter()
            .zip(&self.splits)
            .map(|(&extent, axis)| axis.map_or(extent, |axis| extent / size(axis)))
            .collect()
    }

    /// How the contributions along `axis` combine, if the value is partial there.
    pub fn partial_on(&self, axis: usize) -> Option<Reduction> {
        self.partial.iter().find(|entry| entry.0 == axis).map(|entry| entry.1)
    }

    /// Whether some dimension is split.
    pub fn is_split(&self) -> bool {
        self.splits.iter().any(Option::is_some)
    }
}

/// One collective of a change of sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    AllReduce { axis: usize, reduction: Reduction },
    ReduceScatter { axis: usize, dimension: usize, reduction: Reduction },
    AllGather { axis: usize, dimension: usize },
    AllToAll { axis: usize, split: usize, concat: usize },
    AllSlice { axis: usize, dimension: usize },
}

/// The collectives from `from` to `to`, in order: contributions are combined first (scattered where `to` splits
/// a dimension on the axis), then dimensions are gathered or exchanged, then sliced.
pub fn steps(from: &Sharding, to: &Sharding) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut now = from.splits.clone();
    let rank = now.len();
    for &(axis, reduction) in from.partial.iter().filter(|entry| !to.partial.contains(entry)) {
        let scattered = (0..rank).find(|&at| to.splits[at] == Some(axis) && now[at].is_none());
        match scattered {
            Some(dimension) => {
                now[dimension] = Some(axis);
                steps.push(Step::ReduceScatter { axis, dimension, reduction });
            }
            None => steps.push(Step::AllReduce { axis, reduction }),
        }
    }
    for (dimension, &wanted) in to.splits.iter().enumerate() {
        let Some(axis) = now[dimension].filter(|_| now[dimension] != wanted) else { continue };
        now[dimension] = None;
        match (0..rank).find(|&at| to.splits[at] == Some(axis) && now[at].is_none() && at != dimension) {
            Some(target) => {
                now[target] = Some(axis);
                steps.push(Step::AllToAll { axis, split: target, concat: dimension });
            }
            None => steps.push(Step::AllGather { axis, dimension }),
        }
    }
    for (dimension, &wanted) in to.splits.iter().enumerate() {
        if let Some(axis) = wanted.filter(|_| now[dimension] != wanted) {
            steps.push(Step::AllSlice { axis, dimension });
        }
    }
    steps
}

/// The sharding after one step.
pub fn apply(sharding: &Sharding, step: Step) -> Sharding {
    let mut next = sharding.clone();
    match step {
        Step::AllReduce { axis, .. } => next.partial.retain(|entry| entry.0 != axis),
        Step::ReduceScatter { axis, dimension, .. } => {
            next.partial.retain(|entry| entry.0 != axis);
            next.splits[dimension] = Some(axis);
        }
        Step::AllGather { dimension, .. } => next.splits[dimension] = None,
        Step::AllToAll { axis, split, concat } => {
            next.splits[concat] = None;
            next.splits[split] = Some(axis);
        }
        Step::AllSlice { axis, dimension } => next.splits[dimension] = Some(axis),
    }
    next
}

/// Bytes that a device receives while a value of `bytes` bytes (whole) goes from one sharding to another.
pub fn cost(from: &Sharding, to: &Sharding, bytes: u64, grid: &Grid) -> u64 {
    let mut now = from.clone();
    let mut received = 0;
    for step in steps(from, to) {
        let splits: u64 = now.splits.iter().flatten().map(|&axis| u64::from(grid.axes[axis].size)).product();
        let local = bytes / splits.max(1);
        let size = |axis: usize| u64::from(grid.axes[axis].size);
        received += match step {
            Step::AllReduce { axis, .. } => 2 * local * (size(axis) - 1) / size(axis),
            Step::ReduceScatter { axis, .. } | Step::AllToAll { axis, .. } => {
                local * (size(axis) - 1) / size(axis)
            }
            Step::AllGather { axis, .. } => local * (size(axis) - 1),
            Step::AllSlice { .. } => 0,
        };
        now = apply(&now, step);
    }
    received
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    fn partial(splits: &[Option<usize>]) -> Sharding {
        Sharding { splits: splits.to_vec(), partial: vec![(0, Reduction::Sum)] }
    }

    #[test]
    fn a_partial_value_is_scattered_where_it_is_split_and_reduced_elsewhere() {
        let whole = Sharding::replicated(2);
        assert_eq!(
            steps(&partial(&[None, None]), &whole),
            [Step::AllReduce { axis: 0, reduction: Reduction::Sum }]
        );
        let rows = Sharding::split([Some(0), None]);
        assert_eq!(
            steps(&partial(&[None, None]), &rows),
            [Step::ReduceScatter { axis: 0, dimension: 0, reduction: Reduction::Sum }]
        );
        assert_eq!(steps(&partial(&[None, None]), &partial(&[None, None])), []);
    }

    #[test]
    fn splits_move_by_exchange_gather_or_slice() {
        let (rows, columns) = (Sharding::split([Some(0), None]), Sharding::split([None, Some(0)]));
        assert_eq!(steps(&rows, &columns), [Step::AllToAll { axis: 0, split: 1, concat: 0 }]);
        let whole = Sharding::replicated(2);
        assert_eq!(steps(&rows, &whole), [Step::AllGather { axis: 0, dimension: 0 }]);
        assert_eq!(steps(&whole, &columns), [Step::AllSlice { axis: 0, dimension: 1 }]);
        let other = Sharding::split([Some(1), None]);
        assert_eq!(
            steps(&rows, &other),
            [Step::AllGather { axis: 0, dimension: 0 }, Step::AllSlice { axis: 1, dimension: 0 }]
        );
    }

    #[test]
    fn applying_the_steps_arrives() {
        let axes = [None, Some(0), Some(1)];
        let mut all = Vec::new();
        for a in axes {
            for b in axes.into_iter().filter(|&b| b.is_none() || b != a) {
                all.push(Sharding::split([a, b]));
            }
        }
        for from in &all {
            for to in &all {
                let arrived = steps(from, to).into_iter().fold(from.clone(), |now, step| apply(&now, step));
                assert_eq!(&arrived, to, "from {from:?}");
            }
        }
    }

    #[test]
    fn costs_are_received_bytes() {
        let grid = Grid { axes: vec![Axis { name: "tp".into(), size: 4 }] };
        let (rows, whole) = (Sharding::split([Some(0)]), Sharding::replicated(1));
        assert_eq!(cost(&rows, &whole, 64, &grid), 48);
        assert_eq!(cost(&partial(&[None]), &whole, 64, &grid), 96);
        assert_eq!(cost(&partial(&[None]), &rows, 64, &grid), 48);
        assert_eq!(cost(&whole, &rows, 64, &grid), 0);
    }
}
