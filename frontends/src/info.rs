//! What a driver must know of a model before any IR exists: its parameters and sizes.
//!
//! A parameter of the graph is a view of the checkpoint: a concatenation of parts of one or more of its tensors.
//! So fused projections, stacked experts and the row order that rotary embedding wants cost nothing in the graph.

use std::collections::BTreeMap;

use t3c_ir::{Element, Splits};

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The checkpoint tensor's name; `tensor[part]` where it is only a part of one, a name with `*` where it stacks
    /// several.
    pub name: String,
    /// Its shape in the graph.
    pub shape: Vec<u64>,
    /// The parts of checkpoint tensors that it consists of.
    pub sources: Vec<Source>,
    /// The dimension of the sources' views along which they are concatenated.
    pub along: usize,
    /// How parallelism splits [`Parameter::shape`].
    pub split: Splits,
    /// Element type in the graph.
    pub element: Element,
}

/// A block of a checkpoint tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The tensor's name.
    pub tensor: String,
    /// Its shape in the checkpoint.
    pub shape: Vec<u64>,
    /// The shape as which its elements are read.
    pub view: Vec<u64>,
    /// The block's first index in each dimension of the view.
    pub start: Vec<u64>,
    /// The block's extents.
    pub size: Vec<u64>,
}

impl Source {
    /// A whole tensor.
    pub fn whole(tensor: impl Into<String>, shape: &[u64]) -> Self {
        Self {
            tensor: tensor.into(),
            shape: shape.to_vec(),
            view: shape.to_vec(),
            start: vec![0; shape.len()],
            size: shape.to_vec(),
        }
    }

    /// Elements of the tensor, of which the block may be a part.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    fn is_whole(&self) -> bool {
        self.size == self.view
    }
}

/// Elements of a source that lie together in its tensor and in the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    source: usize,
    start: usize,
    length: usize,
}

impl Parameter {
    /// A parameter that is one whole tensor of the checkpoint, in another shape of as many elements.
    pub fn whole(
        name: &str,
        shape: Vec<u64>,
        checkpoint_shape: &[u64],
        split: Splits,
        element: Element,
    ) -> Self {
        let sources = vec![Source::whole(name, checkpoint_shape)];
        Self { name: name.to_owned(), shape, sources, along: 0, split, element }
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The parameter's elements, from those of the tensors that `read` gives.
    ///
    /// # Errors
    /// Those of `read`, which answers for the tensor's shape.
    pub fn gather<T: Copy, E>(
        &self,
        mut read: impl FnMut(&Source) -> Result<Vec<T>, E>,
    ) -> Result<Vec<T>, E> {
        if let [source] = self.sources.as_slice()
            && source.is_whole()
        {
            return read(source);
        }
        let mut tensors = BTreeMap::new();
        for source in &self.sources {
            if !tensors.contains_key(source.tensor.as_str()) {
                tensors.insert(source.tensor.as_str(), read(source)?);
            }
        }
        let mut values = Vec::with_capacity(self.elements() as usize);
        for run in self.runs() {
            let tensor = &tensors[self.sources[run.source].tensor.as_str()];
            values.extend_from_slice(&tensor[run.start..run.start + run.length]);
        }
        Ok(values)
    }

    /// Puts the parameter's elements where they stand in the checkpoint's tensors. Elements of a tensor that no
    /// parameter has, such as rows of an embedding that no token reaches, are left as they are, at first `T`'s
    /// default.
    pub fn scatter<T: Copy + Default>(&self, values: &[T], tensors: &mut BTreeMap<String, Vec<T>>) {
        let mut at = 0;
        for run in self.runs() {
            let source = &self.sources[run.source];
            if !tensors.contains_key(&source.tensor) {
                tensors.insert(source.tensor.clone(), vec![T::default(); source.elements() as usize]);
            }
            let Some(tensor) = tensors.get_mut(&source.tensor) else { continue };
            tensor[run.start..run.start + run.length].copy_from_slice(&values[at..at + run.length]);
            at += run.length;
        }
    }

    /// The parts in the order of the parameter's elements.
    fn runs(&self) -> Vec<Run> {
        let Some(first) = self.sources.first() else { return Vec::new() };
        let outer: u64 = first.size[..self.along].iter().product();
        let mut runs = Vec::new();
        for row in 0..outer {
            for (index, source) in self.sources.iter().enumerate() {
                source.runs(index, row, self.along, &mut runs);
            }
        }
        runs
    }
}

impl Source {
    /// The runs of one row: `row` counts the indices of the dimensions before `along`.
    fn runs(&self, source: usize, row: u64, along: usize, runs: &mut Vec<Run>) {
        let rank = self.view.len();
        // Dimensions after `last` are whole, so that a run covers them.
        let whole = (0..rank).rev().take_while(|&d| self.size[d] == self.view[d]).count();
        let last = (rank - whole).saturating_sub(1).max(along).min(rank.saturating_sub(1));
        let stride = |d: usize| self.view[d + 1..].iter().product::<u64>();
        let offset = |mut count: u64, dims: std::ops::Range<usize>| {
            let mut offset = 0;
            for d in dims.rev() {
                offset += (self.start[d] + count % self.size[d]) * stride(d);
                count /= self.size[d];
            }
            offset
        };
        if rank == 0 {
            runs.push(Run { source, start: 0, length: 1 });
            return;
        }
        let base = offset(row, 0..along);
        let count: u64 = self.size[along..last].iter().product();
        for index in 0..count {
            let start = base + offset(index, along..last) + self.start[last] * stride(last);
            runs.push(Run {
                source,
                start: start as usize,
                length: (self.size[last] * stride(last)) as usize,
            });
        }
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
    /// The degree of data parallelism.
    pub dp: u64,
    /// The degree of expert parallelism.
    pub ep: u64,
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

    /// The checkpoint's tensors with their shapes.
    pub fn checkpoint(&self) -> BTreeMap<&str, &[u64]> {
        let sources = self.parameters.iter().flat_map(|parameter| &parameter.sources);
        sources.map(|source| (source.tensor.as_str(), source.shape.as_slice())).collect()
    }

    /// The largest of 8, 4, 2 that fits, else 1: the degree of a compilation that names none.
    pub fn default_degree(&self) -> u64 {
        [8, 4, 2].into_iter().find(|degree| self.degrees.contains(degree)).unwrap_or(1)
    }
}

/// The greatest common divisor.
pub(crate) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(tensor: &str, view: &[u64], start: &[u64], size: &[u64]) -> Source {
        Source { start: start.to_vec(), size: size.to_vec(), ..Source::whole(tensor, view) }
    }

    fn parameter(sources: Vec<Source>, along: usize) -> Parameter {
        let elements = sources.iter().map(|source| source.size.iter().product::<u64>()).sum();
        let (name, shape) = ("p".into(), vec![elements]);
        Parameter { name, shape, sources, along, split: vec![vec![]], element: Element::F32 }
    }

    fn gathered(parameter: &Parameter) -> Vec<usize> {
        let read = |source: &Source| Ok::<_, ()>((0..source.elements() as usize).collect());
        parameter.gather(read).expect("reads")
    }

    #[test]
    fn blocks_are_read_and_written_in_their_order() {
        let column = parameter(vec![block("t", &[2, 3, 2], &[0, 1, 0], &[2, 1, 2])], 0);
        assert_eq!(gathered(&column), [2, 3, 8, 9]);
        // Within each row, the second half before the first.
        let halves = [block("t", &[2, 4], &[0, 2], &[2, 2]), block("t", &[2, 4], &[0, 0], &[2, 2])];
        let swapped = parameter(halves.to_vec(), 1);
        assert_eq!(gathered(&swapped), [2, 3, 0, 1, 6, 7, 4, 5]);
        let stack = parameter(vec![Source::whole("a", &[1, 2]), Source::whole("b", &[1, 2])], 0);
        assert_eq!(gathered(&stack), [0, 1, 0, 1]);
        let mut tensors = BTreeMap::new();
        column.scatter(&[2, 3, 8, 9], &mut tensors);
        assert_eq!(tensors["t"], [0, 0, 2, 3, 0, 0, 0, 0, 8, 9, 0, 0]);
        swapped.scatter(&gathered(&swapped), &mut BTreeMap::new());
        let mut tensors = BTreeMap::new();
        swapped.scatter(&gathered(&swapped), &mut tensors);
        assert_eq!(tensors["t"], (0..8).collect::<Vec<_>>());
    }
}
