//! How fast the simulator is: `speed`.

use t3c_sim::{Error, System, evaluation::speed};

fn main() -> Result<(), Error> {
    for row in speed::measure(&System::open("t3-80cu")?)? {
        println!(
            "{:<40}{:>10.4} s{:>12} events{:>8.1} M/s",
            row.name,
            row.seconds,
            row.events,
            row.events_per_second / 1e6
        );
    }
    Ok(())
}
