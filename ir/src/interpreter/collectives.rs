//! Collectives on host values, in the order of addition that every backend uses.

use t3c_schedule::{
    CollectiveKind, Element, Grid, Reduction,
    chunks::{chunk_range, divides},
    ring::addition_order,
};

use super::{
    tensor::region,
    value::{Buffer, Value, round_float, wrap_int},
};
use crate::TensorType;

/// A collective over the groups of a grid.
pub(super) struct Exchange<'g> {
    pub kind: CollectiveKind,
    pub grid: &'g Grid,
    pub axes: Vec<usize>,
    /// The dimension that is scattered, gathered, sliced or split.
    pub dimension: usize,
    /// Where an all-to-all lays the received pieces.
    pub concatenate: usize,
    pub reduction: Reduction,
}

impl Exchange<'_> {
    /// From each device's operand to each device's result.
    pub fn run(&self, inputs: &[Value]) -> Result<Vec<Value>, String> {
        if let Some(axis) = self.axes.iter().find(|&&axis| axis >= self.grid.axes.len()) {
            return Err(format!("the grid has no axis {axis}"));
        }
        (0..inputs.len() as u32)
            .map(|device| {
                let (members, position) = self.grid.group(device, &self.axes);
                let group: Vec<&Value> = members.iter().map(|&member| &inputs[member as usize]).collect();
                self.one(&group, position)
            })
            .collect()
    }

    fn one(&self, group: &[&Value], position: u32) -> Result<Value, String> {
        let devices = group.len() as u32;
        match self.kind {
            CollectiveKind::AllReduce => Ok(self.reduce(group.iter().map(|&value| value.clone()))),
            CollectiveKind::ReduceScatter => {
                let parts = addition_order(position, devices)
                    .map(|device| self.piece(group[device as usize], position, devices))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(self.reduce(parts.into_iter()))
            }
            CollectiveKind::AllSlice => self.piece(group[position as usize], position, devices),
            CollectiveKind::AllGather => {
                let parts: Vec<Value> = group.iter().map(|&value| value.clone()).collect();
                concatenate(&parts, self.dimension)
            }
            CollectiveKind::AllToAll => {
                let parts = group.iter().map(|value| self.piece(value, position, devices)).collect::<Result<
                    Vec<_>,
                    _,
                >>(
                )?;
                concatenate(&parts, self.concatenate)
            }
        }
    }

    fn piece(&self, value: &Value, chunk: u32, devices: u32) -> Result<Value, String> {
        let mut r#type = value.r#type.clone();
        let extent = *r#type.shape.get(self.dimension).ok_or("the dimension is beyond the rank")?;
        if !divides(extent, devices) {
            return Err(format!("{devices} devices do not divide dimension {} of {extent}", self.dimension));
        }
        let range = chunk_range(extent, devices, chunk);
        let mut offsets = vec![0; r#type.shape.len()];
        offsets[self.dimension] = range.start;
        let whole = r#type.shape.clone();
        r#type.shape[self.dimension] = range.end - range.start;
        let data = value.data.pick(&region(&whole, &offsets, &r#type.shape));
        Ok(Value::new(r#type, data))
    }

    fn reduce(&self, mut parts: impl Iterator<Item = Value>) -> Value {
        let Some(first) = parts.next() else {
            return Value::int(0);
        };
        let element = first.r#type.element;
        let mut sum = (*first.data).clone();
        for part in parts {
            match (&mut sum, &*part.data) {
                (Buffer::Float(sum), Buffer::Float(part)) => {
                    sum.iter_mut().zip(part).for_each(|(x, &y)| *x = self.combine(*x, y, element));
                }
                (Buffer::Int(sum), Buffer::Int(part)) => {
                    let max = self.reduction == Reduction::Max;
                    sum.iter_mut().zip(part).for_each(|(x, &y)| {
                        *x = wrap_int(if max { (*x).max(y) } else { x.wrapping_add(y) }, element);
                    });
                }
                _ => {}
            }
        }
        Value::new(first.r#type, sum)
    }

    fn combine(&self, x: f64, y: f64, element: Element) -> f64 {
        match self.reduction {
            Reduction::Max if x.is_nan() || y.is_nan() => f64::NAN,
            Reduction::Max => x.max(y),
            _ => round_float(x + y, element),
        }
    }
}

/// Parts one after another along `dimension`.
pub(super) fn concatenate(parts: &[Value], dimension: usize) -> Result<Value, String> {
    let first = parts.first().ok_or("nothing to concatenate")?;
    let mut shape = first.r#type.shape.clone();
    if dimension >= shape.len() {
        return Err("the dimension is beyond the rank".into());
    }
    shape[dimension] = parts.iter().map(|part| part.r#type.shape[dimension]).sum();
    let whole = Value::uninitialised(TensorType::new(shape.clone(), first.r#type.element));
    let mut data = (*whole.data).clone();
    let mut offsets = vec![0; shape.len()];
    for part in parts {
        data.put(&region(&shape, &offsets, &part.r#type.shape), &part.data);
        offsets[dimension] += part.r#type.shape[dimension];
    }
    Ok(Value::new(whole.r#type, data))
}
