//! Every reader of a user's file against mutations of good files: whatever it says, it must not panic. The functions
//! are those of the fuzz targets; `T3C_FUZZ_SECONDS` runs each for so long instead of a few hundred times.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{Folder, repository, t3c, text_of};

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod fuzz;

/// What mutations put into texts: numbers and words at which readers stumble.
const WORDS: [&str; 20] = [
    "0",
    "-1",
    "1e999",
    "18446744073709551615",
    "9223372036854775807",
    "4294967296",
    "0.5",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "\\u0000",
    "é",
    "tensor<",
    "?x",
    "->",
    "\"tp\"",
    "NaN",
];

fn mutate(random: &mut ChaCha8Rng, seed: &[u8]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..random.random_range(1..=4) {
        if data.is_empty() {
            break;
        }
        let start = random.random_range(0..data.len());
        let end = (start + random.random_range(1..=24)).min(data.len());
        let word = WORDS[random.random_range(0..WORDS.len())].bytes();
        match random.random_range(0..7) {
            0 => data[start] = random.random(),
            1 => drop(data.drain(start..end)),
            2 => data.truncate(start),
            3 => {
                let copy = data[start..end].to_vec();
                data.splice(start..start, copy);
            }
            4 => drop(data.splice(start..start, word)),
            _ => replace_number(&mut data, start, word),
        }
    }
    data
}

/// Puts `word` in place of the next number after `start`.
fn replace_number(data: &mut Vec<u8>, start: usize, word: impl Iterator<Item = u8>) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(first) = data[start..].iter().position(is_digit).map(|at| start + at) else { return };
    let length = data[first..].iter().take_while(|byte| is_digit(byte)).count();
    data.splice(first..first + length, word);
}

fn budget() -> Option<Duration> {
    std::env::var("T3C_FUZZ_SECONDS").ok()?.parse().ok().map(Duration::from_secs)
}

/// Runs `read` on mutations of `seeds`, `times` of them or as long as the budget says.
#[track_caller]
fn survives(name: &str, seeds: &[Vec<u8>], times: usize, read: impl Fn(&[u8])) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (started, mut runs) = (Instant::now(), 0);
    while budget().map_or(runs < times, |budget| started.elapsed() < budget) {
        let data = mutate(&mut random, &seeds[runs % seeds.len()]);
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&data)));
        assert!(outcome.is_ok(), "{name} panicked on {:?}", String::from_utf8_lossy(&data));
        runs += 1;
    }
    if budget().is_some() {
        println!("{name}: {runs} mutations");
    }
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(repository(path)).expect("a file of the repository")
}

#[test]
fn configurations() {
    let families = std::fs::read_dir(repository("tests/goldens/families")).expect("goldens");
    let configs = families.filter_map(|entry| std::fs::read(entry.ok()?.path().join("config.json")).ok());
    let seeds: Vec<_> = configs.chain([read("tests/goldens/llama/tied/config.json")]).collect();
    survives("config", &seeds, 200, fuzz::config);
}

const SMALL: &str = r#"{"schema": "t3c.model/1", "name": "small", "sizes": {"n": 8, "d": 4},
  "parallelism": {"dp": 2, "tp": 2},
  "inputs": [{"name": "x", "shape": ["n", "d"], "shard": ["dp", null]}, {"name": "t", "shape": ["n"], "dtype": "i32"}],
  "parameters": [{"name": "w", "shape": ["2*d", "d"], "shard": ["tp", null]}],
  "blocks": {"b": {"inputs": [{"name": "x", "shape": ["n", "d"]}], "parameters": [{"name": "g", "shape": ["d"]}],
    "ops": [{"op": "rms_norm", "input": "x", "weight": "g", "eps": 1e-5, "result": "y"}], "outputs": ["y"]}},
  "ops": [{"op": "repeat", "block": "b", "count": 2, "prefix": "b", "inputs": ["x"], "results": ["h"]},
    {"op": "contract", "equation": "nd,fd->nf", "inputs": ["h", "w"], "result": "z"},
    {"op": "softmax", "input": "z", "result": "s", "dimension": 1},
    {"op": "broadcast", "input": "s", "equation": "nf->nkf", "extents": {"k": 2}, "result": "wide"},
    {"op": "cross_entropy", "logits": "z", "targets": "t", "result": "loss"}],
  "outputs": ["s", "wide"], "loss": "loss"}"#;

const PER_DEVICE: &str = r#"{"schema": "t3c.model/1", "name": "d", "sizes": {"f": 8}, "parallelism": {"tp": 2},
  "inputs": [{"name": "x", "shape": [4, "f/tp"]}], "ops": [
    {"op": "all_to_all", "input": "x", "axes": ["tp"], "split": 0, "concatenate": 1, "result": "a"},
    {"op": "reduce_scatter", "input": "a", "axes": ["tp"], "dimension": 1, "combine": "max", "result": "r"},
    {"op": "all_gather", "input": "r", "axes": ["tp"], "dimension": 0, "result": "y"}], "outputs": ["y"]}"#;

#[test]
fn models() {
    let seeds = [SMALL.into(), PER_DEVICE.into(), read("examples/models/t-nlg.json")];
    fuzz::model(SMALL.as_bytes());
    survives("model", &seeds, 300, fuzz::model);
}

#[test]
fn recipes() {
    survives("recipe", &[read("examples/recipes/portool.json")], 300, fuzz::recipe);
}

#[test]
fn schedules() {
    let arguments = ["compile", "tests/goldens/llama/tied", "--seq", "8", "--tp", "2", "--emit", "schedule"];
    let text = t3c(&[&arguments[..], &["--format", "json"]].concat()).succeeded();
    survives("schedule", &[text.into_bytes()], 100, fuzz::schedule);
}

#[test]
fn tensors() {
    survives("safetensors", &[read("tests/goldens/llama/tied/golden.safetensors")], 100, fuzz::safetensors);
}

/// In a process of its own each: what crashes there need not be ours, but must be seen.
#[test]
fn mlir() {
    let seed = text_of("passes/cases/find_pairs/reasons.mlir").into_bytes();
    fuzz::mlir(&seed);
    let folder = Folder::new();
    survives("mlir", &[seed], 12, |data| {
        let path = folder.file("m.mlir", data);
        let ran = t3c(&["compile", &path, "--emit", "schedule"]);
        assert!([0, 1].contains(&ran.status), "{ran:?}");
    });
}
