//! Which values have a gradient: those that depend on an input of interest and that the loss depends on.

use std::collections::{BTreeSet, HashMap, HashSet};

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Element, Error, Generic, Op, TensorType, Val, ffi,
    function::{self, Function},
    units::{UnitKind, unit_of},
    walk,
};

/// On an operation through which no gradient flows.
pub const STOP_GRADIENT: &str = "t3.stop_gradient";

/// For each result of a function, the arguments on which it depends differentiably.
type Summary = Vec<BTreeSet<usize>>;

/// Arguments and results of a function that have a gradient in some call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Active {
    /// Indices of arguments.
    pub arguments: BTreeSet<usize>,
    /// Indices of results.
    pub results: BTreeSet<usize>,
}

/// What is known about all functions that the entry reaches.
pub struct Activity<'c, 'a> {
    module: Op<'c, 'a>,
    summaries: HashMap<String, Summary>,
    /// Functions that are no units, callees first.
    pub order: Vec<Function<'c, 'a>>,
    /// What has a gradient in each of them.
    pub active: HashMap<String, Active>,
}

/// Whether a value is a tensor (or scalar) of floats.
pub fn is_float(value: Val<'_, '_>) -> bool {
    TensorType::of(value).is_ok_and(|r#type| {
        matches!(r#type.element, Element::F64 | Element::F32 | Element::F16 | Element::Bf16)
    })
}

impl<'c, 'a> Activity<'c, 'a> {
    /// Analyses everything that `entry` calls.
    ///
    /// # Errors
    /// A function that calls itself.
    pub fn new(module: Op<'c, 'a>, entry: Function<'c, 'a>, active: Active) -> Result<Self, Error> {
        let mut activity =
            Self { module, summaries: HashMap::new(), order: Vec::new(), active: HashMap::new() };
        activity.visit(entry, &mut Vec::new())?;
        activity.active.insert(entry.name(), active);
        for function in activity.order.clone().into_iter().rev() {
            activity.spread(function);
        }
        Ok(activity)
    }

    fn visit(&mut self, function: Function<'c, 'a>, path: &mut Vec<String>) -> Result<(), Error> {
        let name = function.name();
        if path.contains(&name) {
            return Err(Error::at(
                function.0,
                format!("`{name}` calls itself; gradients need a finite graph"),
            ));
        }
        if self.summaries.contains_key(&name) {
            return Ok(());
        }
        path.push(name.clone());
        for operation in operations(function) {
            if let Some(callee) = self.callee(operation) {
                self.visit(callee, path)?;
            }
        }
        path.pop();
        let summary = self.summarise(function);
        self.summaries.insert(name, summary);
        self.order.push(function);
        Ok(())
    }

    /// The function that an operation calls, unless it is a unit.
    pub fn callee(&self, operation: Op<'c, 'a>) -> Option<Function<'c, 'a>> {
        function::callee(self.module, operation).filter(|callee| callee.unit().is_none())
    }

    fn summarise(&self, function: Function<'c, 'a>) -> Summary {
        let mut known: HashMap<usize, BTreeSet<usize>> = HashMap::new();
        for (index, argument) in function.arguments().into_iter().enumerate() {
            if is_float(argument) {
                known.insert(ffi::value_key(argument), [index].into());
            }
        }
        let find = |known: &HashMap<usize, BTreeSet<usize>>, value: Val<'c, 'a>| {
            known.get(&ffi::value_key(value)).cloned().unwrap_or_default()
        };
        for operation in operations(function) {
            for (result, sources) in self.sources(operation) {
                let all = sources.into_iter().flat_map(|source| find(&known, source)).collect();
                known.insert(ffi::value_key(result), all);
            }
        }
        function.results().into_iter().map(|result| find(&known, result)).collect()
    }

    /// For each result of an operation, the values on which it depends differentiably.
    pub fn sources(&self, operation: Op<'c, 'a>) -> Vec<(Val<'c, 'a>, Vec<Val<'c, 'a>>)> {
        let results: Vec<Val<'c, 'a>> =
            operation.results().map(Into::into).filter(|r| is_float(*r)).collect();
        let operands: Vec<Val<'c, 'a>> = operation.operands().collect();
        if results.is_empty() || operation.attribute(STOP_GRADIENT).is_ok() {
            return Vec::new();
        }
        if let Some(callee) = self.callee(operation) {
            let summary = self.summaries.get(&callee.name());
            return operation
                .results()
                .enumerate()
                .map(|(index, result)| {
                    let arguments = summary.and_then(|summary| summary.get(index)).into_iter().flatten();
                    (result.into(), arguments.map(|&argument| operands[argument]).collect())
                })
                .collect();
        }
        let unit = function::callee(self.module, operation).and_then(unit_of);
        let mut sources = match unit.map(|unit| unit.kind) {
            Some(UnitKind::Lookup) => operands[..1].to_vec(),
            Some(UnitKind::Attention) => operands[..3].to_vec(),
            Some(UnitKind::Grouped) => operands[..2].to_vec(),
            _ => operands,
        };
        if Generic::is(operation)
            && let Ok(generics) = Generic::read_all(operation)
        {
            let of = |generic: Generic<'c, 'a>| {
                let all = generic.inputs.into_iter().chain([generic.init]).chain(generic.captures);
                all.filter(|source| is_float(*source)).collect()
            };
            let results = operation.results().map(Into::into).zip(generics.into_iter().map(of));
            return results.filter(|(result, _)| is_float(*result)).collect();
        }
        sources.retain(|source| is_float(*source));
        results.into_iter().map(|result| (result, sources.clone())).collect()
    }

    /// The values of a function that have a gradient.
    pub fn values(&self, function: Function<'c, 'a>) -> HashSet<usize> {
        let Some(active) = self.active.get(&function.name()) else { return HashSet::new() };
        let keys = |values: Vec<Val<'c, 'a>>, chosen: &BTreeSet<usize>| -> HashSet<usize> {
            chosen.iter().filter_map(|&index| values.get(index)).map(|value| ffi::value_key(*value)).collect()
        };
        let mut varied = keys(function.arguments(), &active.arguments);
        let mut useful = keys(function.results(), &active.results);
        let edges: Vec<_> =
            operations(function).into_iter().flat_map(|operation| self.sources(operation)).collect();
        for (result, sources) in &edges {
            if sources.iter().any(|source| varied.contains(&ffi::value_key(*source))) {
                varied.insert(ffi::value_key(*result));
            }
        }
        for (result, sources) in edges.iter().rev() {
            if useful.contains(&ffi::value_key(*result)) {
                useful.extend(sources.iter().map(|source| ffi::value_key(*source)));
            }
        }
        varied.retain(|key| useful.contains(key));
        varied
    }

    /// Marks arguments and results of the functions that `function` calls.
    fn spread(&mut self, function: Function<'c, 'a>) {
        let values = self.values(function);
        if values.is_empty() {
            return;
        }
        for operation in operations(function) {
            let Some(callee) = self.callee(operation) else { continue };
            let name = callee.name();
            let results: BTreeSet<usize> = operation
                .results()
                .enumerate()
                .filter(|(_, result)| values.contains(&ffi::value_key((*result).into())))
                .map(|(index, _)| index)
                .collect();
            let summary = self.summaries.get(&name).cloned().unwrap_or_default();
            let reached: BTreeSet<usize> =
                results.iter().filter_map(|&result| summary.get(result)).flatten().copied().collect();
            let arguments = operation
                .operands()
                .enumerate()
                .filter(|(index, operand)| {
                    reached.contains(index) && values.contains(&ffi::value_key(*operand))
                })
                .map(|(index, _)| index);
            let active = self.active.entry(name).or_default();
            active.arguments.extend(arguments);
            active.results.extend(results);
        }
    }
}

/// The operations of a function, in order.
pub fn operations<'c, 'a>(function: Function<'c, 'a>) -> Vec<Op<'c, 'a>> {
    function.body().map(walk::operations).unwrap_or_default()
}
