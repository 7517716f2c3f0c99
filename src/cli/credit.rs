//! `t3c credit`.

use std::io::Read;

use clap::Args;
use t3c_rl::credit::{Request, credit};

use super::{Outcome, output};
use crate::Error;

/// Print the reinforcement-learning arithmetic of one rollout tree
///
/// Reads `{"input": {"nodes": […], "trajectories": […]}, "options": {…}}` from standard input and prints, as JSON,
/// step rewards, trajectory- and fork-relative advantages, weights, the clipped loss and its derivative.
#[derive(Args, Debug)]
#[command(after_long_help = "Example (tree.json):
  {\"input\": {\"nodes\": [{\"parent\": -1, \"model_tokens\": 1, \"format_score\": 1, \"logp\": [-0.5], \"old_logp\": [-0.7]}],
             \"trajectories\": [{\"leaf\": 0, \"finished\": true, \"r_out\": 1}]}}
  $ t3c credit < tree.json")]
pub struct Credit {}

/// The name of standard input in messages.
const STDIN: &str = "<stdin>";

impl Credit {
    pub fn run(self) -> Outcome {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map_err(|source| Error::file(STDIN, source))?;
        output::print_json(&answer(&text)?)?;
        Ok(())
    }
}

fn answer(text: &str) -> Result<t3c_rl::credit::Credit, Error> {
    if text.trim().is_empty() {
        return Err(Error::Credit(format!("{STDIN}: is empty; expected a tree as JSON")));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let request: Request = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { format!("`{field}`: ") };
        let source = error.inner();
        let message = source.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        Error::Credit(format!("{STDIN}:{}:{}: {field}{message}", source.line(), source.column()))
    })?;
    reader.end().map_err(|error| Error::Credit(format!("{STDIN}: {error}; expected one tree")))?;
    credit(&request.input, &request.options).map_err(|error| Error::Credit(format!("{STDIN}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_place_and_field() {
        let problem = |text: &str| answer(text).unwrap_err().to_string();
        let wrong = problem("{\"input\": {\"nodes\": [{\"parent\": \"x\"}]}}");
        assert!(wrong.starts_with("<stdin>:1:") && wrong.contains("`input.nodes[0].parent`"), "{wrong}");
        assert!(problem("{\"input\"").contains("<stdin>:1:8: "));
        assert!(problem("").contains("is empty"));
        assert!(problem("{\"input\": {\"nodes\": [], \"trajectories\": []}}").contains("`input.trajectories`"));
    }
}
