//! Puts [`emit_exp`] in the place of LLVM's `llvm.exp` in modules that come from elsewhere.
//!
//! Left alone, LLVM's loop vectoriser takes vectors of exp apart and calls libm for each element.
//! Here, before optimisation, scalar calls go to a function of ours that names its vector
//! variant (the vector function ABI), so that loops with it are vectorised as if it were one
//! instruction; afterwards both are inlined. Vector and scalar run the same operations, so an
//! element has the same bits in a loop's vector part and in its remainder.

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::{Linkage, Module};
use inkwell::values::{BasicValue, CallSiteValue, FunctionValue, InstructionOpcode};

use super::exp::emit_exp;
use super::{Emitter, float, vector};
use crate::kernels::{Error, Machine};

/// The passes that follow [`make_inline`].
pub const INLINE_PASSES: &str = "always-inline,function(instcombine<no-verify-fixpoint>,early-cse),globaldce";

const SCALAR: &str = "llvm.exp.f32";

/// Defines and calls our exp wherever `module` calls LLVM's; returns the names of what it defined.
pub fn replace_exp<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
) -> Result<Vec<String>, Error> {
    let declared: Vec<(FunctionValue<'c>, usize)> = module
        .get_functions()
        .filter_map(|function| Some((function, lanes_of(&function.get_name().to_string_lossy())?)))
        .collect();
    let mut defined = Vec::new();
    for &(intrinsic, lanes) in declared.iter().filter(|(_, lanes)| *lanes > 1) {
        let ours = emit_vector_exp(context, module, machine, lanes)?;
        intrinsic.replace_all_uses_with(ours);
        defined.push(vector_name(lanes));
    }
    if let Some(&(intrinsic, _)) = declared.iter().find(|(_, lanes)| *lanes == 1) {
        if !defined.contains(&vector_name(machine.lanes)) {
            emit_vector_exp(context, module, machine, machine.lanes)?;
            defined.push(vector_name(machine.lanes));
        }
        name_vector_variant(context, module, machine.lanes);
        intrinsic.replace_all_uses_with(emit_scalar_exp(context, module, machine)?);
        defined.push(scalar_name());
    }
    Ok(defined)
}

/// Lets the functions that [`replace_exp`] defined be inlined and then dropped.
pub fn make_inline<'c>(context: &'c Context, module: &Module<'c>, names: &[String]) {
    for function in names.iter().filter_map(|name| module.get_function(name)) {
        let noinline = Attribute::get_named_enum_kind_id("noinline");
        function.remove_enum_attribute(AttributeLoc::Function, noinline);
        let inline = Attribute::get_named_enum_kind_id("alwaysinline");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(inline, 0));
        function.set_linkage(Linkage::Internal);
    }
}

/// Lanes of an exp intrinsic's name: 1 of the scalar, n of `llvm.exp.v<n>f32`.
fn lanes_of(name: &str) -> Option<usize> {
    if name == SCALAR {
        return Some(1);
    }
    name.strip_prefix("llvm.exp.v")?.strip_suffix("f32")?.parse().ok()
}

fn scalar_name() -> String {
    "t3c_exp_f32".to_owned()
}

fn vector_name(lanes: usize) -> String {
    format!("t3c_exp_v{lanes}f32")
}

/// Marks every call to the scalar intrinsic with the variant that does `lanes` at once.
fn name_vector_variant<'c>(context: &'c Context, module: &Module<'c>, lanes: usize) {
    let variant = format!("_ZGV_LLVM_N{lanes}v_{}({})", scalar_name(), vector_name(lanes));
    let attribute = context.create_string_attribute("vector-function-abi-variant", &variant);
    let instructions = module
        .get_functions()
        .flat_map(|function| function.get_basic_block_iter())
        .flat_map(|block| block.get_instructions())
        .filter(|instruction| instruction.get_opcode() == InstructionOpcode::Call);
    for call in instructions.filter_map(|call| CallSiteValue::try_from(call).ok()) {
        let callee = call.get_called_fn_value();
        if callee.is_some_and(|callee| callee.get_name().to_bytes() == SCALAR.as_bytes()) {
            call.add_attribute(AttributeLoc::Function, attribute);
        }
    }
}

fn emit_vector_exp<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    lanes: usize,
) -> Result<FunctionValue<'c>, Error> {
    let ty = context.f32_type().vec_type(lanes as u32);
    let function_type = ty.fn_type(&[ty.into()], false);
    let f = Emitter::start(context, module, machine, &vector_name(lanes), function_type);
    let result = emit_exp(&f, vector(f.param(0)?)?)?;
    f.finish_pure(&result)
}

fn emit_scalar_exp<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
) -> Result<FunctionValue<'c>, Error> {
    let ty = context.f32_type();
    let f = Emitter::start(context, module, machine, &scalar_name(), ty.fn_type(&[ty.into()], false));
    let result = emit_exp(&f, f.splat(1, float(f.param(0)?)?)?)?;
    let result = f.lane(result, 0)?;
    f.finish_pure(&result)
}

impl<'c> Emitter<'c, '_> {
    /// Ends a function that only computes `result`, and keeps it whole until [`make_inline`].
    fn finish_pure(self, result: &dyn BasicValue<'c>) -> Result<FunctionValue<'c>, Error> {
        self.builder.build_return(Some(result))?;
        // `memory` with value 0 means: reads and writes none.
        for attribute in ["noinline", "memory", "willreturn"] {
            self.set_attribute(AttributeLoc::Function, attribute);
        }
        Ok(self.function)
    }
}
