//! Every kernel again, as plain loops: what the generated code is compared with.

use std::ops::Range;

use super::contraction::Offsets;
use super::{AttentionShape, Contraction, Dim, Error, Scores};

/// `c = Σ a · b`, or `c += Σ a · b`, summed in f64; slices begin at the operands' lowest address.
///
/// # Errors
/// Where the contraction's offsets overflow.
pub fn contract(
    contraction: &Contraction,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) -> Result<(), Error> {
    type Stride = fn(&Dim) -> isize;
    let (of_a, of_b, of_c): (Stride, Stride, Stride) = (|d| d.a, |d| d.b, |d| d.c);
    let Contraction { batch, m, n, k } = contraction;
    let table = |dims: &[Dim], stride: Stride| Offsets::new(dims, "reference", stride);
    let (batch_a, batch_b, batch_c) = (table(batch, of_a)?, table(batch, of_b)?, table(batch, of_c)?);
    let (a_m, a_k, b_k) = (table(m, of_a)?, table(k, of_a)?, table(k, of_b)?);
    let (b_n, c_m, c_n) = (table(n, of_b)?, table(m, of_c)?, table(n, of_c)?);
    for entry in 0..batch_a.len() {
        for row in 0..a_m.len() {
            for col in 0..b_n.len() {
                let sum: f64 = (0..a_k.len())
                    .map(|p| {
                        let a = a[(batch_a.at(entry) + a_m.at(row) + a_k.at(p)) as usize];
                        let b = b[(batch_b.at(entry) + b_k.at(p) + b_n.at(col)) as usize];
                        f64::from(a) * f64::from(b)
                    })
                    .sum();
                let at = (batch_c.at(entry) + c_m.at(row) + c_n.at(col)) as usize;
                c[at] = if accumulate { c[at] + sum as f32 } else { sum as f32 };
            }
        }
    }
    Ok(())
}

/// Softmax weights of one query row: (token, weight, slope of the score by q · k) for each token it sees, in depth
/// order.
fn weights(
    shape: &AttentionShape,
    (q, k): (&[f32], &[f32]),
    (subtree_end, position): (&[i32], &[i32]),
    options: &Scores,
    (token, head): (usize, usize),
) -> Vec<(usize, f64, f64)> {
    let q = &q[head_row(shape, token, head)];
    let sees = |&other: &usize| {
        let distance = i64::from(position[token]) - i64::from(position[other]);
        (token as i32) < subtree_end[other] && options.window.is_none_or(|window| distance < window as i64)
    };
    let score = |other: usize| {
        let scaled = f64::from(options.scale) * dot(q, &k[kv_row(shape, other, head)]);
        let bent = options.cap.map(f64::from).map(|cap| (cap, (scaled / cap).tanh()));
        bent.map_or((scaled, 1.0), |(cap, bent)| (cap * bent, 1.0 - bent * bent))
    };
    let scores: Vec<(usize, (f64, f64))> =
        (0..=token).filter(sees).map(|other| (other, score(other))).collect();
    let greatest = scores.iter().map(|(_, (score, _))| *score).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|(_, (score, _))| (score - greatest).exp()).sum();
    let weight = |(other, (score, bend)): (usize, (f64, f64))| {
        (other, (score - greatest).exp() / total, bend * f64::from(options.scale))
    };
    scores.into_iter().map(weight).collect()
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// Where query head `head` of `token` lies in q and out.
fn head_row(shape: &AttentionShape, token: usize, head: usize) -> Range<usize> {
    let start = token * shape.q_stride() + head * shape.head_dim;
    start..start + shape.head_dim
}

/// Where the key-value head that serves query head `head` of `token` lies in k and v.
fn kv_row(shape: &AttentionShape, token: usize, head: usize) -> Range<usize> {
    let start = token * shape.kv_stride() + head / shape.group * shape.head_dim;
    start..start + shape.head_dim
}

/// `out[i] = Σ_j softmax_j(scale · q[i] · k[j]) v[j]` over the tokens j that i sees; `tree` is subtree ends and positions.
pub fn attention(
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    tree: (&[i32], &[i32]),
    options: &Scores,
) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    for token in 0..shape.tokens {
        for head in 0..shape.kv_heads * shape.group {
            let mut sum = vec![0.0f64; shape.head_dim];
            for (other, weight, _) in weights(shape, (q, k), tree, options, (token, head)) {
                for (sum, &v) in sum.iter_mut().zip(&v[kv_row(shape, other, head)]) {
                    *sum += weight * f64::from(v);
                }
            }
            for (out, sum) in out[head_row(shape, token, head)].iter_mut().zip(sum) {
                *out = sum as f32;
            }
        }
    }
    out
}

/// Gradients of [`attention`] with respect to q, k and v.
pub fn attention_backward(
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    tree: (&[i32], &[i32]),
    options: &Scores,
    dout: &[f32],
) -> [Vec<f64>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for token in 0..shape.tokens {
        for head in 0..shape.kv_heads * shape.group {
            let row = head_row(shape, token, head);
            let weights = weights(shape, (q, k), tree, options, (token, head));
            let (q, dout) = (&q[row.clone()], &dout[row.clone()]);
            let slope = |other: usize| dot(dout, &v[kv_row(shape, other, head)]);
            let mean: f64 = weights.iter().map(|&(other, weight, _)| weight * slope(other)).sum();
            for &(other, weight, by_product) in &weights {
                let kv = kv_row(shape, other, head);
                let ds = weight * (slope(other) - mean) * by_product;
                for i in 0..shape.head_dim {
                    dq[row.start + i] += ds * f64::from(k[kv.start + i]);
                    dk[kv.start + i] += ds * f64::from(q[i]);
                    dv[kv.start + i] += weight * f64::from(dout[i]);
                }
            }
        }
    }
    [dq, dk, dv]
}
