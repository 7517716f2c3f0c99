//! Hugging Face `config.json`: a table of families, one file each.
//!
//! Both spellings load: the public hubs' (`rope_theta`, `rope_scaling`, `torch_dtype`) and the newest of
//! `transformers` (`rope_parameters`, `dtype`).

mod fields;
mod gemma2;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod mixtral;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod write;

use std::sync::Arc;

use fields::Fields;
use t3c_ir::Element;
pub use write::config_json;

use crate::{
    Options,
    decoder::{Decoder, DecoderConfig, Origin, TensorNames},
    error::{Error, Field},
    json::Source,
};

/// A family: what its configurations and checkpoints call things, and in what it differs from Llama.
struct Family {
    /// The `model_type` of its files.
    model_type: &'static str,
    /// Fields that it calls otherwise: our name, theirs.
    spelling: &'static [(&'static str, &'static str)],
    names: TensorNames,
    defaults: Defaults,
    /// What the shared fields do not say.
    adapt: fn(&Fields<'_>, &mut DecoderConfig) -> Result<(), Error>,
}

/// What stands for a field that a file leaves out, as in the family's class in transformers.
struct Defaults {
    context: u64,
    eps: f64,
    theta: f64,
    /// The share of a head's dimensions that are rotated.
    partial: f64,
    activation: &'static str,
    tied: bool,
    /// A head's size; `None` is the hidden size over the heads.
    head_dim: Option<u64>,
    /// The MLP's width over the hidden size; `None` where files must say it.
    widening: Option<u64>,
}

impl Defaults {
    const LLAMA: Self = Self {
        context: 2048,
        eps: 1e-6,
        theta: 10_000.0,
        partial: 1.0,
        activation: "silu",
        tied: false,
        head_dim: None,
        widening: None,
    };
}

const FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gpt2::FAMILY,
    gpt_neox::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    opt::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
];

/// The families that load.
pub fn model_types() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.model_type).collect()
}

/// The configuration in a file.
///
/// # Errors
/// Names the field, with its place.
pub fn read(source: &Source) -> Result<DecoderConfig, Error> {
    let field = source.field("model_type");
    let Some(model_type) = source.string("model_type") else {
        return Err(Error::Invalid { field, message: "expected a string".into() });
    };
    let family = FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
        .ok_or_else(|| Error::unsupported(field, &model_type, &model_types()))?;
    let config = family.read(source).and_then(|config| {
        let checked = config
            .check()
            .map_err(|error| error.renamed(|field| config.spell(field, Some(source)).to_owned()));
        checked.map(|()| config)
    });
    config.map_err(|error| error.located(|name| source.place(name)))
}

impl Family {
    fn read(&self, source: &Source) -> Result<DecoderConfig, Error> {
        let fields = Fields::new(source, self)?;
        let mut config = fields.decoder(self)?;
        (self.adapt)(&fields, &mut config)?;
        Ok(config)
    }
}

/// Loads a model from a configuration.
///
/// # Errors
/// Names the field or option that does not fit.
pub fn load(source: Source, options: &Options) -> Result<Decoder, Error> {
    let config = read(&source)?;
    let name = name(source.file());
    Decoder::new(config, &name, options, Some(Origin { source: Arc::new(source), prefix: "" }))
}

/// A folder's name stands for its `config.json`; other files have their own.
fn name(file: &str) -> String {
    let path = std::path::Path::new(file);
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
    let folder = path.parent().and_then(|folder| folder.file_name()).and_then(|folder| folder.to_str());
    match folder {
        Some(folder) if stem == "config" => folder.to_owned(),
        _ => stem.to_owned(),
    }
}

/// The element type of a `torch_dtype` or `dtype`; f32 where there is none.
fn element(field: &str, name: Option<&str>) -> Result<Element, Error> {
    const NAMES: [(&str, Element); 4] = [
        ("float32", Element::F32),
        ("float16", Element::F16),
        ("bfloat16", Element::Bf16),
        ("float64", Element::F64),
    ];
    let Some(name) = name.map(|name| name.trim_start_matches("torch.")) else { return Ok(Element::F32) };
    NAMES.iter().find(|row| row.0 == name).map(|row| row.1).ok_or_else(|| {
        let supported: Vec<&str> = NAMES.iter().map(|row| row.0).collect();
        Error::unsupported(Field::new(field), name, &supported)
    })
}
