//! Recognises the offset of a device's own chunk: its place in a group times the chunk's extent.

use std::collections::BTreeMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{Op, Val, attributes::integers, ffi, generic::splat_value, walk};
use t3c_schedule::Grid;

/// The axes, outermost first, of the group whose devices' chunks of `part` of a dimension of `whole` start at
/// `offset`.
pub fn chunk_offset(grid: &Grid, offset: Val<'_, '_>, whole: u64, part: u64) -> Option<Vec<usize>> {
    let linear = Linear::of(grid, offset)?;
    if linear.constant != 0 || part == 0 {
        return None;
    }
    let mut axes: Vec<(usize, u64)> = linear
        .axes
        .into_iter()
        .filter(|(axis, factor)| *factor != 0 && grid.axes[*axis].size > 1)
        .map(|(axis, factor)| u64::try_from(factor).ok().map(|factor| (axis, factor)))
        .collect::<Option<_>>()?;
    axes.sort_by_key(|(_, factor)| *factor);
    let mut reach = part;
    for (axis, factor) in &axes {
        if *factor != reach {
            return None;
        }
        reach *= u64::from(grid.axes[*axis].size);
    }
    (reach == whole && !axes.is_empty()).then(|| axes.into_iter().rev().map(|(axis, _)| axis).collect())
}

/// A sum of device coordinates, scaled, and a constant.
struct Linear {
    axes: BTreeMap<usize, i64>,
    constant: i64,
}

impl Linear {
    fn of(grid: &Grid, value: Val<'_, '_>) -> Option<Self> {
        let op = ffi::value_owner(value)?;
        let constant = |number: i64| Linear { axes: BTreeMap::new(), constant: number };
        let operand = |index| op.operand(index).ok().and_then(|value| Linear::of(grid, value));
        match walk::name(op).as_str() {
            "arith.constant" => splat_value(value).map(|number| constant(number as i64)),
            "arith.index_cast" => operand(0),
            "arith.addi" => operand(0)?.plus(operand(1)?),
            "arith.muli" => {
                let (x, y) = (operand(0)?, operand(1)?);
                if x.axes.is_empty() { y.times(x.constant) } else { y.as_constant().and_then(|c| x.times(c)) }
            }
            "shard.process_multi_index" => {
                let result = (0..op.result_count()).find(|index| {
                    op.result(*index).is_ok_and(|r| ffi::value_key(r.into()) == ffi::value_key(value))
                })?;
                let axis = multi_index_axes(grid, op).get(result).copied()?;
                Some(Linear { axes: BTreeMap::from([(axis, 1)]), constant: 0 })
            }
            "shard.process_linear_index" => {
                let mut factor = 1;
                let mut axes = BTreeMap::new();
                for (axis, size) in grid.axes.iter().enumerate().rev() {
                    axes.insert(axis, factor);
                    factor *= i64::from(size.size);
                }
                Some(Linear { axes, constant: 0 })
            }
            _ => None,
        }
    }

    fn as_constant(&self) -> Option<i64> {
        self.axes.is_empty().then_some(self.constant)
    }

    fn plus(mut self, other: Linear) -> Option<Self> {
        for (axis, factor) in other.axes {
            let sum = self.axes.entry(axis).or_insert(0);
            *sum = sum.checked_add(factor)?;
        }
        self.constant = self.constant.checked_add(other.constant)?;
        Some(self)
    }

    fn times(mut self, factor: i64) -> Option<Self> {
        for coefficient in self.axes.values_mut() {
            *coefficient = coefficient.checked_mul(factor)?;
        }
        self.constant = self.constant.checked_mul(factor)?;
        Some(self)
    }
}

/// The axes whose coordinates a `shard.process_multi_index` gives; all where it names none.
pub fn multi_index_axes(grid: &Grid, op: Op<'_, '_>) -> Vec<usize> {
    let named = integers(op, "axes").unwrap_or_default();
    let named: Vec<usize> = named.into_iter().filter_map(|axis| axis.try_into().ok()).collect();
    let all = if named.is_empty() { (0..grid.axes.len()).collect() } else { named };
    all.into_iter().filter(|axis| *axis < grid.axes.len()).collect()
}
