//! How the units are split: attention over its key-value heads, lookups over features, rows of ids, or rows of the
//! table.

use t3c_ir::{
    Splits, TensorType, splits,
    units::{Unit, UnitKind},
};
use t3c_schedule::Reduction;

use super::{experts, sharding::Sharding};

/// Shardings that a unit wants of its operands, and those of its results.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitSharding {
    /// Of each operand.
    pub operands: Vec<Sharding>,
    /// Of each result.
    pub results: Vec<Sharding>,
    /// What becomes of indices into a dimension of which every device has a block.
    pub indices: Indices,
}

/// How indices find a device's block.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Indices {
    /// Every device has all that they point to.
    #[default]
    Whole,
    /// They point into the device's own block along these axes: operand `operand` is rebased.
    Own {
        /// Which operand holds them.
        operand: usize,
        /// The axes.
        axes: Vec<usize>,
    },
    /// They may point to other devices' rows along these axes, which count as zero.
    Masked(Vec<usize>),
    /// The first result points into the device's own block along these axes, and is to point into the whole.
    Made(Vec<usize>),
}

/// Whether a unit has the operands and results that its kind has; one made by hand may not.
pub fn is_well_formed(unit: &Unit) -> bool {
    let ranks = |types: &[TensorType]| types.iter().map(|r#type| r#type.shape.len()).collect::<Vec<_>>();
    let (arguments, results) = (ranks(&unit.arguments), ranks(&unit.results));
    match unit.kind {
        UnitKind::Lookup => {
            matches!((arguments.as_slice(), results.as_slice()),
                (&[table, ids], &[found]) if table >= 1 && found == ids + table - 1)
        }
        UnitKind::LookupGrad => {
            matches!((arguments.as_slice(), results.as_slice()),
                (&[ids, dout], &[table]) if dout >= ids && table == dout - ids + 1)
        }
        UnitKind::Attention => {
            let expected: &[usize] = if unit.window.is_some() { &[5, 4, 3, 1, 1] } else { &[5, 4, 3, 1] };
            arguments == expected && results == [4]
        }
        UnitKind::AttentionGrad => {
            let expected: &[usize] =
                if unit.window.is_some() { &[5, 4, 3, 1, 1, 4] } else { &[5, 4, 3, 1, 4] };
            arguments == expected && results == [5, 4, 3]
        }
        UnitKind::AttentionPaged => arguments == [5, 4, 3, 5, 4, 2, 1] && results == [4, 5, 4],
        UnitKind::Route => arguments == [2] && results == [3, 3, 3],
        UnitKind::Grouped => arguments == [4, 4, 3] && results == [4],
        UnitKind::GroupedGrad => arguments == [4, 4, 3] && results == [4],
    }
}

/// What the sharding of a unit depends on.
pub struct Situation<'s> {
    /// How each operand is split.
    pub operands: &'s [&'s [Vec<usize>]],
    /// Whether indices point into the block of the device that has them, along the axes that split them.
    pub aligned: bool,
    /// The axes along which dimension 0 of a gradient of parameters is to be split.
    pub rows: &'s [usize],
    /// Whether a grouped product contracts the third dimension of its weights.
    pub transposed: bool,
    /// How many of the axes that split the tokens of a router split its groups of tokens.
    pub blocks: usize,
}

/// The sharding of a unit.
pub fn sharding(kind: UnitKind, situation: &Situation<'_>) -> UnitSharding {
    let operands = situation.operands;
    match kind {
        UnitKind::Lookup => lookup(operands[0], operands[1], situation.aligned),
        UnitKind::LookupGrad => lookup_grad(operands[0], operands[1], situation),
        UnitKind::Attention => {
            Attention { at: &[1, 1, 1], gradient: None, results: &[(4, 1)] }.split(situation)
        }
        UnitKind::AttentionGrad => {
            let results = &[(5, 1), (4, 1), (3, 1)];
            Attention { at: &[1, 1, 1], gradient: Some(operands.len() - 1), results }.split(situation)
        }
        UnitKind::AttentionPaged => {
            let (at, results) = (&[1, 1, 1, 2, 2], &[(4, 1), (5, 2), (4, 2)]);
            let situation = Situation { aligned: false, ..*situation };
            Attention { at, gradient: None, results }.split(&situation)
        }
        UnitKind::Route => experts::route(operands[0], situation.blocks),
        UnitKind::Grouped => experts::grouped(operands[0], operands[1], situation.transposed),
        UnitKind::GroupedGrad => experts::grouped_grad(operands[0], operands[1], situation.rows),
    }
}

/// Where attention has its key-value heads: operand `i` in dimension `at[i]`, the incoming gradient in dimension 1.
///
/// Caches decide how heads are split, then keys and values, then queries. Queries may also be split over the groups
/// of a head, in dimension 2; keys and values are whole there, and their gradients are contributions.
struct Attention<'s> {
    at: &'s [usize],
    gradient: Option<usize>,
    /// Rank and dimension of the heads of each result.
    results: &'s [(usize, usize)],
}

/// The operand with the end of each token's subtree.
const SUBTREE_END: usize = 3;

impl Attention<'_> {
    fn split(&self, situation: &Situation<'_>) -> UnitSharding {
        let operands = situation.operands;
        let tokens = if situation.aligned { operands[SUBTREE_END][0].clone() } else { vec![] };
        let other = |axes: &[usize], taken: &[usize]| -> Vec<usize> {
            axes.iter().copied().filter(|axis| !taken.contains(axis)).collect()
        };
        let found = |(&dimension, splits): (&usize, &&[Vec<usize>])| {
            Some(other(&splits[dimension], &tokens)).filter(|axes| !axes.is_empty())
        };
        let heads = self.at.iter().zip(operands).rev().find_map(found).unwrap_or_default();
        let groups = other(&operands[0][2], &[tokens.as_slice(), &heads].concat());
        let placed = |rank: usize, at: Option<usize>, query: bool| {
            let mut splits = splits::whole(rank);
            if !tokens.is_empty() {
                splits[0].clone_from(&tokens);
            }
            if let Some(at) = at {
                splits[at].clone_from(&heads);
            }
            if query {
                splits[2].clone_from(&groups);
            }
            Sharding::split(splits)
        };
        let operand = |(index, splits): (usize, &&[Vec<usize>])| {
            let gradient = self.gradient == Some(index);
            let at = self.at.get(index).copied().or(gradient.then_some(1));
            placed(splits.len(), at, index == 0 || gradient)
        };
        let wanted = operands.iter().enumerate().map(operand).collect();
        let made = |(index, &(rank, at)): (usize, &(usize, usize))| {
            let made = placed(rank, Some(at), index == 0);
            let contributes = self.gradient.is_some() && index > 0;
            made.partial(groups.iter().filter(|_| contributes).map(|&axis| (axis, Reduction::Sum)))
        };
        let results = self.results.iter().enumerate().map(made).collect();
        let indices = own(SUBTREE_END, tokens.clone());
        UnitSharding { operands: wanted, results, indices }
    }
}

fn own(operand: usize, axes: Vec<usize>) -> Indices {
    if axes.is_empty() { Indices::Whole } else { Indices::Own { operand, axes } }
}

fn lookup(table: &[Vec<usize>], ids: &[Vec<usize>], aligned: bool) -> UnitSharding {
    let shared = table[0].iter().zip(&ids[0..1.min(ids.len())].concat()).take_while(|(a, b)| a == b).count();
    let (mut table, mut indices) = (table.to_vec(), Indices::Whole);
    let mut taken: Vec<usize> = table.concat();
    let mut partial = vec![];
    if aligned {
        table[0].truncate(shared);
        taken = table[1..].concat();
        indices = own(1, table[0].clone());
    } else if !table[0].is_empty() {
        partial = table[0].iter().map(|&axis| (axis, Reduction::Sum)).collect();
        indices = Indices::Masked(table[0].clone());
    }
    let kept = |axes: &Vec<usize>| axes.iter().copied().take_while(|axis| !taken.contains(axis)).collect();
    let ids: Splits = ids.iter().map(kept).collect();
    let result: Splits = ids.iter().chain(&table[1..]).cloned().collect();
    UnitSharding {
        operands: vec![Sharding::split(table), Sharding::split(ids)],
        results: vec![Sharding::split(result).partial(partial)],
        indices,
    }
}

fn lookup_grad(ids: &[Vec<usize>], dout: &[Vec<usize>], situation: &Situation<'_>) -> UnitSharding {
    let own_block = situation.aligned && !ids.is_empty();
    let ids: Splits = if own_block {
        ids.to_vec()
    } else {
        let kept = |axes: &Vec<usize>| {
            axes.iter().copied().take_while(|axis| !situation.rows.contains(axis)).collect()
        };
        dout[..ids.len()].iter().map(kept).collect()
    };
    let features: Splits = {
        let taken = ids.concat();
        let kept =
            |axes: &Vec<usize>| axes.iter().copied().take_while(|axis| !taken.contains(axis)).collect();
        dout[ids.len()..].iter().map(kept).collect()
    };
    let used = [ids.concat(), features.concat()].concat();
    let rows: Vec<usize> = if own_block {
        ids[0].clone()
    } else {
        situation.rows.iter().copied().take_while(|axis| !used.contains(axis)).collect()
    };
    let summed = ids[usize::from(own_block)..].concat();
    let indices = if own_block { own(0, rows.clone()) } else { masked(&rows) };
    let dout: Splits = ids.iter().chain(&features).cloned().collect();
    let result: Splits = [&rows].into_iter().chain(&features).cloned().collect();
    UnitSharding {
        operands: vec![Sharding::split(ids), Sharding::split(dout)],
        results: vec![Sharding::split(result).partial(summed.into_iter().map(|axis| (axis, Reduction::Sum)))],
        indices,
    }
}

fn masked(axes: &[usize]) -> Indices {
    if axes.is_empty() { Indices::Whole } else { Indices::Masked(axes.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(kind: UnitKind, operands: &[&[&[usize]]], aligned: bool, rows: &[usize]) -> UnitSharding {
        let operands: Vec<Splits> =
            operands.iter().map(|splits| splits.iter().map(|axes| axes.to_vec()).collect()).collect();
        let operands: Vec<&[Vec<usize>]> = operands.iter().map(Vec::as_slice).collect();
        sharding(kind, &Situation { operands: &operands, aligned, rows, transposed: false, blocks: 1 })
    }

    const WHOLE: &[usize] = &[];

    #[test]
    fn attention_splits_its_heads() {
        let q: &[&[usize]] = &[WHOLE, &[0], WHOLE, WHOLE, WHOLE];
        let (k, v, end) = ([WHOLE; 4], [WHOLE; 3], [WHOLE; 1]);
        let split = on(UnitKind::Attention, &[q, &k, &v, &end], false, &[]);
        assert_eq!(split.operands[1].splits[1], [0]);
        assert_eq!(split.operands[3], Sharding::replicated(1));
        assert_eq!(split.results[0].splits[1], [0]);
        let grad = on(UnitKind::AttentionGrad, &[q, &k, &v, &end, &[WHOLE; 4]], false, &[]);
        assert_eq!(grad.operands[4].splits[1], [0]);
        assert_eq!(grad.results[2].splits[1], [0]);
    }

    #[test]
    fn groups_split_on_axes_of_their_own() {
        let q: &[&[usize]] = &[WHOLE, &[0], &[1, 2], WHOLE, WHOLE];
        let (k, v, end, dout) = ([WHOLE, &[0], WHOLE, WHOLE], [WHOLE; 3], [WHOLE; 1], [WHOLE; 4]);
        let grad = on(UnitKind::AttentionGrad, &[q, &k, &v, &end, &dout], false, &[]);
        assert_eq!(grad.operands[4].splits[2], [1, 2]);
        assert_eq!(grad.results[0].splits[2], [1, 2]);
        assert_eq!(grad.results[1].partial, [(1, Reduction::Sum), (2, Reduction::Sum)]);
        assert_eq!(grad.results[1].splits[1], [0]);
    }

    #[test]
    fn aligned_tokens_stay_where_they_are() {
        let q: &[&[usize]] = &[&[0, 1], WHOLE, WHOLE, WHOLE, WHOLE];
        let k: &[&[usize]] = &[&[0, 1], &[1], WHOLE, WHOLE];
        let v: &[&[usize]] = &[&[0], &[1], WHOLE];
        let split = on(UnitKind::Attention, &[q, k, v, &[&[0]]], true, &[]);
        assert_eq!(split.operands[0].splits[..2], [vec![0], vec![1]]);
        assert_eq!(split.operands[1].splits[..2], [vec![0], vec![1]]);
        assert_eq!(split.indices, Indices::Own { operand: 3, axes: vec![0] });
        let rows = on(UnitKind::Lookup, &[&[&[0, 1], WHOLE], &[&[0]]], true, &[]);
        assert_eq!(rows.operands[0].splits, [vec![0], vec![]]);
        assert_eq!(rows.results, [Sharding::split([vec![0], vec![]])]);
        assert_eq!(rows.indices, Indices::Own { operand: 1, axes: vec![0] });
        let back = on(UnitKind::LookupGrad, &[&[&[0]], &[WHOLE, WHOLE]], true, &[]);
        assert_eq!(back.operands[1].splits, [vec![0], vec![]]);
        assert_eq!(back.results, [Sharding::split([vec![0], vec![]])]);
    }

    #[test]
    fn a_split_cache_decides() {
        let (q, k, v) = ([WHOLE; 5], [WHOLE; 4], [WHOLE; 3]);
        let cache: &[&[usize]] = &[WHOLE, WHOLE, &[0], WHOLE, WHOLE];
        let split =
            on(UnitKind::AttentionPaged, &[&q, &k, &v, cache, &cache[..4], &[WHOLE; 2], &[WHOLE]], true, &[]);
        assert_eq!(split.operands[0].splits[1], [0]);
        assert_eq!(split.results[1].splits[2], [0]);
        assert_eq!(split.results[2].splits[2], [0]);
    }

    #[test]
    fn a_table_split_by_rows_gives_partial_rows() {
        let split = on(UnitKind::Lookup, &[&[&[0, 1], WHOLE], &[WHOLE]], false, &[]);
        assert_eq!(split.results[0].partial, [(0, Reduction::Sum), (1, Reduction::Sum)]);
        assert_eq!(split.indices, Indices::Masked(vec![0, 1]));
        let features = on(UnitKind::Lookup, &[&[WHOLE, &[0]], &[&[1]]], false, &[]);
        assert_eq!(features.results, [Sharding::split([vec![1], vec![0]])]);
        let grad = on(UnitKind::LookupGrad, &[&[&[1]], &[&[1], WHOLE]], false, &[0]);
        assert_eq!(grad.results, [Sharding::split([vec![0], vec![]]).partial([(1, Reduction::Sum)])]);
        assert_eq!(grad.indices, Indices::Masked(vec![0]));
    }
}
