//! Calls the attention kernels, one query row after the other.

use std::ops::Range;
use std::sync::Arc;

use super::jit::Jit;
use crate::kernels::attention::{Ancestors, AttentionShape, CACHE_BLOCK, CacheShape};
use crate::kernels::{Error, names};

type Attend =
    unsafe extern "C" fn(i64, *const i32, *const f32, *const f32, *const f32, i64, f32, *mut f32);
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

/// The gradients of the inputs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradients {
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

/// Which rows of a cache belong to each row of a decode step.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Extents of cache and table.
    pub shape: CacheShape,
    /// `[S, table_width]`
    pub block_table: &'a [i32],
    /// `[S]`
    pub position: &'a [i32],
}

impl Pages<'_> {
    /// The cache's row of position `at` of row `row`.
    fn place(&self, row: usize, at: usize) -> i32 {
        let block = self.block_table[row * self.shape.table_width + at / CACHE_BLOCK];
        block * CACHE_BLOCK as i32 + (at % CACHE_BLOCK) as i32
    }
}

impl AttentionKernels {
    /// Looks up what `Kernels` compiled for `head_dim`.
    pub(in crate::kernels) fn new(code: &Arc<Jit>, head_dim: usize) -> Result<Self, Error> {
        let (attend, backward) = (names::attend(head_dim), names::attend_backward(head_dim));
        // SAFETY: `emit_attend` and `emit_backward` gave these names exactly these signatures, and `_code` keeps them.
        let (attend, backward) = unsafe { (code.function(&attend)?, code.function(&backward)?) };
        Ok(AttentionKernels {
            head_dim,
            attend,
            backward,
            _code: code.clone(),
        })
    }

    /// The head size they are for.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `out[i] = Σ_j softmax_j(scale · q[i] · k[j]) v[j]` over the tokens j that `tokens` i see,
    /// for the query heads of `heads`.
    ///
    /// Threads may take different heads or tokens of the same tensors.
    ///
    /// # Safety
    /// `input` and `out` hold `shape`, whose head size is [`AttentionKernels::head_dim`];
    /// `subtree_end` has an entry a token; nobody else touches out's rows of these heads and tokens.
    ///
    /// # Panics
    /// Where `stack` or `subtree_end` is shorter than the tokens.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn forward(
        &self,
        shape: &AttentionShape,
        input: AttentionInputs,
        subtree_end: &[i32],
        scale: f32,
        out: *mut f32,
        heads: Range<usize>,
        tokens: Range<usize>,
        stack: &mut [i32],
    ) {
        assert!(
            stack.len().min(subtree_end.len()) >= tokens.end,
            "a place for each token"
        );
        let mut ancestors = Ancestors::new(subtree_end, stack);
        for token in 0..tokens.end {
            let Some(rows) = ancestors.advance() else {
                return;
            };
            if token >= tokens.start {
                // SAFETY: by the caller's promise; ancestors are tokens.
                unsafe { self.attend_row(shape, input, rows, token, scale, out, heads.clone()) };
            }
        }
    }

    /// One query row over the key rows `rows`, for the query heads of `heads`.
    ///
    /// # Safety
    /// As [`AttentionKernels::forward`], with `rows` not empty and inside k and v.
    #[allow(clippy::too_many_arguments)]
    unsafe fn attend_row(
        &self,
        shape: &AttentionShape,
        input: AttentionInputs,
        rows: &[i32],
        token: usize,
        scale: f32,
        out: *mut f32,
        heads: Range<usize>,
    ) {
        let (dim, stride) = (shape.head_dim, shape.kv_stride() as i64);
        for head in heads {
            for member in 0..shape.group {
                let at = token * shape.q_stride() + (head * shape.group + member) * dim;
                // SAFETY: head and token are inside the tensors, by the caller's promise.
                unsafe {
                    let (k, v) = (input.k.add(head * dim), input.v.add(head * dim));
                    let (q, out) = (input.q.add(at), out.add(at));
                    (self.attend)(
                        rows.len() as i64,
                        rows.as_ptr(),
                        q,
                        k,
                        v,
                        stride,
                        scale,
                        out,
                    );
                }
            }
        }
    }

    /// Gradients of [`AttentionKernels::forward`] for the key-value heads `heads`, all tokens.
    ///
    /// Contributions to dk and dv are added in the order of tokens, then of the group's members.
    /// Threads may take different heads.
    ///
    /// # Safety
    /// As `forward`; `dout` is laid out as out and `gradients` as `input`, which is written for
    /// these heads alone; `scratch` has [`AttentionShape::backward_scratch_len`] floats of this
    /// thread's own.
    ///
    /// # Panics
    /// As `forward`.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn backward(
        &self,
        shape: &AttentionShape,
        input: AttentionInputs,
        subtree_end: &[i32],
        scale: f32,
        dout: *const f32,
        gradients: AttentionGradients,
        heads: Range<usize>,
        stack: &mut [i32],
        scratch: *mut f32,
    ) {
        assert!(
            stack.len().min(subtree_end.len()) >= shape.tokens,
            "a place for each token"
        );
        let dim = shape.head_dim;
        for token in 0..shape.tokens {
            for head in heads.clone() {
                let at = token * shape.kv_stride() + head * dim;
                // SAFETY: the head's row of this token is ours to write.
                unsafe {
                    gradients.dk.add(at).write_bytes(0, dim);
                    gradients.dv.add(at).write_bytes(0, dim);
                }
            }
        }
        let mut ancestors = Ancestors::new(subtree_end, stack);
        for token in 0..shape.tokens {
            let Some(rows) = ancestors.advance() else {
                return;
            };
            for head in heads.clone() {
                for member in 0..shape.group {
                    let at = token * shape.q_stride() + (head * shape.group + member) * dim;
                    let kv = head * dim;
                    // SAFETY: head, token and ancestors are inside the tensors, by the caller's promise.
                    unsafe {
                        (self.backward)(
                            rows.len() as i64,
                            rows.as_ptr(),
                            input.q.add(at),
                            input.k.add(kv),
                            input.v.add(kv),
                            shape.kv_stride() as i64,
                            scale,
                            dout.add(at),
                            scratch,
                            gradients.dq.add(at),
                            gradients.dk.add(kv),
                            gradients.dv.add(kv),
                        );
                    }
                }
            }
        }
    }

    /// Writes the keys and values of `rows` to their places in the cache.
    ///
    /// All rows must be written before [`AttentionKernels::attend_paged`] reads any of them.
    ///
    /// # Safety
    /// `input.k` and `input.v` hold `shape`; the cache holds `pages.shape`; `pages` passed
    /// [`CacheShape::check`]; nobody else touches the cache meanwhile.
    pub unsafe fn write_cache(
        &self,
        shape: &AttentionShape,
        input: AttentionInputs,
        cache: Cache,
        pages: &Pages,
        rows: Range<usize>,
    ) {
        let floats = shape.kv_stride();
        for row in rows {
            let to = pages.place(row, pages.position[row] as usize) as usize * floats;
            // SAFETY: both rows are inside their tensors, which are distinct, by the caller's promise.
            unsafe {
                cache
                    .k
                    .add(to)
                    .copy_from_nonoverlapping(input.k.add(row * floats), floats);
                cache
                    .v
                    .add(to)
                    .copy_from_nonoverlapping(input.v.add(row * floats), floats);
            }
        }
    }

    /// Attention of `rows` over positions `0..=position` of their blocks, for the query heads of
    /// `heads`: the bits of [`AttentionKernels::forward`] for the same history.
    ///
    /// # Safety
    /// As [`AttentionKernels::write_cache`], which ran for all rows; `q` and `out` hold `shape`.
    ///
    /// # Panics
    /// Where `places` is shorter than the longest history.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn attend_paged(
        &self,
        shape: &AttentionShape,
        q: *const f32,
        cache: Cache,
        pages: &Pages,
        scale: f32,
        out: *mut f32,
        heads: Range<usize>,
        rows: Range<usize>,
        places: &mut [i32],
    ) {
        for row in rows {
            let places = &mut places[..pages.position[row] as usize + 1];
            for (at, place) in places.iter_mut().enumerate() {
                *place = pages.place(row, at);
            }
            let input = AttentionInputs {
                q,
                k: cache.k,
                v: cache.v,
            };
            // SAFETY: by the caller's promise the places are inside the cache.
            unsafe { self.attend_row(shape, input, places, row, scale, out, heads.clone()) };
        }
    }
}

#[cfg(test)]
mod tests;
