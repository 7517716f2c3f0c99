//! What each step of the schedule becomes: a plan of a generated kernel, or the address of a compiled function.

use std::collections::HashMap;

use t3c_ir::{
    Module,
    function::functions,
    units::{Unit, UnitKind, unit_of},
};
use t3c_runtime::layout::Cut;
use t3c_schedule::{
    CollectiveKind, Compute, Contraction, Fused, Program, Reduction, Schedule, Step, StepKind, Work,
};

use super::{
    exchange::Exchange,
    packs::products,
    plan::{Instance, ValueId, is_unit},
};
use crate::{
    Error,
    kernels::{
        self, AttentionShape, CacheShape, Dim, GemmPlan, Heads, Jit, Machine, Scores,
        experts::{Grouped, Routing},
    },
    lower::{Compiled, Needs, entry_symbol},
};

/// A step's native form.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// A matrix product.
    Gemm(Box<Gemm>),
    /// A matrix product that is added to what its result holds.
    Add(Box<Gemm>),
    /// A compiled function of the module.
    Kernel(Kernel),
    /// Attention over packed tokens.
    Attention { shape: AttentionShape, scores: Scores },
    /// Its gradient.
    AttentionGrad { shape: AttentionShape, scores: Scores },
    /// Attention with a cache.
    AttentionPaged { shape: AttentionShape, cache: CacheShape, scores: Scores },
    /// Which rows go to which expert.
    Route(Routing),
    /// Products of rows with the matrix of their expert.
    Grouped(Box<GroupedPlan>),
    /// The gradient of those matrices.
    GroupedGrad(GroupedGradPlan),
    /// Products whose blocks feed a reduce-scatter.
    Fused(Box<FusedPlan>),
    /// A plain collective.
    Exchange(Exchange),
    /// A gather, then its readers.
    Consume(Exchange, Vec<Option<Prepared>>),
}

/// A compiled function of the module.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Address of its packed entry.
    pub(crate) address: usize,
    /// What it takes besides inputs and results.
    pub(crate) needs: Needs,
    /// Index checks before the call.
    pub(crate) checks: Vec<IndexCheck>,
}

/// A matrix product and which operand comes first.
#[derive(Debug)]
pub(crate) struct Gemm {
    pub(crate) plan: GemmPlan,
    /// Whether the schedule's second operand is the kernel's first.
    pub(crate) swapped: bool,
    /// Whether the outermost dimension of the result is one of rows.
    pub(crate) outermost_rows: bool,
}

/// A product of ragged groups of rows: its batch is the experts.
#[derive(Debug)]
pub(crate) struct GroupedPlan {
    pub(crate) gemm: Gemm,
    pub(crate) grouped: Grouped,
}

/// The gradient of experts' matrices of `features` (rows, columns).
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedGradPlan {
    pub(crate) grouped: Grouped,
    pub(crate) features: (usize, usize),
}

impl GroupedGradPlan {
    /// Floats that one expert's product needs, however many rows it gets: of each thread, and shared.
    fn scratch(&self, machine: &Machine) -> [usize; 2] {
        let rows = self.grouped.groups * self.grouped.rows;
        GemmPlan::most_scratch_of_rows(rows, self.features.1, machine)
    }
}

/// Which operand holds row indices, and below what they must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexCheck {
    pub(crate) operand: usize,
    pub(crate) rows: usize,
}

/// The work of a fused step: what comes before its blocks, then products that make the contribution block by block,
/// or, without products, the moves of a contribution that is complete.
#[derive(Debug)]
pub(crate) struct FusedPlan {
    /// What comes before.
    pub(crate) before: Vec<Option<Prepared>>,
    /// Where the contribution is among what the step writes, when nothing makes it block by block.
    pub(crate) complete: Option<usize>,
    /// The contribution around the dimension that is divided.
    pub(crate) cut: Cut,
    /// Instead of tracked blocks, where the collective adds nothing.
    pub(crate) exchange: Option<Exchange>,
    pub(crate) products: Vec<Gemm>,
    /// Whether chunks are ranges of the kernel's rows; of its columns otherwise.
    pub(crate) by_rows: Vec<bool>,
    /// Kernel rows (columns) that one index of the divided dimension stands for, for each product.
    pub(crate) scale: Vec<usize>,
}

/// Compiles every step of every program.
pub(crate) struct Preparation<'s> {
    pub(crate) schedule: &'s Schedule,
    pub(crate) machine: &'s Machine,
    pub(crate) compiled: &'s Compiled,
    pub(crate) code: &'s Jit,
    pub(crate) units: &'s HashMap<String, Unit>,
}

impl Preparation<'_> {
    /// The native form of each step, by program and step id; calls have none.
    pub(crate) fn all(&self) -> Result<Vec<Vec<Option<Prepared>>>, Error> {
        self.schedule
            .programs
            .iter()
            .map(|program| program.steps.iter().map(|step| self.step(program, step)).collect())
            .collect()
    }

    fn step(&self, program: &Program, step: &Step) -> Result<Option<Prepared>, Error> {
        let unsupported = |what: &str, expected: &str| Error::Unsupported {
            location: step.location.clone(),
            what: what.to_owned(),
            expected: expected.to_owned(),
        };
        let exchange = |collective| {
            Exchange::new(program, collective)
                .map_err(|what| unsupported(&what, "f32, and a dimension that the devices share"))
        };
        Ok(Some(match &step.kind {
            StepKind::Compute(compute) => return self.reader(program, step, compute),
            StepKind::Fused(fused) => {
                let moves = fused.collective.kind == CollectiveKind::AllToAll;
                let exchange = moves.then(|| exchange(&fused.collective)).transpose()?;
                Prepared::Fused(Box::new(self.fused(program, step, fused, exchange)?))
            }
            StepKind::Collective(collective) => Prepared::Exchange(exchange(collective)?),
            StepKind::Consume(consume) => {
                let readers = self.region(program, step, &consume.consumers)?;
                Prepared::Consume(exchange(&consume.collective)?, readers)
            }
            StepKind::Call { .. } => return Ok(None),
            StepKind::Transfer { .. } => return Err(unsupported("a point-to-point transfer", "collectives")),
        }))
    }

    /// The work of a region, in order. Products that write what an earlier one wrote are added to it.
    fn region(
        &self,
        program: &Program,
        step: &Step,
        computes: &[Compute],
    ) -> Result<Vec<Option<Prepared>>, Error> {
        let is_later =
            |index: usize| computes[..index].iter().any(|earlier| earlier.writes == computes[index].writes);
        let one = |(index, compute)| {
            let prepared = self.reader(program, step, compute)?;
            Ok(match prepared {
                Some(Prepared::Gemm(gemm)) if is_later(index) => Some(Prepared::Add(gemm)),
                other => other,
            })
        };
        computes.iter().enumerate().map(one).collect()
    }

    /// Local work; a copy needs no code.
    fn reader(&self, program: &Program, step: &Step, compute: &Compute) -> Result<Option<Prepared>, Error> {
        match compute {
            Compute { work: Work::Copy, kernel: None, .. } => Ok(None),
            compute => self.compute(program, step, compute).map(Some),
        }
    }

    fn compute(&self, program: &Program, step: &Step, compute: &Compute) -> Result<Prepared, Error> {
        if let Work::Contraction(contraction) = &compute.work {
            return Ok(Prepared::Gemm(Box::new(self.gemm(step, contraction)?)));
        }
        let shape = |operand: usize| program.buffers[compute.reads[operand]].shape.as_slice();
        let buffer = |id: usize| program.buffers[id].shape.as_slice();
        if let Some(unit) = self.unit(compute).filter(|unit| NATIVE.contains(&unit.kind)) {
            let scores = scores_of(unit);
            let q = || attention_shape(step, shape(0));
            return Ok(match unit.kind {
                UnitKind::Attention => Prepared::Attention { shape: q()?, scores },
                UnitKind::AttentionGrad => Prepared::AttentionGrad { shape: q()?, scores },
                UnitKind::AttentionPaged => {
                    let cache =
                        CacheShape { blocks: shape(3)[0] as usize, table_width: shape(5)[1] as usize };
                    Prepared::AttentionPaged { shape: q()?, cache, scores }
                }
                UnitKind::Route => Prepared::Route(routing(unit, shape(0), buffer(compute.writes[0]))),
                UnitKind::Grouped => self.grouped(unit, shape(0), shape(1))?,
                _ => {
                    let grouped = grouped_extents(shape(0), buffer(compute.writes[0])[1]);
                    let features = (extent(shape(1), 3), extent(shape(0), 3));
                    Prepared::GroupedGrad(GroupedGradPlan { grouped, features })
                }
            });
        }
        let symbol = compute.kernel.as_deref().unwrap_or_default();
        let checks = if is_unit(compute, UnitKind::Lookup) {
            vec![IndexCheck { operand: 1, rows: shape(0)[0] as usize }]
        } else if is_unit(compute, UnitKind::LookupGrad) {
            let rows = program.buffers[compute.writes[0]].shape[0] as usize;
            vec![IndexCheck { operand: 0, rows }]
        } else {
            Vec::new()
        };
        Ok(Prepared::Kernel(Kernel {
            address: self.code.address(&entry_symbol(symbol))?,
            needs: self.compiled.get(symbol).cloned().unwrap_or_default(),
            checks,
        }))
    }

    /// All experts' matrices as a batch; the rows of each are known when the offsets are.
    fn grouped(&self, unit: &Unit, x: &[u64], w: &[u64]) -> Result<Prepared, Error> {
        let (depth, experts) = (extent(x, 3), extent(w, 0) * extent(w, 1));
        let cols = extent(w, if unit.transposed { 3 } else { 2 });
        let (by_col, by_depth) = if unit.transposed { (1, cols) } else { (depth, 1) };
        let rows = extent(x, 0) * extent(x, 1) * extent(x, 2);
        let dim = |extent: usize, [a, b, c]: [usize; 3]| Dim {
            extent,
            a: a as isize,
            b: b as isize,
            c: c as isize,
        };
        let contraction = kernels::Contraction {
            batch: vec![dim(experts, [0, cols * depth, 0])],
            m: vec![dim(rows, [depth, 0, cols])],
            n: vec![dim(cols, [0, by_col, 1])],
            k: vec![dim(depth, [1, by_depth, 0])],
        };
        let plan = GemmPlan::ragged(&contraction, self.machine)?;
        let gemm = Gemm { plan, swapped: false, outermost_rows: true };
        Ok(Prepared::Grouped(Box::new(GroupedPlan { gemm, grouped: grouped_extents(x, w[1]) })))
    }

    fn unit(&self, compute: &Compute) -> Option<&Unit> {
        self.units.get(compute.kernel.as_deref()?)
    }

    fn gemm(&self, step: &Step, contraction: &Contraction) -> Result<Gemm, Error> {
        let (dims, swapped) = kernel_dims(contraction).ok_or_else(|| Error::Unsupported {
            location: step.location.clone(),
            what: "a contraction with a loop that neither operand has".into(),
            expected: "every loop in an operand".into(),
        })?;
        let first = if swapped { &contraction.b } else { &contraction.a };
        let outermost_rows = contraction.c.first().is_some_and(|outermost| first.contains(outermost));
        Ok(Gemm { plan: GemmPlan::new(&dims, self.machine)?, swapped, outermost_rows })
    }

    fn fused(
        &self,
        program: &Program,
        step: &Step,
        fused: &Fused,
        exchange: Option<Exchange>,
    ) -> Result<FusedPlan, Error> {
        let unsupported = |what: String| Error::Unsupported {
            location: step.location.clone(),
            what,
            expected: "a sum that is scattered over devices, or an all-to-all".into(),
        };
        let adds = fused.collective.kind == CollectiveKind::ReduceScatter
            && fused.collective.reduction == Reduction::Sum;
        if !adds && exchange.is_none() {
            return Err(unsupported(format!("a fused {:?}", fused.collective.kind)));
        }
        let no_cut = || unsupported(format!("a contribution divided along dimension {}", fused.dimension));
        let (before, products) = fused.producers.split_at(streamed(fused));
        let written: Vec<_> = before.iter().flat_map(|producer| &producer.writes).collect();
        let contribution = written.iter().position(|buffer| **buffer == fused.collective.input);
        if products.is_empty() && contribution.is_none() {
            return Err(unsupported("a contribution that no producer writes".into()));
        }
        let mut plan = FusedPlan {
            before: self.region(program, step, before)?,
            // After the result, which comes first.
            complete: contribution.filter(|_| products.is_empty()).map(|index| index + 1),
            cut: Cut::of(&fused.shape, fused.dimension).ok_or_else(no_cut)?,
            exchange,
            products: Vec::new(),
            by_rows: Vec::new(),
            scale: Vec::new(),
        };
        for producer in products {
            let Work::Contraction(contraction) = &producer.work else { continue };
            let gemm = self.gemm(step, contraction)?;
            let (by_rows, scale) =
                chunk_axis(contraction, gemm.swapped, fused.dimension).ok_or_else(no_cut)?;
            plan.by_rows.push(by_rows);
            plan.scale.push(scale);
            plan.products.push(gemm);
        }
        Ok(plan)
    }
}

/// How many of a fused step's producers come before the products that make its blocks one by one: all of them where
/// the contribution is made otherwise.
pub(crate) fn streamed(fused: &Fused) -> usize {
    let makes_blocks = |producer: &Compute| match &producer.work {
        Work::Contraction(contraction) if producer.writes == [fused.collective.input] => {
            kernel_dims(contraction)
                .is_some_and(|(_, swapped)| chunk_axis(contraction, swapped, fused.dimension).is_some())
        }
        _ => false,
    };
    let producers = &fused.producers;
    if fused.collective.kind != CollectiveKind::ReduceScatter {
        return producers.len();
    }
    let first = producers.iter().rposition(|producer| !makes_blocks(producer)).map_or(0, |last| last + 1);
    let is_whole = producers[..first].iter().all(|other| !other.writes.contains(&fused.collective.input));
    if is_whole { first } else { producers.len() }
}

/// The module's units, by symbol.
pub(crate) fn units(module: &Module<'_>) -> HashMap<String, Unit> {
    let all = functions(module.op()).into_iter();
    all.filter_map(|function| Some((function.name(), unit_of(function)?))).collect()
}

/// How an attention unit makes its scores.
fn scores_of(unit: &Unit) -> Scores {
    Scores {
        scale: unit.scale.unwrap_or(1.0) as f32,
        cap: unit.softcap.map(|cap| cap as f32),
        window: unit.window,
    }
}

fn extent(shape: &[u64], dimension: usize) -> usize {
    shape.get(dimension).map_or(1, |&extent| extent as usize)
}

fn routing(unit: &Unit, scores: &[u64], rows: &[u64]) -> Routing {
    Routing {
        tokens: extent(scores, 0),
        experts: extent(scores, 1),
        k: unit.top_k.unwrap_or(1) as usize,
        groups: extent(rows, 0),
        slots: extent(rows, 1),
        rows: extent(rows, 2),
    }
}

fn grouped_extents(x: &[u64], experts: u64) -> Grouped {
    Grouped { groups: extent(x, 0), slots: extent(x, 1), rows: extent(x, 2), experts: experts as usize }
}

fn attention_shape(step: &Step, q: &[u64]) -> Result<AttentionShape, Error> {
    match *q {
        [tokens, heads, group, halves, half] => Ok(AttentionShape {
            tokens: tokens as usize,
            kv_heads: heads as usize,
            group: group as usize,
            head_dim: (halves * half) as usize,
        }),
        _ => Err(Error::Unsupported {
            location: step.location.clone(),
            what: format!("queries of shape {q:?}"),
            expected: "[N, K, G, 2, E]".into(),
        }),
    }
}

/// Row-major strides of an operand, for the loop of each of its dimensions.
fn strides(extents: &[u64], map: &[usize]) -> HashMap<usize, isize> {
    let mut stride = 1;
    let mut strides = HashMap::new();
    for &index in map.iter().rev() {
        strides.insert(index, stride);
        stride *= extents[index] as isize;
    }
    strides
}

/// The contraction as the kernels take it, and whether the operands change places so that the result's last
/// dimension is one of columns.
fn kernel_dims(contraction: &Contraction) -> Option<(kernels::Contraction, bool)> {
    let last = contraction.c.last();
    let swapped = last.is_some_and(|last| contraction.a.contains(last) && !contraction.b.contains(last));
    let (first, second) =
        if swapped { (&contraction.b, &contraction.a) } else { (&contraction.a, &contraction.b) };
    let [a, b, c] = [first, second, &contraction.c].map(|map| strides(&contraction.extents, map));
    let dim = |index: usize| Dim {
        extent: contraction.extents[index] as usize,
        a: a.get(&index).copied().unwrap_or(0),
        b: b.get(&index).copied().unwrap_or(0),
        c: c.get(&index).copied().unwrap_or(0),
    };
    let mut dims = kernels::Contraction::default();
    for &index in &contraction.c {
        match (first.contains(&index), second.contains(&index)) {
            (true, true) => dims.batch.push(dim(index)),
            (true, false) => dims.m.push(dim(index)),
            (false, true) => dims.n.push(dim(index)),
            (false, false) => return None,
        }
    }
    for index in (0..contraction.extents.len()).filter(|index| !contraction.c.contains(index)) {
        if !first.contains(&index) && !second.contains(&index) {
            return None;
        }
        dims.k.push(dim(index));
    }
    Some((dims, swapped))
}

/// Whether chunks along dimension `dimension` of the result are ranges of the kernel's rows (or columns), and
/// how many of those one index stands for. `None` where the result is not rows then columns.
fn chunk_axis(contraction: &Contraction, swapped: bool, dimension: usize) -> Option<(bool, usize)> {
    let (first, second) =
        if swapped { (&contraction.b, &contraction.a) } else { (&contraction.a, &contraction.b) };
    let rows: Vec<usize> = contraction.c.iter().copied().filter(|index| first.contains(index)).collect();
    let cols: Vec<usize> = contraction.c.iter().copied().filter(|index| second.contains(index)).collect();
    let is_matrix = rows.iter().chain(&cols).eq(&contraction.c);
    let index = *contraction.c.get(dimension)?;
    let group = if rows.contains(&index) { &rows } else { &cols };
    let outermost = group.first() == Some(&index)
        || group.iter().take_while(|&&other| other != index).all(|&other| contraction.extents[other] == 1);
    let inner: u64 = group
        .iter()
        .skip_while(|&&other| other != index)
        .skip(1)
        .map(|&other| contraction.extents[other])
        .product();
    (is_matrix && outermost).then_some((rows.contains(&index), inner as usize))
}

/// All local work of a schedule, with the program and step that it belongs to.
fn computes(schedule: &Schedule) -> impl Iterator<Item = (&Program, &Step, &Compute)> {
    schedule.programs.iter().flat_map(|program| {
        program.steps.iter().flat_map(move |step| {
            let computes = match &step.kind {
                StepKind::Compute(compute) => std::slice::from_ref(compute),
                StepKind::Consume(consume) => &consume.consumers,
                StepKind::Fused(fused) => &fused.producers,
                _ => &[],
            };
            computes.iter().map(move |compute| (program, step, compute))
        })
    })
}

/// Units that have generated kernels.
const NATIVE: [UnitKind; 6] = [
    UnitKind::Attention,
    UnitKind::AttentionGrad,
    UnitKind::AttentionPaged,
    UnitKind::Route,
    UnitKind::Grouped,
    UnitKind::GroupedGrad,
];

/// Those of them that are attention.
const ATTENTION: [UnitKind; 3] = [UnitKind::Attention, UnitKind::AttentionGrad, UnitKind::AttentionPaged];

/// Everything that generated code needs besides the module's functions: attention for these heads.
pub(crate) fn heads(schedule: &Schedule, units: &HashMap<String, Unit>) -> Vec<Heads> {
    let mut all = Vec::new();
    for (program, step, compute) in computes(schedule) {
        let unit = compute.kernel.as_ref().and_then(|symbol| units.get(symbol));
        if let Some(unit) = unit.filter(|unit| ATTENTION.contains(&unit.kind))
            && let Ok(shape) = attention_shape(step, &program.buffers[compute.reads[0]].shape)
        {
            let heads = Heads { dim: shape.head_dim, capped: scores_of(unit).cap.is_some() };
            if !all.contains(&heads) {
                all.push(heads);
            }
        }
    }
    all
}

/// Symbols of the functions that the schedule's steps call as compiled kernels, each once.
pub(crate) fn kernel_symbols(schedule: &Schedule) -> Vec<String> {
    let mut symbols = Vec::new();
    for (_, _, compute) in computes(schedule) {
        if let Some(symbol) = &compute.kernel
            && !matches!(compute.work, Work::Contraction(_))
            && !NATIVE.iter().any(|&kind| is_unit(compute, kind))
            && !symbols.contains(symbol)
        {
            symbols.push(symbol.clone());
        }
    }
    symbols
}

/// All prepared work, readers of gathers included.
fn every(prepared: &[Vec<Option<Prepared>>]) -> impl Iterator<Item = &Prepared> {
    prepared.iter().flatten().flatten().flat_map(|step| {
        let readers: &[Option<Prepared>] = match step {
            Prepared::Consume(_, readers) => readers,
            Prepared::Fused(fused) => &fused.before,
            _ => &[],
        };
        std::iter::once(step).chain(readers.iter().flatten())
    })
}

/// Whether the last of some instances, a kernel of rows, can run on each block of rows of the product that is the
/// first, as it and the kernels between are finished there.
pub(crate) fn joins(prepared: &[Vec<Option<Prepared>>], instances: &[Instance]) -> bool {
    let of = |instance: &Instance| prepared[instance.program][instance.step?].as_ref();
    let ([first, .., last], Some(Prepared::Gemm(gemm))) = (instances, instances.first().and_then(of)) else {
        return false;
    };
    let Some(Prepared::Kernel(kernel)) = of(last) else { return false };
    let Some(rows) = kernel.needs.rows.as_ref().filter(|_| kernel.checks.is_empty()) else { return false };
    if gemm.plan.batches() != 1 || !gemm.outermost_rows || gemm.plan.rows() != rows.count {
        return false;
    }
    let made = instances[..instances.len() - 1].iter().flat_map(|instance| &instance.writes);
    let made: Vec<ValueId> = made.copied().collect();
    // What was made here must be read row by row, and something must be: others may as well run on their own.
    let mut reads = last.reads.iter().zip(&rows.strides).filter(|(value, _)| made.contains(value)).peekable();
    reads.peek().is_some() && reads.all(|(_, stride)| *stride > 0) && !last.writes.contains(&first.writes[0])
}

/// Floats of scratch that any product, attention or kernel needs on one thread.
pub(crate) fn scratch_floats(prepared: &[Vec<Option<Prepared>>], machine: &Machine) -> usize {
    let product = |gemm: &Gemm| match gemm.plan.batches() {
        0 | 1 => gemm.plan.packed_workspace_len(),
        _ => gemm.plan.workspace_len(),
    };
    let step = |step: &Prepared| match step {
        Prepared::AttentionGrad { shape, .. } => shape.backward_scratch_len(),
        Prepared::Kernel(kernel) => kernel.needs.workspace.div_ceil(4),
        Prepared::GroupedGrad(grouped) => grouped.scratch(machine)[0],
        other => products(Some(other)).iter().map(product).max().unwrap_or(0),
    };
    every(prepared).map(step).max().unwrap_or(0)
}

/// Floats that a device's threads share within a step: second operands of products, packed on the way.
pub(crate) fn shared_floats(prepared: &[Vec<Option<Prepared>>], machine: &Machine) -> usize {
    let whole = |gemm: &Gemm| gemm.plan.packed_b_len().next_multiple_of(16);
    let step = |step: &Prepared| match step {
        Prepared::Fused(fused) => fused.products.iter().map(whole).sum(),
        Prepared::Gemm(gemm) | Prepared::Add(gemm) => gemm.plan.panels_len(gemm.plan.panel_group()),
        Prepared::Grouped(grouped) => grouped.gemm.plan.panels_len(grouped.gemm.plan.panels()),
        Prepared::GroupedGrad(grouped) => grouped.scratch(machine)[1],
        _ => 0,
    };
    every(prepared).map(step).max().unwrap_or(0)
}

/// Floats of the largest product, or block of one, that is computed aside and added.
pub(crate) fn aside_floats(prepared: &[Vec<Option<Prepared>>]) -> usize {
    let step = |step: &Prepared| match step {
        Prepared::Fused(fused) if fused.products.len() > 1 => {
            fused.products.iter().map(|gemm| gemm.plan.rows() * gemm.plan.cols()).max().unwrap_or(0)
        }
        Prepared::Add(gemm) => gemm.plan.batches() * gemm.plan.rows() * gemm.plan.cols(),
        _ => 0,
    };
    every(prepared).map(step).max().unwrap_or(0)
}

/// Entries of the index stack that attention needs: tokens in sight of one row.
pub(crate) fn stack_entries(prepared: &[Vec<Option<Prepared>>]) -> usize {
    every(prepared)
        .map(|step| match step {
            Prepared::Attention { shape, .. } | Prepared::AttentionGrad { shape, .. } => shape.tokens,
            Prepared::AttentionPaged { cache, .. } => cache.table_width * kernels::attention::CACHE_BLOCK,
            _ => 0,
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contraction(extents: &[u64], a: &[usize], b: &[usize], c: &[usize]) -> Contraction {
        Contraction { extents: extents.to_vec(), a: a.to_vec(), b: b.to_vec(), c: c.to_vec() }
    }

    #[test]
    fn columns_come_from_the_operand_that_has_the_last_dimension() {
        // c[n, d] = Σ a[d, k] b[n, k]: the operands change places.
        let (dims, swapped) = kernel_dims(&contraction(&[4, 5, 6], &[1, 2], &[0, 2], &[0, 1])).unwrap();
        assert!(swapped);
        assert_eq!((dims.m[0].extent, dims.n[0].extent, dims.n[0].c), (4, 5, 1));
    }

    #[test]
    fn several_dimensions_collapse() {
        // out[n, d] = Σ_{k, h} x[n, k, h] w[d, k, h].
        let (dims, swapped) =
            kernel_dims(&contraction(&[7, 6, 2, 4], &[0, 2, 3], &[1, 2, 3], &[0, 1])).unwrap();
        assert!(!swapped);
        assert_eq!(
            dims.k.iter().map(|dim| (dim.extent, dim.a, dim.b)).collect::<Vec<_>>(),
            [(2, 4, 4), (4, 1, 1)]
        );
    }

    #[test]
    fn chunks_are_rows_or_columns() {
        let product = contraction(&[8, 6, 5], &[0, 2], &[1, 2], &[0, 1]);
        assert_eq!(chunk_axis(&product, false, 0), Some((true, 1)));
        assert_eq!(chunk_axis(&product, false, 1), Some((false, 1)));
    }
}
