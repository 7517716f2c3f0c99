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
    match element {
        Element::F32 => f64::from(value as f32),
        Element::Bf16 => round_bf16(value),
        _ => value,
    }
}

/// The nearest number that bf16 holds, of two equally near ones the even one.
pub(super) fn round_bf16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    if value.is_nan() {
        return value;
    }
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f64::from(f32::from_bits(rounded))
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
            Data::F32(_) | Data::Bf16(_) => Buffer::Float(tensor.numbers()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_the_nearest_even() {
        for (number, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (-0.1, -0.100_097_656_25),
            (3.4e38, f64::INFINITY),
            (f64::NEG_INFINITY, f64::NEG_INFINITY),
        ] {
            assert_eq!(round_bf16(number), expected, "{number}");
        }
        assert!(round_bf16(f64::NAN).is_nan());
    }
}
