//! Tells formats apart: by the file's name for MLIR, by content for JSON.

use std::path::Path;

use crate::{error::Error, json::Source};

/// What the message of an unknown file asks for.
pub(crate) const EXPECTED: &str = "a Hugging Face `config.json` (with `model_type`) or model folder, a `model.json` \
     (`\"schema\": \"t3c.model/1\"`), a recipe (`\"schema\": \"t3c.portool/1\"`) or an `.mlir` file";

/// The schema of [`crate::graph`].
pub const MODEL_SCHEMA: &str = "t3c.model/1";
/// The schema of recipes, which the RL crate reads.
pub const RECIPE_SCHEMA: &str = "t3c.portool/1";

/// A format, with the file's content as far as telling needed it.
#[derive(Clone, Debug)]
pub enum Format {
    /// A Hugging Face configuration.
    HuggingFace(Source),
    /// Our own schema.
    Model(Source),
    /// An RL recipe.
    Recipe(Source),
    /// MLIR text.
    Mlir(String),
}

/// The format of the file at `path` and the name by which errors call it. A folder stands for its
/// `config.json`.
///
/// # Errors
/// When it cannot be read, is empty, is not JSON, or is JSON of no known format.
pub fn detect(path: &Path) -> Result<(Format, String), Error> {
    let folder;
    let path = if path.is_dir() {
        folder = path.join("config.json");
        if !folder.is_file() {
            return Err(Error::Folder { path: path.display().to_string() });
        }
        folder.as_path()
    } else {
        path
    };
    let name = path.display().to_string();
    let bytes = std::fs::read(path)
        .map_err(|error| Error::Unreadable { path: name.clone(), problem: problem(&error) })?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(Error::UnknownFormat { path: name });
    };
    if text.trim().is_empty() {
        return Err(Error::Empty { path: name });
    }
    if path.extension().is_some_and(|extension| extension == "mlir") {
        return Ok((Format::Mlir(text), name));
    }
    let source = Source::parse(&name, &text)?;
    if source.has("model_type") {
        return Ok((Format::HuggingFace(source), name));
    }
    match source.string("schema").as_deref() {
        Some(MODEL_SCHEMA) => Ok((Format::Model(source), name)),
        Some(RECIPE_SCHEMA) => Ok((Format::Recipe(source), name)),
        Some(other) => Err(Error::unsupported(source.field("schema"), other, &[MODEL_SCHEMA, RECIPE_SCHEMA])),
        None => Err(Error::UnknownFormat { path: name }),
    }
}

fn problem(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(name: &str, text: &str) -> Result<(Format, String), Error> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        detect(&path)
    }

    #[test]
    fn formats_are_told_apart_by_content() {
        assert!(matches!(detected("a", r#"{"model_type": "gpt9"}"#), Ok((Format::HuggingFace(_), _))));
        assert!(matches!(detected("a.json", r#"{"schema": "t3c.model/1"}"#), Ok((Format::Model(_), _))));
        assert!(matches!(detected("a.json", r#"{"schema": "t3c.portool/1"}"#), Ok((Format::Recipe(_), _))));
        assert!(matches!(detected("a.mlir", "module {}"), Ok((Format::Mlir(_), _))));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(matches!(detect(folder.path()), Err(Error::Folder { .. })));
        assert!(matches!(detect(&folder.path().join("none")), Err(Error::Unreadable { .. })));
        assert!(matches!(detected("config.json", " \n"), Err(Error::Empty { .. })));
        assert!(matches!(detected("config.json", "{}"), Err(Error::UnknownFormat { .. })));
        assert!(matches!(detected("config.json", "[1, 2]"), Err(Error::UnknownFormat { .. })));
        assert!(matches!(detected("config.json", "{\"model_type\""), Err(Error::Syntax { .. })));
        let Err(error) = detected("m.json", r#"{"schema": "t3c.modle/1"}"#) else { panic!("accepted") };
        assert!(error.to_string().ends_with("nearest: `t3c.model/1`"), "{error}");
    }

    #[test]
    fn a_folder_stands_for_its_config() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).expect("a file");
        let (format, name) = detect(folder.path()).expect("a model folder");
        assert!(matches!(format, Format::HuggingFace(_)) && name.ends_with("config.json"));
    }
}
