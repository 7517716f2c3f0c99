//! The MLIR context and modules: one type owns the context, collects its diagnostics and hands out borrows.

use std::{cell::RefCell, rc::Rc, sync::Once};

use melior::{
    dialect::DialectRegistry,
    ir::{Location, operation::OperationLike},
    pass::PassManager,
    utility::{
        parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
    },
};

use crate::{Error, Op, ffi};

/// How serious a diagnostic is. The numbers are MLIR's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Severity {
    Error = 0,
    Warning = 1,
    Note = 2,
    Remark = 3,
}

/// A message with the place in the user's input that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How serious.
    pub severity: Severity,
    /// `file:line:column`, preceded by the tensor's name where one is known.
    pub location: String,
    /// The text.
    pub message: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// An MLIR context with every upstream dialect, the t3 dialect, threading off, and its diagnostics collected.
pub struct Context {
    inner: melior::Context,
    diagnostics: Rc<RefCell<Vec<Diagnostic>>>,
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

impl Context {
    /// A fresh context. Registers upstream passes for the process on first use.
    pub fn new() -> Self {
        static PASSES: Once = Once::new();
        PASSES.call_once(register_all_passes);
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        ffi::insert_t3(&registry);
        let inner = melior::Context::new_with_threading(false);
        inner.append_dialect_registry(&registry);
        inner.load_all_available_dialects();
        register_all_llvm_translations(&inner);
        let diagnostics = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&diagnostics);
        inner.attach_diagnostic_handler(move |diagnostic| {
            let severity = match diagnostic.severity() {
                melior::diagnostic::DiagnosticSeverity::Error => Severity::Error,
                melior::diagnostic::DiagnosticSeverity::Warning => Severity::Warning,
                melior::diagnostic::DiagnosticSeverity::Note => Severity::Note,
                melior::diagnostic::DiagnosticSeverity::Remark => Severity::Remark,
            };
            sink.borrow_mut().push(Diagnostic {
                severity,
                location: render_location(diagnostic.location()),
                message: diagnostic.to_string(),
            });
            true
        });
        Self { inner, diagnostics }
    }

    /// The MLIR context itself.
    pub fn mlir(&self) -> &melior::Context {
        &self.inner
    }

    /// An empty module.
    pub fn module<'c>(&'c self, location: Location<'c>) -> Module<'c> {
        Module { inner: melior::ir::Module::new(location), context: self }
    }

    /// Parses and verifies a module. `name` is the file that its locations name.
    ///
    /// # Errors
    /// The first diagnostic, with its `file:line:column`.
    pub fn parse(&self, source: &str, name: &str) -> Result<Module<'_>, Error> {
        self.take_diagnostics();
        match ffi::parse_module(&self.inner, source, name) {
            Some(inner) => Ok(Module { inner, context: self }),
            None => Err(Error::Invalid(self.first_error(name))),
        }
    }

    /// Parses what a failed run of passes wrote, and gives its pipeline to `manager`.
    ///
    /// # Errors
    /// The first diagnostic, or that `source` is no reproducer.
    pub fn parse_reproducer<'c>(
        &'c self,
        source: &str,
        name: &str,
        manager: &PassManager<'c>,
    ) -> Result<Module<'c>, Error> {
        if !source.contains("mlir_reproducer") {
            return Err(Error::Invalid(format!(
                "{name}: no reproducer; expected the file of --mlir-pass-pipeline-crash-reproducer"
            )));
        }
        self.take_diagnostics();
        match ffi::parse_reproducer(&self.inner, source, name, manager) {
            Some(inner) => Ok(Module { inner, context: self }),
            None => Err(Error::Invalid(self.first_error(name))),
        }
    }

    /// The diagnostics since the last call, oldest first.
    pub fn take_diagnostics(&self) -> Vec<Diagnostic> {
        self.diagnostics.take()
    }

    fn first_error(&self, name: &str) -> String {
        let diagnostics = self.take_diagnostics();
        diagnostics
            .iter()
            .find(|diagnostic| diagnostic.severity == Severity::Error)
            .map_or_else(|| format!("{name}: not a valid MLIR module"), Diagnostic::to_string)
    }
}

/// A module and the context that it lives in.
pub struct Module<'c> {
    inner: melior::ir::Module<'c>,
    context: &'c Context,
}

impl<'c> Module<'c> {
    /// The module operation.
    pub fn op(&self) -> Op<'c, '_> {
        self.inner.as_operation()
    }

    /// The context.
    pub fn context(&self) -> &'c Context {
        self.context
    }

    /// The module's only block.
    pub fn body(&self) -> crate::Blk<'c, '_> {
        self.inner.body()
    }

    /// Checks every operation's constraints.
    ///
    /// # Errors
    /// The first diagnostic.
    pub fn verify(&self) -> Result<(), Error> {
        self.context.take_diagnostics();
        if self.op().verify() { Ok(()) } else { Err(Error::Invalid(self.context.first_error("module"))) }
    }

    /// Runs a textual pipeline, such as `builtin.module(canonicalize,t3-fuse)`.
    ///
    /// # Errors
    /// The pipeline's parse error, or the first error diagnostic of a pass.
    pub fn run(&mut self, pipeline: &str) -> Result<(), Error> {
        let manager = PassManager::new(self.context.mlir());
        parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline)?;
        self.run_manager(&manager)
    }

    /// Runs a pass manager that the caller filled.
    ///
    /// # Errors
    /// The first error diagnostic of a pass.
    pub fn run_manager(&mut self, manager: &PassManager<'c>) -> Result<(), Error> {
        manager.run(&mut self.inner).map_err(|_| Error::Invalid(self.context.first_error("pass pipeline")))
    }

    /// The textual form, with locations when `locations` is set.
    pub fn text(&self, locations: bool) -> String {
        let flags = melior::ir::operation::OperationPrintingFlags::new();
        let flags = if locations { flags.enable_debug_info(true, false) } else { flags };
        self.op().to_string_with_flags(flags).unwrap_or_default()
    }

    /// A deep copy.
    pub fn duplicate(&self) -> Module<'c> {
        let copy = ffi::clone(self.op());
        let inner = melior::ir::Module::from_operation(copy).unwrap_or_else(|| {
            // A clone of a module operation is a module operation.
            melior::ir::Module::new(Location::unknown(self.context.mlir()))
        });
        Module { inner, context: self.context }
    }

    /// Gives up the wrapper for the MLIR module inside.
    pub fn into_inner(self) -> melior::ir::Module<'c> {
        self.inner
    }
}

/// `model.layers.3.mlp.down_proj (config.json:12:5)`, as much of it as the location knows.
pub fn render_location(location: Location<'_>) -> String {
    if location.is_file_line_col_range() {
        let file = location.file_line_col_range_filename();
        let file = file.as_string_ref().as_str().unwrap_or("?").to_owned();
        return format!(
            "{file}:{}:{}",
            location.file_line_col_range_start_line(),
            location.file_line_col_range_start_column()
        );
    }
    if location.is_name() {
        let name = location.name_value();
        let name = name.as_string_ref().as_str().unwrap_or("?").to_owned();
        let child = render_location(location.name_child_location());
        return if child == UNKNOWN { name } else { format!("{name} ({child})") };
    }
    if location.is_fused() && location.fused_num_locations() > 0 {
        return render_location(location.fused_location(0));
    }
    if location.is_call_site() {
        return render_location(location.call_site_callee());
    }
    UNKNOWN.to_owned()
}

const UNKNOWN: &str = "unknown location";
