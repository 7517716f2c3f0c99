//! `t3-shard`: from a program for one big device, with `shard` annotations on its parameters, to the program that
//! every device of the grid runs, with local shapes and explicit collectives.
//!
//! Ours, because the upstream passes drop remainders in silence, never scatter a reduction and gather weights.
//!
//! - Parameters stay where their annotations put them and claim loops first; activations follow, in the way that
//!   moves the fewest bytes ([`loops`]).
//! - A reduction over a split loop leaves its result *partial*: every device holds a contribution. It stays so
//!   through sums of contributions and other linear work of one user ([`linear`]), and is combined before anything
//!   else reads it: by a reduce-scatter where the reader splits one of its dimensions on that axis, else by an
//!   all-reduce ([`sharding`]).
//! - Functions are planned from the entry down, each for the shardings of its first call; results leave a function
//!   complete, so that no collective belongs to two functions.
//! - Everything is decided on plain data ([`graph`], [`plan`]), so that an error leaves the module as it was;
//!   [`rewrite`] then carries the plan out.
//!
//! A body that asks for the index of a split loop gets one more input, `tensor<i64>` of rank 0 that holds the first
//! index of the device: `shard.process_multi_index` times the local extent.
//!
//! After it, arguments and results carry `t3.split`, and no `shard.shard` is left.

mod chains;
mod emit;
mod experts;
mod graph;
mod indices;
mod linear;
mod loops;
mod pass;
mod plan;
mod reshape;
mod rewrite;
mod sharding;
mod units;
mod walker;
mod wishes;
mod zero;

#[cfg(test)]
pub(crate) mod tests;

use t3c_ir::{Op, Splits, attributes::string, function, walk};
use t3c_schedule::Reduction;

pub use graph::LOAD as EXPERT_LOAD;
pub use pass::Shard;
pub use sharding::{Sharding, Step};
pub use zero::Stage;

/// Why a module cannot be partitioned. The module is left as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The devices do not divide a dimension that an annotation splits.
    #[error(
        "{location}: dimension {dimension} of size {extent} does not divide by the {size} devices of axis `{axis}`: \
         choose a degree that divides {extent}, pad the dimension, or leave it unsplit"
    )]
    Indivisible {
        /// Where the annotation comes from.
        location: String,
        /// The dimension.
        dimension: usize,
        /// Its extent.
        extent: u64,
        /// The names of the grid axes.
        axis: String,
        /// Its devices.
        size: u32,
    },
    /// An annotation names an axis that is not there, or one axis twice.
    #[error("{location}: the sharding {splits:?} does not fit the grid of {axes} axes: {problem}")]
    Annotation {
        /// Where the annotation comes from.
        location: String,
        /// The axes of each dimension.
        splits: Splits,
        /// Axes of the grid.
        axes: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A reshape of a split tensor after which a device's elements are no block.
    #[error(
        "{location}: reshapes dimension {dimension}, which is split, so that it is no longer outermost or does not \
         divide: split the outermost of the dimensions that it becomes one with, or keep them apart"
    )]
    Reshape {
        /// Where the reshape comes from.
        location: String,
        /// The dimension of its operand.
        dimension: usize,
    },
    /// A grid without definite, sensible sizes.
    #[error(
        "{location}: the grid has axes of {sizes:?} devices: give each 1 or more, and all together at most {most}"
    )]
    Grid {
        /// Where an annotation comes from.
        location: String,
        /// Devices of each axis; 0 where it is dynamic.
        sizes: Vec<u32>,
        /// What a grid has at most.
        most: u64,
    },
    /// Annotations without a grid.
    #[error("{location}: a sharding is annotated, but the module has no `shard.grid`: add one")]
    NoGrid {
        /// Where the annotation comes from.
        location: String,
    },
    /// A body reads a split tensor at computed indices.
    #[error(
        "{location}: the body reads a split tensor at computed indices (`tensor.extract`), which another device may \
         hold: use a lookup unit, or leave the tensor unsplit"
    )]
    Captured {
        /// Where the operation comes from.
        location: String,
    },
    /// A reduction over a split loop whose contributions cannot be combined.
    #[error("{location}: reduces over a split dimension, but its body is neither a sum nor a maximum")]
    Reduction {
        /// Where the operation comes from.
        location: String,
    },
    /// A parameter arrives at a function that annotates it in another way.
    #[error(
        "{location}: argument {argument} of `{callee}` is a parameter split {found:?}, but is annotated {expected:?}"
    )]
    Disagree {
        /// Where the call comes from.
        location: String,
        /// The callee.
        callee: String,
        /// The argument's number.
        argument: usize,
        /// How it is split at the call.
        found: Splits,
        /// How the callee annotates it.
        expected: Splits,
    },
    /// A function that calls itself.
    #[error("{location}: `{name}` calls itself: unroll it")]
    Recursive {
        /// Where the function comes from.
        location: String,
        /// The function.
        name: String,
    },
    /// An operation that the partitioner does not know.
    #[error(
        "{location}: no sharding rule for {what}: expected linalg operations on tensors, fills, \
         constants, reshapes, calls and units (t3-normalize brings elementwise arith and math into that form)"
    )]
    NoRule {
        /// Where the operation comes from.
        location: String,
        /// What it is.
        what: String,
    },
    /// The IR itself.
    #[error(transparent)]
    Ir(#[from] t3c_ir::Error),
}

impl Error {
    /// Where the operation or function comes from that the error is about.
    pub fn location(&self) -> Option<&str> {
        match self {
            Error::Indivisible { location, .. }
            | Error::Annotation { location, .. }
            | Error::NoGrid { location }
            | Error::Reshape { location, .. }
            | Error::Grid { location, .. }
            | Error::Captured { location }
            | Error::Reduction { location }
            | Error::Disagree { location, .. }
            | Error::Recursive { location, .. }
            | Error::NoRule { location, .. } => Some(location),
            Error::Ir(_) => None,
        }
    }
}

/// No cluster has more devices.
const MOST_DEVICES: u64 = 1 << 16;

/// Partitions a module in place. A module without annotations is left alone.
///
/// # Errors
/// See [`Error`]; the module is unchanged then, except for [`Error::Ir`] from MLIR while it is rewritten.
pub fn partition(module: Op<'_, '_>) -> Result<(), Error> {
    partition_with(module, Stage::Off)
}

/// As [`partition`], with state split over data-parallel devices.
///
/// # Errors
/// See [`partition`].
pub fn partition_with(module: Op<'_, '_>, stage: Stage) -> Result<(), Error> {
    let annotated = walk::walk(module).into_iter().find(|operation| walk::is(*operation, "shard.shard"));
    let Some(annotation) = annotated else { return Ok(()) };
    let Some((symbol, grid)) = function::grid(module) else {
        return Err(Error::NoGrid { location: graph::location(annotation) });
    };
    let another = |op: &Op<'_, '_>| string(*op, "grid").is_some_and(|name| name != symbol);
    if let Some(other) = walk::walk(module).into_iter().find(another) {
        let what = format!("an operation on another grid than `@{symbol}`, the first");
        return Err(Error::NoRule { location: graph::location(other), what });
    }
    let sizes: Vec<u32> = grid.axes.iter().map(|axis| axis.size).collect();
    let devices = sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(u64::from(size)));
    if devices.is_none_or(|devices| devices == 0 || devices > MOST_DEVICES) {
        return Err(Error::Grid { location: graph::location(annotation), sizes, most: MOST_DEVICES });
    }
    let graph = graph::Graph::read(module, grid)?;
    let plan = plan::plan(&graph, stage)?;
    rewrite::rewrite(module, &symbol, &graph, &plan)
}

/// The name of a reduction in MLIR, where it is not the default.
fn reduction_name(reduction: Reduction) -> Option<&'static str> {
    match reduction {
        Reduction::Sum => None,
        Reduction::Max => Some("max"),
    }
}
