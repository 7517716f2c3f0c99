//! The sub-layers of the T3 paper's evaluation on a system, as a table: `sub_layers [SYSTEM [rows|columns]]`,
//! where the last says along which dimension of the product the chunks are cut.

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

fn main() -> Result<(), Error> {
    let system = System::open(&std::env::args().nth(1).unwrap_or("t3-80cu".to_owned()))?;
    let dimension = usize::from(std::env::args().nth(2).as_deref() == Some("columns"));
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
    for (range, what) in [(0..16, "16 cases"), (16..28, "500B models")] {
        print!("geomean, {what:<27}");
        for policy in &Policy::ALL[1..] {
            let speedups = reports[range.clone()].iter().map(|(_, r)| r.geomean[policy.name()].ln());
            print!("{:>18.3}x", (speedups.sum::<f64>() / range.len() as f64).exp());
        }
        println!();
    }
    Ok(())
}
