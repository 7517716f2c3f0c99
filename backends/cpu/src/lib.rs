//! Native code for CPUs: kernels, lowering and executables.

pub mod bench;
pub mod kernels;
