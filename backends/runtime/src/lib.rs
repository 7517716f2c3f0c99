//! Runs a schedule's devices in one process: workers, trackers, transports and collectives.
//!
//! The pieces, from the bottom: [`layout`] cuts dimensions into chunks and blocks; `plan` reads a fused
//! step's address space; [`tracker`] counts arrivals; [`transport`] moves blocks and credits;
//! [`protocol`] is track and trigger; [`collectives`] is everything that was not fused; [`Runtime`] owns
//! a thread a device and ties them together.
//!
//! What it promises: a fused reduce-scatter gives the same bits as [`Group::reduce_scatter`], in any
//! interleaving; no wait outlives the failure of a device.
//!
//! Knows schedules and memory only: neither MLIR nor LLVM, neither models nor files. `unsafe` code lives
//! in the modules whose names begin with it.

#![deny(unsafe_code)]

pub mod collectives;
mod error;
pub mod hooks;
pub mod layout;
pub mod plan;
pub mod protocol;
mod runtime;
mod sync;
pub mod tracker;
pub mod transport;
#[allow(unsafe_code)]
mod unsafe_device;
#[allow(unsafe_code)]
pub mod unsafe_memory;
#[allow(unsafe_code)]
mod unsafe_pool;
pub mod watch;

pub use collectives::Group;
pub use error::Error;
pub use hooks::{Delays, Event, EventKind};
pub use plan::FusedSpec;
pub use protocol::{BlockArrived, BlockTarget, ChunkView, Destination, FusedRun, block_arrived};
pub use runtime::{DeviceContext, Options, Runtime, StepKey};
