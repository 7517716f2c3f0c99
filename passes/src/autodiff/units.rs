//! The rules of units: the gradient of a unit is a unit.

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Error, Op, Val,
    function::Function,
    units::{self, Unit, UnitKind},
};

use super::transpose::Transpose;

impl<'c, 'a> Transpose<'_, 'c, 'a> {
    /// The gradients of a unit's operands, each by a unit.
    pub(super) fn unit(
        &mut self,
        call: Op<'c, 'a>,
        callee: Function<'c, 'a>,
        gradients: &[Option<Val<'c, 'a>>],
    ) -> Result<(), Error> {
        let gradient = gradients.first().copied().flatten();
        let (Some(unit), Some(gradient)) = (units::unit_of(callee), gradient) else {
            return Err(no_unit_rule(call, callee));
        };
        let operands: Vec<Val<'c, 'a>> = call.operands().collect();
        match unit.kind {
            UnitKind::Lookup => {
                let rows = unit.arguments[0].shape.first().copied().unwrap_or(0);
                let adjoint = Unit::lookup_grad(&unit.arguments[1], &unit.results[0], rows);
                let ids = self.forward(operands[1])?;
                self.adjoint(&Unit { aligned: unit.aligned, ..adjoint }, &[ids, gradient], &operands[..1])
            }
            UnitKind::LookupGrad => {
                let adjoint = Unit::lookup(&unit.results[0], &unit.arguments[0]);
                let ids = self.forward(operands[0])?;
                self.adjoint(&Unit { aligned: unit.aligned, ..adjoint }, &[gradient, ids], &operands[1..])
            }
            UnitKind::Attention => {
                let mut arguments =
                    operands.iter().map(|value| self.forward(*value)).collect::<Result<Vec<_>, _>>()?;
                arguments.push(gradient);
                self.adjoint(&unit.attention_gradient(), &arguments, &operands[..3])
            }
            UnitKind::Grouped => self.grouped(&unit, &operands, gradient),
            _ => Err(no_unit_rule(call, callee)),
        }
    }

    /// Calls the unit that gives the gradients of `targets`.
    fn adjoint(
        &mut self,
        unit: &Unit,
        arguments: &[Val<'c, 'a>],
        targets: &[Val<'c, 'a>],
    ) -> Result<(), Error> {
        let symbol = units::ensure(self.module, unit)?;
        let parts = self.b.call(&symbol, arguments, &unit.results)?;
        for (&target, part) in targets.iter().zip(parts).rev() {
            self.give(target, part);
        }
        Ok(())
    }

    fn grouped(&mut self, unit: &Unit, operands: &[Val<'c, 'a>], dy: Val<'c, 'a>) -> Result<(), Error> {
        let offsets = self.forward(operands[2])?;
        if self.is_active(operands[1]) {
            let x = self.forward(operands[0])?;
            let arguments = if unit.transposed { [dy, x, offsets] } else { [x, dy, offsets] };
            self.adjoint(&unit.grouped_weight_gradient(), &arguments, &operands[1..2])?;
        }
        if self.is_active(operands[0]) {
            let w = self.forward(operands[1])?;
            self.adjoint(&unit.grouped_rows_gradient(), &[dy, w, offsets], &operands[..1])?;
        }
        Ok(())
    }
}

fn no_unit_rule(call: Op<'_, '_>, callee: Function<'_, '_>) -> Error {
    Error::at(
        call,
        format!(
            "the unit `{}` has no gradient rule; lookup, lookup_grad, attention and grouped have one, and routes are \
             integers",
            callee.unit().unwrap_or_default()
        ),
    )
}
