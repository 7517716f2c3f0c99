//! `model.json`: graphs that are not Hugging Face models, in our own documented schema.
//!
//! [`Model`] and its parts are both the schema and the way to write a graph in Rust.

mod build;
mod collectives;
mod elementwise;
mod losses;
mod op;
mod ops;
mod schema;
mod sizes;

use std::sync::Arc;

pub use op::{Combine, Op};
pub use schema::{Axis, Block, DType, Extent, Input, Model, Parallelism, ParameterSpec, Split};
use sizes::{LARGEST_DEGREE, Sizes, check_shard};
use t3c_ir::{Element, Splits, TensorType};

use crate::{
    Options, Parameter, Phase,
    detect::MODEL_SCHEMA,
    error::{Error, Field},
    info::ModelInfo,
    json::Source,
};

/// A [`Model`] at definite sizes.
#[derive(Clone, Debug)]
pub struct ModelGraph {
    model: Model,
    sizes: Sizes,
    phase: Phase,
    element: Element,
    info: ModelInfo,
    source: Option<Arc<Source>>,
}

/// The path before the fields of a graph or a block; its inputs, parameters and operations.
type Lists<'g> = (String, &'g [Input], &'g [ParameterSpec], &'g [Op]);

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
        let sizes = Sizes::new(&model, options)?;
        let element = options.dtype.unwrap_or(element(model.dtype));
        let info = ModelInfo {
            name: model.name.clone(),
            layers: 0,
            parameters: Vec::new(),
            vocab_size: None,
            context_length: None,
            batch: sizes.get("batch"),
            seq: sizes.get("seq"),
            tp: sizes.degrees.tp,
            dp: sizes.degrees.dp,
            ep: sizes.degrees.ep,
            element,
            degrees: Vec::new(),
        };
        let mut graph = Self { model, sizes, phase: options.phase, element, info, source };
        graph.check_kind()?;
        graph.fill_info()?;
        Ok(graph)
    }

    /// Parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn fill_info(&mut self) -> Result<(), Error> {
        self.info.degrees = self.degrees();
        self.check_degree()?;
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
        self.info.layers = layers.max(1);
        self.info.parameters = parameters;
        Ok(())
    }

    /// A graph of the whole has shardings, a graph of one device has collectives; none has both.
    fn check_kind(&self) -> Result<(), Error> {
        let mut ops = self.lists().into_iter().flat_map(|(path, _, _, ops)| {
            ops.iter().enumerate().map(move |(index, op)| (format!("{path}ops[{index}]"), op))
        });
        let Some((path, _)) = ops.find(|(_, op)| collectives::axes(op).is_some()) else { return Ok(()) };
        let is_annotated = self.lists().iter().any(|(_, inputs, parameters, ops)| {
            inputs.iter().any(|input| input.shard.is_some())
                || parameters.iter().any(|parameter| parameter.shard.is_some())
                || ops.iter().any(|op| matches!(op, Op::Shard { .. }))
        });
        if is_annotated {
            let message = "a collective in a graph with shardings; expected one or the other, since collectives \
                           make it the graph of one device";
            return Err(Error::invalid(path, message));
        }
        Ok(())
    }

    /// Whether the graph has collectives: it says what one device does.
    fn is_of_one_device(&self) -> bool {
        self.lists().iter().any(|(_, _, _, ops)| ops.iter().any(|op| collectives::axes(op).is_some()))
    }

    /// The path, inputs, parameters and operations of the graph and of each block.
    fn lists(&self) -> Vec<Lists<'_>> {
        let model = &self.model;
        let own = (String::new(), &*model.inputs, &*model.parameters, &*model.ops);
        let blocks = model.blocks.iter().map(|(name, block)| {
            (format!("blocks.{name}."), &*block.inputs, &*block.parameters, &*block.ops)
        });
        std::iter::once(own).chain(blocks).collect()
    }

    /// Whether anything depends on the degree of tensor parallelism.
    fn uses_tp(&self) -> bool {
        let of_tp = |axis: &Axis| matches!(axis, Axis::Tp | Axis::Sp);
        let splits = |shard: &Option<Vec<Split>>| shard.iter().flatten().flat_map(|s| &s.0).any(of_tp);
        let divides = |shape: &[Extent]| {
            shape.iter().any(|extent| matches!(extent, Extent::Product(text) if text.contains("tp")))
        };
        self.lists().into_iter().any(|(_, inputs, parameters, ops)| {
            inputs.iter().any(|input| splits(&input.shard) || divides(&input.shape))
                || parameters.iter().any(|spec| splits(&spec.shard) || divides(&spec.shape))
                || ops.iter().any(|op| match op {
                    Op::Shard { split, .. } => split.iter().flat_map(|split| &split.0).any(of_tp),
                    _ => collectives::axes(op).is_some_and(|axes| axes.iter().any(of_tp)),
                })
        })
    }

    /// The degrees of tensor parallelism that divide what they split, ascending.
    fn degrees(&self) -> Vec<u64> {
        if !self.uses_tp() {
            return vec![1];
        }
        (1..=LARGEST_DEGREE).filter(|&tp| self.check_sizes(&self.sizes.at(tp)).is_ok()).collect()
    }

    /// Every split divides its dimension.
    fn check_sizes(&self, sizes: &Sizes) -> Result<(), Error> {
        for (path, inputs, parameters, _) in self.lists() {
            for (index, input) in inputs.iter().enumerate() {
                check_splits(sizes, &format!("{path}inputs[{index}]"), &input.shape, &input.shard)?;
            }
            for (index, spec) in parameters.iter().enumerate() {
                check_splits(sizes, &format!("{path}parameters[{index}]"), &spec.shape, &spec.shard)?;
            }
        }
        Ok(())
    }

    /// Whole sequences are split among the devices of `dp` and `ep`, where that is promised.
    fn check_batch(&self) -> Result<(), Error> {
        let promises =
            |op: &Op| matches!(op, Op::Attention { aligned: true, .. } | Op::Lookup { aligned: true, .. });
        let groups = self.info.dp * self.info.ep;
        match self.info.batch {
            Some(batch) if !batch.is_multiple_of(groups) => {
                if !self.lists().iter().any(|(_, _, _, ops)| ops.iter().any(promises)) {
                    return Ok(());
                }
                let option = if self.info.dp > 1 { "--dp" } else { "--ep" };
                let value = if self.info.dp > 1 { self.info.dp } else { self.info.ep };
                let reason =
                    format!("{groups} groups of devices do not divide the batch of {batch} sequences");
                Err(Error::Option { option, value: value.to_string(), reason })
            }
            _ => Ok(()),
        }
    }

    fn check_degree(&self) -> Result<(), Error> {
        self.check_batch()?;
        let tp = self.info.tp;
        if tp > 1 && !self.uses_tp() {
            let reason = "no parameter is sharded; expected 1".into();
            return Err(Error::Option { option: "--tp", value: tp.to_string(), reason });
        }
        self.check_sizes(&self.sizes).map_err(|error| match error {
            Error::Indivisible { field, value, divisor, by, .. } => {
                let fits =
                    if divisor == "--tp" || divisor == "tp" { self.info.degrees.clone() } else { vec![] };
                Error::Indivisible { field, value, divisor, by, fits }
            }
            other => other,
        })
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
        let count = self.sizes.extent(&path, count)?;
        if count > MOST_REPETITIONS {
            let message = format!("impossible size {count}; expected 1 to {MOST_REPETITIONS}");
            return Err(Error::invalid(path, message));
        }
        Ok(count)
    }

    fn parameters(&self, path: &str, specs: &[ParameterSpec], prefix: &str) -> Result<Vec<Parameter>, Error> {
        let parameter = |(index, spec): (usize, &ParameterSpec)| {
            let path = format!("{path}[{index}]");
            let shape = self.sizes.shape(&format!("{path}.shape"), &spec.shape)?;
            if let Some(shard) = &spec.shard {
                check_shard(&format!("{path}.shard"), shard, shape.len())?;
            }
            let split = self.splits(&spec.shard, shape.len());
            let name = format!("{prefix}{}", spec.name);
            Ok(Parameter::whole(&name, shape.clone(), &shape, split, self.element))
        };
        specs.iter().enumerate().map(parameter).collect()
    }

    /// What splits each dimension, as positions in the grid.
    fn splits(&self, shard: &Option<Vec<Split>>, rank: usize) -> Vec<Vec<usize>> {
        shard.as_ref().map_or_else(|| vec![Vec::new(); rank], |shard| self.sizes.degrees.splits(shard))
    }

    fn splits_of_parameter(&self, spec: &ParameterSpec) -> Splits {
        self.splits(&spec.shard, spec.shape.len())
    }

    /// The type of an input.
    fn input_type(&self, path: &str, input: &Input) -> Result<TensorType, Error> {
        let element = match input.dtype {
            Some(DType::I32) => Element::I32,
            Some(dtype) => element(dtype),
            None => self.element,
        };
        Ok(TensorType::new(self.sizes.shape(&format!("{path}.shape"), &input.shape)?, element))
    }
}

/// The devices that split a dimension divide it.
fn check_splits(
    sizes: &Sizes,
    path: &str,
    shape: &[Extent],
    shard: &Option<Vec<Split>>,
) -> Result<(), Error> {
    let shape = sizes.shape(&format!("{path}.shape"), shape)?;
    let Some(shard) = shard else { return Ok(()) };
    check_shard(&format!("{path}.shard"), shard, shape.len())?;
    for (dimension, (&value, split)) in shape.iter().zip(shard).enumerate() {
        let by = sizes.degrees.group(&split.0);
        if value.is_multiple_of(by) {
            continue;
        }
        let present: Vec<String> = split
            .0
            .iter()
            .map(|axis| match axis {
                Axis::Sp => "--tp".to_owned(),
                axis => format!("--{}", axis.name()),
            })
            .collect();
        return Err(Error::Indivisible {
            field: Field::new(format!("{path}.shape[{dimension}]")),
            value,
            divisor: present.join(" * "),
            by,
            fits: Vec::new(),
        });
    }
    Ok(())
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
