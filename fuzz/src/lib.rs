//! What is fuzzed: every reader of a user's file. No input may make one panic.
//!
//! The fuzz targets and the test-suite call these functions.

use t3c_frontends::{Graph, Options, Phase, graph, hf, json::Source};
use t3c_ir::Context;

/// Building is quick below these.
const FEW_PARAMETERS: u64 = 1 << 22;
const FEW_LAYERS: u64 = 8;

/// A Hugging Face configuration, in each phase.
pub fn config(data: &[u8]) {
    let Some(source) = source(data) else { return };
    for phase in [Phase::Prefill, Phase::Training, Phase::Decode] {
        let options = Options { phase, batch: Some(1), seq: Some(16), ..Options::default() };
        if let Ok(decoder) = hf::load(source.clone(), &options) {
            build(&Graph::Decoder(Box::new(decoder)));
        }
    }
}

/// A `model.json`.
pub fn model(data: &[u8]) {
    let Some(source) = source(data) else { return };
    for phase in [Phase::Prefill, Phase::Training] {
        if let Ok(model) = graph::load(source.clone(), &Options { phase, ..Options::default() }) {
            build(&Graph::Model(Box::new(model)));
        }
    }
}

/// A recipe.
pub fn recipe(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = t3c_rl::recipe::Recipe::from_json(text);
    }
}

/// MLIR text, to its schedule.
pub fn mlir(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = t3c::Compiler::from_mlir(text, "fuzz.mlir").compile();
    }
}

/// A schedule.
pub fn schedule(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(schedule) = t3c_schedule::from_json(text)
    {
        let _ = schedule.to_string();
    }
}

/// A file of tensors.
pub fn safetensors(data: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("fuzz.safetensors");
    if std::fs::write(&path, data).is_ok() {
        let _ = t3c::files::read_tensors(&path);
    }
}

fn source(data: &[u8]) -> Option<Source> {
    Source::parse("fuzz.json", std::str::from_utf8(data).ok()?).ok()
}

fn build(graph: &Graph) {
    let info = graph.info();
    let elements = info.parameters.iter().try_fold(0_u64, |sum, parameter| {
        let size = parameter.shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent))?;
        sum.checked_add(size)
    });
    if elements.is_some_and(|elements| elements <= FEW_PARAMETERS) && info.layers <= FEW_LAYERS {
        let _ = graph.build(&Context::new());
    }
}
