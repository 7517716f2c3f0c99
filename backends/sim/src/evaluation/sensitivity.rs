//! Which conclusions stand when an uncertain parameter of the machine is another.

use serde::Serialize;

use super::{Case, Evaluated, cases, evaluate_all, geomean};
use crate::{Error, Options, Policy, System, parallel, simulate};

/// One field at one value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variation {
    /// The field; empty for the file as it is.
    pub field: &'static str,
    /// Its value.
    pub value: &'static str,
    /// Geometric means of the main sub-layers' speedups.
    pub t3: f64,
    /// The same.
    pub t3_mca: f64,
    /// The same.
    pub ideal_overlap: f64,
    /// Change of memory traffic under `t3-mca`, in percent, geometric mean.
    pub traffic_percent: f64,
    /// Whether each of [`CONCLUSIONS`] stands.
    pub conclusions: [bool; 4],
}

/// What the paper concludes, as far as a number can say it.
pub const CONCLUSIONS: [&str; 4] = [
    "track-and-trigger gains at least 10 %",
    "compute-first arbitration gains over taking turns",
    "t3-mca is within 10 % of ideal overlap",
    "memory traffic falls by at least 10 %",
];

/// The fields that no source gives, or whose reading is uncertain, each at other values.
pub const VARIATIONS: [(&str, &[&str]); 19] = [
    ("link.bandwidth", &["75 GB/s", "300 GB/s"]),
    ("link.latency", &["250 ns", "1 us"]),
    ("link.packet", &["4 KiB", "64 KiB"]),
    ("memory.update_percent", &["100", "150", "300"]),
    ("memory.burst", &["4", "16"]),
    ("memory.direction_limit", &["4", "16"]),
    ("arbitration.thresholds", &["[5, 5, 5]", "[10, 10, 10]", "[30, 30, 30]", "[64, 64, 64]"]),
    ("arbitration.intensity_percent", &["[90, 60, 30]", "[30, 20, 10]"]),
    ("arbitration.starvation", &["131 ns", "20 us"]),
    ("trigger.outstanding", &["16", "64"]),
    ("trigger.latency", &["1 us"]),
    ("trigger.tracker_entries", &["64", "1024"]),
    ("cache.capacity", &["8 MiB", "32 MiB"]),
    ("cache.replacement", &["random"]),
    ("compute.workgroups_per_unit", &["1"]),
    ("compute.k_step", &["32", "128"]),
    ("compute.matrix_flops_per_cycle_f16", &["512", "2048"]),
    ("compute.units", &["160"]),
    ("compute.kernel_launch", &["1 us", "10 us"]),
];

/// Everything of [`VARIATIONS`] on the system that `name` is, the file as it is first.
pub fn sensitivity(name: &str, progress: impl Fn(usize, usize) + Sync) -> Result<Vec<Variation>, Error> {
    let mut jobs = vec![("", "")];
    jobs.extend(
        VARIATIONS.iter().flat_map(|(field, values)| values.iter().map(move |value| (*field, *value))),
    );
    let main: Vec<Case> =
        cases().into_iter().filter(|case| case.is_main && case.sub_layer != "FC-1").collect();
    // The kernels stay what they are: chunks run along what the file as it is prefers.
    let system = System::open(name)?;
    let main: Vec<Evaluated> = evaluate_all(&main, &system, &[], |_| {})?;
    let total = jobs.len();
    let threads = parallel::threads();
    parallel::map(
        &jobs,
        threads,
        |&(field, value)| vary(name, field, value, &main),
        |done| progress(done, total),
    )
}

fn vary(
    name: &str,
    field: &'static str,
    value: &'static str,
    cases: &[Evaluated],
) -> Result<Variation, Error> {
    let changes: &[(&str, &str)] = if field.is_empty() { &[] } else { &[(field, value)] };
    let system = System::open_with(name, changes)?;
    let policies = vec![Policy::T3, Policy::T3Mca, Policy::IdealOverlap];
    let options = Options { policies, ..Options::default() };
    let evaluated: Vec<Evaluated> = cases
        .iter()
        .map(|chosen| {
            let report = simulate(&chosen.case.schedule(chosen.dimension), &system, &options)?;
            Ok(Evaluated { report, ..chosen.clone() })
        })
        .collect::<Result<_, Error>>()?;
    // The two MLP products have one shape, and so one result, that counts twice.
    let twice = |e: &Evaluated| if e.case.sub_layer == "FC-2" { 2 } else { 1 };
    let all = || evaluated.iter().flat_map(|e| std::iter::repeat_n(e, twice(e)));
    let mean = |policy: &str| geomean(all().map(|e| e.speedup(policy)));
    let bytes = |e: &Evaluated, policy: &str| e.report.sublayers[0].policies[policy].dram_bytes.total as f64;
    let traffic = geomean(all().map(|e| bytes(e, "t3-mca") / bytes(e, "sequential")));
    let (t3, t3_mca, ideal_overlap) = (mean("t3"), mean("t3-mca"), mean("ideal-overlap"));
    let traffic_percent = 100.0 * (traffic - 1.0);
    let conclusions =
        [t3.max(t3_mca) >= 1.10, t3_mca > t3, t3_mca >= 0.90 * ideal_overlap, traffic_percent <= -10.0];
    Ok(Variation { field, value, t3, t3_mca, ideal_overlap, traffic_percent, conclusions })
}
