//! The evaluation of the T3 paper (Pati et al., ASPLOS 2024), run again.
//!
//! Its models and sub-layers, each product's shape derived from the model's sizes, on its machine. Nothing
//! here but the published figures of [`rows`] comes from the paper's results, and those are only printed
//! beside ours.

pub mod layer;
pub mod rows;
pub mod sensitivity;
pub mod speed;
pub mod split;

use t3c_schedule::{Schedule, testing::gemm_reduce_scatter_along};

use crate::{Error, Options, Policy, Report, System, parallel, simulate};

/// A model of the paper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// Hidden size.
    pub hidden: u64,
    /// Layers.
    pub layers: usize,
    /// Attention heads. Where the devices do not divide them, a device holds the next whole number.
    pub heads: u64,
    /// Tokens a sequence.
    pub seq: u64,
    /// Sequences.
    pub batch: u64,
    /// Degrees of tensor parallelism at which it is evaluated.
    pub devices: &'static [u32],
    /// Whether it is among the two of the main evaluation, or one of those of about 500 G parameters.
    pub is_main: bool,
}

impl Model {
    /// Rows of its activations.
    pub fn tokens(&self) -> u64 {
        self.seq * self.batch
    }

    /// Width of a head.
    pub fn head(&self) -> u64 {
        self.hidden.div_ceil(self.heads)
    }
}

/// The paper's models. Layers of Mega-GPT-2: 74 in the paper's table as recalled, 72 in Megatron's own
/// (Shoeybi et al. 2019, table 1: 8.3 G parameters, hidden size 3072, 32 heads), which stands here; ratios do
/// not depend on it. Heads: Brown et al. 2020, Chowdhery et al. 2022, Smith et al. 2022; 28 of T-NLG.
pub const MODELS: [Model; 5] = [
    model("Mega-GPT-2", 3072, 72, 32, 16, &[8, 16], true),
    model("T-NLG", 4256, 78, 28, 8, &[8, 16], true),
    model("GPT-3", 12288, 96, 96, 4, &[32], false),
    model("PALM", 18432, 118, 48, 4, &[32], false),
    model("MT-NLG", 20480, 105, 128, 4, &[32], false),
];

const fn model(
    name: &'static str,
    hidden: u64,
    layers: usize,
    heads: u64,
    batch: u64,
    devices: &'static [u32],
    is_main: bool,
) -> Model {
    Model { name, hidden, layers, heads, seq: 1024, batch, devices, is_main }
}

/// The products before an all-reduce, and their reduction dimension in hidden sizes: attention's output
/// projection and the second MLP product forward, the first one and the input projection backward.
pub const SUB_LAYERS: [(&str, u64); 4] = [("OP", 1), ("FC-2", 4), ("FC-1", 4), ("IP", 3)];

/// One sub-layer of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Model, degree and sub-layer.
    pub name: String,
    /// The model alone.
    pub model: &'static str,
    /// The sub-layer alone.
    pub sub_layer: &'static str,
    /// Rows, columns and reduction indices on a device.
    pub shape: [u64; 3],
    /// Devices.
    pub devices: u32,
    /// Of the main evaluation.
    pub is_main: bool,
}

impl Case {
    /// Its schedule, with chunks along rows (0) or columns (1).
    pub fn schedule(&self, dimension: usize) -> Schedule {
        let [m, n, k] = self.shape;
        gemm_reduce_scatter_along(dimension, m, n, k, self.devices)
    }
}

/// Every case: the 16 of the main evaluation first.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for model in &MODELS {
        for &devices in model.devices {
            for (sub_layer, factor) in SUB_LAYERS {
                let k = factor * model.hidden / u64::from(devices);
                cases.push(Case {
                    name: format!("{} TP{devices} {sub_layer}", model.name),
                    model: model.name,
                    sub_layer,
                    shape: [model.tokens(), model.hidden, k],
                    devices,
                    is_main: model.is_main,
                });
            }
        }
    }
    cases
}

/// A case with its result.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// The case.
    pub case: Case,
    /// Chunks along rows (0) or columns (1).
    pub dimension: usize,
    /// The result: one sub-layer.
    pub report: Report,
}

impl Evaluated {
    /// Speedup of a policy over `sequential`.
    pub fn speedup(&self, policy: &str) -> f64 {
        self.report.sublayers[0].speedup.get(policy).copied().unwrap_or(1.0)
    }
}

/// Runs a case. The paper lets a kernel's order of work-groups be chosen (its section 4.4); here chunks run
/// along the dimension whose `t3-mca` takes less time, and `sequential` and the other policies run the same.
pub fn evaluate(case: &Case, system: &System, policies: &[Policy], trace: bool) -> Result<Evaluated, Error> {
    let run = |dimension, policies: &[Policy], trace| {
        let options = Options { policies: policies.to_vec(), trace, ..Options::default() };
        simulate(&case.schedule(dimension), system, &options)
    };
    let mut best = (u64::MAX, 0);
    for dimension in 0..2 {
        let report = run(dimension, &[Policy::T3Mca], false)?;
        let time = (report.sublayers[0].policies["t3-mca"].time_us * 1e6) as u64;
        best = best.min((time, dimension));
    }
    let report = run(best.1, policies, trace)?;
    Ok(Evaluated { case: case.clone(), dimension: best.1, report })
}

/// Runs many cases on all threads; equal ones once.
pub fn evaluate_all(
    cases: &[Case],
    system: &System,
    policies: &[Policy],
    finished: impl Fn(usize) + Sync,
) -> Result<Vec<Evaluated>, Error> {
    let mut distinct: Vec<&Case> = Vec::new();
    for case in cases {
        if !distinct.iter().any(|other| (other.shape, other.devices) == (case.shape, case.devices)) {
            distinct.push(case);
        }
    }
    let results = parallel::map(
        &distinct,
        parallel::threads(),
        |case| evaluate(case, system, policies, false),
        finished,
    )?;
    let find = |case: &Case| {
        let same = |other: &&Evaluated| (other.case.shape, other.case.devices) == (case.shape, case.devices);
        results.iter().find(same).map(|found| Evaluated { case: case.clone(), ..found.clone() })
    };
    Ok(cases.iter().filter_map(find).collect())
}

/// The geometric mean; 1 of nothing.
pub fn geomean(values: impl Iterator<Item = f64>) -> f64 {
    crate::report::geomean(values).unwrap_or(1.0)
}
