//! How the units are split: attention over its key-value heads, lookups over features, rows of ids, or rows of the
//! table.

use t3c_ir::units::UnitKind;
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

/// The sharding of a unit whose operands are split like this.
pub fn sharding(kind: UnitKind, operands: &[&[Option<usize>]]) -> UnitSharding {
    match kind {
        UnitKind::Lookup => lookup(operands[0], operands[1]),
        UnitKind::LookupGrad => lookup_grad(operands[0], operands[1]),
        UnitKind::Attention => heads(operands, &[1, 1, 1], &[1], &[4]),
        UnitKind::AttentionGrad => {
            let mut all = heads(operands, &[1, 1, 1], &[1, 1, 1], &[5, 4, 3]);
            let dout = all.operands[0].splits.clone();
            all.operands[4] = Sharding::split(dout.into_iter().take(4).collect::<Vec<_>>());
            all
        }
        UnitKind::AttentionPaged => heads(operands, &[1, 1, 1, 2, 2], &[1, 2, 2], &[4, 5, 4]),
    }
}

/// Operand `i` has its heads in dimension `at[i]`, result `j` in dimension `results[j]` of rank `ranks[j]`. Caches
/// decide, then keys and values, then queries.
fn heads(operands: &[&[Option<usize>]], at: &[usize], results: &[usize], ranks: &[usize]) -> UnitSharding {
    let mut axes = at.iter().zip(operands).rev().map(|(&dimension, splits)| splits[dimension]);
    let axis = axes.find(Option::is_some).flatten();
    let split = |rank: usize, dimension: Option<usize>| {
        let mut splits = vec![None; rank];
        if let Some(dimension) = dimension {
            splits[dimension] = axis;
        }
        Sharding::split(splits)
    };
    let wanted =
        operands.iter().enumerate().map(|(index, splits)| split(splits.len(), at.get(index).copied()));
    UnitSharding {
        operands: wanted.collect(),
        results: ranks.iter().zip(results).map(|(&rank, &dimension)| split(rank, Some(dimension))).collect(),
        masked: None,
    }
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
