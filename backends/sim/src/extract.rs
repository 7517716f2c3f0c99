//! Finds the sub-layers of a schedule, and what is left beside them.

use t3c_schedule::{
    Algorithm, Collective, CollectiveKind, Compute, Consume, Contraction, Fused, Program, Reduction,
    Schedule, Step, StepId, StepKind, Work as ScheduleWork, chunks::scatter_dimension,
};

use crate::{
    policy::{Shape, SubLayer},
    workload::{AddressSpace, Divided, Operation, Output, Pattern, Producer, Work},
};

/// A sub-layer with what reports need.
pub(crate) struct Found {
    pub location: String,
    pub shape: String,
    pub layer: SubLayer,
    /// Readers of a gather that are no part of it.
    pub others: Vec<usize>,
}

/// Something that a program does.
pub(crate) enum Item<'s> {
    SubLayer(Found),
    /// Local work.
    Compute(&'s Compute),
    /// A collective without a producer of its own, as operations one after the other.
    Collectives(&'s str, Pattern, Vec<Operation>, Divided),
    /// Bytes that each device sends over `hops` links.
    Send {
        bytes: u64,
        hops: u64,
    },
    /// Bytes copied in memory.
    Copy(u64),
}

/// Everything that `program` does, in order.
pub(crate) fn items<'s>(schedule: &'s Schedule, program: &'s Program) -> Vec<Item<'s>> {
    let mut extractor = Extractor { schedule, program, taken: vec![false; program.steps.len()] };
    let layers: Vec<Option<Found>> = program.steps.iter().map(|step| extractor.sub_layer(step)).collect();
    let mut items = Vec::new();
    for (step, layer) in program.steps.iter().zip(layers) {
        match layer {
            Some(found) => {
                if let StepKind::Consume(consume) = &step.kind {
                    items.extend(found.others.iter().map(|&other| Item::Compute(&consume.consumers[other])));
                }
                items.push(Item::SubLayer(found));
            }
            None if extractor.taken[step.id] => {}
            None => extractor.others(step, &mut items),
        }
    }
    items
}

struct Extractor<'s> {
    schedule: &'s Schedule,
    program: &'s Program,
    /// Steps that belong to a sub-layer found at another step.
    taken: Vec<bool>,
}

impl<'s> Extractor<'s> {
    fn devices(&self, collective: &Collective) -> u32 {
        self.schedule.grid.group_size(&collective.axes).max(1)
    }

    fn sub_layer(&mut self, step: &'s Step) -> Option<Found> {
        match &step.kind {
            StepKind::Fused(fused) => self.fused(step, fused),
            StepKind::Collective(collective) => self.unfused(step, collective),
            StepKind::Consume(consume) => self.consume(step, consume),
            _ => None,
        }
    }

    fn fused(&mut self, step: &Step, fused: &Fused) -> Option<Found> {
        let shape = match fused.collective.kind {
            CollectiveKind::ReduceScatter => {
                Shape::Reduce { gathers: self.take_gather(fused.result, fused.collective.output) }
            }
            CollectiveKind::AllToAll => Shape::Exchange,
            _ => return None,
        };
        let devices = self.devices(&fused.collective);
        let element_bytes = self.program.buffers[fused.result].element.bytes();
        let output = output(&fused.producers, &fused.shape, fused.dimension, element_bytes);
        let layer = SubLayer {
            producer: self.producer(&fused.producers, output),
            space: Some(AddressSpace { chunks: fused.chunks.clone(), block: fused.block }),
            divided: Divided { extent: output.extent, index_bytes: output.index_bytes(), devices },
            shape,
            pattern: pattern(&fused.collective),
        };
        Some(Found {
            location: step.location.clone(),
            shape: size(&fused.producers, &output),
            layer,
            others: vec![],
        })
    }

    /// The first product among the readers of a gather, with the gather. Its chunks are rows of the
    /// product only where the gathered dimension is not reduced.
    fn consume(&mut self, step: &Step, consume: &Consume) -> Option<Found> {
        let collective = &consume.collective;
        let operation = match collective.kind {
            CollectiveKind::AllGather => Operation::AllGather,
            CollectiveKind::AllToAll => Operation::AllToAll,
            _ => return None,
        };
        let devices = self.devices(collective);
        let extent = *self.program.buffers[collective.output].shape.get(consume.dimension)?;
        let readers: Vec<Option<Output>> = consume
            .consumers
            .iter()
            .map(|compute| self.reader(collective, consume.dimension, compute))
            .collect();
        let (first, mut whole) =
            readers.iter().enumerate().find_map(|(at, output)| Some((at, (*output)?)))?;
        // Readers of one value stand side by side: their columns add up.
        let is_alike = |output: &Output| (output.extent, output.inner) == (whole.extent, whole.inner);
        let (inside, others): (Vec<usize>, Vec<usize>) =
            (0..readers.len()).partition(|&at| readers[at].as_ref().is_some_and(is_alike));
        let columns =
            inside.iter().filter_map(|&at| readers[at]).map(|output| output.columns * output.layers);
        (whole.columns, whole.layers) = (columns.sum(), 1);
        let products: Vec<Compute> = inside.iter().map(|&at| consume.consumers[at].clone()).collect();
        let first = &consume.consumers[first];
        // What moves: of an exchange, only the rows that are no padding.
        let index_bytes = collective.bytes.div_ceil(extent.max(1));
        let layer = SubLayer {
            producer: self.producer(std::slice::from_ref(first), whole),
            space: None,
            divided: Divided { extent, index_bytes, devices },
            shape: Shape::Consume { operation, overlaps: !consume.arrivals.is_empty() },
            pattern: pattern(collective),
        };
        Some(Found { location: step.location.clone(), shape: size(&products, &whole), layer, others })
    }

    /// The output of a reader whose rows are the gathered dimension.
    fn reader(&self, collective: &Collective, dimension: usize, compute: &Compute) -> Option<Output> {
        let ScheduleWork::Contraction(contraction) = &compute.work else { return None };
        let reads_at = compute.reads.iter().position(|&buffer| buffer == collective.output)?;
        let map = if reads_at == 0 { &contraction.a } else { &contraction.b };
        let index = *map.get(dimension)?;
        let row = contraction.c.iter().position(|&other| other == index)?;
        let written = &self.program.buffers[*compute.writes.first()?];
        Some(output(std::slice::from_ref(compute), &written.shape, row, written.element.bytes()))
    }

    /// A product whose result a collective reduces, where nothing fused them.
    fn unfused(&mut self, step: &Step, collective: &Collective) -> Option<Found> {
        let sums = collective.reduction == Reduction::Sum;
        let has_producer = match collective.kind {
            CollectiveKind::AllReduce | CollectiveKind::ReduceScatter => sums,
            CollectiveKind::AllToAll => true,
            _ => false,
        };
        if !has_producer {
            return None;
        }
        let (id, compute) = self.writer(collective.input, step.id)?;
        if !matches!(compute.work, ScheduleWork::Contraction(_)) || self.taken[id] {
            return None;
        }
        self.taken[id] = true;
        let devices = self.devices(collective);
        let input = &self.program.buffers[collective.input];
        let (dimension, shape) = match collective.kind {
            CollectiveKind::AllReduce => {
                (scatter_dimension(&input.shape, devices).unwrap_or(0), Shape::Reduce { gathers: true })
            }
            CollectiveKind::AllToAll => (collective.dimension, Shape::Exchange),
            _ => {
                let gathers = self.take_gather(collective.output, collective.output);
                (collective.dimension, Shape::Reduce { gathers })
            }
        };
        let producers = std::slice::from_ref(compute);
        let output = output(producers, &input.shape, dimension, input.element.bytes());
        let index_bytes = match shape {
            Shape::Exchange => collective.bytes.div_ceil(output.extent.max(1)),
            _ => output.index_bytes(),
        };
        let layer = SubLayer {
            producer: self.producer(producers, output),
            space: None,
            divided: Divided { extent: output.extent, index_bytes, devices },
            shape,
            pattern: pattern(collective),
        };
        Some(Found {
            location: step.location.clone(),
            shape: size(producers, &output),
            layer,
            others: vec![],
        })
    }

    /// The local work that wrote `buffer` last before step `before`.
    fn writer(&self, buffer: usize, before: StepId) -> Option<(StepId, &'s Compute)> {
        let step = self.program.steps[..before].iter().rev().find(|step| match &step.kind {
            StepKind::Compute(compute) => compute.writes.contains(&buffer),
            StepKind::Fused(fused) => fused.result == buffer,
            StepKind::Collective(collective) => collective.output == buffer,
            StepKind::Call { results, .. } => results.contains(&buffer),
            _ => false,
        })?;
        match &step.kind {
            StepKind::Compute(compute) => Some((step.id, compute)),
            _ => None,
        }
    }

    /// Whether a gather of either buffer follows; it then belongs to the sub-layer.
    fn take_gather(&mut self, reduced: usize, output: usize) -> bool {
        let gather = self.program.steps.iter().find(|step| {
            let StepKind::Collective(collective) = &step.kind else { return false };
            collective.kind == CollectiveKind::AllGather
                && (collective.input == reduced || collective.input == output)
                && !self.taken[step.id]
        });
        if let Some(step) = gather {
            self.taken[step.id] = true;
        }
        gather.is_some()
    }

    fn producer(&self, producers: &[Compute], output: Output) -> Producer {
        let works = producers
            .iter()
            .map(|compute| match &compute.work {
                ScheduleWork::Contraction(contraction) => {
                    let k = contraction.gemm_shape().k;
                    Work::Product { k, element: self.program.buffers[compute.reads[0]].element }
                }
                _ => {
                    // What an earlier one of the producers wrote is still in registers.
                    let mut outside = compute.clone();
                    outside.reads.retain(|buffer| !producers.iter().any(|p| p.writes.contains(buffer)));
                    let (flops, (read_bytes, _)) = cost(self.program, &outside);
                    let matrix = on_matrix(self.program, compute);
                    Work::Stream { flops, read_bytes, matrix }
                }
            })
            .collect();
        Producer { works, output }
    }

    fn others(&self, step: &'s Step, items: &mut Vec<Item<'s>>) {
        match &step.kind {
            StepKind::Compute(compute) => items.push(Item::Compute(compute)),
            StepKind::Collective(collective) => items.push(self.collective(step, collective)),
            StepKind::Consume(consume) => {
                items.push(self.collective(step, &consume.collective));
                items.extend(consume.consumers.iter().map(Item::Compute));
            }
            StepKind::Fused(fused) => {
                items.extend(fused.producers.iter().map(Item::Compute));
                items.push(self.collective(step, &fused.collective));
            }
            StepKind::Transfer { to, buffer } => {
                let devices = self.schedule.grid.devices();
                let hops = u64::from((*to).min(devices.saturating_sub(*to)).max(1));
                items.push(Item::Send { bytes: self.program.buffers[*buffer].bytes(), hops });
            }
            // The callee's steps are found in its own program.
            StepKind::Call { .. } => {}
        }
    }

    fn collective(&self, step: &'s Step, collective: &Collective) -> Item<'s> {
        let devices = self.devices(collective);
        let buffers = &self.program.buffers;
        let whole = match collective.kind {
            CollectiveKind::AllGather => &buffers[collective.output],
            _ => &buffers[collective.input],
        };
        // Only its time is asked for, to which a rounded-up byte a chunk makes no difference.
        let bytes = match collective.kind {
            CollectiveKind::AllToAll => collective.bytes,
            _ => whole.bytes(),
        };
        let extent = bytes.next_multiple_of(u64::from(devices));
        let divided = Divided { extent, index_bytes: 1, devices };
        let operations = match collective.kind {
            CollectiveKind::ReduceScatter => vec![Operation::ReduceScatter],
            CollectiveKind::AllGather => vec![Operation::AllGather],
            CollectiveKind::AllReduce => vec![Operation::ReduceScatter, Operation::AllGather],
            CollectiveKind::AllToAll => vec![Operation::AllToAll],
            CollectiveKind::AllSlice => return Item::Copy(2 * buffers[collective.output].bytes()),
        };
        let operations = if devices > 1 { operations } else { vec![] };
        Item::Collectives(&step.location, pattern(collective), operations, divided)
    }
}

/// A ring, unless the schedule asks for direct transfers. An all-reduce is always one.
fn pattern(collective: &Collective) -> Pattern {
    match (collective.kind, collective.algorithm) {
        (CollectiveKind::AllToAll, _) => Pattern::Direct,
        (CollectiveKind::AllReduce, _) | (_, Algorithm::Ring) => Pattern::Ring,
        (_, Algorithm::Direct) => Pattern::Direct,
    }
}

/// Floating-point operations, and bytes read and written, of local work.
pub(crate) fn cost(program: &Program, compute: &Compute) -> (u64, (u64, u64)) {
    let bytes = |buffers: &[usize]| buffers.iter().map(|&b| program.buffers[b].bytes()).sum::<u64>();
    let written = bytes(&compute.writes);
    let read = bytes(&compute.reads);
    match &compute.work {
        ScheduleWork::Contraction(contraction) => (contraction.gemm_shape().flops(), (read, written)),
        // A look-up reads the rows it takes, not its whole table.
        ScheduleWork::Unit { name, flops } if name.contains("lookup") || name.contains("embedding") => {
            (*flops, (read.min(written), written))
        }
        ScheduleWork::Unit { flops, .. } | ScheduleWork::Loops { flops } => (*flops, (read, written)),
        ScheduleWork::Copy => (0, (read.min(written), written)),
    }
}

/// The element of work that the matrix pipelines do tile by tile without being one product.
pub(crate) fn on_matrix(program: &Program, compute: &Compute) -> Option<t3c_schedule::Element> {
    match &compute.work {
        ScheduleWork::Unit { name, .. } if name.contains("attention") || name.contains("grouped") => {
            Some(program.buffers[*compute.reads.first()?].element)
        }
        _ => None,
    }
}

/// A contraction that is no part of a sub-layer, as a producer; `None` where it is too small in a
/// direction to be worth a matrix pipeline.
pub(crate) fn product(program: &Program, compute: &Compute) -> Option<Producer> {
    const LEAST: u64 = 8;
    let ScheduleWork::Contraction(contraction) = &compute.work else { return None };
    let gemm = contraction.gemm_shape();
    if gemm.n.min(gemm.k) < LEAST || gemm.m == 0 {
        return None;
    }
    let element = program.buffers[*compute.reads.first()?].element;
    let element_bytes = program.buffers[*compute.writes.first()?].element.bytes();
    let output = Output { extent: gemm.m, inner: 1, columns: gemm.n, layers: gemm.batch, element_bytes };
    Some(Producer { works: vec![Work::Product { k: gemm.k, element }], output })
}

/// The producers' output as rows and columns, with rows along `dimension`.
fn output(producers: &[Compute], shape: &[u64], dimension: usize, element_bytes: u64) -> Output {
    let extent = shape.get(dimension).copied().unwrap_or(1).max(1);
    let elements: u64 = shape.iter().product();
    let has_shape = |contraction: &&Contraction| {
        contraction.c.len() == shape.len()
            && contraction.c.iter().zip(shape).all(|(&index, &extent)| contraction.extents[index] == extent)
    };
    let contraction = producers.iter().find_map(|producer| match &producer.work {
        ScheduleWork::Contraction(contraction) => Some(contraction).filter(has_shape),
        _ => None,
    });
    let (inner, columns, layers) = match contraction {
        Some(contraction) => sides(contraction, dimension, extent),
        None => (1, elements / extent, 1),
    };
    Output { extent, inner, columns, layers, element_bytes }
}

/// Rows an index of `dimension`, columns, and independent products of a contraction.
fn sides(contraction: &Contraction, dimension: usize, extent: u64) -> (u64, u64, u64) {
    let gemm = contraction.gemm_shape();
    let index = contraction.c.get(dimension);
    let is_in = |map: &[usize]| index.is_some_and(|index| map.contains(index));
    match (is_in(&contraction.a), is_in(&contraction.b)) {
        (true, false) => (gemm.m / extent, gemm.n, gemm.batch),
        (false, true) => (gemm.n / extent, gemm.m, gemm.batch),
        _ => (gemm.batch / extent.min(gemm.batch).max(1) * gemm.m, gemm.n, 1),
    }
}

fn size(producers: &[Compute], output: &Output) -> String {
    let products: Vec<String> = producers
        .iter()
        .filter_map(|producer| match &producer.work {
            ScheduleWork::Contraction(contraction) => {
                let gemm = contraction.gemm_shape();
                let batch = if gemm.batch > 1 { format!("{}x", gemm.batch) } else { String::new() };
                Some(format!("{batch}{}x{}x{}", gemm.m, gemm.n, gemm.k))
            }
            _ => None,
        })
        .collect();
    if products.is_empty() { format!("{}x{}", output.rows(), output.columns) } else { products.join("+") }
}
