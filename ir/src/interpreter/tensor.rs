//! Host tensors: what goes into the interpreter and what comes out.

use t3c_schedule::{Element, Grid};

use super::value::round_bf16;
use crate::{Error, TensorType, splits};

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    /// Numbers that bf16 holds.
    Bf16(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I1(Vec<bool>),
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Elements, row-major.
    pub data: Data,
}

impl Tensor {
    /// A tensor of f64.
    pub fn f64(shape: impl Into<Vec<u64>>, values: impl Into<Vec<f64>>) -> Self {
        Self { shape: shape.into(), data: Data::F64(values.into()) }
    }

    /// A tensor of f32.
    pub fn f32(shape: impl Into<Vec<u64>>, values: impl Into<Vec<f32>>) -> Self {
        Self { shape: shape.into(), data: Data::F32(values.into()) }
    }

    /// A tensor of i32.
    pub fn i32(shape: impl Into<Vec<u64>>, values: impl Into<Vec<i32>>) -> Self {
        Self { shape: shape.into(), data: Data::I32(values.into()) }
    }

    /// Its type.
    pub fn r#type(&self) -> TensorType {
        let element = match self.data {
            Data::F64(_) => Element::F64,
            Data::F32(_) => Element::F32,
            Data::Bf16(_) => Element::Bf16,
            Data::I64(_) => Element::I64,
            Data::I32(_) => Element::I32,
            Data::I1(_) => Element::I1,
        };
        TensorType::new(self.shape.clone(), element)
    }

    /// The elements as f64, whatever their type.
    pub fn numbers(&self) -> Vec<f64> {
        match &self.data {
            Data::F64(values) => values.clone(),
            Data::F32(values) | Data::Bf16(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Data::I64(values) => values.iter().map(|&value| value as f64).collect(),
            Data::I32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Data::I1(values) => values.iter().map(|&value| f64::from(u8::from(value))).collect(),
        }
    }

    /// A tensor from numbers, converted to `r#type`'s element.
    ///
    /// # Errors
    /// When the count does not fit, or for an element type without host data (f16).
    pub fn from_numbers(r#type: &TensorType, numbers: &[f64]) -> Result<Self, Error> {
        if numbers.len() as u64 != r#type.elements() {
            return Err(Error::Invalid(format!("{} numbers for a {}", numbers.len(), r#type)));
        }
        let data = match r#type.element {
            Element::F64 => Data::F64(numbers.to_vec()),
            Element::F32 => Data::F32(numbers.iter().map(|&value| value as f32).collect()),
            Element::Bf16 => Data::Bf16(numbers.iter().map(|&value| round_bf16(value) as f32).collect()),
            Element::I64 => Data::I64(numbers.iter().map(|&value| value as i64).collect()),
            Element::I32 => Data::I32(numbers.iter().map(|&value| value as i32).collect()),
            Element::I1 => Data::I1(numbers.iter().map(|&value| value != 0.0).collect()),
            other => return Err(Error::Invalid(format!("the interpreter has no tensors of {other:?}"))),
        };
        Ok(Self { shape: r#type.shape.clone(), data })
    }

    /// The same number everywhere.
    ///
    /// # Errors
    /// For an element type without host data (f16).
    pub fn splat(r#type: &TensorType, number: f64) -> Result<Self, Error> {
        Self::from_numbers(r#type, &vec![number; r#type.elements() as usize])
    }

    /// Reproducible pseudo-random elements: floats uniform in −1..1, integers 0 or 1.
    ///
    /// # Errors
    /// For an element type without host data (f16).
    pub fn random(r#type: &TensorType, seed: u64) -> Result<Self, Error> {
        let float = matches!(r#type.element, Element::F64 | Element::F32 | Element::Bf16 | Element::F16);
        let numbers: Vec<f64> = unit_interval(seed)
            .take(r#type.elements() as usize)
            .map(|number| if float { 2.0 * number - 1.0 } else { f64::from(number >= 0.5) })
            .collect();
        Self::from_numbers(r#type, &numbers)
    }

    /// Reproducible pseudo-random integers in `0..bound`.
    ///
    /// # Errors
    /// For an element type without host data (f16).
    pub fn random_below(r#type: &TensorType, bound: u64, seed: u64) -> Result<Self, Error> {
        let numbers: Vec<f64> = unit_interval(seed)
            .take(r#type.elements() as usize)
            .map(|number| (number * bound as f64).floor())
            .collect();
        Self::from_numbers(r#type, &numbers)
    }
}

/// Uniform numbers in 0..1 (SplitMix64).
fn unit_interval(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// The part of `tensor` that each device holds when it is divided like `splits`.
///
/// # Errors
/// When an axis does not exist or does not divide its dimension.
pub fn scatter(tensor: &Tensor, splits: &[Vec<usize>], grid: &Grid) -> Result<Vec<Tensor>, Error> {
    let part = splits::block(&tensor.shape, splits, grid)?;
    let numbers = tensor.numbers();
    let r#type = TensorType::new(part.clone(), tensor.r#type().element);
    (0..grid.devices())
        .map(|device| {
            let offsets = splits::offsets(&part, splits, grid, device)?;
            Tensor::from_numbers(&r#type, &copy_out(&numbers, &tensor.shape, &offsets, &part))
        })
        .collect()
}

/// The whole tensor from each device's part: the inverse of [`scatter`].
///
/// # Errors
/// When the parts do not fit together, or devices that should hold the same part differ.
pub fn gather(parts: &[Tensor], splits: &[Vec<usize>], grid: &Grid) -> Result<Tensor, Error> {
    let first = parts.first().ok_or_else(|| Error::Invalid("no parts to gather".into()))?;
    if parts.len() != grid.devices() as usize {
        return Err(Error::Invalid(format!("{} parts for {} devices", parts.len(), grid.devices())));
    }
    let part = first.shape.clone();
    let whole = splits::unblock(&part, splits, grid)?;
    let mut numbers = vec![None; whole.iter().product::<u64>() as usize];
    for (device, tensor) in parts.iter().enumerate() {
        if tensor.r#type() != first.r#type() {
            return Err(Error::Invalid(format!("device {device} holds a {}", tensor.r#type())));
        }
        let offsets = splits::offsets(&part, splits, grid, device as u32)?;
        let values = tensor.numbers();
        for (value, at) in values.into_iter().zip(region(&whole, &offsets, &part)) {
            match numbers[at] {
                Some(known) if f64::to_bits(known) != value.to_bits() => {
                    return Err(Error::Invalid(format!(
                        "replicas differ: device {device} has {value} where another has {known}"
                    )));
                }
                _ => numbers[at] = Some(value),
            }
        }
    }
    let numbers: Vec<f64> = numbers.into_iter().map(Option::unwrap_or_default).collect();
    Tensor::from_numbers(&TensorType::new(whole, first.r#type().element), &numbers)
}

/// Row-major strides.
pub(super) fn strides(shape: &[u64]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension] as usize;
    }
    strides
}

/// The positions, in a tensor of `shape`, of the box of `extents` at `offsets`, in the box's row-major order.
pub(super) fn region(shape: &[u64], offsets: &[u64], extents: &[u64]) -> Vec<usize> {
    strided_region(shape, offsets, extents, &vec![1; shape.len()])
}

/// As [`region`], stepping by `steps`.
pub(super) fn strided_region(shape: &[u64], offsets: &[u64], extents: &[u64], steps: &[u64]) -> Vec<usize> {
    let strides = strides(shape);
    let mut positions = vec![0];
    for dimension in 0..shape.len() {
        positions = positions
            .iter()
            .flat_map(|&base| {
                let stride = strides[dimension];
                (0..extents[dimension]).map(move |index| {
                    base + (offsets[dimension] + index * steps[dimension]) as usize * stride
                })
            })
            .collect();
    }
    positions
}

/// The box of `extents` at `offsets`.
pub(super) fn copy_out<T: Copy>(data: &[T], shape: &[u64], offsets: &[u64], extents: &[u64]) -> Vec<T> {
    region(shape, offsets, extents).into_iter().map(|at| data[at]).collect()
}
