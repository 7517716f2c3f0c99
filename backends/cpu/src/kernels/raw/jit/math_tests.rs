//! exp in a foreign module: near libm's, the same bits in vectors as alone, and vectorised.

use super::*;
use crate::kernels::Isa;
use inkwell::memory_buffer::MemoryBuffer;

/// A loop over floats that calls `callee` for each.
fn loop_over(name: &str, callee: &str) -> String {
    LOOP_OVER.replace("NAME", name).replace("CALLEE", callee)
}

const LOOP_OVER: &str = "
define void @NAME(i64 %n, ptr noalias %from, ptr noalias %to) {
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %head ]
  %x.at = getelementptr float, ptr %from, i64 %i
  %x = load float, ptr %x.at
  %y = call float @CALLEE(float %x)
  %y.at = getelementptr float, ptr %to, i64 %i
  store float %y, ptr %y.at
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %head, label %exit
exit:
  ret void
}
";

const LOOP: &str = "
define <4 x float> @exp_four(<4 x float> %x) {
  %y = call <4 x float> @llvm.exp.v4f32(<4 x float> %x)
  ret <4 x float> %y
}
define void @others(ptr noalias %x.at, ptr noalias %to) {
  %x = load float, ptr %x.at
  %log = call float @llvm.log.f32(float %x)
  %cos = call float @llvm.cos.f32(float %log)
  store float %cos, ptr %to
  ret void
}
declare float @llvm.log.f32(float)
declare float @llvm.tanh.f32(float)
declare float @llvm.cos.f32(float)
declare float @llvm.exp.f32(float)
declare float @erff(float)
declare <4 x float> @llvm.exp.v4f32(<4 x float>)
";

fn builder(isa: Isa) -> Option<JitBuilder> {
    let mut builder = JitBuilder::new(&Machine::with_isa(isa).ok()?).expect("builder");
    // SAFETY: the module is made in the builder's context and given away at once.
    unsafe {
        let loops = [("exp_all", "llvm.exp.f32"), ("tanh_all", "llvm.tanh.f32"), ("erf_all", "erff")];
        let loops = loops.map(|(name, callee)| loop_over(name, callee)).concat();
        let text = format!("{loops}{LOOP}\0");
        let text = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "exp");
        let module = builder.context.get().create_module_from_ir(text).expect("IR");
        let raw = module.as_mut_ptr().cast();
        std::mem::forget(module);
        builder.add_raw_module(raw).expect("module");
    }
    Some(builder)
}

fn exp_all(jit: &Jit, from: &[f32]) -> Vec<f32> {
    all(jit, "exp_all", from)
}

fn all(jit: &Jit, name: &str, from: &[f32]) -> Vec<f32> {
    let mut to = vec![0.0f32; from.len()];
    // SAFETY: the loops have this type, and read and write as many floats as they are told.
    unsafe {
        let run: unsafe extern "C" fn(i64, *const f32, *mut f32) = jit.function(name).expect("function");
        run(from.len() as i64, from.as_ptr(), to.as_mut_ptr());
    }
    to
}

/// Units in the last place between `x` and the exact value.
fn ulps(x: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
    (f64::from(x) - exact).abs() / unit
}

fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512].into_iter()
}

#[test]
fn exp_is_within_two_units_and_has_libms_limits() {
    for jit in isas().filter_map(builder).map(|builder| builder.finish().expect("jit")) {
        let xs: Vec<f32> = (0..200_001).map(|i| -103.5 + i as f32 * 192.2e-5).collect();
        for (x, y) in xs.iter().zip(exp_all(&jit, &xs)) {
            let exact = f64::from(*x).exp();
            if exact < f64::from(f32::MAX) {
                assert!(ulps(y, exact) <= 2.0, "exp({x}) = {y}, not {exact}");
            }
        }
        let edges = [f32::NEG_INFINITY, -1e30, -104.5, 89.0, 1e30, f32::INFINITY, 0.0, -0.0];
        let expected = [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY, 1.0, 1.0];
        assert_eq!(exp_all(&jit, &edges), expected);
        assert!(exp_all(&jit, &[f32::NAN])[0].is_nan());
    }
}

#[test]
fn functions_without_a_polynomial_are_libms() {
    let builder = builder(Machine::best_isa().expect("host")).expect("builder");
    let jit = builder.finish().expect("jit");
    let (x, mut y) = (2.5f32, 0.0f32);
    // SAFETY: `others` has this type.
    unsafe {
        let others: unsafe extern "C" fn(*const f32, *mut f32) = jit.function("others").expect("function");
        others(&x, &mut y);
    }
    assert!((y - x.ln().cos()).abs() < 1e-6, "{y}");
}

#[test]
fn exp_has_the_same_bits_in_vectors_and_alone() {
    for jit in isas().filter_map(builder).map(|builder| builder.finish().expect("jit")) {
        let xs: Vec<f32> = (0..1001).map(|i| -90.0 + i as f32 * 0.179).collect();
        let alone: Vec<u32> = xs.iter().map(|&x| exp_all(&jit, &[x])[0].to_bits()).collect();
        let together: Vec<u32> = exp_all(&jit, &xs).iter().map(|y| y.to_bits()).collect();
        assert_eq!(alone, together);
    }
}

#[test]
fn loops_with_exp_are_vectorised_without_a_call() {
    for builder in isas().filter_map(builder) {
        let text = String::from_utf8(builder.emit(Emit::Llvm).expect("text").remove(0).1).expect("UTF-8");
        let lanes = builder.machine.lanes;
        assert!(text.contains(&format!("store <{lanes} x float>")), "vectorised");
        for name in ["exp.f32(", "tanh.f32(", "erff(float", "@t3c_"] {
            assert!(!text.contains(name), "{name} is inlined");
        }
    }
}

/// erf by its series, which converges for any argument.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn tanh_and_erf_are_near_the_exact_values() {
    for jit in isas().filter_map(builder).map(|builder| builder.finish().expect("jit")) {
        let xs: Vec<f32> = (0..20_001).map(|i| -10.0 + i as f32 * 1e-3).collect();
        for (x, y) in xs.iter().zip(all(&jit, "tanh_all", &xs)) {
            let exact = f64::from(*x).tanh();
            assert!(ulps(y, exact) <= 4.0, "tanh({x}) = {y}, not {exact}");
        }
        let xs: Vec<f32> = (0..8001).map(|i| -4.0 + i as f32 * 1e-3).collect();
        for (x, y) in xs.iter().zip(all(&jit, "erf_all", &xs)) {
            let exact = erf(f64::from(*x));
            assert!((f64::from(y) - exact).abs() <= 4.7e-7, "erf({x}) = {y}, not {exact}");
        }
        let edges = [f32::NEG_INFINITY, f32::INFINITY, 0.0];
        assert_eq!(all(&jit, "tanh_all", &edges), [-1.0, 1.0, 0.0]);
        for (y, expected) in all(&jit, "erf_all", &edges).into_iter().zip([-1.0, 1.0, 0.0]) {
            assert!((y - expected).abs() < 4.7e-7);
        }
        assert!(
            all(&jit, "tanh_all", &[f32::NAN])[0].is_nan() && all(&jit, "erf_all", &[f32::NAN])[0].is_nan()
        );
    }
}
