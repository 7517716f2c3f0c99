//! `t3c run`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use t3c_frontends::{Format, detect};
use t3c_ir::{Element, TensorType};
use t3c_passes::fuse::Policy;

use super::{
    Outcome,
    options::{Degrees, PassOptions},
    output,
};
use crate::{
    Compiler, Error, HostTensor, Outputs, Runner, files,
    run::{Request, run_language_model},
};

/// Run a model on this machine's CPU, one worker a device
///
/// A language model takes one sequence by `--tokens`, or `tokens` [T] or [B, T] (int64) in the `--inputs` file, and
/// gives `logits`; with `--grad` also `loss`, the mean next-token cross-entropy, and `grad/<tensor>`. An `.mlir` file
/// reads `in/<i>` and gives `out/<i>` of its entry function.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  $ t3c run tests/goldens/llama/tied --tokens 1,2,3
  $ t3c run tests/goldens/llama/tied --tokens 1,2,3 --tp 2 --grad -o out.safetensors
  $ t3c run graph.mlir --inputs in.safetensors -o out.safetensors")]
pub struct Run {
    /// A Hugging Face `config.json` or model folder, or an `.mlir` file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A safetensors file or checkpoint folder [default: `model.safetensors` beside the configuration]
    #[arg(long, value_name = "W")]
    weights: Option<PathBuf>,
    /// One sequence
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        conflicts_with = "inputs",
        required_unless_present = "inputs"
    )]
    tokens: Vec<i64>,
    /// A safetensors file with the inputs
    #[arg(long, value_name = "IN.safetensors")]
    inputs: Option<PathBuf>,
    /// Also the loss and the gradients of these checkpoint tensors; of all where none is named
    #[arg(long, value_name = "NAME", num_args = 0..)]
    grad: Option<Vec<String>>,
    /// The safetensors file to write [default: a summary on standard output]
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: Option<PathBuf>,
    /// Element type (this version: f32)
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "f16"], hide_possible_values = true)]
    dtype: Option<String>,
    #[command(flatten)]
    degrees: Degrees,
    #[command(flatten)]
    passes: PassOptions,
}

/// Refuses what the CPU does not compute in.
pub fn check_dtype(command: &str, dtype: Option<&str>) -> Result<(), Error> {
    match dtype {
        None | Some("f32") => Ok(()),
        Some(other) => Err(Error::option(
            "--dtype",
            format!("`t3c {command}` does not compute in {other}; expected f32"),
        )),
    }
}

impl Run {
    pub fn run(self) -> Outcome {
        self.degrees.check_run()?;
        self.passes.check_run()?;
        check_dtype("run", self.dtype.as_deref())?;
        if let Some(path) = &self.output {
            output::check_writable(path)?;
        }
        let (format, file) = detect(&self.model).map_err(Error::from)?;
        let outputs = match format {
            Format::Mlir(_) => self.run_graph()?,
            Format::HuggingFace(_) => {
                self.passes.timed("run", || self.run_language_model(Path::new(&file)))?
            }
            Format::Recipe(_) => {
                let problem = "is a recipe; expected a model. Run the checkpoint that `t3c train` wrote";
                return Err(Error::contents(file, problem).into());
            }
            Format::Model(_) => {
                let problem = "has no tokens and logits; expected a language model or an `.mlir` file";
                return Err(Error::contents(file, problem).into());
            }
        };
        match &self.output {
            Some(path) => files::write_tensors(path, &outputs)?,
            None => output::print(&text(&outputs))?,
        }
        Ok(())
    }

    fn fuse(&self) -> Policy {
        self.passes.fuse.map_or(Policy::Always, Policy::from)
    }

    fn run_language_model(&self, config: &Path) -> Result<Outputs, Error> {
        let (sequences, flat) = self.sequences()?;
        let folder =
            config.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let request = Request {
            tp: self.degrees.tp,
            fuse: self.fuse(),
            sequences,
            flat,
            gradients: self.grad.clone(),
            weights: self.weights.clone().unwrap_or_else(|| folder.to_owned()),
            threads: self.degrees.cpu_options().threads,
        };
        run_language_model(&self.model, &request)
    }

    /// The sequences, and whether there is no batch dimension.
    fn sequences(&self) -> Result<(Vec<Vec<i64>>, bool), Error> {
        let Some(path) = &self.inputs else { return Ok((vec![self.tokens.clone()], true)) };
        let tensors = files::read_tensors(path)?;
        let tokens = tensors.get("tokens").ok_or_else(|| {
            Error::contents(path, "tensor `tokens` is missing; expected int64 of shape [T] or [B, T]")
        })?;
        let problem = |found: String| {
            Error::contents(path, format!("tensor `tokens` {found}; expected int64 of shape [T] or [B, T]"))
        };
        let values = files::widen_to_i64(tokens).ok_or_else(|| problem("holds no integers".to_owned()))?;
        let shape = &tokens.r#type.shape;
        let (length, flat) = match shape[..] {
            [length] => (length, true),
            [_, length] => (length, false),
            _ => return Err(problem(format!("has shape {shape:?}"))),
        };
        if values.is_empty() {
            return Err(problem(format!("of shape {shape:?} is empty")));
        }
        Ok((values.chunks(length as usize).map(<[i64]>::to_vec).collect(), flat))
    }

    /// The entry of an `.mlir` file.
    fn run_graph(&self) -> Result<Outputs, Error> {
        let inputs = self.inputs.as_ref().ok_or_else(|| {
            Error::option(
                "--tokens",
                "an `.mlir` file takes tensors; expected --inputs with `in/0`, `in/1`, …",
            )
        })?;
        let refused = [("--grad", self.grad.is_some()), ("--weights", self.weights.is_some())];
        if let Some((option, _)) = refused.iter().find(|(_, given)| *given) {
            return Err(Error::option(
                option,
                "is for language models; an `.mlir` file computes what it says",
            ));
        }
        let tensors = files::read_tensors(inputs)?;
        let mut compiler = Compiler::from_path(&self.model).fuse(self.fuse());
        if let Some(tp) = self.degrees.tp {
            compiler = compiler.tp(tp);
        }
        let mut runner =
            self.passes.timed("compile", || Runner::new(compiler, self.degrees.cpu_options()))?;
        for (index, port) in runner.executable().arguments().to_vec().iter().enumerate() {
            let key = format!("in/{index}");
            let tensor = tensors.get(&key).or_else(|| tensors.get(&port.name)).ok_or_else(|| {
                Error::contents(inputs, format!("tensor `{key}` is missing; expected a {}", port.r#type))
            })?;
            runner.set(&port.name, &converted(inputs, &key, tensor, &port.r#type)?)?;
        }
        self.passes.timed("run", || runner.run())?;
        let ports = runner.executable().results().to_vec();
        let outputs = ports
            .iter()
            .enumerate()
            .map(|(index, port)| Ok((format!("out/{index}"), runner.get(&port.name)?)));
        outputs.collect()
    }
}

/// A tensor as a port takes it: floats in f32 where the port has them, integers in i32.
fn converted(
    path: &Path,
    key: &str,
    tensor: &HostTensor,
    expected: &TensorType,
) -> Result<HostTensor, Error> {
    let mismatch =
        || Error::contents(path, format!("tensor `{key}` is a {}, expected a {expected}", tensor.r#type));
    if tensor.r#type == *expected {
        return Ok(tensor.clone());
    }
    if tensor.r#type.shape != expected.shape {
        return Err(mismatch());
    }
    match expected.element {
        Element::F32 => {
            let values = files::widen_to_f32(tensor).ok_or_else(mismatch)?;
            Ok(HostTensor::f32(expected.shape.clone(), &values))
        }
        Element::I32 => {
            let values = files::widen_to_i64(tensor).ok_or_else(mismatch)?;
            let narrow = values.iter().map(|&value| i32::try_from(value)).collect::<Result<Vec<_>, _>>();
            let narrow = narrow
                .map_err(|_| Error::contents(path, format!("tensor `{key}` holds values beyond 32 bits")))?;
            Ok(HostTensor::i32(expected.shape.clone(), &narrow))
        }
        _ => Err(mismatch()),
    }
}

/// How many of the likeliest tokens are shown.
const SHOWN: usize = 5;

/// What came out, in short: the likeliest next tokens, the loss, each gradient's norm.
fn text(outputs: &BTreeMap<String, HostTensor>) -> String {
    let mut text = String::new();
    for (name, tensor) in outputs {
        text += &format!("{name}: {}", tensor.r#type);
        let values = tensor.to_f32().unwrap_or_default();
        match name.as_str() {
            "logits" => text += &likeliest(tensor, &values),
            _ if values.len() == 1 => text += &format!(" = {}", values[0]),
            _ if !values.is_empty() => {
                let squares: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
                text += &format!(", norm {:.6}", squares.sqrt());
            }
            _ => {}
        }
        text.push('\n');
    }
    text
}

fn likeliest(logits: &HostTensor, values: &[f32]) -> String {
    let shape = &logits.r#type.shape;
    let (Some(&vocabulary), Some(&length)) = (shape.last(), shape.iter().rev().nth(1)) else {
        return String::new();
    };
    if vocabulary == 0 || length == 0 {
        return String::new();
    }
    let mut text = String::new();
    for sequence in values.chunks((length * vocabulary) as usize) {
        let last = &sequence[sequence.len() - vocabulary as usize..];
        let mut order: Vec<usize> = (0..last.len()).collect();
        order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
        let tokens: Vec<String> =
            order.iter().take(SHOWN).map(|&token| format!("{token} ({:.4})", last[token])).collect();
        text += &format!("\n  likeliest next tokens: {}", tokens.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_tokens_of_the_last_position_are_shown() {
        let logits = HostTensor::f32([2, 3], &[9.0, 0.0, 0.0, 0.5, 2.0, 1.0]);
        let shown = text(&[("logits".to_owned(), logits)].into());
        assert!(shown.ends_with("likeliest next tokens: 1 (2.0000), 2 (1.0000), 0 (0.5000)\n"), "{shown}");
    }

    #[test]
    fn inputs_are_converted_or_refused_by_name() {
        let tensor = HostTensor::i32([2], &[1, -1]);
        let file = Path::new("in.safetensors");
        let wrong =
            converted(file, "in/0", &tensor, &TensorType::new([2], Element::F32)).unwrap_err().to_string();
        assert!(wrong.starts_with("in.safetensors: tensor `in/0` is a"), "{wrong}");
        let wide =
            HostTensor { r#type: TensorType::new([1], Element::I64), bytes: 7i64.to_le_bytes().to_vec() };
        assert_eq!(
            converted(file, "in/0", &wide, &TensorType::new([1], Element::I32)).unwrap(),
            HostTensor::i32([1], &[7])
        );
    }
}
