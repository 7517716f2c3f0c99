//! t3c: a compiler that removes the wait between a matrix product and its collective.
//!
//! [`Compiler`] takes a model (a file, MLIR text, or a graph built in Rust) to a [`Program`]: plain data that
//! holds the module after each stage, the schedule and the remarks. A program is simulated on a [`System`] or
//! compiled to an [`Executable`]. The command line is built on nothing else.
//!
//! ```no_run
//! use t3c::{Compiler, System};
//!
//! let program = Compiler::from_path("examples/models/t-nlg.json").tp(8).compile()?;
//! let report = program.simulate(&System::open("t3-80cu")?)?;
//! println!("{:.2}", report.geomean["t3"]);
//! # Ok::<(), t3c::Error>(())
//! ```

pub mod bench;
pub mod cli;
mod compiler;
mod error;
pub mod files;
mod judge;
mod program;
pub mod run;
pub mod train;

pub use compiler::{Compiler, Goal};
pub use error::Error;
pub use files::HostTensor;
pub use program::{Program, Stage, Summary};
pub use run::{Outputs, Runner};
pub use t3c_cpu::{Executable, Options as CpuOptions, State};
pub use t3c_frontends::{Graph, ModelInfo, Phase};
pub use t3c_passes::{Kind, Remark, fuse::Policy};
pub use t3c_schedule::Schedule;
pub use t3c_sim::{Report, System};
