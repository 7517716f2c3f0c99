//! How the units are split: attention over its key-value heads, lookups over features, rows of ids, or rows of the
//! table.

use t3c_ir::{
    TensorType,
    units::{Unit, UnitKind},
};
use t3c_schedule::Reduction;

use super::sharding::Sharding;

/// Shardings that a unit wants of its operands, and those of its results.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitSharding {
    /// Of each operand.
    pub operands: Vec<Sharding>,
    /// Of each result.
    pub results: Vec<Sharding>,
    /// The axis over which a lookup's table is split by rows: ids of other devices' rows give zero.
    pub masked: Option<usize>,
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

/// The sharding of a unit whose operands are split like this.
pub fn sharding(kind: UnitKind, operands: &[&[Option<usize>]]) -> UnitSharding {
    match kind {
        UnitKind::Lookup => lookup(operands[0], operands[1]),
        UnitKind::LookupGrad => lookup_grad(operands[0], operands[1]),
        UnitKind::Attention => attention(operands, &[1, 1, 1], &[1], &[4]),
        UnitKind::AttentionGrad if operands.len() == 6 => {
            attention(operands, &[1, 1, 1, NONE, NONE, 1], &[1, 1, 1], &[5, 4, 3])
        }
        UnitKind::AttentionGrad => attention(operands, &[1, 1, 1, NONE, 1], &[1, 1, 1], &[5, 4, 3]),
        UnitKind::AttentionPaged => attention(operands, &[1, 1, 1, 2, 2], &[1, 2, 2], &[4, 5, 4]),
        UnitKind::Route => whole(operands, &[3, 3, 3]),
        UnitKind::Grouped | UnitKind::GroupedGrad => whole(operands, &[4]),
    }
}

/// Every device does the whole of it.
fn whole(operands: &[&[Option<usize>]], results: &[usize]) -> UnitSharding {
    let all = |rank: usize| Sharding::split(vec![None; rank]);
    UnitSharding {
        operands: operands.iter().map(|splits| all(splits.len())).collect(),
        results: results.iter().map(|&rank| all(rank)).collect(),
        masked: None,
    }
}

/// No dimension of an operand holds heads.
const NONE: usize = usize::MAX;

/// Operand `i` has its key-value heads in dimension `at[i]`, result `j` in dimension `results[j]` of rank
/// `ranks[j]`. Caches decide how heads are split, then keys and values, then queries. Queries may also be split
/// over the groups of a head, in dimension 2; keys and values are whole then, and their gradients are
/// contributions.
fn attention(
    operands: &[&[Option<usize>]],
    at: &[usize],
    results: &[usize],
    ranks: &[usize],
) -> UnitSharding {
    let found = |(&dimension, splits): (&usize, &&[Option<usize>])| splits.get(dimension).copied().flatten();
    let heads = at.iter().zip(operands).rev().find_map(found);
    let groups = operands[0][2].filter(|axis| heads != Some(*axis));
    let split = |rank: usize, dimension: usize, query: bool| {
        let mut splits = vec![None; rank];
        if let Some(axis) = splits.get_mut(dimension) {
            *axis = heads;
        }
        if query {
            splits[2] = groups;
        }
        Sharding::split(splits)
    };
    let grad = at.get(3) == Some(&NONE);
    // Beside the queries, what has groups is the incoming gradient, the last operand of the gradient.
    let query = |index: usize| index == 0 || (grad && index + 1 == operands.len());
    let wanted = operands
        .iter()
        .enumerate()
        .map(|(index, splits)| split(splits.len(), at.get(index).copied().unwrap_or(NONE), query(index)));
    let mut made: Vec<Sharding> = ranks
        .iter()
        .zip(results)
        .enumerate()
        .map(|(index, (&rank, &dimension))| split(rank, dimension, index == 0))
        .collect();
    if let Some(axis) = groups.filter(|_| grad) {
        made[1..].iter_mut().for_each(|sharding| sharding.partial = vec![(axis, Reduction::Sum)]);
    }
    UnitSharding { operands: wanted.collect(), results: made, masked: None }
}

fn lookup(table: &[Option<usize>], ids: &[Option<usize>]) -> UnitSharding {
    let ids: Vec<Option<usize>> =
        ids.iter().map(|axis| axis.filter(|axis| !table.contains(&Some(*axis)))).collect();
    let result: Vec<Option<usize>> = ids.iter().chain(&table[1..]).copied().collect();
    let partial = table[0].map(|axis| (axis, Reduction::Sum)).into_iter().collect();
    UnitSharding {
        operands: vec![Sharding::split(table), Sharding::split(ids)],
        results: vec![Sharding { splits: result, partial }],
        masked: table[0],
    }
}

fn lookup_grad(ids: &[Option<usize>], dout: &[Option<usize>]) -> UnitSharding {
    let rows = dout[..ids.len()].to_vec();
    let mut partial: Vec<_> = rows.iter().flatten().map(|&axis| (axis, Reduction::Sum)).collect();
    partial.sort_by_key(|entry: &(usize, Reduction)| entry.0);
    let result: Vec<Option<usize>> = [None].iter().chain(&dout[ids.len()..]).copied().collect();
    UnitSharding {
        operands: vec![Sharding::split(rows), Sharding::split(dout)],
        results: vec![Sharding { splits: result, partial }],
        masked: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_splits_its_heads() {
        let q = [None, Some(0), None, None, None];
        let (k, v, end) = ([None; 4], [None; 3], [None; 1]);
        let split = sharding(UnitKind::Attention, &[&q, &k, &v, &end]);
        assert_eq!(split.operands[1].splits, [None, Some(0), None, None]);
        assert_eq!(split.operands[3].splits, [None]);
        assert_eq!(split.results, [Sharding::split([None, Some(0), None, None])]);
        let dout = [None; 4];
        let grad = sharding(UnitKind::AttentionGrad, &[&q, &k, &v, &end, &dout]);
        assert_eq!(grad.operands[4].splits, [None, Some(0), None, None]);
        assert_eq!(grad.results[2].splits, [None, Some(0), None]);
    }

    #[test]
    fn groups_split_on_an_axis_of_their_own() {
        let q = [None, None, Some(0), None, None];
        let (k, v, end, dout) = ([None; 4], [None; 3], [None; 1], [None; 4]);
        let grad = sharding(UnitKind::AttentionGrad, &[&q, &k, &v, &end, &dout]);
        assert_eq!(grad.operands[4].splits, [None, None, Some(0), None]);
        assert_eq!(grad.results[0], Sharding::split(q));
        assert_eq!(grad.results[1].partial, [(0, Reduction::Sum)]);
        assert_eq!(grad.results[1].splits, k);
    }

    #[test]
    fn a_split_cache_decides() {
        let (q, k, v) = ([None; 5], [None; 4], [None; 3]);
        let cache = [None, None, Some(0), None, None];
        let cache_v = [None, None, Some(0), None];
        let split = sharding(UnitKind::AttentionPaged, &[&q, &k, &v, &cache, &cache_v, &[None; 2], &[None]]);
        assert_eq!(split.operands[0].splits[1], Some(0));
        assert_eq!(split.results[1].splits, cache);
        assert_eq!(split.results[2].splits, cache_v);
    }

    #[test]
    fn a_table_split_by_rows_gives_partial_rows() {
        let split = sharding(UnitKind::Lookup, &[&[Some(0), None], &[None]]);
        assert_eq!(split.results[0].partial, [(0, Reduction::Sum)]);
        assert_eq!(split.masked, Some(0));
        let features = sharding(UnitKind::Lookup, &[&[None, Some(0)], &[Some(1)]]);
        assert_eq!(features.results, [Sharding::split([Some(1), Some(0)])]);
    }
}
