//! `model.json`: graphs that are not Hugging Face models, in our own documented schema.
//!
//! [`Model`] and its parts are both the schema and the way to write a graph in Rust.

mod build;
mod ops;
mod schema;

use std::{collections::BTreeMap, sync::Arc};

pub use schema::{Axis, Block, DType, Extent, Input, Model, Op, Parallelism, ParameterSpec};
use t3c_ir::{Element, TensorType};

use crate::{
    Options, Parameter, Phase,
    detect::MODEL_SCHEMA,
    error::{Error, Field},
    info::{ModelInfo, degrees},
    json::Source,
};

/// A [`Model`] at definite sizes.
#[derive(Clone, Debug)]
pub struct ModelGraph {
    model: Model,
    sizes: BTreeMap<String, u64>,
    phase: Phase,
    element: Element,
    info: ModelInfo,
    source: Option<Arc<Source>>,
}

/// The JSON Schema of `model.json`.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Model).to_value()
}

/// Loads a `model.json`.
///
/// # Errors
/// Names the field, with its place.
pub fn load(source: Source, options: &Options) -> Result<ModelGraph, Error> {
    let model: Model = source.read()?;
    ModelGraph::new(model, options, Some(Arc::new(source)))
}

/// No tensor has more elements.
const LOG2_MOST_ELEMENTS: u32 = 48;
/// Repetitions of a block.
const MOST_REPETITIONS: u64 = 4096;

impl ModelGraph {
    /// Checks a model that was read from `source`, or built in Rust.
    ///
    /// # Errors
    /// Names the field or option that does not fit.
    pub fn new(model: Model, options: &Options, source: Option<Arc<Source>>) -> Result<Self, Error> {
        let places = source.clone();
        Self::checked(model, options, source)
            .map_err(|error| error.located(|field| places.as_ref().and_then(|source| source.place(field))))
    }

    fn checked(model: Model, options: &Options, source: Option<Arc<Source>>) -> Result<Self, Error> {
        if model.schema != MODEL_SCHEMA {
            return Err(Error::unsupported(Field::new("schema"), &model.schema, &[MODEL_SCHEMA]));
        }
        if options.phase == Phase::Decode {
            let reason = "a `model.json` has no cache; expected prefill or training".into();
            return Err(Error::Option { option: "--phase", value: "decode".into(), reason });
        }
        let sizes = sizes(&model, options)?;
        let element = options.dtype.unwrap_or(element(model.dtype));
        let info = ModelInfo {
            name: model.name.clone(),
            layers: 0,
            parameters: Vec::new(),
            vocab_size: None,
            context_length: None,
            batch: sizes.get("batch").copied(),
            seq: sizes.get("seq").copied(),
            tp: options.tp.or(model.parallelism.as_ref().map(|degrees| degrees.tp.0)).unwrap_or(1),
            dp: 1,
            ep: 1,
            element,
            degrees: Vec::new(),
        };
        let mut graph = Self { model, sizes, phase: options.phase, element, info, source };
        graph.fill_info()?;
        Ok(graph)
    }

    /// Parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn fill_info(&mut self) -> Result<(), Error> {
        let mut parameters = self.parameters("parameters", &self.model.parameters, "")?;
        let mut layers = 0;
        for (index, op) in self.model.ops.iter().enumerate() {
            let Op::Repeat { block, count, prefix, .. } = op else { continue };
            let (name, body) = self.block(block, index)?;
            let count = self.count(count, index)?;
            layers += count;
            let path = format!("blocks.{name}.parameters");
            for repetition in 0..count {
                parameters.extend(self.parameters(
                    &path,
                    &body.parameters,
                    &format!("{prefix}.{repetition}."),
                )?);
            }
        }
        let split = |parameter: &Parameter| {
            let dimension = parameter.split.iter().position(|axes| !axes.is_empty())?;
            Some(parameter.shape[dimension])
        };
        let split: Vec<u64> = parameters.iter().filter_map(split).collect();
        self.info.degrees = if split.is_empty() { vec![1] } else { degrees(&split) };
        self.info.layers = layers.max(1);
        self.info.parameters = parameters;
        self.check_degree()
    }

    fn check_degree(&self) -> Result<(), Error> {
        let tp = self.info.tp;
        if tp == 0 {
            let reason = "expected a whole number of at least 1".into();
            return Err(Error::Option { option: "--tp", value: "0".into(), reason });
        }
        if self.info.degrees.contains(&tp) {
            return Ok(());
        }
        let specs =
            self.model.parameters.iter().enumerate().map(|(i, spec)| (format!("parameters[{i}]"), spec));
        let in_blocks = self.model.blocks.iter().flat_map(|(name, block)| {
            let path = move |i| format!("blocks.{name}.parameters[{i}]");
            block.parameters.iter().enumerate().map(move |(i, spec)| (path(i), spec))
        });
        for (path, spec) in specs.chain(in_blocks) {
            let shape = self.shape(&path, &spec.shape)?;
            if let Some(dimension) = split_of(spec)
                && !shape[dimension].is_multiple_of(tp)
            {
                return Err(Error::Indivisible {
                    field: Field::new(format!("{path}.shape[{dimension}]")),
                    value: shape[dimension],
                    divisor: "--tp".into(),
                    by: tp,
                    fits: self.info.degrees.clone(),
                });
            }
        }
        let reason = "no parameter is sharded; expected 1".into();
        Err(Error::Option { option: "--tp", value: tp.to_string(), reason })
    }

    /// The block that the `repeat` at `ops[index]` names.
    fn block(&self, name: &str, index: usize) -> Result<(&str, &Block), Error> {
        let found = self.model.blocks.get_key_value(name);
        found.map(|(name, block)| (name.as_str(), block)).ok_or_else(|| {
            let names: Vec<&str> = self.model.blocks.keys().map(String::as_str).collect();
            Error::unsupported(Field::new(format!("ops[{index}].block")), name, &names)
        })
    }

    fn count(&self, count: &Extent, index: usize) -> Result<u64, Error> {
        let path = format!("ops[{index}].count");
        let count = self.extent(&path, count)?;
        if count > MOST_REPETITIONS {
            let message = format!("impossible size {count}; expected 1 to {MOST_REPETITIONS}");
            return Err(Error::invalid(path, message));
        }
        Ok(count)
    }

    fn parameters(&self, path: &str, specs: &[ParameterSpec], prefix: &str) -> Result<Vec<Parameter>, Error> {
        let parameter = |(index, spec): (usize, &ParameterSpec)| {
            let path = format!("{path}[{index}]");
            let shape = self.shape(&path, &spec.shape)?;
            if let Some(shard) = &spec.shard {
                check_shard(&path, shard, shape.len())?;
            }
            let mut split = vec![Vec::new(); shape.len()];
            if let Some(dimension) = split_of(spec) {
                split[dimension] = vec![0];
            }
            let name = format!("{prefix}{}", spec.name);
            Ok(Parameter::whole(&name, shape.clone(), &shape, split, self.element))
        };
        specs.iter().enumerate().map(parameter).collect()
    }

    fn shape(&self, path: &str, shape: &[Extent]) -> Result<Vec<u64>, Error> {
        let extents = shape
            .iter()
            .enumerate()
            .map(|(index, extent)| self.extent(&format!("{path}.shape[{index}]"), extent))
            .collect::<Result<Vec<_>, _>>()?;
        let elements = extents.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent));
        if elements.is_none_or(|elements| elements > 1 << LOG2_MOST_ELEMENTS) {
            return Err(Error::TooLarge {
                field: Field::new(format!("{path}.shape")),
                what: "the tensor".into(),
                log2_limit: LOG2_MOST_ELEMENTS,
            });
        }
        Ok(extents)
    }

    fn extent(&self, path: &str, extent: &Extent) -> Result<u64, Error> {
        let text = match extent {
            Extent::Number(size) => return Ok(size.0),
            Extent::Product(text) => text,
        };
        let mut product = 1_u64;
        for factor in text.split('*').map(str::trim) {
            let value = match factor.parse::<u64>() {
                Ok(0) => return Err(Error::invalid(path, "a factor is 0")),
                Ok(value) => value,
                Err(_) => *self.sizes.get(factor).ok_or_else(|| {
                    let names: Vec<&str> = self.sizes.keys().map(String::as_str).collect();
                    Error::unsupported(Field::new(path), factor, &names)
                })?,
            };
            product = product.checked_mul(value).ok_or_else(|| Error::TooLarge {
                field: Field::new(path),
                what: "the tensor".into(),
                log2_limit: LOG2_MOST_ELEMENTS,
            })?;
        }
        Ok(product)
    }

    /// The type of an input.
    fn input_type(&self, path: &str, input: &Input) -> Result<TensorType, Error> {
        let element = match input.dtype {
            Some(DType::I32) => Element::I32,
            Some(dtype) => element(dtype),
            None => self.element,
        };
        Ok(TensorType::new(self.shape(path, &input.shape)?, element))
    }
}

/// The file's sizes with the options' in their place.
fn sizes(model: &Model, options: &Options) -> Result<BTreeMap<String, u64>, Error> {
    let mut sizes: BTreeMap<String, u64> =
        model.sizes.iter().map(|(name, size)| (name.clone(), size.0)).collect();
    for (option, name, value) in [("--batch", "batch", options.batch), ("--seq", "seq", options.seq)] {
        let Some(value) = value else { continue };
        let reason = match sizes.get_mut(name) {
            Some(size) if value > 0 => {
                *size = value;
                continue;
            }
            Some(_) => "expected a whole number of at least 1".to_owned(),
            None => format!("the model has no size called `{name}`"),
        };
        return Err(Error::Option { option, value: value.to_string(), reason });
    }
    Ok(sizes)
}

fn check_shard(path: &str, shard: &[Option<Axis>], rank: usize) -> Result<(), Error> {
    let path = format!("{path}.shard");
    if shard.len() != rank {
        let message = format!("{} entries for a shape of {rank} dimensions", shard.len());
        return Err(Error::invalid(path, message));
    }
    if shard.iter().flatten().count() > 1 {
        return Err(Error::invalid(path, "an axis can split one dimension only"));
    }
    Ok(())
}

fn split_of(spec: &ParameterSpec) -> Option<usize> {
    spec.shard.as_ref()?.iter().position(Option::is_some)
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
        DType::F16 => Element::F16,
        DType::Bf16 => Element::Bf16,
        DType::I32 => Element::I32,
    }
}
