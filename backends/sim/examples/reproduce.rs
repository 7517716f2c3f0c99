//! The evaluation of the T3 paper: `reproduce [SYSTEM]`.

use t3c_sim::{Error, System, evaluation};

fn main() -> Result<(), Error> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "t3-80cu".to_owned());
    let result = evaluation::rows::reproduce(&System::open(&name)?, |_, _| {})?;
    for row in &result.rows {
        println!(
            "{:<42}{:>9.2}{:>9.2} {:<2}{:>+8.1}  {}",
            row.id, row.published, row.ours, row.unit, row.deviation, row.what
        );
    }
    for model in &result.models {
        println!(
            "{:<18}{:?}: {:?} share {:.3} comm {:.3}",
            model.name,
            model.pass,
            model.report.end_to_end.breakdown_us,
            evaluation::rows::sub_layer_share(&model.report),
            evaluation::rows::communication_share(&model.report)
        );
    }
    for variation in evaluation::sensitivity::sensitivity(&name, |_, _| {})? {
        println!("{variation:?}");
    }
    Ok(())
}
