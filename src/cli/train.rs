//! `t3c train`.

use std::{
    io::{IsTerminal, stderr},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use t3c_passes::fuse::Policy;
use t3c_rl::{
    recipe::Recipe,
    trainer::{Evaluation, Event, Phase, RlMetrics, SftMetrics},
};

use super::{
    Outcome,
    options::{Degrees, FuseOption},
    output,
};
use crate::{Error, train};

/// Train a model by a recipe: a warm start on generated traces, then tree-structured reinforcement learning
///
/// Progress goes to standard output: a bar on a terminal, plain lines elsewhere. The folder then holds
/// the model (a Hugging Face folder), what is needed to go on, and `metrics.jsonl`, one event a line.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c train examples/recipes/portool.json --tp 2
  $ t3c train examples/recipes/portool.json --out runs/seed-2 --seed 2
  $ t3c train examples/recipes/portool.json --resume")]
pub struct Train {
    /// The recipe, a `portool.json`
    #[arg(value_name = "RECIPE.json")]
    recipe: PathBuf,
    /// The folder for the results [default: runs/<the recipe's name>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on where the checkpoint in the folder stands
    #[arg(long)]
    resume: bool,
    /// Print the recipe with every default filled in, and do not train
    #[arg(long)]
    explain: bool,
    /// The seed, instead of the recipe's
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Element type (this version: f32)
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "f16"], hide_possible_values = true)]
    dtype: Option<String>,
    #[command(flatten)]
    degrees: Degrees,
    /// Which pairs to fuse
    #[arg(long, value_enum, value_name = "WHICH", default_value = "always")]
    fuse: FuseOption,
}

impl Train {
    pub fn run(self) -> Outcome {
        self.degrees.check_run()?;
        super::run::check_dtype("train", self.dtype.as_deref())?;
        let mut recipe = train::read_recipe(&self.recipe)?;
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        if self.explain {
            return Ok(output::print_json(&recipe)?);
        }
        let out = self.out.clone().unwrap_or_else(|| default_folder(&self.recipe));
        check_folder(&out, self.resume)?;
        let mut progress = Progress::new(&recipe);
        progress.line("compiling the training and decode steps");
        let options = train::TrainOptions {
            out,
            tp: self.degrees.tp,
            seed: self.seed,
            fuse: Policy::from(self.fuse),
            resume: self.resume,
        };
        let trained = train::train(&self.recipe, &options, &mut |event| progress.event(event))?;
        progress.finish();
        progress.output?;
        output::print(&format!(
            "the model lies in {}, the metrics of every step in {}\n",
            trained.checkpoint.display(),
            trained.metrics.display()
        ))?;
        Ok(())
    }
}

fn default_folder(recipe: &Path) -> PathBuf {
    Path::new("runs").join(recipe.file_stem().unwrap_or("recipe".as_ref()))
}

/// A run that is resumed needs its folder; any other creates it, unless a file is in the way.
fn check_folder(out: &Path, resumes: bool) -> Result<(), Error> {
    if out.exists() && !out.is_dir() {
        return Err(Error::contents(out, "is a file; expected a folder for --out"));
    }
    if resumes && !out.is_dir() {
        return Err(Error::option(
            "--resume",
            format!("there is no folder `{}` to go on from", out.display()),
        ));
    }
    Ok(())
}

/// Shows events as they happen.
struct Progress {
    bar: Option<ProgressBar>,
    sft_steps: u64,
    rl_steps: u64,
    /// A reader that went away; the run then stops, and can be resumed.
    output: std::io::Result<()>,
}

impl Progress {
    fn new(recipe: &Recipe) -> Self {
        let bar = (std::io::stdout().is_terminal() && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(recipe.sft.steps);
            let style =
                ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} [{elapsed_precise}] {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix("warm start");
            bar
        });
        Self { bar, sft_steps: recipe.sft.steps, rl_steps: recipe.rl.steps, output: Ok(()) }
    }

    fn event(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Sft(metrics) => self.step(metrics.step, sft_line(metrics), self.sft_steps),
            Event::Rl(metrics) => self.step(metrics.step, rl_line(metrics), self.rl_steps),
            Event::Probe(evaluation) => self.line(&format!("probe: {}", evaluation_line(evaluation))),
            Event::Evaluated(evaluation) => self.line(&format!("held out: {}", evaluation_line(evaluation))),
            Event::Phase { phase: Phase::Rl } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(self.rl_steps);
                    bar.set_position(0);
                    bar.set_prefix("training");
                }
                self.line("reinforcement learning");
            }
            Event::Phase { phase: Phase::Done } => self.line("done"),
            Event::Phase { phase: Phase::Sft } => {}
        }
        if self.output.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn step(&mut self, step: u64, line: String, steps: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(line);
            }
            None => self.line(&format!("step {step}/{steps}: {line}")),
        }
    }

    fn line(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => self.output = output::print(&format!("{line}\n")),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn sft_line(metrics: &SftMetrics) -> String {
    format!("loss {:.4}, {:.0} tokens/s", metrics.loss, metrics.tokens_per_second)
}

fn rl_line(metrics: &RlMetrics) -> String {
    let rollout = &metrics.rollout;
    format!(
        "reward {:+.3}, accuracy {:.1} %, {:.2} tool calls, {:.0} tokens/s",
        rollout.reward,
        100.0 * rollout.accuracy,
        rollout.tool_calls,
        metrics.tokens_per_second
    )
}

fn evaluation_line(evaluation: &Evaluation) -> String {
    let summary = &evaluation.summary;
    let sampling = match evaluation.temperature {
        0.0 => "greedy".to_owned(),
        temperature => format!("temperature {temperature}"),
    };
    format!(
        "{} questions, {sampling}: accuracy {:.1} %, reward {:+.3}, {:.2} tool calls",
        evaluation.questions,
        100.0 * summary.accuracy,
        summary.reward,
        summary.tool_calls
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_for_its_recipe() {
        assert_eq!(default_folder(Path::new("examples/recipes/portool.json")), Path::new("runs/portool"));
    }

    #[test]
    fn only_a_run_that_began_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_folder(&folder.path().join("new"), false).is_ok());
        assert!(check_folder(&folder.path().join("new"), true).is_err());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(check_folder(&file, false).is_err());
    }
}
