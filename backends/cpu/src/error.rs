//! What can go wrong while compiling or running on the CPU.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or rewriting the module failed.
    #[error(transparent)]
    Ir(#[from] t3c_ir::Error),
    /// Generating or compiling kernels failed.
    #[error(transparent)]
    Kernels(#[from] crate::kernels::Error),
    /// The workers stopped.
    #[error(transparent)]
    Runtime(#[from] t3c_runtime::Error),
    /// A tree, block table or position does not fit the call.
    #[error("{location}: {problem}")]
    Tokens {
        /// The place in the model.
        location: String,
        /// What does not fit.
        problem: String,
    },
    /// The schedule holds something that has no native code yet.
    #[error("{location}: the CPU backend has no code for {what}; expected {expected}")]
    Unsupported {
        /// The place in the model.
        location: String,
        /// What was found.
        what: String,
        /// What it takes.
        expected: String,
    },
    /// An input is missing or does not fit.
    #[error("input `{name}`: {problem}")]
    Input {
        /// The argument's name.
        name: String,
        /// What is wrong, what was expected.
        problem: String,
    },
    /// A row index lies outside its table.
    #[error("{location}: index {index} at position {position} is outside the table's {rows} rows")]
    Index {
        /// The place in the model.
        location: String,
        /// The index.
        index: i32,
        /// Where it stands in its tensor.
        position: usize,
        /// Rows of the table.
        rows: usize,
    },
}
