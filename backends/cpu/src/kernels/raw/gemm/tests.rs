//! Generated products against plain loops, over odd shapes and strides, on every instruction set
//! that this machine can run, in memory that ends at a guard page; and the bits of an element, which nothing but its terms may change.

use std::ops::Range;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::super::guard::Guarded;
use crate::kernels::{
    Contraction, Dim, Epilogue, GemmPlan, Isa, Kernels, Machine, Output, Region, Task, TileDone, reference,
};

/// Kernels of every instruction set of this machine.
fn all_kernels() -> &'static [Kernels] {
    static KERNELS: OnceLock<Vec<Kernels>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter_map(|isa| Machine::with_isa(isa).ok())
            .map(|machine| Kernels::new(&machine, &[]).expect("kernels"))
            .collect()
    })
}

const UNTOUCHED: f32 = -77.25;

fn values(count: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    (0..count).map(value).collect()
}

fn span_len(range: &Range<i64>) -> usize {
    assert!(range.start == 0 || range.is_empty(), "tests use non-negative strides");
    range.end.max(0) as usize
}

/// A product and its data.
struct Case {
    plan: GemmPlan,
    a: Guarded,
    b: Guarded,
    c_len: usize,
}

#[derive(Clone, Copy)]
enum Packing {
    Inside,
    Ahead,
}

impl Case {
    fn new(contraction: &Contraction, kernels: &Kernels) -> Self {
        let plan = GemmPlan::new(contraction, kernels.machine()).expect("plan");
        let [a, b, c] = plan.spans().map(|range| span_len(&range));
        Case { plan, a: Guarded::new(&values(a, 1)), b: Guarded::new(&values(b, 2)), c_len: c }
    }

    /// Computes a region into `c`, with guarded scratch memory.
    fn run(
        &self,
        kernels: &Kernels,
        output: Output,
        epilogue: Epilogue,
        region: &Region,
        packing: Packing,
    ) -> Vec<TileDone> {
        const GUARD: usize = 64;
        let guarded = |len: usize| vec![UNTOUCHED; len + GUARD];
        let (plan, gemm) = (&self.plan, kernels.gemm());
        let mut done = Vec::new();
        let (a, b) = (self.a.as_ptr(), self.b.as_ptr());
        let mut packed = guarded(plan.packed_b_len());
        let mut workspace = guarded(match packing {
            Packing::Inside => plan.workspace_len(),
            Packing::Ahead => plan.packed_workspace_len(),
        });
        let (p, w) = (packed.as_mut_ptr(), workspace.as_mut_ptr());
        let mut hook = |tile| done.push(tile);
        let task = Task { kernels: gemm, region, output, epilogue, workspace: w };
        // SAFETY: operands have their spans, scratch has its length, the output is the caller's vector.
        unsafe {
            match packing {
                Packing::Inside => plan.run(&task, a, b, &mut hook),
                Packing::Ahead => {
                    for batch in 0..plan.batches() {
                        let middle = plan.panels() / 2;
                        plan.pack_b(gemm, b, p, batch, middle..plan.panels());
                        plan.pack_b(gemm, b, p, batch, 0..middle);
                    }
                    plan.run_packed(&task, a, p, &mut hook);
                }
            }
        }
        for scratch in [packed, workspace] {
            assert!(scratch[scratch.len() - GUARD..].iter().all(|&x| x == UNTOUCHED), "overrun");
        }
        done
    }

    /// Computes a region in place; what C held before is `before` everywhere.
    fn planned(
        &self,
        kernels: &Kernels,
        epilogue: Epilogue,
        region: &Region,
        packing: Packing,
        before: f32,
    ) -> Vec<f32> {
        let mut c = vec![before; self.c_len];
        let output = Output::Planned { base: c.as_mut_ptr() };
        self.run(kernels, output, epilogue, region, packing);
        c
    }
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 1usize..6, 1 => Just(0usize), 3 => 6usize..20, 2 => prop::sample::select(vec![31, 48, 53, 64, 97])]
}

/// Lays dimensions out densely in the order that sorting by `keys` gives, with gaps of `pad`.
fn lay_out(extents: &[usize], keys: &[u32], pad: usize) -> Vec<isize> {
    let mut order: Vec<usize> = (0..extents.len()).collect();
    order.sort_by_key(|&i| (keys[i], i));
    let (mut strides, mut stride) = (vec![0isize; extents.len()], 1usize);
    for &i in order.iter().rev() {
        strides[i] = stride as isize;
        stride = stride * extents[i].max(1) + pad;
    }
    strides
}

/// Up to two dimensions a group, in any order in memory.
fn contraction() -> impl Strategy<Value = Contraction> {
    let group = |most: usize| prop::collection::vec(extent(), 0..=most);
    let keys = || prop::collection::vec(0u32..100, 8);
    (group(1), group(2), group(2), group(2), keys(), keys(), keys(), 0usize..3)
        .prop_filter("small enough for a test", |(batch, m, n, k, ..)| {
            [batch, m, n, k].into_iter().flatten().product::<usize>() < 1 << 19
        })
        .prop_map(|(batch, m, n, k, a_keys, b_keys, c_keys, pad)| {
            let strides = |groups: [&[usize]; 3], keys: &[u32]| lay_out(&groups.concat(), keys, pad);
            let a = strides([&batch, &m, &k], &a_keys);
            let b = strides([&batch, &k, &n], &b_keys);
            let c = strides([&batch, &m, &n], &c_keys);
            let (nb, nm, nk) = (batch.len(), m.len(), k.len());
            let dims = |extents: &[usize], at: [Option<usize>; 3]| -> Vec<Dim> {
                let stride = |strides: &[isize], at: Option<usize>, i| at.map_or(0, |at| strides[at + i]);
                let dim = |(i, &extent)| Dim {
                    extent,
                    a: stride(&a, at[0], i),
                    b: stride(&b, at[1], i),
                    c: stride(&c, at[2], i),
                };
                extents.iter().enumerate().map(dim).collect()
            };
            Contraction {
                batch: dims(&batch, [Some(0), Some(0), Some(0)]),
                m: dims(&m, [Some(nb), None, Some(nb)]),
                n: dims(&n, [None, Some(nb + nk), Some(nb + nm)]),
                k: dims(&k, [Some(nb + nm), Some(nb), None]),
            }
        })
}

fn assert_close(ours: &[f32], expected: &[f32]) {
    for (i, (x, y)) in ours.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= 1e-4 * y.abs().max(1.0), "element {i}: {x}, expected {y}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_contraction_equals_plain_loops(contraction in contraction(), accumulate: bool) {
        for kernels in all_kernels() {
            let case = Case::new(&contraction, kernels);
            let epilogue = if accumulate { Epilogue::Update } else { Epilogue::Store };
            let mut expected = vec![UNTOUCHED; case.c_len];
            reference::contract(&contraction, &case.a, &case.b, &mut expected, accumulate)
                .expect("reference");
            let whole = case.plan.whole();
            let inside = case.planned(kernels, epilogue, &whole, Packing::Inside, UNTOUCHED);
            let ahead = case.planned(kernels, epilogue, &whole, Packing::Ahead, UNTOUCHED);
            assert_close(&inside, &expected);
            prop_assert_eq!(inside, ahead, "packing ahead changes no bit");
        }
    }

    #[test]
    fn a_region_has_the_bits_of_the_whole(
        contraction in contraction(),
        cuts in prop::array::uniform6(0usize..1000),
        block_rows in 1usize..40,
    ) {
        for kernels in all_kernels() {
            let mut case = Case::new(&contraction, kernels);
            let whole = case.plan.whole();
            let all = case.planned(kernels, Epilogue::Store, &whole, Packing::Inside, UNTOUCHED);
            case.plan = case.plan.with_block_rows(block_rows);
            let cut = |len: usize, x: usize, y: usize| {
                let (x, y) = (x % (len + 1), y % (len + 1));
                x.min(y)..x.max(y)
            };
            let region = Region {
                batch: cut(case.plan.batches(), cuts[0], cuts[1]),
                rows: cut(case.plan.rows(), cuts[2], cuts[3]),
                cols: cut(case.plan.cols(), cuts[4], cuts[5]),
            };
            let part = case.planned(kernels, Epilogue::Store, &region, Packing::Ahead, UNTOUCHED);
            let (height, width) = (region.rows.len(), region.cols.len());
            let (row_stride, batch_stride) = (width + 3, (width + 3) * height + 5);
            let mut dense = vec![UNTOUCHED; region.batch.len() * batch_stride + 1];
            let output = Output::Dense { base: dense.as_mut_ptr(), row_stride, batch_stride };
            case.run(kernels, output, Epilogue::Store, &region, Packing::Inside);
            let (mut of_part, mut of_dense) = (0, 0);
            for batch in region.batch.clone() {
                for row in region.rows.clone() {
                    for col in region.cols.clone() {
                        let plan = &case.plan;
                        let at = plan.batch[batch][2] + plan.c_m.at(row) + plan.c_n.at(col);
                        let in_dense = (batch - region.batch.start) * batch_stride
                            + (row - region.rows.start) * row_stride
                            + (col - region.cols.start);
                        prop_assert_eq!(part[at as usize].to_bits(), all[at as usize].to_bits());
                        prop_assert_eq!(dense[in_dense].to_bits(), all[at as usize].to_bits());
                        of_part += 1;
                        of_dense += 1;
                    }
                }
            }
            // Nothing else was written: the rest still holds what it held.
            let written = |c: &[f32]| c.iter().filter(|&&x| x != UNTOUCHED).count();
            prop_assert_eq!(written(&part), of_part);
            prop_assert_eq!(written(&dense), of_dense);
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_of_the_row_in_any_batch() {
    let (n, k) = (101, 1300);
    for kernels in all_kernels() {
        let case = |m| Case::new(&Contraction::matrix(m, n, k, false, true), kernels);
        let large = case(203);
        let all = large.planned(kernels, Epilogue::Store, &large.plan.whole(), Packing::Inside, UNTOUCHED);
        for m in [1, 2, 3, 5, 7, 8, 13] {
            let mut small = case(m);
            for first in [0, 1, 95, 203 - m] {
                small.a = Guarded::new(&large.a[first * k..(first + m) * k]);
                let whole = small.plan.whole();
                let some = small.planned(kernels, Epilogue::Store, &whole, Packing::Ahead, UNTOUCHED);
                let same = some.iter().zip(&all[first * n..]).all(|(x, y)| x.to_bits() == y.to_bits());
                assert!(same, "{m} rows from {first} on {:?}", kernels.machine().isa);
            }
        }
    }
}

#[test]
fn the_hook_sees_each_row_once_after_its_stores() {
    for kernels in all_kernels() {
        let mut case = Case::new(&Contraction::matrix(100, 70, 900, false, false), kernels);
        case.plan = case.plan.with_block_rows(16);
        let region = Region { batch: 0..1, rows: 3..97, cols: 5..70 };
        let mut c = vec![UNTOUCHED; case.c_len];
        let output = Output::Planned { base: c.as_mut_ptr() };
        let done = case.run(kernels, output, Epilogue::Store, &region, Packing::Inside);
        let mut next = 3;
        for tile in done {
            assert_eq!((tile.rows.start, tile.cols), (next, 5..70));
            assert!(tile.rows.len() <= 18, "blocks are as small as asked");
            next = tile.rows.end;
        }
        assert_eq!(next, 97);
    }
}

#[test]
fn a_sum_of_nothing_is_zero() {
    for kernels in all_kernels() {
        let case = Case::new(&Contraction::matrix(9, 11, 0, false, false), kernels);
        let whole = case.plan.whole();
        let stored = case.planned(kernels, Epilogue::Store, &whole, Packing::Inside, UNTOUCHED);
        assert!(stored.iter().all(|&x| x == 0.0) && stored.len() == 99);
        let kept = case.planned(kernels, Epilogue::Update, &whole, Packing::Ahead, UNTOUCHED);
        assert!(kept.iter().all(|&x| x == UNTOUCHED));
    }
}

#[test]
fn an_output_that_aliases_itself_is_refused() {
    let machine = Machine::host().expect("host");
    let mut contraction = Contraction::matrix(4, 4, 4, false, false);
    contraction.n[0].c = 0;
    assert!(GemmPlan::new(&contraction, &machine).is_err());
}
