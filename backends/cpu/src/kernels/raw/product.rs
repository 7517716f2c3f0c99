//! One dense product with its data, on any number of threads: what benchmarks and examples run.

use std::ops::Range;

use super::buffer::AlignedFloats;
use super::gemm::GemmKernels;
use crate::kernels::{Contraction, Epilogue, Error, GemmPlan, Kernels, Output, Region, Task};

/// `C[m, n] = A[m, k] · B[k, n]`, with its operands and scratch memory.
pub struct Product {
    plan: GemmPlan,
    a: AlignedFloats,
    b: AlignedFloats,
    c: AlignedFloats,
    packed: AlignedFloats,
    workspaces: Vec<AlignedFloats>,
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
            plan,
        })
    }

    /// Packs B, panels divided among the threads.
    pub fn pack(&mut self, kernels: &Kernels) {
        let (plan, b) = (&self.plan, &self.b);
        let packed = Shared(self.packed.as_mut_ptr());
        let pack = |kernels: &GemmKernels, panels: Range<usize>| {
            // SAFETY: the buffers have the plan's lengths; each thread has panels of its own.
            unsafe { plan.pack_b(kernels, b.as_ptr(), packed.get(), 0, panels) };
        };
        let threads = self.workspaces.len();
        std::thread::scope(|scope| {
            for thread in 1..threads {
                let panels = share(plan.panels(), 1, thread, threads);
                scope.spawn(move || pack(kernels.gemm(), panels));
            }
            pack(kernels.gemm(), share(plan.panels(), 1, 0, threads));
        });
    }

    /// Computes C from the packed B, rows divided among the threads.
    pub fn multiply(&mut self, kernels: &Kernels) {
        let (plan, a, packed) = (&self.plan, &self.a, &self.packed);
        let c = Shared(self.c.as_mut_ptr());
        let multiply = |rows: Range<usize>, workspace: &mut AlignedFloats| {
            let region = Region { rows, ..plan.whole() };
            let task = Task {
                kernels: kernels.gemm(),
                region: &region,
                output: Output::Planned { base: c.get() },
                epilogue: Epilogue::Store,
                workspace: workspace.as_mut_ptr(),
            };
            // SAFETY: the buffers have the plan's lengths; each thread has rows and scratch of its own.
            unsafe { plan.run_packed(&task, a.as_ptr(), packed.as_ptr(), &mut |_| {}) };
        };
        let threads = self.workspaces.len();
        std::thread::scope(|scope| {
            let mut own = None;
            for (thread, workspace) in self.workspaces.iter_mut().enumerate() {
                let rows = share(plan.rows(), kernels.machine().tile.rows, thread, threads);
                if thread == 0 {
                    own = Some((rows, workspace));
                } else {
                    scope.spawn(move || multiply(rows, workspace));
                }
            }
            if let Some((rows, workspace)) = own {
                multiply(rows, workspace);
            }
        });
    }

    /// The result.
    pub fn result(&self) -> &[f32] {
        &self.c
    }
}

/// The part of `count` that thread `thread` of `threads` takes, cut at multiples of `unit`.
fn share(count: usize, unit: usize, thread: usize, threads: usize) -> Range<usize> {
    let cut = |thread: usize| (count.div_ceil(unit) * thread / threads * unit).min(count);
    cut(thread)..cut(thread + 1)
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
        for (count, unit, threads) in [(0, 6, 2), (5, 6, 2), (100, 6, 3), (12, 6, 5)] {
            let parts: Vec<_> = (0..threads).map(|t| share(count, unit, t, threads)).collect();
            assert_eq!((parts[0].start, parts[threads - 1].end), (0, count));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
