//! What one simulation runs, in numbers: no names, so that equal workloads are simulated once.

use std::ops::Range;

use t3c_schedule::{Chunk, Element, Op, Store, Trigger, chunks::chunk_range};

/// A producer's output as rows and columns: rows run along the chunked dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Output {
    /// Indices of the chunked dimension.
    pub extent: u64,
    /// Rows an index.
    pub inner: u64,
    /// Columns of one layer.
    pub columns: u64,
    /// Independent products side by side (a batch).
    pub layers: u64,
    pub element_bytes: u64,
}

impl Output {
    pub fn rows(&self) -> u64 {
        self.extent * self.inner
    }

    pub fn elements(&self) -> u64 {
        self.rows() * self.columns * self.layers
    }

    /// Bytes of one index of the chunked dimension.
    pub fn index_bytes(&self) -> u64 {
        self.inner * self.columns * self.layers * self.element_bytes
    }
}

/// One of the works whose sum is the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// A product with `k` reduction indices.
    Product { k: u64, element: Element },
    /// Work that streams through its operands once; on the matrix pipelines where it has their element.
    Stream { flops: u64, read_bytes: u64, matrix: Option<Element> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Producer {
    pub works: Vec<Work>,
    pub output: Output,
}

/// The address space that a fused producer stores through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AddressSpace {
    pub chunks: Vec<Chunk>,
    /// Indices of the chunked dimension that one trigger moves.
    pub block: u64,
}

/// A value that is divided among the devices of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Divided {
    pub extent: u64,
    pub index_bytes: u64,
    pub devices: u32,
}

impl Divided {
    /// The indices of the chunk that `device` counts as `relative`.
    pub fn range(&self, device: u32, relative: u32) -> Range<u64> {
        chunk_range(self.extent, self.devices, (device + relative) % self.devices)
    }

    pub fn bytes(&self, device: u32, relative: u32) -> u64 {
        let range = self.range(device, relative);
        (range.end - range.start) * self.index_bytes
    }

    /// Whether all devices do the same, so that one stands for all.
    pub fn is_even(&self) -> bool {
        t3c_schedule::chunks::divides(self.extent, self.devices)
    }
}

/// How a collective's data travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pattern {
    /// Neighbour to neighbour, a step for each.
    Ring,
    /// From every device to every other at once.
    Direct,
    /// Through a switch that adds what passes and copies what all want.
    InNetwork,
}

/// What a collective does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    ReduceScatter,
    /// Received parts are added by memory.
    ReduceScatterNearMemory,
    AllGather,
    AllToAll,
}

/// A collective of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Collective {
    pub pattern: Pattern,
    pub operation: Operation,
}

/// Who moves what a tracker triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mover {
    /// A DMA engine; memory adds.
    Engine,
    /// Compute units, which also add.
    Units,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Workload {
    /// A producer alone.
    Producer(Producer),
    /// A producer that stores through an address space.
    Fused(Producer, AddressSpace, Divided, Mover),
    /// A collective alone.
    Collective(Collective, Divided),
    /// Readers of a gather or exchange, chunk by chunk as they arrive.
    Consume(Producer, Collective, Divided, Mover),
}

impl AddressSpace {
    /// The same reduction by kernels alone: what would be stored remotely is stored here and sent from
    /// here, and nothing is added by memory.
    pub fn in_software(&self) -> AddressSpace {
        let chunks = self.chunks.iter().map(|&chunk| {
            let chunk = Chunk { op: Op::Store, ..chunk };
            match (chunk.store, chunk.trigger) {
                (Store::Remote(to), _) => {
                    let trigger = Trigger::Dma { to, op: Op::Store };
                    Chunk { store: Store::Local, threshold: 1, trigger, ..chunk }
                }
                (_, Trigger::Dma { to, .. }) => {
                    Chunk { trigger: Trigger::Dma { to, op: Op::Store }, ..chunk }
                }
                _ => chunk,
            }
        });
        AddressSpace { chunks: chunks.collect(), block: self.block }
    }
}
