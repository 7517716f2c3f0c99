//! The schedule's data types.

use serde::{Deserialize, Serialize};

use crate::{Arrival, Chunk};

/// The version string of the JSON form.
pub const SCHEMA: &str = "t3c.schedule/1";

/// A whole program: one [`Program`] a distinct function, in terms of the device's coordinate.
///
/// All devices run the same programs; what differs between them follows from the coordinate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The device grid.
    pub grid: Grid,
    /// The programs. A repeated layer stands here once and is called.
    pub programs: Vec<Program>,
    /// Index of the program where execution starts.
    pub entry: usize,
}

/// The grid of devices: named axes, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// The axes.
    pub axes: Vec<Axis>,
}

/// One axis of the grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Its name, such as `tp`.
    pub name: String,
    /// Devices along it.
    pub size: u32,
}

impl Grid {
    /// All devices of the grid.
    pub fn devices(&self) -> u32 {
        self.axes.iter().map(|axis| axis.size).product()
    }

    /// Devices in a group along `axes` (indices into [`Grid::axes`]).
    pub fn group_size(&self, axes: &[usize]) -> u32 {
        axes.iter().map(|&axis| self.axes[axis].size).product()
    }

    /// The coordinate of `device` along each axis, row-major.
    pub fn coordinates(&self, device: u32) -> Vec<u32> {
        let mut rest = device;
        let mut coordinates: Vec<u32> = self
            .axes
            .iter()
            .rev()
            .map(|axis| {
                let coordinate = rest % axis.size;
                rest /= axis.size;
                coordinate
            })
            .collect();
        coordinates.reverse();
        coordinates
    }

    /// The members of `device`'s group along `axes`, in ring order (row-major order of their
    /// coordinates along `axes`, the first axis outermost), and the position of `device` among them.
    pub fn group(&self, device: u32, axes: &[usize]) -> (Vec<u32>, u32) {
        let own = self.coordinates(device);
        let mut members: Vec<u32> = (0..self.devices())
            .filter(|&other| {
                let theirs = self.coordinates(other);
                (0..own.len()).all(|axis| axes.contains(&axis) || own[axis] == theirs[axis])
            })
            .collect();
        members.sort_by_cached_key(|&member| {
            let coordinates = self.coordinates(member);
            axes.iter().map(|&axis| coordinates.get(axis).copied().unwrap_or(0)).collect::<Vec<_>>()
        });
        let position = members.iter().position(|&member| member == device).unwrap_or(0);
        (members, position as u32)
    }
}

/// Index of a buffer in its program.
pub type BufferId = usize;
/// Index of a step in its program.
pub type StepId = usize;

/// A straight-line program over buffers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The function's name in the module.
    pub name: String,
    /// Every value of the program, one device's part of it, dense and row-major.
    pub buffers: Vec<Buffer>,
    /// The buffers that the caller provides.
    pub arguments: Vec<BufferId>,
    /// The buffers that the caller receives.
    pub results: Vec<BufferId>,
    /// The steps. The list is one valid order; [`Step::after`] holds the order that matters.
    pub steps: Vec<Step>,
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I1,
}

impl Element {
    /// Bytes of one element in memory.
    pub fn bytes(self) -> u64 {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::I1 => 1,
        }
    }
}

/// One tensor value on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Where it comes from, for reports.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
}

impl Buffer {
    /// Elements. Saturates, as all sizes here: a schedule that is not verified yet may say anything.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &extent| product.saturating_mul(extent))
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.element.bytes())
    }
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its index in [`Program::steps`].
    pub id: StepId,
    /// Steps that must have finished.
    pub after: Vec<StepId>,
    /// The place in the user's model: checkpoint tensor, file, line and column.
    pub location: String,
    /// What happens.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Local work.
    Compute(Compute),
    /// Local work whose chunks feed a collective as they are finished.
    Fused(Fused),
    /// Readers of a gather that use its parts as they arrive.
    Consume(Consume),
    /// A collective that was not fused.
    Collective(Collective),
    /// A send to another device, from an imported program.
    Transfer {
        /// Distance `+k` in row-major device order.
        to: u32,
        /// What is sent.
        buffer: BufferId,
    },
    /// A call of another program: repeated layers.
    Call {
        /// Index into [`Schedule::programs`].
        program: usize,
        /// The caller's buffers for the callee's arguments.
        arguments: Vec<BufferId>,
        /// The caller's buffers for the callee's results.
        results: Vec<BufferId>,
    },
}

/// Local work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// What kind of work, with its size.
    pub work: Work,
    /// The function that holds its code, where it is not a contraction.
    pub kernel: Option<String>,
    /// Buffers read, in the kernel's operand order.
    pub reads: Vec<BufferId>,
    /// Buffers written, in the kernel's result order.
    pub writes: Vec<BufferId>,
}

/// Kinds of local work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A contraction of two operands.
    Contraction(Contraction),
    /// A unit of the design (attention, lookup, …), by name.
    Unit {
        /// The value of `t3.unit`.
        name: String,
        /// Floating-point operations.
        flops: u64,
    },
    /// Elementwise work and reductions, fused into one kernel.
    Loops {
        /// Floating-point operations.
        flops: u64,
    },
    /// A view or copy that moves elements without arithmetic.
    Copy,
}

/// `c[..] (+)= Σ a[..] · b[..]` over named loops.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contraction {
    /// The extent of each loop.
    pub extents: Vec<u64>,
    /// For each dimension of `a`, its loop.
    pub a: Vec<usize>,
    /// For each dimension of `b`, its loop.
    pub b: Vec<usize>,
    /// For each dimension of the result, its loop.
    pub c: Vec<usize>,
}

/// A contraction as a matrix product over collapsed extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct GemmShape {
    pub batch: u64,
    pub m: u64,
    pub n: u64,
    pub k: u64,
}

impl GemmShape {
    /// Floating-point operations: two a multiply-add.
    pub fn flops(&self) -> u64 {
        [self.batch, self.m, self.n, self.k].into_iter().fold(2, u64::saturating_mul)
    }
}

impl Contraction {
    /// Loops in all three operands are the batch, those of `a` and `c` are M, of `b` and `c` are N,
    /// the rest are K.
    pub fn gemm_shape(&self) -> GemmShape {
        let mut shape = GemmShape { batch: 1, m: 1, n: 1, k: 1 };
        for (index, &extent) in self.extents.iter().enumerate() {
            let [a, b, c] = [&self.a, &self.b, &self.c].map(|map| map.contains(&index));
            let size = match (a, b, c) {
                (true, true, true) => &mut shape.batch,
                (true, false, true) => &mut shape.m,
                (false, true, true) => &mut shape.n,
                _ => &mut shape.k,
            };
            *size = size.saturating_mul(extent);
        }
        shape
    }
}

/// A producer whose stores are the collective's first transfer.
///
/// Its producers run in order. Products that write one buffer add into it, so that the buffer holds their sum;
/// what follows them (a unit, elementwise work) reads buffers that earlier ones wrote. The last one writes the
/// device's contribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fused {
    /// The work that makes the contribution, in program order.
    pub producers: Vec<Compute>,
    /// The collective that the producer's stores perform.
    pub collective: Collective,
    /// The shape of the whole partial value.
    pub shape: Vec<u64>,
    /// The dimension that is divided into chunks.
    pub dimension: usize,
    /// Indices along `dimension` that one trigger moves: a tracker fires once a block.
    pub block: u64,
    /// The address space, in production order.
    pub chunks: Vec<Chunk>,
    /// The buffer that receives the device's reduced chunk.
    pub result: BufferId,
}

/// Readers of one gather.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Consume {
    /// The gather whose parts are read as they arrive.
    pub collective: Collective,
    /// The gathered dimension of the whole value: for an all-to-all, where the received pieces lie.
    pub dimension: usize,
    /// How the parts reach the device, in the order in which the readers use them. Empty where no address space
    /// is configured: the gather comes before its readers, which every backend may do in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arrivals: Vec<Arrival>,
    /// Indices along `dimension` that one transfer moves.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub block: u64,
    /// The readers, and the elementwise work between the gather and them, in program order.
    pub consumers: Vec<Compute>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum CollectiveKind {
    ReduceScatter,
    AllGather,
    AllReduce,
    AllToAll,
    AllSlice,
}

/// How values are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Reduction {
    Sum,
    Max,
}

/// The algorithm of a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Neighbour to neighbour.
    Ring,
    /// Every device to every other.
    Direct,
}

/// A collective over a group of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collective {
    /// Which.
    pub kind: CollectiveKind,
    /// Grid axes of the group, outermost first.
    pub axes: Vec<usize>,
    /// The dimension that is scattered, gathered or (all-to-all) split; 0 for an all-reduce.
    pub dimension: usize,
    /// Where an all-to-all lays the received pieces, one after the other in ring order; `None` for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concatenate: Option<usize>,
    /// For the reducing kinds.
    pub reduction: Reduction,
    /// Bytes of the whole (unscattered, gathered) value. Of an all-to-all: those that really move or stay, which
    /// are fewer than the operand's where its rows are padded.
    pub bytes: u64,
    /// How it runs.
    pub algorithm: Algorithm,
    /// One device's operand.
    pub input: BufferId,
    /// One device's result.
    pub output: BufferId,
}
