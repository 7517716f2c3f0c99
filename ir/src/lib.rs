//! The intermediate representation: the `t3` dialect, the MLIR context, typed views of operations, a builder,
//! and an interpreter that is the oracle of every pass and backend.
//!
//! Knows MLIR and nothing else: neither model files nor machines. Everything unsafe about MLIR's C API stays
//! in [`ffi`] and comes out as safe functions.

pub mod attributes;
pub mod builder;
pub mod context;
pub mod error;
pub mod ffi;
pub mod function;
pub mod generic;
pub mod interpreter;
pub mod scalar;
pub mod splits;
pub mod structured;
pub mod types;
pub mod units;
pub mod views;
pub mod walk;

#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use context::{Context, Diagnostic, Module, Severity};
pub use error::Error;
pub use generic::{Generic, Iterator};
pub use scalar::{Inst, Predicate, Ref, ScalarBody, ScalarOp};
pub use splits::Splits;
pub use types::{TensorType, element_of, tensor_type};

/// An operation that sits in a module.
pub type Op<'c, 'a> = melior::ir::OperationRef<'c, 'a>;
/// An SSA value.
pub type Val<'c, 'a> = melior::ir::Value<'c, 'a>;
/// A block that sits in a module.
pub type Blk<'c, 'a> = melior::ir::BlockRef<'c, 'a>;
pub use melior::ir::Location;
pub use t3c_schedule::Element;
