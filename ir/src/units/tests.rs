//! Reference bodies against plain loops, over odd shapes.

use t3c_schedule::Element;

use super::*;
use crate::{
    Context,
    interpreter::{Interpreter, Tensor},
};

const F: Element = Element::F64;

fn floats(shape: &[u64]) -> TensorType {
    TensorType::new(shape, F)
}

fn indices(shape: &[u64]) -> TensorType {
    TensorType::new(shape, Element::I32)
}

fn run(unit: &Unit, inputs: &[Tensor]) -> Vec<Tensor> {
    let context = Context::new();
    let module = context.module(Location::unknown(context.mlir()));
    let symbol = ensure(module.op(), unit).unwrap();
    module.verify().unwrap();
    Interpreter::new(module.op()).run_one(&symbol, inputs).unwrap()
}

fn random(r#type: &TensorType, seed: u64) -> Tensor {
    Tensor::random(r#type, seed).unwrap()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-11 * (1.0 + expected.abs()), "[{at}] {found} {expected}");
    }
}

#[test]
fn every_unit_verifies_and_reads_back() {
    let context = Context::new();
    let module = context.module(Location::unknown(context.mlir()));
    let f32 = |shape: &[u64]| TensorType::new(shape, Element::F32);
    let ids = indices(&[7]);
    let q = f32(&[7, 2, 3, 2, 4]);
    let [x, w] = [f32(&[3, 2, 4, 5]), f32(&[2, 3, 7, 5])];
    let windowed = Unit::attention(&q).scaled(0.25).softcapped(30.0).windowed(4);
    let grouped = Unit::grouped(&x, &w, 2);
    let units = [
        Unit::lookup(&f32(&[11, 6]), &ids),
        Unit::lookup(&f32(&[11, 6]), &ids).aligned(),
        Unit::lookup(&f32(&[11, 2, 2, 3]), &indices(&[2, 3])),
        Unit::lookup_grad(&ids, &f32(&[7, 6]), 11),
        Unit::lookup_grad(&indices(&[2, 3]), &f32(&[2, 3, 6]), 11),
        Unit::attention(&q),
        Unit::attention_grad(&q, 0.5),
        windowed.attention_gradient(),
        windowed,
        Unit::attention_paged(&q, 5, 3),
        Unit::attention_paged(&q, 5, 3).softcapped(50.0).windowed(9),
        Unit::route(&f32(&[12, 6]), 2, 3, 2),
        grouped.grouped_rows_gradient(),
        grouped.grouped_weight_gradient(),
        grouped,
    ];
    for unit in &units {
        let symbol = ensure(module.op(), unit).unwrap();
        assert_eq!(ensure(module.op(), unit).unwrap(), symbol);
        let found = function(module.op(), &symbol).unwrap();
        assert_eq!(unit_of(found).as_ref(), Some(unit));
    }
    assert_eq!(crate::function::functions(module.op()).len(), units.len());
    module.verify().unwrap();
    let text = module.text(false);
    let again = context.parse(&text, "again.mlir").unwrap();
    for unit in &units {
        assert_eq!(unit_of(function(again.op(), &unit.symbol()).unwrap()).as_ref(), Some(unit));
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let context = Context::new();
    let module = context.module(Location::unknown(context.mlir()));
    let wrong = |unit: Unit, expected: &str| {
        let text = ensure(module.op(), &unit).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    let scores = floats(&[6, 4]);
    wrong(Unit::route(&scores, 5, 1, 1), "5 of 4 experts");
    wrong(Unit::route(&scores, 2, 4, 1), "6 tokens into 4 groups");
    wrong(Unit::grouped(&floats(&[1, 1, 4, 5]), &floats(&[1, 2, 3, 4]), 1), "x [P, S, C, D]");
    wrong(Unit::attention(&floats(&[3, 4])), "q of shape");
    let mut lookup = Unit::lookup(&floats(&[3, 4]), &indices(&[2]));
    lookup.results[0].shape = vec![2, 5];
    wrong(lookup, "disagree");
}

#[test]
fn lookups_take_ids_of_any_rank() {
    for (ids_shape, row) in
        [(vec![], vec![]), (vec![5], vec![3]), (vec![1, 3], vec![2, 1]), (vec![2, 1, 3], vec![])]
    {
        let table = floats(&[&[7], row.as_slice()].concat());
        let unit = Unit::lookup(&table, &indices(&ids_shape));
        let table = random(&table, 1);
        let ids = Tensor::random_below(&indices(&ids_shape), 7, 2).unwrap();
        let width = row.iter().product::<u64>() as usize;
        let (rows, numbers) = (ids.numbers(), table.numbers());
        let out = run(&unit, &[table, ids.clone()]).remove(0);
        assert_eq!(out.shape, [ids_shape.as_slice(), row.as_slice()].concat());
        let expected: Vec<f64> =
            rows.iter().flat_map(|&id| numbers[id as usize * width..][..width].to_vec()).collect();
        assert_eq!(out.numbers(), expected);
        let gradient = Unit::lookup_grad(&unit.arguments[1], &unit.results[0], 7);
        let dout = random(&unit.results[0], 3);
        let mut expected = vec![0.0; 7 * width];
        for (at, &id) in rows.iter().enumerate() {
            for lane in 0..width {
                expected[id as usize * width + lane] += dout.numbers()[at * width + lane];
            }
        }
        assert_eq!(run(&gradient, &[ids, dout])[0].numbers(), expected);
    }
}

/// A tree of 7 tokens: where each subtree ends, and depths.
const END: [i32; 7] = [7, 5, 4, 4, 5, 7, 7];
const DEPTH: [i32; 7] = [0, 1, 2, 3, 2, 1, 2];

/// Attention in plain loops: queries `[N,K,G,H]`, keys and values `[N,K,H]`.
fn plain_attention(
    [q, k, v]: [&[f64]; 3],
    (heads, groups, size): (usize, usize, usize),
    unit: &Unit,
    (end, depth): (&[i32], &[i32]),
) -> Vec<f64> {
    let mut out = Vec::new();
    for token in 0..end.len() {
        for head in 0..heads * groups {
            let row = |x: &[f64], at: usize| x[(at * heads + head / groups) * size..][..size].to_vec();
            let query = &q[(token * heads * groups + head) * size..][..size];
            let near = |other: usize| unit.window.is_none_or(|w| ((depth[token] - depth[other]) as u64) < w);
            let visible: Vec<usize> =
                (0..=token).filter(|&other| (token as i32) < end[other] && near(other)).collect();
            let weights: Vec<f64> = visible
                .iter()
                .map(|&other| {
                    let product: f64 = query.iter().zip(row(k, other)).map(|(x, y)| x * y).sum();
                    let score = product * unit.scale.unwrap();
                    unit.softcap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..size).map(|lane| {
                let terms = visible.iter().zip(&weights).map(|(&other, w)| w / sum * row(v, other)[lane]);
                terms.sum::<f64>()
            }));
        }
    }
    out
}

fn variants(unit: impl Fn() -> Unit) -> [Unit; 4] {
    [unit(), unit().scaled(0.3), unit().softcapped(0.7).scaled(1.1), unit().windowed(2).softcapped(1.5)]
}

fn packed_inputs(unit: &Unit) -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> =
        unit.arguments[..3].iter().zip(1..).map(|(r#type, seed)| random(r#type, seed)).collect();
    inputs.push(Tensor::i32([7], END));
    if unit.window.is_some() {
        inputs.push(Tensor::i32([7], DEPTH));
    }
    inputs
}

#[test]
fn attention_equals_plain_loops_on_a_tree() {
    for (heads, groups, half) in [(1, 1, 1), (2, 3, 1), (3, 1, 2)] {
        for unit in variants(|| Unit::attention(&floats(&[7, heads, groups, 2, half]))) {
            let inputs = packed_inputs(&unit);
            let [q, k, v] = [0, 1, 2].map(|at| inputs[at].numbers());
            let extents = (heads as usize, groups as usize, 2 * half as usize);
            let expected = plain_attention([&q, &k, &v], extents, &unit, (&END, &DEPTH));
            close(&run(&unit, &inputs)[0].numbers(), &expected);
        }
    }
}

#[test]
fn attention_has_the_gradient_of_its_differences() {
    for unit in variants(|| Unit::attention(&floats(&[7, 2, 3, 2, 1]))) {
        let inputs = packed_inputs(&unit);
        let dout = random(&unit.results[0], 9);
        let gradients = run(&unit.attention_gradient(), &[inputs.clone(), vec![dout.clone()]].concat());
        for (at, gradient) in gradients.iter().enumerate() {
            let direction = random(&unit.arguments[at], 20 + at as u64).numbers();
            let moved = |by: f64| -> f64 {
                let mut inputs = inputs.clone();
                let numbers: Vec<f64> =
                    inputs[at].numbers().iter().zip(&direction).map(|(x, d)| x + by * d).collect();
                inputs[at] = Tensor::from_numbers(&unit.arguments[at], &numbers).unwrap();
                run(&unit, &inputs)[0].numbers().iter().zip(dout.numbers()).map(|(x, d)| x * d).sum()
            };
            let h = 1e-4;
            let expected = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
            let slope: f64 = gradient.numbers().iter().zip(&direction).map(|(g, d)| g * d).sum();
            assert!((slope - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{at}: {slope} {expected}");
        }
    }
}

/// All rows of one sequence in one call, its blocks out of order: the same as packed attention.
#[test]
fn attention_with_a_cache_equals_packed_attention() {
    let q = floats(&[19, 2, 3, 2, 1]);
    let (end, depth) = ([19; 19], std::array::from_fn::<i32, 19, _>(|at| at as i32));
    for unit in variants(|| Unit::attention_paged(&q, 4, 2)) {
        let mut inputs: Vec<Tensor> =
            unit.arguments[..5].iter().zip(1..).map(|(r#type, seed)| random(r#type, seed)).collect();
        inputs.push(Tensor::i32([19, 2], [3, 1].repeat(19)));
        inputs.push(Tensor::i32([19], depth));
        let [q, k, v] = [0, 1, 2].map(|at| inputs[at].numbers());
        let results = run(&unit, &inputs);
        close(&results[0].numbers(), &plain_attention([&q, &k, &v], (2, 3, 2), &unit, (&end, &depth)));
        let cache = results[2].numbers();
        assert_eq!(cache[3 * 64..][..64], v[..64], "block 3 holds positions 0..16");
        assert_eq!(cache[64..][..12], v[64..][..12], "block 1 holds the rest");
        assert_eq!(cache[..64], inputs[4].numbers()[..64], "block 0 is not touched");
    }
}

/// (source, expert, offsets) by sorting.
fn plain_route(scores: &[f64], [n, e, k, p, s]: [usize; 5]) -> [Vec<f64>; 3] {
    let (tokens, local) = (n / p, e / s);
    let rows = tokens * k.min(local);
    let best = |token: usize| {
        let score = |expert: usize| {
            let score = scores[token * e + expert];
            if score.is_nan() { f64::NEG_INFINITY } else { score }
        };
        let mut order: Vec<usize> = (0..e).collect();
        order.sort_by(|&x, &y| score(y).partial_cmp(&score(x)).unwrap().then(x.cmp(&y)));
        order[..k].to_vec()
    };
    let [mut source, mut expert, mut offsets] = [vec![], vec![], vec![]];
    for group in 0..p {
        for slot in 0..s {
            let mut found = Vec::new();
            for token in group * tokens..(group + 1) * tokens {
                found.extend(best(token).into_iter().filter(|x| x / local == slot).map(|x| (x, token)));
            }
            found.sort_unstable();
            let before = |end: usize| found.iter().filter(|row| row.0 < slot * local + end).count() as f64;
            offsets.extend((0..=local).map(before));
            assert!(found.len() <= rows);
            for row in 0..rows {
                let padding = (-1.0, (group * tokens) as f64);
                let (x, token) = found.get(row).map_or(padding, |&(x, token)| (x as f64, token as f64));
                expert.push(x);
                source.push(token);
            }
        }
    }
    [source, expert, offsets]
}

const ROUTINGS: [[usize; 5]; 8] = [
    [1, 1, 1, 1, 1],
    [7, 5, 2, 1, 1],
    [7, 5, 5, 1, 1],
    [6, 4, 3, 3, 2],
    [10, 6, 2, 2, 3],
    [12, 8, 3, 4, 4],
    [131, 3, 2, 1, 1],
    [134, 4, 1, 2, 2],
];

#[test]
fn routing_equals_sorting() {
    for (seed, extents) in (1..).zip(ROUTINGS) {
        let [n, e, k, p, s] = extents;
        let r#type = floats(&[n as u64, e as u64]);
        // Few distinct scores, so that many are equal; one is no number.
        let mut numbers: Vec<f64> =
            random(&r#type, seed).numbers().iter().map(|x| (x * 3.0).round() / 3.0).collect();
        numbers[(n * e) / 2] = f64::NAN;
        let scores = Tensor::from_numbers(&r#type, &numbers).unwrap();
        let results = run(&Unit::route(&r#type, k as u64, p as u64, s as u64), &[scores]);
        for (found, expected) in results.iter().zip(plain_route(&numbers, extents)) {
            assert_eq!(found.numbers(), expected, "{extents:?}");
        }
    }
}

#[test]
fn a_grouped_product_multiplies_each_row_by_its_experts_matrix() {
    let (d, f) = (3, 5);
    for (seed, extents) in (1..).zip(ROUTINGS) {
        let [_, e, k, p, s] = extents;
        let scores = random(&floats(&[extents[0] as u64, e as u64]), seed);
        let [_, expert, offsets] = plain_route(&scores.numbers(), extents);
        let (rows, local) = (expert.len() / (p * s), e / s);
        let shape = |last: usize| floats(&[p as u64, s as u64, rows as u64, last as u64]);
        let matrices = floats(&[s as u64, local as u64, f as u64, d as u64]);
        let [x, dy, w] = [shape(d), shape(f), matrices.clone()].map(|r#type| random(&r#type, seed + 30));
        let (xs, dys, ws) = (x.numbers(), dy.numbers(), w.numbers());
        let offsets =
            Tensor::from_numbers(&indices(&[p as u64, s as u64, local as u64 + 1]), &offsets).unwrap();
        let weight = |expert: f64, row: usize, column: usize| ws[(expert as usize * f + row) * d + column];
        let [mut y, mut dx, mut dw] =
            [vec![0.0; expert.len() * f], vec![0.0; expert.len() * d], vec![0.0; ws.len()]];
        for (at, &expert) in expert.iter().enumerate().filter(|row| *row.1 >= 0.0) {
            for row in 0..f {
                for column in 0..d {
                    y[at * f + row] += xs[at * d + column] * weight(expert, row, column);
                    dx[at * d + column] += dys[at * f + row] * weight(expert, row, column);
                    dw[(expert as usize * f + row) * d + column] += xs[at * d + column] * dys[at * f + row];
                }
            }
        }
        let unit = Unit::grouped(&shape(d), &matrices, k as u64);
        close(&run(&unit, &[x.clone(), w.clone(), offsets.clone()])[0].numbers(), &y);
        let backward = unit.grouped_rows_gradient();
        assert_eq!(backward, Unit::grouped_transposed(&shape(f), &matrices, k as u64));
        close(&run(&backward, &[dy.clone(), w, offsets.clone()])[0].numbers(), &dx);
        close(
            &run(&unit.grouped_weight_gradient(), &[x.clone(), dy.clone(), offsets.clone()])[0].numbers(),
            &dw,
        );
        // A transposed product's matrices have their gradient from the same unit, operands exchanged.
        let transposed = backward.grouped_weight_gradient();
        close(&run(&transposed, &[x, dy, offsets])[0].numbers(), &dw);
    }
}

/// Work is tokens × top-k, however experts and tokens are laid out.
#[test]
fn a_grouped_product_costs_the_rows_that_are_routed() {
    let (d, f) = (12_u64, 20_u64);
    for [n, e, k, p, s] in ROUTINGS.map(|extents| extents.map(|extent| extent as u64)) {
        let rows = n / p * k.min(e / s);
        let x = floats(&[p, s, rows, d]);
        let unit = Unit::grouped(&x, &floats(&[s, e / s, f, d]), k);
        for unit in [unit.grouped_rows_gradient(), unit.grouped_weight_gradient(), unit] {
            assert_eq!(unit.flops(), 2 * n * k * d * f, "{:?}", unit.kind);
        }
    }
}

#[test]
fn a_window_bounds_the_work_of_attention() {
    let q = floats(&[8, 1, 1, 2, 1]);
    let pairs = |unit: Unit| unit.flops() / (4 * 2);
    assert_eq!(pairs(Unit::attention(&q)), 36);
    assert_eq!(pairs(Unit::attention(&q).windowed(3)), 1 + 2 + 3 * 6);
    assert_eq!(pairs(Unit::attention(&q).windowed(100)), 36);
}
