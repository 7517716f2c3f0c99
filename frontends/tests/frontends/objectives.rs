//! Losses against their formulas, and packed trees against the sequences in them.

use t3c_frontends::{Objective, Options, Phase};
use t3c_ir::{Element, interpreter::Tensor};

use crate::goldens::{Numbers, assert_close, graph, integers, parameters, run};

/// A prompt of three tokens, two branches, the second of which forks again: parent of each token in preorder.
const PARENTS: [Option<usize>; 9] =
    [None, Some(0), Some(1), Some(2), Some(3), Some(2), Some(5), Some(6), Some(5)];
const TOKENS: [i32; 9] = [3, 17, 5, 30, 2, 11, 8, 8, 36];

fn depth(mut token: usize) -> usize {
    let mut depth = 0;
    while let Some(parent) = PARENTS[token] {
        (token, depth) = (parent, depth + 1);
    }
    depth
}

/// The token and what leads to it, in order of depth.
fn path(mut token: usize) -> Vec<usize> {
    let mut path = vec![token];
    while let Some(parent) = PARENTS[token] {
        path.push(parent);
        token = parent;
    }
    path.reverse();
    path
}

fn tree() -> Vec<Tensor> {
    let end = |token: usize| {
        (token..TOKENS.len()).take_while(|&other| path(other).contains(&token)).last().unwrap_or(token) + 1
    };
    vec![
        integers(TOKENS),
        integers((0..TOKENS.len()).map(|token| depth(token) as i32)),
        integers((0..TOKENS.len()).map(|token| end(token) as i32)),
    ]
}

fn sequence(tokens: &[i32]) -> Vec<Tensor> {
    let n = tokens.len() as i32;
    vec![integers(tokens.iter().copied()), integers(0..n), integers((0..n).map(|_| n))]
}

fn options(phase: Phase, tokens: usize) -> Options {
    // f64, so that constants such as the clip are exact.
    Options { phase, tokens: Some(tokens as u64), dtype: Some(Element::F64), ..Options::default() }
}

#[test]
fn a_packed_tree_has_the_logits_of_its_sequences() {
    let weights = Numbers::read("untied", "model.safetensors");
    let logits = |data: Vec<Tensor>, tokens: usize| {
        let graph = graph("untied", options(Phase::Prefill, tokens));
        run(&graph, &[data, parameters(&graph, &weights, |_, _, value| value)].concat())[0].numbers()
    };
    let vocabulary = 37;
    let packed = logits(tree(), TOKENS.len());
    for leaf in [4, 7, 8] {
        let path = path(leaf);
        let tokens: Vec<i32> = path.iter().map(|&token| TOKENS[token]).collect();
        let flat = logits(sequence(&tokens), tokens.len());
        for (row, &token) in path.iter().enumerate() {
            let found = &packed[token * vocabulary..][..vocabulary];
            assert_close(&format!("token {token}"), found, &flat[row * vocabulary..][..vocabulary], 1e-13);
        }
    }
}

const CLIP: (f64, f64) = (0.2, 0.28);
const BETA: f64 = 0.03;
const TEMPERATURE: f64 = 0.7;

/// The results of an RL step in which every token but the root is a target.
fn step(
    beta: f64,
    old: &[f64],
    reference: &[f64],
    plus: &[f64],
    minus: &[f64],
    weight: &[f64],
) -> Vec<Vec<f64>> {
    let weights = Numbers::read("untied", "model.safetensors");
    let rows = old.len() as u64;
    let objective = Objective::Portool { clip_low: CLIP.0, clip_high: CLIP.1, beta };
    let options = Options {
        rows: Some(rows),
        objective,
        temperature: Some(TEMPERATURE),
        ..options(Phase::Training, TOKENS.len())
    };
    let graph = graph("untied", options);
    let floats = |values: &[f64]| Tensor::f64([rows], values.to_vec());
    let mut data = tree();
    data.push(integers(PARENTS.iter().flatten().map(|&parent| parent as i32)));
    data.push(integers(TOKENS[1..].iter().copied()));
    data.push(floats(old));
    if beta > 0.0 {
        data.push(floats(reference));
    }
    data.extend([plus, minus, weight].map(floats));
    let results = run(&graph, &[data, parameters(&graph, &weights, |_, _, value| value)].concat());
    results.iter().map(Tensor::numbers).collect()
}

/// Log-probabilities at the temperature, from the logits of prefill.
fn log_probabilities() -> Vec<f64> {
    let weights = Numbers::read("untied", "model.safetensors");
    let graph = graph("untied", options(Phase::Prefill, TOKENS.len()));
    let logits =
        run(&graph, &[tree(), parameters(&graph, &weights, |_, _, value| value)].concat())[0].numbers();
    (1..TOKENS.len())
        .map(|token| {
            let row = &logits[PARENTS[token].expect("a parent") * 37..][..37];
            let sum: f64 = row.iter().map(|logit| (logit / TEMPERATURE).exp()).sum();
            row[TOKENS[token] as usize] / TEMPERATURE - sum.ln()
        })
        .collect()
}

#[test]
fn portool_is_its_formula() {
    let logp = log_probabilities();
    // Ratios inside, above and below the clip, and one beyond the clamp.
    let shifts = [0.0, 0.1, -0.1, 0.5, -0.5, 1.5, -1.5, 60.0];
    let old: Vec<f64> = logp.iter().zip(shifts).map(|(logp, shift)| logp - shift).collect();
    let reference: Vec<f64> = logp.iter().zip(shifts).map(|(logp, shift)| logp - shift / 2.0 + 0.2).collect();
    let plus = [0.5, 0.0, 1.0, 2.0, 0.3, 0.1, 0.0, 0.2];
    let minus = [0.0, -0.5, -0.2, 0.0, -1.0, -0.3, -0.7, -1e-9];
    let weight = [0.125, 0.25, 0.0, 0.1, 0.1, 0.2, 0.2, 0.05];
    let mut gradient = 0.0;
    let mut divergence = 0.0;
    for i in 0..logp.len() {
        let ratio = (logp[i] - old[i]).clamp(-20.0, 20.0).exp();
        gradient -= plus[i] * ratio.min(1.0 + CLIP.1) + minus[i] * ratio.max(1.0 - CLIP.0);
        let d = (reference[i] - logp[i]).clamp(-20.0, 20.0);
        divergence += BETA * weight[i] * (d.exp() - d - 1.0).clamp(-10.0, 10.0);
    }
    let results = step(BETA, &old, &reference, &plus, &minus, &weight);
    assert_close("loss", &results[0], &[gradient + divergence], 1e-12);
    assert_close("loss_pg", &results[1], &[gradient], 1e-12);
    assert_close("loss_kl", &results[2], &[divergence], 1e-12);
    assert_close("logp", &results[3], &logp, 1e-12);
    let results = step(0.0, &old, &[], &plus, &minus, &weight);
    assert_close("loss without a reference", &results[0], &[gradient], 1e-12);
    assert_eq!(results.len(), 3);
}
