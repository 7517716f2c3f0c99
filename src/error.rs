//! The library's error: whatever went wrong, with its place in the user's input.

use std::path::PathBuf;

/// An error of t3c. Its text is one line that names the file, place or field, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be read.
    #[error(transparent)]
    Frontend(#[from] t3c_frontends::Error),
    /// The IR could not be read or built.
    #[error(transparent)]
    Ir(#[from] t3c_ir::Error),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] t3c_passes::PassError),
    /// The schedule is not well formed.
    #[error(transparent)]
    Schedule(#[from] t3c_schedule::Error),
    /// The simulation failed.
    #[error(transparent)]
    Simulation(#[from] t3c_sim::Error),
    /// Native code failed.
    #[error(transparent)]
    Cpu(#[from] t3c_cpu::Error),
    /// A recipe does not hold together.
    #[error("{}: {source}", place(path, source))]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// What is wrong.
        source: t3c_rl::recipe::RecipeError,
    },
    /// A tree on standard input has no credit.
    #[error("{0}")]
    Credit(String),
    /// Training stopped.
    #[error("{0}")]
    Training(String),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file's contents do not fit.
    #[error("{path}: {problem}", path = path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong, what was expected.
        problem: String,
    },
    /// An option does not fit the model.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: String,
        /// What is wrong, what was expected.
        problem: String,
    },
}

impl Error {
    /// An option that does not fit.
    pub(crate) fn option(option: &str, problem: impl Into<String>) -> Self {
        Error::Option { option: option.to_owned(), problem: problem.into() }
    }

    /// A file that could not be read or written.
    pub(crate) fn file(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::File { path: path.into(), source }
    }

    /// Contents that do not fit.
    pub(crate) fn contents(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Error::Contents { path: path.into(), problem: problem.into() }
    }
}

/// A recipe's file, with the line and column where they are known.
fn place(path: &std::path::Path, source: &t3c_rl::recipe::RecipeError) -> String {
    match source {
        t3c_rl::recipe::RecipeError::Json { line: line @ 1.., column, .. } => {
            format!("{}:{line}:{column}", path.display())
        }
        _ => path.display().to_string(),
    }
}
