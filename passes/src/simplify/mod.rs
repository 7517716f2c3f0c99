//! Rewrites the algebra around collectives by equality saturation, where that costs less.
//!
//! Why: sharding decides one operation at a time and leaves a gather before a slice, a cast on the wrong side of
//! a gather, the same gather twice. Each costs the link that track-and-trigger wants to keep busy.
//!
//! ```text
//! before  %g = shard.all_gather %x; %s = shard.all_slice %g; %y = f %s
//! after   %y = f %x
//! ```
//!
//! The rules are those of [`crate::algebra::rules`]; equal operations become one. By default only rules that keep
//! every bit run, given that a reduction adds in the order that its collective prescribes; `reassociate=1` adds
//! those that change the order of additions or the place of a rounding. What hangs together around collectives
//! is searched on its own, and stays as it is unless the best form of all it computes, counted once where it is
//! shared, costs less (the `cost` module). Operations that stay are not touched, and those that replace others
//! carry their locations. Declines with `search-limit` when a search does not come to rest within its limits.

pub mod offsets;
pub mod read;
pub mod same;
pub mod write;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use egg::{Id, Rewrite, Runner, StopReason};
use melior::ir::{BlockLike, operation::OperationLike};
use t3c_ir::{
    Builder, Op, Ref, TensorType, Val, ffi,
    function::{Function, functions, grid},
    walk,
};
use t3c_schedule::Grid;

use self::{
    read::{Kind, Known, components, read},
    write::{Place, Standing, Writer, whole},
};
use crate::{
    algebra::{
        Graph, Leaf, Tables, Term,
        cost::Costs,
        extract::{Choice, cheapest},
        rules::rewrites,
    },
    decline::Decline,
    options,
    outline::is_program,
    pass::{Pass, PassContext, PassError},
    remark::Kind as RemarkKind,
};

/// Terms at which a search stops.
const NODES: usize = 4_000;
/// Rounds after which it stops.
const ROUNDS: usize = 12;
/// Only a machine in trouble needs that long; the operations then stay as they are.
const TIME: Duration = Duration::from_secs(2);
/// What a rewrite must save, in bytes: less is rounding.
const LEAST: f64 = 0.5;
/// Times that a function is searched, each time from what the last search left.
const PASSES: usize = 3;

/// The pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simplify {
    /// Whether rules may change the order of additions.
    pub reassociate: bool,
}

impl Pass for Simplify {
    const NAME: &'static str = "t3-simplify";
    const SUMMARY: &'static str =
        "Move elementwise work across collectives and drop those that undo each other";
    const OPTIONS: &'static [&'static str] =
        &["reassociate=0: whether rules may change the order of additions (0 or 1)"];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self::default();
        for (key, value) in options::parse(Self::NAME, text, &["reassociate"])? {
            pass.reassociate = match value {
                "0" | "false" => false,
                "1" | "true" => true,
                _ => {
                    let (option, expected) = (format!("{key}={value}"), "0 or 1".to_owned());
                    return Err(PassError::Option { pass: Self::NAME, option, expected });
                }
            };
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        let Some((symbol, grid)) = grid(module).filter(|(_, grid)| grid.axes.len() < 64) else {
            return Ok(());
        };
        let rules = rewrites(self.reassociate).map_err(|text| PassError::at(module, text))?;
        for function in functions(module).into_iter().filter(|function| is_program(*function)) {
            // Values of other blocks would be out of sight.
            if function.body().is_none_or(|block| block.next_in_region().is_some()) {
                continue;
            }
            let mut saved = 0.0;
            for _ in 0..PASSES {
                match simplify(module, (&symbol, &grid), function, &rules, cx)? {
                    Some(bytes) => saved += bytes,
                    None => break,
                }
            }
            if saved > 0.0 {
                let message = format!("moves {saved:.0} bytes less, links weighted against memory");
                let numbers = vec![("bytes", saved)];
                cx.remark(function.0, RemarkKind::Passed, "simplified", message, 1, numbers, None);
            }
        }
        Ok(())
    }
}

/// Searches a function once; returns what that saves.
fn simplify<'c, 'a>(
    module: Op<'c, 'a>,
    (symbol, grid): (&str, &Grid),
    function: Function<'c, 'a>,
    rules: &[Rewrite<Term, Tables>],
    cx: &PassContext,
) -> Result<Option<f64>, PassError> {
    let known = read(module, grid, function)?;
    let components = components(&known);
    if components.is_empty() {
        return Ok(None);
    }
    let same = same::same(module, grid, function)?;
    let mut replaced = HashMap::new();
    let mut saved = 0.0;
    let mut rewritten = Vec::new();
    for component in &components {
        let terms = Terms::of(grid, &known, component, &same)?;
        let Some(better) = terms.search(rules, function, cx)? else { continue };
        saved += better.saved;
        terms.rewrite(&better, symbol, function, &mut replaced)?;
        rewritten.extend(component);
    }
    erase(&known, rewritten)?;
    Ok((saved > 0.0).then_some(saved))
}

/// Erases what nobody uses any more, users first.
fn erase(known: &[Known<'_, '_>], mut rewritten: Vec<usize>) -> Result<(), PassError> {
    rewritten.sort_unstable();
    for index in rewritten.into_iter().rev() {
        let op = known[index].op;
        if ffi::uses(op.result(0)?.into()).is_empty() {
            erase_with_operands(op);
        }
    }
    Ok(())
}

/// Erases an operation, then what nobody else used of what it read: tensors to write into, constants and index
/// arithmetic. Others that the algebra looks into have their own turn.
fn erase_with_operands(op: Op<'_, '_>) {
    const WITH_IT: [&str; 4] = ["tensor.empty", "linalg.fill", "arith.", "shard.process_"];
    let mut owners: Vec<_> = op.operands().filter_map(ffi::value_owner).collect();
    let mut seen = HashSet::new();
    owners.retain(|owner| seen.insert(ffi::op_key(*owner)));
    ffi::erase(op);
    for owner in owners {
        let unused = owner.results().all(|result| ffi::uses(result.into()).is_empty());
        if unused && WITH_IT.iter().any(|prefix| walk::name(owner).starts_with(prefix)) {
            erase_with_operands(owner);
        }
    }
}

/// Operations that hang together, as terms.
struct Terms<'c, 'a> {
    graph: Graph,
    values: Vec<Val<'c, 'a>>,
    /// The class of each value that has one, by key.
    classes: HashMap<usize, Id>,
    /// The operations, by class in the graph as read, in program order.
    standing: Vec<(Id, Standing<'c, 'a>)>,
    /// What each operation reads, as classes of the graph as read.
    reads: Vec<Vec<Id>>,
}

/// A cheaper form.
struct Better {
    graph: Graph,
    choice: Choice,
    saved: f64,
}

impl<'c, 'a> Terms<'c, 'a> {
    fn of(
        grid: &Grid,
        known: &[Known<'c, 'a>],
        component: &[usize],
        same: &HashMap<usize, u64>,
    ) -> Result<Self, PassError> {
        let axes = grid.axes.iter().map(|axis| axis.size).collect();
        let mut terms = Self {
            graph: Graph::new(Tables { axes, ..Tables::default() }),
            values: vec![],
            classes: HashMap::new(),
            standing: vec![],
            reads: vec![],
        };
        for index in component {
            terms.read(&known[*index], same)?;
        }
        terms.graph.rebuild();
        Ok(terms)
    }

    fn read(&mut self, known: &Known<'c, 'a>, same: &HashMap<usize, u64>) -> Result<(), PassError> {
        let operands: Vec<Id> =
            known.operands.iter().map(|value| self.class(*value, same)).collect::<Result<_, _>>()?;
        let ranks = known.operands.iter().map(|v| TensorType::of(*v).map(|t| t.shape.len()));
        let layouts = match &known.kind {
            Kind::Map(_, layouts) => layouts.clone(),
            _ => ranks.map(|rank| rank.map(whole)).collect::<Result<_, _>>()?,
        };
        let class = self.term(&known.kind, &operands);
        let term = self.graph.id_to_node(class).clone();
        let reads = known.operands.iter().copied().zip(layouts).collect();
        let Known { op, result, .. } = *known;
        self.standing.push((class, Standing { op, position: 0, term, reads, result }));
        self.reads.push(operands);
        self.classes.insert(ffi::value_key(known.result), class);
        Ok(())
    }

    /// The class of a value.
    fn class(&mut self, value: Val<'c, 'a>, same: &HashMap<usize, u64>) -> Result<Id, PassError> {
        let key = ffi::value_key(value);
        if let Some(&class) = self.classes.get(&key) {
            return Ok(class);
        }
        let same = same.get(&key).copied().unwrap_or(0);
        self.graph.analysis.values.push(Leaf { r#type: TensorType::of(value)?, same });
        let number = self.graph.add(Term::Num(self.values.len() as u32));
        self.values.push(value);
        let class = self.graph.add(Term::Value([number]));
        self.classes.insert(key, class);
        Ok(class)
    }

    fn term(&mut self, kind: &Kind, operands: &[Id]) -> Id {
        let graph = &mut self.graph;
        let group = |graph: &mut Graph, axes: &[usize]| {
            let number = graph.analysis.group(axes);
            graph.add(Term::Num(number))
        };
        let number = |graph: &mut Graph, number: usize| graph.add(Term::Num(number as u32));
        let x = operands[0];
        let term = match kind {
            Kind::Gather(axes, d) => Term::Gather([group(graph, axes), number(graph, *d), x]),
            Kind::Slice(axes, d) => Term::Slice([group(graph, axes), number(graph, *d), x]),
            Kind::Scatter(axes, r, d) => {
                let (g, r) = (group(graph, axes), number(graph, *r as usize));
                Term::Scatter([g, r, number(graph, *d), x])
            }
            Kind::Reduce(axes, r) => Term::Reduce([group(graph, axes), number(graph, *r as usize), x]),
            Kind::Exchange(axes, s, c) => {
                let (g, s) = (group(graph, axes), number(graph, *s));
                Term::Exchange([g, s, number(graph, *c), x])
            }
            Kind::Cut(cut) => {
                let cut = graph.analysis.cut(cut.clone());
                Term::Cut([number(graph, cut as usize), x])
            }
            Kind::Map(body, layouts) => {
                let views: Vec<Id> = operands
                    .iter()
                    .zip(layouts)
                    .map(|(x, layout)| match layout.is_identity() {
                        true => *x,
                        false => {
                            let layout = graph.analysis.layout(layout.clone());
                            let layout = number(graph, layout as usize);
                            graph.add(Term::View([layout, *x]))
                        }
                    })
                    .collect();
                if body.insts.is_empty() && body.yields == [Ref::Arg(0)] && views.len() == 1 {
                    return views[0];
                }
                let function = graph.analysis.function(body.clone());
                let function = number(graph, function as usize);
                Term::Map([function].into_iter().chain(views).collect())
            }
        };
        graph.add(term)
    }

    /// The users of results that are not among these operations: user, operand number, class.
    fn uses(&self) -> Vec<(Op<'c, 'a>, usize, Id)> {
        let own: HashSet<usize> = self.standing.iter().map(|(_, s)| ffi::op_key(s.op)).collect();
        let outside = |(class, standing): &(Id, Standing<'c, 'a>)| {
            let class = *class;
            let uses = ffi::uses(standing.result).into_iter();
            let others = uses.filter(|(user, _)| !own.contains(&ffi::op_key(*user)));
            others.map(|(user, number)| (user, number, class)).collect::<Vec<_>>()
        };
        self.standing.iter().flat_map(outside).collect()
    }

    /// What stands there, as a choice, and what it costs. Of equal operations the first is chosen, each is paid.
    fn as_it_stands(&self, roots: &[Id]) -> (Choice, f64) {
        let costs = Costs(&self.graph);
        let mut needed: HashSet<Id> = roots.iter().copied().collect();
        let (mut cost, mut choice) = (0.0, Choice::new());
        for ((class, standing), reads) in self.standing.iter().zip(&self.reads).rev() {
            if !needed.contains(class) {
                continue;
            }
            needed.extend(reads);
            let operands = match &standing.term {
                Term::Map(operands) => &operands[1..],
                _ => &[],
            };
            let through = |operand: Id| {
                let at = operands.iter().position(|other| *other == operand);
                at.and_then(|at| reads.get(at)).copied().unwrap_or(operand)
            };
            // A copy is a view that is stored, or the tensor itself.
            cost += costs.of(&standing.term, &through).max(1.0);
        }
        for (class, standing) in &self.standing {
            if let Term::Map(operands) = &standing.term {
                for operand in &operands[1..] {
                    choice.entry(*operand).or_insert_with(|| self.graph.id_to_node(*operand).clone());
                }
            }
            choice.entry(*class).or_insert_with(|| standing.term.clone());
        }
        (choice, cost)
    }

    fn search(
        &self,
        rules: &[Rewrite<Term, Tables>],
        function: Function<'c, 'a>,
        cx: &PassContext,
    ) -> Result<Option<Better>, PassError> {
        let runner = Runner::<Term, Tables>::new(Tables::default())
            .with_egraph(self.graph.clone())
            .with_node_limit(NODES)
            .with_iter_limit(ROUNDS)
            .with_time_limit(TIME)
            .run(rules);
        let stop = runner.stop_reason.unwrap_or(StopReason::Other("not run".to_owned()));
        if !matches!(stop, StopReason::Saturated) {
            let nodes = runner.egraph.total_size();
            cx.missed(function.0, &Decline::SearchLimit { nodes, limit: format!("{stop:?}") });
        }
        if matches!(stop, StopReason::TimeLimit(_)) {
            return Ok(None);
        }
        let graph = runner.egraph;
        let roots: Vec<Id> = self.uses().into_iter().map(|(.., class)| class).collect();
        let (standing, before) = self.as_it_stands(&roots);
        let standing = self.first_forms(&graph, standing);
        let best = cheapest(&graph, &roots, &standing).filter(|(_, cost)| *cost < before - LEAST);
        Ok(best.map(|(choice, after)| Better { graph, choice, saved: before - after }))
    }

    /// The choice in terms of the classes after the search: a value where one is equal, else the first operation.
    fn first_forms(&self, graph: &Graph, standing: Choice) -> Choice {
        let mut order: Vec<(Id, Term)> = standing.into_iter().collect();
        order.sort_unstable_by_key(|(class, _)| *class);
        let mut choice = Choice::new();
        for (class, term) in order {
            let class = graph.find(class);
            let value = graph[class].nodes.iter().find(|term| matches!(term, Term::Value(_)));
            choice.entry(class).or_insert_with(|| value.cloned().unwrap_or(term));
        }
        choice
    }

    /// Puts the cheaper form in the place of what stands there.
    fn rewrite(
        &self,
        better: &Better,
        grid: &str,
        function: Function<'c, 'a>,
        replaced: &mut HashMap<usize, Val<'c, 'a>>,
    ) -> Result<(), PassError> {
        // Fresh: earlier rewrites inserted operations.
        let operations = function.body().map(walk::operations).unwrap_or_default();
        let positions: HashMap<usize, usize> =
            operations.into_iter().enumerate().map(|(at, op)| (ffi::op_key(op), at)).collect();
        let position_of = |op| positions.get(&ffi::op_key(op)).copied().unwrap_or(usize::MAX);
        let mut standing: BTreeMap<Id, Vec<Standing<'c, 'a>>> = BTreeMap::new();
        for (class, one) in &self.standing {
            let Standing { op, result, .. } = *one;
            let position = position_of(op);
            let (term, reads) = (one.term.clone(), one.reads.clone());
            let class = better.graph.find(*class);
            standing.entry(class).or_default().push(Standing { op, position, term, reads, result });
        }
        let mut uses: Vec<_> = self
            .uses()
            .into_iter()
            .map(|(user, number, class)| {
                let top = top(user);
                (position_of(top), user, number, class, top)
            })
            .collect();
        uses.sort_by_key(|(position, _, number, ..)| (*position, *number));
        let earlier = replaced.clone();
        let mut writer = Writer {
            graph: &better.graph,
            choice: &better.choice,
            grid,
            values: &self.values,
            standing: &standing,
            replaced: &earlier,
            made: HashMap::new(),
        };
        for (position, user, number, class, top) in uses {
            let place = Place { builder: Builder::before(top)?, before: Some((top, position)) };
            let value = writer.value(class, place)?;
            if let Ok(old) = user.operand(number) {
                replaced.insert(ffi::value_key(old), value);
            }
            ffi::set_operand(user, number, value);
        }
        Ok(())
    }
}

/// The operation of the function's block that holds `op`.
fn top<'c, 'a>(op: Op<'c, 'a>) -> Op<'c, 'a> {
    match ffi::parent(op) {
        Some(parent) if !walk::is(parent, "func.func") => top(parent),
        _ => op,
    }
}

#[cfg(test)]
mod tests {
    use t3c_ir::{Context, context::render_location};

    use super::*;
    use crate::{
        run_passes,
        testing::{Move, Program, build_program},
    };

    #[test]
    fn options_are_checked() {
        assert!(Simplify::from_options("reassociate=1").unwrap().reassociate);
        assert_eq!(Simplify::from_options("").unwrap(), Simplify::default());
        let error = Simplify::from_options("reassociate=perhaps").unwrap_err().to_string();
        assert_eq!(error, "t3-simplify: option `reassociate=perhaps`: expected 0 or 1");
    }

    #[test]
    fn what_replaces_an_operation_carries_its_location() {
        let text = r#"shard.grid @grid(shape = 4)
            func.func @main(%x: tensor<2x6xf32>) -> tensor<8x6xf32> {
              %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32> loc("model.norm")
              %e = tensor.empty() : tensor<8x6xf32> loc("model.mlp")
              %y = linalg.generic {indexing_maps = [affine_map<(a, b) -> (a, b)>, affine_map<(a, b) -> (a, b)>], iterator_types = ["parallel", "parallel"]} ins(%g : tensor<8x6xf32>) outs(%e : tensor<8x6xf32>) {
              ^bb0(%i: f32, %o: f32):
                %r = math.exp %i : f32
                linalg.yield %r : f32
              } -> tensor<8x6xf32> loc("model.mlp")
              return %y : tensor<8x6xf32> loc("model.out")
            }"#;
        let context = Context::new();
        let mut module = context.parse(text, "f.mlir").unwrap();
        run_passes(&mut module, &["t3-simplify"], &mut vec![]).unwrap();
        let body = functions(module.op())[0].body().unwrap();
        let places = |name: &str| -> Vec<String> {
            let ops = walk::operations(body).into_iter().filter(|op| walk::is(*op, name));
            ops.map(|op| render_location(op.location())).collect()
        };
        assert_eq!(places("shard.all_gather"), ["model.mlp"], "the gather now makes what the work made");
        assert_eq!(places("linalg.generic"), ["model.mlp"], "{}", module.text(true));
    }

    #[test]
    fn a_long_function_meets_the_limits() {
        // What hangs together may be long: the limits hold, and what is found so far is used.
        let chain = |at: usize| match at % 4 {
            0 => Move::Along { what: 0, x: 0, d: 0, group: 0, max: false },
            1 => Move::Unary { x: 0, op: at },
            2 => Move::Along { what: 1, x: 0, d: 0, group: 0, max: false },
            _ => Move::Binary { x: 0, y: 3, op: 0 },
        };
        let program = Program { axes: vec![2], moves: (0..200).map(chain).collect() };
        let context = Context::new();
        let mut module = build_program(&context, &program);
        let mut remarks = vec![];
        run_passes(&mut module, &["t3-simplify"], &mut remarks).unwrap();
        assert!(remarks.iter().any(|remark| remark.reason == "search-limit"), "or the test shows nothing");
        assert!(remarks.iter().any(|remark| remark.reason == "simplified"), "{remarks:?}");
    }
}
