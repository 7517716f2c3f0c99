//! `t3c bench`.

use std::time::Duration;

use clap::{Args, Subcommand};
use t3c_cpu::{
    bench::{GemmBench, Report, gemm},
    kernels::Machine,
};

use super::{
    Failure, Outcome, bench_sim,
    options::positive,
    output::{self, Format},
    table::Table,
};
use crate::Error;

/// Measure this machine's code against the machine's own limits
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c bench gemm
  $ t3c bench gemm --format json --threads 1
  $ t3c bench sim")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Matrix products in f32, beside the multiply-add peak measured in the same run
    Gemm(Gemm),
    /// The simulator: time, events, memory, and how they grow with tiles and devices
    Sim(bench_sim::Sim),
}

#[derive(Args, Debug)]
struct Gemm {
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Most threads of a product [default: the machine's]
    #[arg(long, value_name = "N", value_parser = positive())]
    threads: Option<u64>,
    /// Seconds for each product
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Sizes to measure, instead of a list of usual ones
    #[arg(long, value_name = "MxNxK", value_delimiter = ',', value_parser = shape)]
    shapes: Vec<(usize, usize, usize)>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds =
        text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "expected a number from 0 to 3600".to_owned())
}

/// No side of a product is longer: three such matrices still fit a large machine.
const LONGEST: usize = 1 << 16;

fn shape(text: &str) -> Result<(usize, usize, usize), String> {
    let sides = text.split('x').map(|side| side.parse().ok().filter(|side| (1..=LONGEST).contains(side)));
    match sides.collect::<Option<Vec<usize>>>().as_deref() {
        Some(&[m, n, k]) => Ok((m, n, k)),
        _ => Err(format!("expected MxNxK, such as 1024x1024x1024, with sides of at most {LONGEST}")),
    }
}

impl Bench {
    pub fn run(self) -> Outcome {
        let bench = match self.what {
            What::Gemm(bench) => bench,
            What::Sim(bench) => return bench.run(),
        };
        let report = bench.measure()?;
        match bench.format {
            Format::Json => output::print_json(&report)?,
            Format::Table => output::print(&text(&report))?,
        }
        Ok(())
    }
}

impl Gemm {
    fn measure(&self) -> Result<Report, Failure> {
        let mut bench = GemmBench { time: Duration::from_secs_f64(self.seconds), ..GemmBench::default() };
        if let Some(threads) = self.threads {
            // More threads than a machine has say nothing about it.
            bench.threads = bench.threads.min(usize::try_from(threads).unwrap_or(usize::MAX));
        }
        if !self.shapes.is_empty() {
            bench.shapes.clone_from(&self.shapes);
        }
        let measured = Machine::host().and_then(|machine| gemm(&bench, &machine));
        Ok(measured.map_err(|error| Error::from(t3c_cpu::Error::from(error)))?)
    }
}

fn text(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} ({}): multiply-add peak {:.1} GFLOP/s a core, copy {:.1} GB/s, read {:.1} GB/s, up to {} threads\n\n",
        machine.cpu,
        machine.isa,
        machine.fma_peak_gflops,
        machine.copy_gb_s,
        machine.read_gb_s,
        machine.threads
    );
    let mut table = Table::new(&["", "measured", "unit", "of the limit"]);
    for row in &report.rows {
        let share = format!("{:.1} %", 100.0 * row.limit_ratio);
        table.row(vec![row.name.clone(), format!("{:.1}", row.value), row.unit.to_owned(), share]);
    }
    text += &table.render(1);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_seconds_are_checked() {
        assert_eq!(shape("32x48x64"), Ok((32, 48, 64)));
        for bad in ["32x48", "0x1x1", "1x1x99999999", "axbxc"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
        assert!(seconds("NaN").is_err() && seconds("-1").is_err() && seconds("0.1").is_ok());
    }
}
