//! What a driver must know of a model before any IR exists: its parameters and sizes.

use t3c_ir::{Element, Splits};

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The checkpoint tensor's name.
    pub name: String,
    /// Its shape in the graph.
    pub shape: Vec<u64>,
    /// Its shape in the checkpoint: the same elements in the same order.
    pub checkpoint_shape: Vec<u64>,
    /// The grid axes that split each dimension of [`Parameter::shape`] on a grid, outermost first.
    pub split: Splits,
    /// Element type in the graph.
    pub element: Element,
}

impl Parameter {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A model as far as a summary, a checkpoint reader and a trainer need it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The model's name: the folder's, the file's, or the one that the file states.
    pub name: String,
    /// Repeated layers.
    pub layers: u64,
    /// Parameters, in the order of the entry function's arguments.
    pub parameters: Vec<Parameter>,
    /// Vocabulary, for language models.
    pub vocab_size: Option<u64>,
    /// The longest sequence, for language models.
    pub context_length: Option<u64>,
    /// Sequences, where the model has such a size.
    pub batch: Option<u64>,
    /// Tokens a sequence, where the model has such a size.
    pub seq: Option<u64>,
    /// The degree of tensor parallelism that the graph is annotated for.
    pub tp: u64,
    /// Element type of activations.
    pub element: Element,
    /// Degrees of tensor parallelism that fit, ascending, from 1.
    pub degrees: Vec<u64>,
}

impl ModelInfo {
    /// Elements of all parameters.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(Parameter::elements).sum()
    }

    /// The largest of 8, 4, 2 that fits, else 1: the degree of a compilation that names none.
    pub fn default_degree(&self) -> u64 {
        [8, 4, 2].into_iter().find(|degree| self.degrees.contains(degree)).unwrap_or(1)
    }
}

/// The degrees that divide all of `extents`.
pub(crate) fn degrees(extents: &[u64]) -> Vec<u64> {
    let common = extents.iter().copied().fold(0, gcd);
    (1..=common.min(1024)).filter(|degree| common.is_multiple_of(*degree)).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degrees_divide_every_extent() {
        assert_eq!(degrees(&[12, 42]), [1, 2, 3, 6]);
        assert_eq!(degrees(&[3, 1536]), [1, 3]);
        assert_eq!(degrees(&[7, 8]), [1]);
    }
}
