//! The paper's motivation: what running product and collective on disjoint sets of compute units costs each.

use crate::{
    Error, System,
    memory::Arbitration,
    policy::Runner,
    units::Picoseconds,
    workload::{
        AddressSpace, Collective, Divided, Mover, Operation, Output, Pattern, Producer, Work, Workload,
    },
};
use t3c_schedule::configure_ring_reduce_scatter;

use super::{Case, geomean};

/// Slowdowns and potentials, geometric means over the cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// The all-reduce on so many units, beside all of them.
    pub all_reduce: f64,
    /// The product on the remaining units, beside all of them.
    pub product: f64,
    /// Both at once, each as if alone, beside one after the other.
    pub potential: f64,
}

/// With `moving` units for the all-reduce; none is the ideal, in which neither gives anything up.
pub fn split(cases: &[Case], system: &System, moving: u64) -> Result<Split, Error> {
    let mut runner = Runner::new(system, false, false);
    let all = system.compute.units;
    let (computing, moved_by) = match moving {
        0 => (all, all),
        _ => (all.saturating_sub(moving).max(1), moving),
    };
    let mut ratios = Vec::new();
    for case in cases {
        let (product, all_reduce) = workloads(case);
        let mut time = |workloads: &[Workload], units| -> Result<f64, Error> {
            let mut sum = Picoseconds(0);
            for workload in workloads {
                sum += runner.on_units(workload, Arbitration::RoundRobin, (units, units), None)?.time;
            }
            Ok(sum.as_seconds())
        };
        let whole = (time(&product, all)?, time(&all_reduce, all)?);
        let part = (time(&product, computing)?, time(&all_reduce, moved_by)?);
        ratios.push((part.1 / whole.1, part.0 / whole.0, (whole.0 + whole.1) / part.0.max(part.1)));
    }
    Ok(Split {
        all_reduce: geomean(ratios.iter().map(|ratio| ratio.0)),
        product: geomean(ratios.iter().map(|ratio| ratio.1)),
        potential: geomean(ratios.iter().map(|ratio| ratio.2)),
    })
}

fn workloads(case: &Case) -> ([Workload; 1], [Workload; 2]) {
    let [m, n, k] = case.shape;
    let output = Output { extent: m, inner: 1, columns: n, layers: 1, element_bytes: 2 };
    let works = vec![Work::Product { k, element: t3c_schedule::Element::F16 }];
    let divided = Divided { extent: m, index_bytes: output.index_bytes(), devices: case.devices };
    let ring = |operation| Workload::Collective(Collective { pattern: Pattern::Ring, operation }, divided);
    (
        [Workload::Producer(Producer { works, output })],
        [ring(Operation::ReduceScatter), ring(Operation::AllGather)],
    )
}

/// What an overlapped reduce-scatter costs a product: the time until its last multiplication, beside the same
/// alone. With `moving` units the reduce-scatter is software's, which takes them from the product; with none it
/// is track-and-trigger's, which takes memory alone.
pub fn contention(case: &Case, system: &System, moving: u64) -> Result<f64, Error> {
    let mut runner = Runner::new(system, false, false);
    let (product, _) = workloads(case);
    let Workload::Producer(producer) = &product[0] else { return Ok(1.0) };
    let output = &producer.output;
    let divided = Divided { extent: output.extent, index_bytes: output.index_bytes(), devices: case.devices };
    let block = system.compute.tile_rows.min(divided.extent / u64::from(case.devices)).max(1);
    let space = AddressSpace { chunks: configure_ring_reduce_scatter(case.devices), block };
    let alone = runner.workload(&product[0])?;
    let all = system.compute.units;
    let (space, mover, units) = match moving {
        0 => (space, Mover::Engine, (all, all)),
        _ => (space.in_software(), Mover::Units, (all.saturating_sub(moving).max(1), moving)),
    };
    let fused = Workload::Fused(producer.clone(), space, divided, mover);
    let fused = runner.on_units(&fused, Arbitration::RoundRobin, units, None)?;
    Ok(fused.computed.as_seconds() / alone.computed.as_seconds().max(f64::MIN_POSITIVE))
}
