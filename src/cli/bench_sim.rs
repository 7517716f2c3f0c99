//! `t3c bench sim`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use t3c_cpu::{
    bench::{GemmBench, MachineReport, gemm},
    kernels::Machine,
};
use t3c_sim::evaluation::speed::{Speed, measure};

use super::{
    Outcome,
    options::SystemOption,
    output::{self, Format},
    table::Table,
};
use crate::{Error, System};

#[derive(Args, Debug)]
pub struct Sim {
    #[command(flatten)]
    system: SystemOption,
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// The JSON form.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    machine: MachineReport,
    rows: Vec<Row>,
}

/// One figure. Simulating has no physical limit to compare with.
#[derive(Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    limit_ratio: Option<f64>,
}

fn rows(speeds: &[Speed]) -> Vec<Row> {
    let mut rows = Vec::new();
    for speed in speeds {
        let row = |what: &str, value, unit| Row {
            name: format!("sim.{}{what}", speed.name),
            value,
            unit,
            limit_ratio: None,
        };
        rows.push(row("", speed.seconds * 1000.0, "ms"));
        rows.push(row(".events", speed.events as f64, "events"));
        rows.push(row(".rate", speed.events_per_second / 1e6, "M events/s"));
    }
    if let Some(kib) = peak_memory() {
        rows.push(Row {
            name: "sim.memory".to_owned(),
            value: kib as f64 / 1024.0,
            unit: "MiB",
            limit_ratio: None,
        });
    }
    rows
}

/// The most memory that this process has held, in KiB, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Sim {
    pub fn run(&self) -> Outcome {
        let system = System::open(&self.system.system).map_err(Error::from)?;
        let speeds = measure(&system).map_err(Error::from)?;
        let rows = rows(&speeds);
        match self.format {
            Format::Json => {
                let bench =
                    GemmBench { shapes: vec![(256, 256, 256)], threads: 1, time: Duration::from_millis(200) };
                let measured = Machine::host().and_then(|machine| gemm(&bench, &machine));
                let machine = measured.map_err(|error| Error::from(t3c_cpu::Error::from(error)))?.machine;
                output::print_json(&Report { schema: "t3c.bench/1", machine, rows })?;
            }
            Format::Table => {
                let mut table = Table::new(&["", "measured", "unit"]);
                for row in &rows {
                    table.row(vec![row.name.clone(), format!("{:.2}", row.value), row.unit.to_owned()]);
                }
                output::print(&table.render(1))?;
            }
        }
        Ok(())
    }
}
