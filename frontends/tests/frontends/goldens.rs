//! The graphs compute what `transformers` computes: `tests/goldens/llama.py` wrote the numbers, the interpreter
//! runs the modules.

use safetensors::SafeTensors;
use t3c_frontends::{Graph, Options, Phase, load};
use t3c_ir::{
    Context, TensorType, function,
    interpreter::{Interpreter, Tensor},
};

use crate::modules::repository;

pub const VARIANTS: [&str; 3] = ["untied", "tied", "grouped"];
pub const BATCH: u64 = 2;
pub const SEQUENCE: u64 = 18;
const PROMPT: usize = 7;
const STEPS: usize = 16;

/// One file of tensors.
pub struct Numbers(Vec<u8>);

impl Numbers {
    pub fn read(variant: &str, file: &str) -> Self {
        Self::open(&format!("tests/goldens/llama/{variant}/{file}"))
    }

    pub fn open(path: &str) -> Self {
        Self(std::fs::read(repository(path)).expect("a golden"))
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).expect("safetensors").tensor(name).is_ok()
    }

    pub fn floats(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let words = tensor.data().chunks_exact(4);
        words.map(|word| f64::from(f32::from_le_bytes(word.try_into().expect("4 bytes")))).collect()
    }

    pub fn tokens(&self, name: &str) -> Vec<i32> {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let words = tensor.data().chunks_exact(8);
        words.map(|word| i64::from_le_bytes(word.try_into().expect("8 bytes")) as i32).collect()
    }
}

pub fn graph(variant: &str, options: Options) -> Graph {
    load(&repository("tests/goldens/llama").join(variant), &options).expect("a golden loads")
}

/// The checkpoint's parameters as the graph's arguments, moved by `step` along `direction`.
pub fn parameters(
    graph: &Graph,
    weights: &Numbers,
    mut moved: impl FnMut(&str, usize, f64) -> f64,
) -> Vec<Tensor> {
    let info = graph.info();
    let tensor = |parameter: &t3c_frontends::Parameter| {
        let values = parameter.gather(|source| {
            let values = weights.floats(&source.tensor).into_iter().enumerate();
            let moved = values.map(|(index, value)| moved(&source.tensor, index, value));
            Ok::<Vec<f64>, std::convert::Infallible>(moved.collect())
        });
        Tensor::f64(parameter.shape.clone(), values.expect("reads"))
    };
    info.parameters.iter().map(tensor).collect()
}

pub fn integers(values: impl IntoIterator<Item = i32>) -> Tensor {
    let values: Vec<i32> = values.into_iter().collect();
    Tensor::i32([values.len() as u64], values)
}

/// Tokens, positions and ends of the golden batch, one sequence after the other.
pub fn packed(golden: &Numbers) -> Vec<Tensor> {
    let (n, t) = ((BATCH * SEQUENCE) as i32, SEQUENCE as i32);
    vec![
        integers(golden.tokens("tokens")),
        integers((0..n).map(|i| i % t)),
        integers((0..n).map(|i| (i / t + 1) * t)),
    ]
}

pub fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let entry = function::entry(module.op()).expect("one entry").name();
    let interpreter = Interpreter::new(module.op()).on_one_device().widened();
    interpreter.run_one(&entry, inputs).unwrap_or_else(|error| panic!("{error}"))
}

/// Numbers that are nothing but rounding are this small: gradients that vanish in exact arithmetic.
const NOTHING: f64 = 1e-4;

/// Relative to the largest number expected.
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= tolerance * largest.max(NOTHING), "{what}: {worst:e} off, largest {largest:e}");
}

fn options(phase: Phase) -> Options {
    Options { phase, batch: Some(BATCH), seq: Some(SEQUENCE), ..Options::default() }
}

#[test]
fn logits_are_those_of_transformers() {
    for variant in VARIANTS {
        let (weights, golden) =
            (Numbers::read(variant, "model.safetensors"), Numbers::read(variant, "golden.safetensors"));
        for tp in [1, 3] {
            let graph = graph(variant, Options { tp: Some(tp), ..options(Phase::Prefill) });
            let inputs = [packed(&golden), parameters(&graph, &weights, |_, _, value| value)].concat();
            let logits = run(&graph, &inputs)[0].numbers();
            assert_close(&format!("{variant} at {tp}"), &logits, &golden.floats("logits"), 1e-5);
        }
    }
}

/// Rows, targets and weights of the mean next-token loss.
pub fn objective(golden: &Numbers) -> Vec<Tensor> {
    let tokens = golden.tokens("tokens");
    let n = (BATCH * SEQUENCE) as i32;
    let rows: Vec<i32> = (0..n).filter(|i| i % SEQUENCE as i32 != SEQUENCE as i32 - 1).collect();
    let targets = integers(rows.iter().map(|&row| tokens[row as usize + 1]));
    let count = rows.len();
    vec![integers(rows), targets, Tensor::f64([count as u64], vec![1.0 / count as f64; count])]
}

#[test]
fn the_loss_and_its_slope_are_those_of_transformers() {
    for variant in VARIANTS {
        let (weights, golden) =
            (Numbers::read(variant, "model.safetensors"), Numbers::read(variant, "golden.safetensors"));
        let rows = BATCH * (SEQUENCE - 1);
        let graph = graph(variant, Options { rows: Some(rows), ..options(Phase::Training) });
        let data = [packed(&golden), objective(&golden)].concat();
        let loss_at = |step: f64| {
            let moved = |name: &str, index: usize, value: f64| value + step * direction(name, index);
            run(&graph, &[data.clone(), parameters(&graph, &weights, moved)].concat())[0].numbers()[0]
        };
        assert_close(variant, &[loss_at(0.0)], &golden.floats("loss"), 1e-6);
        let slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4;
        let expected: f64 = graph
            .info()
            .parameters
            .iter()
            .flat_map(|parameter| {
                let gradient = golden.floats(&format!("grad/{}", parameter.name)).into_iter().enumerate();
                gradient.map(|(index, value)| value * direction(&parameter.name, index)).collect::<Vec<_>>()
            })
            .sum();
        assert_close(&format!("{variant}'s slope"), &[slope], &[expected], 1e-4);
    }
}

/// Some direction in the space of parameters: each tensor counts, no two alike.
fn direction(name: &str, index: usize) -> f64 {
    let seed = name.bytes().fold(index as f64, |seed, byte| seed + f64::from(byte) * 0.37);
    (seed * 12.9898).sin()
}

/// A decode program with the caches between calls.
struct Decoder {
    graph: Graph,
    parameters: Vec<Tensor>,
    /// The blocks of the one sequence: not in order, to see that the table is read.
    table: [i32; 2],
}

impl Decoder {
    fn new(variant: &str, rows: usize, weights: &Numbers) -> Self {
        let graph = graph(
            variant,
            Options {
                phase: Phase::Decode,
                batch: Some(rows as u64),
                seq: Some(32),
                cache_blocks: Some(3),
                ..Options::default()
            },
        );
        let parameters = parameters(&graph, weights, |_, _, value| value);
        Self { graph, parameters, table: [2, 0] }
    }

    fn step(&self, tokens: &[i32], first: usize, caches: &mut Vec<Tensor>) -> Vec<f64> {
        let rows = tokens.len();
        let table: Vec<i32> = (0..rows).flat_map(|_| self.table).collect();
        let data = vec![
            integers(tokens.iter().copied()),
            integers((first..first + rows).map(|position| position as i32)),
            Tensor::i32([rows as u64, 2], table),
        ];
        if caches.is_empty() {
            *caches = self.empty_caches();
        }
        let inputs = [data, caches.clone(), self.parameters.clone()].concat();
        let mut results = run(&self.graph, &inputs);
        *caches = results.split_off(1);
        results[0].numbers()
    }

    fn empty_caches(&self) -> Vec<Tensor> {
        let context = Context::new();
        let module = self.graph.build(&context).expect("builds");
        let ports = function::entry(module.op()).and_then(|entry| entry.argument_ports()).expect("ports");
        let caches = ports.into_iter().filter(|port| port.name.starts_with("cache/"));
        let zeros = |r#type: TensorType| {
            let count = r#type.elements() as usize;
            Tensor::f64(r#type.shape, vec![0.0; count])
        };
        caches.map(|port| zeros(port.r#type)).collect()
    }
}

#[test]
fn sixteen_decode_steps_are_those_of_transformers() {
    for variant in VARIANTS {
        let (weights, golden) =
            (Numbers::read(variant, "model.safetensors"), Numbers::read(variant, "golden.safetensors"));
        let tokens = golden.tokens("decode/tokens");
        let mut caches = Vec::new();
        Decoder::new(variant, PROMPT, &weights).step(&tokens[..PROMPT], 0, &mut caches);
        let decoder = Decoder::new(variant, 1, &weights);
        let mut logits = Vec::new();
        for position in PROMPT..PROMPT + STEPS {
            logits.extend(decoder.step(&tokens[position..=position], position, &mut caches));
        }
        assert_close(variant, &logits, &golden.floats("decode/logits"), 1e-5);
    }
}
