//! The partitioner as a pass.

use t3c_ir::Op;

use super::{Error, Stage, partition_with};
use crate::{Pass, PassContext, PassError, options};

/// `t3-shard`.
#[derive(Clone, Debug)]
pub struct Shard {
    /// What is split over data-parallel devices beside tokens.
    pub stage: Stage,
}

impl Pass for Shard {
    const NAME: &'static str = "t3-shard";
    const SUMMARY: &'static str = "Turn a program with sharding annotations into the program of one device";

    const OPTIONS: &'static [&'static str] = &[
        "zero=0: what data parallelism splits beside tokens: 1 the optimizer's state, 3 parameters as well",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut stage = Stage::Off;
        for (key, value) in options::parse(Self::NAME, text, &["zero"])? {
            stage = match value {
                "0" => Stage::Off,
                "1" => Stage::State,
                "3" => Stage::Parameters,
                _ => {
                    return Err(PassError::Option {
                        pass: Self::NAME,
                        option: format!("{key}={value}"),
                        expected: "0, 1 or 3".to_owned(),
                    });
                }
            };
        }
        Ok(Self { stage })
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(partition_with(module, self.stage)?)
    }
}

impl From<Error> for PassError {
    fn from(error: Error) -> Self {
        if let Error::Ir(error) = error {
            return PassError::Ir(error);
        }
        // Every other variant renders as `location: message`.
        let text = error.to_string();
        let (location, message) = match error.location() {
            Some(location) => {
                (location.to_owned(), text[location.len()..].trim_start_matches(": ").to_owned())
            }
            None => (String::new(), text),
        };
        PassError::Ir(t3c_ir::Error::Operation { location, message })
    }
}
