//! What a pass is, and how it becomes one of MLIR's.

use std::panic::{AssertUnwindSafe, catch_unwind};

use melior::{
    ir::{Location, OperationRef, operation::OperationLike, r#type::TypeId},
    pass::{ExternalPass, create_external},
};
use t3c_ir::{Op, Severity, ffi};

use crate::{
    decline::Decline,
    remark::{self, Kind, Remark},
};

/// A pass over a whole module.
///
/// It leaves valid IR, changes nothing when run a second time unless its summary says `once`, makes all its
/// checks before its first change, and gives every refusal a reason.
pub trait Pass: Clone + 'static {
    /// Its name in pipelines, `t3-…`.
    const NAME: &'static str;
    /// One line for `--list-passes`.
    const SUMMARY: &'static str;
    /// Its options, one `key=default: meaning` each.
    const OPTIONS: &'static [&'static str] = &[];

    /// The pass with these options, written as in a pipeline: `policy=always blocks=4`.
    ///
    /// # Errors
    /// [`PassError::Option`] for an unknown key or a value that does not fit.
    fn from_options(options: &str) -> Result<Self, PassError>;

    /// Runs over `module`.
    ///
    /// # Errors
    /// What makes the module unfit for the pass.
    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError>;
}

/// What can go wrong in a pass.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PassError {
    /// The IR could not be read or built.
    #[error(transparent)]
    Ir(#[from] t3c_ir::Error),
    /// An option that the pass does not know, or a value that does not fit.
    #[error("{pass}: option `{option}`: expected {expected}")]
    Option {
        /// The pass.
        pass: &'static str,
        /// The option as it was written.
        option: String,
        /// What it takes.
        expected: String,
    },
    /// The schedule would break one of its invariants.
    #[error("the schedule is not well formed: {0}")]
    Schedule(String),
    /// No pass of this name.
    #[error("no pass is called `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownPass {
        /// The name as it was written.
        name: String,
        /// The most similar name.
        nearest: Option<String>,
    },
}

impl PassError {
    /// An error about `operation`.
    pub fn at(operation: Op<'_, '_>, message: impl Into<String>) -> Self {
        PassError::Ir(t3c_ir::Error::at(operation, message))
    }
}

impl From<melior::Error> for PassError {
    fn from(error: melior::Error) -> Self {
        PassError::Ir(error.into())
    }
}

/// What a running pass knows about its run: where its remarks go.
pub struct PassContext {
    pass: &'static str,
}

impl PassContext {
    /// The context of a run of the pass called `pass`.
    pub fn new(pass: &'static str) -> Self {
        Self { pass }
    }

    /// Says that the pass did what it exists for at `operation`.
    pub fn passed(&self, operation: Op<'_, '_>, reason: &'static str, message: impl Into<String>) {
        self.remark(operation, Kind::Passed, reason, message.into(), 1, vec![], None);
    }

    /// States a fact about `operation`.
    pub fn analysis(&self, operation: Op<'_, '_>, reason: &'static str, message: impl Into<String>) {
        self.remark(operation, Kind::Analysis, reason, message.into(), 1, vec![], None);
    }

    /// Says why the pass left `operation` as it is.
    pub fn missed(&self, operation: Op<'_, '_>, decline: &Decline) {
        self.missed_times(operation, decline, 1);
    }

    /// As [`PassContext::missed`], for a place that the program meets `times` times.
    pub fn missed_times(&self, operation: Op<'_, '_>, decline: &Decline, times: u64) {
        self.remark(
            operation,
            Kind::Missed,
            decline.id(),
            decline.to_string(),
            times,
            decline.numbers(),
            decline.suggestion(),
        );
    }

    /// Any remark.
    #[allow(clippy::too_many_arguments)]
    pub fn remark(
        &self,
        operation: Op<'_, '_>,
        kind: Kind,
        reason: &'static str,
        message: String,
        times: u64,
        numbers: Vec<(&'static str, f64)>,
        suggest: Option<&'static str>,
    ) {
        self.note(operation, Note { kind, reason, message, times, numbers, suggest, pair: None });
    }

    /// Any remark, also about a pair.
    pub fn note(&self, operation: Op<'_, '_>, note: Note) {
        let Note { kind, reason, message, times, numbers, suggest, pair } = note;
        let (pass, location, function) = (self.pass, String::new(), String::new());
        let remark =
            Remark { kind, pass, reason, message, location, function, pair, times, numbers, suggest };
        remark::record(operation, remark);
    }
}

/// A remark before it has a place.
#[derive(Clone, Debug)]
pub struct Note {
    kind: Kind,
    reason: &'static str,
    message: String,
    times: u64,
    numbers: Vec<(&'static str, f64)>,
    suggest: Option<&'static str>,
    pair: Option<String>,
}

impl Note {
    fn new(kind: Kind, reason: &'static str, message: String) -> Self {
        Self { kind, reason, message, times: 1, numbers: vec![], suggest: None, pair: None }
    }

    /// The pass did what it exists for.
    pub fn passed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Passed, reason, message.into())
    }

    /// A fact.
    pub fn analysis(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Analysis, reason, message.into())
    }

    /// The pass left something as it is.
    pub fn missed(decline: &Decline) -> Self {
        let note = Self::new(Kind::Missed, decline.id(), decline.to_string());
        Self { numbers: decline.numbers(), suggest: decline.suggestion(), ..note }
    }

    /// For a place that the program meets `times` times.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// With these figures.
    pub fn numbers(self, numbers: Vec<(&'static str, f64)>) -> Self {
        Self { numbers, ..self }
    }

    /// About this pair.
    pub fn pair(self, pair: String) -> Self {
        Self { pair: Some(pair), ..self }
    }
}

/// The identity of a pass in MLIR: the address of a static, which therefore must have a size.
#[repr(align(8))]
pub struct PassId(pub u64);

/// The pass as one of MLIR's: errors and panics become a diagnostic at their location and fail the pipeline.
/// `options` is what the pass was made from, so that a printed pipeline (a reproducer's) makes it again.
pub fn external<P: Pass>(pass: P, id: &'static PassId, options: &str) -> melior::pass::Pass {
    let run = move |module: OperationRef<'_, '_>, handle: ExternalPass<'_>| {
        // The closure's state is a pass that later runs do not change, so nothing is seen half-written.
        let outcome = catch_unwind(AssertUnwindSafe(|| pass.run(module, &PassContext::new(P::NAME))));
        let failure = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => PassError::at(module, format!("{} failed: {}", P::NAME, panic_text(&*panic))),
        };
        report(module, &failure);
        handle.signal_failure();
    };
    let argument = match options.trim() {
        "" => P::NAME.to_owned(),
        options => format!("{}{{{options}}}", P::NAME),
    };
    create_external(run, TypeId::create(id), P::NAME, &argument, P::SUMMARY, "builtin.module", &[])
}

fn report(module: Op<'_, '_>, failure: &PassError) {
    let context = ffi::context_of(module);
    let unknown = Location::unknown(context);
    match failure {
        PassError::Ir(t3c_ir::Error::Operation { location, message }) => {
            // Rendered already where the error arose; a name location prints as it stands.
            ffi::emit(Severity::Error, Location::name(context, location, unknown), message);
        }
        other => ffi::emit(Severity::Error, module.location(), &other.to_string()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}
