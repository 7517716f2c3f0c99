//! The exponential function as a vector polynomial.

use inkwell::FloatPredicate;
use inkwell::values::VectorValue;

use super::{Emitter, vector};
use crate::kernels::Error;

/// exp is 0 below this.
const LEAST: f32 = -104.0;
/// exp is infinite from here on.
const GREATEST: f32 = 89.0;
/// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first (355 / 512) has so few bits that its multiples are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// (exp(r) − 1 − r) / r² for |r| ≤ ln 2 / 2, highest power first (Cephes, `expf.c`).
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// exp of every lane, within 2 units in the last place; subnormal, infinite and NaN as in libm.
pub fn emit_exp<'c>(f: &Emitter<'c, '_>, x: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
    let lanes = x.get_type().get_size() as usize;
    let constant = |value| f.constant_splat(lanes, value);
    let x = emit_clamp(f, x, constant(LEAST), constant(GREATEST))?;

    // x = n · ln 2 + r
    let shifted = f.fma(x, constant(std::f32::consts::LOG2_E), constant(ROUND))?;
    let n = f.sub(shifted, constant(ROUND))?;
    let r = f.fma(n, constant(-LN_2[0]), x)?;
    let r = f.fma(n, constant(-LN_2[1]), r)?;

    let (&highest, rest) = POLYNOMIAL.split_first().ok_or(Error::UnexpectedType("polynomial"))?;
    let polynomial = rest.iter().try_fold(constant(highest), |sum, &next| f.fma(sum, r, constant(next)))?;
    let exp_r = f.add(f.fma(polynomial, f.mul(r, r)?, r)?, constant(1.0))?;
    emit_scale_by_power(f, exp_r, shifted)
}

/// tanh of every lane by way of exp, within 2⁻²³ absolutely; infinities give ±1.
pub fn emit_tanh<'c>(f: &Emitter<'c, '_>, x: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
    let lanes = x.get_type().get_size() as usize;
    let one = f.constant_splat(lanes, 1.0);
    let exp = emit_exp(f, f.add(x, x)?)?;
    f.sub(one, f.div(f.constant_splat(lanes, 2.0), f.add(exp, one)?)?)
}

/// Clamps, and keeps NaN: both comparisons are false of it.
fn emit_clamp<'c>(
    f: &Emitter<'c, '_>,
    x: VectorValue<'c>,
    least: VectorValue<'c>,
    greatest: VectorValue<'c>,
) -> Result<VectorValue<'c>, Error> {
    let b = f.builder();
    let below = b.build_float_compare(FloatPredicate::OLT, x, least, "")?;
    let x = vector(b.build_select(below, least, x, "")?)?;
    let above = b.build_float_compare(FloatPredicate::OGT, x, greatest, "")?;
    vector(b.build_select(above, greatest, x, "")?)
}

/// `value · 2ⁿ`, n in the low bits of `shifted`, in two steps so that either may leave the normal range.
fn emit_scale_by_power<'c>(
    f: &Emitter<'c, '_>,
    value: VectorValue<'c>,
    shifted: VectorValue<'c>,
) -> Result<VectorValue<'c>, Error> {
    const EXPONENT_BIAS: u64 = 127;
    const MANTISSA_BITS: u64 = 23;
    let b = f.builder();
    let lanes = value.get_type().get_size();
    let ints = f.context().i32_type().vec_type(lanes);
    let splat = |value: u64| {
        let scalar = f.context().i32_type().const_int(value, false);
        inkwell::types::VectorType::const_vector(&vec![scalar; lanes as usize])
    };
    let bits = vector(b.build_bit_cast(shifted, ints, "")?)?;
    let n = b.build_int_sub(bits, splat(u64::from(ROUND.to_bits())), "")?;
    let half = b.build_right_shift(n, splat(1), true, "")?;
    let rest = b.build_int_sub(n, half, "")?;
    let mut scaled = value;
    for part in [half, rest] {
        let exponent = b.build_int_add(part, splat(EXPONENT_BIAS), "")?;
        let power = b.build_left_shift(exponent, splat(MANTISSA_BITS), "")?;
        let power = vector(b.build_bit_cast(power, value.get_type(), "")?)?;
        scaled = f.mul(scaled, power)?;
    }
    Ok(scaled)
}
