//! `t3c simulate`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use t3c_sim::{
    Policy, Report, SubLayerReport,
    page::{self, Shown},
    parallel, trace,
};

use super::{
    Outcome,
    options::{Choice, Compiled, ModelOptions, SystemOption},
    output, progress,
    sweep::{Changed, Sweep},
    table::Table,
};
use crate::{Error, System, files};

/// Time a model on a simulated machine, with and without fusion
///
/// For every sub-layer (matrix product, reduce-scatter, all-gather) it reports the time, the speedup over the
/// sequential execution and the memory traffic by cause, for each policy.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c simulate examples/models/t-nlg.json
  $ t3c simulate examples/models/t-nlg.json --sweep tp=4,8,16 --format csv
  $ t3c simulate examples/models/t-nlg.json --sweep 'link.bandwidth=75 GB/s,150 GB/s' --report sweep.html
  $ t3c simulate examples/models/t-nlg.json --system h100-x8 --trace trace.json")]
pub struct Simulate {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    system: SystemOption,
    /// Simulate once for each value of an option (`tp`, `batch`, …), a field of the system file or one of the model's
    #[arg(long, value_name = "KEY=A,B,C")]
    sweep: Option<Sweep>,
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: SimulateFormat,
    /// Write the timelines to a file that Chrome's tracing page and Perfetto open
    #[arg(long, value_name = "T.json", conflicts_with = "sweep")]
    trace: Option<PathBuf>,
    /// Write a page with plots, for readers who know neither the model nor the method
    #[arg(long, value_name = "R.html")]
    report: Option<PathBuf>,
}

/// How a simulation is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimulateFormat {
    /// For people
    Table,
    /// For programs; nothing else goes to standard output
    Json,
    /// A row for every sub-layer and policy
    Csv,
}

/// One simulation of a sweep.
#[derive(Debug, Serialize)]
struct Point {
    #[serde(skip)]
    choices: Vec<Choice>,
    value: String,
    #[serde(flatten)]
    report: Report,
}

/// The JSON form of a sweep.
#[derive(Serialize)]
struct SweepReport<'a> {
    schema: &'static str,
    key: &'a str,
    points: &'a [Point],
}

impl Simulate {
    pub fn run(self) -> Outcome {
        for path in self.trace.iter().chain(&self.report) {
            output::check_writable(path)?;
        }
        let points = match &self.sweep {
            None => vec![self.point(&Changed::nothing(&self.model), "")?],
            Some(sweep) => self.points(sweep)?,
        };
        if let Some(path) = &self.trace {
            let traces =
                points.iter().flat_map(|point| point.report.traces.iter().cloned()).collect::<Vec<_>>();
            files::write(path, trace::to_json(&traces).to_string().as_bytes())?;
        }
        if let Some(path) = &self.report {
            files::write(path, self.page(&points).as_bytes())?;
        }
        self.print(&points)
    }

    /// All points of a sweep, on all threads, in the order of its values.
    fn points(&self, sweep: &Sweep) -> Result<Vec<Point>, Error> {
        let bar = progress::bar("simulating", sweep.values.len());
        let points = parallel::map(
            &sweep.values,
            parallel::threads(),
            |value| self.point(&Changed::new(&self.model, &sweep.key, value)?, value),
            |done| bar.set_position(done as u64),
        );
        bar.finish_and_clear();
        points
    }

    fn point(&self, changed: &Changed, value: &str) -> Result<Point, Error> {
        let model = &changed.model;
        let fields: Vec<(&str, &str)> =
            changed.system.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let system = System::open_with(&self.system.system, &fields).map_err(Error::from)?;
        let Compiled { program, mut choices } = model.passes.timed("compile", || model.compile(&system))?;
        model.passes.report(&program)?;
        // A page shows traffic over time; of a sweep, it shows means.
        let keeps_traces = self.trace.is_some() || (self.report.is_some() && self.sweep.is_none());
        let mut report = model.passes.timed("simulate", || program.simulate_with(&system, keeps_traces))?;
        for layer in &mut report.sublayers {
            layer.name = changed.original(&layer.name);
        }
        choices.insert(0, Choice::new("model", &program.info().name, true, ""));
        choices.push(Choice::new("system", &system.name, self.system.system != "t3-80cu", "default"));
        Ok(Point { choices, value: value.to_owned(), report })
    }

    fn page(&self, points: &[Point]) -> String {
        let shown: Vec<Shown> =
            points.iter().map(|point| Shown { value: point.value.clone(), report: &point.report }).collect();
        let choices: Vec<String> = points
            .first()
            .map(|point| point.choices.iter().map(Choice::to_string).collect())
            .unwrap_or_default();
        page::simulation(&shown, self.sweep.as_ref().map(|sweep| sweep.key.as_str()), &choices.join(", "))
    }

    fn print(&self, points: &[Point]) -> Outcome {
        let key = self.sweep.as_ref().map(|sweep| sweep.key.as_str());
        match (self.format, key) {
            (SimulateFormat::Csv, _) => output::print(&csv(points, key))?,
            (SimulateFormat::Json, Some(key)) => {
                output::print_json(&SweepReport { schema: "t3c.simulate-sweep/1", key, points })?;
            }
            (SimulateFormat::Json, None) => {
                points.iter().try_for_each(|point| output::print_json(&point.report))?
            }
            (SimulateFormat::Table, _) => {
                let texts: Vec<String> = points.iter().map(|point| text(point, key)).collect();
                output::print(&texts.join("\n"))?;
            }
        }
        Ok(())
    }
}

/// For people.
fn text(point: &Point, key: Option<&str>) -> String {
    let report = &point.report;
    let choices: Vec<String> = point.choices.iter().map(Choice::to_string).collect();
    let mut text = key.map(|key| format!("{key} = {}\n", point.value)).unwrap_or_default();
    text += &format!("{}\n\n", choices.join(", "));
    let mut table = Table::new(&[
        "sub-layer",
        "policy",
        "time",
        "speedup",
        "DRAM",
        "gemm read",
        "write",
        "RS read",
        "write",
        "AG read",
        "write",
        "updates",
    ]);
    for layer in &report.sublayers {
        for (index, (policy, result)) in in_order(&layer.policies).into_iter().enumerate() {
            let traffic = &result.dram_bytes;
            let by_cause = &traffic.by_cause;
            let name = if index == 0 { title(layer) } else { String::new() };
            let mut cells = vec![name, policy.to_owned(), output::microseconds(result.time_us)];
            cells.push(
                layer.speedup.get(policy).map_or("1.000x".to_owned(), |speedup| format!("{speedup:.3}x")),
            );
            let amounts = [
                traffic.total,
                by_cause.gemm_reads,
                by_cause.gemm_writes,
                by_cause.rs_reads,
                by_cause.rs_writes,
                by_cause.ag_reads,
                by_cause.ag_writes,
                by_cause.updates,
            ];
            cells.extend(amounts.map(output::bytes));
            table.row(cells);
        }
    }
    if report.sublayers.is_empty() {
        text += "no product meets a collective\n";
    } else {
        text += &table.render(2);
    }
    text + "\n" + &totals(report)
}

/// Results in the order of the policies, `sequential` first.
pub fn in_order<'r, T>(by_policy: &'r BTreeMap<&'static str, T>) -> Vec<(&'static str, &'r T)> {
    Policy::ALL
        .iter()
        .filter_map(|policy| by_policy.get_key_value(policy.name()).map(|(name, t)| (*name, t)))
        .collect()
}

fn title(layer: &SubLayerReport) -> String {
    let fused = if layer.fused { "" } else { ", not fused" };
    let calls = if layer.calls > 1 { format!(", {} times", layer.calls) } else { String::new() };
    format!("{} ({}{calls}{fused})", layer.name, layer.shape)
}

fn totals(report: &Report) -> String {
    let whole = &report.end_to_end;
    let mut table = Table::new(&["", "sub-layers (geomean)", "end to end", "time"]);
    for (policy, time) in in_order(&whole.time_us) {
        let speedup =
            |speedup: Option<&f64>| speedup.map_or("1.000x".to_owned(), |speedup| format!("{speedup:.3}x"));
        table.row(vec![
            policy.to_owned(),
            speedup(report.geomean.get(policy)),
            speedup(whole.speedup.get(policy)),
            output::microseconds(*time),
        ]);
    }
    let parts = [
        ("sub-layers", whole.sublayers_us),
        ("other compute", whole.compute_us),
        ("other communication", whole.communication_us),
    ];
    let parts: Vec<String> =
        parts.iter().map(|(name, time)| format!("{name} {}", output::microseconds(*time))).collect();
    format!("{}sequential: {}\n", table.render(1), parts.join(", "))
}

/// One row for every sub-layer and policy; times in microseconds, traffic in bytes.
fn csv(points: &[Point], key: Option<&str>) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = key.map(|key| quoted(key) + ",").unwrap_or_default();
    text += "sublayer,phase,shape,devices,calls,fused,policy,time_us,speedup,dram_bytes,gemm_reads,gemm_writes,\
             rs_reads,rs_writes,ag_reads,ag_writes,updates\n";
    for point in points {
        for layer in &point.report.sublayers {
            for (policy, result) in in_order(&layer.policies) {
                let traffic = &result.dram_bytes;
                let by_cause = &traffic.by_cause;
                let mut cells = Vec::new();
                cells.extend(key.map(|_| quoted(&point.value)));
                cells.extend([quoted(&layer.name), layer.phase.clone(), quoted(&layer.shape)]);
                cells.extend([layer.devices.to_string(), layer.calls.to_string(), layer.fused.to_string()]);
                let speedup = layer.speedup.get(policy).copied().unwrap_or(1.0);
                cells.extend([policy.to_owned(), result.time_us.to_string(), speedup.to_string()]);
                let amounts = [
                    traffic.total,
                    by_cause.gemm_reads,
                    by_cause.gemm_writes,
                    by_cause.rs_reads,
                    by_cause.rs_writes,
                    by_cause.ag_reads,
                    by_cause.ag_writes,
                    by_cause.updates,
                ];
                cells.extend(amounts.map(|amount| amount.to_string()));
                text += &cells.join(",");
                text.push('\n');
            }
        }
    }
    text
}
