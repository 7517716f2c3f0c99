//! `t3-autodiff`: reverse mode on a module. The entry, which returns a scalar `loss`, also returns the gradient of
//! the loss with respect to every parameter.
//!
//! Before partitioning and fusion, so that the backward's products and collectives are pairs like any other.
//!
//! - Structured operations have one rule ([`structured`]), from their maps and the derivative of their body
//!   ([`scalar`]); it holds for contractions, broadcasts, sums and elementwise work with no special case.
//! - Units have a gradient that is a unit. Attention's recomputes its probabilities.
//! - A function that is called is differentiated once: it returns what its backward needs, and only that, beside its
//!   results; `<name>_backward` takes the gradients of its results and gives those of its arguments.
//! - Only what depends on a parameter and what the loss depends on is differentiated ([`activity`]); gradients of
//!   several uses are added in program order, and gradients that are zero are not computed.
//! - What the backward takes from the forward and what it computes again is a policy ([`remat`]).
//! - In per-device programs, collectives have their adjoints ([`spmd`]).
//!
//! ```text
//! before  @layer(x, w) -> y                      @train(x, param/w) -> loss
//! after   @layer(x, w) -> y, saved…              @train(x, param/w) -> loss, grad/w
//!         @layer_backward(dy, saved…) -> dx, dw
//! ```

mod activity;
mod extremum;
mod remat;
mod scalar;
mod spmd;
mod structured;
mod transpose;
mod units;
mod views;

#[cfg(test)]
mod models;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};

use melior::ir::{
    BlockLike,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Error, Op, TensorType, Val, ffi,
    function::{self, Function, Port, SPLIT, Signature, add_function_to},
    walk,
};

pub use activity::STOP_GRADIENT;
use activity::{Active, Activity, is_float, operations};
pub use remat::Remat;
use remat::{Keep, Place, Saved};
pub use scalar::{Derivatives, derivatives};
use spmd::Variation;
use transpose::{Callee, Captured, Shared, Transpose, backward_location};

pub use crate::optimizer::AdamW;
use crate::{
    options,
    pass::{Pass, PassContext, PassError},
};

/// The prefix of parameters among the entry's arguments.
pub const PARAMETER: &str = "param/";
/// The prefix of gradients among the entry's results.
pub const GRADIENT: &str = "grad/";

/// What to differentiate.
#[derive(Clone, Debug, PartialEq)]
pub struct Autodiff {
    /// The name of the result.
    pub loss: String,
    /// Names of the arguments; `None` for all that begin with `param/`.
    pub inputs: Option<Vec<String>>,
    /// What layers keep of their forward for their backward.
    pub remat: Remat,
}

impl Default for Autodiff {
    fn default() -> Self {
        Self { loss: "loss".into(), inputs: None, remat: Remat::None }
    }
}

/// The name of the gradient of an argument: `param/w` and `w` both give `grad/w`.
pub fn gradient_name(argument: &str) -> String {
    format!("{GRADIENT}{}", argument.strip_prefix(PARAMETER).unwrap_or(argument))
}

/// Makes the entry return gradients of its loss after its results, in the order of the arguments.
///
/// # Errors
/// A loss that is no float scalar, an input that does not exist or is of integers, and operations without a rule.
/// The module is then to be dropped: functions may have been rewritten.
pub fn differentiate(module: Op<'_, '_>, options: &Autodiff) -> Result<(), Error> {
    let chosen = match options.remat {
        Remat::Bytes(budget) => Some(remat::choose(everything_saved(module, options)?, budget)),
        _ => None,
    };
    Differentiation::new(module, options, chosen)?.run().map(drop)
}

/// What layers would keep if they kept everything, from differentiating a copy of the module.
fn everything_saved(module: Op<'_, '_>, options: &Autodiff) -> Result<Vec<Saved>, Error> {
    let copy = melior::ir::Module::from_operation(ffi::clone(module))
        .ok_or_else(|| Error::at(module, "is no module"))?;
    let options = Autodiff { remat: Remat::None, ..options.clone() };
    Differentiation::new(copy.as_operation(), &options, None)?.run()
}

/// The values of each function that are kept.
type Chosen = HashMap<String, HashSet<Place>>;

/// One differentiation of a module.
struct Differentiation<'o, 'c, 'a> {
    module: Op<'c, 'a>,
    options: &'o Autodiff,
    entry: Function<'c, 'a>,
    loss: usize,
    inputs: Vec<usize>,
    activity: Activity<'c, 'a>,
    variation: Variation,
    /// The functions that the entry calls, and how often.
    layers: HashMap<String, u64>,
    /// The symbols of units that only copy rows.
    lookups: HashSet<String>,
    chosen: Option<Chosen>,
    callees: HashMap<String, Callee>,
    saved: Vec<Saved>,
}

impl<'o, 'c, 'a> Differentiation<'o, 'c, 'a> {
    fn new(module: Op<'c, 'a>, options: &'o Autodiff, chosen: Option<Chosen>) -> Result<Self, Error> {
        let entry = function::entry(module)?;
        let loss = find_loss(entry, &options.loss)?;
        let inputs = find_inputs(entry, options.inputs.as_deref())?;
        let active = Active { arguments: inputs.iter().copied().collect(), results: BTreeSet::from([loss]) };
        let activity = Activity::new(module, entry, active)?;
        let variation = Variation::new(module, &activity, entry)?;
        let layers = remat::layers(module, entry)?;
        let is_lookup = |function: &Function<'c, 'a>| function.unit().as_deref() == Some("lookup");
        let lookups = function::functions(module).into_iter().filter(is_lookup).map(Function::name).collect();
        let (callees, saved) = (HashMap::new(), Vec::new());
        Ok(Self {
            module,
            options,
            entry,
            loss,
            inputs,
            activity,
            variation,
            layers,
            lookups,
            chosen,
            callees,
            saved,
        })
    }

    /// Callees first, then the entry; returns what was kept.
    fn run(mut self) -> Result<Vec<Saved>, Error> {
        for function in self.activity.order.clone() {
            let name = function.name();
            let Some(active) = self.activity.active.get(&name).cloned() else { continue };
            if name != self.entry.name() && !active.results.is_empty() && !active.arguments.is_empty() {
                let callee = self.backward_function(function, &active)?;
                self.callees.insert(name, callee);
            }
        }
        self.differentiate_entry()?;
        Ok(self.saved)
    }

    fn differentiate_entry(&self) -> Result<(), Error> {
        let (module, entry) = (self.module, self.entry);
        let terminator = entry.terminator().ok_or_else(|| Error::at(entry.0, "has no body"))?;
        let (arguments, argument_ports) = (entry.arguments(), entry.argument_ports()?);
        let mut result_ports = entry.result_ports()?;
        let value = entry.results()[self.loss];
        let b = Builder::before(terminator)?.at(backward_location(ffi::context_of(module), terminator));
        let shared = Shared { callees: &self.callees, variation: &self.variation };
        let mut transpose = Transpose::new(module, &self.activity, shared, entry, b, None);
        let seed = b.splat(1.0, &TensorType::of(value)?)?;
        transpose.give_partial(value, seed, BTreeSet::new());
        transpose.run(entry)?;
        let mut found = transpose.arguments(&arguments, self.inputs.iter().copied())?;
        let mut gradients = Vec::new();
        for &index in &self.inputs {
            let port = &argument_ports[index];
            // What the loss does not depend on has a gradient all the same: the caller asked for it.
            let gradient = match found.remove(&index) {
                Some(gradient) => gradient,
                None => transpose.builder().fill(0.0, &port.r#type)?,
            };
            let mut result = Port::new(gradient_name(&port.name), TensorType::of(gradient)?);
            result.attributes = port.attributes.iter().filter(|(name, _)| name == SPLIT).cloned().collect();
            result_ports.push(result);
            gradients.push(gradient);
        }
        extend_return(entry, terminator, &gradients)?;
        if ffi::uses(seed).is_empty()
            && let Some(constant) = ffi::value_owner(seed)
        {
            ffi::erase(constant);
        }
        entry.set_signature(&argument_ports, &result_ports)
    }

    /// The backward of a function that is called; the function and its calls then also return what it needs.
    fn backward_function(&mut self, function: Function<'c, 'a>, active: &Active) -> Result<Callee, Error> {
        let module = self.module;
        let (name, arguments, values) = (function.name(), function.arguments(), function.results());
        let (argument_ports, result_ports) = (function.argument_ports()?, function.result_ports()?);
        let incoming = active.results.iter().map(|&index| {
            let port = &result_ports[index];
            Port::new(named_gradient(&port.name), port.r#type.clone())
        });
        let mut ports: Vec<Port> = incoming.collect();
        let signature = Signature {
            name: unused_symbol(module, &format!("{name}_backward")),
            arguments: ports.clone(),
            results: vec![],
            public: false,
            unit: None,
        };
        let location = backward_location(ffi::context_of(module), function.0);
        let (operation, block) = add_function_to(module, &signature, location)?;
        let b = Builder::at_end(ffi::context_of(module), block, location);
        let policy = if self.layers.contains_key(&name) { self.options.remat } else { Remat::None };
        let chosen = self.chosen.as_ref().and_then(|chosen| chosen.get(&name));
        let keep = Keep::new(policy, function, chosen, &self.lookups);
        let shared = Shared { callees: &self.callees, variation: &self.variation };
        let mut transpose = Transpose::new(module, &self.activity, shared, function, b, Some((block, keep)));
        for (&index, incoming) in active.results.iter().zip(Function(operation).arguments()) {
            transpose.give_partial(values[index], incoming, BTreeSet::new());
        }
        transpose.run(function)?;
        let gradients = transpose.arguments(&arguments, active.arguments.iter().copied())?;
        let captured_values = std::mem::take(&mut transpose.captured);
        let gradient_ports = gradients
            .iter()
            .map(|(&index, gradient)| {
                Ok(Port::new(named_gradient(&argument_ports[index].name), TensorType::of(*gradient)?))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        transpose.builder().ret(&gradients.values().copied().collect::<Vec<_>>())?;
        self.record(function, &captured_values)?;
        let captured = save(module, function, &captured_values)?;
        for (captured, value) in captured.iter().zip(&captured_values) {
            ports.push(match *captured {
                Captured::Argument(index) => argument_ports[index].clone(),
                Captured::Saved(_) => Port::new("", TensorType::of(*value)?),
            });
        }
        Function(operation).set_signature(&ports, &gradient_ports)?;
        Ok(Callee {
            symbol: signature.name,
            results: active.results.iter().copied().collect(),
            captured,
            arguments: gradients.into_keys().collect(),
            gradients: gradient_ports.into_iter().map(|port| port.r#type).collect(),
        })
    }

    /// Notes what a layer keeps beyond its arguments and results.
    fn record(&mut self, function: Function<'c, 'a>, captured: &[Val<'c, 'a>]) -> Result<(), Error> {
        let name = function.name();
        let Some(&calls) = self.layers.get(&name) else { return Ok(()) };
        let returned: HashSet<usize> = function.results().into_iter().map(ffi::value_key).collect();
        let all = operations(function);
        for &value in captured.iter().filter(|value| !returned.contains(&ffi::value_key(**value))) {
            let Some(owner) = ffi::value_owner(value) else { continue };
            let operation = all.iter().position(|operation| ffi::same_op(*operation, owner));
            let result =
                owner.results().position(|result| ffi::value_key(result.into()) == ffi::value_key(value));
            let (Some(operation), Some(result)) = (operation, result) else { continue };
            let r#type = TensorType::of(value)?;
            let bytes = r#type.elements() * r#type.element.bytes() * calls;
            let flops = remat::flops(self.module, owner) * calls;
            self.saved.push(Saved { function: name.clone(), place: (operation, result), bytes, flops });
        }
        Ok(())
    }
}

fn find_loss(entry: Function<'_, '_>, name: &str) -> Result<usize, Error> {
    let ports = entry.result_ports()?;
    let index = ports.iter().position(|port| port.name == name).ok_or_else(|| {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        Error::at(
            entry.0,
            format!("`{}` has no result named `{name}`; it returns {}", entry.name(), names.join(", ")),
        )
    })?;
    let r#type = &ports[index].r#type;
    if !r#type.shape.is_empty() || !is_float(entry.results()[index]) {
        return Err(Error::at(
            entry.0,
            format!("the result `{name}` is a {type}; only a scalar of floats (rank 0) has a gradient"),
        ));
    }
    Ok(index)
}

fn find_inputs(entry: Function<'_, '_>, names: Option<&[String]>) -> Result<Vec<usize>, Error> {
    let (ports, arguments) = (entry.argument_ports()?, entry.arguments());
    let Some(names) = names else {
        let all: Vec<usize> =
            (0..ports.len()).filter(|&index| ports[index].name.starts_with(PARAMETER)).collect();
        return if all.is_empty() {
            Err(Error::at(entry.0, format!("`{}` has no argument named `{PARAMETER}…`", entry.name())))
        } else {
            Ok(all)
        };
    };
    let mut found = Vec::new();
    for name in names {
        let index = ports.iter().position(|port| port.name == *name).ok_or_else(|| {
            Error::at(entry.0, format!("`{}` has no argument named `{name}`", entry.name()))
        })?;
        if !is_float(arguments[index]) {
            return Err(Error::at(
                entry.0,
                format!(
                    "the argument `{name}` is a {}: integers have no gradient; ask for an argument of floats",
                    ports[index].r#type
                ),
            ));
        }
        found.push(index);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn named_gradient(name: &str) -> String {
    if name.is_empty() { String::new() } else { gradient_name(name) }
}

fn unused_symbol(module: Op<'_, '_>, wanted: &str) -> String {
    let mut symbol = wanted.to_owned();
    while function::function(module, &symbol).is_some() {
        symbol.push('_');
    }
    symbol
}

/// Makes `function` return `values` (those that are no arguments and that it does not return yet) and renews its
/// calls.
fn save<'c, 'a>(
    module: Op<'c, 'a>,
    function: Function<'c, 'a>,
    values: &[Val<'c, 'a>],
) -> Result<Vec<Captured>, Error> {
    let keys = |values: Vec<Val<'c, 'a>>| values.into_iter().map(ffi::value_key).collect::<Vec<_>>();
    let arguments = keys(function.arguments());
    let mut results = keys(function.results());
    let (argument_ports, mut result_ports) = (function.argument_ports()?, function.result_ports()?);
    let (mut captured, mut saved) = (Vec::new(), Vec::new());
    for value in values {
        let key = ffi::value_key(*value);
        if let Some(index) = arguments.iter().position(|other| *other == key) {
            captured.push(Captured::Argument(index));
            continue;
        }
        let index = results.iter().position(|other| *other == key).unwrap_or(results.len());
        if index == results.len() {
            results.push(key);
            saved.push(*value);
            result_ports.push(Port::new("", TensorType::of(*value)?));
        }
        captured.push(Captured::Saved(index));
    }
    if !saved.is_empty() {
        let terminator = function.terminator().ok_or_else(|| Error::at(function.0, "has no body"))?;
        extend_return(function, terminator, &saved)?;
        function.set_signature(&argument_ports, &result_ports)?;
        let types: Vec<TensorType> = result_ports.into_iter().map(|port| port.r#type).collect();
        extend_calls(module, &function.name(), &types)?;
    }
    Ok(captured)
}

fn extend_return<'c, 'a>(
    function: Function<'c, 'a>,
    terminator: Op<'c, 'a>,
    more: &[Val<'c, 'a>],
) -> Result<(), Error> {
    let block = function.body().ok_or_else(|| Error::at(function.0, "has no body"))?;
    let values: Vec<Val<'c, 'a>> = terminator.operands().chain(more.iter().copied()).collect();
    let renewed =
        OperationBuilder::new("func.return", terminator.location()).add_operands(&values).build()?;
    block.append_operation(renewed);
    ffi::erase(terminator);
    Ok(())
}

fn extend_calls<'c, 'a>(module: Op<'c, 'a>, callee: &str, results: &[TensorType]) -> Result<(), Error> {
    let calls: Vec<Op<'c, 'a>> = function::functions(module)
        .into_iter()
        .flat_map(operations)
        .filter(|operation| walk::is(*operation, "func.call"))
        .filter(|call| t3c_ir::attributes::string(*call, "callee").as_deref() == Some(callee))
        .collect();
    for call in calls {
        let b = Builder::before(call)?;
        let types: Vec<_> = results.iter().map(|r#type| r#type.to_mlir(b.context())).collect();
        let attributes: Vec<_> = call.attributes().collect();
        let operands: Vec<Val<'c, 'a>> = call.operands().collect();
        let renewed = b.op("func.call", &operands, &types, &attributes, vec![])?;
        for (old, new) in call.results().zip(renewed.results()) {
            ffi::replace_all_uses(old.into(), new.into());
        }
        ffi::erase(call);
    }
    Ok(())
}

impl Pass for Autodiff {
    const NAME: &'static str = "t3-autodiff";
    const SUMMARY: &'static str = "Make the entry return gradients of its loss (once)";
    const OPTIONS: &'static [&'static str] = &[
        "loss=loss: the result to differentiate",
        "inputs=: names of arguments, joined by `+`; all that begin with `param/` without it",
        "remat=none: what a layer's backward computes again: none, attention (all but products), full, or what a number \
         of bytes does not hold",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self::default();
        for (key, value) in options::parse(Self::NAME, text, &["loss", "inputs", "remat"])? {
            match key {
                "loss" => pass.loss = value.to_owned(),
                "remat" => {
                    pass.remat = value.parse().map_err(|()| PassError::Option {
                        pass: Self::NAME,
                        option: format!("{key}={value}"),
                        expected: "none, attention, full, or a number of bytes".to_owned(),
                    })?;
                }
                _ => pass.inputs = Some(value.split('+').map(str::to_owned).collect()),
            }
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(differentiate(module, self)?)
    }
}
