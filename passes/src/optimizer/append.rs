//! The entry's new arguments and results around the arithmetic of a step.

use melior::ir::{
    BlockLike, Location,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Element, Error, Op, TensorType, Val, ffi,
    function::{self, Function, Port},
    views::annotation,
};

use super::{
    Optimizer,
    step::{self, Inputs, Stepped},
};
use crate::autodiff::{GRADIENT, PARAMETER, gradient_name};

/// The prefix of f32 copies of narrower parameters.
const MASTER: &str = "master/";
/// The prefix of accumulated gradients.
const ACCUMULATOR: &str = "acc/";
/// The input that says whether a call steps.
const APPLY: &str = "apply";

/// A parameter that has a gradient.
pub(super) struct Slot<'c, 'a> {
    pub port: Port,
    /// The parameter, or its master.
    pub value: Val<'c, 'a>,
    pub gradient: Val<'c, 'a>,
    /// Whether devices have parts of it.
    pub split: bool,
    /// In the order of the rule's states.
    pub states: Vec<Val<'c, 'a>>,
    pub is_master: bool,
    pub accumulated: Option<Val<'c, 'a>>,
}

impl Slot<'_, '_> {
    /// The type of the parameter's state.
    pub fn state_type(&self) -> TensorType {
        TensorType::new(self.port.r#type.shape.clone(), wide(self.port.r#type.element))
    }
}

/// The element type in which a parameter of type `element` steps.
pub(super) fn wide(element: Element) -> Element {
    if element == Element::F64 { Element::F64 } else { Element::F32 }
}

/// Appends the step to the entry. Scalar arguments come before the parameters, state after them; results `grad_norm`,
/// `param/…` and the state follow those that are there.
///
/// # Errors
/// When the entry returns no gradients.
pub fn append<'o, O>(module: Op<'_, '_>, options: &'o O) -> Result<(), Error>
where
    Optimizer: From<&'o O>,
{
    let options = Optimizer::from(options);
    let entry = function::entry(module)?;
    let (mut ports, results, values) = (entry.argument_ports()?, entry.result_ports()?, entry.results());
    let terminator = entry.terminator().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let mut slots = slots(entry, &ports, &results, &values)?;
    let element = slots
        .iter()
        .map(|slot| wide(slot.port.r#type.element))
        .fold(Element::F32, |all, one| if one == Element::F64 { one } else { all });
    add_state(entry, &mut ports, &mut slots, &options)?;
    let mut names = options.rule.scalars().to_vec();
    names.extend(options.accumulate.then_some(APPLY));
    let mut scalars = add_scalars(entry, &mut ports, &names, element)?;
    let apply = if options.accumulate { scalars.pop() } else { None };
    let b = Builder::before(terminator)?;
    let b = b.at(Location::name(b.context(), "optimizer", terminator.location()));
    if options.accumulate {
        for slot in &mut slots {
            slot.gradient = step::accumulate(&b.named(&slot.port.name), slot)?;
        }
    }
    let norm = step::norm(&b, &slots, element)?;
    let factor = step::clip_factor(&b, norm, options.clip)?;
    let inputs = Inputs { options: &options, factor, scalars: &scalars, apply };
    let stepped = slots
        .iter()
        .map(|slot| step::step(&b.named(&format!("{}.optimizer", slot.port.name)), slot, &inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let kept = |name: &str| options.keep_gradients || !name.starts_with(GRADIENT);
    let mut returned: Vec<(Port, Val<'_, '_>)> =
        results.into_iter().zip(values).filter(|(port, _)| kept(&port.name)).collect();
    returned.push((Port::new("grad_norm", TensorType::new([], element)), norm));
    returned.extend(new_results(&slots, stepped, &options)?);
    let (result_ports, values): (Vec<Port>, Vec<Val<'_, '_>>) = returned.into_iter().unzip();
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let renewed =
        OperationBuilder::new("func.return", terminator.location()).add_operands(&values).build()?;
    block.append_operation(renewed);
    ffi::erase(terminator);
    entry.set_signature(&ports, &result_ports)
}

/// All parameters, then all first states, …: the order of the arguments.
fn new_results<'c, 'a>(
    slots: &[Slot<'c, 'a>],
    stepped: Vec<Stepped<'c, 'a>>,
    options: &Optimizer,
) -> Result<Vec<(Port, Val<'c, 'a>)>, Error> {
    let mut columns: Vec<(&str, Vec<Option<Val<'c, 'a>>>)> =
        vec![(PARAMETER, stepped.iter().map(|new| Some(new.parameter)).collect())];
    for (which, prefix) in options.rule.states().iter().enumerate() {
        columns.push((prefix, stepped.iter().map(|new| new.states.get(which).copied()).collect()));
    }
    columns.push((MASTER, stepped.iter().map(|new| new.master).collect()));
    columns.push((ACCUMULATOR, stepped.iter().map(|new| new.accumulated).collect()));
    let mut returned = Vec::new();
    for (prefix, values) in columns {
        for (slot, value) in slots.iter().zip(values) {
            if let Some(value) = value {
                let name = renamed(&slot.port.name, prefix);
                returned.push((Port::new(name, TensorType::of(value)?), value));
            }
        }
    }
    Ok(returned)
}

/// The parameters that have a gradient.
fn slots<'c, 'a>(
    entry: Function<'c, 'a>,
    ports: &[Port],
    results: &[Port],
    values: &[Val<'c, 'a>],
) -> Result<Vec<Slot<'c, 'a>>, Error> {
    let mut slots = Vec::new();
    for (port, argument) in ports.iter().zip(entry.arguments()) {
        let name = gradient_name(&port.name);
        let gradient = results.iter().position(|result| result.name == name);
        let (true, Some(gradient)) = (port.name.starts_with(PARAMETER), gradient) else { continue };
        let annotated = annotated(argument);
        slots.push(Slot {
            port: port.clone(),
            value: annotated.map_or(Ok(argument), |op| op.result(0).map(Into::into))?,
            gradient: values[gradient],
            split: annotated
                .and_then(annotation)
                .is_some_and(|splits| splits.iter().any(|axes| !axes.is_empty())),
            states: Vec::new(),
            is_master: false,
            accumulated: None,
        });
    }
    if slots.is_empty() {
        let message =
            format!("`{}` returns no `{GRADIENT}…` of a parameter; run t3-autodiff first", entry.name());
        return Err(Error::at(entry.0, message));
    }
    Ok(slots)
}

fn annotated<'c, 'a>(argument: Val<'c, 'a>) -> Option<Op<'c, 'a>> {
    ffi::uses(argument).into_iter().map(|(user, _)| user).find(|user| annotation(*user).is_some())
}

fn renamed(parameter: &str, prefix: &str) -> String {
    format!("{prefix}{}", parameter.strip_prefix(PARAMETER).unwrap_or(parameter))
}

fn add_state<'c, 'a>(
    entry: Function<'c, 'a>,
    ports: &mut Vec<Port>,
    slots: &mut [Slot<'c, 'a>],
    options: &Optimizer,
) -> Result<(), Error> {
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let mut add = |slot: &Slot<'c, 'a>, prefix: &str| {
        let r#type = slot.state_type();
        let argument = block.add_argument(r#type.to_mlir(ffi::context_of(entry.0)), entry.0.location());
        let attributes = slot.port.attributes.clone();
        ports.push(Port { name: renamed(&slot.port.name, prefix), r#type, attributes });
        argument
    };
    for prefix in options.rule.states() {
        for slot in slots.iter_mut() {
            let state = add(slot, prefix);
            slot.states.push(state);
        }
    }
    let is_narrow = |slot: &Slot<'c, 'a>| slot.port.r#type.element != slot.state_type().element;
    for slot in slots.iter_mut().filter(|slot| options.master && is_narrow(slot)) {
        slot.value = add(slot, MASTER);
        slot.is_master = true;
    }
    for slot in slots.iter_mut().filter(|_| options.accumulate) {
        slot.accumulated = Some(add(slot, ACCUMULATOR));
    }
    Ok(())
}

/// Scalar arguments: those that are there, or new ones before the first parameter.
fn add_scalars<'c, 'a>(
    entry: Function<'c, 'a>,
    ports: &mut Vec<Port>,
    names: &[&str],
    element: Element,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let r#type = TensorType::new([], element);
    for &name in names {
        if let Some(port) = ports.iter().find(|port| port.name == name) {
            if port.r#type != r#type {
                let found = &port.r#type;
                return Err(Error::at(entry.0, format!("`{name}` is a {found}, expected {type}")));
            }
            continue;
        }
        let first = ports.iter().position(|port| port.name.starts_with(PARAMETER)).unwrap_or(ports.len());
        block.insert_argument(first, r#type.to_mlir(ffi::context_of(entry.0)), entry.0.location());
        ports.insert(first, Port::new(name, r#type.clone()));
    }
    let find = |name: &&str| {
        let index = ports.iter().position(|port| port.name == *name).unwrap_or_default();
        Ok::<_, Error>(block.argument(index)?.into())
    };
    names.iter().map(find).collect()
}
