//! The passes, their registry and the named pipelines.
//!
//! Knows the IR and the schedule's data types; knows neither model files nor a backend. One file a pass;
//! [`registry`] lists them, [`pipelines`] orders them.

#![forbid(unsafe_code)]

pub mod algebra;
pub mod autodiff;
pub mod calls;
pub mod clusters;
pub mod configure_address_space;
pub mod decline;
pub mod dimensions;
pub mod find_pairs;
pub mod flow;
pub mod fuse;
pub mod group;
mod normalize;
pub mod optimizer;
pub mod options;
pub mod outline;
pub mod pass;
pub mod pipelines;
pub mod producers;
pub mod products;
pub mod readers;
pub mod region;
pub mod registry;
pub mod remark;
pub mod schedule;
pub mod shard;
pub mod simplify;
pub mod split_all_reduce;
pub mod unfuse;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod pairs_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub mod testing;

pub use decline::Decline;
pub use pass::{Pass, PassContext, PassError};
pub use pipelines::run_passes;
pub use remark::{Kind, Remark, collect};
pub use schedule::schedule;
