//! The page of `t3c reproduce t3 --report`.

use std::fmt::Write;

use super::{INTRODUCTION, page, policies, svg, table};
use crate::{
    Policy,
    evaluation::{
        Evaluated,
        layer::Pass,
        rows::{EndToEnd, Reproduction, Row},
        sensitivity::{CONCLUSIONS, VARIATIONS, Variation},
    },
};

/// The page; `system` is the name of the machine.
pub fn reproduction(result: &Reproduction, sensitivity: &[Variation], system: &str) -> String {
    let mut body = INTRODUCTION.to_owned();
    body += "<h2>The paper's figures and ours</h2>\n<p>Green: within 3 points (a ratio's hundredths, or percents). Orange: farther. \
        Figures marked ° were read in notes about the paper, not in the paper itself. The paper's own results come from a \
        simulator too. No number of the machine was fitted to a single figure.</p>\n";
    body += &figures(&result.rows);
    body += "<h2>Sub-layers</h2>\n<p>Four products of each model, by degree of tensor parallelism (TP): attention's output projection (OP), \
        the MLP's second product (FC-2), and backward its first (FC-1) and the input projection (IP).</p>\n";
    body += &sub_layers(&result.cases);
    body += &policies();
    body += "<h2>Memory traffic</h2>\n";
    body += &traffic(&result.cases);
    body += "<h2>Whole models</h2>\n<p>One layer's work by kind, with the operators of an implementation whose attention scores go through memory, as the paper's.</p>\n";
    body += &models(&result.models);
    if let Some((base, varied)) = sensitivity.split_first() {
        body += "<h2>What if a parameter is another?</h2>\n<p>Geometric mean of <em>t3-mca</em> over the main sub-layers when one field of the machine changes. \
            Long bars are parameters that matter.</p>\n";
        body += &tornado(base, varied);
        body += &conclusions(sensitivity);
    }
    page(
        "The T3 paper's evaluation, run again",
        &format!("system {system}; deviations are ours less the paper's"),
        &body,
    )
}

fn figures(rows: &[Row]) -> String {
    let rows: Vec<(String, Vec<String>)> = rows
        .iter()
        .map(|row| {
            let value = |value: f64| {
                if row.unit == "%" { format!("{value:.1} %") } else { format!("{value:.2}{}", row.unit) }
            };
            let mark = if row.second_hand { "°" } else { "" };
            let class = if row.deviation.abs() <= 3.0 { "near" } else { "far" };
            let cells = vec![
                row.what.clone(),
                value(row.published) + mark,
                value(row.ours),
                format!("{:+.1}", row.deviation),
            ];
            (class.to_owned(), cells)
        })
        .collect();
    table(&["", "paper", "ours", "points"], &rows)
}

fn sub_layers(cases: &[Evaluated]) -> String {
    let names: Vec<&str> = Policy::ALL[1..].iter().map(|policy| policy.name()).collect();
    let rows: Vec<(String, Vec<f64>)> = cases
        .iter()
        .map(|e| (e.case.name.clone(), names.iter().map(|name| e.speedup(name)).collect()))
        .collect();
    svg::dots("Speedup of each sub-layer", "speedup over sequential", &names, &rows, 1.0)
}

fn traffic(cases: &[Evaluated]) -> String {
    let mut rows = Vec::new();
    for evaluated in cases.iter().filter(|e| e.case.is_main && e.case.sub_layer != "FC-1") {
        for policy in ["sequential", "t3-mca"] {
            let t = evaluated.report.sublayers[0].policies[policy].dram_bytes.by_cause;
            let bytes = [
                t.gemm_reads,
                t.gemm_writes,
                t.rs_reads,
                t.rs_writes,
                t.ag_reads + t.ag_writes,
                t.tracker_spills,
            ];
            let name = format!("{}: {policy}", evaluated.case.name);
            rows.push((name, bytes.iter().map(|b| *b as f64 / 1e6).collect()));
        }
    }
    let causes =
        ["operands read", "product written", "RS read", "RS written", "all-gather", "tracker overflow"];
    svg::stacked("Memory traffic by cause", "megabytes a device", &causes, &rows)
}

fn models(models: &[EndToEnd]) -> String {
    let kinds = ["gemm", "reduce-scatter", "all-gather", "other-gemm", "elementwise", "other-communication"];
    let mut rows = Vec::new();
    let mut cells = Vec::new();
    for model in models {
        let pass = match model.pass {
            Pass::Training => "training",
            Pass::Prompt => "prompt",
        };
        let spent = &model.report.end_to_end.breakdown_us;
        let all: f64 = spent.values().sum();
        let share = kinds.iter().map(|kind| 100.0 * spent.get(kind).copied().unwrap_or(0.0) / all).collect();
        rows.push((format!("{}: {pass}", model.name), share));
        let speedup = |policy: &str| format!("{:.3}x", model.report.end_to_end.speedup[policy]);
        let time = format!("{:.0} ms", model.report.end_to_end.time_us["sequential"] / 1000.0);
        cells.push((
            String::new(),
            vec![
                format!("{}: {pass}", model.name),
                time,
                speedup("t3"),
                speedup("t3-mca"),
                speedup("ideal-overlap"),
            ],
        ));
    }
    svg::stacked("Time of whole models by kind of work", "percent of sequential time", &kinds, &rows)
        + &table(&["", "sequential", "t3", "t3-mca", "ideal-overlap"], &cells)
}

fn tornado(base: &Variation, varied: &[Variation]) -> String {
    let rows: Vec<(String, f64, f64)> = VARIATIONS
        .iter()
        .map(|(field, _)| {
            let all = || varied.iter().filter(|v| v.field == *field).map(|v| v.t3_mca);
            ((*field).to_owned(), all().fold(f64::MAX, f64::min), all().fold(f64::MIN, f64::max))
        })
        .collect();
    svg::ranges("Sensitivity of t3-mca", "geometric mean of t3-mca's speedups", base.t3_mca, &rows)
}

fn conclusions(variations: &[Variation]) -> String {
    let mut text = String::from("<p>The conclusions, and the changes under which each falls:</p>\n<dl>\n");
    for (index, conclusion) in CONCLUSIONS.iter().enumerate() {
        let falls: Vec<String> = variations
            .iter()
            .filter(|variation| !variation.conclusions[index])
            .map(|variation| format!("{} = {}", variation.field, variation.value))
            .collect();
        let falls = if falls.is_empty() { "never".to_owned() } else { falls.join("; ") };
        let _ = writeln!(text, "<dt>{conclusion}</dt><dd>{falls}</dd>");
    }
    let rows: Vec<(String, Vec<String>)> = variations
        .iter()
        .map(|v| {
            let field = if v.field.is_empty() {
                "as in the file".to_owned()
            } else {
                format!("{} = {}", v.field, v.value)
            };
            let cells = vec![
                field,
                format!("{:.3}x", v.t3),
                format!("{:.3}x", v.t3_mca),
                format!("{:.3}x", v.ideal_overlap),
                format!("{:+.1} %", v.traffic_percent),
            ];
            (String::new(), cells)
        })
        .collect();
    text + "</dl>\n" + &table(&["", "t3", "t3-mca", "ideal-overlap", "traffic of t3-mca"], &rows)
}
