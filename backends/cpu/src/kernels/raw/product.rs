//! One dense product with its data, on any number of threads: what benchmarks and examples run.

use std::ops::Range;

use super::buffer::AlignedFloats;
use crate::kernels::{Contraction, Epilogue, Error, GemmPlan, Kernels, Output, Task};
use crate::unsafe_team::Team;

/// `C[m, n] = A[m, k] · B[k, n]`, with its operands and scratch memory.
pub struct Product {
    plan: GemmPlan,
    a: AlignedFloats,
    b: AlignedFloats,
    c: AlignedFloats,
    packed: AlignedFloats,
    workspaces: Vec<AlignedFloats>,
    team: Team,
}

/// A pointer that threads share; each works on a part of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the threads below write disjoint parts, and reads come after the writers were joined.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut f32 {
        self.0
    }
}

impl Product {
    /// A product of small numbers; B is `[n, k]` in memory where `b_transposed`, as weights are.
    pub fn new(
        kernels: &Kernels,
        (m, n, k): (usize, usize, usize),
        b_transposed: bool,
        threads: usize,
    ) -> Result<Self, Error> {
        let contraction = Contraction::matrix(m, n, k, false, b_transposed);
        let plan = GemmPlan::new(&contraction, kernels.machine())?;
        let filled = |len: usize| {
            let mut floats = AlignedFloats::zeroed(len);
            for (i, float) in floats.iter_mut().enumerate() {
                *float = (i * 7919 % 97) as f32 / 97.0 - 0.5;
            }
            floats
        };
        Ok(Product {
            a: filled(m * k),
            b: filled(k * n),
            c: AlignedFloats::zeroed(m * n),
            packed: AlignedFloats::zeroed(plan.packed_b_len()),
            workspaces: (0..threads.max(1))
                .map(|_| AlignedFloats::zeroed(plan.packed_workspace_len()))
                .collect(),
            team: Team::new(threads),
            plan,
        })
    }

    /// Packs B, panels divided among the threads.
    pub fn pack(&mut self, kernels: &Kernels) {
        let (plan, b) = (&self.plan, &self.b);
        let packed = Shared(self.packed.as_mut_ptr());
        let parts = 4 * self.team.threads();
        self.team.run(parts, &|part, _| {
            // SAFETY: the buffers have the plan's lengths; each part has panels of its own.
            unsafe {
                let panels = share(plan.panels(), part, parts);
                plan.pack_b(kernels.gemm(), b.as_ptr(), packed.get(), 0, panels);
            }
        });
    }

    /// Computes C from the packed B, parts of it divided among the threads.
    pub fn multiply(&mut self, kernels: &Kernels) {
        let (plan, a, packed) = (&self.plan, &self.a, &self.packed);
        let c = Shared(self.c.as_mut_ptr());
        let workspaces: Vec<Shared> =
            self.workspaces.iter_mut().map(|workspace| Shared(workspace.as_mut_ptr())).collect();
        let parts = plan.parts(&plan.whole(), self.team.threads());
        self.team.run(parts.len(), &|part, thread| {
            let task = Task {
                kernels: kernels.gemm(),
                region: &parts[part],
                output: Output::Planned { base: c.get() },
                epilogue: Epilogue::Store,
                workspace: workspaces[thread].get(),
            };
            // SAFETY: the buffers have the plan's lengths; parts are disjoint, threads have scratch of their own.
            unsafe { plan.run_packed(&task, a.as_ptr(), packed.as_ptr(), &mut |_| {}) };
        });
    }

    /// The result.
    pub fn result(&self) -> &[f32] {
        &self.c
    }
}

/// Part `part` of `parts` of `count`.
fn share(count: usize, part: usize, parts: usize) -> Range<usize> {
    count * part / parts..count * (part + 1) / parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Machine;

    #[test]
    fn threads_do_not_change_the_bits() {
        let kernels = Kernels::new(&Machine::host().expect("host"), &[]).expect("kernels");
        let results: Vec<Vec<u32>> = [1, 2, 3, 7]
            .into_iter()
            .map(|threads| {
                let mut product = Product::new(&kernels, (61, 130, 300), true, threads).expect("plan");
                product.pack(&kernels);
                product.multiply(&kernels);
                product.result().iter().map(|x| x.to_bits()).collect()
            })
            .collect();
        assert!(results.iter().all(|result| result == &results[0]));
        assert!(results[0].iter().any(|&bits| bits != 0));
    }

    #[test]
    fn shares_cover_everything_once() {
        for (count, parts) in [(0, 2), (5, 2), (100, 3), (12, 5), (3, 8)] {
            let shares: Vec<_> = (0..parts).map(|part| share(count, part, parts)).collect();
            assert_eq!((shares[0].start, shares[parts - 1].end), (0, count));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
