//! `t3c bench`.

use std::{path::PathBuf, process::Command, time::Duration};

use clap::{Args, Subcommand};
use t3c_cpu::{
    bench::{GemmBench, Report, gemm},
    kernels::Machine,
};

use super::{
    Failure, Outcome,
    bench_compile::compile,
    bench_sim,
    options::{PhaseOption, positive},
    output::{self, Format},
    table::Table,
};
use crate::{
    Error,
    bench::{Effort, LayerShape, decode, layer},
};

/// Measure this machine's code against the machine's own limits
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c bench gemm
  $ t3c bench gemm --format json --threads 1
  $ t3c bench compile --layers 12,24,48,96
  $ t3c bench layer --shapes 1x512x768x3072
  $ t3c bench decode examples/models/smollm2-135m --batch 1,16
  $ t3c bench sim")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Matrix products in f32, beside the multiply-add peak measured in the same run
    Gemm(Gemm),
    /// Forward passes of a transformer layer in f32, beside the same peak
    Layer(Layer),
    /// From GPT-3 to its schedule, at several numbers of layers
    Compile(Compile),
    /// Decode steps of a model with random weights in f32, beside the bandwidth at which memory is read
    Decode(Decode),
    /// The simulator: time, events, memory, and how they grow with tiles and devices
    Sim(bench_sim::Sim),
}

/// What all benchmarks take.
#[derive(Args, Debug)]
struct Common {
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Most threads [default: the machine's]
    #[arg(long, value_name = "N", value_parser = positive())]
    threads: Option<u64>,
    /// Seconds for each row
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// A command of the shell that measures a peer: it prints `{"rows": [{"name", "value"}]}` on stdout, with the
    /// names of rows here
    #[arg(long, value_name = "COMMAND")]
    against: Option<String>,
}

#[derive(Args, Debug)]
struct Layer {
    #[command(flatten)]
    common: Common,
    /// Sizes to measure
    #[arg(long, value_name = "BxTxHIDDENxMLP", value_delimiter = ',', value_parser = layer_shape,
        default_value = "1x512x768x3072,4x512x768x3072,1x512x1024x4096")]
    shapes: Vec<LayerShape>,
}

#[derive(Args, Debug)]
struct Compile {
    #[command(flatten)]
    common: Common,
    /// Layers
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=4096),
        default_value = "12,24,48,96")]
    layers: Vec<u64>,
    /// Degree of tensor parallelism
    #[arg(long, value_name = "N", value_parser = positive(), default_value_t = 32)]
    tp: u64,
    /// What the program computes
    #[arg(long, value_enum, value_name = "PHASE", default_value = "prefill")]
    phase: PhaseOption,
}

#[derive(Args, Debug)]
struct Decode {
    /// A Hugging Face config.json or model folder
    model: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Sequences of a step
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive(), default_value = "1,16")]
    batch: Vec<u64>,
    /// Positions that a sequence has room for
    #[arg(long, value_name = "TOKENS", value_parser = positive(), default_value_t = 64)]
    seq: u64,
}

#[derive(Args, Debug)]
struct Gemm {
    #[command(flatten)]
    common: Common,
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

fn layer_shape(text: &str) -> Result<LayerShape, String> {
    let sides =
        text.split('x').map(|side| side.parse().ok().filter(|side| (1..=LONGEST as u64).contains(side)));
    match sides.collect::<Option<Vec<u64>>>().as_deref() {
        Some(&[batch, seq, hidden, mlp]) => Ok(LayerShape { batch, seq, hidden, mlp }),
        _ => Err(format!("expected BxTxHIDDENxMLP, such as 1x512x768x3072, with sizes of at most {LONGEST}")),
    }
}

impl Bench {
    pub fn run(self) -> Outcome {
        let (mut report, common) = match self.what {
            What::Gemm(bench) => (bench.measure()?, bench.common),
            What::Layer(bench) => (layer(&bench.shapes, bench.common.effort())?, bench.common),
            What::Compile(Compile { common, layers, tp, phase }) => {
                (compile(&layers, tp, phase.into(), common.effort())?, common)
            }
            What::Decode(Decode { model, common, batch, seq }) => {
                (decode(&model, &batch, seq, common.effort())?, common)
            }
            What::Sim(bench) => return bench.run(),
        };
        if let Some(command) = &common.against {
            add_peer(&mut report, command)?;
        }
        match common.format {
            Format::Json => output::print_json(&report)?,
            Format::Table => output::print(&text(&report))?,
        }
        Ok(())
    }
}

impl Common {
    fn effort(&self) -> Effort {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // More threads than a machine has say nothing about it.
        let wanted = self.threads.and_then(|threads| usize::try_from(threads).ok());
        Effort { threads: wanted.unwrap_or(cores).min(cores), time: Duration::from_secs_f64(self.seconds) }
    }
}

impl Gemm {
    fn measure(&self) -> Result<Report, Failure> {
        let Effort { threads, time } = self.common.effort();
        let mut bench = GemmBench { time, threads, ..GemmBench::default() };
        if !self.shapes.is_empty() {
            bench.shapes.clone_from(&self.shapes);
        }
        let measured = Machine::host().and_then(|machine| gemm(&bench, &machine));
        Ok(measured.map_err(|error| Error::from(t3c_cpu::Error::from(error)))?)
    }
}

/// What a peer's command prints.
#[derive(serde::Deserialize)]
struct Peer {
    rows: Vec<PeerRow>,
}

#[derive(serde::Deserialize)]
struct PeerRow {
    name: String,
    value: f64,
}

/// Runs the peer's command and puts its figures beside ours.
fn add_peer(report: &mut Report, command: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::option("against", format!("`{command}` {reason}"));
    let output = Command::new("sh").arg("-c").arg(command).output();
    let output = output.map_err(|error| failed(format!("does not start: {error}")))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("ended with {}: {}", output.status, stderr.trim())));
    }
    let peer: Peer = serde_json::from_slice(&output.stdout).map_err(|error| {
        failed(format!("printed no rows ({error}); expected {{\"rows\": [{{\"name\", \"value\"}}]}}"))
    })?;
    for row in &mut report.rows {
        if let Some(found) = peer.rows.iter().find(|found| found.name == row.name) {
            (row.peer, row.peer_value) = (Some(command.to_owned()), Some(found.value));
        }
    }
    Ok(())
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
    let with_peer = report.rows.iter().any(|row| row.peer.is_some());
    let mut table = match with_peer {
        true => Table::new(&["", "measured", "unit", "of the limit", "peer"]),
        false => Table::new(&["", "measured", "unit", "of the limit"]),
    };
    for row in &report.rows {
        let share = match row.limit_ratio.is_finite() {
            true => format!("{:.1} %", 100.0 * row.limit_ratio),
            false => String::new(),
        };
        let value = if row.value < 10.0 { format!("{:.3}", row.value) } else { format!("{:.1}", row.value) };
        let mut cells = vec![row.name.clone(), value, row.unit.to_owned(), share];
        if with_peer {
            cells.push(row.peer_value.map_or_else(String::new, |value| format!("{value:.1}")));
        }
        table.row(cells);
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
        let expected = LayerShape { batch: 1, seq: 2, hidden: 64, mlp: 8 };
        assert_eq!(layer_shape("1x2x64x8"), Ok(expected));
        assert!(layer_shape("1x2x64").is_err());
        assert!(seconds("NaN").is_err() && seconds("-1").is_err() && seconds("0.1").is_ok());
    }
}
