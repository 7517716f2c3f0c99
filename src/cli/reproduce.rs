//! `t3c reproduce`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use t3c_sim::{
    evaluation::{
        rows::{Reproduction, Row, SCHEMA, reproduce},
        sensitivity::{CONCLUSIONS, Variation, sensitivity},
    },
    page,
};

use super::{
    Outcome,
    options::SystemOption,
    output::{self, Format},
    progress,
    table::Table,
};
use crate::{Error, System, files};

/// Run a published evaluation again and put its figures beside ours
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c reproduce t3
  $ t3c reproduce t3 --report t3.html
  $ t3c reproduce t3 --system t3-80cu-75gb --format json")]
pub struct Reproduce {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The evaluation of T3 (Pati et al., ASPLOS 2024): sub-layers, memory traffic, whole models, sensitivity
    T3(T3),
}

#[derive(Args, Debug)]
struct T3 {
    #[command(flatten)]
    system: SystemOption,
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Write a page with plots
    #[arg(long, value_name = "R.html")]
    report: Option<PathBuf>,
    /// Leave out the sensitivity to the machine's uncertain parameters
    #[arg(long)]
    no_sensitivity: bool,
}

/// The JSON form.
#[derive(Serialize)]
struct Json<'r> {
    schema: &'static str,
    system: &'r str,
    rows: &'r [Row],
    conclusions: [&'static str; 4],
    sensitivity: &'r [Variation],
}

impl Reproduce {
    pub fn run(self) -> Outcome {
        let What::T3(command) = self.what;
        command.run()
    }
}

impl T3 {
    fn run(&self) -> Outcome {
        if let Some(path) = &self.report {
            output::check_writable(path)?;
        }
        let name = &self.system.system;
        let system = System::open(name).map_err(Error::from)?;
        let shown = |what| {
            let bar = progress::bar(what, 1);
            move |done: usize, total: usize| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
        };
        let result = reproduce(&system, shown("evaluation")).map_err(Error::from)?;
        let sensitivity = match self.no_sensitivity {
            true => vec![],
            false => sensitivity(name, shown("sensitivity")).map_err(Error::from)?,
        };
        if let Some(path) = &self.report {
            files::write(path, page::reproduction(&result, &sensitivity, &system.name).as_bytes())?;
        }
        match self.format {
            Format::Table => output::print(&text(&result, &sensitivity))?,
            Format::Json => output::print_json(&Json {
                schema: SCHEMA,
                system: &system.name,
                rows: &result.rows,
                conclusions: CONCLUSIONS,
                sensitivity: &sensitivity,
            })?,
        }
        Ok(())
    }
}

/// For people.
fn text(result: &Reproduction, sensitivity: &[Variation]) -> String {
    let mut table = Table::new(&["", "paper", "ours", "points"]);
    for row in &result.rows {
        let value =
            |value: f64| if row.unit == "%" { format!("{value:.1} %") } else { format!("{value:.2}x") };
        let mark = if row.second_hand { "*" } else { "" };
        let ours = value(row.ours);
        table.row(vec![
            row.what.clone(),
            value(row.published) + mark,
            ours,
            format!("{:+.1}", row.deviation),
        ]);
    }
    let mut text = table.render(1);
    text += "* second-hand: read in notes about the paper\n\n";
    if sensitivity.is_empty() {
        return text;
    }
    let mut table = Table::new(&["one field changed", "t3", "t3-mca", "ideal-overlap", "traffic"]);
    for varied in sensitivity {
        let field = if varied.field.is_empty() {
            "as in the file".to_owned()
        } else {
            format!("{} = {}", varied.field, varied.value)
        };
        let mut cells = vec![field];
        cells.extend([varied.t3, varied.t3_mca, varied.ideal_overlap].map(|value| format!("{value:.3}x")));
        cells.push(format!("{:+.1} %", varied.traffic_percent));
        table.row(cells);
    }
    text += &table.render(1);
    text.push('\n');
    for (index, conclusion) in CONCLUSIONS.iter().enumerate() {
        let stands = sensitivity.iter().filter(|varied| varied.conclusions[index]).count();
        text += &format!("{conclusion}: in {stands} of {}\n", sensitivity.len());
    }
    text
}
