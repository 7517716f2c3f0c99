//! The paper's figures beside ours.
//!
//! Every published figure was read in notes about the paper, not in the paper, unless it stands in the
//! abstract (30 % and 47 %, 22 % and 36 %, 29 % for models of about 500 G parameters).

use serde::Serialize;

use super::{
    Case, Evaluated, MODELS, cases, evaluate_all, geomean,
    layer::{Pass, schedule},
    split::{Split, split},
};
use crate::{DramBytes, Error, Options, Policy, Report, System, parallel, simulate};

/// The version of the JSON form.
pub const SCHEMA: &str = "t3c.reproduce/1";

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name: what, of which, which mean.
    pub id: String,
    /// What it says, in words.
    pub what: String,
    /// The paper's.
    pub published: f64,
    /// Ours.
    pub ours: f64,
    /// `x` is a ratio; `%` a percentage.
    pub unit: &'static str,
    /// Ours less the paper's, in points: hundredths of a ratio, or percents.
    pub deviation: f64,
    /// Whether the published figure was read in notes about the paper, not in the paper.
    pub second_hand: bool,
}

/// The whole evaluation.
#[derive(Clone, Debug)]
pub struct Reproduction {
    /// The figures.
    pub rows: Vec<Row>,
    /// Every sub-layer.
    pub cases: Vec<Evaluated>,
    /// Every model end to end.
    pub models: Vec<EndToEnd>,
}

/// One model end to end.
#[derive(Clone, Debug)]
pub struct EndToEnd {
    /// Model and degree.
    pub name: String,
    /// Of the main evaluation.
    pub is_main: bool,
    /// Training or prompt.
    pub pass: Pass,
    /// The result.
    pub report: Report,
}

/// Runs everything on `system`. `progress` is called with finished and total parts.
pub fn reproduce(system: &System, progress: impl Fn(usize, usize) + Sync) -> Result<Reproduction, Error> {
    let cases = cases();
    let jobs = end_to_end_jobs();
    // Equal cases run once: fewer parts than cases.
    let total = cases.len() - cases.len() / 4 + jobs.len() + 1;
    let evaluated = evaluate_all(&cases, system, &Policy::ALL, |done| progress(done, total))?;
    let before = total - jobs.len() - 1;
    let models = parallel::map(
        &jobs,
        parallel::threads(),
        |&(model, devices, pass)| {
            let model = &MODELS[model];
            let policies = vec![Policy::T3, Policy::T3Mca, Policy::IdealOverlap];
            let options = Options { policies, phase: phase(pass).to_owned(), ..Options::default() };
            // Each sub-layer's chunks run as they did alone.
            let dimension = |name: &str| {
                let is_it = |case: &Case| {
                    case.model == model.name && case.devices == devices && case.sub_layer == name
                };
                evaluated.iter().find(|e| is_it(&e.case)).map_or(0, |e| e.dimension)
            };
            let report = simulate(&schedule(model, devices, pass, &dimension), system, &options)?;
            let name = format!("{} TP{devices}", model.name);
            Ok::<_, Error>(EndToEnd { name, is_main: model.is_main, pass, report })
        },
        |done| progress(before + done, total),
    )?;
    let main: Vec<Case> = cases.iter().filter(|case| case.is_main).cloned().collect();
    let splits =
        parallel::map(&[0, 8, 16], parallel::threads(), |&moving| split(&main, system, moving), |_| {})?;
    progress(total, total);
    let mut rows = Rows(Vec::new());
    sub_layers(&mut rows, &evaluated);
    traffic(&mut rows, &evaluated);
    if let [ideal, eight, sixteen] = splits[..] {
        motivation(&mut rows, &ideal, &eight, &sixteen);
    }
    end_to_end(&mut rows, &models);
    Ok(Reproduction { rows: rows.0, cases: evaluated, models })
}

fn phase(pass: Pass) -> &'static str {
    match pass {
        Pass::Training => "training",
        Pass::Prompt => "prefill",
    }
}

fn end_to_end_jobs() -> Vec<(usize, u32, Pass)> {
    let mut jobs = Vec::new();
    for (index, model) in MODELS.iter().enumerate() {
        for &devices in model.devices {
            jobs.extend([Pass::Training, Pass::Prompt].map(|pass| (index, devices, pass)));
        }
    }
    jobs
}

struct Rows(Vec<Row>);

impl Rows {
    fn add(
        &mut self,
        id: &str,
        what: &str,
        (published, ours): (f64, f64),
        unit: &'static str,
        second_hand: bool,
    ) {
        let points = if unit == "%" { 1.0 } else { 100.0 };
        self.0.push(Row {
            id: id.to_owned(),
            what: what.to_owned(),
            published,
            ours,
            unit,
            deviation: (ours - published) * points,
            second_hand,
        });
    }

    fn mean_and_max(
        &mut self,
        id: &str,
        what: &str,
        published: [f64; 2],
        values: &[f64],
        from_abstract: bool,
    ) {
        let mean = geomean(values.iter().copied());
        let max = values.iter().copied().fold(f64::MIN, f64::max);
        self.add(
            &format!("{id}.geomean"),
            &format!("{what}, geometric mean"),
            (published[0], mean),
            "x",
            !from_abstract,
        );
        self.add(&format!("{id}.max"), &format!("{what}, largest"), (published[1], max), "x", !from_abstract);
    }
}

fn speedups(cases: &[Evaluated], is_main: bool, policy: &str) -> Vec<f64> {
    cases.iter().filter(|e| e.case.is_main == is_main).map(|e| e.speedup(policy)).collect()
}

fn sub_layers(rows: &mut Rows, cases: &[Evaluated]) {
    for (policy, published, from_abstract) in
        [("ideal-overlap", [1.35, 1.50], false), ("t3", [1.20, 1.39], false), ("t3-mca", [1.30, 1.47], true)]
    {
        let what = format!("sub-layers, speedup of {policy}");
        let values = speedups(cases, true, policy);
        rows.mean_and_max(&format!("{policy}.sublayer"), &what, published, &values, from_abstract);
    }
    let over: Vec<f64> = speedups(cases, true, "t3-mca")
        .iter()
        .zip(speedups(cases, true, "t3"))
        .map(|(mca, t3)| mca / t3)
        .collect();
    rows.mean_and_max("t3-mca.over-t3", "sub-layers, t3-mca over t3", [1.13, 1.29], &over, false);
    let large = speedups(cases, false, "t3-mca");
    let what = "sub-layers of models of about 500 G parameters, speedup of t3-mca";
    rows.mean_and_max("t3-mca.large", what, [1.29, 1.35], &large, true);
    for (devices, published) in [(8, 7.0), (16, 3.0)] {
        let faster = cases.iter().filter(|e| e.case.is_main && e.case.devices == devices).map(|e| {
            let part = |policy: &str| {
                let parts = &e.report.sublayers[0].policies[policy].parts;
                parts.iter().find(|part| part.name == "reduce-scatter").map_or(1.0, |part| part.time_us)
            };
            part("sequential") / part("ideal-overlap+nmc")
        });
        let id = format!("nmc.reduce-scatter.tp{devices}");
        let what = format!("reduce-scatter on near-memory updates, faster on {devices} devices");
        rows.add(&id, &what, (published, 100.0 * (geomean(faster) - 1.0)), "%", true);
    }
}

fn bytes(evaluated: &Evaluated, policy: &str) -> DramBytes {
    evaluated.report.sublayers[0].policies[policy].dram_bytes
}

fn traffic(rows: &mut Rows, cases: &[Evaluated]) {
    let main: Vec<&Evaluated> = cases.iter().filter(|e| e.case.is_main).collect();
    // Each as after over before.
    let ratios = |of: fn(&DramBytes) -> u64, devices: &[u32]| -> Vec<f64> {
        let chosen = main.iter().filter(|e| devices.contains(&e.case.devices));
        chosen.map(|e| of(&bytes(e, "t3-mca")) as f64 / of(&bytes(e, "sequential")).max(1) as f64).collect()
    };
    let change = |ratios: &[f64]| 100.0 * (geomean(ratios.iter().copied()) - 1.0);
    let factor = |ratios: &[f64]| 1.0 / geomean(ratios.iter().copied());
    let total = ratios(|bytes| bytes.total, &[8, 16]);
    rows.add(
        "dram.total.geomean",
        "memory traffic of t3-mca, change, geometric mean",
        (-22.0, change(&total)),
        "%",
        false,
    );
    let largest = 100.0 * (total.iter().copied().fold(f64::MAX, f64::min) - 1.0);
    rows.add("dram.total.max", "memory traffic of t3-mca, largest change", (-36.0, largest), "%", false);
    let reads = |bytes: &DramBytes| bytes.by_cause.rs_reads;
    for (id, devices, published) in [("tp8", &[8][..], 2.5), ("tp16", &[16], 2.2), ("geomean", &[8, 16], 2.4)]
    {
        let what = format!("reads of the reduce-scatter, fewer by, {id}");
        rows.add(
            &format!("dram.rs-reads.{id}"),
            &what,
            (published, factor(&ratios(reads, devices))),
            "x",
            true,
        );
    }
    let writes = ratios(|bytes| bytes.by_cause.gemm_writes + bytes.by_cause.rs_writes, &[8, 16]);
    rows.add(
        "dram.gemm-rs-writes.geomean",
        "writes of product and reduce-scatter, change",
        (-10.0, change(&writes)),
        "%",
        true,
    );
    let operands = ratios(|bytes| bytes.by_cause.gemm_reads, &[8, 16]);
    rows.add("dram.gemm-reads.geomean", "operand reads, fewer by", (1.56, factor(&operands)), "x", true);
}

fn motivation(rows: &mut Rows, ideal: &Split, eight: &Split, sixteen: &Split) {
    let slower = |ratio: f64| 100.0 * (ratio - 1.0);
    rows.add(
        "cu-split.potential.ideal",
        "product and all-reduce at once, neither giving up units",
        (1.67, ideal.potential),
        "x",
        true,
    );
    rows.add(
        "cu-split.potential.8",
        "the same with 8 units for the all-reduce",
        (1.18, eight.potential),
        "x",
        true,
    );
    rows.add("cu-split.potential.16", "the same with 16 units", (1.49, sixteen.potential), "x", true);
    rows.add(
        "cu-split.all-reduce.8",
        "all-reduce on 8 units, slower by",
        (41.0, slower(eight.all_reduce)),
        "%",
        true,
    );
    rows.add(
        "cu-split.all-reduce.16",
        "all-reduce on 16 units, slower by",
        (7.0, slower(sixteen.all_reduce)),
        "%",
        true,
    );
    rows.add(
        "cu-split.gemm.64",
        "product on 64 of 80 units, slower by",
        (21.0, slower(sixteen.product)),
        "%",
        true,
    );
}

/// The share of `sequential` time in communication.
pub fn communication_share(report: &Report) -> f64 {
    let spent = &report.end_to_end.breakdown_us;
    let of = |names: &[&str]| names.iter().filter_map(|name| spent.get(name)).sum::<f64>();
    let all: f64 = spent.values().sum();
    of(&["reduce-scatter", "all-gather", "all-to-all", "other-communication"]) / all.max(f64::MIN_POSITIVE)
}

/// The share of `sequential` time in sub-layers.
pub fn sub_layer_share(report: &Report) -> f64 {
    let whole = &report.end_to_end;
    whole.sublayers_us
        / (whole.sublayers_us + whole.compute_us + whole.communication_us).max(f64::MIN_POSITIVE)
}

fn end_to_end(rows: &mut Rows, models: &[EndToEnd]) {
    let of = |pass, is_main| models.iter().filter(move |m| m.pass == pass && m.is_main == is_main);
    for (pass, name, t3, mca, large) in [
        (Pass::Training, "training", [1.07, 1.09], [1.10, 1.12], 1.12),
        (Pass::Prompt, "prompt", [1.09, 1.12], [1.12, 1.15], 1.14),
    ] {
        for (policy, published) in [("t3", t3), ("t3-mca", mca)] {
            let values: Vec<f64> = of(pass, true).map(|m| m.report.end_to_end.speedup[policy]).collect();
            let what = format!("{name} end to end, speedup of {policy}");
            rows.mean_and_max(&format!("end-to-end.{name}.{policy}"), &what, published, &values, false);
        }
        let largest = of(pass, false).map(|m| m.report.end_to_end.speedup["t3-mca"]).fold(f64::MIN, f64::max);
        let id = format!("end-to-end.{name}.large.t3-mca.max");
        let what = format!("{name} of models of about 500 G parameters, speedup of t3-mca, largest");
        rows.add(&id, &what, (large, largest), "x", true);
    }
    for (pass, name, main, large) in
        [(Pass::Training, "training", 34.0, 46.0), (Pass::Prompt, "prompt", 43.0, 44.0)]
    {
        for (is_main, published, suffix) in [(true, main, ""), (false, large, ".large")] {
            let largest = of(pass, is_main).map(|m| communication_share(&m.report)).fold(0.0, f64::max);
            let id = format!("communication-share.{name}{suffix}.max");
            let what = format!(
                "share of {name} in communication, largest{}",
                if is_main { "" } else { ", larger models" }
            );
            rows.add(&id, &what, (published, 100.0 * largest), "%", true);
        }
    }
}
