//! The command line: one file a command, built on the library alone.
//!
//! Text for people and JSON for programs go to standard output, never mixed; messages go to standard error. An
//! error is one `error: …` line, on a terminal followed by the line of the file that it is about, and exit status 1;
//! wrong usage is clap's, with status 2. A reader that closes
//! its end early (`t3c … | head`) is no error.

mod bench;
mod bench_compile;
mod bench_sim;
mod compile;
mod credit;
mod excerpt;
mod opt;
mod options;
mod output;
mod pairs;
mod progress;
mod reproduce;
mod run;
#[cfg(test)]
mod schemas;
mod simulate;
mod summary;
mod sweep;
mod table;
mod train;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::Error;

/// A compiler that removes the wait between a matrix product and its collective.
#[derive(Debug, Parser)]
#[command(name = "t3c", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Compile),
    Simulate(simulate::Simulate),
    Run(run::Run),
    Train(train::Train),
    Credit(credit::Credit),
    Opt(opt::Opt),
    Reproduce(reproduce::Reproduce),
    Bench(bench::Bench),
}

/// Why a command stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Library(#[from] Error),
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

type Outcome = Result<(), Failure>;

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Compile(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Credit(command) => command.run(),
        Command::Opt(command) => command.run(),
        Command::Reproduce(command) => command.run(),
        Command::Bench(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            output::message(&format!("error: {}", output::one_line(&failure.to_string())));
            // For people only: programs rely on the one line.
            if io::stderr().is_terminal()
                && let Some(lines) = excerpt::of(&failure)
            {
                output::message(&lines);
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent_and_every_command_shows_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("$ t3c {}", command.get_name())), "{}", command.get_name());
        }
    }
}
