//! Gathers elementwise work and reductions into kernels: private functions with the attribute `t3.kernel`.
//!
//! Why: the schedule names the code of each step. Between products and collectives stand chains of generics
//! that belong into one loop nest or a few; each chain becomes one function, called where it stood, and equal
//! functions are kept once, so that a backend compiles each kernel once.
//!
//! ```text
//! before  %p = product; %e = exp %p; %s = %e + %x; %q = product %s
//! after   %p = product; %s = call @kernel_0(%p, %x); %q = product %s
//!         func.func private @kernel_0(%p, %x) attributes {t3.kernel = "loops"} { exp; add; return }
//! ```
//!
//! Needs: one program a device, in generic form. Guarantees: afterwards each operation of a function or of a t3
//! region is a step: a product, a collective, a t3 operation, or a call.
//!
//! Kernels take exactly the tensors they read, in order of first use, and return those that others use, in
//! program order. `t3.kernel` is `loops`, `constant` (returns constants and fills, reads nothing) or `offset`
//! (computes from the device's coordinate). Constants, fills and empty tensors are cloned into the kernels
//! that use them; the zero fill that a product starts from stays with the product, and so do the additions of
//! products in `t3.track_and_trigger`. Regions of t3 operations are treated as functions are. Operations may move, so that
//! a kernel stands before its first user. Units and kernels themselves are left alone.

use std::collections::{HashMap, HashSet};

use melior::ir::{
    BlockLike, Location, ValueLike,
    operation::{OperationLike, OperationPrintingFlags},
};
use t3c_ir::{
    Blk, Builder, Op, TensorType, Val,
    attributes::string_attr,
    ffi,
    function::{Function, Port, Signature, add_function_to, function, functions},
    views::Collective,
    walk,
};

use crate::{
    clusters::{Class, Node, clusters},
    options,
    pass::{Pass, PassContext, PassError},
    producers::chain_of_products,
    products::product_of,
};

/// Marks a function as the code of a step.
pub const KERNEL: &str = "t3.kernel";

/// The pass.
#[derive(Clone, Debug)]
pub struct Outline;

impl Pass for Outline {
    const NAME: &'static str = "t3-outline";
    const SUMMARY: &'static str = "Gather elementwise work and reductions into kernel functions";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        let mut kernels = Kernels::new(module)?;
        let all = functions(module).into_iter();
        for function in all.filter(|function| is_program(*function)) {
            let Some(body) = function.body() else { continue };
            let regions = walk::operations(body).into_iter().filter(|op| walk::name(*op).starts_with("t3."));
            for block in regions.filter_map(walk::body).chain([body]) {
                let found = Graph::of(function, block)?;
                let order = clusters(&found.nodes);
                found.rewrite(&order, &mut kernels)?;
            }
        }
        let message = format!("{} kernels, called {} times", kernels.made, kernels.called);
        if kernels.called > 0 {
            cx.analysis(module, "kernels", message);
        }
        Ok(())
    }
}

/// Whether a function's body is a list of steps: no unit, no kernel, no declaration.
pub fn is_program(function: Function<'_, '_>) -> bool {
    function.body().is_some() && function.unit().is_none() && kernel_kind(function).is_none()
}

/// The value of [`KERNEL`] of a kernel function.
pub fn kernel_kind(function: Function<'_, '_>) -> Option<String> {
    t3c_ir::attributes::string(function.0, KERNEL)
}

/// The operations of a function, or of a region of a t3 operation, as nodes to cluster.
struct Graph<'c, 'a> {
    operations: Vec<Op<'c, 'a>>,
    terminator: Op<'c, 'a>,
    /// Keys of operations that are cloned where they are needed.
    sources: HashSet<usize>,
    /// The operation of each node.
    members: Vec<Op<'c, 'a>>,
    nodes: Vec<Node>,
    /// For each node, whether it is a step already.
    is_step: Vec<bool>,
}

impl<'c, 'a> Graph<'c, 'a> {
    fn of(function: Function<'c, 'a>, block: Blk<'c, 'a>) -> Result<Self, PassError> {
        let mut operations = walk::operations(block);
        let terminator = operations.pop().ok_or_else(|| PassError::at(function.0, "has an empty body"))?;
        let sources = sources(&operations);
        let mut graph = Self {
            operations: operations.clone(),
            terminator,
            sources,
            members: vec![],
            nodes: vec![],
            is_step: vec![],
        };
        let mut node_of = HashMap::new();
        for op in operations {
            refuse_transfers(op)?;
            let is_step = is_step(op);
            let is_source = graph.is_source(op);
            if is_source && graph.step_uses(op).is_empty() {
                continue;
            }
            let inputs = if is_source { vec![] } else { graph.inputs(op, is_step, &node_of) };
            let class = match is_step || is_source || walk::is(op, "tensor.from_elements") {
                true => Class::Alone,
                false if makes_one_number(op)? => Class::Scalar,
                false => Class::Tensor,
            };
            node_of.insert(ffi::op_key(op), graph.nodes.len());
            let expands = class != Class::Alone && expands(op)?;
            graph.nodes.push(Node { class, inputs, expands });
            graph.members.push(op);
            graph.is_step.push(is_step);
        }
        Ok(graph)
    }

    fn is_source(&self, op: Op<'c, 'a>) -> bool {
        self.sources.contains(&ffi::op_key(op))
    }

    /// The nodes whose results `op` uses. Sources count only where a step needs them in a buffer.
    fn inputs(&self, op: Op<'c, 'a>, is_step: bool, node_of: &HashMap<usize, usize>) -> Vec<usize> {
        let owners = operands(op).into_iter().filter_map(ffi::value_owner);
        let owners = owners.filter(|owner| is_step || !self.is_source(*owner));
        owners.filter_map(|owner| node_of.get(&ffi::op_key(owner)).copied()).collect()
    }

    /// The uses of a source that need its value in a buffer: by steps, but as the start of a product, and by
    /// the function's return.
    fn step_uses(&self, source: Op<'c, 'a>) -> Vec<(Op<'c, 'a>, usize)> {
        let results = source.results().map(Into::into);
        let uses = results.flat_map(|result: Val<'c, 'a>| ffi::uses(result));
        uses.filter(|(user, number)| {
            let is_start = match product_of(*user) {
                Some((product, _)) => product.inputs.len() == *number,
                None => is_chain(*user) && *number + 1 == user.operand_count(),
            };
            (is_step(*user) || ffi::same_op(*user, self.terminator)) && !is_start
        })
        .collect()
    }

    /// Puts calls of kernels in the place of clusters, everything in the order of `order`.
    fn rewrite(&self, order: &[Vec<usize>], kernels: &mut Kernels<'c, 'a>) -> Result<(), PassError> {
        let mut placed = HashSet::new();
        let mut dead = Vec::new();
        for cluster in order {
            if let [node] = cluster[..]
                && self.is_step[node]
            {
                self.place(self.members[node], &mut placed)?;
                continue;
            }
            let members: Vec<Op<'c, 'a>> = cluster.iter().map(|&node| self.members[node]).collect();
            self.replace(&members, kernels)?;
            dead.extend(members.into_iter().filter(|op| !self.is_source(*op)));
        }
        dead.into_iter().rev().for_each(ffi::erase);
        for op in self.operations.iter().rev().filter(|op| self.is_source(**op)) {
            if op.results().all(|result| ffi::uses(result.into()).is_empty()) {
                ffi::erase(*op);
            }
        }
        Ok(())
    }

    /// Moves a step to the end, after the sources that it starts from.
    fn place(&self, op: Op<'c, 'a>, placed: &mut HashSet<usize>) -> Result<(), PassError> {
        for owner in operands(op).into_iter().filter_map(ffi::value_owner) {
            if self.is_source(owner) && placed.insert(ffi::op_key(owner)) {
                self.place(owner, placed)?;
            }
        }
        ffi::move_before(op, self.terminator);
        Ok(())
    }

    fn replace(&self, members: &[Op<'c, 'a>], kernels: &mut Kernels<'c, 'a>) -> Result<(), PassError> {
        let inside: HashSet<usize> = members.iter().map(|op| ffi::op_key(*op)).collect();
        let inputs = self.read(members, &inside);
        let outputs = self.written(members, &inside);
        let [.., last] = members else { return Ok(()) };
        let kernel = self.kernel(members, &inputs, &outputs, kernels)?;
        let types = outputs.iter().map(|output| TensorType::of(*output)).collect::<Result<Vec<_>, _>>()?;
        let place = Builder::before(self.terminator)?.at(last.location());
        let results = place.call(&kernel, &inputs, &types)?;
        let in_buffer = if self.is_source(*last) { Some(self.step_uses(*last)) } else { None };
        for (output, result) in outputs.iter().zip(results) {
            match &in_buffer {
                Some(uses) => uses.iter().for_each(|(user, number)| ffi::set_operand(*user, *number, result)),
                None => ffi::replace_all_uses(*output, result),
            }
        }
        Ok(())
    }

    /// The tensors from outside that a cluster reads, in order of first use.
    fn read(&self, members: &[Op<'c, 'a>], inside: &HashSet<usize>) -> Vec<Val<'c, 'a>> {
        let mut read: Vec<Val<'c, 'a>> = Vec::new();
        for &member in members {
            for value in operands(member) {
                let is_outside = match ffi::value_owner(value) {
                    Some(owner) => {
                        // An operation of a body belongs to the member that holds it.
                        let own = ffi::parent(owner).is_some_and(|parent| {
                            walk::walk(member).iter().any(|inner| ffi::same_op(*inner, parent))
                        });
                        !own && !inside.contains(&ffi::op_key(owner)) && !self.is_source(owner)
                    }
                    None => is_block_argument(value, self.terminator),
                };
                if is_outside && !read.contains(&value) {
                    read.push(value);
                }
            }
        }
        read
    }

    /// The results of a cluster that others use, in program order.
    fn written(&self, members: &[Op<'c, 'a>], inside: &HashSet<usize>) -> Vec<Val<'c, 'a>> {
        let is_outside = |user: Op<'c, 'a>| {
            let mut holder = Some(user);
            while let Some(op) = holder {
                if inside.contains(&ffi::op_key(op)) {
                    return false;
                }
                holder = ffi::parent(op);
            }
            true
        };
        let results = members.iter().flat_map(|member| member.results().map(Into::into).collect::<Vec<_>>());
        results
            .filter(|result: &Val<'c, 'a>| ffi::uses(*result).into_iter().any(|(user, _)| is_outside(user)))
            .collect()
    }

    /// Builds the kernel of a cluster, or finds an equal one; returns its symbol.
    fn kernel(
        &self,
        members: &[Op<'c, 'a>],
        inputs: &[Val<'c, 'a>],
        outputs: &[Val<'c, 'a>],
        kernels: &mut Kernels<'c, 'a>,
    ) -> Result<String, PassError> {
        let ports = |values: &[Val<'c, 'a>]| {
            let port = |value: &Val<'c, 'a>| {
                // A number outside a tensor has no buffer in which it could cross.
                match value.r#type().to_string().starts_with("tensor<") {
                    true => Ok(Port::new("", TensorType::of(*value)?)),
                    false => {
                        Err(PassError::at(members[0], "expected tensors between operations, found a scalar"))
                    }
                }
            };
            values.iter().map(port).collect::<Result<Vec<_>, _>>()
        };
        let signature = Signature {
            name: kernels.free_name(),
            arguments: ports(inputs)?,
            results: ports(outputs)?,
            public: false,
            unit: None,
        };
        let location = members.last().map_or(self.terminator, |op| *op).location();
        let (op, block) = add_function_to(kernels.module, &signature, location)?;
        let kind = self.kind(members, inputs);
        ffi::set_attribute(op, KERNEL, string_attr(ffi::context_of(op), kind));
        self.fill(Function(op), block, members, inputs, outputs, location)?;
        kernels.unique(op, signature.name)
    }

    fn kind(&self, members: &[Op<'c, 'a>], inputs: &[Val<'c, 'a>]) -> &'static str {
        match members {
            [op] if self.is_source(*op) => "constant",
            [op] if walk::is(*op, "tensor.from_elements") && inputs.is_empty() => "offset",
            _ => "loops",
        }
    }

    /// Copies `members` into the kernel's block.
    fn fill(
        &self,
        kernel: Function<'c, 'a>,
        block: Blk<'c, 'a>,
        members: &[Op<'c, 'a>],
        inputs: &[Val<'c, 'a>],
        outputs: &[Val<'c, 'a>],
        location: Location<'c>,
    ) -> Result<(), PassError> {
        let arguments = kernel.arguments();
        let keys = inputs.iter().map(|input| ffi::value_key(*input));
        let mut copies: HashMap<usize, Val<'c, 'a>> = keys.zip(arguments).collect();
        for &member in members {
            let copy = block.append_operation(ffi::clone(member));
            self.rewire(copy, &copies)?;
            for (old, new) in member.results().zip(copy.results()) {
                copies.insert(ffi::value_key(old.into()), new.into());
            }
        }
        let returned: Vec<Val<'c, 'a>> =
            outputs.iter().filter_map(|output| copies.get(&ffi::value_key(*output)).copied()).collect();
        Builder::at_end(ffi::context_of(kernel.0), block, location).ret(&returned)?;
        Ok(())
    }

    /// Makes a copied operation use copies: those known, and fresh ones of sources.
    fn rewire(&self, copy: Op<'c, 'a>, copies: &HashMap<usize, Val<'c, 'a>>) -> Result<(), PassError> {
        for inner in walk::walk(copy) {
            let operands: Vec<Val<'c, 'a>> = inner.operands().collect();
            for (number, value) in operands.into_iter().enumerate() {
                if let Some(new) = copies.get(&ffi::value_key(value)) {
                    ffi::set_operand(inner, number, *new);
                } else if let Some(owner) = ffi::value_owner(value).filter(|owner| self.is_source(*owner)) {
                    // One copy a use: an init that two operations share would be copied when it is written.
                    let source = Builder::before(copy)?.insert(ffi::clone(owner));
                    self.rewire(source, copies)?;
                    ffi::set_operand(inner, number, source.result(0)?.into());
                }
            }
        }
        Ok(())
    }
}

/// Operations that are cheap to repeat wherever they are used: constants, fills of constants, empty tensors,
/// and scalars computed from such and from the device's coordinate.
fn sources(operations: &[Op<'_, '_>]) -> HashSet<usize> {
    let mut sources = HashSet::new();
    for op in operations {
        let from_sources = operands(*op)
            .into_iter()
            .all(|value| ffi::value_owner(value).is_some_and(|owner| sources.contains(&ffi::op_key(owner))));
        let is_scalar = op.regions().next().is_none() && op.results().all(|result| !is_tensor(result.into()));
        let is_cheap = walk::is(*op, "arith.constant")
            || walk::is(*op, "tensor.empty")
            || (walk::is(*op, "linalg.fill") && fill_operands(*op, &sources))
            || (is_scalar && from_sources && !is_step(*op));
        if is_cheap && op.result_count() == 1 {
            sources.insert(ffi::op_key(*op));
        }
    }
    sources
}

fn fill_operands(fill: Op<'_, '_>, sources: &HashSet<usize>) -> bool {
    fill.operands()
        .all(|value| ffi::value_owner(value).is_some_and(|owner| sources.contains(&ffi::op_key(owner))))
}

fn is_tensor(value: Val<'_, '_>) -> bool {
    value.r#type().to_string().starts_with("tensor<")
}

/// Refuses communication that no step carries out, such as `shard.send`: it is no loop.
fn refuse_transfers(op: Op<'_, '_>) -> Result<(), PassError> {
    let name = walk::name(op);
    let moves = name.starts_with("shard.")
        && name != "shard.shard"
        && op.results().any(|result| is_tensor(result.into()));
    if !moves || Collective::cast(op).is_some() {
        return Ok(());
    }
    let message = format!(
        "`{name}` cannot be scheduled; expected shard.all_reduce, reduce_scatter, all_gather, all_to_all or all_slice"
    );
    Err(PassError::at(op, message))
}

/// Whether an operation is a step by itself.
fn is_step(op: Op<'_, '_>) -> bool {
    walk::is(op, "func.call")
        || walk::name(op).starts_with("t3.")
        || Collective::cast(op).is_some()
        || product_of(op).is_some()
        || is_chain(op)
}

/// Whether an operation adds up the products that a fused collective reduces: they go into one buffer.
fn is_chain(op: Op<'_, '_>) -> bool {
    ffi::parent(op).is_some_and(|parent| walk::is(parent, "t3.track_and_trigger"))
        && chain_of_products(op).is_some()
}

/// Whether the results of an operation have one element each.
fn makes_one_number(op: Op<'_, '_>) -> Result<bool, PassError> {
    for result in op.results() {
        if TensorType::of(result.into())?.elements() != 1 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether an operation makes no fewer elements than the largest tensor that it reads has.
fn expands(op: Op<'_, '_>) -> Result<bool, PassError> {
    let (mut made, mut read) = (0, 0);
    for result in op.results() {
        made = TensorType::of(result.into())?.elements().max(made);
    }
    for operand in op.operands().filter(|operand| is_tensor(*operand)) {
        read = TensorType::of(operand)?.elements().max(read);
    }
    Ok(made >= read)
}

/// The operands of an operation and of everything inside it.
fn operands<'c, 'a>(op: Op<'c, 'a>) -> Vec<Val<'c, 'a>> {
    walk::walk(op).into_iter().flat_map(|inner| inner.operands().collect::<Vec<_>>()).collect()
}

fn is_block_argument<'c, 'a>(value: Val<'c, 'a>, terminator: Op<'c, 'a>) -> bool {
    let Some(block) = terminator.block() else { return false };
    let arguments = (0..block.argument_count()).filter_map(|index| block.argument(index).ok());
    arguments.map(Val::from).any(|argument| argument == value)
}

/// The kernels of a module.
struct Kernels<'c, 'a> {
    module: Op<'c, 'a>,
    /// Symbol by text without the symbol.
    known: HashMap<String, String>,
    next: usize,
    made: usize,
    called: usize,
}

impl<'c, 'a> Kernels<'c, 'a> {
    fn new(module: Op<'c, 'a>) -> Result<Self, PassError> {
        let mut kernels = Self { module, known: HashMap::new(), next: 0, made: 0, called: 0 };
        for function in functions(module).into_iter().filter(|function| kernel_kind(*function).is_some()) {
            kernels.known.insert(text(function.0, &function.name())?, function.name());
        }
        Ok(kernels)
    }

    fn free_name(&mut self) -> String {
        while function(self.module, &format!("kernel_{}", self.next)).is_some() {
            self.next += 1;
        }
        format!("kernel_{}", self.next)
    }

    /// Erases `kernel` when an equal one is known; returns the symbol to call.
    fn unique(&mut self, kernel: Op<'c, 'a>, name: String) -> Result<String, PassError> {
        self.called += 1;
        let text = text(kernel, &name)?;
        if let Some(known) = self.known.get(&text) {
            ffi::erase(kernel);
            return Ok(known.clone());
        }
        self.made += 1;
        self.known.insert(text, name.clone());
        Ok(name)
    }
}

/// A kernel's text without its symbol. The generic form, since the other one depends on whether everything
/// around the kernel is valid already; in local scope, or each text would number the values of the whole module.
fn text(kernel: Op<'_, '_>, name: &str) -> Result<String, PassError> {
    let flags = OperationPrintingFlags::new().print_generic_operation_form().use_local_scope();
    let text = kernel.to_string_with_flags(flags)?;
    Ok(text.replacen(&format!("sym_name = \"{name}\""), "sym_name", 1))
}
