//! Which contractions are matrix products: work for a micro-kernel, and producers of a pair.
//!
//! One rule for `t3-find-pairs`, `t3-outline` and `t3-schedule`, so that what one of them sets apart another
//! does not expect elsewhere.

use t3c_ir::{Generic, Op, generic::is_zero, walk};
use t3c_schedule::Contraction;

/// A batched product with fewer terms a sum than this is elementwise work in disguise: rotary embeddings are
/// contractions over two halves.
const SHORTEST_BATCHED_SUM: u64 = 8;

/// Whether a micro-kernel should compute `contraction`.
///
/// Every loop of the result comes from an operand and every summed loop is in both, so that extents collapse to
/// a matrix product; a batch of dot products, outer products or very short sums is left to plain loops.
pub fn is_product(contraction: &Contraction) -> bool {
    let in_both = |index: &usize| contraction.a.contains(index) && contraction.b.contains(index);
    let in_one = |index: &usize| contraction.a.contains(index) || contraction.b.contains(index);
    let mut summed = (0..contraction.extents.len()).filter(|index| !contraction.c.contains(index));
    let shape = contraction.gemm_shape();
    contraction.c.iter().all(in_one)
        && summed.all(|index| in_both(&index))
        && (shape.batch == 1 || (shape.m > 1 && shape.n > 1 && shape.k >= SHORTEST_BATCHED_SUM))
}

/// The product that `op` computes into a zero start, if it is one.
pub fn product_of<'c, 'a>(op: Op<'c, 'a>) -> Option<(Generic<'c, 'a>, Contraction)> {
    if !walk::is(op, "linalg.generic") {
        return None;
    }
    let generic = Generic::read(op).ok()?;
    let contraction = generic.contraction().filter(is_product)?;
    is_zero(generic.init).then_some((generic, contraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contraction(extents: &[u64], a: &[usize], b: &[usize], c: &[usize]) -> Contraction {
        Contraction { extents: extents.to_vec(), a: a.to_vec(), b: b.to_vec(), c: c.to_vec() }
    }

    #[test]
    fn matrix_products_are_and_rotations_and_dot_products_are_not() {
        assert!(is_product(&contraction(&[8, 6, 4], &[0, 2], &[1, 2], &[0, 1])));
        // One row: decode.
        assert!(is_product(&contraction(&[1, 64, 64], &[0, 2], &[1, 2], &[0, 1])));
        // Scores: a batch of heads.
        assert!(is_product(&contraction(&[4, 32, 32, 16], &[0, 1, 3], &[0, 2, 3], &[0, 1, 2])));
        // q[n,g,c,i] · R[n,c,e,i] over c = 2.
        let rotation = contraction(&[32, 4, 2, 8, 2], &[0, 1, 4, 3], &[0, 4, 2, 3], &[0, 1, 2, 3]);
        assert!(!is_product(&rotation));
        // A dot product a row.
        assert!(!is_product(&contraction(&[32, 64], &[0, 1], &[0, 1], &[0])));
        // A loop that only one operand has.
        assert!(!is_product(&contraction(&[8, 6, 4], &[0, 2], &[1], &[0, 1])));
    }
}
