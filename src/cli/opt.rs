//! `t3c opt`: our passes beside upstream ones, like `mlir-opt`.

use std::{io::Read, path::PathBuf};

use clap::Args;
use melior::{
    ir::operation::OperationPrintingFlags,
    pass::PassManager,
    utility::parse_pass_pipeline,
};
use t3c_ir::{Context, Module, Severity};
use t3c_passes::{collect, registry};

use super::{Outcome, output, table::Table};
use crate::{Error, files};

/// Run passes on an MLIR module, ours (t3-…) beside upstream ones
///
/// Remarks and diagnostics go to standard error, the module to standard output. Every `--emit` of `t3c compile` that
/// is MLIR is valid input.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c opt model.mlir --pass-pipeline='builtin.module(t3-shard,t3-split-all-reduce,canonicalize)'
  $ t3c compile examples/models/t-nlg.json --emit sharded | t3c opt --pass-pipeline='builtin.module(t3-fuse{policy=always})'
  $ t3c opt --list-passes")]
pub struct Opt {
    /// The module [default, or -: standard input]
    #[arg(value_name = "FILE.mlir")]
    file: Option<PathBuf>,
    /// The passes, as a textual pipeline; without one the module is parsed, verified and printed
    #[arg(long, value_name = "PIPELINE")]
    pass_pipeline: Option<String>,
    /// List our passes with their options
    #[arg(long)]
    list_passes: bool,
    /// Print the module after each pass on standard error
    #[arg(long)]
    mlir_print_ir_after_all: bool,
    /// Print locations
    #[arg(long)]
    mlir_print_debuginfo: bool,
    /// Verify the module after each pass (the default)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    verify_each: bool,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

impl Opt {
    pub fn run(self) -> Outcome {
        if self.list_passes {
            return Ok(output::print(&passes())?);
        }
        if let Some(path) = &self.output {
            output::check_writable(path)?;
        }
        let (text, name) = self.input()?;
        registry::register_all();
        if let Some(pipeline) = &self.pass_pipeline {
            elements(pipeline).try_for_each(registry::check).map_err(Error::from)?;
        }
        let context = Context::new();
        let parsed = context.parse(&text, &name);
        show_diagnostics(&context);
        let mut module = parsed.map_err(Error::from)?;
        if let Some(pipeline) = &self.pass_pipeline {
            let (outcome, remarks) = collect(|| self.transform(&context, &mut module, pipeline));
            remarks.iter().for_each(|remark| output::message(&format!("remark: {remark}")));
            show_diagnostics(&context);
            outcome?;
        }
        let text = module.text(self.mlir_print_debuginfo);
        output::write(self.output.as_ref(), text.as_bytes())
    }

    /// The module's text, and the name by which messages call it.
    fn input(&self) -> Result<(String, String), Error> {
        match &self.file {
            Some(path) if path.as_os_str() != "-" => Ok((files::read_text(path)?, path.display().to_string())),
            _ => {
                let mut text = String::new();
                let read = std::io::stdin().lock().read_to_string(&mut text);
                read.map_err(|source| Error::file("<stdin>", source))?;
                Ok((text, "<stdin>".to_owned()))
            }
        }
    }

    fn transform<'c>(&self, context: &'c Context, module: &mut Module<'c>, pipeline: &str) -> Result<(), Error> {
        let manager = PassManager::new(context.mlir());
        manager.enable_verifier(self.verify_each);
        if self.mlir_print_ir_after_all {
            manager.enable_ir_printing(&melior::pass::PassIrPrintingOptions {
                before_all: false,
                after_all: true,
                module_scope: true,
                on_change: false,
                on_failure: false,
                flags: OperationPrintingFlags::new(),
                tree_printing_path: PathBuf::new(),
            });
        }
        parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline)
            .map_err(|error| Error::option("--pass-pipeline", error.to_string()))?;
        Ok(module.run_manager(&manager)?)
    }
}

/// Everything but errors: those become the command's own.
fn show_diagnostics(context: &Context) {
    for diagnostic in context.take_diagnostics() {
        let kind = match diagnostic.severity {
            Severity::Error => continue,
            Severity::Warning => "warning",
            Severity::Note => "note",
            Severity::Remark => "remark",
        };
        output::message(&format!("{kind}: {diagnostic}"));
    }
}

/// The elements of a pipeline that are ours, each with its options.
fn elements(pipeline: &str) -> impl Iterator<Item = &str> {
    let starts = pipeline.match_indices("t3-").map(|(start, _)| start);
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let starts = starts.filter(move |&start| !pipeline[..start].ends_with(is_name));
    starts.map(move |start| {
        let rest = &pipeline[start..];
        let name = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let options = if rest[name..].starts_with('{') { rest[name..].find('}').map_or(rest.len() - name, |end| end + 1) } else { 0 };
        &rest[..name + options]
    })
}

fn passes() -> String {
    let mut table = Table::new(&["pass", "what it does"]);
    for entry in registry::list() {
        table.row(vec![entry.name.to_owned(), entry.summary.to_owned()]);
        for option in entry.options {
            table.row(vec![String::new(), format!("  {option}")]);
        }
    }
    table.render(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_passes_are_found_in_a_pipeline() {
        let pipeline = "builtin.module(t3-shard,func.func(cse),t3-fuse{policy=always tile=4},my-t3-x, t3-outline)";
        let found: Vec<&str> = elements(pipeline).collect();
        assert_eq!(found, ["t3-shard", "t3-fuse{policy=always tile=4}", "t3-outline"]);
        assert_eq!(elements("t3-fuse{").collect::<Vec<_>>(), ["t3-fuse{"]);
    }
}
