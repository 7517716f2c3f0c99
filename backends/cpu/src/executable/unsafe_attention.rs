//! Attention of the plan: heads and rows shared by the team.

use super::{
    plan::Instance,
    unsafe_run::{Local, Shared, Worker},
};
use crate::{
    Error,
    kernels::{
        AttentionGradients, AttentionInputs, AttentionKernels, AttentionShape, Cache, CacheShape, Heads,
        PackedTree, Pages, Scores, raw::attention::parts,
    },
};

impl Local<'_> {
    /// The thread's entries for the tokens in sight.
    ///
    /// # Safety
    /// `thread` is the calling thread's number, and no other such slice is in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn stack(&self, thread: usize) -> &mut [i32] {
        // SAFETY: each thread's stack has this many entries and is its own.
        unsafe { std::slice::from_raw_parts_mut(self.memory.stacks[thread], self.executable.stack_entries) }
    }
}

impl Worker<'_> {
    fn attention_kernels(&self, shape: &AttentionShape, scores: Scores) -> Option<&AttentionKernels> {
        self.executable.kernels.attention(Heads { dim: shape.head_dim, capped: scores.cap.is_some() })
    }

    fn inputs(&self, instance: &Instance) -> AttentionInputs {
        let [q, k, v] = [0, 1, 2].map(|operand| self.floats(instance.reads[operand]).cast_const());
        AttentionInputs { q, k, v }
    }

    pub(super) fn attention(
        &self,
        shape: &AttentionShape,
        scores: Scores,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.attention_kernels(shape, scores) else { return Ok(()) };
        let tree = self.tree(shape, scores, instance, location)?;
        let parts = parts(shape, self.team.threads());
        let (local, shared) = (self.local, Shared((self.inputs(instance), self.floats(instance.writes[0]))));
        self.team.run(parts.len(), &|part, thread| {
            let (inputs, out) = shared.get();
            // SAFETY: all places hold tensors of this shape, the tree passed its check, parts are disjoint, and the
            // thread has a stack of its own.
            unsafe { kernels.forward(&tree, inputs, out, &parts[part], local.stack(thread)) };
        });
        Ok(())
    }

    pub(super) fn attention_grad(
        &self,
        shape: &AttentionShape,
        scores: Scores,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.attention_kernels(shape, scores) else { return Ok(()) };
        let tree = self.tree(shape, scores, instance, location)?;
        let [dq, dk, dv] = [0, 1, 2].map(|result| self.floats(instance.writes[result]));
        let gradients =
            AttentionGradients { dout: self.floats(instance.reads[instance.reads.len() - 1]), dq, dk, dv };
        let (local, shared) = (self.local, Shared((self.inputs(instance), gradients)));
        self.team.run(shape.kv_heads, &|head, thread| {
            let (inputs, gradients) = shared.get();
            let (scratch, heads) = (local.memory.scratch[thread], head..head + 1);
            // SAFETY: as above; the thread's scratch holds `backward_scratch_len` floats.
            unsafe { kernels.backward(&tree, inputs, gradients, heads, local.stack(thread), scratch) };
        });
        Ok(())
    }

    fn tree<'t>(
        &'t self,
        shape: &AttentionShape,
        scores: Scores,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<PackedTree<'t>, Error> {
        let subtree_end = self.ints(instance.reads[3]);
        shape
            .check_tree(subtree_end)
            .map_err(|source| Error::Tokens { location: location(), problem: source.to_string() })?;
        // A window needs positions, which follow.
        let position = scores.window.map_or(&[][..], |_| self.ints(instance.reads[4]));
        if scores.window.is_some() {
            shape
                .check_positions(subtree_end, position)
                .map_err(|source| Error::Tokens { location: location(), problem: source.to_string() })?;
        }
        Ok(PackedTree { shape: *shape, subtree_end, position, scores })
    }

    pub(super) fn attention_paged(
        &self,
        shape: &AttentionShape,
        cache_shape: CacheShape,
        scores: Scores,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.attention_kernels(shape, scores) else { return Ok(()) };
        let (table, position) = (self.ints(instance.reads[5]), self.ints(instance.reads[6]));
        cache_shape
            .check(shape, table, position)
            .map_err(|source| Error::Tokens { location: location(), problem: source.to_string() })?;
        let cache = Cache { k: self.floats(instance.reads[3]), v: self.floats(instance.reads[4]) };
        let pages = Pages { shape: *shape, cache: cache_shape, block_table: table, position, scores };
        let (inputs, out) = (self.inputs(instance), self.floats(instance.writes[0]));
        // SAFETY: the tables passed the check, and the caches are written by this worker alone.
        unsafe { kernels.write_cache(&pages, inputs, cache, 0..shape.tokens) };
        let parts = parts(shape, self.team.threads());
        let (local, shared) = (self.local, Shared((inputs.q, cache, out)));
        self.team.run(parts.len(), &|part, thread| {
            let (q, cache, out) = shared.get();
            // SAFETY: as above; parts are disjoint, and the thread has a stack of its own.
            unsafe { kernels.attend_paged(&pages, q, cache, out, &parts[part], local.stack(thread)) };
        });
        Ok(())
    }
}
