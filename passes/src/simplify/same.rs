//! Along which grid axes all devices hold the same value: what the signature promises of arguments, followed
//! through the function.

use std::collections::HashMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Op, Val, ffi,
    function::{Function, Port, SPLIT, callee},
    views::Collective,
    walk,
};
use t3c_schedule::{CollectiveKind, Grid};

use super::offsets::multi_index_axes;
use crate::{algebra::tables::mask, group::Group, outline::is_program, pass::PassError};

/// Grid axes, one bit each.
type Axes = u64;

/// For each value of a function's body, by key, the axes along which it is the same on all devices.
pub fn same<'c, 'a>(
    module: Op<'c, 'a>,
    grid: &Grid,
    function: Function<'c, 'a>,
) -> Result<HashMap<usize, Axes>, PassError> {
    let mut known: HashMap<usize, Axes> = HashMap::new();
    // A type that is no static tensor has no parts to speak of.
    let ports = function.argument_ports().unwrap_or_default();
    for (index, argument) in function.arguments().into_iter().enumerate() {
        let axes = ports.get(index).map_or(0, of_port);
        known.insert(ffi::value_key(argument), axes);
    }
    for op in function.body().map(walk::operations).unwrap_or_default() {
        for (index, axes) in results(module, grid, op, &known)?.into_iter().enumerate() {
            known.insert(ffi::value_key(op.result(index)?.into()), axes);
        }
    }
    Ok(known)
}

fn results<'c, 'a>(
    module: Op<'c, 'a>,
    grid: &Grid,
    op: Op<'c, 'a>,
    known: &HashMap<usize, Axes>,
) -> Result<Vec<Axes>, PassError> {
    let count = op.result_count();
    let of = |value: Val<'c, 'a>| known.get(&ffi::value_key(value)).copied().unwrap_or(0);
    if let Some(collective) = Collective::cast(op) {
        let group = mask(&Group::of(module, collective)?.axes);
        let input = of(collective.input()?);
        return Ok(vec![match collective.kind {
            CollectiveKind::AllGather | CollectiveKind::AllReduce => input | group,
            _ => input & !group,
        }]);
    }
    if walk::is(op, "shard.process_multi_index") {
        return Ok(multi_index_axes(grid, op).into_iter().map(|axis| !mask(&[axis])).take(count).collect());
    }
    let callee = callee(module, op);
    if let Some(program) = callee.filter(|callee| is_program(*callee)) {
        let ports = program.result_ports().unwrap_or_default();
        return Ok(ports.iter().map(of_port).take(count).collect());
    }
    let is_unknown = walk::is(op, "func.call") && callee.and_then(Function::body).is_none();
    let same = if is_local(op) && !is_unknown { operands(op, known) } else { 0 };
    Ok(vec![same; count])
}

/// Whether equal operands give equal results on any device.
fn is_local(op: Op<'_, '_>) -> bool {
    let local = ["arith.", "math.", "linalg.", "tensor.", "func.call"];
    walk::walk(op).into_iter().all(|inner| {
        let name = walk::name(inner);
        let call = name == "func.call" && !ffi::same_op(inner, op);
        local.iter().any(|prefix| name.starts_with(prefix)) && !call
    })
}

/// The axes along which everything that an operation reads is the same.
fn operands(op: Op<'_, '_>, known: &HashMap<usize, Axes>) -> Axes {
    let inner = walk::walk(op);
    let own: Vec<usize> = inner
        .iter()
        .flat_map(|op| op.results().map(|r| ffi::value_key(r.into())).collect::<Vec<_>>())
        .collect();
    let outside = inner.iter().flat_map(|op| op.operands().collect::<Vec<_>>()).filter(|value| {
        let key = ffi::value_key(*value);
        // Arguments of inner blocks are not known either, and stand for operands.
        known.contains_key(&key) || (ffi::value_owner(*value).is_some() && !own.contains(&key))
    });
    outside.fold(Axes::MAX, |same, value| same & known.get(&ffi::value_key(value)).copied().unwrap_or(0))
}

/// The axes along which a port is not split. Without `t3.split` nothing is promised.
fn of_port(port: &Port) -> Axes {
    if !port.attributes.iter().any(|(name, _)| name == SPLIT) {
        return 0;
    }
    let axes: Vec<usize> = port.splits().into_iter().flatten().filter(|axis| *axis < 64).collect();
    !mask(&axes)
}
