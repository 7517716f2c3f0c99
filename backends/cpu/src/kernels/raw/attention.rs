//! Calls the attention kernels: tiles of query rows whose pasts lie within each other, block by block of depths.

use std::ops::Range;
use std::sync::Arc;

use super::jit::Jit;
use crate::kernels::attention::{
    Ancestors, AttentionShape, CACHE_BLOCK, CacheShape, Heads, MAX_HEAD_DIM, Scores,
};
use crate::kernels::emit::attention::BLOCK;
use crate::kernels::{Error, Machine, names};

type Keys = unsafe extern "C" fn(*const f32, *const i64, *mut f32);
type Attend = unsafe extern "C" fn(
    *const f32,
    *mut f32,
    *const i64,
    *mut f32,
    *const i64,
    *const f32,
    *const f32,
    *const i64,
    f32,
    f32,
);
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
    f32,
);

/// The compiled attention of one kind of heads.
pub struct AttentionKernels {
    heads: Heads,
    keys: Keys,
    /// Rows of each kernel, most first, down to one.
    attend: Vec<(usize, Attend)>,
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
    /// `[N]` where there is a window; passed [`AttentionShape::check_positions`].
    pub position: &'a [i32],
    /// How scores are made.
    pub scores: Scores,
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
    /// How scores are made.
    pub scores: Scores,
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

    /// How many of the first positions row `row` does not see any more.
    fn unseen(&self, row: usize) -> usize {
        let seen = self.position[row] as usize + 1;
        self.scores
            .window
            .map_or(0, |window| seen.saturating_sub(usize::try_from(window).unwrap_or(usize::MAX)))
    }

    /// Whether a row is the position after that of the row before, in the same blocks.
    fn follows(&self, row: usize) -> bool {
        let (width, used) = (self.cache.table_width, self.position[row] as usize / CACHE_BLOCK + 1);
        let blocks = |row: usize| &self.block_table[row * width..][..used];
        let shared = self.position[row - 1] as usize / CACHE_BLOCK + 1;
        self.position[row] == self.position[row - 1] + 1 && blocks(row)[..shared] == blocks(row - 1)[..shared]
    }
}

impl PackedTree<'_> {
    /// How many of the first rows of its past, `rows`, a token does not see any more.
    fn unseen(&self, token: usize, rows: &[i32]) -> usize {
        let Some(window) = self.scores.window else { return 0 };
        let least = i64::from(self.position[token]) - i64::try_from(window).unwrap_or(i64::MAX);
        rows.partition_point(|&row| i64::from(self.position[row as usize]) <= least)
    }
}

impl AttentionKernels {
    /// Looks up what `Kernels` compiled for `heads`.
    pub(in crate::kernels) fn new(code: &Arc<Jit>, machine: &Machine, heads: Heads) -> Result<Self, Error> {
        let Heads { dim, capped } = heads;
        let backward = names::attend_backward(dim, capped);
        // SAFETY: `emit_keys` and `emit_backward` gave these names exactly these signatures, and `_code` keeps them.
        let (keys, backward) =
            unsafe { (code.function(&names::attend_keys(dim, capped))?, code.function(&backward)?) };
        let attend = names::attend_shapes(machine, dim, capped)
            .into_iter()
            // SAFETY: as above, for `emit_attend`.
            .map(|shape| Ok((shape.rows, unsafe { code.function(&names::attend(shape))? })))
            .collect::<Result<_, Error>>()?;
        Ok(AttentionKernels { heads, keys, attend, backward, _code: code.clone() })
    }

    /// The heads they are for.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// `out[i] = Σ_j softmax_j(scale · q[i] · k[j]) v[j]` over the tokens j that token i sees, for
    /// the part's tokens and heads.
    ///
    /// # Safety
    /// `input` and `out` hold the tree's shape, whose head size is that of [`AttentionKernels::heads`], as is
    /// whether scores are capped; the part is inside it; nobody else touches its elements of `out` meanwhile.
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
        let query = Query { shape: &tree.shape, scores: tree.scores, input, out };
        let mut ancestors = Ancestors::new(tree.subtree_end, stack);
        // Tokens in a row, each the parent of the next, share a tile; so many of the first rows each no longer sees.
        let mut unseen = [0; TILE_ROWS];
        let mut tile = part.tokens.start..part.tokens.start;
        for token in 0..part.tokens.end {
            let Some(rows) = ancestors.advance() else {
                return;
            };
            if token < part.tokens.start {
                continue;
            }
            unseen[tile.len()] = tree.unseen(token, rows);
            tile.end = token + 1;
            let is_parent = tree.subtree_end[token] as usize > token + 1 && token + 1 < part.tokens.end;
            if !is_parent || tile.len() == query.tile_tokens() {
                for head in part.heads.clone() {
                    // SAFETY: by the caller's promise; ancestors are tokens.
                    unsafe { self.tile(&query, tile.clone(), head, rows, &unseen[..tile.len()]) };
                }
                tile.start = token + 1;
            }
        }
    }

    /// The query heads of a key-value head for `tokens`, of which the last one's past is `rows`, and each one's past
    /// that of the next without its last row.
    ///
    /// # Safety
    /// The query's tensors hold its shape; tokens and head are inside it; `rows` is at least as long as `tokens` and
    /// inside k and v.
    unsafe fn tile(&self, query: &Query, tokens: Range<usize>, head: usize, rows: &[i32], unseen: &[usize]) {
        let most = TILE_ROWS / tokens.len();
        for first in (0..query.shape.group).step_by(most) {
            let members = first..query.shape.group.min(first + most);
            let mut tile = Tile::new(query, tokens.clone(), head, members, (rows.len(), unseen));
            // SAFETY: by the caller's promise.
            unsafe { self.run(query, &mut tile, head, rows) };
        }
    }

    /// All blocks of a tile.
    ///
    /// # Safety
    /// As [`AttentionKernels::tile`].
    unsafe fn run(&self, query: &Query, tile: &mut Tile, head: usize, rows: &[i32]) {
        let Query { shape, scores, input, out } = *query;
        let (dim, kv) = (shape.head_dim, head * shape.head_dim);
        for &at in &tile.offsets[..tile.count] {
            // SAFETY: a head of the output, which is ours to write.
            unsafe { out.add(at as usize).write_bytes(0, dim) };
        }
        let cap = scores.cap.unwrap_or(1.0);
        // As large as the largest head; not read where it was not written.
        let mut keys = [const { std::mem::MaybeUninit::<f32>::uninit() }; MAX_HEAD_DIM * BLOCK];
        let keys = keys.as_mut_ptr().cast::<f32>();
        for first in (tile.seen[0].start / BLOCK * BLOCK..rows.len()).step_by(BLOCK) {
            let mut places = [0i64; BLOCK];
            for (t, place) in places.iter_mut().enumerate() {
                let row = rows[(first + t).min(rows.len() - 1)];
                *place = i64::from(row) * shape.kv_stride() as i64;
            }
            // SAFETY: `places` are rows of k, and the keys have room for a block of heads.
            unsafe { (self.keys)(input.k.add(kv), places.as_ptr(), keys) };
            let mut active = tile.active(first);
            while !active.is_empty() {
                let (height, attend) = self.fitting(active.len());
                let seen = tile.seen_in(first, active.start, height);
                let (offsets, state) = (
                    &tile.offsets[active.start..],
                    &mut tile.state[2 * active.start..2 * (active.start + height)],
                );
                // SAFETY: so many rows follow in each array; offsets are heads of q and out, places rows of v.
                unsafe {
                    attend(
                        input.q,
                        out,
                        offsets.as_ptr(),
                        state.as_mut_ptr(),
                        seen.as_ptr(),
                        keys,
                        input.v.add(kv),
                        places.as_ptr(),
                        scores.scale,
                        cap,
                    );
                }
                active.start += height;
            }
        }
        for (&at, state) in tile.offsets[..tile.count].iter().zip(tile.state.chunks(2)) {
            let inverse = 1.0 / state[1];
            // SAFETY: a head of the output, initialised above.
            let row = unsafe { std::slice::from_raw_parts_mut(out.add(at as usize), dim) };
            row.iter_mut().for_each(|value| *value *= inverse);
        }
    }

    /// The highest kernel of at most `rows` rows.
    fn fitting(&self, rows: usize) -> (usize, Attend) {
        let fits = self.attend.iter().copied().find(|(height, _)| *height <= rows);
        fits.unwrap_or(self.attend[self.attend.len() - 1])
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
            let rows = &rows[tree.unseen(token, rows)..];
            let (count, rows) = (rows.len() as i64, rows.as_ptr());
            let Scores { scale, cap, .. } = tree.scores;
            let cap = cap.unwrap_or(1.0);
            for (head, member) in heads.clone().flat_map(|h| (0..shape.group).map(move |m| (h, m))) {
                let (at, kv) = (q_offset(shape, token, head, member), head * shape.head_dim);
                // SAFETY: head, token and ancestors are inside the tensors, by the caller's promise.
                unsafe {
                    let (q, k, v) = (input.q.add(at), input.k.add(kv), input.v.add(kv));
                    let (dout, dq) = (gradients.dout.add(at), gradients.dq.add(at));
                    let (dk, dv) = (gradients.dk.add(kv), gradients.dv.add(kv));
                    (self.backward)(count, rows, q, k, v, stride, scale, dout, scratch, dq, dk, dv, cap);
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
        let query = Query { shape: &pages.shape, scores: pages.scores, input, out };
        let mut unseen = [0; TILE_ROWS];
        let mut first = part.tokens.start;
        while first < part.tokens.end {
            let most = part.tokens.end.min(first + query.tile_tokens());
            let end = (first + 1..most).find(|&row| !pages.follows(row)).unwrap_or(most);
            let places = &mut places[..pages.position[end - 1] as usize + 1];
            for (at, place) in places.iter_mut().enumerate() {
                *place = pages.place(end - 1, at);
            }
            for (row, unseen) in (first..end).zip(&mut unseen) {
                *unseen = pages.unseen(row);
            }
            for head in part.heads.clone() {
                // SAFETY: by the caller's promise the places are inside the cache.
                unsafe { self.tile(&query, first..end, head, places, &unseen[..end - first]) };
            }
            first = end;
        }
    }
}

/// Rows of a tile, tokens times members of a group: enough that laying out the keys costs little.
const TILE_ROWS: usize = 64;

/// Query rows whose pasts lie within each other, shortest first.
struct Tile {
    count: usize,
    /// Where each row's head lies in q and out.
    offsets: [i64; TILE_ROWS],
    /// The depths that each row sees.
    seen: [Range<usize>; TILE_ROWS],
    /// Greatest score and sum of exponentials of each row.
    state: [f32; 2 * TILE_ROWS],
}

impl Tile {
    /// `tokens` × `members` of a key-value head; the last token sees `depth` rows but the first `unseen`.
    fn new(
        query: &Query,
        tokens: Range<usize>,
        head: usize,
        members: Range<usize>,
        (depth, unseen): (usize, &[usize]),
    ) -> Self {
        let mut tile = Tile {
            count: tokens.len() * members.len(),
            offsets: [0; TILE_ROWS],
            seen: [const { 0..0 }; TILE_ROWS],
            state: [0.0; 2 * TILE_ROWS],
        };
        for (index, token) in tokens.clone().enumerate() {
            for (number, member) in members.clone().enumerate() {
                let row = index * members.len() + number;
                tile.offsets[row] = q_offset(query.shape, token, head, member) as i64;
                tile.seen[row] = unseen[index]..depth + 1 + index - tokens.len();
                tile.state[2 * row] = f32::NEG_INFINITY;
            }
        }
        tile
    }

    /// The rows that see some of the block at `first`: both bounds grow with the rows.
    fn active(&self, first: usize) -> Range<usize> {
        let seen = &self.seen[..self.count];
        let start = seen.iter().position(|seen| seen.end > first).unwrap_or(self.count);
        let end = seen.iter().rposition(|seen| seen.start < first + BLOCK).map_or(0, |last| last + 1);
        start..end
    }

    /// The depths of the block at `first` that each of `count` rows sees, first and end.
    fn seen_in(&self, first: usize, row: usize, count: usize) -> [i64; 2 * TILE_ROWS] {
        let mut bounds = [0; 2 * TILE_ROWS];
        for (bounds, seen) in bounds.chunks_mut(2).zip(&self.seen[row..row + count]) {
            let within = |depth: usize| depth.saturating_sub(first).min(BLOCK) as i64;
            bounds.copy_from_slice(&[within(seen.start), within(seen.end)]);
        }
        bounds
    }
}

/// What every query row of a call has in common.
struct Query<'s> {
    shape: &'s AttentionShape,
    scores: Scores,
    input: AttentionInputs,
    out: *mut f32,
}

impl Query<'_> {
    /// Most tokens of a tile.
    fn tile_tokens(&self) -> usize {
        (TILE_ROWS / self.shape.group.max(1)).max(1)
    }
}

/// Where a query head lies in q and out.
fn q_offset(shape: &AttentionShape, token: usize, head: usize, member: usize) -> usize {
    token * shape.q_stride() + (head * shape.group + member) * shape.head_dim
}

#[cfg(test)]
mod tests;
