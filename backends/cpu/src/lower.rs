//! Elementwise work, norms and reductions: outlined functions on tensors to LLVM.
//!
//! MLIR fuses and bufferizes them and makes loops; LLVM vectorises those. Contractions and attention never come
//! here (MLIR's loops are about a hundred times slower for them). Results are written to buffers that the caller
//! provides, temporaries live in a workspace whose size is known, so nothing is allocated in a step.

use std::collections::HashMap;

use melior::ir::{BlockLike, Location, operation::OperationLike};
use t3c_ir::{
    Builder, Context, Generic, Module, Op, attributes,
    function::{Function, functions},
    generic::Iterator,
    units::{Unit, UnitKind},
    walk,
};

use crate::{
    Error,
    kernels::JitBuilder,
    lanes,
    rows::{self, Rows},
    unsafe_translate,
};

/// What compiled kernels need, by symbol.
pub type Compiled = HashMap<String, Needs>;

/// What the caller of a compiled kernel gives it besides inputs and results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of workspace.
    pub workspace: usize,
    /// Whether the device's coordinate along each axis of the grid, then its number, come after the inputs.
    pub coordinates: bool,
    /// The rows that the caller may give it some of, for kernels that treat each alone.
    pub rows: Option<Rows>,
}

/// Everything up to memory: fused elementwise operations on buffers, results as out-parameters. Common
/// subexpressions stay until after bufferization: a shared fill would cost a copy.
const TO_BUFFERS: &str = "builtin.module(linalg-fuse-elementwise-ops,canonicalize,\
    one-shot-bufferize{bufferize-function-boundaries=1 function-boundary-type-conversion=identity-layout-map},\
    buffer-results-to-out-params{hoist-static-allocs=1 modify-public-functions=1},canonicalize,cse)";

/// Buffers to loops to the LLVM dialect, with bare pointers as parameters.
const TO_LLVM: &str = "builtin.module(func.func(convert-linalg-to-loops),fold-memref-alias-ops,lower-affine,\
    convert-scf-to-cf,expand-strided-metadata,lower-affine,finalize-memref-to-llvm,convert-math-to-llvm,\
    convert-math-to-libm,convert-func-to-llvm{use-bare-ptr-memref-call-conv=1},convert-arith-to-llvm,\
    convert-index-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

/// The symbol under which a kernel is called with an array of pointers: inputs, results, workspace.
pub fn entry_symbol(kernel: &str) -> String {
    format!("{kernel}__packed")
}

/// Compiles `kernels` (functions on tensors) into `jit`.
///
/// # Errors
/// When a function holds what the pipeline cannot lower; the text names the operation.
pub fn lower(
    context: &Context,
    kernels: &[Function<'_, '_>],
    jit: &mut JitBuilder,
) -> Result<Compiled, Error> {
    let mut compiled = Compiled::new();
    if kernels.is_empty() {
        return Ok(compiled);
    }
    let location = Location::unknown(context.mlir());
    let mut module = context.module(location);
    for kernel in kernels {
        match t3c_ir::units::unit_of(*kernel) {
            Some(unit) if unit.kind == UnitKind::LookupGrad => add_scatter(context, &module, &unit)?,
            _ => {
                let needs = add_kernel(&module, *kernel)?;
                compiled.insert(kernel.name(), needs);
            }
        }
    }
    module.run(TO_BUFFERS)?;
    for function in functions(module.op()) {
        compiled.entry(function.name()).or_default().workspace = plan_workspace(function)?;
    }
    module.run(TO_LLVM)?;
    let module = with_packed_entries(context, &module, &compiled)?;
    unsafe_translate::into_jit(&module, jit)?;
    Ok(compiled)
}

/// Replaces questions for the device's place on the grid by reads of `coordinates`: one entry an axis, then the
/// device's number.
fn read_coordinates<'c, 'a>(
    questions: &[Op<'c, 'a>],
    coordinates: t3c_ir::Val<'c, 'a>,
    axes: usize,
) -> Result<(), Error> {
    for &question in questions {
        let b = Builder::before(question)?;
        let index_type = melior::ir::Type::index(b.context());
        let wanted: Vec<usize> = if walk::is(question, "shard.process_linear_index") {
            vec![axes]
        } else {
            let named = attributes::integers(question, "axes").unwrap_or_default();
            let named: Vec<usize> = named.into_iter().filter_map(|axis| usize::try_from(axis).ok()).collect();
            if named.is_empty() { (0..axes).collect() } else { named }
        };
        for (number, entry) in wanted.into_iter().enumerate() {
            let value =
                attributes::named(b.context(), "value", attributes::index_attr(b.context(), entry as i64));
            let first = |op: Op<'c, 'a>| op.result(0).map(t3c_ir::Val::from).map_err(t3c_ir::Error::from);
            let entry = first(b.op("arith.constant", &[], &[index_type], &[value], vec![])?)?;
            let i64_type = melior::ir::r#type::IntegerType::new(b.context(), 64).into();
            let found = first(b.op("tensor.extract", &[coordinates, entry], &[i64_type], &[], vec![])?)?;
            let found = first(b.op("arith.index_cast", &[found], &[index_type], &[], vec![])?)?;
            t3c_ir::ffi::replace_all_uses(
                question.result(number).map_err(t3c_ir::Error::from)?.into(),
                found,
            );
        }
        t3c_ir::ffi::erase(question);
    }
    Ok(())
}

/// The operations that ask where on the grid the device stands: offsets of divided loops.
fn questions<'c, 'a>(kernel: Function<'c, 'a>) -> Vec<Op<'c, 'a>> {
    let asks = |op: &Op<'_, '_>| {
        walk::is(*op, "shard.process_multi_index") || walk::is(*op, "shard.process_linear_index")
    };
    walk::walk(kernel.0).into_iter().filter(asks).collect()
}

/// A copy of the function with loops in the order that reads memory in order, and arguments that stay intact.
/// Where the device's coordinates are asked for they become its last argument.
fn add_kernel(module: &Module<'_>, kernel: Function<'_, '_>) -> Result<Needs, Error> {
    let copy = t3c_ir::ffi::clone_into(kernel.0, module.body());
    let copy = Function(copy);
    t3c_ir::ffi::remove_attribute(copy.0, "sym_visibility");
    let mut arguments = copy.argument_ports()?;
    for port in &mut arguments {
        port.name.clear();
        port.attributes = vec![("bufferization.writable".into(), "false".into())];
    }
    let mut results = copy.result_ports()?;
    for port in &mut results {
        port.name.clear();
        port.attributes.clear();
    }
    let asked = questions(copy);
    if let (Some(body), false) = (copy.body(), asked.is_empty()) {
        let axes = t3c_ir::ffi::parent(kernel.0)
            .and_then(t3c_ir::function::grid)
            .map_or(0, |(_, grid)| grid.axes.len());
        let r#type = t3c_ir::TensorType::new([axes as u64 + 1], t3c_ir::Element::I64);
        let coordinates =
            body.add_argument(r#type.to_mlir(t3c_ir::ffi::context_of(copy.0)), copy.0.location());
        read_coordinates(&asked, coordinates, axes)?;
        let mut port = t3c_ir::function::Port::new("", r#type);
        port.attributes = vec![("bufferization.writable".into(), "false".into())];
        arguments.push(port);
    }
    copy.set_signature(&arguments, &results)?;
    let rows = rows::narrow(copy)?;
    for operation in walk::walk(copy.0).into_iter().filter(|op| walk::is(*op, "linalg.generic")) {
        lanes::split(operation)?;
    }
    for operation in walk::walk(copy.0).into_iter().filter(|op| walk::is(*op, "linalg.generic")) {
        reorder_loops(operation)?;
    }
    Ok(Needs { workspace: 0, coordinates: !asked.is_empty(), rows })
}

/// Makes the innermost loop one along which most operands are contiguous. The order of each sum stays.
fn reorder_loops(operation: Op<'_, '_>) -> Result<(), Error> {
    let mut generic = Generic::read(operation)?;
    let Some(order) = memory_order(&generic.maps, &generic.iterators, &generic.extents) else {
        return Ok(());
    };
    let renumbered = |old: usize| order.iter().position(|&other| other == old).unwrap_or(old);
    for map in &mut generic.maps {
        for index in map.iter_mut() {
            *index = renumbered(*index);
        }
    }
    for inst in &mut generic.body.insts {
        if let t3c_ir::ScalarOp::Index(index) = &mut inst.op {
            *index = renumbered(*index);
        }
    }
    generic.iterators = order.iter().map(|&old| generic.iterators[old]).collect();
    generic.extents = order.iter().map(|&old| generic.extents[old]).collect();
    let reordered = Builder::before(operation)?.generic(&generic)?;
    t3c_ir::ffi::replace_all_uses(operation.result(0).map_err(t3c_ir::Error::from)?.into(), reordered);
    t3c_ir::ffi::erase(operation);
    Ok(())
}

/// The loops in a better order, or `None` to leave them. Reductions keep their order among themselves, so that
/// every sum is added up as written.
fn memory_order(maps: &[Vec<usize>], iterators: &[Iterator], extents: &[u64]) -> Option<Vec<usize>> {
    // An operand's vote weighs as many elements as it has: it is read or written that often at least.
    let votes = |index: usize| -> u64 {
        let contiguous = maps.iter().filter(|map| map.last() == Some(&index));
        contiguous.map(|map| map.iter().map(|&other| extents[other]).product::<u64>()).sum()
    };
    let best = (0..iterators.len())
        .filter(|&index| extents[index] > 1)
        .max_by_key(|&index| (votes(index), index))?;
    let loops = iterators.len();
    if best + 1 == loops
        || (iterators[best] == Iterator::Reduction && iterators[best + 1..].contains(&Iterator::Reduction))
    {
        return None;
    }
    Some((0..loops).filter(|&index| index != best).chain([best]).collect())
}

/// The gradient of a lookup as a scatter: rows are added in order, so equal ids add in a fixed order.
fn add_scatter(context: &Context, module: &Module<'_>, unit: &Unit) -> Result<(), Error> {
    let (ids, dout, table) = (&unit.arguments[0], &unit.arguments[1], &unit.results[0]);
    let width: u64 = table.shape[1..].iter().product();
    let count: u64 = ids.shape.iter().product();
    let (rows, name) = (table.shape[0], unit.symbol());
    let memref = |r#type: &t3c_ir::TensorType| r#type.to_string().replacen("tensor", "memref", 1);
    let flat = |rows: u64| format!("memref<{rows}x{width}xf32>");
    let view = |value: &str, r#type: &t3c_ir::TensorType, rows: u64| {
        format!(
            "memref.reinterpret_cast {value} to offset: [0], sizes: [{rows}, {width}], strides: [{width}, 1] : {} to {}",
            memref(r#type),
            flat(rows)
        )
    };
    let text = format!(
        "func.func @{name}(%ids: {ids_type}, %dout: {dout_type}, %table: {table_type}) {{
           %zero = arith.constant 0.0 : f32
           %c0 = arith.constant 0 : index
           %c1 = arith.constant 1 : index
           %count = arith.constant {count} : index
           %width = arith.constant {width} : index
           linalg.fill ins(%zero : f32) outs(%table : {table_type})
           %all = memref.reinterpret_cast %ids to offset: [0], sizes: [{count}], strides: [1]
             : {ids_type} to {flat_ids}
           %from = {from}
           %to = {to}
           scf.for %n = %c0 to %count step %c1 {{
             %id = memref.load %all[%n] : {flat_ids}
             %row = arith.index_cast %id : i32 to index
             scf.for %d = %c0 to %width step %c1 {{
               %x = memref.load %from[%n, %d] : {flat_from}
               %y = memref.load %to[%row, %d] : {flat_to}
               %z = arith.addf %y, %x : f32
               memref.store %z, %to[%row, %d] : {flat_to}
             }}
           }}
           return
         }}",
        ids_type = memref(ids),
        flat_ids = format_args!("memref<{count}xi32>"),
        dout_type = memref(dout),
        table_type = memref(table),
        from = view("%dout", dout, count),
        to = view("%table", table, rows),
        flat_from = flat(count),
        flat_to = flat(rows),
    );
    let parsed = context.parse(&text, "lookup_grad")?;
    for function in functions(parsed.op()) {
        t3c_ir::ffi::clone_into(function.0, module.body());
    }
    Ok(())
}

/// Replaces every allocation by a place in a workspace, passed as the last argument; returns its size.
fn plan_workspace(function: Function<'_, '_>) -> Result<usize, Error> {
    let context = t3c_ir::ffi::context_of(function.0);
    let block = function.body().ok_or_else(|| t3c_ir::Error::at(function.0, "has no body"))?;
    let operations = walk::operations(block);
    let position: HashMap<usize, usize> =
        operations.iter().enumerate().map(|(index, op)| (t3c_ir::ffi::op_key(*op), index)).collect();
    let mut allocations = Vec::new();
    for (start, op) in operations.iter().enumerate().filter(|(_, op)| walk::is(**op, "memref.alloc")) {
        let bytes = buffer_bytes(*op)?;
        let end = last_use(*op, &position).max(start);
        allocations.push((*op, crate::arena::Request { start, end, bytes }));
    }
    let requests: Vec<_> = allocations.iter().map(|(_, request)| *request).collect();
    let (offsets, total) = crate::arena::place(&requests);
    // The workspace is a parameter even where it is empty: every kernel is then called alike.
    let size = total.max(64);
    let parse = |text: &str| {
        melior::ir::Type::parse(context, text)
            .ok_or_else(|| t3c_ir::Error::Mlir(format!("cannot parse {text}")))
    };
    let workspace = block.add_argument(parse(&format!("memref<{size}xi8>"))?, function.0.location());
    for ((op, _), offset) in allocations.into_iter().zip(offsets) {
        let b = Builder::before(op)?;
        let index = attributes::index_attr(context, offset as i64);
        let offset = b.op(
            "arith.constant",
            &[],
            &[melior::ir::Type::index(context)],
            &[attributes::named(context, "value", index)],
            vec![],
        )?;
        let allocated: t3c_ir::Val<'_, '_> = op.result(0).map_err(t3c_ir::Error::from)?.into();
        let offset = offset.result(0).map_err(t3c_ir::Error::from)?.into();
        let view = b.op(
            "memref.view",
            &[workspace, offset],
            &[melior::ir::ValueLike::r#type(&allocated)],
            &[],
            vec![],
        )?;
        t3c_ir::ffi::replace_all_uses(allocated, view.result(0).map_err(t3c_ir::Error::from)?.into());
        t3c_ir::ffi::erase(op);
    }
    let signature = function.0.attribute("function_type").map_err(t3c_ir::Error::from)?.to_string();
    let separator = if signature.starts_with("() ->") { "" } else { ", " };
    let widened = signature.replacen(") ->", &format!("{separator}memref<{size}xi8>) ->"), 1);
    let widened = melior::ir::Attribute::parse(context, &widened)
        .ok_or_else(|| t3c_ir::Error::Mlir(format!("cannot parse {widened}")))?;
    t3c_ir::ffi::set_attribute(function.0, "function_type", widened);
    t3c_ir::ffi::remove_attribute(function.0, "arg_attrs");
    Ok(size)
}

fn buffer_bytes(allocation: Op<'_, '_>) -> Result<usize, Error> {
    let result: t3c_ir::Val<'_, '_> = allocation.result(0).map_err(t3c_ir::Error::from)?.into();
    let text = melior::ir::ValueLike::r#type(&result).to_string();
    let inner =
        text.trim_start_matches("memref<").trim_end_matches('>').split(',').next().unwrap_or_default();
    let mut parts: Vec<&str> = inner.split('x').collect();
    let element = match parts.pop() {
        Some("f32" | "i32") => 4,
        Some("f64" | "i64" | "index") => 8,
        Some("bf16" | "f16") => 2,
        Some("i1" | "i8") => 1,
        _ => return Err(t3c_ir::Error::at(allocation, format!("cannot size {text}")).into()),
    };
    parts.iter().try_fold(element, |bytes: usize, extent| {
        extent
            .parse::<usize>()
            .ok()
            .and_then(|extent| bytes.checked_mul(extent))
            .ok_or_else(|| t3c_ir::Error::at(allocation, format!("cannot size {text}")).into())
    })
}

/// The last operation of the block that touches the allocation, through views of it too.
fn last_use(allocation: Op<'_, '_>, position: &HashMap<usize, usize>) -> usize {
    let mut last = 0;
    let mut pending: Vec<_> = allocation.results().map(t3c_ir::Val::from).collect();
    while let Some(value) = pending.pop() {
        for (user, _) in t3c_ir::ffi::uses(value) {
            let mut top = user;
            while !position.contains_key(&t3c_ir::ffi::op_key(top)) {
                match t3c_ir::ffi::parent(top) {
                    Some(parent) => top = parent,
                    None => return usize::MAX,
                }
            }
            last = last.max(position[&t3c_ir::ffi::op_key(top)]);
            pending.extend(user.results().map(t3c_ir::Val::from));
        }
    }
    last
}

/// Adds to each function one that takes its pointers from an array and, where it treats rows alone, calls it for
/// a range of rows.
fn with_packed_entries<'c>(
    context: &'c Context,
    module: &Module<'c>,
    compiled: &Compiled,
) -> Result<Module<'c>, Error> {
    let body = walk::body(module.op()).map(walk::operations).unwrap_or_default();
    // A step's operands, results and workspace never overlap, but for operands with each other, which are read.
    for function in body.iter().copied().filter(|op| walk::is(*op, "llvm.func")) {
        let Some(block) = walk::body(function) else { continue };
        let attributes = vec!["{llvm.noalias}"; block.argument_count()].join(", ");
        let attributes = melior::ir::Attribute::parse(context.mlir(), &format!("[{attributes}]"));
        if let Some(attributes) = attributes {
            t3c_ir::ffi::set_attribute(function, "arg_attrs", attributes);
        }
    }
    let mut text = module.text(false);
    let end = text.rfind('}').unwrap_or(text.len());
    text.truncate(end);
    for function in body.into_iter().filter(|op| walk::is(*op, "llvm.func")) {
        let (Some(name), Some(block)) = (attributes::string(function, "sym_name"), walk::body(function))
        else {
            continue;
        };
        let rows = compiled.get(&name).and_then(|needs| needs.rows.as_ref());
        text.push_str(&packed_entry(&name, block.argument_count(), rows));
    }
    text.push('}');
    Ok(context.parse(&text, "kernels")?)
}

/// `entry(pointers, first, end)`: rows `first..end`, or everything where the kernel has no rows.
fn packed_entry(name: &str, count: usize, rows: Option<&Rows>) -> String {
    let entry = entry_symbol(name);
    let loads: String = (0..count)
        .map(|index| {
            format!(
                "  %a{index} = llvm.getelementptr %args[{index}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr\n  \
                 %p{index} = llvm.load %a{index} : !llvm.ptr -> !llvm.ptr\n"
            )
        })
        .collect();
    let types = vec!["!llvm.ptr"; count].join(", ");
    let head = format!("llvm.func @{entry}(%args: !llvm.ptr, %first: i64, %end: i64) {{\n{loads}");
    let call = |prefix: &str| {
        let values: Vec<String> = (0..count).map(|index| format!("%{prefix}{index}")).collect();
        format!("  llvm.call @{name}({}) : ({types}) -> ()\n", values.join(", "))
    };
    let Some(rows) = rows else { return format!("{head}{}  llvm.return\n}}\n", call("p")) };
    let steps: String = (0..count)
        .map(|index| match rows.strides.get(index).copied().unwrap_or(0) {
            0 => format!("  %q{index} = llvm.getelementptr %p{index}[0] : (!llvm.ptr) -> !llvm.ptr, i8\n"),
            stride => format!(
                "  %s{index} = llvm.mlir.constant({stride} : i64) : i64\n  \
                 %o{index} = llvm.mul %row, %s{index} : i64\n  \
                 %q{index} = llvm.getelementptr %p{index}[%o{index}] : (!llvm.ptr, i64) -> !llvm.ptr, i8\n"
            ),
        })
        .collect();
    format!(
        "{head}  llvm.br ^head(%first : i64)\n\
         ^head(%row: i64):\n  \
           %more = llvm.icmp \"slt\" %row, %end : i64\n  \
           llvm.cond_br %more, ^body, ^end\n\
         ^body:\n{steps}{}  \
           %one = llvm.mlir.constant(1 : i64) : i64\n  \
           %next = llvm.add %row, %one : i64\n  \
           llvm.br ^head(%next : i64)\n\
         ^end:\n  llvm.return\n}}\n",
        call("q")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_loop_is_contiguous() {
        use t3c_ir::Iterator::{Parallel, Reduction};
        // dw[d] += dy[n, d] · x[n, d]: rows in order, columns innermost.
        let maps = [vec![1, 0], vec![1, 0], vec![0]];
        assert_eq!(memory_order(&maps, &[Parallel, Reduction], &[8, 100]), Some(vec![1, 0]));
        // s[n] += x[n, d] stays.
        let maps = [vec![0, 1], vec![0]];
        assert_eq!(memory_order(&maps, &[Parallel, Reduction], &[100, 8]), None);
    }
}
