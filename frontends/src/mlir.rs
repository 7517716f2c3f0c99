//! MLIR text: linalg, shard and t3, annotated programs or one program a device.

use t3c_ir::{Context, Element, Module, function};

use crate::{Error, ModelInfo};

/// A module as text. It is parsed again in each context that it is built in.
#[derive(Clone, Debug)]
pub struct Text {
    text: String,
    file: String,
    info: ModelInfo,
}

/// Checks that `text` parses, verifies and has one entry.
///
/// # Errors
/// MLIR's first diagnostic, with its place in `file`.
pub fn load(file: &str, text: String) -> Result<Text, Error> {
    let context = Context::new();
    let module = context.parse(&text, file)?;
    let info = info(file, &module)?;
    Ok(Text { text, file: file.to_owned(), info })
}

fn info(file: &str, module: &Module<'_>) -> Result<ModelInfo, Error> {
    let entry = function::entry(module.op())?;
    let ports = entry.argument_ports()?;
    entry.result_ports()?;
    let tp = function::grid(module.op()).map_or(1, |(_, grid)| u64::from(grid.devices()));
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
        Ok(context.parse(&self.text, &self.file)?)
    }
}
