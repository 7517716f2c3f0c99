//! Finds the pairs that track-and-trigger can fuse: a sum of contractions and the reduce-scatter of it.
//!
//! Why: the stores of a producer can be the first transfer of the collective (T3 paper, section 4) only
//! where nothing but the collective needs the partial value. The IR is left as it is: the pass makes
//! remarks, and `t3-fuse` calls [`find_pairs`].
//!
//! ```text
//! %a = contraction %x, %w          // one product, or a chain of sums of products:
//! %b = contraction %y, %v          // dX of Q, K and V
//! %p = %a + %b
//! %s = shard.reduce_scatter %p     // analysis: pair: 2 products feed the reduce-scatter
//! ```
//!
//! Declines with `not-a-sum`, `one-device`, `partial-used-elsewhere`, `nonlinear-between`,
//! `not-a-contraction`, `nonzero-start` or `sum-is-no-chain`.

use std::collections::HashMap;

use melior::ir::operation::OperationLike;
use petgraph::graph::{DiGraph, NodeIndex};
use t3c_ir::{
    Blk, Generic, Op, Ref, ScalarOp, Val, context::render_location, ffi, function::functions,
    generic::is_zero, views::Collective, walk,
};
use t3c_schedule::{CollectiveKind, Reduction};

use crate::{
    calls::call_counts,
    decline::Decline,
    group::Group,
    options,
    pass::{Pass, PassContext, PassError},
    products::is_product,
    remark::Kind,
};

/// The pass.
#[derive(Clone, Debug)]
pub struct FindPairs;

impl Pass for FindPairs {
    const NAME: &'static str = "t3-find-pairs";
    const SUMMARY: &'static str = "Say which products feed a reduce-scatter alone, and why others do not";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        let gathers = walk::walk(module).into_iter().filter_map(Collective::cast);
        for gather in gathers.filter(|collective| collective.kind == CollectiveKind::AllGather) {
            let message = "stays sequential: its readers wait for the whole value";
            cx.analysis(gather.op, "gather", message);
        }
        for candidate in find_pairs(module)? {
            let op = candidate.collective.op;
            match &candidate.found {
                Err(decline) => cx.missed_times(op, decline, candidate.times),
                Ok(pair) => {
                    let products = pair.products.len();
                    let plural = if products == 1 { "product feeds" } else { "products feed" };
                    let message = format!("{products} {plural} the reduce-scatter");
                    let numbers = vec![("products", products as f64)];
                    cx.remark(op, Kind::Analysis, "pair", message, candidate.times, numbers, None);
                }
            }
        }
        Ok(())
    }
}

/// A reducing collective, and the pair that it belongs to or the reason why it belongs to none.
pub struct Candidate<'c, 'a> {
    /// The reduce-scatter.
    pub collective: Collective<'c, 'a>,
    /// How often the program runs it.
    pub times: u64,
    /// The outcome.
    pub found: Result<Pair<'c, 'a>, Decline>,
}

/// A producer and its collective.
#[derive(Debug)]
pub struct Pair<'c, 'a> {
    /// The contractions, in the order in which their results are added.
    pub products: Vec<Op<'c, 'a>>,
    /// The additions, innermost first.
    pub sums: Vec<Op<'c, 'a>>,
    /// The devices.
    pub group: Group,
    /// The scattered dimension.
    pub dimension: usize,
}

/// Every reduce-scatter of the module, in order, with its pair.
///
/// # Errors
/// When a collective names no grid of the module, or a function calls itself.
pub fn find_pairs<'c, 'a>(module: Op<'c, 'a>) -> Result<Vec<Candidate<'c, 'a>>, PassError> {
    let counts = call_counts(module)?;
    let mut candidates = Vec::new();
    for function in functions(module) {
        let flow = Dataflow::of(function.body());
        let times = counts.get(&function.name()).copied().unwrap_or(0);
        for collective in flow.operations().filter_map(Collective::cast) {
            if collective.kind == CollectiveKind::ReduceScatter {
                let found = flow.pair(module, collective)?;
                candidates.push(Candidate { collective, times, found });
            }
        }
    }
    Ok(candidates)
}

/// The products of `block` whose sum is `value`, in the order in which they are added, and the additions.
///
/// # Errors
/// Why `value` is no such sum, or who else than `user` needs a part of it.
#[allow(clippy::type_complexity)]
pub fn contribution_chain<'c, 'a>(
    block: Blk<'c, 'a>,
    value: Val<'c, 'a>,
    user: Op<'c, 'a>,
) -> Result<(Vec<Op<'c, 'a>>, Vec<Op<'c, 'a>>), Decline> {
    Dataflow::of(Some(block)).chain(value, user)
}

/// Who uses whose results in one block.
struct Dataflow<'c, 'a> {
    graph: DiGraph<Op<'c, 'a>, ()>,
    nodes: HashMap<usize, NodeIndex>,
}

/// What an operation is to the sum that a collective reduces.
enum Role<'c, 'a> {
    Product,
    Sum(Val<'c, 'a>, Val<'c, 'a>),
}

impl<'c, 'a> Dataflow<'c, 'a> {
    fn of(block: Option<Blk<'c, 'a>>) -> Self {
        let mut graph = DiGraph::new();
        let operations = block.map(walk::operations).unwrap_or_default();
        let nodes: HashMap<usize, NodeIndex> =
            operations.iter().map(|op| (ffi::op_key(*op), graph.add_node(*op))).collect();
        for &user in &operations {
            // A body that reads a tensor by `tensor.extract` uses it as much as an operand does.
            let operands =
                walk::walk(user).into_iter().flat_map(|inner| inner.operands().collect::<Vec<_>>());
            for owner in operands.filter_map(ffi::value_owner) {
                if let Some(&owner) = nodes.get(&ffi::op_key(owner)) {
                    graph.add_edge(owner, nodes[&ffi::op_key(user)], ());
                }
            }
        }
        Self { graph, nodes }
    }

    fn operations(&self) -> impl Iterator<Item = Op<'c, 'a>> {
        self.graph.node_weights().copied()
    }

    fn pair(
        &self,
        module: Op<'c, 'a>,
        collective: Collective<'c, 'a>,
    ) -> Result<Result<Pair<'c, 'a>, Decline>, PassError> {
        let group = Group::of(module, collective)?;
        let dimension = collective
            .dimension()
            .ok_or_else(|| PassError::at(collective.op, "expected a scattered dimension"))?;
        let input = collective.input()?;
        if collective.reduction() != Reduction::Sum {
            return Ok(Err(Decline::NotASum { reduction: "max" }));
        }
        if group.devices == 1 {
            return Ok(Err(Decline::OneDevice));
        }
        let chain = self.chain(input, collective.op);
        Ok(chain.map(|(products, sums)| Pair { products, sums, group, dimension }))
    }

    /// The products and the additions that make up `value`, which nothing else may use.
    #[allow(clippy::type_complexity)]
    fn chain(
        &self,
        value: Val<'c, 'a>,
        user: Op<'c, 'a>,
    ) -> Result<(Vec<Op<'c, 'a>>, Vec<Op<'c, 'a>>), Decline> {
        let (mut products, mut sums) = (Vec::new(), Vec::new());
        let mut pending = self.part(value, user)?;
        // Outermost addition first; each adds one product to a shorter chain, so that adding the products
        // one after the other rounds as the IR does.
        loop {
            match pending {
                (op, Role::Product) => {
                    products.push(op);
                    break;
                }
                (op, Role::Sum(x, y)) => {
                    sums.push(op);
                    let (last, rest) = match (self.part(x, op)?, self.part(y, op)?) {
                        (rest, (last, Role::Product)) => (last, rest),
                        ((last, Role::Product), rest) => (last, rest),
                        _ => return Err(Decline::SumIsNoChain { location: place(op) }),
                    };
                    products.push(last);
                    pending = rest;
                }
            }
        }
        products.reverse();
        sums.reverse();
        Ok((products, sums))
    }

    /// The producer of `value`, which `user` alone may use.
    fn part(&self, value: Val<'c, 'a>, user: Op<'c, 'a>) -> Result<(Op<'c, 'a>, Role<'c, 'a>), Decline> {
        let owner = ffi::value_owner(value).filter(|op| self.nodes.contains_key(&ffi::op_key(*op)));
        let owner = owner.ok_or_else(|| Decline::NotAContraction { producer: "an argument".to_owned() })?;
        let role = self.role(owner)?;
        let users = || self.graph.neighbors(self.nodes[&ffi::op_key(owner)]).map(|node| self.graph[node]);
        if users().count() > 1 {
            let other = users().find(|other| !ffi::same_op(*other, user)).unwrap_or(user);
            return Err(Decline::PartialUsedElsewhere { user: describe(other) });
        }
        Ok((owner, role))
    }

    fn role(&self, op: Op<'c, 'a>) -> Result<Role<'c, 'a>, Decline> {
        let not_a_contraction = || Decline::NotAContraction { producer: describe(op) };
        if !walk::is(op, "linalg.generic") {
            return Err(not_a_contraction());
        }
        let generic = Generic::read(op).map_err(|_| not_a_contraction())?;
        if generic.contraction().is_some_and(|contraction| is_product(&contraction)) {
            return match is_zero(generic.init) {
                true => Ok(Role::Product),
                false => Err(Decline::NonzeroStart { location: place(op) }),
            };
        }
        if is_addition(&generic) {
            return Ok(Role::Sum(generic.inputs[0], generic.inputs[1]));
        }
        let of_product = |value: &Val<'c, 'a>| {
            ffi::value_owner(*value)
                .and_then(|op| Generic::read(op).ok())
                .is_some_and(|generic| generic.is_contraction())
        };
        match generic.is_elementwise() && generic.inputs.iter().any(of_product) {
            true => Err(Decline::NonlinearBetween { operation: describe(op) }),
            false => Err(not_a_contraction()),
        }
    }
}

/// Whether `generic` is `x + y` of one shape, element by element.
fn is_addition(generic: &Generic<'_, '_>) -> bool {
    let body = &generic.body;
    let same_maps = generic.maps.windows(2).all(|maps| maps[0] == maps[1]);
    generic.inputs.len() == 2
        && generic.is_elementwise()
        && same_maps
        && body.insts.len() == 1
        && body.yields == [Ref::Inst(0)]
        && body.insts[0].op == ScalarOp::AddF
        && matches!(body.insts[0].operands[..], [Ref::Arg(0), Ref::Arg(1)] | [Ref::Arg(1), Ref::Arg(0)])
}

fn place(op: Op<'_, '_>) -> String {
    render_location(op.location())
}

fn describe(op: Op<'_, '_>) -> String {
    format!("{} at {}", walk::name(op), place(op))
}
