//! What can go wrong between asking for a kernel and holding its address.

/// Why a kernel could not be generated, compiled or planned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `T3C_ISA` (or an argument) names no instruction set.
    #[error("`{0}` names no instruction set: expected avx512, avx2, neon or portable")]
    UnknownIsa(String),
    /// The instruction set exists, but this machine lacks it.
    #[error("this machine has no {wanted}: its best is {best}")]
    IsaUnavailable {
        /// The instruction set asked for.
        wanted: &'static str,
        /// What the machine has.
        best: &'static str,
    },
    /// LLVM has no code generator for this machine.
    #[error("LLVM has no target for this machine: {0}")]
    Target(String),
    /// An instruction was built wrongly; the generator is at fault.
    #[error("building LLVM IR failed: {0}")]
    Builder(#[from] inkwell::builder::BuilderError),
    /// LLVM lacks an intrinsic the generator relies on.
    #[error("LLVM has no intrinsic `{0}`")]
    Intrinsic(&'static str),
    /// A value has another type than the emitter expects; the generator is at fault.
    #[error("{0} has an unexpected LLVM type")]
    UnexpectedType(&'static str),
    /// The module does not verify.
    #[error("module `{module}` is not valid LLVM IR: {message}")]
    Verify {
        /// The module's name.
        module: String,
        /// LLVM's own words.
        message: String,
    },
    /// Optimising or emitting code failed.
    #[error("LLVM failed on module `{module}`: {message}")]
    Compile {
        /// The module's name.
        module: String,
        /// LLVM's own words.
        message: String,
    },
    /// No compiled function has this name.
    #[error("no compiled function is called `{0}`")]
    MissingFunction(String),
    /// A contraction whose offsets do not fit the address space.
    #[error("the contraction's {0} overflows the address space")]
    Overflow(&'static str),
    /// A contraction that stores several results to one place, or over a dimension it sums.
    #[error("the contraction's output has stride 0 along a dimension of extent {0}")]
    AliasedOutput(usize),
    /// A head size the attention kernels do not take.
    #[error("head size {0} is not between 1 and {max}", max = super::attention::MAX_HEAD_DIM)]
    HeadDim(usize),
}
