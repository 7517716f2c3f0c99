//! Every family computes what `transformers` computes, on one device and partitioned: `tests/goldens/families.py`
//! wrote the numbers, the interpreter runs the modules.

use std::collections::BTreeMap;

use t3c_frontends::{Graph, Options, Phase, load};
use t3c_ir::{
    Context, TensorType, function,
    function::Port,
    interpreter::{Interpreter, Tensor, gather, scatter},
    walk,
};

use crate::{
    goldens::{BATCH, Numbers, SEQUENCE, assert_close, integers, objective, packed, parameters, run},
    modules::repository,
};

const PROMPT: usize = 7;

struct Model {
    name: &'static str,
    weights: Numbers,
    golden: Numbers,
}

impl Model {
    fn new(name: &'static str) -> Self {
        let open = |file: &str| Numbers::open(&format!("tests/goldens/families/{name}/{file}"));
        Self { name, weights: open("model.safetensors"), golden: open("golden.safetensors") }
    }

    fn graph(&self, file: &str, options: &Options) -> Graph {
        let path = repository("tests/goldens/families").join(self.name).join(file);
        load(&path, options).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn parameters(&self, graph: &Graph) -> Vec<Tensor> {
        parameters(graph, &self.weights, |_, _, value| value)
    }

    /// Logits of the batch, from both spellings of the configuration.
    fn check_logits(&self) {
        for file in ["config.json", "config.old.json"] {
            let graph = self.graph(file, &options(Phase::Prefill));
            let inputs = [packed(&self.golden), self.parameters(&graph)].concat();
            let logits = run(&graph, &inputs)[0].numbers();
            assert_close(&format!("{} {file}", self.name), &logits, &self.golden.floats("logits"), 2e-5);
        }
    }

    /// A prompt's rows in one call, then all steps in another: rows write before any reads. Where tokens are split,
    /// each block has such a sequence.
    fn check_decode(&self, parallel: &Options) {
        let (tokens, expected) = self.decoded();
        let steps = tokens.len() - PROMPT;
        let sequences = parallel.dp.unwrap_or(1) * parallel.ep.unwrap_or(1);
        let mut caches = BTreeMap::new();
        let mut logits = Vec::new();
        for (first, rows) in [(0, PROMPT), (PROMPT, steps)] {
            let options = Options {
                phase: Phase::Decode,
                batch: Some(rows as u64 * sequences),
                seq: Some(tokens.len() as u64),
                cache_blocks: Some(3 * sequences),
                ..parallel.clone()
            };
            let graph = self.graph("config.json", &options);
            let each = |values: Vec<i32>| values.repeat(sequences as usize);
            // Blocks that lie out of order, the third of each sequence unused.
            let table =
                (0..sequences as i32).flat_map(|sequence| [3 * sequence + 2, 3 * sequence].repeat(rows));
            let data = vec![
                integers(each(tokens[first..first + rows].to_vec())),
                integers(each((first..first + rows).map(|position| position as i32).collect())),
                Tensor::i32([rows as u64 * sequences, 2], table.collect::<Vec<_>>()),
            ];
            let caches_in = cache_ports(&graph).into_iter().map(|port| {
                let zeros = || vec![0.0; port.r#type.elements() as usize];
                Tensor::f64(port.r#type.shape.clone(), caches.remove(&port.name).unwrap_or_else(zeros))
            });
            let inputs = [data, caches_in.collect(), self.parameters(&graph)].concat();
            caches = partitioned(&graph, passes(&graph, &["t3-shard"], &[]), &inputs);
            logits = caches.remove("logits").expect("logits");
        }
        let what = format!("{} decodes at {}", self.name, grid(parallel));
        assert_close(&what, &logits, &expected.repeat(sequences as usize), 2e-5);
    }

    /// The sequence that is decoded, and the logits of its steps. Frequencies that depend on the length are those
    /// of the whole sequence in every call of ours, which `transformers` has only where it sees all of it at once.
    fn decoded(&self) -> (Vec<i32>, Vec<f64>) {
        if self.name != "llama-dynamic" {
            return (self.golden.tokens("decode/tokens"), self.golden.floats("decode/logits"));
        }
        let length = SEQUENCE as usize;
        let logits = self.golden.floats("logits");
        let vocabulary = logits.len() / (BATCH * SEQUENCE) as usize;
        let steps = logits[PROMPT * vocabulary..length * vocabulary].to_vec();
        (self.golden.tokens("tokens")[..length].to_vec(), steps)
    }

    /// The training step's loss and gradients, put together from all devices.
    fn check_gradients(&self, parallel: &Options) {
        let rows = if parallel.dp.or(parallel.ep).is_some() { None } else { Some(BATCH * (SEQUENCE - 1)) };
        let options = Options { rows, ..options(Phase::Training) };
        let options = Options {
            tp: parallel.tp,
            dp: parallel.dp,
            ep: parallel.ep,
            sequence_parallel: parallel.sequence_parallel,
            ..options
        };
        let graph = self.graph("config.json", &options);
        let targets = if rows.is_some() { objective(&self.golden) } else { every_row(&self.golden) };
        let inputs = [packed(&self.golden), targets, self.parameters(&graph)].concat();
        let passes = passes(&graph, &["t3-autodiff", "t3-shard"], &["t3-autodiff"]);
        let results = partitioned(&graph, passes, &inputs);
        let what = format!("{} at {}", self.name, grid(parallel));
        assert_close(&what, &results["loss"], &self.golden.floats("loss"), 1e-5);
        let mut gradients = BTreeMap::new();
        for parameter in &graph.info().parameters {
            parameter.scatter(&results[&format!("grad/{}", parameter.name)], &mut gradients);
        }
        let known = gradients.iter().filter(|(name, _)| self.golden.has(&format!("grad/{name}")));
        let mut count = 0;
        for (name, found) in known {
            let expected = self.golden.floats(&format!("grad/{name}"));
            assert_close(&format!("{what}: {name}"), found, &expected, 5e-5);
            count += 1;
        }
        assert!(count >= 8, "{what}: {count} gradients");
    }
}

fn options(phase: Phase) -> Options {
    Options { phase, batch: Some(BATCH), seq: Some(SEQUENCE), ..Options::default() }
}

/// Every token as a row, the last of each sequence with weight 0: rows of a block of tokens stay in it.
fn every_row(golden: &Numbers) -> Vec<Tensor> {
    let tokens = golden.tokens("tokens");
    let (n, t) = ((BATCH * SEQUENCE) as i32, SEQUENCE as i32);
    let last = |row: i32| row % t == t - 1;
    let targets = (0..n).map(|row| if last(row) { 0 } else { tokens[row as usize + 1] });
    let weight = 1.0 / f64::from(BATCH as i32 * (t - 1));
    let weights: Vec<f64> = (0..n).map(|row| if last(row) { 0.0 } else { weight }).collect();
    vec![integers(0..n), integers(targets), Tensor::f64([n as u64], weights)]
}

fn cache_ports(graph: &Graph) -> Vec<Port> {
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let ports = function::entry(module.op()).and_then(|entry| entry.argument_ports()).expect("ports");
    ports.into_iter().filter(|port| port.name.starts_with("cache/")).collect()
}

/// The passes for a graph on several devices, or on one.
fn passes<'p>(graph: &Graph, several: &'p [&'p str], one: &'p [&'p str]) -> &'p [&'p str] {
    let info = graph.info();
    if info.tp * info.dp * info.ep > 1 { several } else { one }
}

/// The degrees, for messages.
fn grid(options: &Options) -> String {
    let [dp, ep, tp] = [options.dp, options.ep, options.tp].map(|degree| degree.unwrap_or(1));
    let sequence = if options.sequence_parallel { " with sequence parallelism" } else { "" };
    format!("dp {dp} ep {ep} tp {tp}{sequence}")
}

/// Results by name, after `passes`, put together from all devices.
fn partitioned(graph: &Graph, passes: &[&str], inputs: &[Tensor]) -> BTreeMap<String, Vec<f64>> {
    let context = Context::new();
    let mut module = graph.build(&context).expect("builds");
    t3c_passes::run_passes(&mut module, passes, &mut Vec::new()).unwrap_or_else(|error| panic!("{error}"));
    let entry = function::entry(module.op()).expect("one entry");
    let interpreter = Interpreter::new(module.op()).widened();
    let grid = interpreter.grid().clone();
    let mut devices = vec![Vec::new(); grid.devices() as usize];
    for (port, tensor) in entry.argument_ports().expect("ports").iter().zip(inputs) {
        let parts = scatter(tensor, &port.splits(), &grid).expect("divides");
        devices.iter_mut().zip(parts).for_each(|(device, part)| device.push(part));
    }
    let found = interpreter.run(&entry.name(), &devices).unwrap_or_else(|error| panic!("{error}"));
    let whole = |(index, port): (usize, Port)| {
        let parts: Vec<Tensor> = found.iter().map(|device| device[index].clone()).collect();
        let tensor = gather(&parts, &port.splits(), &grid).expect("fits");
        (port.name, tensor.numbers())
    };
    entry.result_ports().expect("ports").into_iter().enumerate().map(whole).collect()
}

fn tp(tp: u64) -> Options {
    Options { tp: Some(tp), ..Options::default() }
}

/// Tensor parallelism, and the residual stream split with it.
fn sp(tp: u64) -> Options {
    Options { tp: Some(tp), sequence_parallel: true, ..Options::default() }
}

fn dp(dp: u64, rest: Options) -> Options {
    Options { dp: Some(dp), ..rest }
}

fn ep(ep: u64, rest: Options) -> Options {
    Options { ep: Some(ep), ..rest }
}

macro_rules! families {
    ($($test:ident: $name:literal, $parallel:expr;)*) => {$(
        #[test]
        fn $test() {
            let model = Model::new($name);
            model.check_logits();
            for parallel in [vec![tp(1)], $parallel].concat() {
                model.check_gradients(&parallel);
                if !parallel.sequence_parallel {
                    model.check_decode(&parallel);
                }
            }
        }
    )*};
}

families! {
    gpt2: "gpt2", vec![sp(2), dp(2, sp(3))];
    opt: "opt", vec![tp(2), sp(2)];
    opt_with_norms_after_blocks: "opt-post-norm", vec![sp(2)];
    gpt_neox: "gpt_neox", vec![tp(2), sp(2)];
    gpt_neox_in_sequence: "gpt_neox-sequential", vec![dp(2, tp(2))];
    llama_with_dynamic_frequencies: "llama-dynamic", vec![tp(2), sp(6)];
    llama_with_yarn: "llama-yarn", vec![tp(6)];
    mistral: "mistral", vec![tp(4), sp(4), dp(2, tp(2))];
    qwen2: "qwen2", vec![tp(2), sp(2)];
    qwen3: "qwen3", vec![tp(2), sp(6)];
    phi3_within_its_first_context: "phi3-short", vec![sp(2)];
    phi3_beyond_it: "phi3-long", vec![tp(2)];
    gemma2: "gemma2", vec![tp(2), dp(2, sp(2))];
    mixtral: "mixtral", vec![tp(2), ep(2, tp(1)), ep(2, sp(2))];
    mixtral_with_balanced_load: "mixtral-balanced", vec![ep(2, tp(1)), dp(2, tp(2))];
    qwen3_moe: "qwen3_moe", vec![tp(2), ep(2, tp(1))];
    qwen3_moe_with_shares_that_sum_to_1: "qwen3_moe-normalised", vec![ep(2, tp(1)), tp(2)];
}

/// With a split vocabulary, whose normaliser is reduced over the devices.
#[test]
fn the_z_loss_is_the_mean_square_of_the_normalisers_log() {
    let model = Model::new("gpt2");
    let rows = BATCH * (SEQUENCE - 1);
    let step = |tp: u64, z_loss: Option<f64>| {
        let options = Options { rows: Some(rows), tp: Some(tp), z_loss, ..options(Phase::Training) };
        let graph = model.graph("config.json", &options);
        let inputs = [packed(&model.golden), objective(&model.golden), model.parameters(&graph)].concat();
        partitioned(&graph, passes(&graph, &["t3-autodiff", "t3-shard"], &["t3-autodiff"]), &inputs)
    };
    let (plain, one, two) = (step(1, None), step(1, Some(0.1)), step(2, Some(0.1)));
    let logits = model.golden.floats("logits");
    let vocabulary = logits.len() / (BATCH * SEQUENCE) as usize;
    let predicting = logits
        .chunks(vocabulary)
        .enumerate()
        .filter(|(row, _)| row % SEQUENCE as usize != SEQUENCE as usize - 1);
    let log_sum = |row: &[f64]| row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    let z: f64 = predicting.map(|(_, row)| log_sum(row).powi(2)).sum::<f64>() / rows as f64;
    assert_close("loss", &one["loss"], &[plain["loss"][0] + 0.1 * z], 1e-6);
    for (name, gradient) in &one {
        assert_close(name, &two[name], gradient, 1e-9);
    }
    assert_ne!(one["grad/transformer.wte.weight"], plain["grad/transformer.wte.weight"]);
}

/// Collectives of one kind on activations `[tokens, hidden]`, in the layer's forward and backward.
fn collectives(name: &'static str, parallel: &Options, kind: &str) -> [usize; 2] {
    let model = Model::new(name);
    let options = Options {
        tp: parallel.tp,
        sequence_parallel: parallel.sequence_parallel,
        ..options(Phase::Training)
    };
    let graph = model.graph("config.json", &options);
    let context = Context::new();
    let mut module = graph.build(&context).expect("builds");
    t3c_passes::run_passes(&mut module, &["t3-autodiff", "t3-shard"], &mut Vec::new())
        .unwrap_or_else(|error| panic!("{error}"));
    ["layer", "layer_backward"].map(|function| {
        let layer = function::function(module.op(), function).expect("a function");
        let operations = walk::operations(layer.body().expect("a body"));
        let wanted = operations.iter().filter(|operation| {
            let rank = operation.result(0).ok().and_then(|value| TensorType::of(value.into()).ok());
            walk::name(**operation) == kind && rank.is_some_and(|r#type| r#type.shape.len() == 2)
        });
        wanted.count()
    })
}

#[test]
fn a_parallel_residual_reduces_three_times() {
    assert_eq!(collectives("gpt_neox", &tp(2), "shard.all_reduce"), [1, 2]);
    assert_eq!(collectives("gpt_neox-sequential", &tp(2), "shard.all_reduce"), [2, 2]);
}

#[test]
fn sequence_parallelism_gathers_and_scatters_around_norms() {
    for name in ["gpt2", "llama-yarn", "phi3-short"] {
        assert_eq!(collectives(name, &sp(2), "shard.all_reduce"), [0, 0], "{name}");
        assert_eq!(collectives(name, &sp(2), "shard.reduce_scatter"), [2, 2], "{name}");
        assert_eq!(collectives(name, &sp(2), "shard.all_gather"), [2, 4], "{name}");
    }
}
