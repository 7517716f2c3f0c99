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
//!   several uses are added in program order.
//!
//! ```text
//! before  @layer(x, w) -> y                      @train(x, param/w) -> loss
//! after   @layer(x, w) -> y, saved…              @train(x, param/w) -> loss, grad/w
//!         @layer_backward(dy, saved…) -> dx, dw
//! ```

mod activity;
mod scalar;
mod structured;
mod transpose;

#[cfg(test)]
mod models;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use melior::ir::{
    BlockLike,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Error, Op, TensorType, Val, ffi,
    function::{self, Function, Port, Signature, add_function_to},
    walk,
};

pub use activity::STOP_GRADIENT;
use activity::{Active, Activity, is_float, operations};
pub use scalar::{Derivatives, derivatives};
use transpose::{Callee, Captured, Transpose, backward_location};

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
}

impl Default for Autodiff {
    fn default() -> Self {
        Self { loss: "loss".into(), inputs: None }
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
    let entry = function::entry(module)?;
    let loss = find_loss(entry, &options.loss)?;
    let inputs = find_inputs(entry, options.inputs.as_deref())?;
    let active = Active { arguments: inputs.iter().copied().collect(), results: BTreeSet::from([loss]) };
    let activity = Activity::new(module, entry, active)?;
    let mut callees = HashMap::new();
    for &function in &activity.order {
        let name = function.name();
        let Some(active) = activity.active.get(&name) else { continue };
        if name != entry.name() && !active.results.is_empty() && !active.arguments.is_empty() {
            let callee = backward_function(module, &activity, &callees, function, active)?;
            callees.insert(name, callee);
        }
    }
    differentiate_entry(module, &activity, &callees, entry, loss, &inputs)
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

fn differentiate_entry<'c, 'a>(
    module: Op<'c, 'a>,
    activity: &Activity<'c, 'a>,
    callees: &HashMap<String, Callee>,
    entry: Function<'c, 'a>,
    loss: usize,
    inputs: &[usize],
) -> Result<(), Error> {
    let terminator = entry.terminator().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let (arguments, argument_ports) = (entry.arguments(), entry.argument_ports()?);
    let mut result_ports = entry.result_ports()?;
    let value = entry.results()[loss];
    let b = Builder::before(terminator)?.at(backward_location(ffi::context_of(module), terminator));
    let mut transpose = Transpose::new(module, activity, callees, entry, b, None);
    let seed = b.splat(1.0, &TensorType::of(value)?)?;
    transpose.give(value, seed);
    transpose.run(entry)?;
    let gradients = transpose.arguments(&arguments, inputs.iter().copied())?;
    for (&index, gradient) in &gradients {
        let port = &argument_ports[index];
        result_ports.push(Port::new(gradient_name(&port.name), TensorType::of(*gradient)?));
    }
    extend_return(entry, terminator, &gradients.into_values().collect::<Vec<_>>())?;
    if ffi::uses(seed).is_empty()
        && let Some(constant) = ffi::value_owner(seed)
    {
        ffi::erase(constant);
    }
    entry.set_signature(&argument_ports, &result_ports)
}

/// The backward of a function that is called; the function and its calls then also return what it needs.
fn backward_function<'c, 'a>(
    module: Op<'c, 'a>,
    activity: &Activity<'c, 'a>,
    callees: &HashMap<String, Callee>,
    function: Function<'c, 'a>,
    active: &Active,
) -> Result<Callee, Error> {
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
    let mut transpose = Transpose::new(module, activity, callees, function, b, Some(block));
    for (&index, incoming) in active.results.iter().zip(Function(operation).arguments()) {
        transpose.give(values[index], incoming);
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
    transpose.builder().ret(&gradients.into_values().collect::<Vec<_>>())?;
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
        arguments: active.arguments.iter().copied().collect(),
        gradients: gradient_ports.into_iter().map(|port| port.r#type).collect(),
    })
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
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self::default();
        for (key, value) in options::parse(Self::NAME, text, &["loss", "inputs"])? {
            match key {
                "loss" => pass.loss = value.to_owned(),
                _ => pass.inputs = Some(value.split('+').map(str::to_owned).collect()),
            }
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(differentiate(module, self)?)
    }
}
