//! The sub-layers of the T3 paper's evaluation as a table: `sub_layers [SYSTEM] [columns] [KEY=VALUE…]`.
//!
//! `columns` cuts the chunks along the columns of the product instead of its rows; a field of the
//! system is changed with, for example, `link.bandwidth="75 GB/s"`.

use t3c_schedule::testing::gemm_reduce_scatter_along;
use t3c_sim::{Error, Options, Policy, Report, System, simulate};

/// Name, hidden size, tokens, devices.
const MODELS: [(&str, u64, u64, u32); 7] = [
    ("Mega-GPT-2", 3072, 16384, 8),
    ("Mega-GPT-2", 3072, 16384, 16),
    ("T-NLG", 4256, 8192, 8),
    ("T-NLG", 4256, 8192, 16),
    ("GPT-3", 12288, 4096, 32),
    ("PALM", 18432, 4096, 32),
    ("MT-NLG", 20480, 4096, 32),
];

/// The reduction dimension of each sub-layer's product, in hidden sizes.
const SUB_LAYERS: [(&str, u64); 4] = [("OP", 1), ("FC-2", 4), ("FC-1", 4), ("IP", 3)];

/// The first 16 rows, the paper's main set, and the others.
const SETS: [(std::ops::Range<usize>, &str); 2] = [(0..16, "16 cases"), (16..28, "500B models")];

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dimension = usize::from(arguments.iter().any(|argument| argument == "columns"));
    let changes: Vec<(&str, &str)> = arguments.iter().filter_map(|a| a.split_once('=')).collect();
    let name = arguments.iter().find(|a| !a.contains('=') && *a != "columns");
    let system = System::open_with(name.map_or("t3-80cu", String::as_str), &changes)?;
    let mut reports: Vec<(String, Report)> = Vec::new();
    for (model, hidden, tokens, devices) in MODELS {
        for (name, factor) in SUB_LAYERS {
            let k = factor * hidden / u64::from(devices);
            let schedule = gemm_reduce_scatter_along(dimension, tokens, hidden, k, devices);
            let report = simulate(&schedule, &system, &Options::default())?;
            reports.push((format!("{model} TP{devices} {name}"), report));
        }
    }
    print!("{:<24}{:>12}", "sub-layer", "sequential");
    Policy::ALL[1..].iter().for_each(|policy| print!("{:>19}", policy.name()));
    println!("{:>10}{:>12}", "DRAM", "GEMM reads");
    for (name, report) in &reports {
        let layer = &report.sublayers[0];
        let sequential = &layer.policies["sequential"];
        print!("{name:<24}{:>9.1} us", sequential.time_us);
        Policy::ALL[1..].iter().for_each(|policy| print!("{:>18.3}x", layer.speedup[policy.name()]));
        let (before, after) = (sequential.dram_bytes, layer.policies["t3"].dram_bytes);
        let change = after.total as f64 / before.total as f64 - 1.0;
        let reads = before.by_cause.gemm_reads as f64 / after.by_cause.gemm_reads as f64;
        println!("{:>9.1}%{reads:>11.2}x", 100.0 * change);
    }
    for (range, what) in SETS {
        print!("geomean, {what:<27}");
        for policy in &Policy::ALL[1..] {
            let speedups = reports[range.clone()].iter().map(|(_, r)| r.geomean[policy.name()].ln());
            print!("{:>18.3}x", (speedups.sum::<f64>() / range.len() as f64).exp());
        }
        let mean = |ratio: &dyn Fn(&Report) -> f64| {
            let logs = reports[range.clone()].iter().map(|(_, report)| ratio(report).ln());
            (logs.sum::<f64>() / range.len() as f64).exp()
        };
        let bytes = |report: &Report, policy| report.sublayers[0].policies[policy].dram_bytes;
        let change = mean(&|r| bytes(r, "t3").total as f64 / bytes(r, "sequential").total as f64) - 1.0;
        let reads = mean(&|r| {
            let reads = |policy| bytes(r, policy).by_cause.gemm_reads as f64;
            reads("sequential") / reads("t3")
        });
        println!("{:>9.1}%{reads:>11.2}x", 100.0 * change);
    }
    Ok(())
}
