//! Reshapes that keep a split dimension outermost: every device reshapes its own block.

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Builder, Op, Splits, TensorType, Val, attributes::integers_attr, attributes::named, splits, walk,
};
use t3c_schedule::{Grid, chunks::divides};

use super::{Error, graph};

/// A `tensor.collapse_shape` or `tensor.expand_shape`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// The dimensions of the finer side that are one dimension of the coarser.
    pub groups: Vec<Vec<usize>>,
    /// The shape of the finer side.
    pub fine: Vec<u64>,
    /// Whether the result is the finer side.
    pub expands: bool,
}

impl Reshape {
    /// Reads an operation; `None` for any other.
    ///
    /// # Errors
    /// When a type is not static.
    pub fn read(operation: Op<'_, '_>) -> Result<Option<Self>, Error> {
        let expands = walk::is(operation, "tensor.expand_shape");
        if !expands && !walk::is(operation, "tensor.collapse_shape") {
            return Ok(None);
        }
        let text = operation.attribute("reassociation").map_err(t3c_ir::Error::from)?.to_string();
        let group = |group: &str| group.split(',').filter_map(|at| at.trim().parse().ok()).collect();
        let groups =
            text.split('[').skip(2).map(|rest| group(rest.split(']').next().unwrap_or_default())).collect();
        let fine = if expands {
            operation.result(0).map_err(t3c_ir::Error::from)?.into()
        } else {
            operation.operand(0).map_err(t3c_ir::Error::from)?
        };
        let fine = TensorType::of(fine).map_err(|error| graph::located(operation, error))?.shape;
        Ok(Some(Self { groups, fine, expands }))
    }

    /// How the result lies where the operand lies like this.
    ///
    /// # Errors
    /// Where a device's block is no block after the reshape.
    pub fn result(&self, operand: &[Vec<usize>], grid: &Grid, location: &str) -> Result<Splits, Error> {
        let mut result = splits::whole(if self.expands { self.fine.len() } else { self.groups.len() });
        for (coarse, group) in self.groups.iter().enumerate() {
            let refused = |dimension| Err(Error::Reshape { location: location.to_owned(), dimension });
            let outermost = group.iter().copied().find(|&at| self.fine[at] > 1).or(group.first().copied());
            let Some(outermost) = outermost else { continue };
            if self.expands {
                let axes = &operand[coarse];
                if !divides(self.fine[outermost], grid.group_size(axes)) {
                    return refused(coarse);
                }
                result[outermost].clone_from(axes);
            } else {
                if let Some(&inner) = group.iter().find(|&&at| at != outermost && !operand[at].is_empty()) {
                    return refused(inner);
                }
                result[coarse].clone_from(&operand[outermost]);
            }
        }
        Ok(result)
    }

    /// The operation on a device's block.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn build<'c, 'a>(
        &self,
        old: Op<'c, 'a>,
        block: Val<'c, 'a>,
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let context = b.context();
        let reassociation = old.attribute("reassociation").map_err(t3c_ir::Error::from)?;
        let mut attributes = vec![named(context, "reassociation", reassociation)];
        if self.expands {
            let shape: Vec<i64> = result.shape.iter().map(|&extent| extent as i64).collect();
            attributes.push(named(context, "static_output_shape", integers_attr(context, &shape)));
        }
        let reshaped = b.op(&walk::name(old), &[block], &[result.to_mlir(context)], &attributes, vec![])?;
        Ok(reshaped.result(0).map_err(t3c_ir::Error::from)?.into())
    }
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    #[test]
    fn the_outermost_dimension_of_a_group_may_be_split() {
        let grid = Grid { axes: vec![Axis { name: "tp".into(), size: 2 }] };
        let reshape =
            |expands| Reshape { groups: vec![vec![0, 1, 2], vec![3]], fine: vec![1, 4, 3, 5], expands };
        let split = |at: usize, rank: usize| {
            let mut splits = splits::whole(rank);
            splits[at] = vec![0];
            splits
        };
        assert_eq!(reshape(true).result(&split(0, 2), &grid, "").unwrap(), split(1, 4));
        assert_eq!(reshape(false).result(&split(1, 4), &grid, "").unwrap(), split(0, 2));
        assert!(matches!(
            reshape(false).result(&split(2, 4), &grid, ""),
            Err(Error::Reshape { dimension: 2, .. })
        ));
        let three = Reshape { fine: vec![1, 3, 4, 5], ..reshape(true) };
        assert!(three.result(&split(0, 2), &grid, "").is_err(), "two devices do not divide three");
    }
}
