//! `t3c bench compile`: from a model to its schedule, at several numbers of layers.
//!
//! A repeated layer is compiled once, so that the time hardly grows with layers; what does grow is the list of steps
//! and of parameters.

use std::time::Instant;

use t3c_cpu::{
    bench::{Meter, Report, Row},
    kernels::Machine,
};
use t3c_frontends::{Graph, Options, Phase, graph, json::Size};

use crate::{Compiler, Error, bench::Effort};

/// GPT-3's layers, as the T3 paper has them.
const MODEL: &str = include_str!("../../examples/models/gpt-3.json");

/// Compiles GPT-3 to its schedule with each number of layers; the best of the runs that fit the time, at least one.
pub fn compile(layers: &[u64], tp: u64, phase: Phase, effort: Effort) -> Result<Report, Error> {
    let mut rows = Vec::new();
    for &layers in layers {
        let (started, mut best) = (Instant::now(), f64::INFINITY);
        while best.is_infinite() || started.elapsed() < effort.time {
            best = best.min(seconds(layers, tp, phase)?);
        }
        let kind = crate::program::phase_name(phase);
        rows.push(Row {
            name: format!("compile.gpt-3.{kind}.tp{tp}.layers{layers}"),
            value: best,
            unit: "s",
            // No physical limit: JSON has null.
            limit_ratio: f64::NAN,
            peer: None,
            peer_value: None,
        });
    }
    let meter = Machine::host().and_then(|machine| Meter::new(&machine));
    Ok(meter.map_err(|error| Error::from(t3c_cpu::Error::from(error)))?.report(rows, 1))
}

/// One compilation, from the model's text.
fn seconds(layers: u64, tp: u64, phase: Phase) -> Result<f64, Error> {
    let started = Instant::now();
    let mut model: graph::Model = t3c_frontends::json::Source::parse("gpt-3.json", MODEL)?.read()?;
    model.sizes.insert("layers".to_owned(), Size(layers));
    let options = Options { tp: Some(tp), phase, ..Options::default() };
    let graph = graph::ModelGraph::new(model, &options, None)?;
    let program = Compiler::from_graph(Graph::Model(Box::new(graph))).options(options).compile()?;
    let elapsed = started.elapsed().as_secs_f64();
    // Read after the clock, so that the work is known to be done.
    match program.schedule().programs.is_empty() {
        true => Err(Error::option("bench compile", "the schedule has no program")),
        false => Ok(elapsed),
    }
}
