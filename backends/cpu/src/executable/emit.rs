//! A schedule's code as LLVM IR, assembly or an object file, instead of in memory.

use t3c_ir::{Context, Module, function::functions};
use t3c_schedule::Schedule;

use super::{check_elements, prepare};
use crate::{
    Error,
    kernels::{Emit, Isa, JitBuilder, Kernels, Machine},
    lower::lower,
};

/// The code that [`Executable::new`](super::Executable::new) would run, as one module in the form asked for:
/// text, or a relocatable object.
///
/// # Errors
/// When a step has no native code, or compiling fails.
pub fn native_code(
    context: &Context,
    module: &Module<'_>,
    schedule: &Schedule,
    isa: Option<Isa>,
    form: Emit,
) -> Result<Vec<u8>, Error> {
    check_elements(schedule)?;
    let machine = match isa {
        Some(isa) => Machine::with_isa(isa)?,
        None => Machine::host()?,
    };
    let mut builder = JitBuilder::new(&machine)?;
    let symbols = prepare::kernel_symbols(schedule);
    let kernels: Vec<_> = functions(module.op())
        .into_iter()
        .filter(|function| symbols.iter().any(|s| *s == function.name()))
        .collect();
    lower(context, &kernels, &mut builder)?;
    Kernels::emit(&mut builder, &prepare::heads(schedule, &prepare::units(module)))?;
    Ok(builder.emit_linked(form)?)
}
