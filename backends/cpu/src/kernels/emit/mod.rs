//! Small pieces from which kernels are emitted: a function, loops with carried values, vectors.
//!
//! An [`Emitter`] owns the builder of one function. Loops are closures that receive the values
//! carried around the loop and return their next ones, so that no kernel handles basic blocks.

pub mod attend;
pub mod attention;
pub mod exp;
pub mod math;
pub mod measure;
pub mod micro;
pub mod pack;

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::builder::Builder;
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Module;
use inkwell::types::{BasicMetadataTypeEnum, BasicTypeEnum, FunctionType, VectorType};
use inkwell::values::{
    BasicMetadataValueEnum, BasicValue, BasicValueEnum, FloatValue, FunctionValue, IntValue, PointerValue,
    VectorValue,
};
use inkwell::{AddressSpace, IntPredicate};

use super::raw::ir::element_address;
use super::{Error, Machine};

/// Type of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A count or stride, `i64`.
    Int,
    /// A scalar, `f32`.
    Float,
    /// Memory that no other pointer parameter overlaps.
    Pointer,
}

/// Emits the body of one function.
pub struct Emitter<'c, 'm> {
    context: &'c Context,
    module: &'m Module<'c>,
    machine: &'m Machine,
    builder: Builder<'c>,
    function: FunctionValue<'c>,
}

impl<'c, 'm> Emitter<'c, 'm> {
    /// Starts a function that returns nothing.
    pub fn function(
        context: &'c Context,
        module: &'m Module<'c>,
        machine: &'m Machine,
        name: &str,
        params: &[Param],
    ) -> Self {
        let types: Vec<BasicMetadataTypeEnum> = params
            .iter()
            .map(|param| match param {
                Param::Int => context.i64_type().into(),
                Param::Float => context.f32_type().into(),
                Param::Pointer => context.ptr_type(AddressSpace::default()).into(),
            })
            .collect();
        let function_type = context.void_type().fn_type(&types, false);
        let this = Self::start(context, module, machine, name, function_type);
        for (index, param) in (0u32..).zip(params) {
            if *param == Param::Pointer {
                this.set_attribute(AttributeLoc::Param(index), "noalias");
            }
        }
        this
    }

    /// Starts a function of any type.
    fn start(
        context: &'c Context,
        module: &'m Module<'c>,
        machine: &'m Machine,
        name: &str,
        function_type: FunctionType<'c>,
    ) -> Self {
        let function = module.add_function(name, function_type, None);
        machine.set_target(context, function);
        let builder = context.create_builder();
        builder.position_at_end(context.append_basic_block(function, "entry"));
        Emitter { context, module, machine, builder, function }
    }

    fn set_attribute(&self, place: AttributeLoc, name: &str) {
        let kind = Attribute::get_named_enum_kind_id(name);
        self.function.add_attribute(place, self.context.create_enum_attribute(kind, 0));
    }

    /// The machine that code is emitted for.
    pub fn machine(&self) -> &'m Machine {
        self.machine
    }

    /// Ends the function.
    pub fn finish(self) -> Result<FunctionValue<'c>, Error> {
        self.builder.build_return(None)?;
        Ok(self.function)
    }

    fn param(&self, index: u32) -> Result<BasicValueEnum<'c>, Error> {
        self.function.get_nth_param(index).ok_or(Error::UnexpectedType("parameter"))
    }

    /// Parameter `index`, a [`Param::Pointer`].
    pub fn pointer_param(&self, index: u32) -> Result<PointerValue<'c>, Error> {
        pointer(self.param(index)?)
    }

    /// Parameter `index`, a [`Param::Int`].
    pub fn int_param(&self, index: u32) -> Result<IntValue<'c>, Error> {
        int(self.param(index)?)
    }

    /// Parameter `index`, a [`Param::Float`].
    pub fn float_param(&self, index: u32) -> Result<FloatValue<'c>, Error> {
        float(self.param(index)?)
    }

    /// A constant `i64`.
    pub fn int(&self, value: usize) -> IntValue<'c> {
        self.context.i64_type().const_int(value as u64, false)
    }

    /// A constant `f32`.
    pub fn float(&self, value: f32) -> FloatValue<'c> {
        self.context.f32_type().const_float(f64::from(value))
    }

    /// The vector type of `lanes` floats.
    pub fn vector_type(&self, lanes: usize) -> VectorType<'c> {
        self.context.f32_type().vec_type(lanes as u32)
    }

    /// A constant vector.
    pub fn constant(&self, values: &[f32]) -> VectorValue<'c> {
        let values: Vec<_> = values.iter().map(|&value| self.float(value)).collect();
        VectorType::const_vector(&values)
    }

    /// A vector of `lanes` times `value`.
    pub fn constant_splat(&self, lanes: usize, value: f32) -> VectorValue<'c> {
        self.constant(&vec![value; lanes])
    }

    /// `lanes` copies of a scalar.
    pub fn splat(&self, lanes: usize, value: FloatValue<'c>) -> Result<VectorValue<'c>, Error> {
        let ty = self.vector_type(lanes);
        let zero = self.context.i32_type().const_zero();
        let first = self.builder.build_insert_element(ty.get_poison(), value, zero, "")?;
        self.shuffle(first, first, &vec![0; lanes])
    }

    /// Lanes of `a` and `b` (numbered after those of `a`) in the order of `lanes`.
    pub fn shuffle(
        &self,
        a: VectorValue<'c>,
        b: VectorValue<'c>,
        lanes: &[usize],
    ) -> Result<VectorValue<'c>, Error> {
        let i32_type = self.context.i32_type();
        let mask: Vec<_> = lanes.iter().map(|&lane| i32_type.const_int(lane as u64, false)).collect();
        Ok(self.builder.build_shuffle_vector(a, b, VectorType::const_vector(&mask), "")?)
    }

    /// One lane of a vector.
    pub fn lane(&self, vector: VectorValue<'c>, lane: usize) -> Result<FloatValue<'c>, Error> {
        let index = self.context.i32_type().const_int(lane as u64, false);
        float(self.builder.build_extract_element(vector, index, "")?)
    }

    /// `base + index` in floats.
    pub fn float_address(
        &self,
        base: PointerValue<'c>,
        index: IntValue<'c>,
    ) -> Result<PointerValue<'c>, Error> {
        element_address(&self.builder, self.context.f32_type(), base, index)
    }

    /// Loads `lanes` consecutive floats from any float's address.
    pub fn load(&self, lanes: usize, at: PointerValue<'c>) -> Result<VectorValue<'c>, Error> {
        let loaded = self.builder.build_load(self.vector_type(lanes), at, "")?;
        align_to_float(loaded)?;
        vector(loaded)
    }

    /// Loads one float.
    pub fn load_float(&self, at: PointerValue<'c>) -> Result<FloatValue<'c>, Error> {
        float(self.builder.build_load(self.context.f32_type(), at, "")?)
    }

    /// Loads element `index` of an array of `i64`.
    pub fn load_int(&self, base: PointerValue<'c>, index: IntValue<'c>) -> Result<IntValue<'c>, Error> {
        let ty = self.context.i64_type();
        let at = element_address(&self.builder, ty, base, index)?;
        int(self.builder.build_load(ty, at, "")?)
    }

    /// Loads element `index` of an array of `i32`, sign-extended.
    pub fn load_index(&self, base: PointerValue<'c>, index: IntValue<'c>) -> Result<IntValue<'c>, Error> {
        let ty = self.context.i32_type();
        let at = element_address(&self.builder, ty, base, index)?;
        let narrow = int(self.builder.build_load(ty, at, "")?)?;
        Ok(self.builder.build_int_s_extend(narrow, self.context.i64_type(), "")?)
    }

    /// Stores a vector or float to any float's address.
    pub fn store(&self, at: PointerValue<'c>, value: impl BasicValue<'c>) -> Result<(), Error> {
        let store = self.builder.build_store(at, value)?;
        store.set_alignment(4).map_err(|_| Error::UnexpectedType("store"))
    }

    /// Memory for `count` floats on this call's stack; to be asked for before any loop.
    pub fn stack_floats(&self, count: usize) -> Result<PointerValue<'c>, Error> {
        Ok(self.builder.build_alloca(self.vector_type(count), "")?)
    }

    /// Hints that the line at `at` is about to be written.
    pub fn prefetch_for_write(&self, at: PointerValue<'c>) -> Result<(), Error> {
        let i32_type = self.context.i32_type();
        let (write, keep, data) = (1, 3, 1);
        let flags = [write, keep, data].map(|flag| i32_type.const_int(flag, false).into());
        let pointer_type = at.get_type().into();
        self.call_void("llvm.prefetch", pointer_type, &[at.into(), flags[0], flags[1], flags[2]])
    }

    /// `a × b + c`, rounded once where the machine can.
    pub fn fma(
        &self,
        a: VectorValue<'c>,
        b: VectorValue<'c>,
        c: VectorValue<'c>,
    ) -> Result<VectorValue<'c>, Error> {
        if self.machine.fma { self.call_vector("llvm.fma", &[a, b, c]) } else { self.add(self.mul(a, b)?, c) }
    }

    /// `a × b`.
    pub fn mul(&self, a: VectorValue<'c>, b: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
        Ok(self.builder.build_float_mul(a, b, "")?)
    }

    /// `a + b`.
    pub fn add(&self, a: VectorValue<'c>, b: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
        Ok(self.builder.build_float_add(a, b, "")?)
    }

    /// `a − b`.
    pub fn sub(&self, a: VectorValue<'c>, b: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
        Ok(self.builder.build_float_sub(a, b, "")?)
    }

    /// `a / b`.
    pub fn div(&self, a: VectorValue<'c>, b: VectorValue<'c>) -> Result<VectorValue<'c>, Error> {
        Ok(self.builder.build_float_div(a, b, "")?)
    }

    /// Stores `value` as element `index` of an array of floats.
    pub fn store_float(
        &self,
        base: PointerValue<'c>,
        index: usize,
        value: FloatValue<'c>,
    ) -> Result<(), Error> {
        self.store(self.float_address(base, self.int(index))?, value)
    }

    /// The builder, for what has no name of its own here.
    pub fn builder(&self) -> &Builder<'c> {
        &self.builder
    }

    /// The LLVM context.
    pub fn context(&self) -> &'c Context {
        self.context
    }

    /// An intrinsic that is overloaded on its vector operands and returns one of them.
    pub fn call_vector(
        &self,
        name: &'static str,
        operands: &[VectorValue<'c>],
    ) -> Result<VectorValue<'c>, Error> {
        let first = operands.first().ok_or(Error::UnexpectedType("operand list"))?;
        let arguments: Vec<_> = operands.iter().map(|&value| value.into()).collect();
        vector(self.call(name, first.get_type().into(), &arguments)?)
    }

    fn call(
        &self,
        name: &'static str,
        overload: BasicTypeEnum<'c>,
        arguments: &[BasicMetadataValueEnum<'c>],
    ) -> Result<BasicValueEnum<'c>, Error> {
        let function = self.intrinsic(name, overload)?;
        let call = self.builder.build_call(function, arguments, "")?;
        call.try_as_basic_value().basic().ok_or(Error::UnexpectedType("intrinsic's result"))
    }

    fn call_void(
        &self,
        name: &'static str,
        overload: BasicTypeEnum<'c>,
        arguments: &[BasicMetadataValueEnum<'c>],
    ) -> Result<(), Error> {
        self.builder.build_call(self.intrinsic(name, overload)?, arguments, "")?;
        Ok(())
    }

    fn intrinsic(&self, name: &'static str, overload: BasicTypeEnum<'c>) -> Result<FunctionValue<'c>, Error> {
        Intrinsic::find(name)
            .and_then(|intrinsic| intrinsic.get_declaration(self.module, &[overload]))
            .ok_or(Error::Intrinsic(name))
    }

    /// Runs `body` for `index` in `start..end` by `step`, and returns the carried values after it.
    ///
    /// `body` gets the index and the carried values and returns the next ones. Nothing runs
    /// where `start ≥ end`; `end − start` should be a multiple of `step`.
    pub fn for_loop(
        &self,
        (start, end, step): (IntValue<'c>, IntValue<'c>, usize),
        carried: &[BasicValueEnum<'c>],
        body: impl FnOnce(IntValue<'c>, &[BasicValueEnum<'c>]) -> Result<Vec<BasicValueEnum<'c>>, Error>,
    ) -> Result<Vec<BasicValueEnum<'c>>, Error> {
        let unplaced = Error::UnexpectedType("insertion point");
        let before = self.builder.get_insert_block().ok_or(unplaced)?;
        let block = |name| self.context.append_basic_block(self.function, name);
        let (head, inside, after) = (block("head"), block("body"), block("after"));

        self.builder.build_unconditional_branch(head)?;
        self.builder.position_at_end(head);
        let index_phi = self.builder.build_phi(self.context.i64_type(), "i")?;
        index_phi.add_incoming(&[(&start, before)]);
        let mut phis = Vec::with_capacity(carried.len());
        for value in carried {
            let phi = self.builder.build_phi(value.get_type(), "")?;
            phi.add_incoming(&[(value, before)]);
            phis.push(phi);
        }
        let index = int(index_phi.as_basic_value())?;
        let more = self.builder.build_int_compare(IntPredicate::SLT, index, end, "")?;
        self.builder.build_conditional_branch(more, inside, after)?;

        self.builder.position_at_end(inside);
        let current: Vec<_> = phis.iter().map(|phi| phi.as_basic_value()).collect();
        let next = body(index, &current)?;
        let next_index = self.builder.build_int_nsw_add(index, self.int(step), "")?;
        let unplaced = Error::UnexpectedType("insertion point");
        let end_of_body = self.builder.get_insert_block().ok_or(unplaced)?;
        self.builder.build_unconditional_branch(head)?;
        index_phi.add_incoming(&[(&next_index, end_of_body)]);
        for (phi, value) in phis.iter().zip(&next) {
            phi.add_incoming(&[(value, end_of_body)]);
        }
        self.builder.position_at_end(after);
        Ok(current)
    }
}

/// `value` as an integer.
pub fn int(value: BasicValueEnum<'_>) -> Result<IntValue<'_>, Error> {
    value.try_into().map_err(|_| Error::UnexpectedType("integer"))
}

/// `value` as a float.
pub fn float(value: BasicValueEnum<'_>) -> Result<FloatValue<'_>, Error> {
    value.try_into().map_err(|_| Error::UnexpectedType("float"))
}

/// `value` as a pointer.
pub fn pointer(value: BasicValueEnum<'_>) -> Result<PointerValue<'_>, Error> {
    value.try_into().map_err(|_| Error::UnexpectedType("pointer"))
}

/// `value` as a vector.
pub fn vector(value: BasicValueEnum<'_>) -> Result<VectorValue<'_>, Error> {
    value.try_into().map_err(|_| Error::UnexpectedType("vector"))
}

fn align_to_float(loaded: BasicValueEnum<'_>) -> Result<(), Error> {
    let load = loaded.as_instruction_value().ok_or(Error::UnexpectedType("load"))?;
    load.set_alignment(4).map_err(|_| Error::UnexpectedType("load"))
}
