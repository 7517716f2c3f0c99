//! Lookups: rows of a table by their ids, and the scatter that is their gradient.

use crate::{
    Builder, Error, TensorType, Val,
    scalar::{Predicate, Ref, ScalarOp},
};

/// Loops over the dimensions of ids.
const IDS: &str = "nopqrs";
/// Loops over a row of the table.
const ROW: &str = "abcdefgh";

/// One letter a dimension of ids, and of a row.
fn letters(ids: usize, row: usize) -> Result<(&'static str, &'static str), Error> {
    IDS.get(..ids).zip(ROW.get(..row)).ok_or_else(|| {
        Error::Mlir(format!(
            "lookups take ids of rank up to {} and rows of rank up to {}",
            IDS.len(),
            ROW.len()
        ))
    })
}

/// `[I…, D…]` from a table `[V, D…]` and ids `[I…]`.
pub(super) fn lookup<'c, 'a>(
    b: &Builder<'c, 'a>,
    table: Val<'c, 'a>,
    ids: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let (r#type, rank) = (TensorType::of(table)?, TensorType::of(ids)?.shape.len());
    let (at, row) = letters(rank, r#type.shape.len().saturating_sub(1))?;
    let extents: Vec<(char, u64)> = row.chars().zip(r#type.shape[1..].iter().copied()).collect();
    let specification = format!("{at}->{at}{row}");
    b.structured_over(&specification, &[ids], &[table], &extents, r#type.element, 0.0, |body| {
        let id = body.to_i64(Ref::Arg(0));
        let lanes = (rank..rank + row.len()).map(|dimension| body.index(dimension));
        let indices: Vec<Ref> = [id].into_iter().chain(lanes).collect();
        body.push(ScalarOp::Extract(0), &indices, r#type.element)
    })
}

/// `[V, D…]` from ids `[I…]` and rows `[I…, D…]`, with `V = rows`.
pub(super) fn lookup_grad<'c, 'a>(
    b: &Builder<'c, 'a>,
    ids: Val<'c, 'a>,
    dout: Val<'c, 'a>,
    rows: u64,
) -> Result<Val<'c, 'a>, Error> {
    let (r#type, rank) = (TensorType::of(dout)?, TensorType::of(ids)?.shape.len());
    let (at, row) = letters(rank, r#type.shape.len().saturating_sub(rank))?;
    let specification = format!("{at},{at}{row}->v{row}");
    b.structured_over(&specification, &[ids, dout], &[], &[('v', rows)], r#type.element, 0.0, |body| {
        let (id, row) = (body.to_i64(Ref::Arg(0)), body.index(0));
        let hit = body.cmp_i(Predicate::Eq, id, row);
        let sum = body.add(Ref::Arg(2), Ref::Arg(1));
        body.select(hit, sum, Ref::Arg(2))
    })
}
