//! The kernels' `unsafe` code: foreign IR, JIT-compiled addresses, and memory behind pointers.
//!
//! Every other module here forbids it. What these modules offer is safe where a type can carry
//! the proof; the functions that take a caller's pointers say what they ask of them.

pub mod attention;
pub mod buffer;
pub mod gemm;
#[cfg(all(test, unix))]
mod guard;
pub mod ir;
pub mod jit;
pub mod measure;
mod pack;
pub mod product;
