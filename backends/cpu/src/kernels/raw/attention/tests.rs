//! Generated attention against plain loops, over random trees and head sizes, on every
//! instruction set of this machine, in memory that ends at a guard page; and the bits of a row, which only its history may change.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::super::guard::Guarded;
use super::*;
use crate::kernels::{Isa, Kernels, Machine, reference};

/// One lane, short vectors of each width, and whole ones.
const HEAD_DIMS: [usize; 6] = [1, 5, 8, 20, 33, 64];

fn all_kernels() -> &'static [Kernels] {
    static KERNELS: OnceLock<Vec<Kernels>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter_map(|isa| Machine::with_isa(isa).ok())
            .map(|machine| Kernels::new(&machine, &all_heads()).expect("kernels"))
            .collect()
    })
}

fn all_heads() -> Vec<Heads> {
    HEAD_DIMS.iter().flat_map(|&dim| [false, true].map(|capped| Heads { dim, capped })).collect()
}

fn values(count: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    (0..count).map(value).collect()
}

/// An attention over a packed tree, with its data.
#[derive(Debug)]
struct Case {
    shape: AttentionShape,
    subtree_end: Vec<i32>,
    position: Vec<i32>,
    scores: Scores,
    q: Guarded,
    k: Guarded,
    v: Guarded,
}

impl Case {
    fn new(
        parents: &[usize],
        (kv_heads, group, head_dim): (usize, usize, usize),
        (cap, window): (Option<f32>, Option<u64>),
    ) -> Self {
        let shape = AttentionShape { tokens: parents.len(), kv_heads, group, head_dim };
        let [q, kv] = [shape.q_stride(), shape.kv_stride()].map(|stride| stride * shape.tokens);
        let scale = 1.7 / (head_dim as f32).sqrt();
        let (q, k, v) = (values(q, 3), values(kv, 5), values(kv, 7));
        let [q, k, v] = [q, k, v].map(|floats| Guarded::new(&floats));
        let subtree_end = subtree_ends(parents);
        let mut case =
            Case { shape, position: Vec::new(), subtree_end, scores: Scores { scale, cap, window }, q, k, v };
        case.position = (0..parents.len()).map(|token| case.ancestors(token).len() as i32 - 1).collect();
        case
    }

    fn input(&self) -> AttentionInputs {
        AttentionInputs { q: self.q.as_ptr(), k: self.k.as_ptr(), v: self.v.as_ptr() }
    }

    fn tree(&self) -> PackedTree<'_> {
        PackedTree {
            shape: self.shape,
            subtree_end: &self.subtree_end,
            position: &self.position,
            scores: self.scores,
        }
    }

    fn heads(&self) -> Heads {
        Heads { dim: self.shape.head_dim, capped: self.scores.cap.is_some() }
    }

    fn ends_and_positions(&self) -> (&[i32], &[i32]) {
        (&self.subtree_end, &self.position)
    }

    fn slices(&self) -> [&[f32]; 3] {
        [&self.q, &self.k, &self.v]
    }

    /// Forward, heads and tokens taken in pieces that are cut at `cut`.
    fn forward(&self, kernels: &Kernels, cut: usize) -> Vec<f32> {
        let attention = kernels.attention(self.heads()).expect("head size");
        let mut out = Guarded::new(&vec![f32::NAN; self.q.len()]);
        let mut stack = vec![0; self.shape.tokens];
        let (head, token) = (cut % (self.shape.kv_heads + 1), cut % (self.shape.tokens + 1));
        for heads in [head..self.shape.kv_heads, 0..head] {
            for tokens in [token..self.shape.tokens, 0..token] {
                let part = Part { heads: heads.clone(), tokens };
                // SAFETY: the vectors hold the shape.
                unsafe {
                    let out = out.as_mut_ptr();
                    attention.forward(&self.tree(), self.input(), out, &part, &mut stack);
                }
            }
        }
        out.to_vec()
    }

    fn backward(&self, kernels: &Kernels, dout: &[f32], cut: usize) -> [Vec<f32>; 3] {
        let attention = kernels.attention(self.heads()).expect("head size");
        let [mut dq, mut dk, mut dv] = self.slices().map(|x| Guarded::new(&vec![f32::NAN; x.len()]));
        let gradients = AttentionGradients {
            dout: dout.as_ptr(),
            dq: dq.as_mut_ptr(),
            dk: dk.as_mut_ptr(),
            dv: dv.as_mut_ptr(),
        };
        let mut stack = vec![0; self.shape.tokens];
        let mut scratch = Guarded::new(&vec![f32::NAN; self.shape.backward_scratch_len()]);
        let head = cut % (self.shape.kv_heads + 1);
        for heads in [head..self.shape.kv_heads, 0..head] {
            let (tree, scratch) = (self.tree(), scratch.as_mut_ptr());
            // SAFETY: the vectors hold the shape.
            unsafe {
                attention.backward(&tree, self.input(), gradients, heads, &mut stack, scratch);
            }
        }
        [dq, dk, dv].map(|floats| floats.to_vec())
    }

    fn ancestors(&self, token: usize) -> Vec<usize> {
        (0..=token).filter(|&other| (token as i32) < self.subtree_end[other]).collect()
    }
}

/// Subtree ends of a preorder in which token i's parent is on the path to token i − 1.
fn subtree_ends(parents: &[usize]) -> Vec<i32> {
    let n = parents.len();
    let mut depth_path: Vec<usize> = Vec::new();
    let mut ends = vec![n as i32; n];
    for (token, &up) in parents.iter().enumerate() {
        // `up` says how many tokens of the path are left behind; all of them begins a new tree.
        for _ in 0..up.min(depth_path.len()) {
            if let Some(left) = depth_path.pop() {
                ends[left] = token as i32;
            }
        }
        depth_path.push(token);
    }
    ends
}

/// Mostly chains, with forks and new trees.
fn tree() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![8 => Just(0usize), 1 => 1usize..8, 1 => Just(1000)], 0..70)
}

fn case() -> impl Strategy<Value = Case> {
    let heads = (1usize..4, 1usize..4, prop::sample::select(&HEAD_DIMS[..]));
    let options = (prop::option::of(0.5f32..4.0), prop::option::of(1u64..40));
    (tree(), heads, options).prop_map(|(tree, heads, options)| Case::new(&tree, heads, options))
}

fn assert_close(ours: &[f32], expected: impl IntoIterator<Item = f64>) {
    for (i, (&x, y)) in ours.iter().zip(expected).enumerate() {
        let difference = (f64::from(x) - y).abs();
        assert!(difference <= 2e-5 * y.abs().max(1.0), "element {i}: {x}, expected {y}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn forward_equals_plain_loops(case in case(), cut: usize) {
        let expected = reference::attention(&case.shape, case.slices(), case.ends_and_positions(), &case.scores);
        for kernels in all_kernels() {
            let out = case.forward(kernels, 0);
            assert_close(&out, expected.iter().map(|&x| f64::from(x)));
            prop_assert_eq!(bits(&out), bits(&case.forward(kernels, cut)), "pieces change no bit");
        }
    }

    #[test]
    fn backward_equals_plain_loops(case in case(), cut: usize) {
        let dout = values(case.q.len(), 11);
        let expected = reference::attention_backward(
            &case.shape, case.slices(), case.ends_and_positions(), &case.scores, &dout);
        for kernels in all_kernels() {
            let gradients = case.backward(kernels, &dout, 0);
            let in_pieces = case.backward(kernels, &dout, cut);
            for ((ours, expected), pieces) in gradients.iter().zip(&expected).zip(&in_pieces) {
                assert_close(ours, expected.iter().copied());
                prop_assert_eq!(bits(ours), bits(pieces), "pieces change no bit");
            }
        }
    }

    #[test]
    fn a_path_decoded_through_a_cache_has_the_bits_of_the_packed_tree(
        case in case(),
        chosen: usize,
        rows_at_once in 1usize..9,
        shuffle in 0usize..50,
    ) {
        prop_assume!(case.shape.tokens > 0);
        let path = case.ancestors(chosen % case.shape.tokens);
        for kernels in all_kernels() {
            let packed = case.forward(kernels, 0);
            let decoded = decode(kernels, &case, &path, rows_at_once, shuffle);
            for (row, &token) in path.iter().enumerate() {
                let stride = case.shape.q_stride();
                let expected = &packed[token * stride..(token + 1) * stride];
                prop_assert_eq!(bits(&decoded[row * stride..(row + 1) * stride]), bits(expected));
            }
        }
    }
}

/// Decodes the tokens of `path`, some rows a step, in blocks that lie anywhere in the cache.
fn decode(kernels: &Kernels, case: &Case, path: &[usize], rows_at_once: usize, shuffle: usize) -> Vec<f32> {
    let attention = kernels.attention(case.heads()).expect("head size");
    let width = path.len().div_ceil(CACHE_BLOCK);
    let cache_shape = CacheShape { blocks: width + 50, table_width: width };
    let table: Vec<i32> = (0..width).map(|block| ((block + shuffle) % (width + 50)) as i32).collect();
    let floats = cache_shape.blocks * CACHE_BLOCK * case.shape.kv_stride();
    let (mut k_cache, mut v_cache) = (vec![f32::NAN; floats], vec![f32::NAN; floats]);
    let cache = Cache { k: k_cache.as_mut_ptr(), v: v_cache.as_mut_ptr() };
    let gather = |from: &[f32], stride: usize, tokens: &[usize]| -> Vec<f32> {
        tokens.iter().flat_map(|&token| from[token * stride..(token + 1) * stride].to_vec()).collect()
    };
    let mut decoded = Vec::new();
    let mut places = vec![0; path.len()];
    for (step, tokens) in path.chunks(rows_at_once).enumerate() {
        let shape = AttentionShape { tokens: tokens.len(), ..case.shape };
        let position: Vec<i32> = (0..tokens.len()).map(|row| (step * rows_at_once + row) as i32).collect();
        let block_table = table.repeat(tokens.len());
        cache_shape.check(&shape, &block_table, &position).expect("tables fit");
        let pages = Pages {
            shape,
            cache: cache_shape,
            block_table: &block_table,
            position: &position,
            scores: case.scores,
        };
        let q = gather(&case.q, shape.q_stride(), tokens);
        let k = gather(&case.k, shape.kv_stride(), tokens);
        let v = gather(&case.v, shape.kv_stride(), tokens);
        let input = AttentionInputs { q: q.as_ptr(), k: k.as_ptr(), v: v.as_ptr() };
        let mut out = vec![f32::NAN; q.len()];
        // SAFETY: the vectors hold their shapes, and the tables were checked.
        unsafe {
            let part = Part { heads: 0..shape.kv_heads, tokens: 0..tokens.len() };
            attention.write_cache(&pages, input, cache, 0..tokens.len());
            let out = out.as_mut_ptr();
            attention.attend_paged(&pages, q.as_ptr(), cache, out, &part, &mut places);
        }
        decoded.extend(out);
    }
    decoded
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::new(&[0; 40], (1, 1, 8), (None, None));
    case.scores.scale = 300.0;
    for kernels in all_kernels() {
        let out = case.forward(kernels, 0);
        let expected =
            reference::attention(&case.shape, case.slices(), case.ends_and_positions(), &case.scores);
        for (x, y) in out.iter().zip(&expected) {
            assert!((x - y).abs() < 2e-3, "{x}, expected {y}");
        }
    }
}
