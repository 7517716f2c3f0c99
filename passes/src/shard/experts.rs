//! How routing and grouped products are split, and what of an exchange of routed rows is no padding.
//!
//! Rows stand as `[group of tokens, slot of experts, row]`. Tokens split the groups, weights split the slots: where
//! both are on one axis, rows move from groups to slots by an all-to-all, and back after the experts.

use t3c_ir::{
    Splits, splits,
    units::{Unit, UnitKind},
};
use t3c_schedule::{Grid, Reduction, chunks::divides};

use super::{
    sharding::Sharding,
    units::{Indices, UnitSharding},
};

/// A router as far as its rows are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Groups of tokens, slots of experts, and rows of a group and slot, padding included.
    pub rows: [u64; 3],
    /// Experts that the tokens of a group choose, all together.
    pub choices: u64,
}

impl Routing {
    /// Of a routing unit.
    pub fn of(unit: &Unit) -> Option<Self> {
        let rows: [u64; 3] = unit.results.first()?.shape.as_slice().try_into().ok()?;
        let tokens = unit.arguments.first()?.shape.first()? / rows[0].max(1);
        let choices = tokens.checked_mul(unit.top_k?)?;
        (unit.kind == UnitKind::Route).then_some(Self { rows, choices })
    }

    /// Routed rows that the device with most of them holds of a value that lies like `form`, where the experts take
    /// these shares of all rows (none: equal ones).
    pub fn busiest(&self, form: &Sharding, load: &[f64], grid: &Grid) -> u64 {
        let [groups, slots, capacity] = self.rows;
        let parts = |dimension: usize| u64::from(grid.group_size(&form.splits[dimension])).max(1);
        let (groups, held) = (groups / parts(0), (slots / parts(1)).max(1));
        let experts = load.len() as u64;
        let total: f64 = load.iter().sum();
        let share = if experts == 0 || !experts.is_multiple_of(slots) || total <= 0.0 {
            held as f64 / slots as f64
        } else {
            let held = (experts / slots * held) as usize;
            load.chunks(held).map(|own| own.iter().sum::<f64>() / total).fold(0.0, f64::max)
        };
        let rows = (groups as f64 * self.choices as f64 * share).ceil() as u64;
        rows.min(groups.saturating_mul(held).saturating_mul(capacity))
    }
}

/// How many of the axes that split `tokens` tokens fall on boundaries of `groups` groups.
pub fn blocks(tokens: &[usize], groups: u64, grid: &Grid) -> usize {
    (0..=tokens.len()).rev().find(|&count| divides(groups, grid.group_size(&tokens[..count]))).unwrap_or(0)
}

fn without(axes: &[usize], taken: &[&[usize]]) -> Vec<usize> {
    axes.iter().copied().filter(|axis| !taken.iter().any(|taken| taken.contains(axis))).collect()
}

fn sums(axes: &[usize]) -> impl Iterator<Item = (usize, Reduction)> {
    axes.iter().map(|&axis| (axis, Reduction::Sum))
}

/// `(scores [N,E]) → (source [P,S,C], expert [P,S,C], offsets [P,S,L+1])`: over groups.
pub fn route(scores: &[Vec<usize>], blocks: usize) -> UnitSharding {
    let groups = scores[0][..blocks].to_vec();
    let made = Sharding::split(vec![groups.clone(), vec![], vec![]]);
    UnitSharding {
        operands: vec![Sharding::split(vec![groups.clone(), vec![]])],
        results: vec![made; 3],
        indices: if groups.is_empty() { Indices::Whole } else { Indices::Made(groups) },
    }
}

/// `(x [P,S,C,D], w [S,L,F,D], offsets [P,S,L+1]) → [P,S,C,F]`: weights are stationary.
pub fn grouped(x: &[Vec<usize>], w: &[Vec<usize>], transposed: bool) -> UnitSharding {
    let (out, inner) = if transposed { (&w[3], &w[2]) } else { (&w[2], &w[3]) };
    let mut weights: Splits = w.to_vec();
    weights[1].clear();
    let groups = without(&x[0], &[&w[0], out, inner]);
    let rows = |last: &[usize]| Sharding::split(vec![groups.clone(), w[0].clone(), vec![], last.to_vec()]);
    UnitSharding {
        operands: vec![
            rows(inner),
            Sharding::split(weights),
            Sharding::split(vec![groups.clone(), w[0].clone(), vec![]]),
        ],
        results: vec![rows(out).partial(sums(inner))],
        indices: Indices::Whole,
    }
}

/// `(x [P,S,C,D], dy [P,S,C,F], offsets [P,S,L+1]) → [S,L,F,D]`: contributions of the groups of tokens.
pub fn grouped_grad(x: &[Vec<usize>], dy: &[Vec<usize>], slots: &[usize]) -> UnitSharding {
    let slots =
        [x[1].as_slice(), &dy[1], slots].into_iter().find(|axes| !axes.is_empty()).unwrap_or_default();
    let groups = without(if dy[0].is_empty() { &x[0] } else { &dy[0] }, &[slots]);
    let (out, inner) = (without(&dy[3], &[slots, &groups]), without(&x[3], &[slots, &groups, &dy[3]]));
    let rows = |last: &[usize]| Sharding::split(vec![groups.clone(), slots.to_vec(), vec![], last.to_vec()]);
    let mut made = splits::whole(4);
    made[0] = slots.to_vec();
    made[2].clone_from(&out);
    made[3].clone_from(&inner);
    UnitSharding {
        operands: vec![
            rows(&inner),
            rows(&out),
            Sharding::split(vec![groups.clone(), slots.to_vec(), vec![]]),
        ],
        results: vec![Sharding::split(made).partial(sums(&groups))],
        indices: Indices::Whole,
    }
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    #[test]
    fn padding_does_not_count_and_the_busiest_device_does() {
        let grid = Grid { axes: vec![Axis { name: "ep".into(), size: 2 }] };
        let routing = Routing { rows: [2, 2, 16], choices: 20 };
        let groups = Sharding::split(vec![vec![0], vec![], vec![], vec![]]);
        let slots = Sharding::split(vec![vec![], vec![0], vec![], vec![]]);
        assert_eq!(routing.busiest(&groups, &[], &grid), 20);
        assert_eq!(routing.busiest(&slots, &[], &grid), 20);
        assert_eq!(routing.busiest(&slots, &[0.5, 0.25, 0.25, 0.0], &grid), 30);
        assert_eq!(
            routing.busiest(&slots, &[8.0, 0.0, 0.0, 0.0], &grid),
            32,
            "no more than there is room for"
        );
    }

    #[test]
    fn groups_are_split_by_the_axes_that_divide_them() {
        let axis = |size| Axis { name: String::new(), size };
        let grid = Grid { axes: vec![axis(2), axis(3), axis(4)] };
        assert_eq!(blocks(&[0, 1, 2], 6, &grid), 2);
        assert_eq!(blocks(&[0, 1], 1, &grid), 0);
    }
}
