//! Kernels generated for the host with inkwell: matrix products, attention, and what they need.
//!
//! MLIR's own loops are about a hundred times slower on contractions, so these are the work of a
//! transformer. The generators live in [`emit`]; what calls their code, in [`raw`], the only
//! place with `unsafe`. All kernels are batch-invariant: a row's bits do not depend on the number
//! of rows, its neighbours, the threads, or where its history is stored.
//!
//! Start at [`Kernels::new`], then [`GemmPlan`] or [`Kernels::attention`].

#![deny(unsafe_code)]

pub mod attention;
mod cache;
mod contraction;
pub mod emit;
mod error;
pub mod experts;
pub mod gemm;
mod isa;
mod names;
#[allow(unsafe_code)]
pub mod raw;
pub mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use attention::{AttentionShape, CacheError, CacheShape, Heads, Scores, TreeError};
pub use cache::{Blocking, Caches, blocking};
pub use contraction::{Contraction, Dim};
pub use emit::micro::Epilogue;
pub use error::Error;
pub use gemm::{GemmPlan, Output, PackedLayout, Region, TileDone};
pub use isa::{Isa, Machine, RegisterTile};
pub use raw::attention::{
    AttentionGradients, AttentionInputs, AttentionKernels, Cache, PackedTree, Pages, Part,
};
pub use raw::buffer::AlignedFloats;
pub use raw::gemm::{GemmKernels, Task};
pub use raw::jit::{Emit, Jit, JitBuilder};

/// The compiled kernels of one machine, shared by every plan and thread.
pub struct Kernels {
    machine: Machine,
    gemm: GemmKernels,
    attention: BTreeMap<Heads, AttentionKernels>,
    code: Arc<Jit>,
}

impl Kernels {
    /// Generates and compiles the kernels for `machine`: matrix products, and attention for each
    /// of `heads`.
    pub fn new(machine: &Machine, heads: &[Heads]) -> Result<Self, Error> {
        let mut builder = JitBuilder::new(machine)?;
        Self::emit(&mut builder, heads)?;
        Self::from_code(machine, heads, Arc::new(builder.finish()?))
    }

    /// Adds the kernels' modules to `builder`, for code that is compiled with others or written out.
    pub fn emit(builder: &mut JitBuilder, heads: &[Heads]) -> Result<(), Error> {
        builder.add_module("t3c_gemm", names::emit_gemm)?;
        for heads in BTreeSet::from_iter(heads.iter().copied()) {
            let capped = if heads.capped { "_capped" } else { "" };
            let name = format!("t3c_attention{capped}_{}", heads.dim);
            builder.add_module(&name, |context, module, machine| {
                names::emit_attention(context, module, machine, heads)
            })?;
        }
        Ok(())
    }

    /// The kernels in `code`, into which [`Kernels::emit`] put them.
    pub fn from_code(machine: &Machine, heads: &[Heads], code: Arc<Jit>) -> Result<Self, Error> {
        let attention = heads
            .iter()
            .map(|&heads| Ok((heads, AttentionKernels::new(&code, machine, heads)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Kernels { gemm: GemmKernels::new(&code, machine)?, attention, machine: machine.clone(), code })
    }

    /// The machine they are for.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The matrix product's kernels.
    pub fn gemm(&self) -> &GemmKernels {
        &self.gemm
    }

    /// Attention of these heads, if it was asked for.
    pub fn attention(&self, heads: Heads) -> Option<&AttentionKernels> {
        self.attention.get(&heads)
    }

    /// The compiled code, with every name in it.
    pub fn code(&self) -> &Arc<Jit> {
        &self.code
    }
}
