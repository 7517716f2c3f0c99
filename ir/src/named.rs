//! Named structured operations (`linalg.matmul`, `linalg.transpose`, …) as [`Generic`]s.
//!
//! Upstream's `linalg-generalize-named-ops` does this too, but turns fills into generics as well, by which passes
//! know a zero start.

use melior::ir::operation::OperationLike;

use crate::{
    Error, Generic, Op, TensorType,
    attributes::{array, integers},
    generic::{Iterator, projected_permutation},
    walk,
};

/// Fixed maps by name, one letter a loop.
const MAPS: [(&str, &str); 9] = [
    ("linalg.matvec", "td,d->t"),
    ("linalg.vecmat", "d,dt->t"),
    ("linalg.dot", "d,d->"),
    ("linalg.batch_matvec", "btd,bd->bt"),
    ("linalg.batch_vecmat", "bd,bdt->bt"),
    ("linalg.matmul_transpose_a", "dt,df->tf"),
    ("linalg.matmul_transpose_b", "td,fd->tf"),
    ("linalg.batch_matmul_transpose_a", "bdt,bdf->btf"),
    ("linalg.batch_matmul_transpose_b", "btd,bfd->btf"),
];

/// Named operations that work element by element.
const ELEMENTWISE: [&str; 25] = [
    "abs",
    "add",
    "ceil",
    "copy",
    "div",
    "div_unsigned",
    "erf",
    "exp",
    "floor",
    "log",
    "map",
    "max",
    "min",
    "mul",
    "negf",
    "powf",
    "reciprocal",
    "round",
    "rsqrt",
    "select",
    "sqrt",
    "square",
    "sub",
    "tanh",
    "elementwise",
];

/// The operation in generic form; `None` where it is no named operation, or one that this table lacks.
///
/// # Errors
/// When its body or operands have no generic form.
pub fn read<'c, 'a>(operation: Op<'c, 'a>) -> Result<Option<Generic<'c, 'a>>, Error> {
    if operation_is_generic(operation) || operation.result_count() != 1 || walk::body(operation).is_none() {
        return Ok(None);
    }
    let Some((maps, loops)) = maps(operation)? else { return Ok(None) };
    let output = maps.last().cloned().unwrap_or_default();
    let kind = |index| if output.contains(&index) { Iterator::Parallel } else { Iterator::Reduction };
    Generic::with_maps(operation, maps, (0..loops).map(kind).collect()).map(Some)
}

fn operation_is_generic(operation: Op<'_, '_>) -> bool {
    !walk::name(operation).starts_with("linalg.") || Generic::is(operation)
}

/// For each operand, its loops; and the number of loops.
#[allow(clippy::type_complexity)]
fn maps(operation: Op<'_, '_>) -> Result<Option<(Vec<Vec<usize>>, usize)>, Error> {
    let name = walk::name(operation);
    let count = operation.operand_count();
    let rank = TensorType::of(operation.result(0)?.into())?.shape.len();
    if let Some(attributes) = array(operation, "indexing_maps") {
        let maps: Option<Vec<Vec<usize>>> = attributes.into_iter().map(projected_permutation).collect();
        let maps = maps.ok_or_else(|| Error::at(operation, "an indexing map is no projected permutation"))?;
        let loops = maps.iter().flatten().max().map_or(0, |last| last + 1);
        return Ok(Some((maps, loops)));
    }
    let given = |attribute: &str| -> Vec<usize> {
        integers(operation, attribute).unwrap_or_default().into_iter().map(|index| index as usize).collect()
    };
    let identity: Vec<usize> = (0..rank).collect();
    Ok(match name.as_str() {
        "linalg.transpose" => {
            let mut input = identity.clone();
            given("permutation")
                .into_iter()
                .enumerate()
                .for_each(|(result, operand)| input[operand] = result);
            Some((vec![input, identity], rank))
        }
        "linalg.broadcast" => {
            let added = given("dimensions");
            let kept = identity.iter().copied().filter(|index| !added.contains(index)).collect();
            Some((vec![kept, identity], rank))
        }
        "linalg.reduce" => {
            let summed = given("dimensions");
            let loops = TensorType::of(operation.operand(0)?)?.shape.len();
            let kept = (0..loops).filter(|index| !summed.contains(index)).collect();
            Some((vec![(0..loops).collect(), kept], loops))
        }
        name if name.strip_prefix("linalg.").is_some_and(|name| ELEMENTWISE.contains(&name)) => {
            let shapes = operation.operands().map(|value| Ok(TensorType::of(value)?.shape.len()));
            let same = shapes.collect::<Result<Vec<usize>, Error>>()?.into_iter().all(|other| other == rank);
            same.then(|| (vec![identity; count], rank))
        }
        name => MAPS.iter().find(|row| row.0 == name).map(|row| letters(row.1)),
    })
}

/// `td,fd->tf` as loops, in order of first appearance in the result, then in the operands.
fn letters(specification: &str) -> (Vec<Vec<usize>>, usize) {
    let operands: Vec<&str> = specification.split([',', '-', '>']).collect();
    let (inputs, output) = (&operands[..operands.len() - 2], operands[operands.len() - 1]);
    let mut order: Vec<char> = output.chars().collect();
    for letter in inputs.iter().flat_map(|operand| operand.chars()) {
        if !order.contains(&letter) {
            order.push(letter);
        }
    }
    let loops = |operand: &&str| -> Vec<usize> {
        operand.chars().filter_map(|letter| order.iter().position(|other| *other == letter)).collect()
    };
    (inputs.iter().chain([&output]).map(loops).collect(), order.len())
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn letters_are_loops_in_the_order_of_the_result() {
        assert_eq!(letters("td,fd->tf"), (vec![vec![0, 2], vec![1, 2], vec![0, 1]], 3));
        assert_eq!(letters("d,d->"), (vec![vec![0], vec![0], vec![]], 1));
    }
}
