//! The evaluation of the T3 paper: `reproduce [SYSTEM] [PAGE.html]`.

use t3c_sim::{System, evaluation, page};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "t3-80cu".to_owned());
    let result = evaluation::rows::reproduce(&System::open(&name)?, |_, _| {})?;
    for row in &result.rows {
        println!(
            "{:<42}{:>9.2}{:>9.2} {:<2}{:>+8.1}",
            row.id, row.published, row.ours, row.unit, row.deviation
        );
    }
    if let Some(path) = arguments.next() {
        let sensitivity = evaluation::sensitivity::sensitivity(&name, |_, _| {})?;
        std::fs::write(path, page::reproduction(&result, &sensitivity, &name))?;
    }
    Ok(())
}
