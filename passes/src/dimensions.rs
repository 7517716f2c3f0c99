//! Where a dimension of an operand goes in an operation's result, and back: what lets a chunk of one be computed
//! from a chunk of the other.

use melior::ir::{attribute::IntegerAttribute, operation::OperationLike};
use t3c_ir::{
    Generic, Op, TensorType, attributes,
    function::callee,
    generic::{Iterator, is_zero},
    units::TRANSPOSED,
    walk,
};

use crate::products::is_product;

/// What an operation is to a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A matrix product into a zero start.
    Product,
    /// A matrix product into another start.
    StartedProduct,
    /// Element by element, perhaps with broadcasting or a permutation of dimensions.
    Elementwise,
    /// Any other structured operation: sums, norms' statistics, short contractions.
    Reduction,
    /// The same elements under another shape.
    View,
    /// A call of a unit, by its name.
    Unit(String),
    /// A structured operation that has not been made a generic.
    Named,
    /// Anything else.
    Other,
}

/// What `op` is.
pub fn kind(module: Op<'_, '_>, op: Op<'_, '_>) -> Kind {
    if op.result_count() != 1 || walk::is(op, "linalg.fill") {
        return Kind::Other;
    }
    if walk::is(op, "linalg.generic") {
        let Ok(generic) = Generic::read(op) else { return Kind::Other };
        return match generic.contraction() {
            Some(contraction) if is_product(&contraction) => match is_zero(generic.init) {
                true => Kind::Product,
                false => Kind::StartedProduct,
            },
            _ if generic.is_elementwise() => Kind::Elementwise,
            _ => Kind::Reduction,
        };
    }
    let name = walk::name(op);
    match name.as_str() {
        "tensor.expand_shape" | "tensor.collapse_shape" | "tensor.cast" => Kind::View,
        "func.call" => match callee(module, op).and_then(|function| function.unit()) {
            Some(unit) => Kind::Unit(unit),
            None => Kind::Other,
        },
        _ if name.starts_with("linalg.") => Kind::Named,
        _ => Kind::Other,
    }
}

/// Where a dimension of an operand is in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// There: an index of the operand's dimension is needed for that index of the result alone.
    At(usize),
    /// It is summed over.
    Reduced,
    /// Each result needs an unknown part of it.
    Mixed,
}

/// Where dimension `d` of operand `number` of `op` is in its result. `parts` is the number of equal contiguous
/// parts into which the dimension is to be divided.
pub fn after(module: Op<'_, '_>, op: Op<'_, '_>, number: usize, d: usize, parts: u64) -> Along {
    match kind(module, op) {
        Kind::Product | Kind::StartedProduct | Kind::Elementwise | Kind::Reduction => {
            structured(op, number, d).unwrap_or(Along::Mixed)
        }
        Kind::View => view(op, d, parts).unwrap_or(Along::Mixed),
        Kind::Unit(name) => {
            let rank = |operand: usize| {
                op.operand(operand)
                    .ok()
                    .and_then(|value| TensorType::of(value).ok())
                    .map_or(0, |t| t.shape.len())
            };
            match (name.as_str(), number, d) {
                ("grouped", 1, _) => weights(module, op, d),
                _ => unit(&name, number, d, rank(if name == "lookup" { 1 } else { 0 })),
            }
        }
        Kind::Named | Kind::Other => Along::Mixed,
    }
}

/// The dimension of operand `number` that becomes dimension `r` of the result.
pub fn before(module: Op<'_, '_>, op: Op<'_, '_>, number: usize, r: usize, parts: u64) -> Option<usize> {
    let rank = TensorType::of(op.operand(number).ok()?).ok()?.shape.len();
    (0..rank).find(|&d| after(module, op, number, d, parts) == Along::At(r))
}

/// Whether `op` can compute a contiguous part of its result along dimension `r` without computing the rest.
pub fn is_divisible(module: Op<'_, '_>, op: Op<'_, '_>, r: usize, parts: u64) -> bool {
    match kind(module, op) {
        Kind::Product | Kind::StartedProduct | Kind::Elementwise | Kind::Reduction => true,
        Kind::View => before(module, op, 0, r, parts).is_some(),
        Kind::Unit(name) => match name.as_str() {
            "lookup" | "lookup_grad" | "grouped" | "grouped_grad" => true,
            "attention" => r < 3,
            _ => false,
        },
        Kind::Named | Kind::Other => false,
    }
}

fn structured(op: Op<'_, '_>, number: usize, d: usize) -> Option<Along> {
    let generic = Generic::read(op).ok()?;
    let index = *generic.maps.get(number)?.get(d)?;
    if generic.iterators[index] == Iterator::Reduction {
        return Some(Along::Reduced);
    }
    generic.output_map().iter().position(|&other| other == index).map(Along::At)
}

/// A part along the outermost dimension of a group is contiguous in the group, and the other way round.
fn view(op: Op<'_, '_>, d: usize, parts: u64) -> Option<Along> {
    let result = TensorType::of(op.result(0).ok()?.into()).ok()?.shape;
    let operand = TensorType::of(op.operand(0).ok()?).ok()?.shape;
    let outermost = |group: &[usize], shape: &[u64]| group.iter().copied().find(|&index| shape[index] > 1);
    let groups = reassociation(op);
    match walk::name(op).as_str() {
        "tensor.cast" => Some(Along::At(d)),
        "tensor.expand_shape" => {
            let outer = outermost(groups.get(d)?, &result)?;
            result[outer].is_multiple_of(parts).then_some(Along::At(outer))
        }
        _ => {
            let at = groups.iter().position(|group| group.contains(&d))?;
            (outermost(&groups[at], &operand)? == d).then_some(Along::At(at))
        }
    }
}

/// The groups of dimensions of the longer shape, one a dimension of the shorter.
fn reassociation(op: Op<'_, '_>) -> Vec<Vec<usize>> {
    let index = |attribute| IntegerAttribute::try_from(attribute).map_or(0, |index| index.value() as usize);
    let groups = attributes::array(op, "reassociation").unwrap_or_default().into_iter();
    groups
        .map(|group| attributes::array_of(group).unwrap_or_default().into_iter().map(index).collect())
        .collect()
}

/// The matrices of a grouped product are `[S,L,F,D]`, or `[S,L,D,F]` transposed.
fn weights(module: Op<'_, '_>, op: Op<'_, '_>, d: usize) -> Along {
    let transposed = callee(module, op).is_some_and(|function| function.0.attribute(TRANSPOSED).is_ok());
    match (d, transposed) {
        (0, _) => Along::At(1),
        (2, false) | (3, true) => Along::At(3),
        (2 | 3, _) => Along::Reduced,
        _ => Along::Mixed,
    }
}

/// `rank` is that of a look-up's row numbers.
fn unit(name: &str, operand: usize, d: usize, rank: usize) -> Along {
    match (name, operand, d) {
        ("lookup", 1, _) => Along::At(d),
        ("lookup", 0, 1..) => Along::At(rank + d - 1),
        ("lookup_grad", 1, _) if d >= rank => Along::At(d - rank + 1),
        ("lookup_grad", ..) => Along::Reduced,
        ("attention", 0, 0..3) => Along::At(d),
        ("attention", 1 | 2, 1) => Along::At(1),
        ("attention", 1 | 2, 0) => Along::Reduced,
        // A row needs the matrix of its expert, which the offsets name.
        ("grouped", 0, 0..3) | ("grouped", 2, 0 | 1) => Along::At(d),
        ("grouped", 0, 3) => Along::Reduced,
        ("grouped_grad", 0..=2, 1) => Along::At(0),
        ("grouped_grad", 0, 3) => Along::At(3),
        ("grouped_grad", 1, 3) => Along::At(2),
        ("grouped_grad", ..) => Along::Reduced,
        _ => Along::Mixed,
    }
}
