//! Values while a program runs. Floats are kept in f64, rounded to their type after every operation; integers
//! in i64. Sums, products, quotients and roots rounded once from f64 are the correctly rounded f32 results.

use std::rc::Rc;

use t3c_schedule::Element;

use super::tensor::{Data, Tensor};
use crate::{Error, TensorType};

/// Elements of one kind.
#[derive(Clone, Debug)]
pub(super) enum Buffer {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

impl Buffer {
    pub fn floats(&self) -> &[f64] {
        if let Buffer::Float(values) = self { values } else { &[] }
    }

    pub fn ints(&self) -> &[i64] {
        if let Buffer::Int(values) = self { values } else { &[] }
    }

    /// The elements at these positions.
    pub fn pick(&self, positions: &[usize]) -> Buffer {
        match self {
            Buffer::Float(values) => Buffer::Float(positions.iter().map(|&at| values[at]).collect()),
            Buffer::Int(values) => Buffer::Int(positions.iter().map(|&at| values[at]).collect()),
        }
    }

    /// Writes `other`'s elements at these positions.
    pub fn put(&mut self, positions: &[usize], other: &Buffer) {
        match (self, other) {
            (Buffer::Float(to), Buffer::Float(from)) => {
                positions.iter().zip(from).for_each(|(&at, &value)| to[at] = value);
            }
            (Buffer::Int(to), Buffer::Int(from)) => {
                positions.iter().zip(from).for_each(|(&at, &value)| to[at] = value);
            }
            _ => {}
        }
    }
}

/// A tensor (or a scalar, as rank 0) of one device.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub r#type: TensorType,
    pub data: Rc<Buffer>,
}

pub(super) fn is_float(element: Element) -> bool {
    matches!(element, Element::F64 | Element::F32 | Element::F16 | Element::Bf16)
}

/// A float as its element type holds it.
#[inline]
pub(super) fn round_float(value: f64, element: Element) -> f64 {
    if element == Element::F32 { f64::from(value as f32) } else { value }
}

/// An integer as its element type holds it.
#[inline]
pub(super) fn wrap_int(value: i64, element: Element) -> i64 {
    match element {
        Element::I32 => i64::from(value as i32),
        Element::I1 => value & 1,
        _ => value,
    }
}

impl Value {
    pub fn new(r#type: TensorType, data: Buffer) -> Self {
        Self { r#type, data: Rc::new(data) }
    }

    /// A value without contents: not-a-number, so that a read of it shows.
    pub fn uninitialised(r#type: TensorType) -> Self {
        let count = r#type.elements() as usize;
        let data = if is_float(r#type.element) {
            Buffer::Float(vec![f64::NAN; count])
        } else {
            Buffer::Int(vec![0; count])
        };
        Self::new(r#type, data)
    }

    pub fn int(value: i64) -> Self {
        Self::new(TensorType::new([], Element::I64), Buffer::Int(vec![value]))
    }

    /// The tensor as a value; with `widen`, f32 becomes f64.
    pub fn from_tensor(tensor: &Tensor, widen: bool) -> Self {
        let mut r#type = tensor.r#type();
        let data = match &tensor.data {
            Data::I64(values) => Buffer::Int(values.clone()),
            Data::I32(values) => Buffer::Int(values.iter().map(|&value| i64::from(value)).collect()),
            Data::I1(values) => Buffer::Int(values.iter().map(|&value| i64::from(value)).collect()),
            Data::F64(values) => Buffer::Float(values.clone()),
            Data::F32(_) => Buffer::Float(tensor.numbers()),
        };
        if widen && r#type.element == Element::F32 {
            r#type.element = Element::F64;
        }
        Self::new(r#type, data)
    }

    /// The value as a tensor.
    pub fn to_tensor(&self) -> Result<Tensor, Error> {
        let shape = self.r#type.shape.clone();
        match &*self.data {
            Buffer::Float(values) => Tensor::from_numbers(&self.r#type, values),
            Buffer::Int(values) => Ok(Tensor {
                shape,
                data: match self.r#type.element {
                    Element::I64 => Data::I64(values.clone()),
                    Element::I32 => Data::I32(values.iter().map(|&value| value as i32).collect()),
                    _ => Data::I1(values.iter().map(|&value| value & 1 != 0).collect()),
                },
            }),
        }
    }
}
