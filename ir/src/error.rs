//! What can go wrong while reading or building IR.

/// An error of this crate. The text names what was found and what was expected; the location is that of the
/// operation concerned, as the frontend named it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text is not valid IR; the diagnostics say where.
    #[error("{0}")]
    Invalid(String),
    /// An operation is not of the form that the caller needs.
    #[error("{location}: {message}")]
    Operation {
        /// Where the operation comes from.
        location: String,
        /// What is wrong with it.
        message: String,
    },
    /// MLIR's bindings refused a request.
    #[error("{0}")]
    Mlir(String),
}

impl Error {
    /// An error about `operation`.
    pub fn at(operation: crate::Op<'_, '_>, message: impl Into<String>) -> Self {
        use melior::ir::operation::OperationLike;
        Error::Operation {
            location: crate::context::render_location(operation.location()),
            message: message.into(),
        }
    }
}

impl From<melior::Error> for Error {
    fn from(error: melior::Error) -> Self {
        Error::Mlir(error.to_string())
    }
}
