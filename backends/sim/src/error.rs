//! What can go wrong.

use thiserror::Error;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum Error {
    /// A system file that cannot be read.
    #[error("{path}: {source}; built-in systems are {built_in}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
        /// Names that need no file.
        built_in: String,
    },
    /// A field of a system file.
    #[error("{file}:{line}: {message}")]
    System {
        /// The file.
        file: String,
        /// One-based line.
        line: usize,
        /// The field, what was found and what was expected.
        message: String,
    },
    /// The schedule itself.
    #[error(transparent)]
    Schedule(#[from] t3c_schedule::Error),
    /// More devices than the machine connects.
    #[error("{location}: a group of {needed} devices on system `{system}`, which connects {available}")]
    TooManyDevices {
        /// The step.
        location: String,
        /// The group's size.
        needed: u32,
        /// The system.
        system: String,
        /// What it has.
        available: u32,
    },
    /// Nothing happens any more, but trackers or steps of a collective still wait.
    #[error("{location}: deadlock, {} trackers wait: {}", waiting.len(), first(waiting))]
    Deadlock {
        /// The step.
        location: String,
        /// Each waiting tracker: device, chunk, block, what it received and expects.
        waiting: Vec<String>,
    },
    /// A tracked block received more than its threshold.
    #[error(
        "{location}: device {device}, chunk +{relative}, block {block} received more updates than its threshold"
    )]
    Overrun {
        /// The step.
        location: String,
        /// The device.
        device: usize,
        /// The chunk, as the device counts.
        relative: u32,
        /// The block.
        block: usize,
    },
    /// A step that the model has no machine for.
    #[error("{location}: {what}")]
    Unsupported {
        /// The step.
        location: String,
        /// What it asks for.
        what: String,
    },
    /// A report or trace could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// The same error, at the step that was simulated.
    pub(crate) fn at(mut self, place: &str) -> Self {
        if let Error::Deadlock { location, .. } | Error::Overrun { location, .. } = &mut self {
            *location = place.to_owned();
        }
        self
    }
}

/// The first few of a list.
fn first(waiting: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = waiting.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if waiting.len() > SHOWN {
        text += "; …";
    }
    text
}
