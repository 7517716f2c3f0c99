//! The two places where building LLVM IR is `unsafe`: address arithmetic and foreign modules.

use inkwell::builder::Builder;
use inkwell::types::BasicType;
use inkwell::values::{IntValue, PointerValue};

use crate::kernels::Error;

/// The address of element `index` of an array of `element` at `base`.
pub fn element_address<'c>(
    builder: &Builder<'c>,
    element: impl BasicType<'c>,
    base: PointerValue<'c>,
    index: IntValue<'c>,
) -> Result<PointerValue<'c>, Error> {
    // SAFETY: one index over a sized scalar or vector type is always well formed; the instruction is not `inbounds`.
    Ok(unsafe { builder.build_gep(element, base, &[index], "") }?)
}
