//! What the numbers in terms stand for. Rules intern new layouts, cuts and groups as they need them.

use t3c_ir::{ScalarBody, TensorType};

/// A value that the algebra does not look into.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Its type.
    pub r#type: TensorType,
    /// Grid axes, one bit each, along which all devices hold the same.
    pub same: u64,
}

/// Where the dimensions of a tensor go in a view of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The view's dimension of each of the tensor's.
    pub map: Vec<usize>,
    /// Extents of the view's dimensions that repeat the tensor; 0 for those that are the tensor's own.
    pub extents: Vec<u64>,
}

impl Layout {
    /// The layout of a tensor with `map` in a view of `shape`.
    pub fn new(map: &[usize], shape: &[u64]) -> Self {
        let own = |dimension: &usize| map.contains(dimension);
        let extents = shape.iter().enumerate().map(|(d, &extent)| if own(&d) { 0 } else { extent }).collect();
        Self { map: map.to_vec(), extents }
    }

    /// The view's type.
    pub fn of(&self, r#type: &TensorType) -> TensorType {
        let mut shape = self.extents.clone();
        for (&dimension, &extent) in self.map.iter().zip(&r#type.shape) {
            shape[dimension] = extent;
        }
        TensorType::new(shape, r#type.element)
    }

    /// The tensor's dimension that is the view's `dimension`, unless that repeats.
    pub fn source(&self, dimension: usize) -> Option<usize> {
        self.map.iter().position(|own| *own == dimension)
    }

    /// Whether nothing is repeated.
    pub fn is_permutation(&self) -> bool {
        self.map.len() == self.extents.len()
    }

    /// Whether the view is the tensor.
    pub fn is_identity(&self) -> bool {
        self.is_permutation() && self.map.iter().enumerate().all(|(at, dimension)| at == *dimension)
    }

    /// The view through this layout of a view through `inner`.
    pub fn of_view(&self, inner: &Layout) -> Layout {
        let map = inner.map.iter().map(|dimension| self.map[*dimension]).collect();
        let mut extents = self.extents.clone();
        for (&dimension, &extent) in self.map.iter().zip(&inner.extents) {
            extents[dimension] = extent;
        }
        Layout { map, extents }
    }

    /// The same with another extent of a dimension that repeats.
    pub fn with_extent(&self, dimension: usize, extent: u64) -> Layout {
        let mut layout = self.clone();
        layout.extents[dimension] = extent;
        layout
    }
}

/// A box of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First index of each dimension.
    pub offsets: Vec<u64>,
    /// Indices taken of each dimension.
    pub sizes: Vec<u64>,
    /// Distance between them.
    pub strides: Vec<u64>,
}

impl Cut {
    /// Whether all of a dimension of `extent` is taken.
    pub fn is_whole(&self, dimension: usize, extent: u64) -> bool {
        self.offsets.get(dimension) == Some(&0)
            && self.sizes.get(dimension) == Some(&extent)
            && self.strides.get(dimension) == Some(&1)
    }

    /// The same, with all of a dimension taken that has this extent.
    pub fn with_whole(&self, dimension: usize, extent: u64) -> Cut {
        let mut cut = self.clone();
        (cut.offsets[dimension], cut.sizes[dimension], cut.strides[dimension]) = (0, extent, 1);
        cut
    }

    /// The box of a tensor, of a box of its view through `layout`.
    pub fn through(&self, layout: &Layout) -> Cut {
        let pick = |all: &[u64]| layout.map.iter().map(|dimension| all[*dimension]).collect();
        Cut { offsets: pick(&self.offsets), sizes: pick(&self.sizes), strides: pick(&self.strides) }
    }
}

/// The tables behind the numbers of terms.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Devices along each grid axis.
    pub axes: Vec<u32>,
    /// The grid axes of each group, outermost first.
    pub groups: Vec<Vec<usize>>,
    /// Scalar functions; the last argument, the output's element, is not read.
    pub functions: Vec<ScalarBody>,
    /// Layouts of views.
    pub layouts: Vec<Layout>,
    /// Boxes.
    pub cuts: Vec<Cut>,
    /// Values that the algebra does not look into.
    pub values: Vec<Leaf>,
}

impl Tables {
    /// Devices of a group.
    pub fn devices(&self, group: u32) -> u32 {
        self.groups[group as usize].iter().map(|axis| self.axes[*axis]).product()
    }

    /// The axes of a group, one bit each.
    pub fn mask(&self, group: u32) -> u64 {
        mask(&self.groups[group as usize])
    }

    /// The number of a group.
    pub fn group(&mut self, axes: &[usize]) -> u32 {
        intern(&mut self.groups, axes.to_vec())
    }

    /// The number of a function.
    pub fn function(&mut self, body: ScalarBody) -> u32 {
        intern(&mut self.functions, body)
    }

    /// The number of a layout.
    pub fn layout(&mut self, layout: Layout) -> u32 {
        intern(&mut self.layouts, layout)
    }

    /// The number of a cut.
    pub fn cut(&mut self, cut: Cut) -> u32 {
        intern(&mut self.cuts, cut)
    }
}

/// Axes, one bit each.
pub fn mask(axes: &[usize]) -> u64 {
    axes.iter().fold(0, |mask, axis| mask | 1 << axis)
}

fn intern<T: PartialEq>(table: &mut Vec<T>, row: T) -> u32 {
    let known = table.iter().position(|known| *known == row);
    known.unwrap_or_else(|| {
        table.push(row);
        table.len() - 1
    }) as u32
}
