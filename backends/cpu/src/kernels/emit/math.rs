//! Puts our polynomials in the place of LLVM's and libm's exp, tanh and erf in modules that come from elsewhere.
//!
//! Left alone, LLVM's loop vectoriser takes vectors of them apart and calls libm for each element.
//! Here, before optimisation, scalar calls go to a function of ours that names its vector
//! variant (the vector function ABI), so that loops with it are vectorised as if it were one
//! instruction; afterwards both are inlined. Vector and scalar run the same operations, so an
//! element has the same bits in a loop's vector part and in its remainder.

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::{Linkage, Module};
use inkwell::values::{BasicValue, CallSiteValue, FunctionValue, InstructionOpcode, VectorValue};

use super::exp::{emit_erf, emit_exp, emit_tanh};
use super::{Emitter, float, vector};
use crate::kernels::{Error, Machine};

/// The passes that follow [`make_inline`].
pub const INLINE_PASSES: &str = "always-inline,function(instcombine<no-verify-fixpoint>,early-cse),globaldce";

/// Emits one of our functions on vectors.
type Emit = for<'c, 'm, 'f> fn(&'f Emitter<'c, 'm>, VectorValue<'c>) -> Result<VectorValue<'c>, Error>;

/// A function with a polynomial of ours.
#[derive(Clone, Copy)]
struct Polynomial {
    name: &'static str,
    /// What modules call for one element.
    scalar: &'static str,
    emit: Emit,
}

const POLYNOMIALS: [Polynomial; 3] = [
    Polynomial { name: "exp", scalar: "llvm.exp.f32", emit: emit_exp },
    Polynomial { name: "tanh", scalar: "llvm.tanh.f32", emit: emit_tanh },
    Polynomial { name: "erf", scalar: "erff", emit: emit_erf },
];

/// Defines and calls ours wherever `module` calls another exp, tanh or erf; returns the names of what it defined.
pub fn replace_functions<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
) -> Result<Vec<String>, Error> {
    let mut defined = Vec::new();
    for polynomial in POLYNOMIALS {
        polynomial.replace(context, module, machine, &mut defined)?;
    }
    Ok(defined)
}

impl Polynomial {
    fn replace<'c>(
        self,
        context: &'c Context,
        module: &Module<'c>,
        machine: &Machine,
        defined: &mut Vec<String>,
    ) -> Result<(), Error> {
        let declared: Vec<(FunctionValue<'c>, usize)> = module
            .get_functions()
            .filter_map(|function| Some((function, self.lanes_of(&function.get_name().to_string_lossy())?)))
            .collect();
        for &(intrinsic, lanes) in declared.iter().filter(|(_, lanes)| *lanes > 1) {
            let ours = self.emit_vector(context, module, machine, lanes)?;
            intrinsic.replace_all_uses_with(ours);
            defined.push(self.vector_name(lanes));
        }
        if let Some(&(intrinsic, _)) = declared.iter().find(|(_, lanes)| *lanes == 1) {
            if !defined.contains(&self.vector_name(machine.lanes)) {
                self.emit_vector(context, module, machine, machine.lanes)?;
                defined.push(self.vector_name(machine.lanes));
            }
            self.name_vector_variant(context, module, machine.lanes);
            intrinsic.replace_all_uses_with(self.emit_scalar(context, module, machine)?);
            defined.push(self.scalar_name());
        }
        Ok(())
    }

    /// Lanes of the function called `name`: 1 of the scalar, n of `llvm.exp.v<n>f32`.
    fn lanes_of(self, name: &str) -> Option<usize> {
        if name == self.scalar {
            return Some(1);
        }
        let lanes = name.strip_prefix("llvm.")?.strip_prefix(self.name)?.strip_prefix(".v")?;
        lanes.strip_suffix("f32")?.parse().ok()
    }

    fn scalar_name(self) -> String {
        format!("t3c_{}_f32", self.name)
    }

    fn vector_name(self, lanes: usize) -> String {
        format!("t3c_{}_v{lanes}f32", self.name)
    }

    /// Marks every call to the scalar function with the variant that does `lanes` at once.
    fn name_vector_variant<'c>(self, context: &'c Context, module: &Module<'c>, lanes: usize) {
        let variant = format!("_ZGV_LLVM_N{lanes}v_{}({})", self.scalar_name(), self.vector_name(lanes));
        let attribute = context.create_string_attribute("vector-function-abi-variant", &variant);
        let instructions = module
            .get_functions()
            .flat_map(|function| function.get_basic_block_iter())
            .flat_map(|block| block.get_instructions())
            .filter(|instruction| instruction.get_opcode() == InstructionOpcode::Call);
        for call in instructions.filter_map(|call| CallSiteValue::try_from(call).ok()) {
            let callee = call.get_called_fn_value();
            if callee.is_some_and(|callee| callee.get_name().to_bytes() == self.scalar.as_bytes()) {
                call.add_attribute(AttributeLoc::Function, attribute);
            }
        }
    }

    fn emit_vector<'c>(
        self,
        context: &'c Context,
        module: &Module<'c>,
        machine: &Machine,
        lanes: usize,
    ) -> Result<FunctionValue<'c>, Error> {
        let ty = context.f32_type().vec_type(lanes as u32);
        let function_type = ty.fn_type(&[ty.into()], false);
        let f = Emitter::start(context, module, machine, &self.vector_name(lanes), function_type);
        let result = (self.emit)(&f, vector(f.param(0)?)?)?;
        f.finish_pure(&result)
    }

    fn emit_scalar<'c>(
        self,
        context: &'c Context,
        module: &Module<'c>,
        machine: &Machine,
    ) -> Result<FunctionValue<'c>, Error> {
        let ty = context.f32_type();
        let function_type = ty.fn_type(&[ty.into()], false);
        let f = Emitter::start(context, module, machine, &self.scalar_name(), function_type);
        let result = (self.emit)(&f, f.splat(1, float(f.param(0)?)?)?)?;
        let result = f.lane(result, 0)?;
        f.finish_pure(&result)
    }
}

/// Lets the functions that [`replace_functions`] defined be inlined and then dropped.
pub fn make_inline<'c>(context: &'c Context, module: &Module<'c>, names: &[String]) {
    for function in names.iter().filter_map(|name| module.get_function(name)) {
        let noinline = Attribute::get_named_enum_kind_id("noinline");
        function.remove_enum_attribute(AttributeLoc::Function, noinline);
        let inline = Attribute::get_named_enum_kind_id("alwaysinline");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(inline, 0));
        function.set_linkage(Linkage::Internal);
    }
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
