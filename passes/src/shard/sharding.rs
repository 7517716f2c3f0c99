//! How a tensor lies on the device grid, and the collectives that change it: plain data, no MLIR.

use t3c_ir::{Splits, splits};
use t3c_schedule::{Grid, Reduction};

/// How one value lies on the grid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    /// The grid axes that split each dimension, outermost first.
    pub splits: Splits,
    /// Grid axes along which every device holds a contribution to the value, sorted.
    pub partial: Vec<(usize, Reduction)>,
}

impl Sharding {
    /// Whole on every device.
    pub fn replicated(rank: usize) -> Self {
        Self { splits: splits::whole(rank), partial: vec![] }
    }

    /// Split, and complete.
    pub fn split(splits: impl Into<Splits>) -> Self {
        Self { splits: splits.into(), partial: vec![] }
    }

    /// With contributions along these axes.
    pub fn partial(mut self, axes: impl IntoIterator<Item = (usize, Reduction)>) -> Self {
        self.partial.extend(axes);
        self.partial.sort_by_key(|entry| entry.0);
        self.partial.dedup_by_key(|entry| entry.0);
        self
    }

    /// The same splits with every contribution combined.
    pub fn resolved(&self) -> Self {
        Self::split(self.splits.clone())
    }

    /// The extents on one device.
    pub fn local(&self, shape: &[u64], grid: &Grid) -> Vec<u64> {
        let parts = self.splits.iter().map(|axes| u64::from(grid.group_size(axes)));
        shape.iter().zip(parts).map(|(&extent, parts)| extent / parts).collect()
    }

    /// How the contributions along `axis` combine, if the value is partial there.
    pub fn partial_on(&self, axis: usize) -> Option<Reduction> {
        self.partial.iter().find(|entry| entry.0 == axis).map(|entry| entry.1)
    }

    /// Whether some dimension is split.
    pub fn is_split(&self) -> bool {
        self.splits.iter().any(|axes| !axes.is_empty())
    }

    /// Whether `axis` splits some dimension.
    pub fn uses(&self, axis: usize) -> bool {
        self.splits.iter().any(|axes| axes.contains(&axis))
    }
}

/// One collective of a change of sharding, over the devices along `axes` in row-major order of their coordinates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    AllReduce { axes: Vec<usize>, reduction: Reduction },
    ReduceScatter { axes: Vec<usize>, dimension: usize, reduction: Reduction },
    AllGather { axes: Vec<usize>, dimension: usize },
    AllToAll { axes: Vec<usize>, split: usize, concat: usize },
    AllSlice { axes: Vec<usize>, dimension: usize },
}

impl Step {
    /// The axes of its groups.
    pub fn axes(&self) -> &[usize] {
        match self {
            Step::AllReduce { axes, .. }
            | Step::ReduceScatter { axes, .. }
            | Step::AllGather { axes, .. }
            | Step::AllToAll { axes, .. }
            | Step::AllSlice { axes, .. } => axes,
        }
    }
}

/// The collectives from `from` to `to`, in order. What costs nothing or makes the value smaller comes first: slices,
/// reduce-scatters where `to` splits a dimension on an axis of contributions, exchanges, all-reduces of what else is
/// partial; dimensions are gathered last.
pub fn steps(from: &Sharding, to: &Sharding) -> Vec<Step> {
    let mut now = from.clone();
    let mut steps = Vec::new();
    while let Some(step) = next(&now, to) {
        now = apply(&now, &step);
        steps.push(step);
    }
    steps
}

fn next(now: &Sharding, to: &Sharding) -> Option<Step> {
    slice(now, to)
        .or_else(|| reduce_scatter(now, to))
        .or_else(|| all_reduce(now, to))
        .or_else(|| exchange(now, to))
        .or_else(|| all_gather(now, to))
}

/// How many of the axes of a dimension stay: the axes outside what is to go are those that both have.
fn common(now: &[usize], to: &[usize]) -> usize {
    now.iter().zip(to).take_while(|(a, b)| a == b).count()
}

/// The axes still to be added to each dimension that has nothing to lose first.
fn missing<'s>(now: &'s Sharding, to: &'s Sharding) -> impl Iterator<Item = (usize, &'s [usize])> {
    let pairs = now.splits.iter().zip(&to.splits).enumerate();
    pairs
        .filter(|(_, (now, to))| common(now, to) == now.len() && now.len() < to.len())
        .map(|(dimension, (now, to))| (dimension, &to[now.len()..]))
}

/// The leading axes for which `fits` holds; `None` for none.
fn leading(axes: &[usize], fits: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
    let axes: Vec<usize> = axes.iter().copied().take_while(|&axis| fits(axis)).collect();
    (!axes.is_empty()).then_some(axes)
}

fn slice(now: &Sharding, to: &Sharding) -> Option<Step> {
    missing(now, to).find_map(|(dimension, axes)| {
        let axes = leading(axes, |axis| !now.uses(axis) && now.partial_on(axis).is_none())?;
        Some(Step::AllSlice { axes, dimension })
    })
}

/// Whether contributions along `axis` are to be combined.
fn combined(now: &Sharding, to: &Sharding, axis: usize) -> Option<Reduction> {
    now.partial_on(axis).filter(|&reduction| to.partial_on(axis) != Some(reduction))
}

fn reduce_scatter(now: &Sharding, to: &Sharding) -> Option<Step> {
    missing(now, to).find_map(|(dimension, axes)| {
        let reduction = combined(now, to, axes[0])?;
        let axes = leading(axes, |axis| combined(now, to, axis) == Some(reduction))?;
        Some(Step::ReduceScatter { axes, dimension, reduction })
    })
}

/// All-reduces what nothing will scatter: neither now nor once a dimension has lost other axes.
fn all_reduce(now: &Sharding, to: &Sharding) -> Option<Step> {
    let unscattered = |axis: usize| combined(now, to, axis).filter(|_| !to.uses(axis));
    let reduction = now.partial.iter().find_map(|entry| unscattered(entry.0))?;
    let axes = now.partial.iter().map(|entry| entry.0);
    let axes = axes.filter(|&axis| unscattered(axis) == Some(reduction)).collect();
    Some(Step::AllReduce { axes, reduction })
}

fn exchange(now: &Sharding, to: &Sharding) -> Option<Step> {
    missing(now, to).find_map(|(split, wanted)| {
        now.splits.iter().enumerate().filter(|(concat, _)| *concat != split).find_map(|(concat, held)| {
            let leaving = &held[common(held, &to.splits[concat])..];
            let longest = (1..=wanted.len().min(leaving.len())).rev();
            longest
                .map(|length| &wanted[..length])
                .find(|run| leaving.ends_with(run))
                .map(|run| Step::AllToAll { axes: run.to_vec(), split, concat })
        })
    })
}

fn all_gather(now: &Sharding, to: &Sharding) -> Option<Step> {
    now.splits.iter().zip(&to.splits).enumerate().find_map(|(dimension, (now, to))| {
        let axes = now[common(now, to)..].to_vec();
        (!axes.is_empty()).then_some(Step::AllGather { axes, dimension })
    })
}

/// The sharding after one step.
pub fn apply(sharding: &Sharding, step: &Step) -> Sharding {
    let mut next = sharding.clone();
    match step {
        Step::AllReduce { axes, .. } => next.partial.retain(|entry| !axes.contains(&entry.0)),
        Step::ReduceScatter { axes, dimension, .. } => {
            next.partial.retain(|entry| !axes.contains(&entry.0));
            next.splits[*dimension].extend(axes);
        }
        Step::AllGather { axes, dimension } => {
            let kept = next.splits[*dimension].len() - axes.len();
            next.splits[*dimension].truncate(kept);
        }
        Step::AllToAll { axes, split, concat } => {
            let kept = next.splits[*concat].len() - axes.len();
            next.splits[*concat].truncate(kept);
            next.splits[*split].extend(axes);
        }
        Step::AllSlice { axes, dimension } => next.splits[*dimension].extend(axes),
    }
    next
}

/// Bytes that a device receives while a value of `bytes` bytes (whole) goes from one sharding to another.
pub fn cost(from: &Sharding, to: &Sharding, bytes: u64, grid: &Grid) -> u64 {
    let mut now = from.clone();
    let mut received = 0u64;
    for step in steps(from, to) {
        let parts: u64 = now.splits.iter().map(|axes| u64::from(grid.group_size(axes))).product();
        let local = bytes / parts.max(1);
        let size = u64::from(grid.group_size(step.axes()));
        let others = |bytes: u64| (bytes / size).saturating_mul(size - 1);
        received = received.saturating_add(match step {
            Step::AllReduce { .. } => others(local).saturating_mul(2),
            Step::ReduceScatter { .. } | Step::AllToAll { .. } => others(local),
            Step::AllGather { .. } => local.saturating_mul(size - 1),
            Step::AllSlice { .. } => 0,
        });
        now = apply(&now, &step);
    }
    received
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    const SUM: Reduction = Reduction::Sum;

    fn split(splits: &[&[usize]]) -> Sharding {
        Sharding::split(splits.iter().map(|axes| axes.to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn a_partial_value_is_scattered_where_it_is_split_and_reduced_elsewhere() {
        let whole = split(&[&[], &[]]);
        let partial = whole.clone().partial([(0, SUM)]);
        assert_eq!(steps(&partial, &whole), [Step::AllReduce { axes: vec![0], reduction: SUM }]);
        assert_eq!(
            steps(&partial, &split(&[&[0], &[]])),
            [Step::ReduceScatter { axes: vec![0], dimension: 0, reduction: SUM }]
        );
        assert_eq!(steps(&partial, &partial), []);
    }

    #[test]
    fn several_axes_are_one_collective() {
        let both = split(&[&[0, 1], &[]]);
        let partial = split(&[&[], &[]]).partial([(0, SUM), (1, SUM)]);
        assert_eq!(
            steps(&partial, &both),
            [Step::ReduceScatter { axes: vec![0, 1], dimension: 0, reduction: SUM }]
        );
        assert_eq!(
            steps(&partial, &split(&[&[], &[]])),
            [Step::AllReduce { axes: vec![0, 1], reduction: SUM }]
        );
        assert_eq!(steps(&both, &split(&[&[], &[]])), [Step::AllGather { axes: vec![0, 1], dimension: 0 }]);
        assert_eq!(
            steps(&both, &split(&[&[], &[0, 1]])),
            [Step::AllToAll { axes: vec![0, 1], split: 1, concat: 0 }]
        );
    }

    #[test]
    fn inner_axes_come_and_go_alone() {
        let (rows, both) = (split(&[&[0], &[]]), split(&[&[0, 1], &[]]));
        assert_eq!(steps(&both, &rows), [Step::AllGather { axes: vec![1], dimension: 0 }]);
        assert_eq!(
            steps(&rows.clone().partial([(1, SUM)]), &both),
            [Step::ReduceScatter { axes: vec![1], dimension: 0, reduction: SUM }]
        );
        assert_eq!(
            steps(&both, &split(&[&[0], &[1]])),
            [Step::AllToAll { axes: vec![1], split: 1, concat: 0 }]
        );
        assert_eq!(
            steps(&both, &split(&[&[1], &[]])),
            [
                Step::AllGather { axes: vec![0, 1], dimension: 0 },
                Step::AllSlice { axes: vec![1], dimension: 0 }
            ]
        );
    }

    #[test]
    fn splits_move_by_exchange_gather_or_slice() {
        let (rows, columns) = (split(&[&[0], &[]]), split(&[&[], &[0]]));
        assert_eq!(steps(&rows, &columns), [Step::AllToAll { axes: vec![0], split: 1, concat: 0 }]);
        let whole = split(&[&[], &[]]);
        assert_eq!(steps(&rows, &whole), [Step::AllGather { axes: vec![0], dimension: 0 }]);
        assert_eq!(steps(&whole, &columns), [Step::AllSlice { axes: vec![0], dimension: 1 }]);
    }

    #[test]
    fn applying_the_steps_arrives() {
        let lists: [&[usize]; 5] = [&[], &[0], &[1], &[0, 1], &[1, 0]];
        let mut all = Vec::new();
        for a in lists {
            for b in lists.into_iter().filter(|b| !b.iter().any(|axis| a.contains(axis))) {
                let splits = split(&[a, b]);
                for partial in [vec![], vec![(0, SUM)], vec![(1, Reduction::Max)], vec![(0, SUM), (1, SUM)]] {
                    if partial.iter().all(|entry| !splits.uses(entry.0)) {
                        all.push(splits.clone().partial(partial));
                    }
                }
            }
        }
        for from in &all {
            for to in all.iter().filter(|to| to.partial.iter().all(|entry| from.partial.contains(entry))) {
                let arrived = steps(from, to).iter().fold(from.clone(), |now, step| apply(&now, step));
                assert_eq!(&arrived, to, "from {from:?}");
            }
        }
    }

    #[test]
    fn costs_are_received_bytes() {
        let axis = |name: &str, size| Axis { name: name.into(), size };
        let grid = Grid { axes: vec![axis("tp", 4), axis("dp", 2)] };
        let (rows, whole) = (split(&[&[0]]), split(&[&[]]));
        let partial = whole.clone().partial([(0, SUM)]);
        assert_eq!(cost(&rows, &whole, 64, &grid), 48);
        assert_eq!(cost(&partial, &whole, 64, &grid), 96);
        assert_eq!(cost(&partial, &rows, 64, &grid), 48);
        assert_eq!(cost(&whole, &rows, 64, &grid), 0);
        assert_eq!(cost(&split(&[&[1, 0]]), &whole, 64, &grid), 56);
    }
}
