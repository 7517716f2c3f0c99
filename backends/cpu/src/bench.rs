//! Kernels against the machine's own limits, measured in the same run.
//!
//! A machine that others use too is noisy, so a figure is the best of many runs, interleaved
//! with the loop that measures the limit: both see the same machine, and the best of both is
//! what neither was disturbed in.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::kernels::raw::measure::Limits;
use crate::kernels::raw::product::Product;
use crate::kernels::{AlignedFloats, Error, Kernels, Machine};

/// What `t3c bench` prints, `t3c.bench/1`.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Always `t3c.bench/1`.
    pub schema: &'static str,
    /// The machine and its limits.
    pub machine: MachineReport,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// The machine and its limits, measured in the same run.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct MachineReport {
    /// LLVM's name of the CPU.
    pub cpu: String,
    /// The instruction set that the kernels use.
    pub isa: &'static str,
    /// Multiply-adds of independent chains on one core, 10⁹ floating-point operations a second.
    pub fma_peak_gflops: f64,
    /// Bytes read plus bytes written by a copy larger than the caches, on one core, 10⁹ a second.
    pub copy_gb_s: f64,
    /// Bytes read from memory larger than the caches, on one core, 10⁹ a second.
    pub read_gb_s: f64,
    /// Threads that the rows with the highest `.t` used.
    pub threads: usize,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Row {
    /// What was measured: `gemm.f32.<M>x<N>x<K>.t<threads>`, `.packed` where B was packed ahead.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The share of the physical limit measured in the same run; not a number (`null` in JSON) where there is none.
    #[schemars(with = "Option<f64>")]
    pub limit_ratio: f64,
    /// The peer measured beside it, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The peer's figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_value: Option<f64>,
}

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct GemmBench {
    /// M, N, K of each product; B lies in memory as weights do, `[N, K]`.
    pub shapes: Vec<(usize, usize, usize)>,
    /// Most threads; one thread is always measured.
    pub threads: usize,
    /// Time for each row.
    pub time: Duration,
}

impl Default for GemmBench {
    /// Square products, a small batch against a large weight, and a decode step's; one second each.
    fn default() -> Self {
        GemmBench {
            shapes: vec![
                (512, 512, 512),
                (1024, 1024, 1024),
                (2048, 2048, 2048),
                (64, 4096, 4096),
                (8, 2048, 2048),
            ],
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            time: Duration::from_secs(1),
        }
    }
}

/// Measures the machine's limits beside whatever else is measured.
pub struct Meter {
    limits: Limits,
    machine: Machine,
    memory: AlignedFloats,
}

impl Meter {
    /// For kernels of `machine`.
    ///
    /// # Errors
    /// When the loops do not compile.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        let mut memory = AlignedFloats::zeroed(beyond_caches(machine) / size_of::<f32>());
        memory.fill(1.0);
        Ok(Meter { limits: Limits::new(machine)?, machine: machine.clone(), memory })
    }

    /// Multiply-adds of all threads at once, floating-point operations a second.
    pub fn peak_flops(&self, threads: usize) -> f64 {
        peak_of(&self.limits, threads)
    }

    /// Bytes a second that all threads at once read from memory beyond the caches, each a part of its own.
    pub fn read_bytes(&self, threads: usize) -> f64 {
        let parts: Vec<&[f32]> = self.memory.chunks(self.memory.len().div_ceil(threads.max(1))).collect();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for &part in &parts[1..] {
                scope.spawn(move || self.limits.read_bytes_per_second(part));
            }
            self.limits.read_bytes_per_second(parts[0]);
        });
        size_of_val(&self.memory[..]) as f64 / started.elapsed().as_secs_f64().max(1e-9)
    }

    /// The report of `rows`, with the limits of one core measured now.
    pub fn report(&self, rows: Vec<Row>, threads: usize) -> Report {
        const ROUNDS: usize = 20;
        let best = |measure: &dyn Fn() -> f64| (0..ROUNDS).map(|_| measure()).fold(0.0, f64::max);
        let (copy, read) = memory_limits(&self.limits, &self.machine);
        let machine = MachineReport {
            cpu: self.machine.cpu.clone(),
            isa: self.machine.isa.name(),
            fma_peak_gflops: best(&|| self.peak_flops(1)) / 1e9,
            copy_gb_s: copy / 1e9,
            read_gb_s: read / 1e9,
            threads,
        };
        Report { schema: "t3c.bench/1", machine, rows }
    }
}

/// Bytes that no cache holds.
fn beyond_caches(machine: &Machine) -> usize {
    const SMALLEST: usize = 64 << 20;
    const LARGEST: usize = 256 << 20;
    (2 * machine.caches.l3).clamp(SMALLEST, LARGEST)
}

/// Measures matrix products, with packing inside and with B packed ahead.
pub fn gemm(bench: &GemmBench, machine: &Machine) -> Result<Report, Error> {
    let kernels = Kernels::new(machine, &[])?;
    let limits = Limits::new(machine)?;
    let (copy, read) = memory_limits(&limits, machine);
    let most = bench.threads.max(1);
    let counts = if most == 1 { vec![1] } else { vec![1, most] };
    let (mut rows, mut core_peak) = (Vec::new(), 0.0f64);
    for &shape in &bench.shapes {
        for &threads in &counts {
            let mut product = Product::new(&kernels, shape, true, threads)?;
            let best = best_of(bench.time, &kernels, &limits, &mut product, threads);
            if threads == 1 {
                core_peak = core_peak.max(best.peak);
            }
            rows.extend(best.rows(shape, threads));
        }
    }
    let machine = MachineReport {
        cpu: machine.cpu.clone(),
        isa: machine.isa.name(),
        fma_peak_gflops: core_peak / 1e9,
        copy_gb_s: copy / 1e9,
        read_gb_s: read / 1e9,
        threads: most,
    };
    Ok(Report { schema: "t3c.bench/1", machine, rows })
}

/// The best times of one product and the best peak beside it.
struct Best {
    whole: Duration,
    packed: Duration,
    /// Floating-point operations a second, all threads together.
    peak: f64,
}

fn best_of(
    time: Duration,
    kernels: &Kernels,
    limits: &Limits,
    product: &mut Product,
    threads: usize,
) -> Best {
    const FEWEST_ROUNDS: usize = 5;
    let mut best = Best { whole: Duration::MAX, packed: Duration::MAX, peak: 0.0 };
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < FEWEST_ROUNDS || started.elapsed() < time {
        rounds += 1;
        best.peak = best.peak.max(peak_of(limits, threads));
        let round = Instant::now();
        product.pack(kernels);
        let packing = round.elapsed();
        product.multiply(kernels);
        let whole = round.elapsed();
        best.whole = best.whole.min(whole);
        best.packed = best.packed.min(whole - packing);
    }
    best
}

/// Peak of all threads at once.
fn peak_of(limits: &Limits, threads: usize) -> f64 {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| limits.peak_flops())).collect();
        let own = limits.peak_flops();
        own + others.into_iter().filter_map(|other| other.join().ok()).sum::<f64>()
    })
}

impl Best {
    fn rows(&self, (m, n, k): (usize, usize, usize), threads: usize) -> [Row; 2] {
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let row = |suffix: &str, time: Duration| {
            let rate = flops / time.as_secs_f64().max(1e-9);
            Row {
                name: format!("gemm.f32.{m}x{n}x{k}.t{threads}{suffix}"),
                value: rate / 1e9,
                unit: "GFLOP/s",
                limit_ratio: rate / self.peak,
                peer: None,
                peer_value: None,
            }
        };
        [row("", self.whole), row(".packed", self.packed)]
    }
}

/// Bytes a second of a copy (read plus written) and of reading, beyond the caches.
fn memory_limits(limits: &Limits, machine: &Machine) -> (f64, f64) {
    const ROUNDS: usize = 5;
    let bytes = beyond_caches(machine);
    let mut from = AlignedFloats::zeroed(bytes / size_of::<f32>());
    let mut to = AlignedFloats::zeroed(from.len());
    from.fill(1.0);
    let (mut copy, mut read) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        to.copy_from_slice(&from);
        copy = copy.max(2.0 * bytes as f64 / started.elapsed().as_secs_f64().max(1e-9));
        read = read.max(limits.read_bytes_per_second(std::hint::black_box(&to)));
    }
    (copy, read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_row_a_shape_and_thread_count() {
        let bench = GemmBench { shapes: vec![(32, 48, 64)], threads: 2, time: Duration::from_millis(1) };
        let report = gemm(&bench, &Machine::host().expect("host")).expect("report");
        let names: Vec<_> = report.rows.iter().map(|row| row.name.as_str()).collect();
        let expected = ["t1", "t1.packed", "t2", "t2.packed"].map(|t| format!("gemm.f32.32x48x64.{t}"));
        assert_eq!(names, expected);
        assert!(report.rows.iter().all(|row| row.value > 0.0 && row.limit_ratio > 0.0));
        assert!(report.machine.fma_peak_gflops > 0.0 && report.machine.copy_gb_s > 0.0);
    }
}
