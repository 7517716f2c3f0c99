//! Plans one function: a walk over its operations, in which every value gets its sharding where it is made and is
//! brought into others where they are needed.

use std::collections::HashMap;

use t3c_ir::{
    ScalarOp, Splits, splits,
    units::{Unit, UnitKind},
};
use t3c_schedule::Reduction;

use super::{
    Error,
    chains::{Order, reorder},
    experts,
    graph::{Free, FunctionGraph, Kind, Node, Structured},
    linear::is_linear,
    loops::{Claim, assign},
    plan::{NodePlan, Operand, Planner, Reshard, is_parameter, real},
    reshape::Reshape,
    sharding::{Sharding, cost},
    units::{self, Indices, Situation},
    wishes,
};

/// The state of the walk.
pub struct Walker<'p, 'g> {
    planner: &'p mut Planner<'g>,
    index: usize,
    function: &'g FunctionGraph,
    /// The shardings in which each value exists so far; the first is the one it was made in.
    forms: Vec<Vec<Sharding>>,
    stationary: Vec<bool>,
    /// Gradients that a unit leaves as contributions: every product that reads them ends in a sum over their axes
    /// anyway, so they are not combined first.
    deferred: Vec<bool>,
    /// Of parameters that lie split over data: how they are where they are computed with.
    gathered: Vec<Option<Splits>>,
    /// How results are wanted.
    wanted: Vec<Option<Splits>>,
    reshards: Vec<Reshard>,
}

/// What is decided about a structured operation.
struct Decision {
    factors: Splits,
    /// Axes along which operands stay partial.
    through: Vec<usize>,
    /// Axes along which only the first device adds the initial value.
    once: Vec<usize>,
    init: Sharding,
    result: Sharding,
}

impl<'p, 'g> Walker<'p, 'g> {
    /// A walk over function `index`, whose arguments arrive like this.
    pub fn new(
        planner: &'p mut Planner<'g>,
        index: usize,
        arguments: &[Sharding],
        (fixed, wanted): (&[bool], &[Option<Splits>]),
    ) -> Self {
        let function = &planner.graph.functions[index];
        let mut forms = vec![vec![]; function.values.len()];
        let mut stationary = vec![false; function.values.len()];
        let (deferred, gathered) = (stationary.clone(), vec![None; function.values.len()]);
        for (value, sharding) in arguments.iter().enumerate() {
            forms[value] = vec![sharding.clone()];
            stationary[value] = fixed[value];
        }
        Self {
            planner,
            index,
            function,
            forms,
            stationary,
            deferred,
            gathered,
            wanted: wanted.to_vec(),
            reshards: vec![],
        }
    }

    /// Plans every operation; returns the plans and the shardings of the function's results.
    pub fn walk(mut self) -> Result<(Vec<NodePlan>, Vec<Sharding>), Error> {
        let function = self.function;
        let order = Order::of(function);
        let mut reordered: HashMap<usize, Vec<usize>> = HashMap::new();
        let (mut plans, mut results) = (Vec::with_capacity(order.nodes.len()), Vec::new());
        for &index in &order.nodes {
            let node = &function.nodes[index];
            if let Some(sum) = order.begins(index) {
                let partial =
                    |value: usize| function.values[value].uses == 1 && !self.made(value).partial.is_empty();
                let operands = reorder(function, sum, partial);
                reordered.extend(sum.iter().copied().zip(operands));
            }
            let operands = reordered.remove(&index).unwrap_or_else(|| node.operands.clone());
            let mut plan = self.node(index, node, operands)?;
            plan.reshards = std::mem::take(&mut self.reshards);
            for (&result, sharding) in node.results.iter().zip(&plan.results) {
                self.forms[result] = vec![sharding.clone()];
            }
            if matches!(node.kind, Kind::Return) {
                results = plan.forms.clone();
            }
            plans.push(plan);
        }
        Ok((plans, results))
    }

    fn node(&mut self, index: usize, node: &'g Node, operands: Vec<usize>) -> Result<NodePlan, Error> {
        let mut plan = NodePlan {
            node: index,
            operands,
            reshards: vec![],
            forms: vec![],
            results: vec![],
            factors: vec![],
            callee: None,
            indices: Indices::Whole,
            once: vec![],
        };
        match &node.kind {
            Kind::Inert => {
                let whole = |&value: &usize| Sharding::replicated(self.rank(value));
                plan.results = node.results.iter().map(whole).collect();
            }
            Kind::Annotation(splits) => self.annotation(&mut plan, node, splits),
            Kind::Structured(structured) => self.structured(&mut plan, node, structured)?,
            Kind::Unit(unit) => {
                self.unit(&mut plan, node, unit);
                for (&result, made) in node.results.iter().zip(&plan.results) {
                    self.deferred[result] = unit.kind == UnitKind::AttentionGrad && !made.partial.is_empty();
                }
            }
            Kind::Reshape(reshape) => self.reshape(&mut plan, node, reshape)?,
            Kind::Call(callee) => self.call(&mut plan, node, *callee)?,
            Kind::Return => plan.forms = self.returned(&plan.operands),
        }
        for (&value, form) in plan.operands.iter().zip(&plan.forms) {
            self.want(value, form);
        }
        Ok(plan)
    }

    fn rank(&self, value: usize) -> usize {
        self.function.values[value].r#type.shape.len()
    }

    fn bytes(&self, value: usize) -> u64 {
        let r#type = &self.function.values[value].r#type;
        r#type.elements().saturating_mul(r#type.element.bytes())
    }

    fn free(&self, value: usize) -> Option<Free> {
        self.function.values[value].free
    }

    fn is_zero(&self, value: usize) -> bool {
        matches!(self.free(value), Some(Free::Fill(number) | Free::Splat(number)) if number == 0.0)
    }

    /// How a value was made.
    fn made(&self, value: usize) -> &Sharding {
        &self.forms[value][0]
    }

    /// The form of `value` from which `to` costs least, and what it costs.
    fn cheapest(&self, value: usize, to: &Sharding) -> (u64, usize) {
        let forms = self.forms[value].iter().enumerate();
        let price = |from: &Sharding| {
            // A form that misses contributions to `to` cannot be brought back to partial.
            let reachable = to.partial.iter().all(|entry| from.partial.contains(entry));
            if reachable { cost(from, to, self.bytes(value), &self.planner.graph.grid) } else { u64::MAX }
        };
        forms.map(|(index, from)| (price(from), index)).min().unwrap_or_default()
    }

    /// Sees to it that `value` exists as `to`.
    fn want(&mut self, value: usize, to: &Sharding) {
        if self.free(value).is_some() || self.forms[value].contains(to) {
            return;
        }
        let from = self.forms[value][self.cheapest(value, to).1].clone();
        self.reshards.push(Reshard { value, from, to: to.clone() });
        self.forms[value].push(to.clone());
    }

    fn annotation(&mut self, plan: &mut NodePlan, node: &Node, splits: &[Vec<usize>]) {
        let operand = plan.operands[0];
        let stated = real(&self.planner.graph.grid, splits);
        let parameter = self.function.public
            && self.function.arguments.get(operand).is_some_and(|port| is_parameter(&port.name));
        let wanted = if parameter && self.planner.zero.splits_parameters() {
            self.gathered[node.results[0]] = Some(stated);
            self.made(operand).clone()
        } else {
            Sharding::split(stated)
        };
        self.stationary[node.results[0]] = self.stationary[plan.operands[0]];
        plan.forms = vec![wanted.clone()];
        plan.results = vec![wanted];
    }

    /// A reshape moves no element, so that contributions go through it.
    fn reshape(&mut self, plan: &mut NodePlan, node: &Node, reshape: &Reshape) -> Result<(), Error> {
        let operand = plan.operands[0];
        self.stationary[node.results[0]] = self.stationary[operand];
        let mut form = self.made(operand).clone();
        if self.function.values[operand].uses > 1 {
            form = form.resolved();
        }
        let splits = reshape.result(&form.splits, &self.planner.graph.grid, &node.location)?;
        plan.results = vec![Sharding { splits, partial: form.partial.clone() }];
        plan.forms = vec![form];
        Ok(())
    }

    fn unit(&self, plan: &mut NodePlan, node: &Node, unit: &Unit) {
        let lying =
            |&value: &usize| self.gathered[value].clone().unwrap_or_else(|| self.made(value).splits.clone());
        let lying: Vec<Splits> = plan.operands.iter().map(lying).collect();
        let operands: Vec<&[Vec<usize>]> = lying.iter().map(Vec::as_slice).collect();
        let rows = match unit.kind {
            UnitKind::LookupGrad | UnitKind::GroupedGrad => {
                wishes::rows(self.planner, self.index, node.results[0])
            }
            _ => vec![],
        };
        let blocks = match (unit.kind, unit.results[0].shape.first()) {
            (UnitKind::Route, Some(&groups)) => {
                experts::blocks(&operands[0][0], groups, &self.planner.graph.grid)
            }
            _ => 0,
        };
        let (aligned, transposed) = (unit.aligned, unit.transposed);
        let situation = Situation { operands: &operands, aligned, rows: &rows, transposed, blocks };
        let sharding = units::sharding(unit.kind, &situation);
        plan.forms = sharding.operands;
        plan.results = sharding.results;
        plan.indices = sharding.indices;
        if unit.kind == UnitKind::LookupGrad {
            self.add_contributions(plan);
        }
    }

    /// A sum of rows is linear: contributions to them give contributions to it.
    fn add_contributions(&self, plan: &mut NodePlan) {
        let rows = plan.operands[1];
        let made = &mut plan.results[0];
        let passed = self.made(rows).partial.clone();
        for entry in passed {
            let free = !made.uses(entry.0) && made.partial_on(entry.0).is_none();
            if free && entry.1 == Reduction::Sum && self.function.values[rows].uses == 1 {
                plan.forms[1] = plan.forms[1].clone().partial([entry]);
                *made = made.clone().partial([entry]);
            }
        }
    }

    fn call(&mut self, plan: &mut NodePlan, node: &Node, callee: usize) -> Result<(), Error> {
        let operand = |&value: &usize| Operand {
            sharding: self.made(value).resolved(),
            stationary: self.stationary[value],
            bytes: self.bytes(value),
        };
        let operands: Vec<Operand> = plan.operands.iter().map(operand).collect();
        let wish = |&result: &usize| match self.planner.zero.splits_state() {
            true => wishes::state(self.planner, self.index, result),
            false => None,
        };
        let wanted = node.results.iter().map(wish).collect();
        let planned = self.planner.call(callee, &node.location, &operands, wanted)?;
        let called = &self.planner.plans[planned];
        plan.forms = called.arguments.clone();
        plan.results = called.results.clone();
        plan.callee = Some(planned);
        Ok(())
    }

    /// Results leave complete; those that belong to a parameter of the entry lie like it.
    fn returned(&self, operands: &[usize]) -> Vec<Sharding> {
        let ports = operands.iter().zip(&self.function.results);
        ports
            .enumerate()
            .map(|(number, (&value, port))| {
                let wanted = || self.wanted.get(number).cloned().flatten().map(Sharding::split);
                let own = || wanted().unwrap_or_else(|| self.made(value).resolved());
                let entry = self.function.public;
                let like = entry.then(|| self.planner.parameter(self.index, &port.name, &port.r#type.shape));
                like.flatten().unwrap_or_else(own)
            })
            .collect()
    }

    fn structured(
        &mut self,
        plan: &mut NodePlan,
        node: &'g Node,
        structured: &'g Structured,
    ) -> Result<(), Error> {
        let inputs = structured.inputs();
        let captures = &plan.operands[inputs + 1..];
        if captures.iter().any(|&value| self.made(value).is_split()) {
            return Err(Error::Captured { location: node.location.clone() });
        }
        let decision = self.decide(&plan.operands, node, structured)?;
        for (&value, map) in plan.operands[..inputs].iter().zip(&structured.maps) {
            plan.forms.push(self.form(value, map, &decision.factors, &decision.through));
        }
        plan.forms.push(decision.init);
        for &value in captures {
            plan.forms.push(Sharding::replicated(self.rank(value)));
        }
        // A rotation of a deferred gradient is deferred as well.
        let shape = |value: usize| &self.function.values[value].r#type.shape;
        let result = node.results[0];
        let alike = |&value: &usize| self.deferred[value] && shape(value) == shape(result);
        self.deferred[result] = !decision.through.is_empty() && plan.operands[..inputs].iter().any(alike);
        plan.factors = decision.factors;
        plan.results = vec![decision.result];
        plan.once = decision.once;
        Ok(())
    }

    /// The sharding in which an operation with these loop axes takes an operand.
    fn form(&self, value: usize, map: &[usize], factors: &[Vec<usize>], through: &[usize]) -> Sharding {
        let kept = |entry: &&(usize, Reduction)| through.contains(&entry.0);
        Sharding {
            splits: map.iter().map(|&at| factors[at].clone()).collect(),
            partial: self.made(value).partial.iter().filter(kept).copied().collect(),
        }
    }

    fn decide(
        &self,
        operands: &[usize],
        node: &'g Node,
        structured: &'g Structured,
    ) -> Result<Decision, Error> {
        let inputs = &operands[..structured.inputs()];
        let init = operands[structured.inputs()];
        let (output, combines) = (structured.output(), reduction(node, structured).is_ok());
        let wished = self.wished(inputs, structured, node.results[0]);
        let wish = Claim { map: output, splits: &wished, stationary: false };
        let operands = [inputs, &[init]].concat();
        let lying: Vec<Splits> =
            operands.iter().map(|&value| self.lying(value, &operands, structured)).collect();
        let claims: Vec<Claim<'_>> = operands
            .iter()
            .zip(&structured.maps)
            .zip(&lying)
            .filter(|((value, _), _)| self.free(**value).is_none())
            .map(|((&value, map), splits)| Claim { map, splits, stationary: self.stationary[value] })
            // A reduction that cannot be combined is done whole, unless a parameter would have to move for it.
            .filter(|claim| {
                let mut split = claim.map.iter().zip(claim.splits).filter(|(_, axes)| !axes.is_empty());
                combines || claim.stationary || split.all(|(at, _)| output.contains(at))
            })
            .chain([wish])
            .collect();
        let grid = &self.planner.graph.grid;
        let through: Vec<usize> = (0..grid.axes.len())
            .filter(|&axis| {
                let split =
                    claims.iter().any(|claim| claim.splits.iter().flatten().any(|&other| other == axis));
                !split && self.passes(axis, inputs, init, structured, node.results[0])
            })
            .collect();
        let factors = assign(&structured.extents, grid, &claims, |factors| {
            self.price(&operands, structured, factors, &through, node.results[0])
        });
        let reduced: Vec<usize> =
            (0..factors.len()).filter(|at| !output.contains(at)).flat_map(|at| factors[at].clone()).collect();
        let reduction = if reduced.is_empty() { Reduction::Sum } else { reduction(node, structured)? };
        let splits: Splits = output.iter().map(|&at| factors[at].clone()).collect();
        let mut init_form = Sharding::split(splits.clone());
        let single = self.function.values[init].uses == 1;
        let joins = |axis: usize| {
            through.contains(&axis) || (reduced.contains(&axis) && single && reduction == Reduction::Sum)
        };
        init_form.partial = self.made(init).partial.clone();
        init_form.partial.retain(|entry| joins(entry.0) && entry.1 == Reduction::Sum);
        let added = reduction == Reduction::Sum && !self.is_zero(init);
        let once =
            reduced.iter().copied().filter(|&axis| added && init_form.partial_on(axis).is_none()).collect();
        let passed = through.iter().map(|&axis| (axis, Reduction::Sum));
        let result =
            Sharding::split(splits).partial(passed.chain(reduced.iter().map(|&axis| (axis, reduction))));
        Ok(Decision { factors, through, once, init: init_form, result })
    }

    /// How an operand lies for what is computed with it: a parameter is gathered along data axes unless what it meets
    /// is split like it, and the gradient of split state is scattered.
    fn lying(&self, value: usize, operands: &[usize], structured: &Structured) -> Splits {
        let (zero, made) = (&self.planner.zero, &self.forms[value]);
        let Some(made) = made.first() else { return splits::whole(self.rank(value)) };
        if let Some(gathered) = &self.gathered[value] {
            let at = operands.iter().position(|&operand| operand == value).unwrap_or_default();
            let met = |at_loop: usize, axis: usize| {
                let others = operands.iter().zip(&structured.maps);
                others.filter(|(other, _)| self.gathered[**other].is_none()).any(|(&other, map)| {
                    let forms = self.forms[other].first().map_or(&[][..], |form| &form.splits);
                    map.iter().zip(forms).any(|(&loop_of, axes)| loop_of == at_loop && axes.contains(&axis))
                })
            };
            let dimensions = structured.maps[at].iter().zip(&made.splits).zip(gathered);
            let kept = |((&at_loop, axes), own): ((&usize, &Vec<usize>), &Vec<usize>)| {
                axes.iter().copied().filter(|axis| own.contains(axis) || met(at_loop, *axis)).collect()
            };
            return dimensions.map(kept).collect();
        }
        let scattered = zero.splits_state() && made.partial.iter().any(|entry| zero.is_data(entry.0));
        let wished = scattered.then(|| wishes::state(self.planner, self.index, value)).flatten();
        wished.unwrap_or_else(|| made.splits.clone())
    }

    /// How the result is best split along axes that no operand is split along: as it is wanted, if one thing alone
    /// is wanted of it, else, in dimensions that no input has, as what stands beside them later.
    fn wished(&self, inputs: &[usize], structured: &Structured, result: usize) -> Splits {
        let output = structured.output();
        let inputs = || inputs.iter().zip(&structured.maps).filter(|(value, _)| self.free(**value).is_none());
        let only = |at: &usize| !inputs().any(|(_, map)| map.contains(at)) && structured.extents[*at] > 1;
        let mut wished = match wishes::direct(self.planner, self.index, result) {
            Some(wanted) => wanted,
            None if output.iter().any(only) => {
                let made = |value: usize| self.forms[value].first().map(|form| form.splits.clone());
                let mut beside = wishes::beside(self.function, result, &made);
                beside.iter_mut().zip(output).filter(|(_, at)| !only(at)).for_each(|(axes, _)| axes.clear());
                beside
            }
            None => return splits::whole(output.len()),
        };
        let taken = |axis: usize| {
            inputs()
                .any(|(&value, _)| self.made(value).uses(axis) || self.made(value).partial_on(axis).is_some())
        };
        wished.iter_mut().for_each(|axes| axes.retain(|&axis| !taken(axis)));
        wished
    }

    /// Whether contributions along `axis` go through the operation and leave a contribution: it is linear in
    /// them, nothing else reads them, and what is combined later is no larger.
    fn passes(
        &self,
        axis: usize,
        inputs: &[usize],
        init: usize,
        structured: &Structured,
        result: usize,
    ) -> bool {
        let partial = |value: usize| self.made(value).partial_on(axis);
        let accumulates = structured.body.reads_output();
        let read = inputs.iter().copied().chain(accumulates.then_some(init));
        let contributions: Vec<usize> = read.filter(|&value| partial(value).is_some()).collect();
        let largest = contributions.iter().map(|&value| self.bytes(value)).max();
        let mut chosen: Vec<bool> =
            inputs.iter().map(|&value| partial(value).is_some() || self.is_zero(value)).collect();
        chosen.push(accumulates);
        let single = |&value: &usize| self.function.values[value].uses == 1 || self.deferred[value];
        let deferred = contributions.iter().any(|&value| self.deferred[value]);
        largest.is_some_and(|largest| deferred || self.bytes(result) <= largest)
            && contributions.iter().all(|&value| partial(value) == Some(Reduction::Sum))
            && contributions.iter().all(single)
            && (!accumulates || self.is_zero(init) || partial(init).is_some())
            && is_linear(&structured.body, &chosen)
    }

    /// Bytes moved, then work.
    fn price(
        &self,
        operands: &[usize],
        structured: &Structured,
        factors: &[Vec<usize>],
        through: &[usize],
        result: usize,
    ) -> (u64, u64) {
        let grid = &self.planner.graph.grid;
        let mut bytes = 0u64;
        for (&value, map) in operands.iter().zip(&structured.maps) {
            if self.free(value).is_none() {
                let form = self.form(value, map, factors, through);
                bytes = bytes.saturating_add(self.cheapest(value, &form).0);
            }
        }
        let output = structured.output();
        let whole = Sharding::split(output.iter().map(|&at| factors[at].clone()).collect::<Splits>());
        let reduced = (0..factors.len()).filter(|at| !output.contains(at));
        let made =
            whole.clone().partial(reduced.flat_map(|at| &factors[at]).map(|&axis| (axis, Reduction::Sum)));
        bytes = bytes.saturating_add(cost(&made, &whole, self.bytes(result), grid));
        let local = Sharding::split(factors).local(&structured.extents, grid);
        (bytes, local.iter().fold(1, |work, &extent| work.saturating_mul(extent)))
    }
}

/// How contributions to a reduction over a split loop combine.
fn reduction(node: &Node, structured: &Structured) -> Result<Reduction, Error> {
    match structured.body.combiner() {
        Some((ScalarOp::AddF | ScalarOp::AddI, _)) => Ok(Reduction::Sum),
        Some((ScalarOp::MaxF, _)) => Ok(Reduction::Max),
        _ => Err(Error::Reduction { location: node.location.clone() }),
    }
}
