//! `t3c simulate --sweep`: one simulation for each value of one field of the system, the command line or the model.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value;

use super::options::{ElementOption, ModelOptions, PhaseOption};
use crate::{Error, System};

/// A key and its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    pub key: String,
    pub values: Vec<String>,
}

impl std::str::FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("expected KEY=A,B,C")?;
        let values: Vec<String> = split(values).into_iter().map(|value| value.trim().to_owned()).collect();
        if key.trim().is_empty() || values.iter().any(String::is_empty) {
            return Err("expected KEY=A,B,C with no empty part".to_owned());
        }
        Ok(Self { key: key.trim().to_owned(), values })
    }
}

/// Parts between commas that are in no list: `[5, 10, 30],[1, 2, 3]` has two.
fn split(values: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in values.chars() {
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(c == '[') - i32::from(c == ']');
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts
}

/// What one value of a sweep changes.
#[derive(Debug)]
pub struct Changed {
    pub model: ModelOptions,
    /// A field of the system and its value.
    pub system: Option<(String, String)>,
    /// Holds the changed model file as long as it is needed; with the user's own.
    file: Option<(tempfile::TempDir, PathBuf)>,
}

impl Changed {
    /// Nothing.
    pub fn nothing(model: &ModelOptions) -> Self {
        Self { model: model.clone(), system: None, file: None }
    }

    /// `key` set to `value`: an option of the command line, else a field of the system, else one of the model.
    pub fn new(model: &ModelOptions, key: &str, value: &str) -> Result<Self, Error> {
        let mut changed = Self::nothing(model);
        let wrong =
            |expected: &str| Error::option("--sweep", format!("`{key}={value}`: expected {expected}"));
        let number = || {
            value.parse().ok().filter(|n: &u64| *n > 0).ok_or_else(|| wrong("a whole number of at least 1"))
        };
        let options = &mut changed.model;
        match key {
            "tp" => options.degrees.tp = Some(number()?),
            "dp" => options.degrees.dp = Some(number()?),
            "ep" => options.degrees.ep = Some(number()?),
            "batch" => options.batch = Some(number()?),
            "seq" => options.seq = Some(number()?),
            "zero" => options.degrees.zero = value.to_owned(),
            "remat" => options.degrees.remat = value.to_owned(),
            "phase" => {
                let phase =
                    PhaseOption::from_str(value, true).map_err(|_| wrong("training, prefill or decode"))?;
                options.phase = Some(phase);
            }
            "dtype" => {
                let element = ElementOption::from_str(value, true).map_err(|_| wrong("f32, bf16 or f16"))?;
                options.dtype = Some(element);
            }
            _ if System::has_field(key) => changed.system = Some((key.to_owned(), value.to_owned())),
            _ => {
                let (folder, path) = with_field(&model.model, key, value)?;
                options.model = path;
                changed.file = Some((folder, model.model.clone()));
            }
        }
        Ok(changed)
    }

    /// A place in the changed copy as one in the user's file. Lines of the copy are not the file's.
    pub fn original(&self, place: &str) -> String {
        let Some((_, own)) = &self.file else { return place.to_owned() };
        let copy = self.model.model.display().to_string();
        let Some((before, after)) = place.split_once(&copy) else { return place.to_owned() };
        let after = after.trim_start_matches(|c: char| c == ':' || c.is_ascii_digit());
        format!("{before}{}{after}", own.display())
    }
}

/// A copy of the model file with one field changed, in a folder of its own.
fn with_field(path: &Path, key: &str, value: &str) -> Result<(tempfile::TempDir, PathBuf), Error> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let text = std::fs::read_to_string(&file).map_err(|source| Error::file(&file, source))?;
    let unknown = || {
        let problem = format!(
            "`{key}` is no option (tp, dp, ep, batch, seq, phase, dtype, zero, remat), no field of a system \
             (such as link.bandwidth) and no field of {}",
            file.display()
        );
        Error::option("--sweep", problem)
    };
    let mut json: Value = serde_json::from_str(&text).map_err(|_| unknown())?;
    let mut field = &mut json;
    for name in key.split('.') {
        field = field.get_mut(name).ok_or_else(unknown)?;
    }
    // Numbers, truth values and lists as they are; everything else is text.
    *field = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let folder = tempfile::tempdir().map_err(|source| Error::file(std::env::temp_dir(), source))?;
    let name = file.file_name().map_or_else(|| "model.json".into(), ToOwned::to_owned);
    let changed = folder.path().join(name);
    std::fs::write(&changed, json.to_string()).map_err(|source| Error::file(&changed, source))?;
    Ok((folder, changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_has_a_key_and_values() {
        let sweep: Sweep = "link.bandwidth=75 GB/s, 150 GB/s".parse().unwrap();
        assert_eq!(
            sweep,
            Sweep { key: "link.bandwidth".into(), values: vec!["75 GB/s".into(), "150 GB/s".into()] }
        );
        let lists: Sweep = "arbitration.thresholds=[5, 10, 30],[1, 2, 3]".parse().unwrap();
        assert_eq!(lists.values, ["[5, 10, 30]", "[1, 2, 3]"]);
        for bad in ["tp", "tp=", "=1", "tp=1,,2"] {
            assert!(bad.parse::<Sweep>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_field_of_the_model_is_changed_in_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.json");
        std::fs::write(&path, r#"{"sizes": {"layers": 2}}"#).unwrap();
        let (_kept, changed) = with_field(&path, "sizes.layers", "5").unwrap();
        assert_eq!(std::fs::read_to_string(changed).unwrap(), r#"{"sizes":{"layers":5}}"#);
        assert!(with_field(&path, "sizes.depth", "5").unwrap_err().to_string().contains("link.bandwidth"));
    }
}
