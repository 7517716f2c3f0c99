//! `t3c opt`: our passes beside upstream ones, like `mlir-opt`.

use std::{io::Read, path::PathBuf};

use clap::Args;
use melior::{
    ir::operation::{OperationLike, OperationPrintingFlags},
    pass::{PassIrPrintingOptions, PassManager},
    utility::parse_pass_pipeline,
};
use t3c_ir::{Context, Module, Severity, ffi};
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
  $ t3c opt model.mlir --pass-pipeline='builtin.module(t3-shard)' --mlir-pass-pipeline-crash-reproducer r.mlir
  $ t3c opt r.mlir --run-reproducer
  $ t3c opt --list-passes")]
pub struct Opt {
    /// The module [default, or -: standard input]
    #[arg(value_name = "FILE.mlir")]
    file: Option<PathBuf>,
    /// The passes, as a textual pipeline; without one the module is parsed, verified and printed
    #[arg(long, value_name = "PIPELINE", conflicts_with = "run_reproducer")]
    pass_pipeline: Option<String>,
    /// List our passes with their options
    #[arg(long)]
    list_passes: bool,
    /// Take each part between lines `// -----` as a module of its own
    #[arg(long, conflicts_with = "run_reproducer")]
    split_input_file: bool,
    /// Print locations
    #[arg(long)]
    mlir_print_debuginfo: bool,
    /// Print the generic form of operations
    #[arg(long)]
    mlir_print_op_generic: bool,
    /// Verify the module after each pass (the default)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    verify_each: bool,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
    /// Print how long each pass took on standard error
    #[arg(long)]
    mlir_timing: bool,
    /// When a pass fails or crashes, write the module and the pipeline to a file
    #[arg(long, value_name = "FILE.mlir", conflicts_with = "run_reproducer")]
    mlir_pass_pipeline_crash_reproducer: Option<PathBuf>,
    /// Write only the pass that failed, and the module before it
    #[arg(long, requires = "mlir_pass_pipeline_crash_reproducer")]
    mlir_pass_pipeline_local_reproducer: bool,
    /// Run the pipeline that a reproducer holds
    #[arg(long)]
    run_reproducer: bool,
}

/// When the module is printed between passes, on standard error unless a folder is given.
#[derive(Args, Debug)]
struct Printing {
    /// Print the module before each pass
    #[arg(long)]
    mlir_print_ir_before_all: bool,
    /// Print the module after each pass
    #[arg(long)]
    mlir_print_ir_after_all: bool,
    /// Print the module after each pass that changed it
    #[arg(long, alias = "mlir-print-ir-after-changed")]
    mlir_print_ir_after_change: bool,
    /// Print the module after a pass that failed
    #[arg(long)]
    mlir_print_ir_after_failure: bool,
    /// Write it to files in this folder instead, one a pass [alone: after each pass]
    #[arg(long, value_name = "FOLDER")]
    mlir_print_ir_tree_dir: Option<PathBuf>,
}

impl Printing {
    /// Tells the manager, where there is anything to print.
    fn apply(&self, manager: &PassManager<'_>) {
        let before_all = self.mlir_print_ir_before_all;
        let (on_change, on_failure) = (self.mlir_print_ir_after_change, self.mlir_print_ir_after_failure);
        let folder_alone = self.mlir_print_ir_tree_dir.is_some() && !before_all;
        let after_all = self.mlir_print_ir_after_all || on_change || on_failure || folder_alone;
        if before_all || after_all {
            manager.enable_ir_printing(&PassIrPrintingOptions {
                before_all,
                after_all,
                module_scope: true,
                on_change,
                on_failure,
                flags: OperationPrintingFlags::new(),
                tree_printing_path: self.mlir_print_ir_tree_dir.clone().unwrap_or_default(),
            });
        }
    }
}

impl Opt {
    pub fn run(self) -> Outcome {
        if self.list_passes {
            return Ok(output::print(&passes())?);
        }
        for path in self.output.iter().chain(&self.mlir_pass_pipeline_crash_reproducer) {
            output::check_writable(path)?;
        }
        let (text, name) = self.input()?;
        registry::register_all();
        if let Some(pipeline) = &self.pass_pipeline {
            elements(pipeline).try_for_each(registry::check).map_err(Error::from)?;
        }
        let parts = if self.split_input_file { split(&text) } else { vec![text] };
        let (mut written, mut failed): (Vec<String>, Option<Error>) = (Vec::new(), None);
        for part in parts {
            match self.process(&part, &name) {
                Ok(text) => written.push(text),
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        output::message(&format!("error: {}", output::one_line(&earlier.to_string())));
                    }
                }
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => output::write(self.output.as_ref(), written.join("\n// -----\n\n").as_bytes()),
        }
    }

    /// The module's text, and the name by which messages call it.
    fn input(&self) -> Result<(String, String), Error> {
        match &self.file {
            Some(path) if path.as_os_str() != "-" => {
                Ok((files::read_text(path)?, path.display().to_string()))
            }
            _ => {
                let mut text = String::new();
                let read = std::io::stdin().lock().read_to_string(&mut text);
                read.map_err(|source| Error::file("<stdin>", source))?;
                Ok((text, "<stdin>".to_owned()))
            }
        }
    }

    /// One module's text after the passes.
    fn process(&self, text: &str, name: &str) -> Result<String, Error> {
        let context = Context::new();
        let manager = PassManager::new(context.mlir());
        let parsed = match self.run_reproducer {
            true => context.parse_reproducer(text, name, &manager),
            false => context.parse(text, name),
        };
        show_diagnostics(&context);
        let mut module = parsed?;
        if self.run_reproducer || self.pass_pipeline.is_some() {
            let (outcome, remarks) = collect(|| self.transform(&manager, &mut module));
            remarks.iter().for_each(|remark| output::message(&format!("remark: {remark}")));
            show_diagnostics(&context);
            outcome?;
        }
        let mut flags = OperationPrintingFlags::new();
        if self.mlir_print_debuginfo {
            flags = flags.enable_debug_info(true, false);
        }
        if self.mlir_print_op_generic {
            flags = flags.print_generic_operation_form();
        }
        module.op().to_string_with_flags(flags).map_err(|error| t3c_ir::Error::from(error).into())
    }

    fn transform<'c>(&self, manager: &PassManager<'c>, module: &mut Module<'c>) -> Result<(), Error> {
        if !self.run_reproducer {
            manager.enable_verifier(self.verify_each);
        }
        self.printing.apply(manager);
        if self.mlir_timing {
            ffi::enable_timing(manager);
        }
        if let Some(path) = &self.mlir_pass_pipeline_crash_reproducer {
            let local = self.mlir_pass_pipeline_local_reproducer;
            ffi::enable_crash_reproducer(manager, &path.display().to_string(), local);
        }
        if let Some(pipeline) = &self.pass_pipeline {
            parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline)
                .map_err(|error| Error::option("--pass-pipeline", error.to_string()))?;
        }
        Ok(module.run_manager(manager)?)
    }
}

/// The parts of a file between lines that begin with `// -----`, each on the lines that it had.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        match (line.starts_with("// -----"), parts.last_mut()) {
            (false, Some(part)) => {
                part.push_str(line);
                part.push('\n');
            }
            _ => parts.push("\n".repeat(number + 1)),
        }
    }
    parts
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
        let options = if rest[name..].starts_with('{') {
            rest[name..].find('}').map_or(rest.len() - name, |end| end + 1)
        } else {
            0
        };
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
    fn parts_of_a_file_keep_their_lines() {
        assert_eq!(split("a\nb\n"), ["a\nb\n"]);
        assert_eq!(split("a\n// -----\nb\n// -----\nc"), ["a\n", "\n\nb\n", "\n\n\n\nc\n"]);
    }

    #[test]
    fn our_passes_are_found_in_a_pipeline() {
        let pipeline =
            "builtin.module(t3-shard,func.func(cse),t3-fuse{policy=always tile=4},my-t3-x, t3-outline)";
        let found: Vec<&str> = elements(pipeline).collect();
        assert_eq!(found, ["t3-shard", "t3-fuse{policy=always tile=4}", "t3-outline"]);
        assert_eq!(elements("t3-fuse{").collect::<Vec<_>>(), ["t3-fuse{"]);
    }
}
