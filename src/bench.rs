//! Whole models' native code against the machine's own limits: a transformer layer, and decoding.
//!
//! Weights are random: only their sizes matter. Every figure is the best of many, interleaved with the loop that
//! measures the limit, so that both see the same machine.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use t3c_cpu::{
    Executable, State,
    bench::{Meter, Report, Row},
    kernels::Machine,
};
use t3c_frontends::{Graph, Options, Phase, graph, json::Source};
use t3c_ir::Element;
use t3c_schedule::{Compute, Schedule, StepKind, Work};

use crate::{Compiler, CpuOptions, Error};

/// What to measure, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Most threads; one thread is always measured.
    pub threads: usize,
    /// Time for each row.
    pub time: Duration,
}

/// A layer's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Sequences.
    pub batch: u64,
    /// Tokens of each.
    pub seq: u64,
    /// Hidden size; heads have 64.
    pub hidden: u64,
    /// Size of the MLP.
    pub mlp: u64,
}

/// A Megatron layer: norms before attention and MLP, biases, GELU.
const LAYER: &str = include_str!("../examples/models/t-nlg.json");
/// Floats of a head.
const HEAD: u64 = 64;

/// Forward passes of one transformer layer, the attention causal; floating-point operations count all pairs of
/// tokens, as peers count them.
///
/// # Errors
/// When a shape does not fit, or compiling fails.
pub fn layer(shapes: &[LayerShape], effort: Effort) -> Result<Report, Error> {
    let mut bench = Bench::new(effort)?;
    for shape in shapes {
        let LayerShape { batch, seq, hidden, mlp } = *shape;
        if !hidden.is_multiple_of(HEAD) || hidden == 0 {
            return Err(Error::option(
                "--shapes",
                format!("a hidden size of {hidden}; expected a multiple of {HEAD}"),
            ));
        }
        let tokens = batch * seq;
        let per_token = 2 * (4 * hidden * hidden + 2 * hidden * mlp) + 4 * seq * hidden;
        for threads in bench.thread_counts() {
            let program = Compiler::from_graph(layer_graph(shape)?).compile()?;
            let mut model =
                Model::new(program.compile_cpu(CpuOptions { threads, ..CpuOptions::default() })?)?;
            model.set_ints("subtree_end", (0..tokens).map(|token| ((token / seq + 1) * seq) as i32))?;
            let name = format!("layer.f32.b{batch}.t{seq}.d{hidden}.ff{mlp}.t{threads}");
            let (time, peak) = bench.best(threads, Meter::peak_flops, &mut || model.run())?;
            let limit = (tokens * per_token) as f64 / peak;
            bench.push(name, 1e3 * time, "ms", limit / time);
        }
    }
    Ok(bench.finish())
}

fn layer_graph(shape: &LayerShape) -> Result<Graph, Error> {
    let source = Source::parse("layer.json", LAYER)?;
    let mut model: graph::Model = source.read()?;
    let sizes = [
        ("batch", shape.batch),
        ("seq", shape.seq),
        ("hidden", shape.hidden),
        ("heads", shape.hidden / HEAD),
        ("head", HEAD),
        ("mlp", shape.mlp),
        ("layers", 1),
    ];
    for (name, size) in sizes {
        model.sizes.insert(name.to_owned(), t3c_frontends::json::Size(size));
    }
    let options = Options { dtype: Some(Element::F32), tp: Some(1), ..Options::default() };
    Ok(Graph::Model(Box::new(graph::ModelGraph::new(model, &options, None)?)))
}

/// Decoding with the model at `path` in steps of each of `batches` sequences, at positions up to `seq`: tokens a
/// second, against the bandwidth at which weights can be read.
///
/// # Errors
/// When the model does not compile.
pub fn decode(path: &Path, batches: &[u64], seq: u64, effort: Effort) -> Result<Report, Error> {
    let mut bench = Bench::new(effort)?;
    for &batch in batches {
        let blocks = seq.div_ceil(BLOCK);
        let options = Options {
            phase: Phase::Decode,
            batch: Some(batch),
            seq: Some(seq),
            cache_blocks: Some(batch * blocks),
            tp: Some(1),
            dtype: Some(Element::F32),
            ..Options::default()
        };
        for threads in bench.thread_counts() {
            let program = Compiler::from_path(path).options(options.clone()).compile()?;
            let bytes = weight_bytes(program.schedule());
            let mut model =
                Model::new(program.compile_cpu(CpuOptions { threads, ..CpuOptions::default() })?)?;
            model.set_ints("block_table", (0..batch * blocks).map(|block| block as i32))?;
            model.set_ints("tokens", (0..batch).map(|row| row as i32))?;
            let mut position = 0;
            let mut step = || {
                position = (position + 1) % seq;
                model.set_ints("position", (0..batch).map(|_| position as i32))?;
                model.run()
            };
            let (time, bandwidth) = bench.best(threads, Meter::read_bytes, &mut step)?;
            let name = format!("decode.{}.f32.b{batch}.t{threads}", program.info().name);
            bench.push(name, batch as f64 / time, "tokens/s", bytes as f64 / bandwidth / time);
        }
    }
    Ok(bench.finish())
}

/// Positions in a block of a cache.
const BLOCK: u64 = t3c_ir::units::BLOCK;

/// Bytes of the larger operands of all products of one run: of a decode step, its weights.
fn weight_bytes(schedule: &Schedule) -> u64 {
    let mut bytes = 0;
    let mut calls = vec![schedule.entry];
    while let Some(program) = calls.pop() {
        for step in &schedule.programs[program].steps {
            let computes = match &step.kind {
                StepKind::Compute(compute) => std::slice::from_ref(compute),
                StepKind::Call { program, .. } => {
                    calls.push(*program);
                    &[]
                }
                _ => &[],
            };
            bytes += computes.iter().map(weight_of).sum::<u64>();
        }
    }
    bytes
}

fn weight_of(compute: &Compute) -> u64 {
    let Work::Contraction(contraction) = &compute.work else { return 0 };
    let shape = contraction.gemm_shape();
    shape.batch * shape.m.max(shape.n) * shape.k * Element::F32.bytes()
}

/// An executable with random weights.
struct Model {
    executable: Executable,
    state: State,
}

impl Model {
    fn new(executable: Executable) -> Result<Self, Error> {
        let mut state = executable.state();
        for (number, port) in executable.arguments().iter().enumerate() {
            let count = port.r#type.elements() as usize;
            let bytes: Vec<u8> = match port.r#type.element {
                Element::F32 if !port.name.starts_with("cache/") => random(count, number).collect(),
                element => vec![0; count * element.bytes() as usize],
            };
            state.set(&port.name, &port.r#type, &port.split, &bytes)?;
        }
        Ok(Self { executable, state })
    }

    fn set_ints(&mut self, name: &str, values: impl Iterator<Item = i32>) -> Result<(), Error> {
        let port = self.executable.arguments().iter().find(|port| port.name == name);
        let Some(port) = port else { return Ok(()) };
        let bytes: Vec<u8> = values.flat_map(i32::to_le_bytes).collect();
        Ok(self.state.set(name, &port.r#type, &port.split, &bytes)?)
    }

    fn run(&mut self) -> Result<(), Error> {
        Ok(self.executable.run(&mut self.state)?)
    }
}

/// Small numbers of either sign, as bytes.
fn random(count: usize, seed: usize) -> impl Iterator<Item = u8> {
    let mut state = (seed as u32).wrapping_mul(0x9E37_79B9) | 1;
    (0..count).flat_map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        ((state >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05).to_le_bytes()
    })
}

/// Rows so far, and what measures the limits beside them.
struct Bench {
    meter: Meter,
    effort: Effort,
    rows: Vec<Row>,
}

impl Bench {
    fn new(effort: Effort) -> Result<Self, Error> {
        let machine = Machine::host().map_err(t3c_cpu::Error::from)?;
        let meter = Meter::new(&machine).map_err(t3c_cpu::Error::from)?;
        Ok(Self { meter, effort, rows: Vec::new() })
    }

    fn thread_counts(&self) -> Vec<usize> {
        if self.effort.threads > 1 { vec![1, self.effort.threads] } else { vec![1] }
    }

    /// The least time of `run` in seconds, and the highest limit beside it.
    fn best(
        &mut self,
        threads: usize,
        limit: impl Fn(&Meter, usize) -> f64,
        run: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(f64, f64), Error> {
        const FEWEST_ROUNDS: usize = 5;
        // The first run packs weights and touches memory.
        run()?;
        let (mut time, mut most) = (f64::INFINITY, 0.0f64);
        let started = Instant::now();
        let mut rounds = 0;
        while rounds < FEWEST_ROUNDS || started.elapsed() < self.effort.time {
            rounds += 1;
            most = most.max(limit(&self.meter, threads));
            let began = Instant::now();
            run()?;
            time = time.min(began.elapsed().as_secs_f64());
        }
        Ok((time.max(1e-9), most))
    }

    fn push(&mut self, name: String, value: f64, unit: &'static str, limit_ratio: f64) {
        self.rows.push(Row { name, value, unit, limit_ratio, peer: None, peer_value: None });
    }

    fn finish(self) -> Report {
        self.meter.report(self.rows, self.effort.threads.max(1))
    }
}
