//! Finds the sub-layers of a schedule, and what is left beside them.

use t3c_schedule::{
    Collective, CollectiveKind, Compute, Contraction, Fused, Program, Reduction, Schedule, Step, StepId,
    StepKind, Work as ScheduleWork, chunks::scatter_dimension,
};

use crate::{
    policy::SubLayer,
    workload::{AddressSpace, Divided, Output, Producer, Ring, Work, Workload},
};

/// A sub-layer with what reports need.
pub(crate) struct Found {
    pub location: String,
    pub shape: String,
    pub layer: SubLayer,
}

/// Something that a program does.
pub(crate) enum Item<'s> {
    SubLayer(Found),
    /// Local work.
    Compute(&'s Compute),
    /// A collective without a producer of its own, as ring workloads one after the other.
    Rings(&'s str, Vec<Workload>),
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
            Some(found) => items.push(Item::SubLayer(found)),
            None if extractor.taken[step.id] => {}
            None => extractor.others(step, &mut items),
        }
        // Readers of a gather run whether or not its gather belongs to a sub-layer.
        if let StepKind::Consume(consume) = &step.kind {
            items.extend(consume.consumers.iter().map(Item::Compute));
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
            StepKind::Fused(fused) if fused.collective.kind == CollectiveKind::ReduceScatter => {
                Some(self.fused(step, fused))
            }
            StepKind::Collective(collective) => self.unfused(step, collective),
            _ => None,
        }
    }

    fn fused(&mut self, step: &Step, fused: &Fused) -> Found {
        let devices = self.devices(&fused.collective);
        let element_bytes = self.program.buffers[fused.result].element.bytes();
        let output = output(&fused.producers, &fused.shape, fused.dimension, element_bytes);
        let gathers = self.take_gather(fused.result, fused.collective.output);
        let layer = SubLayer {
            producer: self.producer(&fused.producers, output),
            space: Some(AddressSpace { chunks: fused.chunks.clone(), block: fused.block }),
            divided: Divided { extent: output.extent, index_bytes: output.index_bytes(), devices },
            gathers,
        };
        Found { location: step.location.clone(), shape: shape(&fused.producers, &output), layer }
    }

    /// A product whose result a collective reduces, where nothing fused them.
    fn unfused(&mut self, step: &Step, collective: &Collective) -> Option<Found> {
        let reduces = matches!(collective.kind, CollectiveKind::AllReduce | CollectiveKind::ReduceScatter);
        if !reduces || collective.reduction != Reduction::Sum {
            return None;
        }
        let (id, compute) = self.writer(collective.input, step.id)?;
        if !matches!(compute.work, ScheduleWork::Contraction(_)) || self.taken[id] {
            return None;
        }
        self.taken[id] = true;
        let devices = self.devices(collective);
        let input = &self.program.buffers[collective.input];
        let (dimension, gathers) = match collective.kind {
            CollectiveKind::AllReduce => (scatter_dimension(&input.shape, devices).unwrap_or(0), true),
            _ => (collective.dimension, self.take_gather(collective.output, collective.output)),
        };
        let producers = std::slice::from_ref(compute);
        let output = output(producers, &input.shape, dimension, input.element.bytes());
        let layer = SubLayer {
            producer: self.producer(producers, output),
            space: None,
            divided: Divided { extent: output.extent, index_bytes: output.index_bytes(), devices },
            gathers,
        };
        Some(Found { location: step.location.clone(), shape: shape(producers, &output), layer })
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
            let collective = match &step.kind {
                StepKind::Collective(collective) => collective,
                StepKind::Consume(consume) => &consume.collective,
                _ => return false,
            };
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
                    Work::Stream { flops, read_bytes }
                }
            })
            .collect();
        Producer { works, output }
    }

    fn others(&self, step: &'s Step, items: &mut Vec<Item<'s>>) {
        match &step.kind {
            StepKind::Compute(compute) => items.push(Item::Compute(compute)),
            StepKind::Collective(collective) => items.push(self.collective(step, collective)),
            StepKind::Consume(consume) => items.push(self.collective(step, &consume.collective)),
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
        let extent = whole.bytes().next_multiple_of(u64::from(devices));
        let divided = Divided { extent, index_bytes: 1, devices };
        let ring = |kind| Workload::Ring(kind, divided);
        let rings = match collective.kind {
            CollectiveKind::ReduceScatter => vec![ring(Ring::ReduceScatter)],
            CollectiveKind::AllGather => vec![ring(Ring::AllGather)],
            CollectiveKind::AllReduce => vec![ring(Ring::ReduceScatter), ring(Ring::AllGather)],
            CollectiveKind::AllSlice => return Item::Copy(2 * buffers[collective.output].bytes()),
            CollectiveKind::AllToAll => {
                // Each device keeps one part; on a ring the others travel a quarter of the way around.
                let sent = whole.bytes() / u64::from(devices) * u64::from(devices - 1);
                return Item::Send { bytes: sent, hops: u64::from(devices.div_ceil(4)) };
            }
        };
        Item::Rings(&step.location, if devices > 1 { rings } else { vec![] })
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

fn shape(producers: &[Compute], output: &Output) -> String {
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
