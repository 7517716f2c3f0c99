//! Explicit collectives: a graph that has any says what one device does.

use t3c_ir::{
    Builder, TensorType, Val,
    attributes::{index_attr, named, symbol_attr},
    ffi,
};

use super::{Axis, Combine, ModelGraph, Op, build::GRID, sizes::check_axes};
use crate::error::Error;

/// The axes of a collective; `None` for any other operation.
pub(super) fn axes(op: &Op) -> Option<&[Axis]> {
    match op {
        Op::AllReduce { axes, .. }
        | Op::AllGather { axes, .. }
        | Op::ReduceScatter { axes, .. }
        | Op::AllSlice { axes, .. }
        | Op::AllToAll { axes, .. } => Some(axes),
        _ => None,
    }
}

/// Builds a collective; over one device it is its operand.
pub(super) fn add<'c, 'a>(
    graph: &ModelGraph,
    b: &Builder<'c, 'a>,
    path: &str,
    op: &Op,
    x: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let names = axes(op).unwrap_or_default();
    check_axes(&format!("{path}.axes"), names.iter())?;
    let axes = graph.sizes.degrees.axes(names);
    let devices = graph.sizes.degrees.group(names);
    let mut r#type = TensorType::of(x)?;
    let on = (GRID, axes.as_slice());
    match op {
        Op::AllReduce { combine, .. } => {
            at_several(devices, x, || b.collective("shard.all_reduce", x, on, None, combine.text(), &r#type))
        }
        Op::AllGather { dimension, .. } => {
            *extent(&mut r#type, path, "dimension", *dimension)? *= devices;
            let dimension = Some(("gather_axis", *dimension));
            at_several(devices, x, || b.collective("shard.all_gather", x, on, dimension, None, &r#type))
        }
        Op::ReduceScatter { dimension, combine, .. } => {
            divide(&mut r#type, path, "dimension", *dimension, devices)?;
            let (dimension, combine) = (Some(("scatter_axis", *dimension)), combine.text());
            at_several(devices, x, || {
                b.collective("shard.reduce_scatter", x, on, dimension, combine, &r#type)
            })
        }
        Op::AllSlice { dimension, .. } => {
            divide(&mut r#type, path, "dimension", *dimension, devices)?;
            let dimension = Some(("slice_axis", *dimension));
            at_several(devices, x, || b.collective("shard.all_slice", x, on, dimension, None, &r#type))
        }
        Op::AllToAll { split, concatenate, .. } => {
            divide(&mut r#type, path, "split", *split, devices)?;
            *extent(&mut r#type, path, "concatenate", *concatenate)? *= devices;
            at_several(devices, x, || all_to_all(b, x, &axes, (*split, *concatenate), &r#type))
        }
        _ => Err(Error::invalid(path, "expected a collective")),
    }
}

impl Combine {
    /// The reduction's name in the IR; a sum is its default.
    fn text(self) -> Option<&'static str> {
        match self {
            Combine::Sum => None,
            Combine::Max => Some("max"),
        }
    }
}

fn at_several<'c, 'a>(
    devices: u64,
    x: Val<'c, 'a>,
    build: impl FnOnce() -> Result<Val<'c, 'a>, t3c_ir::Error>,
) -> Result<Val<'c, 'a>, Error> {
    if devices == 1 { Ok(x) } else { Ok(build()?) }
}

fn extent<'t>(
    r#type: &'t mut TensorType,
    path: &str,
    key: &str,
    dimension: usize,
) -> Result<&'t mut u64, Error> {
    let rank = r#type.shape.len();
    r#type.shape.get_mut(dimension).ok_or_else(|| {
        Error::invalid(format!("{path}.{key}"), format!("{dimension} in a tensor of {rank} dimensions"))
    })
}

fn divide(
    r#type: &mut TensorType,
    path: &str,
    key: &str,
    dimension: usize,
    devices: u64,
) -> Result<(), Error> {
    let extent = extent(r#type, path, key, dimension)?;
    if !extent.is_multiple_of(devices) {
        let message = format!("{devices} devices do not divide the dimension of {extent}");
        return Err(Error::invalid(format!("{path}.{key}"), message));
    }
    *extent /= devices;
    Ok(())
}

fn all_to_all<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    axes: &[usize],
    (split, concatenate): (usize, usize),
    result: &TensorType,
) -> Result<Val<'c, 'a>, t3c_ir::Error> {
    let context = b.context();
    let axes: Vec<i16> = axes.iter().map(|&axis| axis as i16).collect();
    let attributes = [
        named(context, "grid", symbol_attr(context, GRID)),
        named(context, "grid_axes", ffi::i16_array(context, &axes)),
        named(context, "split_axis", index_attr(context, split as i64)),
        named(context, "concat_axis", index_attr(context, concatenate as i64)),
    ];
    let exchanged = b.op("shard.all_to_all", &[x], &[result.to_mlir(context)], &attributes, vec![])?;
    Ok(exchanged.result(0)?.into())
}
