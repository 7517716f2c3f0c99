//! exp, tanh and erf as vector polynomials.

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

    let polynomial = emit_horner(f, &POLYNOMIAL, r)?;
    let exp_r = f.add(f.fma(polynomial, f.mul(r, r)?, r)?, constant(1.0))?;
    emit_scale_by_power(f, exp_r, shifted)
}

/// (tanh(x) − x) / x³ in powers of x², highest first, for |x| < 0.625 (Cephes, `tanhf.c`).
const TANH: [f32; 5] = [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];

/// tanh of every lane, within 4 units in the last place.
pub fn emit_tanh<'c>(f: &Emitter<'c, '_>, x: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
    let lanes = x.get_type().get_size() as usize;
    let constant = |value| f.constant_splat(lanes, value);
    let square = f.mul(x, x)?;
    let small = emit_horner(f, &TANH, square)?;
    let small = f.fma(f.mul(small, square)?, x, x)?;
    // 1 − 2 / (exp(2x) + 1): exact at infinities, NaN stays.
    let exp = emit_exp(f, f.add(x, x)?)?;
    let large = f.sub(constant(1.0), f.div(constant(2.0), f.add(exp, constant(1.0))?)?)?;
    let is_small =
        f.builder().build_float_compare(FloatPredicate::OLT, square, constant(0.625 * 0.625), "")?;
    vector(f.builder().build_select(is_small, small, large, "")?)
}

/// erf(x) ≈ x · P(x²) / Q(x²) for |x| ≤ 4, beyond which it is ±1; highest powers first (Eigen).
const ERF_P: [f32; 7] = [
    -2.726_142_3e-10,
    2.770_681_4e-8,
    -2.101_024e-6,
    -5.692_506_5e-5,
    -7.349_906_3e-4,
    -2.954_6e-3,
    -1.609_603_3e-2,
];
const ERF_Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];

/// erf of every lane, within 2⁻²¹ absolutely.
pub fn emit_erf<'c>(f: &Emitter<'c, '_>, x: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
    let lanes = x.get_type().get_size() as usize;
    let x = emit_clamp(f, x, f.constant_splat(lanes, -4.0), f.constant_splat(lanes, 4.0))?;
    let square = f.mul(x, x)?;
    let (p, q) = (emit_horner(f, &ERF_P, square)?, emit_horner(f, &ERF_Q, square)?);
    f.div(f.mul(x, p)?, q)
}

/// The polynomial of these coefficients, highest power first.
fn emit_horner<'c>(
    f: &Emitter<'c, '_>,
    coefficients: &[f32],
    x: VectorValue<'c>,
) -> Result<VectorValue<'c>, Error> {
    let lanes = x.get_type().get_size() as usize;
    let (&highest, rest) = coefficients.split_first().ok_or(Error::UnexpectedType("polynomial"))?;
    let start = f.constant_splat(lanes, highest);
    rest.iter().try_fold(start, |sum, &next| f.fma(sum, x, f.constant_splat(lanes, next)))
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
