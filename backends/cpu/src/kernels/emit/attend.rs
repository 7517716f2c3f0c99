//! Attention of some query rows over one block of [`BLOCK`] depths, the step of an online softmax.
//!
//! ```text
//!   keys(f32 *k, i64 *places, f32 *transposed)                  transposed[i × 16 + t] = k[places[t] + i]
//!   attend(f32 *q, f32 *out, i64 *rows, f32 *state, i64 *seen, f32 *transposed,
//!          f32 *v, i64 *places, f32 scale, f32 cap)
//! ```
//!
//! Row r's query begins at `q + rows[r]`, its sum at `out + rows[r]`; it sees depths `seen[2r] .. seen[2r + 1]` of
//! the block. `state` holds its greatest score and the sum of its exponentials so far: −∞ and 0 at first, when
//! `out` is 0. After the last block the row's result is `out` over that sum.
//!
//! Per row: 16 scores, each summed in ascending order of the head's floats; their maximum, a fixed tree; what was
//! summed before is scaled; the values are added in ascending depth, those that the row sees and no other. So a
//! row's bits depend on its history alone, not on the rows beside it, nor on where keys and values lie.

use inkwell::IntPredicate;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{BasicValue, BasicValueEnum, FloatValue, IntValue, PointerValue, VectorValue};

use super::attention::BLOCK;
use super::exp::{emit_exp, emit_tanh};
use super::pack::emit_transpose;
use super::{Emitter, Param, vector};
use crate::kernels::{Error, Machine};

/// What a kernel is generated for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Floats of a head.
    pub dim: usize,
    /// Query rows.
    pub rows: usize,
    /// Whether scores are capped: `cap · tanh(score / cap)`.
    pub capped: bool,
}

/// Query rows of the largest kernel: as many sums as the registers hold beside a vector of keys.
pub fn most_rows(machine: &Machine) -> usize {
    if machine.lanes == BLOCK { 8 } else { 4 }
}

/// Emits the kernel that lays a block of keys out depth by depth.
pub fn emit_keys<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    dim: usize,
) -> Result<(), Error> {
    // Wider squares would not fit the registers.
    let side = machine.lanes.min(8);
    let f = Emitter::function(context, module, machine, name, &[Param::Pointer; 3]);
    let (k, places, to) = (f.pointer_param(0)?, f.pointer_param(1)?, f.pointer_param(2)?);
    let key = |t: usize| f.float_address(k, f.load_int(places, f.int(t))?);
    let square = |first: IntValue<'c>, width: usize| -> Result<(), Error> {
        for group in 0..BLOCK / side {
            let lines = (0..side)
                .map(|t| {
                    let line = f.load(width, f.float_address(key(group * side + t)?, first)?)?;
                    let widened: Vec<usize> = (0..side).map(|lane| lane.min(width)).collect();
                    f.shuffle(line, f.constant_splat(width, 0.0), &widened)
                })
                .collect::<Result<Vec<_>, _>>()?;
            for (i, column) in emit_transpose(&f, lines)?.into_iter().take(width).enumerate() {
                let b = f.builder();
                let at = b.build_int_nsw_mul(b.build_int_nsw_add(first, f.int(i), "")?, f.int(BLOCK), "")?;
                let at = b.build_int_nsw_add(at, f.int(group * side), "")?;
                f.store(f.float_address(to, at)?, column)?;
            }
        }
        Ok(())
    };
    let whole = dim / side * side;
    f.for_loop((f.int(0), f.int(whole), side), &[], |first, _| square(first, side).map(|()| Vec::new()))?;
    if whole < dim {
        square(f.int(whole), dim - whole)?;
    }
    f.finish()?;
    Ok(())
}

/// Emits the kernel of the shape's rows.
pub fn emit_attend<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    shape: Shape,
) -> Result<(), Error> {
    use Param::{Float, Pointer};
    let params = [Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Float, Float];
    let f = Emitter::function(context, module, machine, name, &params);
    let weights = f.stack_floats(BLOCK * shape.rows)?;
    let block = Block { f: &f, shape, weights };
    let seen = block.seen()?;
    let scores = block.scores()?;
    let fades = scores
        .into_iter()
        .enumerate()
        .map(|(row, scores)| block.softmax(row, scores, seen[row]))
        .collect::<Result<Vec<_>, _>>()?;
    let is_full = block.is_full(&seen)?;
    let once = |flag: IntValue<'c>| (f.int(0), flag, 1);
    let is_cut = f.builder().build_xor(is_full, f.int(1), "")?;
    f.for_loop(once(is_full), &[], |_, _| block.add_full(&fades).map(|()| Vec::new()))?;
    f.for_loop(once(is_cut), &[], |_, _| block.add_cut(&fades, &seen).map(|()| Vec::new()))?;
    f.finish()?;
    Ok(())
}

/// The kernel being emitted.
struct Block<'c, 'm, 'f> {
    f: &'f Emitter<'c, 'm>,
    shape: Shape,
    /// `rows` × 16 exponentials.
    weights: PointerValue<'c>,
}

impl<'c> Block<'c, '_, '_> {
    /// The address of row `row` in parameter `base`.
    fn row(&self, base: u32, row: usize) -> Result<PointerValue<'c>, Error> {
        let f = self.f;
        f.float_address(f.pointer_param(base)?, f.load_int(f.pointer_param(2)?, f.int(row))?)
    }

    /// The first depth that each row sees, and the one behind the last.
    fn seen(&self) -> Result<Vec<(IntValue<'c>, IntValue<'c>)>, Error> {
        let (f, seen) = (self.f, self.f.pointer_param(4)?);
        let bound = |index: usize| f.load_int(seen, f.int(index));
        (0..self.shape.rows).map(|row| Ok((bound(2 * row)?, bound(2 * row + 1)?))).collect()
    }

    /// 1 where every row sees all depths, else 0.
    fn is_full(&self, seen: &[(IntValue<'c>, IntValue<'c>)]) -> Result<IntValue<'c>, Error> {
        let (f, b) = (self.f, self.f.builder());
        let mut all = f.context().bool_type().const_int(1, false);
        for &(first, end) in seen {
            let starts = b.build_int_compare(IntPredicate::EQ, first, f.int(0), "")?;
            let ends = b.build_int_compare(IntPredicate::EQ, end, f.int(BLOCK), "")?;
            all = b.build_and(all, b.build_and(starts, ends, "")?, "")?;
        }
        Ok(b.build_int_z_extend(all, f.context().i64_type(), "")?)
    }

    /// `scale · q · k` for all depths of the block, one vector a row; capped where the shape says so.
    fn scores(&self) -> Result<Vec<VectorValue<'c>>, Error> {
        let f = self.f;
        let q = (0..self.shape.rows).map(|row| self.row(0, row)).collect::<Result<Vec<_>, _>>()?;
        let keys = f.pointer_param(5)?;
        let zero: BasicValueEnum = f.constant_splat(BLOCK, 0.0).into();
        let sums = f.for_loop((f.int(0), f.int(self.shape.dim), 1), &vec![zero; q.len()], |i, sums| {
            let at = f.builder().build_int_nsw_mul(i, f.int(BLOCK), "")?;
            let keys = f.load(BLOCK, f.float_address(keys, at)?)?;
            q.iter()
                .zip(sums)
                .map(|(&q, &sum)| {
                    let element = f.splat(BLOCK, f.load_float(f.float_address(q, i)?)?)?;
                    Ok(f.fma(element, keys, vector(sum)?)?.as_basic_value_enum())
                })
                .collect()
        })?;
        let (scale, cap) = (f.splat(BLOCK, f.float_param(8)?)?, f.splat(BLOCK, f.float_param(9)?)?);
        sums.into_iter()
            .map(|sum| {
                let scores = f.mul(vector(sum)?, scale)?;
                if self.shape.capped { f.mul(emit_tanh(f, f.div(scores, cap)?)?, cap) } else { Ok(scores) }
            })
            .collect()
    }

    /// Stores the exponentials of a row's scores and its new state; returns by how much its sum fades.
    fn softmax(
        &self,
        row: usize,
        scores: VectorValue<'c>,
        seen: (IntValue<'c>, IntValue<'c>),
    ) -> Result<FloatValue<'c>, Error> {
        let (f, b) = (self.f, self.f.builder());
        let state = f.float_address(f.pointer_param(3)?, f.int(2 * row))?;
        let greatest = f.load_float(state)?;
        let total = f.load_float(f.float_address(state, f.int(1))?)?;
        let scores = self.mask(seen, scores, f32::NEG_INFINITY)?;
        let block_greatest = f.reduce(scores, |a, b| f.max(a, b))?;
        let new_greatest = f.scalar(|[a, b]| f.max(a, b), [greatest, block_greatest])?;
        let fade = f.scalar(|[a, b]| emit_exp(f, f.sub(a, b)?), [greatest, new_greatest])?;
        let exps = emit_exp(f, f.sub(scores, f.splat(BLOCK, new_greatest)?)?)?;
        let exps = self.mask(seen, exps, 0.0)?;
        f.store(f.float_address(self.weights, f.int(row * BLOCK))?, exps)?;
        let block_total = f.reduce(exps, |a, b| f.add(a, b))?;
        let new_total = b.build_float_add(b.build_float_mul(total, fade, "")?, block_total, "")?;
        f.store_float(state, 0, new_greatest)?;
        f.store_float(state, 1, new_total)?;
        Ok(fade)
    }

    /// `values` with `other` where the row does not see.
    fn mask(
        &self,
        (first, end): (IntValue<'c>, IntValue<'c>),
        values: VectorValue<'c>,
        other: f32,
    ) -> Result<VectorValue<'c>, Error> {
        let (f, b) = (self.f, self.f.builder());
        let narrow = f.context().i32_type();
        let lanes: Vec<_> = (0..BLOCK).map(|lane| narrow.const_int(lane as u64, false)).collect();
        let lanes = inkwell::types::VectorType::const_vector(&lanes);
        let splat = |bound: IntValue<'c>| -> Result<VectorValue<'c>, Error> {
            let bound = b.build_int_truncate(bound, narrow, "")?;
            let poison = narrow.vec_type(BLOCK as u32).get_poison();
            let one = b.build_insert_element(poison, bound, narrow.const_zero(), "")?;
            f.shuffle(one, one, &[0; BLOCK])
        };
        let below = b.build_int_compare(IntPredicate::SLT, lanes, splat(end)?, "")?;
        let above = b.build_int_compare(IntPredicate::SGE, lanes, splat(first)?, "")?;
        let inside = b.build_and(below, above, "")?;
        vector(b.build_select(inside, values, f.constant_splat(BLOCK, other), "")?)
    }

    /// Vectors that the head is cut into: first float and lanes.
    fn pieces(&self) -> Vec<(usize, usize)> {
        let lanes = self.f.machine().lanes;
        (0..self.shape.dim).step_by(lanes).map(|first| (first, lanes.min(self.shape.dim - first))).collect()
    }

    /// `out = out · fade + Σ weight · value` for rows that see the whole block, tiles of rows and pieces at a time.
    fn add_full(&self, fades: &[FloatValue<'c>]) -> Result<(), Error> {
        const PIECES: usize = 4;
        let tile = most_rows(self.f.machine()) / 2;
        let range = (self.f.int(0), self.f.int(BLOCK));
        for pieces in self.pieces().chunks(PIECES) {
            for first in (0..self.shape.rows).step_by(tile) {
                let rows: Vec<usize> = (first..self.shape.rows.min(first + tile)).collect();
                self.add(&rows, pieces, fades, range)?;
            }
        }
        Ok(())
    }

    /// The same where a row sees some depths only, a row at a time.
    fn add_cut(&self, fades: &[FloatValue<'c>], seen: &[(IntValue<'c>, IntValue<'c>)]) -> Result<(), Error> {
        const PIECES: usize = 4;
        for pieces in self.pieces().chunks(PIECES) {
            for (row, &range) in seen.iter().enumerate() {
                self.add(&[row], pieces, fades, range)?;
            }
        }
        Ok(())
    }

    fn add(
        &self,
        rows: &[usize],
        pieces: &[(usize, usize)],
        fades: &[FloatValue<'c>],
        (first, end): (IntValue<'c>, IntValue<'c>),
    ) -> Result<(), Error> {
        let f = self.f;
        let (values, places) = (f.pointer_param(6)?, f.pointer_param(7)?);
        let mut sums: Vec<BasicValueEnum<'c>> = Vec::new();
        for &row in rows {
            let out = self.row(1, row)?;
            for &(start, lanes) in pieces {
                let old = f.load(lanes, f.float_address(out, f.int(start))?)?;
                sums.push(f.mul(old, f.splat(lanes, fades[row])?)?.into());
            }
        }
        let sums = f.for_loop((first, end, 1), &sums, |t, sums| {
            let value = f.float_address(values, f.load_int(places, t)?)?;
            let value = pieces
                .iter()
                .map(|&(start, lanes)| f.load(lanes, f.float_address(value, f.int(start))?))
                .collect::<Result<Vec<_>, _>>()?;
            let mut next = Vec::new();
            for (&row, sums) in rows.iter().zip(sums.chunks(pieces.len())) {
                let at = f.builder().build_int_nsw_add(t, f.int(row * BLOCK), "")?;
                let weight = f.load_float(f.float_address(self.weights, at)?)?;
                for ((&value, &sum), &(_, lanes)) in value.iter().zip(sums).zip(pieces) {
                    next.push(f.fma(f.splat(lanes, weight)?, value, vector(sum)?)?.as_basic_value_enum());
                }
            }
            Ok(next)
        })?;
        for (&row, sums) in rows.iter().zip(sums.chunks(pieces.len())) {
            let out = self.row(1, row)?;
            for (&(start, _), &sum) in pieces.iter().zip(sums) {
                f.store(f.float_address(out, f.int(start))?, vector(sum)?)?;
            }
        }
        Ok(())
    }
}
