//! Kernels that treat each row alone: compiled for one row, called for any range of rows.
//!
//! Why: between products stand chains of elementwise work and norms over the tokens. Compiled for all rows at once
//! each operation passes over its whole tensor; compiled for one row the whole chain runs while the row is in the
//! first-level cache, and rows can be shared among threads. A row's result cannot depend on the number of rows.
//!
//! A kernel is of this kind if one dimension, outermost in all arguments and results that have it, is a parallel
//! loop of every operation on them, and nothing asks for its index.

use std::collections::HashMap;

use melior::ir::{ValueLike, operation::OperationLike};
use t3c_ir::{
    Builder, Generic, Op, ScalarOp, TensorType, Val, ffi,
    function::{Function, Port},
    generic::Iterator,
    walk,
};

use crate::Error;

/// The rows of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many there are.
    pub count: usize,
    /// For each argument, then each result: bytes from a row to the next; 0 for what all rows share.
    pub strides: Vec<usize>,
    /// Elements of a row over all arguments and results.
    pub elements: usize,
}

/// Fewer elements than this in a row, and calls cost more than they save.
const FEWEST: u64 = 64;

/// Narrows `kernel` to one row, if it is a kernel of rows. Its arguments and results keep their order.
///
/// # Errors
/// When MLIR refuses the narrowed operations.
pub fn narrow(kernel: Function<'_, '_>) -> Result<Option<Rows>, Error> {
    let Some(dims) = Dims::of(kernel) else { return Ok(None) };
    let Some(rows) = dims.rows(kernel) else { return Ok(None) };
    dims.narrow(kernel)?;
    Ok(Some(rows))
}

/// Which dimension of each tensor is the rows.
struct Dims<'c, 'a> {
    of: HashMap<usize, usize>,
    generics: Vec<(Op<'c, 'a>, Generic<'c, 'a>)>,
    count: u64,
}

impl<'c, 'a> Dims<'c, 'a> {
    /// Follows the outermost dimension of the first result through all operations.
    fn of(kernel: Function<'c, 'a>) -> Option<Self> {
        let first = *kernel.results().first()?;
        let count = *TensorType::of(first).ok()?.shape.first()?;
        let mut generics = Vec::new();
        for op in walk::operations(kernel.body()?) {
            if Generic::is(op) {
                generics.push((op, Generic::read(op).ok()?));
            } else if !has_no_rows(op) && !walk::is(op, "tensor.empty") {
                return None;
            }
        }
        let mut dims = Self { of: HashMap::from([(ffi::value_key(first), 0)]), generics, count };
        let mut known = 0;
        while known < dims.of.len() {
            known = dims.of.len();
            for index in 0..dims.generics.len() {
                dims.follow(index)?;
            }
        }
        (count > 1).then_some(dims)
    }

    /// Extends the rows from some operands of an operation to the others; `None` where they do not fit.
    fn follow(&mut self, index: usize) -> Option<()> {
        let (op, generic) = &self.generics[index];
        let result: Val<'c, 'a> = op.result(0).ok()?.into();
        let mut operands: Vec<(Val<'c, 'a>, &[usize])> =
            generic.inputs.iter().copied().zip(generic.maps.iter().map(Vec::as_slice)).collect();
        operands.extend([(generic.init, generic.output_map()), (result, generic.output_map())]);
        let mut row_loop = None;
        for (value, map) in &operands {
            if let Some(&dim) = self.of.get(&ffi::value_key(*value)) {
                let found = *map.get(dim)?;
                if *row_loop.get_or_insert(found) != found {
                    return None;
                }
            }
        }
        let Some(row_loop) = row_loop else { return Some(()) };
        let indexed = generic.body.insts.iter().any(|inst| inst.op == ScalarOp::Index(row_loop));
        let captured = generic.captures.iter().any(|value| self.of.contains_key(&ffi::value_key(*value)));
        if generic.iterators[row_loop] != Iterator::Parallel || indexed || captured {
            return None;
        }
        let mut found = Vec::new();
        for (value, map) in operands {
            if let Some(dim) = map.iter().position(|&index| index == row_loop) {
                found.push((ffi::value_key(value), dim));
            }
        }
        for (key, dim) in found {
            if *self.of.entry(key).or_insert(dim) != dim {
                return None;
            }
        }
        Some(())
    }

    /// The strides of arguments and results, where the rows are outermost in all that have them.
    fn rows(&self, kernel: Function<'c, 'a>) -> Option<Rows> {
        let mut strides = Vec::new();
        let mut elements = 0;
        let arguments = kernel.arguments();
        let ports = arguments.iter().map(|value| (*value, false));
        for (value, must) in ports.chain(kernel.results().into_iter().map(|value| (value, true))) {
            let r#type = TensorType::of(value).ok()?;
            strides.push(match self.of.get(&ffi::value_key(value)) {
                Some(0) if r#type.shape.first() == Some(&self.count) => {
                    let row: u64 = r#type.shape[1..].iter().product();
                    elements += row;
                    (row * r#type.element.bytes()) as usize
                }
                None if !must => 0,
                _ => return None,
            });
        }
        // What no row owns would be computed for each: nothing larger than a row.
        let repeated = self.generics.iter().filter(|(op, _)| {
            op.result(0).is_ok_and(|result| !self.of.contains_key(&ffi::value_key(result.into())))
        });
        let repeated: u64 = repeated.map(|(_, generic)| generic.extents.iter().product::<u64>()).sum();
        (elements >= FEWEST && repeated <= elements).then_some(Rows {
            count: self.count as usize,
            strides,
            elements: elements as usize,
        })
    }

    fn narrow(&self, kernel: Function<'c, 'a>) -> Result<(), Error> {
        let narrowed = |value: Val<'c, 'a>| -> Result<Option<TensorType>, Error> {
            let Some(&dim) = self.of.get(&ffi::value_key(value)) else { return Ok(None) };
            let mut r#type = TensorType::of(value)?;
            r#type.shape[dim] = 1;
            Ok(Some(r#type))
        };
        let ports = |values: &[Val<'c, 'a>], ports: Vec<Port>| -> Result<Vec<Port>, Error> {
            let narrow = |(value, port): (&Val<'c, 'a>, Port)| {
                let r#type = narrowed(*value)?.unwrap_or_else(|| port.r#type.clone());
                Ok(Port { r#type, ..port })
            };
            values.iter().zip(ports).map(narrow).collect()
        };
        let arguments = ports(&kernel.arguments(), kernel.argument_ports()?)?;
        let results = ports(&kernel.results(), kernel.result_ports()?)?;
        let context = ffi::context_of(kernel.0);
        let body = kernel.body().map(walk::operations).unwrap_or_default();
        // Types of all values first: afterwards operations are replaced and their values gone.
        let mut new_types = Vec::new();
        for op in &body {
            new_types.push(match op.result(0) {
                Ok(result) => narrowed(result.into())?,
                Err(_) => None,
            });
        }
        for (value, port) in kernel.arguments().into_iter().zip(&arguments) {
            ffi::set_type(value, port.r#type.to_mlir(context));
        }
        for (op, r#type) in body.into_iter().zip(new_types) {
            let Some(r#type) = r#type else { continue };
            let place = Builder::before(op)?;
            let new = if Generic::is(op) {
                let mut generic = Generic::read(op)?;
                generic.result = r#type;
                place.generic(&generic)?
            } else {
                place.empty(&r#type)?
            };
            ffi::replace_all_uses(op.result(0).map_err(t3c_ir::Error::from)?.into(), new);
            ffi::erase(op);
        }
        kernel.set_signature(&arguments, &results)?;
        Ok(())
    }
}

/// Whether an operation makes numbers or tensors of rank 0 only, or constants, which cannot have rows that others
/// depend on.
fn has_no_rows(op: Op<'_, '_>) -> bool {
    walk::is(op, "func.return")
        || op.results().all(|result| {
            let value: Val<'_, '_> = result.into();
            let text = value.r#type().to_string();
            !text.starts_with("tensor<") || TensorType::of(value).is_ok_and(|r#type| r#type.shape.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use t3c_ir::{Context, function::functions};

    fn narrowed(body: &str) -> (Option<Rows>, String) {
        let context = Context::new();
        let module = context.parse(body, "rows.mlir").expect("a module");
        let kernel = functions(module.op())[0];
        let rows = narrow(kernel).expect("narrowed");
        assert!(module.verify().is_ok(), "{}", module.text(false));
        (rows, module.text(false))
    }

    const NORM: &str = r#"
    func.func @k(%x: tensor<6x64xf32>, %w: tensor<64xf32>) -> tensor<6x64xf32> {
      %zero = arith.constant 0.0 : f32
      %e = tensor.empty() : tensor<6xf32>
      %f = linalg.fill ins(%zero : f32) outs(%e : tensor<6xf32>) -> tensor<6xf32>
      %s = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>],
          iterator_types = ["parallel", "reduction"]} ins(%x : tensor<6x64xf32>) outs(%f : tensor<6xf32>) {
        ^bb0(%v: f32, %o: f32):
          %q = arith.mulf %v, %v : f32
          %r = arith.addf %o, %q : f32
          linalg.yield %r : f32
      } -> tensor<6xf32>
      %d = tensor.empty() : tensor<6x64xf32>
      %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>,
          affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
          ins(%x, %s, %w : tensor<6x64xf32>, tensor<6xf32>, tensor<64xf32>) outs(%d : tensor<6x64xf32>) {
        ^bb0(%v: f32, %t: f32, %u: f32, %o: f32):
          %a = arith.mulf %v, %t : f32
          %b = arith.mulf %a, %u : f32
          linalg.yield %b : f32
      } -> tensor<6x64xf32>
      return %y : tensor<6x64xf32>
    }"#;

    #[test]
    fn a_norm_is_narrowed_to_one_row() {
        let (rows, text) = narrowed(NORM);
        assert_eq!(rows, Some(Rows { count: 6, strides: vec![256, 0, 256], elements: 128 }));
        assert!(text.contains("tensor<1x64xf32>") && !text.contains("tensor<6x"), "{text}");
    }

    #[test]
    fn sums_over_rows_stay_whole() {
        let sum = NORM
            .replace("(d0, d1) -> (d0)>", "(d0, d1) -> (d1)>")
            .replace("[\"parallel\", \"reduction\"]", "[\"reduction\", \"parallel\"]")
            .replace("tensor<6xf32>", "tensor<64xf32>");
        let (rows, text) = narrowed(&sum);
        assert_eq!(rows, None);
        assert!(text.contains("tensor<6x64xf32>"));
    }
}
