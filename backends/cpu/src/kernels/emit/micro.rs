//! The matrix product's micro-kernel.
//!
//! ```text
//!   void kernel(i64 k, f32 *a, f32 *b, f32 *c, i64 *rows)
//!
//!           b: k × NR, one row of NR floats after the other
//!           ┌───────────────┐ k
//!           └───────────────┘
//!   a: k × H, one column of H floats after the other
//!   ┌──┐    ┌───────────────┐
//!   │  │ H  │       c       │  row i begins at c + rows[i] and holds NR consecutive floats
//!   └──┘    └───────────────┘
//!     k
//! ```
//!
//! - H is the kernel's height, at most MR; NR is vectors × lanes. Both are the generator's. A narrow
//!   kernel computes fewer columns than a row of `b` holds, the first ones.
//! - No alignment beyond a float's; 64 bytes are faster. `a`, `b`, `c` and `rows` do not overlap.
//! - Each element is the sum from zero of `a × b` in ascending k, by fused multiply-add where
//!   the machine has it. Then the [`Epilogue`] runs. An element thus does not depend on H, on
//!   its place in the block or on its neighbours: kernels of every height give the same bits.
//! - All H × NR elements are written; edges go through a padded copy.
//! - k may be 0: the sum is then zero.

use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PointerValue, VectorValue};

use super::{Emitter, Param, pointer, vector};
use crate::kernels::{Error, Machine};

/// What happens to the finished sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// C = sums.
    Store,
    /// C = C + sums, with one rounding an element.
    Update,
}

impl Epilogue {
    /// Every epilogue, in the order in which kernels are kept.
    pub const ALL: [Epilogue; 2] = [Epilogue::Store, Epilogue::Update];

    /// The part of a kernel's name that tells it from others.
    pub fn name(self) -> &'static str {
        match self {
            Epilogue::Store => "store",
            Epilogue::Update => "update",
        }
    }
}

/// Shape of one micro-kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// H: rows of C.
    pub rows: usize,
    /// Vectors in a row of C.
    pub vectors: usize,
    /// Vectors in a row of the packed B, at least as many.
    pub panel_vectors: usize,
    /// Steps of K in one turn of the loop.
    pub unroll: usize,
}

/// Emits `name` with the contract above.
pub fn emit_micro_kernel<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    shape: Shape,
    epilogue: Epilogue,
) -> Result<(), Error> {
    use Param::{Int, Pointer};
    let params = [Int, Pointer, Pointer, Pointer, Pointer];
    let f = Emitter::function(context, module, machine, name, &params);
    let (k, a, b) = (f.int_param(0)?, f.pointer_param(1)?, f.pointer_param(2)?);

    emit_prefetch_c(&f, shape)?;
    let zero: BasicValueEnum = f.constant_splat(machine.lanes, 0.0).into();
    let mut state: Vec<BasicValueEnum> = vec![a.into(), b.into()];
    state.extend(vec![zero; shape.rows * shape.vectors]);

    let remainder = f.builder().build_int_unsigned_rem(k, f.int(shape.unroll), "")?;
    let whole = f.builder().build_int_nsw_sub(k, remainder, "")?;
    for (start, end, steps) in [(f.int(0), whole, shape.unroll), (whole, k, 1)] {
        state = f.for_loop((start, end, steps), &state, |_, state| emit_k_steps(&f, shape, steps, state))?;
    }

    let sums = state[2..].iter().map(|&sum| vector(sum)).collect::<Result<Vec<_>, _>>()?;
    emit_epilogue(&f, shape, epilogue, &sums)?;
    f.finish()?;
    Ok(())
}

/// `steps` rank-1 updates; `state` is the address of A, the address of B, and the sums.
fn emit_k_steps<'c>(
    f: &Emitter<'c, '_>,
    shape: Shape,
    steps: usize,
    state: &[BasicValueEnum<'c>],
) -> Result<Vec<BasicValueEnum<'c>>, Error> {
    let lanes = f.machine().lanes;
    let (mut a, mut b) = (pointer(state[0])?, pointer(state[1])?);
    let mut sums = state[2..].iter().map(|&sum| vector(sum)).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..steps {
        let b_row = emit_load_row(f, shape, b)?;
        for row in 0..shape.rows {
            let a_element = f.load_float(f.float_address(a, f.int(row))?)?;
            let a_broadcast = f.splat(lanes, a_element)?;
            for (sum, &b_vector) in sums[row * shape.vectors..].iter_mut().zip(&b_row) {
                *sum = f.fma(a_broadcast, b_vector, *sum)?;
            }
        }
        a = f.float_address(a, f.int(shape.rows))?;
        b = f.float_address(b, f.int(shape.panel_vectors * lanes))?;
    }
    let mut next: Vec<BasicValueEnum> = vec![a.into(), b.into()];
    next.extend(sums.into_iter().map(|sum| sum.as_basic_value_enum()));
    Ok(next)
}

fn emit_load_row<'c>(
    f: &Emitter<'c, '_>,
    shape: Shape,
    at: PointerValue<'c>,
) -> Result<Vec<VectorValue<'c>>, Error> {
    let lanes = f.machine().lanes;
    (0..shape.vectors).map(|j| f.load(lanes, f.float_address(at, f.int(j * lanes))?)).collect()
}

fn row_of_c<'c>(f: &Emitter<'c, '_>, row: IntValue<'c>) -> Result<PointerValue<'c>, Error> {
    let offset = f.load_int(f.pointer_param(4)?, row)?;
    f.float_address(f.pointer_param(3)?, offset)
}

/// The block of C is asked for at entry, and has arrived when the sums are ready.
fn emit_prefetch_c(f: &Emitter<'_, '_>, shape: Shape) -> Result<(), Error> {
    const FLOATS_A_LINE: usize = 16;
    for row in 0..shape.rows {
        let c = row_of_c(f, f.int(row))?;
        for column in (0..shape.vectors * f.machine().lanes).step_by(FLOATS_A_LINE) {
            f.prefetch_for_write(f.float_address(c, f.int(column))?)?;
        }
    }
    Ok(())
}

fn emit_epilogue<'c>(
    f: &Emitter<'c, '_>,
    shape: Shape,
    epilogue: Epilogue,
    sums: &[VectorValue<'c>],
) -> Result<(), Error> {
    let lanes = f.machine().lanes;
    for (row, sums) in sums.chunks(shape.vectors).enumerate() {
        let c = row_of_c(f, f.int(row))?;
        for (j, &sum) in sums.iter().enumerate() {
            let at = f.float_address(c, f.int(j * lanes))?;
            let result = match epilogue {
                Epilogue::Store => sum,
                Epilogue::Update => f.add(f.load(lanes, at)?, sum)?,
            };
            f.store(at, result)?;
        }
    }
    Ok(())
}
