//! Named tensors that stay on the devices between runs: parameters, moments, caches, inputs and results.
//!
//! Several executables (a training step, a decode step, buckets of each) share one state.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use t3c_ir::{Splits, TensorType, splits};
use t3c_schedule::Grid;

use crate::{Error, kernels::PackedLayout, unsafe_memory::Aligned};

/// One tensor on all devices.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its whole type.
    pub(crate) whole: TensorType,
    /// How it is divided.
    pub(crate) split: Splits,
    /// Each device's part.
    pub(crate) parts: Vec<Aligned>,
    /// Changes whenever the parts are written; never 0.
    pub(crate) version: u64,
    /// Copies as products read them.
    pub(crate) packed: Vec<PackedTensor>,
}

impl Entry {
    fn new(whole: &TensorType, split: &[Vec<usize>], parts: Vec<Aligned>) -> Self {
        let (whole, split) = (whole.clone(), split.to_vec());
        Self { whole, split, parts, version: next_version(), packed: Vec::new() }
    }

    /// The parts have been written.
    pub(crate) fn written(&mut self) {
        self.version = next_version();
    }
}

/// A packed copy of a tensor.
#[derive(Debug)]
pub(crate) struct PackedTensor {
    /// Its layout.
    pub(crate) layout: Arc<PackedLayout>,
    /// The tensor's version that it holds; 0 for none.
    pub(crate) version: u64,
    /// Each device's part.
    pub(crate) parts: Vec<Aligned>,
}

/// Versions are not used twice, whatever the tensor: a state may be emptied and filled again.
fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Tensors by name, divided over the devices of a grid.
#[derive(Debug)]
pub struct State {
    pub(crate) grid: Grid,
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl State {
    /// Nothing, on the devices of `grid`.
    pub fn new(grid: &Grid) -> Self {
        Self { grid: grid.clone(), entries: BTreeMap::new() }
    }

    /// The devices.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Puts a whole tensor (row-major bytes) on the devices, replacing one of this name.
    ///
    /// # Errors
    /// When the bytes do not fit the type, or the devices do not divide it.
    pub fn set(
        &mut self,
        name: &str,
        r#type: &TensorType,
        split: &[Vec<usize>],
        bytes: &[u8],
    ) -> Result<(), Error> {
        let size = r#type.element.bytes() as usize;
        let expected = r#type.elements() as usize * size;
        if bytes.len() != expected {
            return Err(input(
                name,
                format!("has {} bytes, a {type} has {expected}", bytes.len(), r#type = r#type),
            ));
        }
        let devices = self.grid.devices();
        // Same shape and split: overwrite in place, so that addresses stay.
        let fits = self.entries.get(name).is_some_and(|entry| entry.whole == *r#type && entry.split == split);
        if !fits {
            let local = splits::block(&r#type.shape, split, &self.grid)
                .map_err(|error| input(name, error.to_string()))?;
            let part = local.iter().product::<u64>() as usize * size;
            let parts = (0..devices).map(|_| Aligned::zeroed(part)).collect();
            self.entries.insert(name.to_owned(), Entry::new(r#type, split, parts));
        }
        let grid = self.grid.clone();
        if let Some(entry) = self.entries.get_mut(name) {
            entry.written();
            for (device, part) in entry.parts.iter_mut().enumerate() {
                copy_part(&grid, device as u32, split, &r#type.shape, size, |whole, local, length| {
                    part.bytes_mut()[local..local + length].copy_from_slice(&bytes[whole..whole + length]);
                })?;
            }
        }
        Ok(())
    }

    /// A whole tensor, gathered from the devices.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<(TensorType, Vec<u8>), Error> {
        let entry = self.entries.get(name).ok_or_else(|| input(name, "is not in the state".into()))?;
        let size = entry.whole.element.bytes() as usize;
        let mut bytes = vec![0; entry.whole.elements() as usize * size];
        for (device, part) in entry.parts.iter().enumerate() {
            copy_part(
                &self.grid,
                device as u32,
                &entry.split,
                &entry.whole.shape,
                size,
                |whole, local, length| {
                    bytes[whole..whole + length].copy_from_slice(&part.bytes()[local..local + length]);
                },
            )?;
        }
        Ok((entry.whole.clone(), bytes))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Copies `length` rows of the outermost dimension from row `from` to row `to`, on every device.
    ///
    /// # Errors
    /// When there is no such tensor, or it has no such rows, or its outermost dimension is divided.
    pub fn copy_rows(&mut self, name: &str, from: usize, to: usize, length: usize) -> Result<(), Error> {
        let entry = self.entries.get_mut(name).ok_or_else(|| input(name, "is not in the state".into()))?;
        let rows = entry.whole.shape.first().copied().unwrap_or(0) as usize;
        if from.max(to) + length > rows || entry.split.first().is_none_or(|axes| !axes.is_empty()) {
            return Err(input(name, format!("has no rows {from} and {to} of {rows} to copy")));
        }
        entry.written();
        for part in &mut entry.parts {
            let row = part.bytes().len() / rows.max(1);
            part.bytes_mut().copy_within(from * row..(from + length) * row, to * row);
        }
        Ok(())
    }

    /// Ensures a zeroed entry of this type, keeping one that fits.
    pub(crate) fn reserve(&mut self, name: &str, whole: &TensorType, split: &Splits, part_bytes: usize) {
        let fits = self.entries.get(name).is_some_and(|entry| entry.whole == *whole && entry.split == *split);
        if !fits {
            let parts = (0..self.grid.devices()).map(|_| Aligned::zeroed(part_bytes)).collect();
            self.entries.insert(name.to_owned(), Entry::new(whole, split, parts));
        }
    }
}

pub(crate) fn input(name: &str, problem: String) -> Error {
    Error::Input { name: name.to_owned(), problem }
}

/// Calls `copy(whole offset, local offset, bytes)` for each contiguous run of a device's part.
fn copy_part(
    grid: &Grid,
    device: u32,
    split: &[Vec<usize>],
    shape: &[u64],
    size: usize,
    mut copy: impl FnMut(usize, usize, usize),
) -> Result<(), Error> {
    let block = splits::block(shape, split, grid)?;
    let starts = splits::offsets(&block, split, grid, device)?;
    let ranges: Vec<_> = starts.iter().zip(&block).map(|(&start, &extent)| start..start + extent).collect();
    // Trailing dimensions that are whole form one run with the last divided one.
    let last = (0..shape.len())
        .rev()
        .find(|&dimension| split.get(dimension).is_some_and(|axes| !axes.is_empty()))
        .unwrap_or(0);
    let inner: u64 = shape.iter().skip(last + 1).product();
    let (run, outer) = match ranges.get(last) {
        Some(range) => ((range.end - range.start) * inner, &ranges[..last]),
        None => (1, &ranges[..0]),
    };
    let count: u64 = outer.iter().map(|range| range.end - range.start).product();
    for index in 0..count {
        let (mut rest, mut whole, mut stride) = (index, 0, inner * shape.get(last).copied().unwrap_or(1));
        for (dimension, range) in outer.iter().enumerate().rev() {
            let extent = range.end - range.start;
            whole += (range.start + rest % extent) * stride;
            rest /= extent;
            stride *= shape[dimension];
        }
        whole += ranges.get(last).map_or(0, |range| range.start * inner);
        copy(whole as usize * size, (index * run) as usize * size, run as usize * size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use t3c_schedule::{Axis, Element};

    #[test]
    fn parts_put_together_are_the_whole() {
        let grid =
            Grid { axes: vec![Axis { name: "tp".into(), size: 3 }, Axis { name: "dp".into(), size: 2 }] };
        for split in [
            vec![vec![], vec![], vec![]],
            vec![vec![], vec![0], vec![]],
            vec![vec![1], vec![], vec![0]],
            vec![vec![1], vec![0], vec![]],
            vec![vec![], vec![1, 0], vec![]],
        ] {
            let mut state = State::new(&grid);
            let whole = TensorType::new([4, 6, 9], Element::F32);
            let bytes: Vec<u8> = (0..4 * 6 * 9u32).flat_map(u32::to_le_bytes).collect();
            state.set("x", &whole, &split, &bytes).unwrap();
            assert_eq!(state.get("x").unwrap(), (whole, bytes), "{split:?}");
        }
    }

    #[test]
    fn a_scalar_is_on_every_device() {
        let grid = Grid { axes: vec![Axis { name: "tp".into(), size: 2 }] };
        let mut state = State::new(&grid);
        state.set("lr", &TensorType::new([], Element::F32), &[], &1.5f32.to_le_bytes()).unwrap();
        assert_eq!(state.get("lr").unwrap().1, 1.5f32.to_le_bytes());
    }

    #[test]
    fn what_does_not_divide_is_named() {
        let grid = Grid { axes: vec![Axis { name: "tp".into(), size: 2 }] };
        let error = State::new(&grid).set("w", &TensorType::new([3], Element::F32), &[vec![0]], &[0; 12]);
        assert!(error.unwrap_err().to_string().contains("dimension 0 of extent 3"));
    }
}
