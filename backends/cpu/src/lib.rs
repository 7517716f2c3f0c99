//! Native code for CPUs: kernels, lowering and executables.
//!
//! Compiles what the schedule names (contractions and attention to generated kernels, everything else through
//! MLIR's loops) and runs the schedule's steps in its order, on one worker a device. Knows the IR, the schedule
//! and the runtime; never a model file.

pub mod arena;
pub mod bench;
pub mod error;
pub mod executable;
pub mod kernels;
mod lanes;
pub mod lower;
pub mod rows;
mod unsafe_memory;
mod unsafe_team;
mod unsafe_translate;

pub use error::Error;
pub use executable::{Executable, Options, Port, State};
