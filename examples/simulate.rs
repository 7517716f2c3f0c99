//! Compiles T-NLG at eight devices and times it on the paper's machine: `cargo run --example simulate`.

use t3c::{Compiler, System};

fn main() -> Result<(), t3c::Error> {
    let program = Compiler::from_path("examples/models/t-nlg.json").tp(8).compile()?;
    let pairs = program.summary().pairs;
    println!("{} of {} pairs fused", pairs.fused, pairs.found);

    let report = program.simulate(&System::open("t3-80cu")?)?;
    for layer in &report.sublayers {
        for (policy, result) in &layer.policies {
            println!(
                "{:30} {policy:18} {:8.1} us {:12} bytes",
                layer.shape, result.time_us, result.dram_bytes.total
            );
        }
    }
    println!("speedup of all sub-layers: {:.3}", report.geomean["t3"]);
    Ok(())
}
