//! Rewrites the algebra around collectives by equality saturation, where that moves fewer bytes.
//!
//! Why: sharding decides one operation at a time and leaves a gather before a slice, a cast on the wrong side of
//! a gather, the same gather twice. Each costs the link that track-and-trigger wants to keep busy.
//!
//! ```text
//! before  %g = shard.all_gather %x; %s = shard.all_slice %g; %y = f %s
//! after   %y = f %x
//! ```
//!
//! The rules are those of [`crate::algebra`]; equal operations become one. A function stays as it is unless the
//! best form of all it computes, counted once where it is shared, costs less. Declines with `search-limit` when
//! the search does not come to rest within its limits.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    time::Duration,
};

use egg::{Extractor, Id, Language, Runner, StopReason};
use melior::ir::operation::OperationLike;
use t3c_ir::{
    Builder, Generic, Op, ScalarBody, ScalarOp, TensorType, Val, ffi,
    function::{Function, functions},
    views::Collective,
    walk,
};
use t3c_schedule::{CollectiveKind, Reduction};

use crate::{
    algebra::{Bytes, Facts, Graph, Tables, Term, rules},
    decline::Decline,
    fuse::erase_unused,
    group::Group,
    options,
    outline::is_program,
    pass::{Pass, PassContext, PassError},
    remark::Kind,
};

/// Terms at which the search stops.
const NODES: usize = 20_000;
/// Rounds after which it stops.
const ROUNDS: usize = 20;
/// Only a machine in trouble needs that long; the function then stays as it is.
const TIME: Duration = Duration::from_secs(5);

/// The pass.
#[derive(Clone, Debug)]
pub struct Simplify;

impl Pass for Simplify {
    const NAME: &'static str = "t3-simplify";
    const SUMMARY: &'static str =
        "Move elementwise work across collectives and drop those that undo each other";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        for function in functions(module).into_iter().filter(|function| is_program(*function)) {
            let terms = Terms::of(module, function)?;
            if !terms.has_collective {
                continue;
            }
            let search = search(&terms);
            if !matches!(search.stop, StopReason::Saturated) {
                let limit = format!("{:?}", search.stop);
                cx.missed(function.0, &Decline::SearchLimit { nodes: search.graph.total_size(), limit });
            }
            if matches!(search.stop, StopReason::TimeLimit(_)) {
                continue;
            }
            if let Some(saved) = terms.rewrite_if_cheaper(&search.graph, &search.roots)? {
                let message = format!("moves {saved:.0} bytes less, links weighted against memory");
                cx.remark(function.0, Kind::Passed, "simplified", message, 1, vec![("bytes", saved)], None);
            }
        }
        Ok(())
    }
}

/// One function as terms.
struct Terms<'c, 'a> {
    graph: Graph,
    groups: Vec<Group>,
    functions: Vec<ScalarBody>,
    values: Vec<Val<'c, 'a>>,
    /// The class of each value that has one, by key.
    classes: HashMap<usize, Id>,
    /// The operations that the algebra looks into, with their classes, in program order.
    inner: Vec<(Op<'c, 'a>, Id)>,
    /// Uses by all others: (user, operand number, class).
    uses: Vec<(Op<'c, 'a>, usize, Id)>,
    has_collective: bool,
}

/// What the search found.
struct Search {
    graph: Graph,
    roots: Vec<Id>,
    stop: StopReason,
}

fn search(terms: &Terms<'_, '_>) -> Search {
    let runner = Runner::<Term, Tables>::new(Tables::default())
        .with_egraph(terms.graph.clone())
        .with_node_limit(NODES)
        .with_iter_limit(ROUNDS)
        .with_time_limit(TIME)
        .run(&rules());
    let stop = runner.stop_reason.unwrap_or(StopReason::Other("not run".to_owned()));
    let roots = terms.uses.iter().map(|(_, _, class)| *class).collect();
    Search { graph: runner.egraph, roots, stop }
}

impl<'c, 'a> Terms<'c, 'a> {
    fn of(module: Op<'c, 'a>, function: Function<'c, 'a>) -> Result<Self, PassError> {
        let mut terms = Self {
            graph: Graph::new(Tables::default()),
            groups: vec![],
            functions: vec![],
            values: vec![],
            classes: HashMap::new(),
            inner: vec![],
            uses: vec![],
            has_collective: false,
        };
        for op in function.body().map(walk::operations).unwrap_or_default() {
            match terms.read(module, op)? {
                Some(class) => {
                    terms.classes.insert(ffi::value_key(op.result(0)?.into()), class);
                    terms.inner.push((op, class));
                }
                None => terms.note_uses(op),
            }
        }
        terms.graph.rebuild();
        Ok(terms)
    }

    /// The class of an operation that the algebra looks into.
    fn read(&mut self, module: Op<'c, 'a>, op: Op<'c, 'a>) -> Result<Option<Id>, PassError> {
        if let Some(collective) = Collective::cast(op) {
            return self.read_collective(module, collective);
        }
        if !walk::is(op, "linalg.generic") {
            return Ok(None);
        }
        let Ok(generic) = Generic::read(op) else { return Ok(None) };
        if !is_pointwise(&generic) {
            return Ok(None);
        }
        let function = self.function(&generic.body);
        let operands =
            generic.inputs.iter().map(|input| self.class(*input)).collect::<Result<Vec<_>, _>>()?;
        Ok(match operands[..] {
            [x] => Some(self.graph.add(Term::Map([function, x]))),
            [x, y] => Some(self.graph.add(Term::Zip([function, x, y]))),
            _ => None,
        })
    }

    fn read_collective(
        &mut self,
        module: Op<'c, 'a>,
        collective: Collective<'c, 'a>,
    ) -> Result<Option<Id>, PassError> {
        let sums = collective.reduction() == Reduction::Sum;
        if collective.kind == CollectiveKind::AllToAll || !sums {
            return Ok(None);
        }
        self.has_collective = true;
        let group = self.group(Group::of(module, collective)?);
        let x = self.class(collective.input()?)?;
        let dimension = collective.dimension().unwrap_or(0) as u32;
        let d = self.graph.add(Term::Num(dimension));
        Ok(Some(self.graph.add(match collective.kind {
            CollectiveKind::AllGather => Term::Gather([group, d, x]),
            CollectiveKind::AllSlice => Term::Slice([group, d, x]),
            CollectiveKind::ReduceScatter => Term::Scatter([group, d, x]),
            _ => Term::Reduce([group, x]),
        })))
    }

    fn note_uses(&mut self, op: Op<'c, 'a>) {
        for inner in walk::walk(op) {
            let operands: Vec<Val<'c, 'a>> = inner.operands().collect();
            for (number, value) in operands.into_iter().enumerate() {
                if let Some(&class) = self.classes.get(&ffi::value_key(value)) {
                    self.uses.push((inner, number, class));
                }
            }
        }
    }

    fn class(&mut self, value: Val<'c, 'a>) -> Result<Id, PassError> {
        if let Some(&class) = self.classes.get(&ffi::value_key(value)) {
            return Ok(class);
        }
        self.graph.analysis.values.push(TensorType::of(value)?);
        let number = self.graph.add(Term::Num(self.values.len() as u32));
        self.values.push(value);
        let class = self.graph.add(Term::Value([number]));
        self.classes.insert(ffi::value_key(value), class);
        Ok(class)
    }

    fn group(&mut self, group: Group) -> Id {
        let number = self.groups.iter().position(|known| *known == group).unwrap_or_else(|| {
            self.graph.analysis.devices.push(group.devices);
            self.groups.push(group);
            self.groups.len() - 1
        });
        self.graph.add(Term::Num(number as u32))
    }

    fn function(&mut self, body: &ScalarBody) -> Id {
        let number = self.functions.iter().position(|known| known == body).unwrap_or_else(|| {
            self.graph.analysis.elements.push(body.element(body.yields[0]));
            self.functions.push(body.clone());
            self.functions.len() - 1
        });
        self.graph.add(Term::Num(number as u32))
    }

    /// Writes the cheapest form back where it is cheaper than what stands there; returns what it saves.
    fn rewrite_if_cheaper(&self, graph: &Graph, roots: &[Id]) -> Result<Option<f64>, PassError> {
        let bytes = Bytes(graph);
        let extractor = Extractor::new(graph, Bytes(graph));
        let mut best: BTreeMap<Id, Term> = BTreeMap::new();
        let mut open: Vec<Id> = roots.iter().map(|root| graph.find(*root)).collect();
        while let Some(class) = open.pop() {
            if let Entry::Vacant(vacant) = best.entry(class) {
                let term = vacant.insert(extractor.find_best_node(class).clone());
                open.extend(term.children().iter().map(|child| graph.find(*child)));
            }
        }
        let after: f64 = best.values().map(|term| bytes.own(term)).sum();
        let before: f64 = self.inner.iter().map(|(_, class)| bytes.own(self.graph.id_to_node(*class))).sum();
        if after >= before {
            return Ok(None);
        }
        let mut made = HashMap::new();
        for (user, number, class) in &self.uses {
            let value = self.emit(graph, &best, graph.find(*class), *user, &mut made)?;
            ffi::set_operand(*user, *number, value);
        }
        for (op, _) in self.inner.iter().rev() {
            if ffi::uses(op.result(0)?.into()).is_empty() {
                let operands: Vec<_> = op.operands().filter_map(ffi::value_owner).collect();
                ffi::erase(*op);
                // Only tensors to write into: what the algebra looks into has its own turn in this loop.
                operands.into_iter().filter(|owner| walk::is(*owner, "tensor.empty")).for_each(erase_unused);
            }
        }
        Ok(Some(before - after))
    }

    /// The value of a class, built before `user` unless it exists. All forms of a class have the same values as
    /// leaves, so that whatever is built before the first user is defined there.
    fn emit(
        &self,
        graph: &Graph,
        best: &BTreeMap<Id, Term>,
        class: Id,
        user: Op<'c, 'a>,
        made: &mut HashMap<Id, Val<'c, 'a>>,
    ) -> Result<Val<'c, 'a>, PassError> {
        if let Some(value) = made.get(&class) {
            return Ok(*value);
        }
        let number = |id: Id| match graph[id].data {
            Facts::Number(number) => number as usize,
            Facts::Tensor { .. } => 0,
        };
        let Facts::Tensor { r#type, .. } = &graph[class].data else {
            return Err(PassError::at(user, "expected a tensor"));
        };
        let operand = |id: Id, made: &mut _| self.emit(graph, best, graph.find(id), user, made);
        let place = Builder::before(top(user))?.at(self.location(graph, class, user));
        let value = match best[&class] {
            Term::Value([value]) => self.values[number(value)],
            Term::Gather([g, d, x]) => {
                let x = operand(x, made)?;
                let dimension = Some(("gather_axis", number(d)));
                place.collective(
                    "shard.all_gather",
                    x,
                    self.groups[number(g)].on(),
                    dimension,
                    None,
                    r#type,
                )?
            }
            Term::Slice([g, d, x]) => {
                let x = operand(x, made)?;
                let dimension = Some(("slice_axis", number(d)));
                place.collective(
                    "shard.all_slice",
                    x,
                    self.groups[number(g)].on(),
                    dimension,
                    None,
                    r#type,
                )?
            }
            Term::Scatter([g, d, x]) => {
                let x = operand(x, made)?;
                let dimension = Some(("scatter_axis", number(d)));
                place.collective(
                    "shard.reduce_scatter",
                    x,
                    self.groups[number(g)].on(),
                    dimension,
                    None,
                    r#type,
                )?
            }
            Term::Reduce([g, x]) => {
                let x = operand(x, made)?;
                place.collective("shard.all_reduce", x, self.groups[number(g)].on(), None, None, r#type)?
            }
            Term::Map([f, x]) => {
                let inputs = vec![operand(x, made)?];
                pointwise(&place, inputs, &self.functions[number(f)], r#type)?
            }
            Term::Zip([f, x, y]) => {
                let inputs = vec![operand(x, made)?, operand(y, made)?];
                pointwise(&place, inputs, &self.functions[number(f)], r#type)?
            }
            Term::Num(_) => return Err(PassError::at(user, "expected a tensor")),
        };
        made.insert(class, value);
        Ok(value)
    }

    /// The place in the user's model of what a class stood for, or else of its user.
    fn location(&self, graph: &Graph, class: Id, user: Op<'c, 'a>) -> t3c_ir::Location<'c> {
        let original = self.inner.iter().find(|(_, id)| graph.find(*id) == class);
        original.map_or(user, |(op, _)| *op).location()
    }
}

/// The operation of the function's block that holds `op`.
fn top<'c, 'a>(op: Op<'c, 'a>) -> Op<'c, 'a> {
    match ffi::parent(op) {
        Some(parent) if !walk::is(parent, "func.func") => top(parent),
        _ => op,
    }
}

/// Whether a generic works on one element of one or two tensors of its own shape, wherever the element lies.
fn is_pointwise(generic: &Generic<'_, '_>) -> bool {
    let identity: Vec<usize> = (0..generic.iterators.len()).collect();
    let reads_place = |op: &ScalarOp| matches!(op, ScalarOp::Index(_) | ScalarOp::Extract(_));
    generic.is_elementwise()
        && matches!(generic.inputs.len(), 1 | 2)
        && generic.maps.iter().all(|map| *map == identity)
        && generic.body.yields.len() == 1
        && !generic.body.insts.iter().any(|inst| reads_place(&inst.op))
}

fn pointwise<'c, 'a>(
    place: &Builder<'c, 'a>,
    inputs: Vec<Val<'c, 'a>>,
    body: &ScalarBody,
    result: &TensorType,
) -> Result<Val<'c, 'a>, PassError> {
    let rank = result.shape.len();
    let generic = Generic {
        init: place.empty(result)?,
        maps: vec![(0..rank).collect(); inputs.len() + 1],
        iterators: vec![t3c_ir::Iterator::Parallel; rank],
        extents: result.shape.clone(),
        body: body.clone(),
        captures: vec![],
        result: result.clone(),
        inputs,
    };
    Ok(place.generic(&generic)?)
}
