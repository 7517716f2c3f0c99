//! MLIR text: linalg, shard and t3, annotated programs or one program a device.

use t3c_ir::{
    Context, Element, Module, Op,
    attributes::{integers, string},
    function, walk,
};

use crate::{Error, ModelInfo};

/// A module as text. It is parsed again in each context that it is built in.
#[derive(Clone, Debug)]
pub struct Text {
    text: String,
    file: String,
    info: ModelInfo,
}

/// Checks that `text` parses, verifies, has one entry of static tensors, and at most one grid of definite size.
///
/// # Errors
/// MLIR's first diagnostic, with its place in `file`, or what is dynamic and where.
pub fn load(file: &str, text: String) -> Result<Text, Error> {
    let context = Context::new();
    let module = parse(&context, file, &text)?;
    let info = info(file, &module)?;
    Ok(Text { text, file: file.to_owned(), info })
}

/// The module, with TOSA lowered to linalg where it has any.
fn parse<'c>(context: &'c Context, file: &str, text: &str) -> Result<Module<'c>, Error> {
    let mut module = context.parse(text, file)?;
    if walk::walk(module.op()).iter().any(|op| walk::name(*op).starts_with("tosa.")) {
        module.run(
            "builtin.module(func.func(tosa-to-linalg-named,tosa-to-linalg,tosa-to-arith,tosa-to-tensor))",
        )?;
    }
    Ok(module)
}

/// No cluster has more devices.
const MOST_DEVICES: u64 = 1 << 16;

/// Devices of the grid: that of the operations, or the only one.
fn devices(module: &Module<'_>) -> Result<u64, Error> {
    let operations = walk::walk(module.op());
    let named = |op: &Op<'_, '_>| if walk::is(*op, "shard.grid") { None } else { string(*op, "grid") };
    let mut used: Vec<String> = operations.iter().filter_map(named).collect();
    used.sort();
    used.dedup();
    let grids: Vec<_> = operations.iter().filter(|op| walk::is(**op, "shard.grid")).collect();
    let is_used = |grid: &Op<'_, '_>| {
        used.is_empty() || string(*grid, "sym_name").is_some_and(|name| used.contains(&name))
    };
    let grids: Vec<_> = grids.into_iter().filter(|grid| is_used(grid)).collect();
    let grid = match grids.as_slice() {
        [] => return Ok(1),
        [grid] => **grid,
        // Nothing is said of a grid: the first is as good as any.
        [first, ..] if used.is_empty() => **first,
        [_, second, ..] => {
            let names = used.join(", ");
            return Err(refused(
                **second,
                format!("the module uses more than one grid ({names}): expected one"),
            ));
        }
    };
    let sizes = integers(grid, "shape").unwrap_or_default();
    let size = |&size: &i64| u64::try_from(size).ok().filter(|size| *size > 0);
    let product = sizes.iter().try_fold(1u64, |product, extent| product.checked_mul(size(extent)?));
    product.filter(|devices| *devices <= MOST_DEVICES).ok_or_else(|| {
        let message =
            format!("expected a grid of 1 to {MOST_DEVICES} devices with a number for each axis, not `?`");
        refused(grid, message)
    })
}

fn refused(operation: Op<'_, '_>, message: impl Into<String>) -> Error {
    t3c_ir::Error::at(operation, message).into()
}

/// An error about `operation`, with its place where it has none.
fn located(operation: Op<'_, '_>, error: t3c_ir::Error) -> Error {
    match error {
        t3c_ir::Error::Mlir(message) => refused(operation, message),
        other => other.into(),
    }
}

fn info(file: &str, module: &Module<'_>) -> Result<ModelInfo, Error> {
    let entry = function::entry(module.op())?;
    if entry.body().is_none() {
        return Err(refused(entry.0, format!("`{}` is declared, not defined: give it a body", entry.name())));
    }
    let ports = entry.argument_ports().map_err(|error| located(entry.0, error))?;
    entry.result_ports().map_err(|error| located(entry.0, error))?;
    let tp = devices(module)?;
    let parameters = ports
        .iter()
        .filter_map(|port| {
            let name = port.name.strip_prefix("param/")?;
            let shape = &port.r#type.shape;
            let split = vec![Vec::new(); shape.len()];
            Some(crate::Parameter::whole(name, shape.clone(), shape, split, port.r#type.element))
        })
        .collect();
    let floats = [Element::F64, Element::F32, Element::F16, Element::Bf16];
    let element = ports.iter().map(|port| port.r#type.element).find(|element| floats.contains(element));
    let name = std::path::Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or("module");
    Ok(ModelInfo {
        name: name.to_owned(),
        layers: 1,
        parameters,
        vocab_size: None,
        context_length: None,
        batch: None,
        seq: None,
        tp,
        dp: 1,
        ep: 1,
        element: element.unwrap_or(Element::F32),
        degrees: vec![tp],
    })
}

impl Text {
    /// Parameters (arguments named `param/…`) and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Parses the module.
    ///
    /// # Errors
    /// MLIR's first diagnostic.
    pub fn build<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        parse(context, &self.file, &self.text)
    }
}
