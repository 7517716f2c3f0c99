//! `t3c compile`.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use t3c_cpu::kernels::Emit as NativeForm;
use t3c_sim::chakra;

use super::{
    Outcome,
    options::{Choice, ModelOptions, SystemOption},
    output::{self, Format},
    summary::Summary,
};
use crate::{Error, Program, Stage, System};

/// Compile a model: shard it, fuse its matrix products with their collectives, schedule it
///
/// Without `--emit` and `-o` it prints a summary: layers, pairs found, fused and declined, the address-space
/// configuration of each distinct fused operation, and the speedup that the simulator predicts.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c compile examples/models/t-nlg.json
  $ t3c compile examples/models/smollm2-135m --phase training --tp 3 --remarks
  $ t3c compile examples/models/t-nlg.json --emit t3 -o t-nlg.t3.mlir")]
pub struct Compile {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    system: SystemOption,
    /// What the program is for
    #[arg(long, value_enum, value_name = "TARGET", default_value = "sim")]
    target: Option<Target>,
    /// Write this form of the program instead of a summary [default with -o: by the file's extension]
    #[arg(long, value_enum, value_name = "FORM")]
    emit: Option<Emit>,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// How the summary, or a schedule, is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// What a program is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The simulator
    #[default]
    Sim,
    /// This machine's CPU
    Cpu,
}

/// A form of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// As imported, and differentiated for training: linalg with shard annotations
    Mlir,
    /// One program a device, with plain collectives
    Sharded,
    /// With track-and-trigger
    T3,
    /// What both backends run; text, or JSON with `--format json` or `-o OUT.json`
    Schedule,
    /// Chakra execution traces, as ASTRA-sim reads them: of every device into OUT.0.et, OUT.1.et, …, or of device 0
    /// to standard output
    Chakra,
    /// LLVM IR for this machine
    Llvm,
    /// Assembly for this machine
    Asm,
    /// An object file for this machine
    Obj,
}

impl Emit {
    fn of_extension(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        Ok(match extension {
            "mlir" => Emit::T3,
            "json" | "txt" => Emit::Schedule,
            "et" => Emit::Chakra,
            "ll" => Emit::Llvm,
            "s" => Emit::Asm,
            "o" => Emit::Obj,
            _ => {
                let problem = format!(
                    "`-o {}` does not say what to write; expected --emit, or a name in .mlir, .json, .et, .ll, .s or .o",
                    path.display()
                );
                return Err(Error::option("--emit", problem));
            }
        })
    }
}

impl Compile {
    pub fn run(self) -> Outcome {
        let emit = match (&self.emit, &self.output) {
            (Some(emit), _) => Some(*emit),
            (None, Some(path)) => Some(Emit::of_extension(path)?),
            (None, None) => None,
        };
        if let Some(path) = &self.output {
            output::check_writable(path)?;
        }
        let system = System::open(&self.system.system).map_err(Error::from)?;
        let mut compiled = self.model.passes.timed("compile", || self.model.compile(&system))?;
        // A program that does not fit the system has no figures, which the summary says.
        let judged = self.model.passes.timed("simulate", || compiled.program.judge(&system));
        if let (Err(problem), true) = (judged, self.model.passes.verbose) {
            output::message(&format!("not simulated: {problem}"));
        }
        self.model.passes.report(&compiled.program)?;
        match emit {
            Some(emit) => self.write(&compiled.program, emit),
            None => {
                let target = match self.target.unwrap_or_default() {
                    Target::Sim => "sim",
                    Target::Cpu => "cpu",
                };
                let mut choices = compiled.choices;
                choices.push(Choice::new("target", target, target != "sim", "default"));
                choices.push(Choice::new("system", &system.name, self.system.system != "t3-80cu", "default"));
                let is_native = target == "cpu";
                let summary = self
                    .model
                    .passes
                    .timed("summary", || Summary::new(&compiled.program, choices, &system, is_native))?;
                match self.format {
                    Format::Table => output::print(&summary.text())?,
                    Format::Json => output::print_json(&summary.report())?,
                }
                Ok(())
            }
        }
    }

    fn write(&self, program: &Program, emit: Emit) -> Outcome {
        let contents = match emit {
            Emit::Mlir => program.mlir(Stage::Model).as_bytes().to_vec(),
            Emit::Sharded => program.mlir(Stage::Sharded).as_bytes().to_vec(),
            Emit::T3 => program.mlir(Stage::T3).as_bytes().to_vec(),
            Emit::Schedule => self.schedule(program)?.into_bytes(),
            Emit::Chakra => return self.traces(program),
            Emit::Llvm => program.native_code(NativeForm::Llvm)?,
            Emit::Asm => program.native_code(NativeForm::Asm)?,
            Emit::Obj if self.output.is_none() && std::io::stdout().is_terminal() => {
                return Err(Error::option(
                    "--emit",
                    "an object file is no text for a terminal; expected -o OUT.o",
                )
                .into());
            }
            Emit::Obj => program.native_code(NativeForm::Object)?,
        };
        output::write(self.output.as_ref(), &contents)
    }

    /// Chakra has a file for each device, told apart by a number before the extension.
    fn traces(&self, program: &Program) -> Outcome {
        let schedule = program.schedule();
        let Some(path) = &self.output else {
            if std::io::stdout().is_terminal() {
                let problem = "a Chakra trace is no text for a terminal; expected -o OUT.et";
                return Err(Error::option("--emit", problem).into());
            }
            return output::write(None, &chakra::trace(schedule, 0).map_err(Error::from)?);
        };
        let stem = path.with_extension("");
        for device in 0..schedule.grid.devices().max(1) {
            let path = PathBuf::from(format!("{}.{device}.et", stem.display()));
            output::write(Some(&path), &chakra::trace(schedule, device).map_err(Error::from)?)?;
        }
        Ok(())
    }

    fn schedule(&self, program: &Program) -> Result<String, Error> {
        let named_json =
            self.output.as_ref().is_some_and(|path| path.extension().is_some_and(|e| e == "json"));
        match self.format == Format::Json || named_json {
            true => Ok(t3c_schedule::to_json(program.schedule()).map_err(Error::from)? + "\n"),
            false => Ok(program.schedule().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_output_says_its_form() {
        let form = |name: &str| Emit::of_extension(Path::new(name));
        assert_eq!(form("a.mlir").ok(), Some(Emit::T3));
        assert_eq!(form("b/a.o").ok(), Some(Emit::Obj));
        assert!(form("a").is_err_and(|error| error.to_string().starts_with("--emit: ")));
    }
}
