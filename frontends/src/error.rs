//! What can be wrong with a model file, and where.

use std::fmt;

/// A place in a file. Lines and columns start at 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as the caller named it.
    pub file: String,
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
    /// Characters from there on that the message is about.
    pub length: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A field of a file, or of a configuration that was built in Rust and has no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where its value stands.
    pub place: Option<Box<Place>>,
    /// Its path, such as `rope_scaling.factor` or `blocks.layer.ops[3]`.
    pub name: String,
}

impl Field {
    /// A field whose place is not known yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { place: None, name: name.into() }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "`{}`", self.name)
    }
}

/// Why a model could not be loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's reason.
        problem: String,
    },
    /// A folder that is no model folder.
    #[error("{path}: a folder without `config.json`; expected a Hugging Face model folder or a file")]
    Folder {
        /// The folder.
        path: String,
    },
    /// Nothing in the file.
    #[error("{path}: the file is empty; expected {}", crate::detect::EXPECTED)]
    Empty {
        /// The file.
        path: String,
    },
    /// The content is none of the known formats.
    #[error("{path}: unknown format; expected {}", crate::detect::EXPECTED)]
    UnknownFormat {
        /// The file.
        path: String,
    },
    /// A recipe stands where a model is needed.
    #[error("{path}: a recipe, which needs its model and objective read first; expected a model")]
    Recipe {
        /// The file.
        path: String,
    },
    /// Not JSON.
    #[error("{place}: {message}")]
    Syntax {
        /// Where reading stopped.
        place: Place,
        /// What the reader expected.
        message: String,
    },
    /// A field of the wrong type, missing, unknown, or outside its range.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: Field,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A value that names something we do not have.
    #[error(
        "{field} = `{found}` is not supported; supported: {}{}",
        list(supported),
        nearest.as_ref().map(|name| format!("; nearest: `{name}`")).unwrap_or_default()
    )]
    Unsupported {
        /// The field.
        field: Field,
        /// Its value.
        found: String,
        /// What would do.
        supported: Vec<String>,
        /// The supported value that is spelled most alike.
        nearest: Option<String>,
    },
    /// A size that another does not divide.
    #[error("{field} = {value} is not divisible by {divisor} = {by}{}", fits_text(fits))]
    Indivisible {
        /// The field.
        field: Field,
        /// Its value.
        value: u64,
        /// The name of the divisor: another field, or `--tp`.
        divisor: String,
        /// The divisor.
        by: u64,
        /// Degrees that would fit, where the divisor is a degree of parallelism.
        fits: Vec<u64>,
    },
    /// Sizes whose product is beyond what can be addressed.
    #[error("{field}: impossible size: {what} has more than 2^{log2_limit} elements")]
    TooLarge {
        /// The field that is most to blame.
        field: Field,
        /// The tensor or total concerned.
        what: String,
        /// The limit.
        log2_limit: u32,
    },
    /// An option that this model cannot be built with.
    #[error("{option} = {value}: {reason}")]
    Option {
        /// As on the command line.
        option: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The IR was refused: an invalid `.mlir` file, or operands whose shapes disagree.
    #[error(transparent)]
    Ir(#[from] t3c_ir::Error),
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn fits_text(fits: &[u64]) -> String {
    if fits.is_empty() {
        return String::new();
    }
    let degrees: Vec<String> = fits.iter().map(u64::to_string).collect();
    format!("; degrees that fit: {}", degrees.join(", "))
}

impl Error {
    /// The field concerned, if the error is about one.
    pub fn field(&self) -> Option<&Field> {
        match self {
            Self::Invalid { field, .. }
            | Self::Unsupported { field, .. }
            | Self::Indivisible { field, .. }
            | Self::TooLarge { field, .. } => Some(field),
            _ => None,
        }
    }

    /// Where in the file the error is, for a caret under the line.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Syntax { place, .. } => Some(place),
            other => other.field()?.place.as_deref(),
        }
    }

    /// The same error, with the place of its field looked up where it has none.
    pub(crate) fn located(mut self, place: impl FnOnce(&str) -> Option<Place>) -> Self {
        if let Self::Invalid { field, .. }
        | Self::Unsupported { field, .. }
        | Self::Indivisible { field, .. }
        | Self::TooLarge { field, .. } = &mut self
            && field.place.is_none()
        {
            field.place = place(&field.name).map(Box::new);
        }
        self
    }

    /// The same error, with `prefix` before the name of its field.
    pub(crate) fn prefixed(self, prefix: &str) -> Self {
        self.renamed(|name| format!("{prefix}{name}"))
    }

    /// The same error, with another name for its field.
    pub(crate) fn renamed(mut self, name: impl FnOnce(&str) -> String) -> Self {
        if let Self::Invalid { field, .. }
        | Self::Unsupported { field, .. }
        | Self::Indivisible { field, .. }
        | Self::TooLarge { field, .. } = &mut self
        {
            field.name = name(&field.name);
        }
        self
    }

    /// `found` is none of `supported`.
    pub(crate) fn unsupported(field: Field, found: &str, supported: &[&str]) -> Self {
        let nearest = supported
            .iter()
            .map(|name| (strsim::jaro_winkler(&found.to_lowercase(), name), *name))
            .filter(|(likeness, _)| *likeness > 0.6)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name.to_owned());
        let supported = supported.iter().map(|name| (*name).to_owned()).collect();
        Self::Unsupported { field, found: found.to_owned(), supported, nearest }
    }

    /// `name` is wrong for the reason given.
    pub(crate) fn invalid(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: Field::new(name), message: message.into() }
    }
}
