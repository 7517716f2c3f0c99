//! Every family computes what `transformers` computes, on one device and partitioned: `tests/goldens/families.py`
//! wrote the numbers, the interpreter runs the modules.

use std::collections::BTreeMap;

use t3c_frontends::{Graph, Options, Phase, load};
use t3c_ir::{
    Context, function,
    function::Port,
    interpreter::{Interpreter, Tensor, gather, scatter},
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

    /// A prompt's rows in one call, then all steps in another: rows write before any reads.
    fn check_decode(&self) {
        let (tokens, expected) = self.decoded();
        let steps = tokens.len() - PROMPT;
        let mut caches = Vec::new();
        let mut logits = Vec::new();
        for (first, rows) in [(0, PROMPT), (PROMPT, steps)] {
            let options = Options {
                phase: Phase::Decode,
                batch: Some(rows as u64),
                seq: Some(tokens.len() as u64),
                cache_blocks: Some(3),
                ..Options::default()
            };
            let graph = self.graph("config.json", &options);
            let data = vec![
                integers(tokens[first..first + rows].iter().copied()),
                integers((first..first + rows).map(|position| position as i32)),
                // Blocks that lie out of order.
                Tensor::i32([rows as u64, 2], [2, 0].repeat(rows)),
            ];
            if caches.is_empty() {
                caches = empty_caches(&graph);
            }
            let mut results = run(&graph, &[data, caches, self.parameters(&graph)].concat());
            caches = results.split_off(1);
            logits = results[0].numbers();
        }
        assert_close(self.name, &logits, &expected, 2e-5);
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
        let passes: &[&str] = if graph.info().tp * graph.info().dp * graph.info().ep > 1 {
            &["t3-autodiff", "t3-shard"]
        } else {
            &["t3-autodiff"]
        };
        let results = partitioned(&graph, passes, &inputs);
        let what = format!("{} at tp {:?} dp {:?} ep {:?}", self.name, options.tp, options.dp, options.ep);
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

fn empty_caches(graph: &Graph) -> Vec<Tensor> {
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let ports = function::entry(module.op()).and_then(|entry| entry.argument_ports()).expect("ports");
    let caches = ports.into_iter().filter(|port| port.name.starts_with("cache/"));
    let zeros = |port: Port| {
        let count = port.r#type.elements() as usize;
        Tensor::f64(port.r#type.shape, vec![0.0; count])
    };
    caches.map(zeros).collect()
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

macro_rules! families {
    ($($test:ident: $name:literal, $parallel:expr;)*) => {$(
        #[test]
        fn $test() {
            let model = Model::new($name);
            model.check_logits();
            model.check_decode();
            for parallel in [vec![Options::default()], $parallel].concat() {
                model.check_gradients(&parallel);
            }
        }
    )*};
}

families! {
    gpt2: "gpt2", vec![tp(2)];
    opt: "opt", vec![];
    opt_with_norms_after_blocks: "opt-post-norm", vec![tp(2)];
    gpt_neox: "gpt_neox", vec![tp(2)];
    gpt_neox_in_sequence: "gpt_neox-sequential", vec![];
    llama_with_dynamic_frequencies: "llama-dynamic", vec![tp(2)];
    llama_with_yarn: "llama-yarn", vec![];
    mistral: "mistral", vec![];
    qwen2: "qwen2", vec![tp(2)];
    qwen3: "qwen3", vec![tp(2)];
    phi3_within_its_first_context: "phi3-short", vec![];
    phi3_beyond_it: "phi3-long", vec![tp(2)];
    gemma2: "gemma2", vec![tp(2)];
    mixtral: "mixtral", vec![];
    qwen3_moe: "qwen3_moe", vec![];
    qwen3_moe_with_shares_that_sum_to_1: "qwen3_moe-normalised", vec![];
}
