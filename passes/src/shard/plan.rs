//! What becomes of every value: decided on plain data.

use t3c_ir::Splits;
use t3c_schedule::{Grid, chunks::divides};

use super::{
    Error, Stage,
    graph::{FunctionGraph, Graph, Kind},
    sharding::{Sharding, cost},
    units::Indices,
    walker::Walker,
    zero::Zero,
};

/// The plan of a module: one entry a function that remains.
#[derive(Debug)]
pub struct Plan {
    /// The functions.
    pub functions: Vec<FunctionPlan>,
}

/// The plan of one function.
#[derive(Debug)]
pub struct FunctionPlan {
    /// Which function of the graph.
    pub function: usize,
    /// How its arguments arrive.
    pub arguments: Vec<Sharding>,
    /// Which arguments are parameters.
    pub stationary: Vec<bool>,
    /// How its first call would have each result, where that matters.
    pub wanted: Vec<Option<Splits>>,
    /// How its results leave.
    pub results: Vec<Sharding>,
    /// Its operations in their new order.
    pub nodes: Vec<NodePlan>,
}

/// The plan of one operation.
#[derive(Debug)]
pub struct NodePlan {
    /// Which operation of the function.
    pub node: usize,
    /// Its operands, as values of the function.
    pub operands: Vec<usize>,
    /// Changes of sharding just before it.
    pub reshards: Vec<Reshard>,
    /// The sharding in which it takes each operand.
    pub forms: Vec<Sharding>,
    /// How its results lie.
    pub results: Vec<Sharding>,
    /// The axes of each loop of a structured operation.
    pub factors: Splits,
    /// The plan of the function that it calls.
    pub callee: Option<usize>,
    /// What becomes of a unit's indices.
    pub indices: Indices,
    /// The axes along which only the first device starts from the initial value, the others from zero.
    pub once: Vec<usize>,
}

/// A change of sharding of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshard {
    /// The value.
    pub value: usize,
    /// Which of its forms to start from.
    pub from: Sharding,
    /// The form wanted.
    pub to: Sharding,
}

/// Plans a module.
///
/// # Errors
/// See [`Error`].
pub fn plan(graph: &Graph, stage: Stage) -> Result<Plan, Error> {
    let annotations =
        graph.functions.iter().map(|function| annotations(graph, function)).collect::<Result<Vec<_>, _>>()?;
    let zero = Zero::new(stage, &graph.grid);
    let mut planner = Planner { graph, zero, annotations, plans: Vec::new(), active: Vec::new() };
    for (index, function) in graph.functions.iter().enumerate().filter(|(_, function)| function.public) {
        let arguments = planner.entry_arguments(index);
        let stationary = function.arguments.iter().map(|port| is_state(&port.name)).collect();
        planner.function(index, arguments, stationary, vec![])?;
    }
    Ok(Plan { functions: planner.plans })
}

/// Whether an argument is a parameter or what an optimizer keeps of it.
fn is_state(name: &str) -> bool {
    ["param/", "m/", "v/", "master/", "acc/"].iter().any(|prefix| name.starts_with(prefix))
}

/// Whether an argument is a parameter.
pub fn is_parameter(name: &str) -> bool {
    name.starts_with("param/")
}

/// The annotated sharding of each argument of a function, after checking every annotation in it.
fn annotations(graph: &Graph, function: &FunctionGraph) -> Result<Vec<Option<Sharding>>, Error> {
    let mut arguments: Vec<Option<Sharding>> = vec![None; function.arguments.len()];
    for node in &function.nodes {
        if let Kind::Annotation(splits) = &node.kind {
            let shape = &function.values[node.operands[0]].r#type.shape;
            let sharding = checked(graph, &node.location, shape, splits)?;
            if let Some(argument) = arguments.get_mut(node.operands[0]) {
                argument.get_or_insert(sharding);
            }
        }
    }
    Ok(arguments)
}

/// An annotation as a sharding; axes of one device split nothing.
fn checked(graph: &Graph, location: &str, shape: &[u64], splits: &[Vec<usize>]) -> Result<Sharding, Error> {
    let axes = &graph.grid.axes;
    let bad = |problem| Error::Annotation {
        location: location.to_owned(),
        splits: splits.to_vec(),
        axes: axes.len(),
        problem,
    };
    let listed: Vec<usize> = splits.iter().flatten().copied().collect();
    if splits.len() > shape.len() {
        return Err(bad("it has more dimensions than the tensor"));
    }
    for (position, &axis) in listed.iter().enumerate() {
        let named = axes.get(axis).ok_or_else(|| bad("it names an axis that the grid lacks"))?;
        if named.size == 0 {
            return Err(bad("an axis has no devices"));
        }
        if listed[..position].contains(&axis) {
            return Err(bad("it names an axis twice"));
        }
    }
    for (dimension, along) in splits.iter().enumerate() {
        let size = graph.grid.group_size(along);
        if !divides(shape[dimension], size) {
            let names: Vec<&str> = along.iter().map(|&axis| axes[axis].name.as_str()).collect();
            return Err(Error::Indivisible {
                location: location.to_owned(),
                dimension,
                extent: shape[dimension],
                axis: names.join("×"),
                size,
            });
        }
    }
    Ok(Sharding::split(real(&graph.grid, splits)))
}

/// Splits without the axes of one device, which split nothing.
pub fn real(grid: &Grid, splits: &[Vec<usize>]) -> Splits {
    let real = |axes: &Vec<usize>| axes.iter().copied().filter(|&axis| grid.axes[axis].size > 1).collect();
    splits.iter().map(real).collect()
}

/// Plans functions from the entry down.
pub struct Planner<'g> {
    /// The module.
    pub graph: &'g Graph,
    /// What data parallelism splits.
    pub zero: Zero,
    annotations: Vec<Vec<Option<Sharding>>>,
    /// What is planned so far; a callee stands before its callers.
    pub plans: Vec<FunctionPlan>,
    active: Vec<usize>,
}

impl Planner<'_> {
    /// Annotated arguments as annotated, an optimizer's state like its parameter, the others whole.
    fn entry_arguments(&self, index: usize) -> Vec<Sharding> {
        let ports = self.graph.functions[index].arguments.iter().zip(&self.annotations[index]);
        ports
            .map(|(port, annotation)| {
                let like = || self.parameter(index, &port.name, &port.r#type.shape);
                let whole = || Sharding::replicated(port.r#type.shape.len());
                let stated = annotation.clone().filter(|_| !is_parameter(&port.name));
                stated.or_else(like).unwrap_or_else(whole)
            })
            .collect()
    }

    /// How the parameter lies that a moment, a gradient or an updated parameter belongs to.
    pub fn parameter(&self, index: usize, name: &str, shape: &[u64]) -> Option<Sharding> {
        let (prefix, rest) = name.split_once('/')?;
        if !["param", "m", "v", "grad", "master", "acc"].contains(&prefix) {
            return None;
        }
        let function = &self.graph.functions[index];
        let wanted = format!("param/{rest}");
        let at = function.arguments.iter().position(|port| port.name == wanted)?;
        let whole = || Sharding::replicated(shape.len());
        let r#type = &function.arguments[at].r#type;
        let annotated = &self.annotations[index][at];
        let base = annotated.clone().unwrap_or_else(whole);
        // What no annotation gathers stays whole.
        let port = || self.zero.port(prefix, &base, r#type, &self.graph.grid);
        let split = annotated.is_some() || prefix != "param";
        (r#type.shape == shape).then(|| if split { port() } else { base.clone() })
    }

    /// Plans a function for these arguments; returns its place among the plans.
    fn function(
        &mut self,
        index: usize,
        arguments: Vec<Sharding>,
        stationary: Vec<bool>,
        wanted: Vec<Option<Splits>>,
    ) -> Result<usize, Error> {
        let function = &self.graph.functions[index];
        if self.active.contains(&index) {
            let (location, name) = (function.location.clone(), function.name.clone());
            return Err(Error::Recursive { location, name });
        }
        self.active.push(index);
        let (nodes, results) = Walker::new(self, index, &arguments, (&stationary, &wanted)).walk()?;
        self.active.pop();
        self.plans.push(FunctionPlan { function: index, arguments, stationary, wanted, results, nodes });
        Ok(self.plans.len() - 1)
    }

    /// The plan of the function that a call calls. Operands that the callee annotates arrive so and parameters as
    /// they are; a plan that exists is used where bringing the others to it moves nothing, or else they arrive as
    /// they are in a new one.
    pub fn call(
        &mut self,
        callee: usize,
        location: &str,
        operands: &[Operand],
        wanted: Vec<Option<Splits>>,
    ) -> Result<usize, Error> {
        let (mut arguments, mut stationary) = (Vec::new(), Vec::new());
        let ports = &self.graph.functions[callee].arguments;
        for (argument, (operand, annotation)) in operands.iter().zip(&self.annotations[callee]).enumerate() {
            let found = &operand.sharding;
            let gathers =
                |wanted: &Sharding| found.splits.iter().zip(&wanted.splits).all(|(a, b)| a.starts_with(b));
            if let Some(expected) =
                annotation.as_ref().filter(|wanted| operand.stationary && !gathers(wanted))
            {
                return Err(Error::Disagree {
                    location: location.to_owned(),
                    callee: self.graph.functions[callee].name.clone(),
                    argument,
                    found: found.splits.clone(),
                    expected: expected.splits.clone(),
                });
            }
            // A parameter arrives as it lies, and its annotation gathers it where it is used.
            let wanted = annotation.as_ref().filter(|_| !operand.stationary);
            arguments.push(wanted.unwrap_or(found).clone());
            stationary.push(operand.stationary || (annotation.is_some() && is_state(&ports[argument].name)));
        }
        let fits = |plan: &FunctionPlan| {
            plan.function == callee
                && plan.stationary == stationary
                && plan.wanted == wanted
                && arguments.iter().zip(&plan.arguments).zip(operands).zip(&stationary).all(
                    |(((ours, theirs), operand), fixed)| {
                        ours == theirs || (!fixed && cost(ours, theirs, operand.bytes, &self.graph.grid) == 0)
                    },
                )
        };
        match self.plans.iter().position(fits) {
            Some(known) => Ok(known),
            None => self.function(callee, arguments, stationary, wanted),
        }
    }
}

/// An operand of a call.
pub struct Operand {
    /// How it lies, complete.
    pub sharding: Sharding,
    /// Whether it is a parameter.
    pub stationary: bool,
    /// Its bytes on one big device.
    pub bytes: u64,
}
