//! Native code for CPUs: kernels, lowering and executables.

pub mod kernels;
