//! Carries a plan out: every function is written anew, before its terminator, and what was there is erased.

use melior::ir::{BlockLike, operation::OperationLike};
use t3c_ir::{
    Builder, Op, TensorType, Val,
    attributes::{string, string_attr},
    ffi,
    function::{self, Function, Port},
    units::{self, Unit, UnitKind},
    walk,
};
use t3c_schedule::Grid;

use super::{
    Error,
    emit::{Emitter, localised},
    graph::{FunctionGraph, Graph, Kind, partitioned},
    plan::{FunctionPlan, NodePlan, Plan},
    sharding::Sharding,
    units::Indices,
};

/// Rewrites a module as planned.
///
/// # Errors
/// When MLIR refuses an operation.
pub fn rewrite(module: Op<'_, '_>, grid: &str, graph: &Graph, plan: &Plan) -> Result<(), Error> {
    let originals = partitioned(module);
    let mut copies = vec![0usize; originals.len()];
    let (mut targets, mut names) = (Vec::new(), Vec::new());
    for planned in &plan.functions {
        let original = originals[planned.function];
        let (target, name) = match copies[planned.function] {
            0 => (original, original.name()),
            copy => duplicate(module, original, copy)?,
        };
        copies[planned.function] += 1;
        targets.push(target);
        names.push(name);
    }
    for (planned, &target) in plan.functions.iter().zip(&targets) {
        let function = &graph.functions[planned.function];
        let emitter = Emitter::new(target, (grid, graph), function)?;
        Rewriter { emitter, module, graph, function, planned, names: &names }.rewrite(target)?;
    }
    for (original, _) in originals.iter().zip(&copies).filter(|(_, copies)| **copies == 0) {
        ffi::erase(original.0);
    }
    erase_unused_units(module);
    Ok(())
}

/// A copy of a function under a name of its own.
fn duplicate<'c, 'a>(
    module: Op<'c, 'a>,
    original: Function<'c, 'a>,
    copy: usize,
) -> Result<(Function<'c, 'a>, String), Error> {
    let free = |name: &String| function::function(module, name).is_none();
    let name = (copy..).map(|number| format!("{}_{number}", original.name())).find(free).unwrap_or_default();
    let body = walk::body(module).ok_or_else(|| t3c_ir::Error::at(module, "is no module"))?;
    let operation = body.append_operation(ffi::clone(original.0));
    ffi::set_attribute(operation, "sym_name", string_attr(ffi::context_of(module), &name));
    Ok((Function(operation), name))
}

fn erase_unused_units(module: Op<'_, '_>) {
    let called: Vec<String> = walk::walk(module)
        .into_iter()
        .filter(|operation| walk::is(*operation, "func.call"))
        .filter_map(|call| string(call, "callee"))
        .collect();
    for unit in function::functions(module) {
        if unit.unit().is_some() && !unit.is_public() && !called.contains(&unit.name()) {
            ffi::erase(unit.0);
        }
    }
}

/// The ports of a partitioned function.
fn local_ports(ports: &[Port], shardings: &[Sharding], grid: &Grid) -> Vec<Port> {
    let local = |(port, sharding): (&Port, &Sharding)| {
        let mut local = port.clone().with_splits(&sharding.splits);
        local.r#type.shape = sharding.local(&port.r#type.shape, grid);
        local
    };
    ports.iter().zip(shardings).map(local).collect()
}

struct Rewriter<'r, 'c, 'a> {
    emitter: Emitter<'r, 'c, 'a>,
    module: Op<'c, 'a>,
    graph: &'r Graph,
    function: &'r FunctionGraph,
    planned: &'r FunctionPlan,
    names: &'r [String],
}

impl<'c, 'a> Rewriter<'_, 'c, 'a> {
    fn rewrite(mut self, target: Function<'c, 'a>) -> Result<(), Error> {
        let (grid, planned) = (&self.graph.grid, self.planned);
        let arguments = local_ports(&self.function.arguments, &planned.arguments, grid);
        let results = local_ports(&self.function.results, &planned.results, grid);
        let context = ffi::context_of(target.0);
        for ((value, argument), port) in target.arguments().into_iter().enumerate().zip(&arguments) {
            ffi::set_type(argument, port.r#type.to_mlir(context));
            self.emitter.define(value, &planned.arguments[value], argument);
        }
        for node in &planned.nodes {
            self.node(node)?;
        }
        target.set_signature(&arguments, &results)?;
        self.erase_old();
        Ok(())
    }

    fn node(&mut self, plan: &NodePlan) -> Result<(), Error> {
        let node = &self.function.nodes[plan.node];
        let old = self.emitter.operation(plan.node);
        let location = old.location();
        for reshard in &plan.reshards {
            self.emitter.reshard(reshard, location)?;
        }
        let b = self.emitter.builder(location);
        let operands = plan
            .operands
            .iter()
            .zip(&plan.forms)
            .map(|(&value, form)| self.emitter.value(value, form, &b))
            .collect::<Result<Vec<_>, _>>()?;
        let results = match &node.kind {
            Kind::Inert => return self.keep(plan),
            Kind::Annotation(_) => operands,
            Kind::Return => {
                for (number, value) in operands.into_iter().enumerate() {
                    ffi::set_operand(old, number, value);
                }
                return Ok(());
            }
            Kind::Structured(_) => vec![self.structured(plan, old, &operands, &b)?],
            Kind::Reshape(reshape) => {
                vec![reshape.build(old, operands[0], &self.result_types(plan)[0], &b)?]
            }
            Kind::Unit(unit) => self.unit(plan, unit, operands, &b)?,
            Kind::Call(_) => {
                let name = plan.callee.map(|callee| self.names[callee].as_str()).unwrap_or_default();
                b.call(name, &operands, &self.result_types(plan))?
            }
        };
        for ((&value, form), result) in node.results.iter().zip(&plan.results).zip(results) {
            self.emitter.define(value, form, result);
        }
        Ok(())
    }

    /// Constants stay where they are.
    fn keep(&mut self, plan: &NodePlan) -> Result<(), Error> {
        let old = self.emitter.operation(plan.node);
        // A fill of what is rewritten is made anew where it is wanted.
        if walk::is(old, "linalg.fill") {
            let init = old.operand(1).map_err(t3c_ir::Error::from)?;
            if !ffi::value_owner(init).is_some_and(|owner| walk::is(owner, "tensor.empty")) {
                return Ok(());
            }
        }
        for (&value, form) in self.function.nodes[plan.node].results.iter().zip(&plan.results) {
            self.emitter.define(value, form, old.result(0).map_err(t3c_ir::Error::from)?.into());
        }
        Ok(())
    }

    fn result_types(&self, plan: &NodePlan) -> Vec<TensorType> {
        let results = self.function.nodes[plan.node].results.iter().zip(&plan.results);
        results.map(|(&value, form)| self.emitter.local(value, form)).collect()
    }

    fn structured(
        &mut self,
        plan: &NodePlan,
        old: Op<'c, 'a>,
        operands: &[Val<'c, 'a>],
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let mut generic = t3c_ir::Generic::read(old)?;
        let inputs = generic.inputs.len();
        generic.inputs = operands[..inputs].to_vec();
        generic.init = self.emitter.once(operands[inputs], &plan.once, b)?;
        generic.captures = operands[inputs + 1..].to_vec();
        generic.extents = Sharding::split(plan.factors.clone()).local(&generic.extents, &self.graph.grid);
        let node = &self.function.nodes[plan.node];
        generic.result = self.emitter.local(node.results[0], &plan.results[0]);
        let (body, shifted) = localised(&generic.body, &plan.factors);
        generic.body = body;
        for (number, at) in shifted.into_iter().enumerate() {
            generic.inputs.push(self.emitter.offset(&plan.factors[at], generic.extents[at], b)?);
            generic.maps.insert(inputs + number, vec![]);
        }
        Ok(b.generic(&generic)?)
    }

    fn unit(
        &mut self,
        plan: &NodePlan,
        unit: &Unit,
        mut operands: Vec<Val<'c, 'a>>,
        b: &Builder<'c, 'a>,
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let local = Unit {
            arguments: operands.iter().map(|&value| TensorType::of(value)).collect::<Result<_, _>>()?,
            results: self.result_types(plan),
            aligned: false,
            ..unit.clone()
        };
        let symbol = units::ensure(self.module, &local)?;
        let result = &local.results[0];
        match &plan.indices {
            Indices::Whole => {}
            Indices::Own { operand, axes } => {
                let rows = self.rows(unit.kind, &local);
                operands[*operand] = self.emitter.rebased(operands[*operand], axes, rows, b)?;
            }
            Indices::Masked(axes) => {
                let pair = (operands[0], operands[1]);
                let masked = match unit.kind {
                    UnitKind::LookupGrad => {
                        self.emitter.masked_lookup_grad(&symbol, axes, pair, result, b)?
                    }
                    _ => self.emitter.masked_lookup(&symbol, axes, pair, result, b)?,
                };
                return Ok(vec![masked]);
            }
            Indices::Made(axes) => {
                let tokens = local.arguments[0].shape[0];
                let mut made = b.call(&symbol, &operands, &local.results)?;
                made[0] = self.emitter.unbased(made[0], axes, tokens, b)?;
                return Ok(made);
            }
        }
        Ok(b.call(&symbol, &operands, &local.results)?)
    }

    /// The extent of the dimension that a unit's indices point into.
    fn rows(&self, kind: UnitKind, unit: &Unit) -> u64 {
        match kind {
            UnitKind::LookupGrad => unit.results[0].shape[0],
            _ => unit.arguments[0].shape[0],
        }
    }

    /// Erases what was rewritten, and constants that nothing uses any more: users first.
    fn erase_old(&self) {
        for (node, read) in self.function.nodes.iter().enumerate().rev() {
            let operation = self.emitter.operation(node);
            let is_erased = match read.kind {
                Kind::Return => false,
                Kind::Inert => operation.results().all(|result| ffi::uses(result.into()).is_empty()),
                _ => true,
            };
            if is_erased {
                ffi::erase(operation);
            }
        }
    }
}
