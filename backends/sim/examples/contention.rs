//! What overlap costs a product on four devices: `contention SYSTEM [UNITS]`.

use t3c_sim::{
    Error, System,
    evaluation::{cases, split::contention},
};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let system = System::open(&arguments.next().unwrap_or_else(|| "a100-x8".to_owned()))?;
    let moving = arguments.next().and_then(|units| units.parse().ok()).unwrap_or(24);
    let (mut sum, mut largest, mut count) = (0.0, 0.0f64, 0.0);
    for mut case in cases().into_iter().filter(|case| case.is_main && case.devices == 8) {
        case.shape[2] *= 2;
        case.devices = 4;
        let [m, n, k] = case.shape;
        let slower = 100.0 * (contention(&case, &system, moving)? - 1.0);
        println!("{m}x{n}x{k}: {slower:.1} %");
        (sum, largest, count) = (sum + slower, largest.max(slower), count + 1.0);
    }
    println!("mean {:.1} %, most {largest:.1} %", sum / count);
    Ok(())
}
