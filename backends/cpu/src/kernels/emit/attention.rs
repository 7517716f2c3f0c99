//! Gradients of attention for one query row over a list of key and value rows.
//!
//! The rows come as a list, in depth order: a packed tree's ancestors, a sequence's past. The list is taken in
//! blocks of [`BLOCK`] depths; every reduction is a fixed tree. The kernel recomputes the scores into rows of
//! scratch memory and stores no other. The forward kernels are in [`super::attend`].

use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{BasicValue, BasicValueEnum, FloatValue, IntValue, PointerValue, VectorValue};
use inkwell::{FloatPredicate, IntPredicate};

use super::exp::{emit_exp, emit_tanh};
use super::{Emitter, Param, float, vector};
use crate::kernels::{Error, Machine};

/// Depths that are reduced together.
pub const BLOCK: usize = 16;

/// Emits the backward kernel for heads of `dim` floats.
///
/// ```text
///   backward(i64 count, i32 *index, f32 *q, f32 *k, f32 *v, i64 stride, f32 scale,
///            f32 *dout, f32 *scratch, f32 *dq, f32 *dk, f32 *dv, f32 cap)
/// ```
/// `dq` is stored; the rows of `dk` and `dv`, laid out as `k` and `v`, are added to. `scratch`
/// has three rows of `count` floats, each rounded up to [`BLOCK`]. `capped` kernels take scores as
/// `cap · tanh(score / cap)`, the others ignore `cap`.
pub fn emit_backward<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    (dim, capped): (usize, bool),
) -> Result<(), Error> {
    use Param::{Float, Int, Pointer};
    let params = [
        Int, Pointer, Pointer, Pointer, Pointer, Int, Float, Pointer, Pointer, Pointer, Pointer, Pointer,
        Float,
    ];
    let f = Emitter::function(context, module, machine, name, &params);
    let b = f.builder();
    let rows =
        Rows { f: &f, dim, count: f.int_param(0)?, index: f.pointer_param(1)?, stride: f.int_param(5)? };
    let (q, k, v) = (f.pointer_param(2)?, f.pointer_param(3)?, f.pointer_param(4)?);
    let (scale, dout, weights) = (f.float_param(6)?, f.pointer_param(7)?, f.pointer_param(8)?);
    let whole = b.build_int_nsw_add(rows.count, f.int(BLOCK - 1), "")?;
    let whole = b.build_and(whole, b.build_not(f.int(BLOCK - 1), "")?, "")?;
    let slopes = f.float_address(weights, whole)?;
    // The derivative of capping: 1 − (capped score / cap)².
    let bends = f.float_address(slopes, whole)?;
    let cap = f.splat(BLOCK, f.float_param(12)?)?;
    let blocks = (f.int(0), rows.count, BLOCK);

    // weights: scores; slopes: the gradient of each softmax weight, dout · v
    let start: [BasicValueEnum; 1] = [f.float(f32::NEG_INFINITY).into()];
    let greatest = f.for_loop(blocks, &start, |first, carried| {
        let places = rows.places(first)?;
        let mut scores = f.mul(rows.dots(q, k, &places)?, f.splat(BLOCK, scale)?)?;
        if capped {
            let bent = emit_tanh(&f, f.div(scores, cap)?)?;
            scores = f.mul(bent, cap)?;
            let bend = f.sub(f.constant_splat(BLOCK, 1.0), f.mul(bent, bent)?)?;
            f.store(f.float_address(bends, first)?, bend)?;
        }
        let scores = rows.mask(first, scores, f32::NEG_INFINITY)?;
        f.store(f.float_address(weights, first)?, scores)?;
        f.store(f.float_address(slopes, first)?, rows.dots(dout, v, &places)?)?;
        let block_greatest = f.reduce(scores, |a, b| f.max(a, b))?;
        let greatest = f.scalar(|[a, b]| f.max(a, b), [float(carried[0])?, block_greatest])?;
        Ok(vec![greatest.into()])
    })?;
    let greatest = f.splat(BLOCK, float(greatest[0])?)?;

    // weights: exponentials; carried: their sum, and the sum of exponential × slope
    let start: [BasicValueEnum; 2] = [f.float(0.0).into(), f.float(0.0).into()];
    let sums = f.for_loop(blocks, &start, |first, carried| {
        let at = f.float_address(weights, first)?;
        let exps = emit_exp(&f, f.sub(f.load(BLOCK, at)?, greatest)?)?;
        let exps = rows.mask(first, exps, 0.0)?;
        f.store(at, exps)?;
        let weighted = f.mul(exps, f.load(BLOCK, f.float_address(slopes, first)?)?)?;
        let mut next = Vec::new();
        for (sum, terms) in carried.iter().zip([exps, weighted]) {
            let terms = f.reduce(terms, |a, b| f.add(a, b))?;
            next.push(b.build_float_add(float(*sum)?, terms, "")?.into());
        }
        Ok(next)
    })?;
    let inverse = b.build_float_div(f.float(1.0), float(sums[0])?, "")?;
    let mean = b.build_float_mul(float(sums[1])?, inverse, "")?;

    // weights: the softmax; slopes: the gradient of q · k
    f.for_loop(blocks, &[], |first, _| {
        let (w, s) = (f.float_address(weights, first)?, f.float_address(slopes, first)?);
        let softmax = f.mul(f.load(BLOCK, w)?, f.splat(BLOCK, inverse)?)?;
        let mut centred = f.sub(f.load(BLOCK, s)?, f.splat(BLOCK, mean)?)?;
        if capped {
            centred = f.mul(centred, f.load(BLOCK, f.float_address(bends, first)?)?)?;
        }
        f.store(w, softmax)?;
        f.store(s, f.mul(f.mul(softmax, centred)?, f.splat(BLOCK, scale)?)?)?;
        Ok(Vec::new())
    })?;
    emit_gradients(&rows, weights, slopes)?;
    f.finish()?;
    Ok(())
}

/// dq = Σ slope · k; dk += slope · q; dv += weight · dout; in ascending depth.
fn emit_gradients<'c>(
    rows: &Rows<'c, '_, '_>,
    weights: PointerValue<'c>,
    slopes: PointerValue<'c>,
) -> Result<(), Error> {
    // q, dout and dq of a group stay in registers.
    const GROUP: usize = 4;
    let f = rows.f;
    let lanes = f.machine().lanes;
    let (q, k, dout) = (f.pointer_param(2)?, f.pointer_param(3)?, f.pointer_param(7)?);
    let (dq, dk, dv) = (f.pointer_param(9)?, f.pointer_param(10)?, f.pointer_param(11)?);
    for group in rows.pieces().chunks(GROUP) {
        let load = |from| group.iter().map(|&piece| rows.load(piece, from)).collect::<Result<Vec<_>, _>>();
        let (q, dout) = (load(q)?, load(dout)?);
        let zero: BasicValueEnum = f.constant_splat(lanes, 0.0).into();
        let sums = f.for_loop((f.int(0), rows.count, 1), &vec![zero; group.len()], |t, sums| {
            let place = rows.place(t)?;
            let at = |base| f.float_address(base, place);
            let (k, dk, dv) = (at(k)?, at(dk)?, at(dv)?);
            let weight = f.splat(lanes, f.load_float(f.float_address(weights, t)?)?)?;
            let slope = f.splat(lanes, f.load_float(f.float_address(slopes, t)?)?)?;
            let mut next = Vec::new();
            for (i, &piece) in group.iter().enumerate() {
                next.push(f.fma(slope, rows.load(piece, k)?, vector(sums[i])?)?.as_basic_value_enum());
                rows.store(piece, dk, f.fma(slope, q[i], rows.load(piece, dk)?)?)?;
                rows.store(piece, dv, f.fma(weight, dout[i], rows.load(piece, dv)?)?)?;
            }
            Ok(next)
        })?;
        for (&piece, sum) in group.iter().zip(sums) {
            rows.store(piece, dq, vector(sum)?)?;
        }
    }
    Ok(())
}

/// Part of a head: its first float, and how many of a vector's lanes it fills.
#[derive(Clone, Copy)]
struct Piece {
    first: usize,
    lanes: usize,
}

/// The listed rows of a kernel, and how to read them.
struct Rows<'c, 'm, 'f> {
    f: &'f Emitter<'c, 'm>,
    dim: usize,
    count: IntValue<'c>,
    index: PointerValue<'c>,
    stride: IntValue<'c>,
}

impl<'c> Rows<'c, '_, '_> {
    /// The head cut into vectors; the last one may be short.
    fn pieces(&self) -> Vec<Piece> {
        let lanes = self.f.machine().lanes;
        let piece = |first| Piece { first, lanes: lanes.min(self.dim - first) };
        (0..self.dim).step_by(lanes).map(piece).collect()
    }

    /// A vector of the row at `row`; lanes beyond a short piece are 0 and not read.
    fn load(&self, piece: Piece, row: PointerValue<'c>) -> Result<VectorValue<'c>, Error> {
        let (f, lanes) = (self.f, self.f.machine().lanes);
        let at = f.float_address(row, f.int(piece.first))?;
        if piece.lanes == lanes {
            return f.load(lanes, at);
        }
        let short = f.load(piece.lanes, at)?;
        let widened: Vec<usize> = (0..lanes).map(|lane| lane.min(piece.lanes)).collect();
        f.shuffle(short, f.constant_splat(piece.lanes, 0.0), &widened)
    }

    /// Stores as much of `value` as the piece holds.
    fn store(&self, piece: Piece, row: PointerValue<'c>, value: VectorValue<'c>) -> Result<(), Error> {
        let f = self.f;
        let at = f.float_address(row, f.int(piece.first))?;
        if piece.lanes == f.machine().lanes {
            return f.store(at, value);
        }
        let kept: Vec<usize> = (0..piece.lanes).collect();
        f.store(at, f.shuffle(value, value, &kept)?)
    }

    /// Offset in floats of the row listed at `t`.
    fn place(&self, t: IntValue<'c>) -> Result<IntValue<'c>, Error> {
        let row = self.f.load_index(self.index, t)?;
        Ok(self.f.builder().build_int_nsw_mul(row, self.stride, "")?)
    }

    /// Offsets of the rows of a block; beyond the list, the last row again.
    fn places(&self, first: IntValue<'c>) -> Result<Vec<IntValue<'c>>, Error> {
        let (f, b) = (self.f, self.f.builder());
        let last = b.build_int_nsw_sub(self.count, f.int(1), "")?;
        (0..BLOCK)
            .map(|i| {
                let t = b.build_int_nsw_add(first, f.int(i), "")?;
                let beyond = b.build_int_compare(IntPredicate::SGT, t, last, "")?;
                self.place(super::int(b.build_select(beyond, last, t, "")?)?)
            })
            .collect()
    }

    /// `x · row` for each row of a block.
    fn dots(
        &self,
        x: PointerValue<'c>,
        base: PointerValue<'c>,
        places: &[IntValue<'c>],
    ) -> Result<VectorValue<'c>, Error> {
        let (f, lanes) = (self.f, self.f.machine().lanes);
        let whole = self.dim / lanes * lanes;
        let zero: BasicValueEnum = f.constant_splat(lanes, 0.0).into();
        let mut scores = Vec::new();
        for group in places.chunks(lanes) {
            let row =
                group.iter().map(|&place| f.float_address(base, place)).collect::<Result<Vec<_>, _>>()?;
            let sums = f.for_loop((f.int(0), f.int(whole), lanes), &vec![zero; group.len()], |i, sums| {
                let x = f.load(lanes, f.float_address(x, i)?)?;
                sums.iter()
                    .zip(&row)
                    .map(|(&sum, &row)| {
                        let element = f.load(lanes, f.float_address(row, i)?)?;
                        Ok(f.fma(x, element, vector(sum)?)?.as_basic_value_enum())
                    })
                    .collect()
            })?;
            let mut sums = sums.into_iter().map(vector).collect::<Result<Vec<_>, _>>()?;
            if whole < self.dim {
                let short = Piece { first: whole, lanes: self.dim - whole };
                let x = self.load(short, x)?;
                for (sum, &row) in sums.iter_mut().zip(&row) {
                    *sum = f.fma(x, self.load(short, row)?, *sum)?;
                }
            }
            scores.push(self.sum_each(sums)?);
        }
        self.concat(scores)
    }

    /// One vector whose lane t is the sum of the lanes of vector t, neighbours first.
    fn sum_each(&self, mut vectors: Vec<VectorValue<'c>>) -> Result<VectorValue<'c>, Error> {
        let lanes = self.f.machine().lanes;
        let even: Vec<usize> = (0..lanes).map(|lane| 2 * lane).collect();
        let odd: Vec<usize> = (0..lanes).map(|lane| 2 * lane + 1).collect();
        while vectors.len() > 1 {
            vectors = vectors
                .chunks(2)
                .map(|pair| {
                    let (a, b) = (pair[0], pair[1]);
                    self.f.add(self.f.shuffle(a, b, &even)?, self.f.shuffle(a, b, &odd)?)
                })
                .collect::<Result<_, _>>()?;
        }
        vectors.pop().ok_or(Error::UnexpectedType("group of rows"))
    }

    fn concat(&self, mut vectors: Vec<VectorValue<'c>>) -> Result<VectorValue<'c>, Error> {
        while vectors.len() > 1 {
            let both: Vec<usize> = (0..2 * vectors[0].get_type().get_size() as usize).collect();
            vectors = vectors
                .chunks(2)
                .map(|pair| self.f.shuffle(pair[0], pair[1], &both))
                .collect::<Result<_, _>>()?;
        }
        vectors.pop().ok_or(Error::UnexpectedType("group of rows"))
    }

    /// `values` with `other` in the lanes beyond the list.
    fn mask(
        &self,
        first: IntValue<'c>,
        values: VectorValue<'c>,
        other: f32,
    ) -> Result<VectorValue<'c>, Error> {
        let (f, b) = (self.f, self.f.builder());
        let narrow = f.context().i32_type();
        let left = b.build_int_nsw_sub(self.count, first, "")?;
        let left = b.build_int_truncate(left, narrow, "")?;
        let zero = narrow.const_zero();
        let left = b.build_insert_element(narrow.vec_type(BLOCK as u32).get_poison(), left, zero, "")?;
        let left = f.shuffle(left, left, &[0; BLOCK])?;
        let lane: Vec<_> = (0..BLOCK).map(|lane| narrow.const_int(lane as u64, false)).collect();
        let lane = inkwell::types::VectorType::const_vector(&lane);
        let inside = b.build_int_compare(IntPredicate::SLT, lane, left, "")?;
        vector(b.build_select(inside, values, f.constant_splat(BLOCK, other), "")?)
    }
}

impl<'c> Emitter<'c, '_> {
    /// The greater of two, lane by lane; the second where either is NaN.
    pub(super) fn max(&self, a: VectorValue<'c>, b: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
        let is_greater = self.builder().build_float_compare(FloatPredicate::OGT, a, b, "")?;
        vector(self.builder().build_select(is_greater, a, b, "")?)
    }

    /// Combines the lanes of `values`, a power of two: the lower half with the upper, and so on.
    pub(super) fn reduce(
        &self,
        mut values: VectorValue<'c>,
        combine: impl Fn(VectorValue<'c>, VectorValue<'c>) -> Result<VectorValue<'c>, Error>,
    ) -> Result<FloatValue<'c>, Error> {
        let mut lanes = values.get_type().get_size() as usize;
        while lanes > 1 {
            lanes /= 2;
            let lower: Vec<usize> = (0..lanes).collect();
            let upper: Vec<usize> = (lanes..2 * lanes).collect();
            let halves = (self.shuffle(values, values, &lower)?, self.shuffle(values, values, &upper)?);
            values = combine(halves.0, halves.1)?;
        }
        self.lane(values, 0)
    }

    /// Runs an operation on vectors for one lane's sake.
    pub(super) fn scalar<const N: usize>(
        &self,
        operation: impl Fn([VectorValue<'c>; N]) -> Result<VectorValue<'c>, Error>,
        operands: [FloatValue<'c>; N],
    ) -> Result<FloatValue<'c>, Error> {
        const LANES: usize = 4;
        let mut vectors = [self.constant_splat(LANES, 0.0); N];
        for (vector, operand) in vectors.iter_mut().zip(operands) {
            *vector = self.splat(LANES, operand)?;
        }
        self.lane(operation(vectors)?, 0)
    }
}
