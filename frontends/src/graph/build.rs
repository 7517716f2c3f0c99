//! From the schema's types to a module: the entry, and one private function a block.

use std::collections::BTreeMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Builder, Context, Location, Module, Splits, TensorType, Val, ffi,
    function::{self, Function, Port, Signature, add_function},
    walk,
};

use super::{Block, ModelGraph, Op, ParameterSpec, Split, losses, ops};
use crate::{
    Phase,
    error::{Error, Field},
};

pub(super) const GRID: &str = "grid";
/// The name of the result that training differentiates.
const LOSS: &str = "loss";

/// A block's function, for its callers.
pub(super) struct Callee {
    symbol: String,
    results: Vec<TensorType>,
}

/// Where operations are being added: an entry or a block.
pub(super) struct Scope<'g, 'c, 'a> {
    pub graph: &'g ModelGraph,
    pub module: &'a Module<'c>,
    b: Builder<'c, 'a>,
    /// The path of the operations in the file: `ops` or `blocks.layer.ops`.
    path: String,
    /// Before the names in locations.
    prefix: String,
    values: BTreeMap<String, Val<'c, 'a>>,
}

impl ModelGraph {
    /// Builds the module.
    ///
    /// # Errors
    /// Names the operation that does not fit, with its place.
    pub fn build<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        self.build_unlocated(context).map_err(|error| {
            error.located(|field| self.source.as_ref().and_then(|source| source.place(field)))
        })
    }

    fn build_unlocated<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        let location = self.location(context.mlir(), "name");
        let module = context.module(location);
        let grid = self.sizes.degrees.grid();
        if !grid.axes.is_empty() {
            function::add_grid(&module, GRID, &grid)?;
        }
        let callees = self
            .model
            .blocks
            .iter()
            .filter(|(name, _)| self.is_used(name))
            .map(|(name, block)| Ok((name.as_str(), self.add_block(&module, name, block)?)))
            .collect::<Result<BTreeMap<_, _>, Error>>()?;
        self.add_entry(&module, &callees)?;
        Ok(module)
    }

    fn is_used(&self, block: &str) -> bool {
        self.model.ops.iter().any(|op| matches!(op, Op::Repeat { block: used, .. } if used == block))
    }

    fn location<'c>(&self, context: &'c melior::Context, path: &str) -> Location<'c> {
        match self.source.as_ref().and_then(|source| source.place(path)) {
            Some(place) => Location::new(context, &place.file, place.line, place.column),
            None => Location::unknown(context),
        }
    }

    fn inputs(&self, path: &str, inputs: &[super::Input]) -> Result<Vec<Port>, Error> {
        let port = |(index, input): (usize, &super::Input)| {
            Ok(Port::new(&input.name, self.input_type(&format!("{path}[{index}]"), input)?))
        };
        inputs.iter().enumerate().map(port).collect()
    }

    /// Adds a function whose results are not known before its body is.
    fn add_block(&self, module: &Module<'_>, name: &str, block: &Block) -> Result<Callee, Error> {
        let path = format!("blocks.{name}");
        let mut arguments = self.inputs(&format!("{path}.inputs"), &block.inputs)?;
        let own = self.parameters(&format!("{path}.parameters"), &block.parameters, "")?;
        arguments.extend(own.iter().map(|parameter| {
            Port::new(&parameter.name, TensorType::new(parameter.shape.clone(), parameter.element))
        }));
        let signature =
            Signature { name: name.to_owned(), arguments, results: vec![], public: false, unit: None };
        let location = self.location(module.context().mlir(), &path);
        let (operation, block_of) = add_function(module, &signature, location)?;
        let mut values = Function(operation).arguments();
        let b = Builder::at_end(module.context().mlir(), block_of, location);
        let own_values = values.split_off(block.inputs.len());
        let shards = block.parameters.iter().map(|spec| (spec.name.as_str(), self.splits_of_parameter(spec)));
        let prefix = format!("{name}.");
        let parameters = self.annotate(&b, &prefix, shards, own_values)?;
        let values = self.annotate_inputs(&b, &prefix, &block.inputs, values)?;
        let mut scope = Scope {
            graph: self,
            module,
            b,
            path: format!("{path}.ops"),
            prefix: format!("{name}."),
            values: BTreeMap::new(),
        };
        for (input, value) in block.inputs.iter().zip(values) {
            scope.define(&input.name, value, &format!("{path}.inputs"))?;
        }
        scope.define_parameters(&block.parameters, &parameters, &format!("{path}.parameters"))?;
        for (index, op) in block.ops.iter().enumerate() {
            scope.add(index, op)?;
        }
        let results = scope.outputs(&block.outputs, &format!("{path}.outputs"))?;
        let types = results.iter().map(|&value| TensorType::of(value)).collect::<Result<Vec<_>, _>>()?;
        b.ret(&results)?;
        let ports: Vec<Port> = types.iter().map(|r#type| Port::new("", r#type.clone())).collect();
        Function(operation).set_signature(&signature.arguments, &ports)?;
        Ok(Callee { symbol: name.to_owned(), results: types })
    }

    /// Whether parameters carry shardings: not on a single device, nor in the graph of one device.
    fn is_annotated(&self) -> bool {
        !self.sizes.degrees.grid().axes.is_empty() && !self.is_of_one_device()
    }

    /// Values with their shardings.
    fn annotate<'n, 'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        prefix: &str,
        shards: impl Iterator<Item = (&'n str, Splits)>,
        values: Vec<Val<'c, 'a>>,
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        if !self.is_annotated() {
            return Ok(values);
        }
        let annotate = |((name, splits), value): ((&str, Splits), Val<'c, 'a>)| {
            Ok(b.named(&format!("{prefix}{name}")).shard(value, GRID, &splits)?)
        };
        shards.zip(values).map(annotate).collect()
    }

    /// Inputs with the shardings that the file asks for.
    fn annotate_inputs<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        prefix: &str,
        inputs: &[super::Input],
        values: Vec<Val<'c, 'a>>,
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let annotate = |(input, value): (&super::Input, Val<'c, 'a>)| match &input.shard {
            Some(split) => self.constrain(&b.named(&format!("{prefix}{}", input.name)), value, split),
            None => Ok(value),
        };
        inputs.iter().zip(values).map(annotate).collect()
    }

    /// `value` with the sharding that is asked for. Axes of one device ask for nothing.
    pub(super) fn constrain<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        value: Val<'c, 'a>,
        split: &[Split],
    ) -> Result<Val<'c, 'a>, Error> {
        let splits = self.sizes.degrees.splits(split);
        let asks = split.iter().all(|split| split.0.is_empty()) || splits.iter().any(|axes| !axes.is_empty());
        match asks && self.is_annotated() {
            true => Ok(b.shard(value, GRID, &splits)?),
            false => Ok(value),
        }
    }

    fn add_entry(&self, module: &Module<'_>, callees: &BTreeMap<&str, Callee>) -> Result<(), Error> {
        let mut arguments = self.inputs("inputs", &self.model.inputs)?;
        let count = arguments.len();
        arguments.extend(self.info.parameters.iter().map(|parameter| {
            let r#type = TensorType::new(parameter.shape.clone(), parameter.element);
            Port::new(format!("param/{}", parameter.name), r#type)
        }));
        let name = if self.phase == Phase::Training { "training" } else { "prefill" };
        let mut signature =
            Signature { name: name.into(), arguments, results: vec![], public: true, unit: None };
        // The results' types, which the seeds of training have as well, are learned from a draft of the body.
        let draft = module.context().module(Location::unknown(module.context().mlir()));
        for (name, block) in self.model.blocks.iter().filter(|(name, _)| self.is_used(name)) {
            self.add_block(&draft, name, block)?;
        }
        let types = self.fill_entry(&draft, &signature, count, 0, callees)?;
        let named = self.model.outputs.iter().zip(types);
        let seeds: Vec<Port> = match self.phase {
            Phase::Training if self.loss().is_none() => {
                named.map(|(name, r#type)| Port::new(format!("seed/{name}"), r#type)).collect()
            }
            _ => Vec::new(),
        };
        signature.arguments.splice(count..count, seeds.iter().cloned());
        self.fill_entry(module, &signature, count, seeds.len(), callees)?;
        Ok(())
    }

    /// Adds the entry of `inputs` data arguments and `seeds` seeds; returns the types of the model's outputs.
    fn fill_entry(
        &self,
        module: &Module<'_>,
        signature: &Signature,
        inputs: usize,
        seeds: usize,
        callees: &BTreeMap<&str, Callee>,
    ) -> Result<Vec<TensorType>, Error> {
        let location = self.location(module.context().mlir(), "ops");
        let (operation, block) = add_function(module, signature, location)?;
        let mut values = Function(operation).arguments();
        let b = Builder::at_end(module.context().mlir(), block, location);
        let own = values.split_off(inputs + seeds);
        let seed_values = values.split_off(inputs);
        let shards =
            self.info.parameters.iter().map(|parameter| (parameter.name.as_str(), parameter.split.clone()));
        let annotated = self.annotate(&b, "", shards, own)?;
        let values = self.annotate_inputs(&b, "", &self.model.inputs, values)?;
        let prefix = String::new();
        let mut scope = Scope { graph: self, module, b, path: "ops".into(), prefix, values: BTreeMap::new() };
        for (input, &value) in self.model.inputs.iter().zip(&values) {
            scope.define(&input.name, value, "inputs")?;
        }
        let (own, mut parameters) = annotated.split_at(self.model.parameters.len());
        scope.define_parameters(&self.model.parameters, own, "parameters")?;
        for (index, op) in self.model.ops.iter().enumerate() {
            match op {
                Op::Repeat { .. } => parameters = scope.repeat(index, op, parameters, callees)?,
                _ => scope.add(index, op)?,
            }
        }
        let outputs = scope.outputs(&self.model.outputs, "outputs")?;
        let types = outputs.iter().map(|&value| TensorType::of(value)).collect::<Result<Vec<_>, _>>()?;
        let mut named: Vec<(String, Val<'_, '_>)> =
            self.model.outputs.iter().cloned().zip(outputs.iter().copied()).collect();
        if let Some((loss, path)) = self.loss() {
            if self.phase == Phase::Training {
                let value = scope.value(loss, path)?;
                losses::check(path, loss, value)?;
                named.retain(|(name, _)| name != loss);
                named.insert(0, (LOSS.to_owned(), value));
            }
        } else if seeds > 0 {
            named.insert(0, (LOSS.to_owned(), losses::seeded(&b.named(LOSS), &outputs, &seed_values)?));
        }
        let (names, results): (Vec<String>, Vec<Val<'_, '_>>) = named.into_iter().unzip();
        b.ret(&results)?;
        let ports = names
            .iter()
            .zip(&results)
            .map(|(name, &value)| Ok(Port::new(name, TensorType::of(value)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        Function(operation).set_signature(&signature.arguments, &ports)?;
        erase_unused(Function(operation));
        Ok(types)
    }

    /// The scalar that training differentiates, and the field that names it.
    fn loss(&self) -> Option<(&str, &'static str)> {
        match &self.model.loss {
            Some(loss) => Some((loss, "loss")),
            None => self.model.outputs.iter().any(|name| name == LOSS).then_some((LOSS, "outputs")),
        }
    }
}

/// Erases what no result needs: the loss of a graph that is not trained.
fn erase_unused(entry: Function<'_, '_>) {
    let Some(body) = entry.body() else { return };
    for operation in walk::operations(body).into_iter().rev() {
        let is_used = operation.results().any(|result| !ffi::uses(result.into()).is_empty());
        if !is_used && operation.result_count() > 0 {
            ffi::erase(operation);
        }
    }
}

impl<'c, 'a> Scope<'_, 'c, 'a> {
    /// The place of operation `index`, and its path in the file.
    pub fn at(&self, index: usize, op: &Op) -> (Builder<'c, 'a>, String) {
        let path = format!("{}[{index}]", self.path);
        let location = self.graph.location(self.b.context(), &path);
        (self.b.at(location).named(&format!("{}{}", self.prefix, op.label())), path)
    }

    fn define(&mut self, name: &str, value: Val<'c, 'a>, path: &str) -> Result<(), Error> {
        match self.values.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(path, format!("`{name}` is defined twice"))),
        }
    }

    /// Defines parameters, whose values carry their shardings already.
    fn define_parameters(
        &mut self,
        specs: &[ParameterSpec],
        values: &[Val<'c, 'a>],
        path: &str,
    ) -> Result<(), Error> {
        for (index, (spec, &value)) in specs.iter().zip(values).enumerate() {
            self.define(&spec.name, value, &format!("{path}[{index}]"))?;
        }
        Ok(())
    }

    /// The tensor of this name.
    pub fn value(&self, name: &str, path: &str) -> Result<Val<'c, 'a>, Error> {
        self.values.get(name).copied().ok_or_else(|| {
            let names: Vec<&str> = self.values.keys().map(String::as_str).collect();
            Error::unsupported(Field::new(path), name, &names)
        })
    }

    fn outputs(&self, names: &[String], path: &str) -> Result<Vec<Val<'c, 'a>>, Error> {
        let output = |(index, name): (usize, &String)| self.value(name, &format!("{path}[{index}]"));
        names.iter().enumerate().map(output).collect()
    }

    fn add(&mut self, index: usize, op: &Op) -> Result<(), Error> {
        let (name, value) = ops::add(self, index, op)?;
        let path = format!("{}[{index}]", self.path);
        self.define(name, value, &path)
    }

    /// Calls a block again and again; returns the parameters that are left.
    fn repeat<'v>(
        &mut self,
        index: usize,
        op: &Op,
        parameters: &'v [Val<'c, 'a>],
        callees: &BTreeMap<&str, Callee>,
    ) -> Result<&'v [Val<'c, 'a>], Error> {
        let Op::Repeat { block, count, prefix, inputs, results } = op else { return Ok(parameters) };
        let (name, body) = self.graph.block(block, index)?;
        let path = format!("{}[{index}]", self.path);
        let location = self.graph.location(self.b.context(), &path);
        let callee = &callees[name];
        let count = self.graph.count(count, index)?;
        let mut values = self.outputs(inputs, &format!("{path}.inputs"))?;
        check_repeat(&path, body, callee, &values, results, count)?;
        let mut rest = parameters;
        for repetition in 0..count {
            let (own, after) = rest.split_at(body.parameters.len());
            rest = after;
            let b = self.b.at(location).named(&format!("{prefix}.{repetition}"));
            let called = b.call(&callee.symbol, &[values.as_slice(), own].concat(), &callee.results)?;
            values.splice(..called.len(), called);
        }
        for (result, value) in results.iter().zip(values) {
            self.define(result, value, &path)?;
        }
        Ok(rest)
    }
}

fn check_repeat(
    path: &str,
    block: &Block,
    callee: &Callee,
    inputs: &[Val<'_, '_>],
    results: &[String],
    count: u64,
) -> Result<(), Error> {
    let counts =
        [("inputs", inputs.len(), block.inputs.len()), ("results", results.len(), callee.results.len())];
    for (what, found, expected) in counts {
        if found != expected {
            return Err(Error::invalid(
                format!("{path}.{what}"),
                format!("{found} names; the block has {expected}"),
            ));
        }
    }
    let types = inputs.iter().map(|&value| TensorType::of(value)).collect::<Result<Vec<_>, _>>()?;
    let carries = count == 1
        || (types.len() >= callee.results.len() && types.iter().zip(&callee.results).all(|(a, b)| a == b));
    if carries {
        return Ok(());
    }
    Err(Error::invalid(
        path,
        "the block's outputs do not have the types of its first inputs; expected so to repeat",
    ))
}
