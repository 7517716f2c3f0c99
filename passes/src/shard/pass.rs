//! The partitioner as a pass.

use t3c_ir::Op;

use super::{Error, partition};
use crate::{Pass, PassContext, PassError, options};

/// `t3-shard`.
#[derive(Clone, Debug)]
pub struct Shard;

impl Pass for Shard {
    const NAME: &'static str = "t3-shard";
    const SUMMARY: &'static str = "Turn a program with sharding annotations into the program of one device";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(partition(module)?)
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
