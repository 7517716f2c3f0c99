//! Loops that reach the machine's own limits, against which kernels are judged.

use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{BasicValue, BasicValueEnum, VectorValue};

use super::{Emitter, Param, vector};
use crate::kernels::{Error, Machine};

/// Independent chains of multiply-adds: more than latency times units of any core at hand.
pub const PEAK_CHAINS: usize = 12;
/// Multiply-adds of every chain in one turn of the peak loop.
pub const PEAK_UNROLL: usize = 4;
/// Vectors that one turn of the read loop sums, each into its own accumulator.
pub const READ_VECTORS: usize = 8;

/// `name(i64 turns, f32 *memory)`: [`PEAK_CHAINS`] × [`PEAK_UNROLL`] vector multiply-adds a turn.
///
/// `memory` has one vector, which is the operand and receives the result.
pub fn emit_peak<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
) -> Result<(), Error> {
    let params = [Param::Int, Param::Pointer];
    let f = Emitter::function(context, module, machine, name, &params);
    let (turns, memory) = (f.int_param(0)?, f.pointer_param(1)?);
    let x = f.load(machine.lanes, memory)?;
    let start: Vec<BasicValueEnum> =
        (0..PEAK_CHAINS).map(|chain| f.constant_splat(machine.lanes, chain as f32 / 100.0).into()).collect();
    let end = f.for_loop((f.int(0), turns, 1), &start, |_, chains| {
        let mut chains = vectors(chains)?;
        for _ in 0..PEAK_UNROLL {
            for chain in &mut chains {
                *chain = f.fma(*chain, x, x)?;
            }
        }
        Ok(values(chains))
    })?;
    f.store(memory, sum(&f, vectors(&end)?)?)?;
    f.finish()?;
    Ok(())
}

/// `name(i64 count, f32 *memory, f32 *result)`: reads `count` floats, a multiple of
/// [`READ_VECTORS`] vectors, and stores one vector of sums.
pub fn emit_read<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
) -> Result<(), Error> {
    let params = [Param::Int, Param::Pointer, Param::Pointer];
    let f = Emitter::function(context, module, machine, name, &params);
    let (count, memory, result) = (f.int_param(0)?, f.pointer_param(1)?, f.pointer_param(2)?);
    let lanes = machine.lanes;
    let zero: BasicValueEnum = f.constant_splat(lanes, 0.0).into();
    let step = READ_VECTORS * lanes;
    let end = f.for_loop((f.int(0), count, step), &[zero; READ_VECTORS], |i, sums| {
        let at = f.float_address(memory, i)?;
        let mut sums = vectors(sums)?;
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = f.add(*sum, f.load(lanes, f.float_address(at, f.int(j * lanes))?)?)?;
        }
        Ok(values(sums))
    })?;
    f.store(result, sum(&f, vectors(&end)?)?)?;
    f.finish()?;
    Ok(())
}

fn vectors<'c>(values: &[BasicValueEnum<'c>]) -> Result<Vec<VectorValue<'c>>, Error> {
    values.iter().map(|&value| vector(value)).collect()
}

fn values(vectors: Vec<VectorValue<'_>>) -> Vec<BasicValueEnum<'_>> {
    vectors.into_iter().map(|value| value.as_basic_value_enum()).collect()
}

fn sum<'c>(f: &Emitter<'c, '_>, terms: Vec<VectorValue<'c>>) -> Result<VectorValue<'c>, Error> {
    let (&first, rest) = terms.split_first().ok_or(Error::UnexpectedType("sum"))?;
    rest.iter().try_fold(first, |sum, &term| f.add(sum, term))
}
