//! Native code for CPUs: kernels, lowering and executables.
