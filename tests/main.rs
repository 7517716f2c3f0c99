//! The integration tests, one binary: each would link LLVM.

mod bad_input;
mod commands;
mod library;
mod mutations;
mod native;
mod support;
mod trees;
