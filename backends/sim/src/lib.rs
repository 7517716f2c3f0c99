//! The machine model and the event loop: what a schedule costs on a machine of many accelerators.
//!
//! Knows schedules and hardware parameters. Knows neither MLIR nor model files: whatever is simulated
//! arrives as a [`Schedule`](t3c_schedule::Schedule), the same value the CPU backend runs. A fused step
//! is driven by its address space: where each chunk's stores go, what the tracker expects and what the
//! trigger does are read from the schedule, not assumed.
//!
//! Discrete events in integer picoseconds; equal times keep the order of their insertion, so the same
//! input gives the same output to the bit.
//!
//! ```
//! use t3c_sim::{Options, System, simulate};
//!
//! let schedule = t3c_schedule::testing::gemm_reduce_scatter(1024, 512, 256, 4);
//! let report = simulate(&schedule, &System::open("t3-80cu")?, &Options::default())?;
//! assert!(report.sublayers[0].speedup["t3"] > 1.0);
//! # Ok::<(), t3c_sim::Error>(())
//! ```

mod cache;
pub mod chakra;
mod collective;
mod compute;
mod error;
pub mod evaluation;
mod events;
mod extract;
mod fields;
mod machine;
mod memory;
mod mover;
mod network;
pub mod page;
pub mod parallel;
mod policy;
mod producer;
mod recorder;
mod report;
mod simulate;
pub mod system;
pub mod trace;
mod tracker;
mod traffic;
pub mod units;
mod workload;

pub use error::Error;
pub use policy::Policy;
pub use recorder::Line;
pub use report::{DramBytes, EndToEnd, PartReport, PolicyReport, Report, SCHEMA, SubLayerReport};
pub use simulate::{Options, simulate};
pub use system::System;
pub use traffic::Traffic;
