//! Importers: model files to linalg on tensors, with shard annotations on parameters.
//!
//! One module a format ([`hf`], [`graph`], [`portool`], [`mlir`]); [`load`] tells them apart by content. All
//! of them produce the same thing: a [`Graph`], plain data that knows its parameters before any MLIR exists,
//! and builds a module with one public function.
//!
//! Knows files and the IR's builder. Knows neither passes nor backends nor the RL loop: a training graph is a
//! forward and a loss, and whoever wants its gradient runs a pass.

pub mod decoder;
pub mod detect;
pub mod error;
pub mod graph;
pub mod hf;
pub mod info;
pub mod json;
pub mod mlir;
mod nn;
pub mod portool;

use std::path::Path;

pub use decoder::{DecoderConfig, Objective};
pub use detect::{Format, detect};
pub use error::{Error, Field, Place};
pub use info::{ModelInfo, Parameter, Source};
use t3c_ir::{Context, Element, Module};

/// What is to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// Logits of whole sequences.
    #[default]
    Prefill,
    /// Forward and loss.
    Training,
    /// Logits of single positions, with a cache.
    Decode,
}

/// How a model is to be built. `None` leaves the choice to the model.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Options {
    /// The phase.
    pub phase: Phase,
    /// Sequences (default 1); in decode, rows of a step.
    pub batch: Option<u64>,
    /// Tokens a sequence (default 1024, or the model's context where that is shorter); in decode, positions that
    /// the cache holds a sequence.
    pub seq: Option<u64>,
    /// Packed tokens of a call, where they are not `batch · seq`: rollout trees, padded batches.
    pub tokens: Option<u64>,
    /// Rows of the head: in prefill none means every token, in training the default is every token.
    pub rows: Option<u64>,
    /// Blocks of the cache in decode (default: enough for `batch` sequences of `seq` positions).
    pub cache_blocks: Option<u64>,
    /// Tensor parallelism; `None` takes the file's own degree, or 1.
    pub tp: Option<u64>,
    /// Data parallelism: groups of devices among which sequences are split (default 1).
    pub dp: Option<u64>,
    /// Expert parallelism: groups of devices among which experts are split, and sequences as well (default 1).
    pub ep: Option<u64>,
    /// Whether the residual stream's tokens are split over the devices of tensor parallelism.
    pub sequence_parallel: bool,
    /// Whether embedding and head are split by vocabulary; `None` where tensor parallelism divides it.
    pub vocab_parallel: Option<bool>,
    /// Activations and parameters; `None` takes the file's own type.
    pub dtype: Option<Element>,
    /// What training minimises.
    pub objective: Objective,
    /// Divides logits before the loss; `None` is 1.
    pub temperature: Option<f64>,
    /// The weight of `log² Σ exp(logits)` in the loss, averaged as the objective's weights say; `None` is 0.
    pub z_loss: Option<f64>,
    /// The weight of the routers' load balance in the loss; `None` takes the file's own.
    pub router_aux_loss: Option<f64>,
}

/// A model at definite sizes: plain data, checked, not yet IR.
#[derive(Clone, Debug)]
pub enum Graph {
    /// A decoder-only transformer.
    Decoder(Box<decoder::Decoder>),
    /// A graph in our own schema, or built in Rust from the same types.
    Model(Box<graph::ModelGraph>),
    /// MLIR text.
    Mlir(Box<mlir::Text>),
}

impl Graph {
    /// Parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Decoder(decoder) => decoder.info(),
            Self::Model(model) => model.info(),
            Self::Mlir(text) => text.info(),
        }
    }

    /// Builds and verifies the module in `context`.
    ///
    /// # Errors
    /// When the IR is refused, with the location in the user's file.
    pub fn build<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        let module = match self {
            Self::Decoder(decoder) => decoder.build(context)?,
            Self::Model(model) => model.build(context)?,
            Self::Mlir(text) => text.build(context)?,
        };
        module.verify()?;
        Ok(module)
    }
}

/// Loads a model from a file or folder.
///
/// # Errors
/// One error that names the file, and the field where there is one.
pub fn load(path: &Path, options: &Options) -> Result<Graph, Error> {
    let (format, file) = detect(path)?;
    match format {
        Format::HuggingFace(source) => {
            hf::load(source, options).map(|decoder| Graph::Decoder(Box::new(decoder)))
        }
        Format::Model(source) => graph::load(source, options).map(|model| Graph::Model(Box::new(model))),
        Format::Recipe(_) => Err(Error::Recipe { path: file }),
        Format::Mlir(text) => mlir::load(&file, text).map(|text| Graph::Mlir(Box::new(text))),
    }
}
