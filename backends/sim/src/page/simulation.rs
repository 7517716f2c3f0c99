//! The page of `t3c simulate --report`.

use std::fmt::Write;

use super::{INTRODUCTION, escape, page, policies, svg, table};
use crate::{Policy, Report, SubLayerReport, recorder::Line, trace::Trace};

/// One simulation with its name in a sweep.
pub struct Shown<'r> {
    /// The swept value; empty where nothing is swept.
    pub value: String,
    /// The result.
    pub report: &'r Report,
}

/// One page for a simulation, or for all simulations of a sweep over `key`. `choices` says what was
/// simulated, in words.
pub fn simulation(shown: &[Shown], key: Option<&str>, choices: &str) -> String {
    let mut body = INTRODUCTION.to_owned();
    if let Some(key) = key {
        body += &sweep(shown, key);
    }
    for Shown { value, report } in shown {
        if let Some(key) = key {
            let _ = writeln!(body, "<h2>{} = {}</h2>", escape(key), escape(value));
        }
        body += &one(report);
        if key.is_some() && shown.len() > 4 {
            // A long sweep is read in its own plots; the first point's detail shows what is behind them.
            break;
        }
    }
    page("Track-and-trigger, simulated", choices, &body)
}

fn names() -> Vec<&'static str> {
    Policy::ALL[1..].iter().map(|policy| policy.name()).collect()
}

fn one(report: &Report) -> String {
    if report.sublayers.is_empty() {
        return "<p>No product meets a collective here: there is nothing to overlap.</p>".to_owned()
            + &end_to_end(report);
    }
    let mut body = format!(
        "<h2>Speedup of each sub-layer</h2>\n<p>A sub-layer is a matrix product with its exchange. Over <em>sequential</em>, which is 1; farther right is faster.</p>\n{}{}",
        speedups(report),
        policies()
    );
    body += "<h2>Where the time goes</h2>\n<p>The whole program under <em>sequential</em>. Only the sub-layers' product and exchange can overlap.</p>\n";
    body += &end_to_end(report);
    body += "<h2>Memory traffic</h2>\n<p>Bytes requested at one device's memory in each sub-layer, by cause. Track-and-trigger reads less for the exchange, because memory adds in place and the first part goes straight to the neighbour.</p>\n";
    body += &traffic(report);
    body += &over_time(report);
    body += "<h2>Links</h2>\n<p>Share of the links' capacity that is used during the sub-layer.</p>\n";
    body += &links(report);
    body += "<h2>Numbers</h2>\n";
    body + &numbers(report)
}

/// A sub-layer's name for a plot: without its place in a file, which the table of numbers has.
fn name(layer: &SubLayerReport) -> String {
    let short = short(&layer.name);
    if layer.fused { short } else { format!("{short} (not fused)") }
}

fn short(name: &str) -> String {
    let end = [" (", " at "].iter().filter_map(|mark| name.find(mark)).min().unwrap_or(name.len());
    name[..end].trim_matches('"').to_owned()
}

fn speedups(report: &Report) -> String {
    let names = names();
    let mut rows: Vec<(String, Vec<f64>)> = report
        .sublayers
        .iter()
        .map(|layer| {
            (name(layer), names.iter().map(|n| layer.speedup.get(n).copied().unwrap_or(f64::NAN)).collect())
        })
        .collect();
    let mean = names.iter().map(|n| report.geomean.get(n).copied().unwrap_or(f64::NAN)).collect();
    rows.push(("geometric mean".to_owned(), mean));
    svg::dots("Speedup of each sub-layer by policy", "speedup over sequential", &names, &rows, 1.0)
}

fn end_to_end(report: &Report) -> String {
    let spent = &report.end_to_end.breakdown_us;
    let names: Vec<&str> = spent.keys().copied().collect();
    let rows = vec![("sequential".to_owned(), spent.values().map(|us| us / 1000.0).collect())];
    let mut body = svg::stacked("Time of the program by kind of work", "milliseconds", &names, &rows);
    let rows: Vec<(String, Vec<String>)> = Policy::ALL
        .iter()
        .filter_map(|policy| {
            let time = report.end_to_end.time_us.get(policy.name())?;
            let speedup = report.end_to_end.speedup.get(policy.name()).copied().unwrap_or(1.0);
            let cells =
                vec![policy.name().to_owned(), format!("{:.3} ms", time / 1000.0), format!("{speedup:.3}x")];
            Some((String::new(), cells))
        })
        .collect();
    body += &table(&["the whole program", "time", "speedup"], &rows);
    body
}

const CAUSES: [&str; 7] = [
    "operands read",
    "product written",
    "RS read",
    "RS written",
    "AG read",
    "AG written",
    "tracker overflow",
];

fn traffic(report: &Report) -> String {
    let mut rows = Vec::new();
    for layer in &report.sublayers {
        for policy in ["sequential", "t3-mca"] {
            let Some(result) = layer.policies.get(policy) else { continue };
            let t = result.dram_bytes.by_cause;
            let bytes = [
                t.gemm_reads,
                t.gemm_writes,
                t.rs_reads,
                t.rs_writes,
                t.ag_reads,
                t.ag_writes,
                t.tracker_spills,
            ];
            rows.push((
                format!("{}: {policy}", short(&layer.name)),
                bytes.iter().map(|b| *b as f64 / 1e6).collect(),
            ));
        }
    }
    svg::stacked("Memory traffic by cause", "megabytes a device", &CAUSES, &rows)
}

/// Memory traffic of the sub-layer that takes longest, where timelines were kept.
fn over_time(report: &Report) -> String {
    let time = |layer: &&SubLayerReport| (layer.policies["sequential"].time_us * 1e6) as u64;
    let Some(longest) = report.sublayers.iter().max_by_key(time) else { return String::new() };
    let mut body = String::new();
    for policy in ["sequential", "t3", "t3-mca"] {
        let wanted = format!("{}: {policy}", longest.name);
        let Some(trace) = report.traces.iter().find(|trace| trace.name == wanted) else { continue };
        let series = [
            ("the product's accesses", level(trace, "memory: compute, GB/s")),
            ("the exchange's accesses", level(trace, "memory: communication, GB/s")),
        ];
        let title = format!("Memory traffic over time under {policy}");
        let _ =
            writeln!(body, "<h3>{policy}</h3>\n{}", svg::over_time(&title, "microseconds", "GB/s", &series));
    }
    if body.is_empty() {
        return body;
    }
    format!(
        "<h2>Memory traffic over time</h2>\n<p>In <code>{}</code>, the longest sub-layer. Where both colours stand at one time, product and exchange overlap.</p>\n{body}",
        escape(&longest.name)
    )
}

/// A level of device 0, thinned to what a plot can show.
fn level(trace: &Trace, name: &str) -> Vec<(f64, f64)> {
    const MOST: usize = 600;
    let points: Vec<(f64, f64)> = trace
        .lines
        .iter()
        .filter_map(|(device, line)| match line {
            Line::Level { track, at, value } if *device == 0 && track == name => Some((at.as_us(), *value)),
            _ => None,
        })
        .collect();
    let every = points.len().div_ceil(MOST).max(1);
    points
        .chunks(every)
        .map(|chunk| {
            let mean = chunk.iter().map(|point| point.1).sum::<f64>() / chunk.len() as f64;
            (chunk[0].0, mean)
        })
        .collect()
}

fn links(report: &Report) -> String {
    let names: Vec<&str> = Policy::ALL.iter().map(|policy| policy.name()).collect();
    let share = |layer: &SubLayerReport, n: &&str| {
        layer.policies.get(n).map_or(f64::NAN, |p| 100.0 * p.link_utilisation)
    };
    let rows: Vec<(String, Vec<f64>)> = report
        .sublayers
        .iter()
        .map(|layer| (name(layer), names.iter().map(|n| share(layer, n)).collect()))
        .collect();
    svg::dots("Link utilisation by policy", "percent of the links' capacity", &names, &rows, 0.0)
}

fn numbers(report: &Report) -> String {
    let mut rows = Vec::new();
    for layer in &report.sublayers {
        for policy in Policy::ALL {
            let Some(result) = layer.policies.get(policy.name()) else { continue };
            let speedup = layer.speedup.get(policy.name()).copied().unwrap_or(1.0);
            rows.push((
                String::new(),
                vec![
                    format!("{} ({}, {} times)", layer.name, layer.shape, layer.calls),
                    policy.name().to_owned(),
                    format!("{:.1} us", result.time_us),
                    format!("{speedup:.3}x"),
                    format!("{:.1} MB", result.dram_bytes.total as f64 / 1e6),
                    format!("{:.0} %", 100.0 * result.link_utilisation),
                    result.tracker_peak.to_string(),
                ],
            ));
        }
    }
    table(&["sub-layer", "policy", "time", "speedup", "memory", "link", "tiles tracked"], &rows)
}

fn sweep(shown: &[Shown], key: &str) -> String {
    let names = names();
    let rows: Vec<(String, Vec<f64>)> = shown
        .iter()
        .map(|Shown { value, report }| {
            (
                value.clone(),
                names.iter().map(|n| report.geomean.get(n).copied().unwrap_or(f64::NAN)).collect(),
            )
        })
        .collect();
    let trades: Vec<svg::Trade> = shown
        .iter()
        .map(|Shown { value, report }| svg::Trade {
            label: value.clone(),
            x: report.end_to_end.time_us.get("t3-mca").copied().unwrap_or(0.0) / 1000.0,
            y: memory(report) as f64 / 1e9,
        })
        .collect();
    let key = escape(key);
    format!(
        "<h2>Sweep over {key}</h2>\n<p>Geometric means of the sub-layers' speedups.</p>\n{}\
         <p>Time of the whole program under <em>t3-mca</em> and memory traffic of its sub-layers: the joined points are those that no other point beats in both.</p>\n{}",
        svg::dots(&format!("Speedup by {key}"), "speedup over sequential", &names, &rows, 1.0),
        svg::pareto(&format!("Time and traffic by {key}"), "milliseconds", "gigabytes a device", &trades)
    )
}

/// Memory traffic of all sub-layers under `t3-mca`.
fn memory(report: &Report) -> u64 {
    let of = |layer: &SubLayerReport| {
        layer.policies.get("t3-mca").map_or(0, |result| result.dram_bytes.total).saturating_mul(layer.calls)
    };
    report.sublayers.iter().map(of).fold(0, u64::saturating_add)
}
