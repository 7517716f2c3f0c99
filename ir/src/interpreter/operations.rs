//! What each device does alone: constants, views, slices and elementwise operations.

use std::rc::Rc;

use melior::ir::{
    attribute::{FloatAttribute, IntegerAttribute},
    operation::OperationLike,
};
use t3c_schedule::Element;

use super::{
    Interpreter, Lanes, LoopProgram, Scope, Value, concatenate,
    tensor::strided_region,
    value::{Buffer, is_float, round_float, wrap_int},
};
use crate::{
    Error, Op, TensorType,
    attributes::{integer, integers},
    ffi,
    generic::{number_from_bytes, scalar_op},
    scalar::{Ref, ScalarBody, ScalarOp},
    walk,
};

/// MLIR's mark for an offset or size that is an operand.
const DYNAMIC: i64 = i64::MIN;

impl<'c, 'a> Interpreter<'c, 'a> {
    /// An operation that involves no other device.
    pub(super) fn local(&self, operation: Op<'c, 'a>, scope: &Scope) -> Result<Vec<Lanes>, Error> {
        let operands = self.operands(operation, scope)?;
        let name = walk::name(operation);
        let devices = self.grid.devices() as usize;
        let per_device = |run: &dyn Fn(&[&Value]) -> Result<Value, Error>| -> Result<Vec<Lanes>, Error> {
            let lanes = (0..devices)
                .map(|device| run(&operands.iter().map(|lanes| &lanes[device]).collect::<Vec<_>>()))
                .collect::<Result<Lanes, Error>>()?;
            Ok(vec![lanes])
        };
        let mut result = self.type_of(operation.result(0)?.into())?;
        match name.as_str() {
            "arith.constant" => {
                let value = self.constant(operation, result)?;
                Ok(vec![vec![value; devices]])
            }
            "tensor.empty" => Ok(vec![vec![Value::uninitialised(result); devices]]),
            "tensor.collapse_shape" | "tensor.expand_shape" | "tensor.cast" | "tensor.reshape" => {
                per_device(&|values| {
                    if values[0].r#type.elements() != result.elements() {
                        return Err(Error::at(operation, "changes the number of elements"));
                    }
                    Ok(Value { r#type: result.clone(), data: Rc::clone(&values[0].data) })
                })
            }
            "tensor.splat" => per_device(&|values| {
                let data = values[0].data.pick(&vec![0; result.elements() as usize]);
                Ok(Value::new(result.clone(), data))
            }),
            "tensor.from_elements" => per_device(&|values| {
                let mut whole = (*Value::uninitialised(result.clone()).data).clone();
                values.iter().enumerate().for_each(|(at, value)| whole.put(&[at], &value.data));
                Ok(Value::new(result.clone(), whole))
            }),
            "tensor.concat" => {
                let dimension = integer(operation, "dim").unwrap_or(0) as usize;
                per_device(&|values| {
                    let parts: Vec<Value> = values.iter().map(|&value| value.clone()).collect();
                    concatenate(&parts, dimension).map_err(|message| Error::at(operation, message))
                })
            }
            "tensor.extract_slice" => per_device(&|values| {
                let slice = Slice::read(operation, &values[1..])?;
                let data = values[0].data.pick(&slice.positions(operation, &values[0].r#type)?);
                Ok(Value::new(result.clone(), data))
            }),
            "tensor.insert_slice" => per_device(&|values| {
                let slice = Slice::read(operation, &values[2..])?;
                let mut data = (*values[1].data).clone();
                data.put(&slice.positions(operation, &values[1].r#type)?, &values[0].data);
                Ok(Value::new(result.clone(), data))
            }),
            "tensor.extract" => {
                result.shape.clear();
                per_device(&|values| self.extract(operation, values, &result))
            }
            _ => self.elementwise(operation, &name, &operands, &result).map(|lanes| vec![lanes]),
        }
    }

    fn constant(&self, operation: Op<'c, 'a>, result: TensorType) -> Result<Value, Error> {
        let attribute = operation.attribute("value")?;
        let count = result.elements() as usize;
        // The attribute's own element: `result` may be widened.
        let element = TensorType::of(operation.result(0)?.into())?.element;
        let numbers = if let Ok(float) = FloatAttribute::try_from(attribute) {
            vec![float.value()]
        } else if let Ok(integer) = IntegerAttribute::try_from(attribute) {
            return Ok(Value::new(result, Buffer::Int(vec![wrap_int(integer.value(), element)])));
        } else {
            let size = element.bytes() as usize;
            let unsupported = || {
                Error::at(operation, format!("unsupported constant {attribute}; expected a dense constant"))
            };
            let (bytes, splat) = ffi::dense_bytes(attribute, size).ok_or_else(unsupported)?;
            if element == Element::I1 && !splat {
                return Err(unsupported());
            }
            if matches!(element, Element::I64) {
                let ints: Vec<i64> = bytes
                    .chunks_exact(8)
                    .filter_map(|bytes| bytes.try_into().ok().map(i64::from_le_bytes))
                    .collect();
                let ints = if splat { vec![ints[0]; count] } else { ints };
                return Ok(Value::new(result, Buffer::Int(ints)));
            }
            let numbers = bytes
                .chunks_exact(size)
                .map(|bytes| number_from_bytes(bytes, element))
                .collect::<Option<Vec<f64>>>()
                .ok_or_else(unsupported)?;
            if splat { vec![numbers[0]; count] } else { numbers }
        };
        let data = if is_float(result.element) {
            Buffer::Float(numbers.into_iter().map(|number| round_float(number, element)).collect())
        } else {
            Buffer::Int(numbers.into_iter().map(|number| wrap_int(number as i64, element)).collect())
        };
        Ok(Value::new(result, data))
    }

    fn extract(&self, operation: Op<'c, 'a>, values: &[&Value], result: &TensorType) -> Result<Value, Error> {
        let mut at = 0;
        for (index, &extent) in values[1..].iter().zip(&values[0].r#type.shape) {
            let index = index.data.ints().first().copied().unwrap_or(-1);
            if index < 0 || index as u64 >= extent {
                return Err(Error::at(operation, format!("index {index} is outside 0..{extent}")));
            }
            at = at * extent as usize + index as usize;
        }
        Ok(Value::new(result.clone(), values[0].data.pick(&[at])))
    }

    /// `arith` and `math` operations on tensors or scalars.
    fn elementwise(
        &self,
        operation: Op<'c, 'a>,
        name: &str,
        operands: &[Lanes],
        result: &TensorType,
    ) -> Result<Lanes, Error> {
        let op =
            scalar_op(operation, name).filter(|op| !matches!(op, ScalarOp::Index(_))).ok_or_else(|| {
                let hint = if name.starts_with("linalg.") {
                    "; make it a linalg.generic first (linalg-generalize-named-ops)"
                } else {
                    ""
                };
                Error::at(operation, format!("`{name}` has no meaning in the interpreter{hint}"))
            })?;
        (0..self.grid.devices() as usize)
            .map(|device| {
                let values: Vec<&Value> = operands.iter().map(|lanes| &lanes[device]).collect();
                let types: Vec<TensorType> = values.iter().map(|value| value.r#type.clone()).collect();
                let elements: Vec<Element> =
                    types.iter().map(|r#type| r#type.element).chain([result.element]).collect();
                let mut body = ScalarBody::new(elements);
                let arguments: Vec<Ref> = (0..values.len()).map(Ref::Arg).collect();
                let value = body.push(op, &arguments, result.element);
                let program = LoopProgram::elementwise(&body.yield_(value), &types, result, self.widen);
                let mut out = (*Value::uninitialised(result.clone()).data).clone();
                let inputs: Vec<&Buffer> = values.iter().map(|value| &*value.data).collect();
                program.run(&inputs, &[], &mut out).map_err(|message| Error::at(operation, message))?;
                Ok(Value::new(result.clone(), out))
            })
            .collect()
    }
}

/// The box of a slice operation.
struct Slice {
    offsets: Vec<u64>,
    sizes: Vec<u64>,
    strides: Vec<u64>,
}

impl Slice {
    /// From the static attributes, with `dynamic` values (offsets, sizes, strides, in this order) where they
    /// are marked.
    fn read(operation: Op<'_, '_>, dynamic: &[&Value]) -> Result<Self, Error> {
        let mut dynamic = dynamic.iter().map(|value| value.data.ints().first().copied().unwrap_or(0));
        let mut part = |name: &str| {
            integers(operation, name)
                .ok_or_else(|| Error::at(operation, format!("has no {name}")))?
                .into_iter()
                .map(|fixed| {
                    let value = if fixed == DYNAMIC { dynamic.next().unwrap_or(-1) } else { fixed };
                    u64::try_from(value)
                        .map_err(|_| Error::at(operation, format!("{name} has the negative entry {value}")))
                })
                .collect::<Result<Vec<u64>, Error>>()
        };
        Ok(Self {
            offsets: part("static_offsets")?,
            sizes: part("static_sizes")?,
            strides: part("static_strides")?,
        })
    }

    fn positions(&self, operation: Op<'_, '_>, r#type: &TensorType) -> Result<Vec<usize>, Error> {
        let inside =
            self.offsets.iter().zip(&self.sizes).zip(&self.strides).zip(&r#type.shape).all(
                |(((&offset, &size), &stride), &extent)| size == 0 || offset + (size - 1) * stride < extent,
            );
        if !inside || self.offsets.len() != r#type.shape.len() {
            return Err(Error::at(operation, format!("the slice is not inside {type}")));
        }
        Ok(strided_region(&r#type.shape, &self.offsets, &self.sizes, &self.strides))
    }
}
