//! Calls the attention kernels, one query row after the other.

use std::ops::Range;
use std::sync::Arc;

use super::jit::Jit;
use crate::kernels::attention::{Ancestors, AttentionShape, CACHE_BLOCK, CacheShape};
use crate::kernels::{Error, names};

type Attend = unsafe extern "C" fn(i64, *const i32, *const f32, *const f32, *const f32, i64, f32, *mut f32);
type Backward = unsafe extern "C" fn(
    i64,
    *const i32,
    *const f32,
    *const f32,
    *const f32,
    i64,
    f32,
    *const f32,
    *mut f32,
    *mut f32,
    *mut f32,
    *mut f32,
);

/// The compiled attention of one head size.
pub struct AttentionKernels {
    head_dim: usize,
    attend: Attend,
    backward: Backward,
    _code: Arc<Jit>,
}

/// The three inputs of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs {
    /// `[N, K, G, Dh]`
    pub q: *const f32,
    /// `[N, K, Dh]`
    pub k: *const f32,
    /// `[N, K, Dh]`
    pub v: *const f32,
}

/// The gradient of the output, and those of the inputs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradients {
    /// `[N, K, G, Dh]`, read.
    pub dout: *const f32,
    /// `[N, K, G, Dh]`
    pub dq: *mut f32,
    /// `[N, K, Dh]`
    pub dk: *mut f32,
    /// `[N, K, Dh]`
    pub dv: *mut f32,
}

/// A paged cache, `[blocks, 16, K, Dh]` each.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Keys.
    pub k: *mut f32,
    /// Values.
    pub v: *mut f32,
}

/// Attention of tokens to their ancestors.
#[derive(Clone, Copy, Debug)]
pub struct PackedTree<'a> {
    /// Extents.
    pub shape: AttentionShape,
    /// `[N]`; passed [`AttentionShape::check_tree`].
    pub subtree_end: &'a [i32],
    /// Multiplies q · k.
    pub scale: f32,
}

/// Attention of rows to a cache, and which of the cache's rows are theirs.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Extents; the tokens are the step's rows.
    pub shape: AttentionShape,
    /// Extents of cache and table.
    pub cache: CacheShape,
    /// `[S, table_width]`; passed [`CacheShape::check`].
    pub block_table: &'a [i32],
    /// `[S]`; passed [`CacheShape::check`].
    pub position: &'a [i32],
    /// Multiplies q · k.
    pub scale: f32,
}

/// What one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Key-value heads, with the query heads of each.
    pub heads: Range<usize>,
    /// Tokens, or rows of a decode step.
    pub tokens: Range<usize>,
}

/// Cuts an attention into parts for `threads` that may run at once: heads first, then blocks of tokens.
pub fn parts(shape: &AttentionShape, threads: usize) -> Vec<Part> {
    /// Tokens of a block: few enough to share, many enough that finding their ancestors costs nothing.
    const TOKENS: usize = 64;
    if threads <= 1 {
        return vec![Part { heads: 0..shape.kv_heads, tokens: 0..shape.tokens }];
    }
    let block = shape.tokens.div_ceil(2 * threads).clamp(1, TOKENS);
    let blocks = || (0..shape.tokens).step_by(block).map(|start| start..shape.tokens.min(start + block));
    // Later tokens see more: they come first, so that no long part is left over.
    (0..shape.kv_heads)
        .flat_map(|head| blocks().rev().map(move |tokens| Part { heads: head..head + 1, tokens }))
        .collect()
}

impl Pages<'_> {
    /// The cache's row of position `at` of row `row`.
    fn place(&self, row: usize, at: usize) -> i32 {
        let block = self.block_table[row * self.cache.table_width + at / CACHE_BLOCK];
        block * CACHE_BLOCK as i32 + (at % CACHE_BLOCK) as i32
    }
}

impl AttentionKernels {
    /// Looks up what `Kernels` compiled for `head_dim`.
    pub(in crate::kernels) fn new(code: &Arc<Jit>, head_dim: usize) -> Result<Self, Error> {
        let (attend, backward) = (names::attend(head_dim), names::attend_backward(head_dim));
        // SAFETY: `emit_attend` and `emit_backward` gave these names exactly these signatures, and `_code` keeps them.
        let (attend, backward) = unsafe { (code.function(&attend)?, code.function(&backward)?) };
        Ok(AttentionKernels { head_dim, attend, backward, _code: code.clone() })
    }

    /// The head size they are for.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `out[i] = Σ_j softmax_j(scale · q[i] · k[j]) v[j]` over the tokens j that token i sees, for
    /// the part's tokens and heads.
    ///
    /// # Safety
    /// `input` and `out` hold the tree's shape, whose head size is [`AttentionKernels::head_dim`];
    /// the part is inside it; nobody else touches its elements of `out` meanwhile.
    ///
    /// # Panics
    /// Where `stack` or the tree is shorter than the tokens.
    pub unsafe fn forward(
        &self,
        tree: &PackedTree,
        input: AttentionInputs,
        out: *mut f32,
        part: &Part,
        stack: &mut [i32],
    ) {
        let places = stack.len().min(tree.subtree_end.len());
        assert!(places >= part.tokens.end, "a place for each token");
        let query = Query { shape: &tree.shape, scale: tree.scale, input, out };
        let mut ancestors = Ancestors::new(tree.subtree_end, stack);
        for token in 0..part.tokens.end {
            let Some(rows) = ancestors.advance() else {
                return;
            };
            if token >= part.tokens.start {
                // SAFETY: by the caller's promise; ancestors are tokens.
                unsafe { self.attend_row(&query, token, part.heads.clone(), rows) };
            }
        }
    }

    /// One token's query heads over the key rows `rows`.
    ///
    /// # Safety
    /// The query's tensors hold its shape; token and heads are inside it; `rows` is not empty and
    /// inside k and v.
    unsafe fn attend_row(&self, query: &Query, token: usize, heads: Range<usize>, rows: &[i32]) {
        let Query { shape, scale, input, out } = *query;
        let (count, stride) = (rows.len() as i64, shape.kv_stride() as i64);
        for head in heads {
            let kv = head * shape.head_dim;
            for member in 0..shape.group {
                let at = q_offset(shape, token, head, member);
                // SAFETY: head and token are inside the tensors, by the caller's promise.
                unsafe {
                    let (q, k, v) = (input.q.add(at), input.k.add(kv), input.v.add(kv));
                    (self.attend)(count, rows.as_ptr(), q, k, v, stride, scale, out.add(at));
                }
            }
        }
    }

    /// Gradients of [`AttentionKernels::forward`] for key-value heads, all tokens.
    ///
    /// Contributions to dk and dv are added in the order of tokens, then of the group's members.
    ///
    /// # Safety
    /// As `forward`; the gradients hold the tree's shape, and nobody else touches these heads'
    /// elements of dq, dk and dv meanwhile; `scratch` has
    /// [`AttentionShape::backward_scratch_len`] floats of this thread's own.
    ///
    /// # Panics
    /// As `forward`.
    pub unsafe fn backward(
        &self,
        tree: &PackedTree,
        input: AttentionInputs,
        gradients: AttentionGradients,
        heads: Range<usize>,
        stack: &mut [i32],
        scratch: *mut f32,
    ) {
        let shape = &tree.shape;
        let places = stack.len().min(tree.subtree_end.len());
        assert!(places >= shape.tokens, "a place for each token");
        for token in 0..shape.tokens {
            let at = token * shape.kv_stride() + heads.start * shape.head_dim;
            let floats = heads.len() * shape.head_dim;
            // SAFETY: these heads of this token are ours to write.
            unsafe {
                gradients.dk.add(at).write_bytes(0, floats);
                gradients.dv.add(at).write_bytes(0, floats);
            }
        }
        let stride = shape.kv_stride() as i64;
        let mut ancestors = Ancestors::new(tree.subtree_end, stack);
        for token in 0..shape.tokens {
            let Some(rows) = ancestors.advance() else {
                return;
            };
            let (count, rows) = (rows.len() as i64, rows.as_ptr());
            for (head, member) in heads.clone().flat_map(|h| (0..shape.group).map(move |m| (h, m))) {
                let (at, kv) = (q_offset(shape, token, head, member), head * shape.head_dim);
                // SAFETY: head, token and ancestors are inside the tensors, by the caller's promise.
                unsafe {
                    let (q, k, v) = (input.q.add(at), input.k.add(kv), input.v.add(kv));
                    let (dout, dq) = (gradients.dout.add(at), gradients.dq.add(at));
                    let (dk, dv) = (gradients.dk.add(kv), gradients.dv.add(kv));
                    (self.backward)(count, rows, q, k, v, stride, tree.scale, dout, scratch, dq, dk, dv);
                }
            }
        }
    }

    /// Writes the keys and values of `rows` to their places in the cache; `input.q` is not read.
    ///
    /// All rows must be written before [`AttentionKernels::attend_paged`] reads any of them.
    ///
    /// # Safety
    /// `input.k` and `input.v` hold the pages' shape, `cache` their cache's; `rows` are rows of
    /// theirs; nobody else touches the cache meanwhile, but for other rows' places.
    pub unsafe fn write_cache(
        &self,
        pages: &Pages,
        input: AttentionInputs,
        cache: Cache,
        rows: Range<usize>,
    ) {
        let floats = pages.shape.kv_stride();
        for row in rows {
            let place = pages.place(row, pages.position[row] as usize) as usize;
            let (from, to) = (row * floats, place * floats);
            // SAFETY: both rows are inside their tensors, which are distinct, by the caller's promise.
            unsafe {
                cache.k.add(to).copy_from_nonoverlapping(input.k.add(from), floats);
                cache.v.add(to).copy_from_nonoverlapping(input.v.add(from), floats);
            }
        }
    }

    /// Attention of the part's rows over positions `0..=position` of their blocks: the bits of
    /// [`AttentionKernels::forward`] for the same history.
    ///
    /// # Safety
    /// As [`AttentionKernels::write_cache`], which ran for all rows; `q` and `out` hold the pages'
    /// shape; nobody else touches the part's elements of `out`, or writes to the cache.
    ///
    /// # Panics
    /// Where `places` is shorter than the longest history.
    pub unsafe fn attend_paged(
        &self,
        pages: &Pages,
        q: *const f32,
        cache: Cache,
        out: *mut f32,
        part: &Part,
        places: &mut [i32],
    ) {
        let input = AttentionInputs { q, k: cache.k, v: cache.v };
        let query = Query { shape: &pages.shape, scale: pages.scale, input, out };
        for row in part.tokens.clone() {
            let places = &mut places[..pages.position[row] as usize + 1];
            for (at, place) in places.iter_mut().enumerate() {
                *place = pages.place(row, at);
            }
            // SAFETY: by the caller's promise the places are inside the cache.
            unsafe { self.attend_row(&query, row, part.heads.clone(), places) };
        }
    }
}

/// What every query row of a call has in common.
struct Query<'s> {
    shape: &'s AttentionShape,
    scale: f32,
    input: AttentionInputs,
    out: *mut f32,
}

/// Where a query head lies in q and out.
fn q_offset(shape: &AttentionShape, token: usize, head: usize, member: usize) -> usize {
    token * shape.q_stride() + (head * shape.group + member) * shape.head_dim
}

#[cfg(test)]
mod tests;
