//! Modules in, addresses out: LLVM's MCJIT behind a type that owns everything compiled code needs.
//!
//! A [`JitBuilder`] owns an LLVM context and collects modules: those our generators emit and
//! those that MLIR translates into the same context. [`JitBuilder::finish`] compiles all of them
//! and looks every function up, after which nothing in the [`Jit`] changes: it is shared between
//! threads by reference or `Arc`, and addresses are good as long as it lives.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::execution_engine::ExecutionEngine;
use inkwell::module::{Linkage, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{FileType, TargetMachine};

use crate::kernels::emit::math;
use crate::kernels::{Error, Machine};

/// Passes for generated kernels, whose loops are already vectors and unrolled as they should be:
/// more of it would only take time.
const GENERATED: &str = "default<O1>";
/// Passes for modules that come from elsewhere.
const TRANSLATED: &str = "default<O3>";

/// A form in which a module can be written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// Optimised LLVM IR as text.
    Llvm,
    /// Assembly.
    Asm,
    /// A relocatable object file.
    Object,
}

/// A context behind a stable address, freed when the last user in the same struct is gone.
struct OwnedContext(NonNull<Context>);

impl OwnedContext {
    fn new() -> Self {
        OwnedContext(NonNull::from(Box::leak(Box::new(Context::create()))))
    }

    /// The context, for as long as the owner keeps `self`.
    ///
    /// # Safety
    /// Nothing made from the reference may outlive `self`.
    unsafe fn get(&self) -> &'static Context {
        // SAFETY: the box lives until `drop`, which the caller keeps behind every use.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for OwnedContext {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` and is freed here alone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Collects modules to compile together.
pub struct JitBuilder {
    // Fields drop in order: modules and target before the context they live in.
    modules: Vec<Module<'static>>,
    target: TargetMachine,
    symbols: Vec<(String, usize)>,
    machine: Machine,
    context: OwnedContext,
}

impl JitBuilder {
    /// Starts with no module, for code that runs on `machine`.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        Ok(JitBuilder {
            modules: Vec::new(),
            target: machine.llvm_target()?,
            symbols: Vec::new(),
            machine: machine.clone(),
            context: OwnedContext::new(),
        })
    }

    /// The LLVM context (`LLVMContextRef`), for a translation from MLIR.
    pub fn raw_context(&self) -> *mut c_void {
        // SAFETY: the reference ends with this call.
        unsafe { self.context.get() }.raw().cast()
    }

    /// Adds a module that `fill` emits.
    pub fn add_module(
        &mut self,
        name: &str,
        fill: impl for<'c> FnOnce(&'c Context, &Module<'c>, &Machine) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: the module goes into `self.modules` or is dropped here, and `fill`, which must
        // accept any lifetime, cannot keep the reference.
        let context = unsafe { self.context.get() };
        let module = context.create_module(name);
        fill(context, &module, &self.machine)?;
        self.optimise_and_keep(module, GENERATED)
    }

    /// Adds a module that was built elsewhere in [`JitBuilder::raw_context`], such as MLIR's translation.
    ///
    /// Each of its functions gets the machine's target attributes, and calls to exp, tanh and erf become
    /// our polynomials, vectors of it in vectorised loops. Functions it only declares are
    /// resolved among the other modules, [`JitBuilder::map_symbol`] and the process.
    ///
    /// # Safety
    /// `module` is a valid `LLVMModuleRef` of this builder's context that nothing else owns.
    pub unsafe fn add_raw_module(&mut self, module: *mut c_void) -> Result<(), Error> {
        // SAFETY: by the caller's promise; from here on this builder owns the module.
        let module: Module<'static> = unsafe { Module::new(module.cast()) };
        // SAFETY: as in `add_module`.
        let context = unsafe { self.context.get() };
        for function in module.get_functions().filter(|f| f.count_basic_blocks() > 0) {
            self.machine.set_target(context, function);
        }
        self.optimise_and_keep(module, TRANSLATED)
    }

    /// Makes calls to `name` go to `address`.
    ///
    /// # Safety
    /// `address` is a function of the type that the modules declare for `name`, and stays one as
    /// long as compiled code may call it.
    pub unsafe fn map_symbol(&mut self, name: &str, address: usize) {
        self.symbols.push((name.to_owned(), address));
    }

    fn optimise_and_keep(&mut self, module: Module<'static>, passes: &str) -> Result<(), Error> {
        let name = module.get_name().to_string_lossy().into_owned();
        module.set_triple(&self.target.get_triple());
        module.set_data_layout(&self.target.get_target_data().get_data_layout());
        module.verify().map_err(|text| Error::Verify { module: name.clone(), message: text.to_string() })?;
        // SAFETY: as in `add_module`; `module` is of this context.
        let context = unsafe { self.context.get() };
        let functions = math::replace_functions(context, &module, &self.machine)?;
        self.run_passes(&module, passes)?;
        if !functions.is_empty() {
            math::make_inline(context, &module, &functions);
            self.run_passes(&module, math::INLINE_PASSES)?;
        }
        self.modules.push(module);
        Ok(())
    }

    fn run_passes(&self, module: &Module<'_>, passes: &str) -> Result<(), Error> {
        module.run_passes(passes, &self.target, PassBuilderOptions::create()).map_err(|text| {
            let module = module.get_name().to_string_lossy().into_owned();
            Error::Compile { module, message: text.to_string() }
        })
    }

    /// Every module so far, optimised, in the form asked for: (module's name, contents).
    pub fn emit(&self, form: Emit) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.modules
            .iter()
            .map(|module| {
                let name = module.get_name().to_string_lossy().into_owned();
                let contents = match form {
                    Emit::Llvm => module.print_to_string().to_bytes().to_vec(),
                    Emit::Asm => self.machine_code(module, FileType::Assembly)?,
                    Emit::Object => self.machine_code(module, FileType::Object)?,
                };
                Ok((name, contents))
            })
            .collect()
    }

    /// As [`JitBuilder::emit`], with all modules linked into one.
    pub fn emit_linked(mut self, form: Emit) -> Result<Vec<u8>, Error> {
        let mut modules = std::mem::take(&mut self.modules).into_iter();
        if let Some(whole) = modules.next() {
            for module in modules {
                let name = module.get_name().to_string_lossy().into_owned();
                whole
                    .link_in_module(module)
                    .map_err(|text| Error::Compile { module: name, message: text.to_string() })?;
            }
            self.modules.push(whole);
        }
        Ok(self.emit(form)?.pop().map(|(_, contents)| contents).unwrap_or_default())
    }

    fn machine_code(&self, module: &Module<'_>, kind: FileType) -> Result<Vec<u8>, Error> {
        let buffer = self.target.write_to_memory_buffer(module, kind).map_err(|text| {
            let module = module.get_name().to_string_lossy().into_owned();
            Error::Compile { module, message: text.to_string() }
        })?;
        Ok(buffer.as_slice().to_vec())
    }

    /// Compiles every module and looks up every function with a body.
    pub fn finish(mut self) -> Result<Jit, Error> {
        // SAFETY: the engine is kept beside the context, which `Jit` drops last.
        let context = unsafe { self.context.get() };
        let root = context.create_module("root");
        let engine = root
            .create_jit_execution_engine(OptimizationLevel::Aggressive)
            .map_err(|text| Error::Compile { module: "root".into(), message: text.to_string() })?;
        let mut names = Vec::new();
        for module in self.modules.drain(..) {
            for (symbol, address) in &self.symbols {
                if let Some(function) = module.get_function(symbol) {
                    engine.add_global_mapping(&function, *address);
                }
            }
            names.extend(public_functions(&module));
            let name = module.get_name().to_string_lossy().into_owned();
            engine.add_module(&module).map_err(|()| Error::Compile {
                module: name,
                message: "it belongs to another engine".into(),
            })?;
        }
        drop(root);
        let mut addresses = HashMap::with_capacity(names.len());
        for name in names {
            let address =
                engine.get_function_address(&name).map_err(|_| Error::MissingFunction(name.clone()))?;
            addresses.insert(name, address);
        }
        Ok(Jit { addresses, engine: ManuallyDrop::new(engine), _context: self.context })
    }
}

fn public_functions(module: &Module<'_>) -> Vec<String> {
    let visible = [Linkage::External, Linkage::WeakAny, Linkage::WeakODR];
    module
        .get_functions()
        .filter(|f| f.count_basic_blocks() > 0 && visible.contains(&f.get_linkage()))
        .map(|f| f.get_name().to_string_lossy().into_owned())
        .collect()
}

/// Compiled code and what keeps it alive.
pub struct Jit {
    addresses: HashMap<String, usize>,
    engine: ManuallyDrop<ExecutionEngine<'static>>,
    _context: OwnedContext,
}

// SAFETY: after `finish` nothing reads or changes the engine and the context but `drop`, which
// runs once, on whichever thread lets go last. The reference count inside the engine's handle is
// never touched in between.
unsafe impl Send for Jit {}
// SAFETY: as above; through a shared reference only the table of addresses is read.
unsafe impl Sync for Jit {}

impl Jit {
    /// Address of the compiled function `name`.
    ///
    /// Calling it is the caller's promise: that the type is right, and that this `Jit` lives.
    pub fn address(&self, name: &str) -> Result<usize, Error> {
        self.addresses.get(name).copied().ok_or_else(|| Error::MissingFunction(name.to_owned()))
    }

    /// The compiled function `name` as a function pointer of type `F`.
    ///
    /// # Safety
    /// `F` is an `unsafe extern "C" fn` of the type that the function was emitted with, and is
    /// not called after this `Jit` is gone.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, Error> {
        const { assert!(size_of::<F>() == size_of::<usize>(), "F is a function pointer") };
        let address = self.address(name)?;
        // SAFETY: a function pointer is an address; the type is the caller's promise.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }

    /// Names of all compiled functions, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.addresses.keys().map(String::as_str)
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        // SAFETY: dropped here alone, before the context, which is a field and goes after this.
        unsafe { ManuallyDrop::drop(&mut self.engine) };
    }
}

#[cfg(test)]
mod math_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::emit::{Emitter, Param};

    fn emit_store<'c>(
        context: &'c Context,
        module: &Module<'c>,
        machine: &Machine,
        value: f32,
    ) -> Result<(), Error> {
        let f = Emitter::function(context, module, machine, "store", &[Param::Pointer]);
        f.store(f.pointer_param(0)?, f.float(value))?;
        f.finish().map(|_| ())
    }

    #[test]
    fn a_function_runs_on_another_thread_after_the_builder_is_gone() {
        let machine = Machine::host().expect("host");
        let mut builder = JitBuilder::new(&machine).expect("builder");
        builder.add_module("one", |c, m, t| emit_store(c, m, t, 2.5)).expect("module");
        let jit = std::sync::Arc::new(builder.finish().expect("jit"));
        let thread = std::thread::spawn(move || {
            let mut result = 0.0f32;
            // SAFETY: `store` takes one pointer to a float, and `jit` is alive.
            unsafe {
                let store: unsafe extern "C" fn(*mut f32) = jit.function("store").expect("store");
                store(&mut result);
            }
            drop(jit);
            result
        });
        assert_eq!(thread.join().expect("joined"), 2.5);
    }

    #[test]
    fn a_foreign_module_is_compiled_beside_ours() {
        let machine = Machine::host().expect("host");
        let mut builder = JitBuilder::new(&machine).expect("builder");
        // SAFETY: the module is made in the builder's context and given away at once.
        unsafe {
            let context = builder.context.get();
            let module = context.create_module("foreign");
            emit_store(context, &module, &machine, 7.0).expect("emitted");
            let raw = module.as_mut_ptr().cast();
            std::mem::forget(module);
            builder.add_raw_module(raw).expect("added");
        }
        let text = builder.emit(Emit::Llvm).expect("text");
        assert!(String::from_utf8_lossy(&text[0].1).contains("define void @store"));
        let object = builder.emit(Emit::Object).expect("object").remove(0).1;
        assert!(object.starts_with(b"\x7fELF"));
        // ELF-64: the table of sections begins at `e_shoff`, 64 bytes a section, and ends the file.
        let field = |at: usize, len: usize| {
            object[at..at + len].iter().rev().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte))
        };
        assert_eq!(field(0x28, 8) + field(0x3c, 2) * field(0x3a, 2), object.len());
        assert!(builder.finish().expect("jit").address("store").is_ok());
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let jit = JitBuilder::new(&Machine::host().expect("host"));
        let jit = jit.expect("builder").finish().expect("jit");
        assert!(matches!(jit.address("nothing"), Err(Error::MissingFunction(_))));
    }
}
