//! Checkpoints: a Hugging Face folder that `transformers` loads, and what a resumed run needs beside it.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use t3c_rl::{recipe::Recipe, trainer::State};

use super::{CompiledPolicy, policy::checkpoint_shape};
use crate::{
    Error,
    files::{self, HostTensor},
};

/// The folder of the parameters, in the output folder.
pub(super) const FOLDER: &str = "checkpoint";
const WEIGHTS: &str = "model.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";

/// Where a run stands, and of which recipe.
#[derive(Serialize, Deserialize)]
struct Progress {
    state: State,
    recipe: Recipe,
}

/// Writes the checkpoint; the progress file comes last, so that it never tells of tensors that are not there.
pub(super) fn save(out: &Path, recipe: &Recipe, policy: &CompiledPolicy, state: &State) -> Result<(), Error> {
    let folder = files::create_folder(&out.join(FOLDER))?;
    let tensors = |kinds: &[&str]| -> Result<BTreeMap<String, HostTensor>, Error> {
        let mut all = BTreeMap::new();
        for parameter in &policy.info().parameters {
            for kind in kinds {
                let name = if *kind == "param" {
                    parameter.name.clone()
                } else {
                    format!("{kind}/{}", parameter.name)
                };
                all.insert(name, policy.tensor(kind, parameter)?);
            }
        }
        Ok(all)
    };
    files::write_tensors(&folder.join(WEIGHTS), &tensors(&["param"])?)?;
    files::write_tensors(&folder.join(MOMENTS), &tensors(&["m", "v"])?)?;
    write_json(
        &folder.join("config.json"),
        &t3c_frontends::hf::config_json(policy.config(), t3c_ir::Element::F32),
    )?;
    write_json(&folder.join(PROGRESS), &Progress { state: *state, recipe: recipe.clone() })
}

/// Restores a policy from the checkpoint in `out`.
pub(super) fn load(out: &Path, recipe: &Recipe, policy: &mut CompiledPolicy) -> Result<State, Error> {
    let folder = out.join(FOLDER);
    let path = folder.join(PROGRESS);
    let progress: Progress = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|error| Error::contents(&path, format!("not a checkpoint's progress: {error}")))?;
    if progress.recipe != *recipe {
        return Err(Error::contents(
            &path,
            "belongs to another recipe or seed; give the one that it was started with",
        ));
    }
    for (file, kinds) in [(WEIGHTS, &["param"][..]), (MOMENTS, &["m", "v"][..])] {
        let path = folder.join(file);
        let tensors = files::read_tensors(&path)?;
        for parameter in policy.info().parameters.clone() {
            for kind in kinds {
                let name = if *kind == "param" {
                    parameter.name.clone()
                } else {
                    format!("{kind}/{}", parameter.name)
                };
                let shape = checkpoint_shape(&parameter);
                let tensor = tensors.get(&name).filter(|tensor| tensor.r#type.shape == shape);
                let values = tensor.and_then(HostTensor::to_f32).ok_or_else(|| {
                    Error::contents(&path, format!("tensor `{name}` is missing or of another shape"))
                })?;
                policy.set_tensor(kind, &parameter, &values)?;
            }
        }
    }
    Ok(progress.state)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::contents(path, error.to_string()))?;
    files::write(path, format!("{text}\n").as_bytes())
}
