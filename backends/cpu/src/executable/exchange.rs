//! Collectives that were not fused, as the executor runs them: checked once, independent of the element type
//! where no arithmetic is done.

use t3c_runtime::{Group, layout::Cut};
use t3c_schedule::{Collective, CollectiveKind, Element, Program, Reduction};

use crate::Error;

/// A collective with the shapes that it needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exchange {
    /// Grid axes of the group.
    pub(crate) axes: Vec<usize>,
    action: Action,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    AllReduce(Reduction),
    ReduceScatter(Reduction, Cut),
    /// The cut counts bytes in its innermost extent.
    AllGather(Cut),
    /// As above.
    AllSlice(Cut),
    /// The operand's shape with the bytes of an element as its last dimension, where it is split and where what
    /// arrives is laid.
    AllToAll(Vec<u64>, usize, usize),
}

impl Exchange {
    /// What `collective` does to the buffers of `program`; the text says what has no code.
    pub(crate) fn new(program: &Program, collective: &Collective) -> Result<Self, String> {
        let (input, output) = (&program.buffers[collective.input], &program.buffers[collective.output]);
        let dimension = collective.dimension;
        let cut = |shape: &[u64]| {
            Cut::of(shape, dimension).ok_or_else(|| format!("dimension {dimension} of {shape:?}"))
        };
        let bytes = |cut: Cut| Cut { inner: cut.inner * input.element.bytes() as usize, ..cut };
        let adds = |action: Action| match input.element {
            Element::F32 => Ok(action),
            other => Err(format!("a reduction of {other:?} over devices")),
        };
        let action = match collective.kind {
            CollectiveKind::AllReduce => adds(Action::AllReduce(collective.reduction))?,
            CollectiveKind::ReduceScatter => {
                adds(Action::ReduceScatter(collective.reduction, cut(&input.shape)?))?
            }
            CollectiveKind::AllGather => Action::AllGather(bytes(cut(&output.shape)?)),
            CollectiveKind::AllSlice => Action::AllSlice(bytes(cut(&input.shape)?)),
            CollectiveKind::AllToAll => {
                let (split, concat) = match collective.concatenate {
                    Some(concat) if dimension.max(concat) < input.shape.len() => (dimension, concat),
                    _ => exchanged(&input.shape, &output.shape, dimension)?,
                };
                let mut shape = input.shape.clone();
                shape.push(input.element.bytes());
                Action::AllToAll(shape, split, concat)
            }
        };
        Ok(Self { axes: collective.axes.clone(), action })
    }

    /// Runs on floats: what is added.
    pub(crate) fn reduces(&self) -> bool {
        matches!(self.action, Action::AllReduce(_) | Action::ReduceScatter(..))
    }

    /// The reducing kinds.
    pub(crate) fn reduce(&self, group: &Group<'_>, input: &[f32], output: &mut [f32]) -> Result<(), Error> {
        match self.action {
            Action::AllReduce(reduction) => group.all_reduce(input, output, reduction)?,
            Action::ReduceScatter(reduction, cut) => group.reduce_scatter(input, output, cut, reduction)?,
            _ => {}
        }
        Ok(())
    }

    /// The kinds that only move bytes.
    pub(crate) fn exchange(&self, group: &Group<'_>, input: &[u8], output: &mut [u8]) -> Result<(), Error> {
        match &self.action {
            Action::AllGather(cut) => group.all_gather(input, output, *cut)?,
            Action::AllSlice(cut) => {
                let own = cut.chunk(group.size(), group.position());
                for outer in 0..cut.outer {
                    let row = cut.row(outer, &own);
                    output[outer * row.len()..][..row.len()].copy_from_slice(&input[row]);
                }
            }
            Action::AllToAll(shape, split, concat) => {
                group.all_to_all(input, output, shape, *split, *concat)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Which dimension an all-to-all splits and along which it lays what arrives: those that shrink and grow.
fn exchanged(from: &[u64], to: &[u64], dimension: usize) -> Result<(usize, usize), String> {
    let find = |changes: &dyn Fn(u64, u64) -> bool| {
        from.iter().zip(to).position(|(before, after)| changes(*before, *after))
    };
    let shrinks = find(&|before, after| after < before);
    let grows = find(&|before, after| after > before);
    match (shrinks, grows) {
        (Some(split), Some(concat)) if from.len() == to.len() => Ok((split, concat)),
        (None, None) if from == to && dimension < from.len() => Ok((dimension, dimension)),
        _ => Err(format!("an all-to-all from {from:?} to {to:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dimensions_of_an_all_to_all_follow_from_its_shapes() {
        assert_eq!(exchanged(&[8, 3, 2], &[4, 3, 4], 0), Ok((0, 2)));
        assert_eq!(exchanged(&[2, 3, 8], &[8, 3, 2], 0), Ok((2, 0)));
        assert_eq!(exchanged(&[2, 3], &[2, 3], 1), Ok((1, 1)));
        assert!(exchanged(&[2, 3], &[4, 3], 0).is_err());
    }
}
