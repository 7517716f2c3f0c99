//! The rules of operations that only move elements: annotations, reshapes, slices, concatenation. The gradient of a
//! slice is zero outside of it; what is written over by an inserted slice has none.

use melior::ir::{Attribute, operation::OperationLike};
use t3c_ir::{
    Error, Op, TensorType, Val,
    attributes::{Named, integer, integers_attr, named},
    ffi, walk,
};

use super::transpose::Transpose;

/// The attributes of a slice that say where it is.
const PLACE: [&str; 3] = ["static_offsets", "static_sizes", "static_strides"];

impl<'c, 'a> Transpose<'_, 'c, 'a> {
    /// Whether `operation` is one of these; if so, the gradients of its operands are given.
    pub(super) fn view(
        &mut self,
        operation: Op<'c, 'a>,
        gradient: Option<Val<'c, 'a>>,
    ) -> Result<bool, Error> {
        let Some(gradient) = gradient else { return Ok(false) };
        match walk::name(operation).as_str() {
            "tensor.cast" => self.give(operation.operand(0)?, gradient),
            "shard.shard" => {
                // An activation's gradient lies as the activation does; an argument's is for its caller to say.
                let operand = operation.operand(0)?;
                let gradient = match ffi::value_owner(operand) {
                    Some(_) => self.annotated(operation, gradient)?,
                    None => gradient,
                };
                self.give(operand, gradient);
            }
            "tensor.collapse_shape" | "tensor.expand_shape" => self.reshape(operation, gradient)?,
            "tensor.extract_slice" => self.extract_slice(operation, gradient)?,
            "tensor.insert_slice" => self.insert_slice(operation, gradient)?,
            "tensor.concat" => self.concat(operation, gradient)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn annotated(&mut self, annotation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let sharding = self.forward(annotation.operand(1)?)?;
        let copy = self.b.insert(ffi::clone(annotation));
        ffi::set_operand(copy, 0, gradient);
        ffi::set_operand(copy, 1, sharding);
        Ok(copy.result(0)?.into())
    }

    fn reshape(&mut self, operation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<(), Error> {
        let source = operation.operand(0)?;
        let r#type = TensorType::of(source)?;
        let context = self.b.context();
        let mut attributes = vec![named(context, "reassociation", operation.attribute("reassociation")?)];
        let name = if walk::is(operation, "tensor.collapse_shape") {
            let shape: Vec<i64> = r#type.shape.iter().map(|&extent| extent as i64).collect();
            attributes.push(named(context, "static_output_shape", integers_attr(context, &shape)));
            "tensor.expand_shape"
        } else {
            "tensor.collapse_shape"
        };
        let back = self.b.op(name, &[gradient], &[r#type.to_mlir(context)], &attributes, vec![])?;
        self.give(source, back.result(0)?.into());
        Ok(())
    }

    fn extract_slice(&mut self, operation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<(), Error> {
        let source = operation.operand(0)?;
        let zeros = self.b.fill(0.0, &TensorType::of(source)?)?;
        let place = self.place(operation, 1)?;
        let back =
            self.sliced("tensor.insert_slice", &[gradient, zeros], &place, &TensorType::of(source)?)?;
        self.give(source, back);
        Ok(())
    }

    fn insert_slice(&mut self, operation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<(), Error> {
        let (source, target) = (operation.operand(0)?, operation.operand(1)?);
        let (inner, outer) = (TensorType::of(source)?, TensorType::of(target)?);
        let place = self.place(operation, 2)?;
        if self.is_active(target) {
            let zeros = self.b.fill(0.0, &inner)?;
            let rest = self.sliced("tensor.insert_slice", &[zeros, gradient], &place, &outer)?;
            self.give(target, rest);
        }
        if self.is_active(source) {
            let part = self.sliced("tensor.extract_slice", &[gradient], &place, &inner)?;
            self.give(source, part);
        }
        Ok(())
    }

    fn concat(&mut self, operation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<(), Error> {
        let dimension = integer(operation, "dim").unwrap_or(0) as usize;
        let context = self.b.context();
        let mut begin = 0;
        let mut parts = Vec::new();
        for operand in operation.operands() {
            let r#type = TensorType::of(operand)?;
            let mut offsets = vec![0; r#type.shape.len()];
            offsets[dimension] = begin;
            begin += r#type.shape[dimension] as i64;
            let sizes: Vec<i64> = r#type.shape.iter().map(|&extent| extent as i64).collect();
            let numbers = [offsets, sizes, vec![1; r#type.shape.len()]];
            let attributes = PLACE
                .iter()
                .zip(numbers)
                .map(|(name, numbers)| named(context, name, integers_attr(context, &numbers)));
            parts.push((
                operand,
                r#type,
                Place { attributes: attributes.collect(), dynamic: vec![], counts: [0; 3] },
            ));
        }
        for (operand, r#type, place) in parts.into_iter().rev() {
            if self.is_active(operand) {
                let part = self.sliced("tensor.extract_slice", &[gradient], &place, &r#type)?;
                self.give(operand, part);
            }
        }
        Ok(())
    }

    /// Where a slice is, at the place of the gradient; its offsets follow `tensors` operands.
    fn place(&mut self, operation: Op<'c, 'a>, tensors: usize) -> Result<Place<'c, 'a>, Error> {
        let context = self.b.context();
        let attribute = |name: &&str| Ok(named(context, name, operation.attribute(name)?));
        let attributes = PLACE.iter().map(attribute).collect::<Result<_, Error>>()?;
        let operands: Vec<Val<'c, 'a>> = operation.operands().skip(tensors).collect();
        let dynamic = operands.into_iter().map(|value| self.forward(value)).collect::<Result<_, _>>()?;
        let marks = |name: &&str| {
            let numbers = t3c_ir::attributes::integers(operation, name).unwrap_or_default();
            numbers.into_iter().filter(|number| *number == i64::MIN).count()
        };
        let counts: Vec<usize> = PLACE.iter().map(marks).collect();
        Ok(Place { attributes, dynamic, counts: [counts[0], counts[1], counts[2]] })
    }

    fn sliced(
        &self,
        name: &str,
        tensors: &[Val<'c, 'a>],
        place: &Place<'c, 'a>,
        result: &TensorType,
    ) -> Result<Val<'c, 'a>, Error> {
        let context = self.b.context();
        let segments: Vec<String> = vec![1; tensors.len()]
            .into_iter()
            .chain(place.counts)
            .map(|count: usize| count.to_string())
            .collect();
        let text = format!("array<i32: {}>", segments.join(", "));
        let segments =
            Attribute::parse(context, &text).ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))?;
        let mut attributes = place.attributes.clone();
        attributes.push(named(context, "operandSegmentSizes", segments));
        let operands = [tensors, &place.dynamic].concat();
        let operation = self.b.op(name, &operands, &[result.to_mlir(context)], &attributes, vec![])?;
        Ok(operation.result(0)?.into())
    }
}

/// Offsets, sizes and strides of a slice.
struct Place<'c, 'a> {
    attributes: Vec<Named<'c>>,
    dynamic: Vec<Val<'c, 'a>>,
    counts: [usize; 3],
}
