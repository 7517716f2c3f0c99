//! From the LLVM dialect to LLVM: the one call that crosses from MLIR's library to LLVM's.

use t3c_ir::Module;

use crate::{Error, kernels::JitBuilder};

/// Translates a module of the LLVM dialect and hands it to `jit`.
pub fn into_jit(module: &Module<'_>, jit: &mut JitBuilder) -> Result<(), Error> {
    // SAFETY: both bindings link the same static LLVM, so a context of one is a context of the other. The
    // translated module is a fresh one in the builder's context and goes to the builder alone.
    unsafe {
        let context = jit.raw_context();
        let translated = mlir_sys::mlirTranslateModuleToLLVMIR(
            melior::ir::operation::OperationLike::to_raw(&module.op()),
            context.cast(),
        );
        if translated.is_null() {
            let diagnostics = module.context().take_diagnostics();
            let text = diagnostics
                .first()
                .map_or_else(|| "translation to LLVM failed".to_owned(), ToString::to_string);
            return Err(t3c_ir::Error::Invalid(text).into());
        }
        jit.add_raw_module(translated.cast())?;
    }
    Ok(())
}
