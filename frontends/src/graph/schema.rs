//! The types of `model.json`. They are what a graph is built from in Rust, too: the file is only their JSON.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::op::Op;
use crate::json::Size;

/// A graph that is no Hugging Face model: named tensors, operations on them, and how parameters are sharded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Always `t3c.model/1`.
    pub schema: String,
    /// The model's name, in summaries.
    pub name: String,
    /// For readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Element type of tensors that state none.
    #[serde(default)]
    pub dtype: DType,
    /// Named sizes, for shapes. `--batch` and `--seq` replace those called `batch` and `seq`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, Size>,
    /// Degrees where the command line says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<Parallelism>,
    /// Arguments of a call.
    pub inputs: Vec<Input>,
    /// Parameters outside blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<ParameterSpec>,
    /// Groups of operations with parameters of their own, repeated by the operation `repeat`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, Block>,
    /// Operations, in order.
    pub ops: Vec<Op>,
    /// Names of the results.
    pub outputs: Vec<String>,
    /// The scalar that training differentiates (default: an output called `loss`; without one, training takes the
    /// outputs' gradients as inputs called `seed/<name>`). Other phases leave out what only the loss needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
}

/// Element types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum DType {
    #[default]
    F32,
    F64,
    F16,
    Bf16,
    I32,
}

/// Degrees of parallelism: the axes of the device grid, in the order `dp`, `ep`, `tp`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parallelism {
    /// Tensor parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tp: Option<Size>,
    /// Data parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dp: Option<Size>,
    /// Expert parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ep: Option<Size>,
}

/// An extent: a number, or a product of numbers and named sizes such as `batch*seq`. Factors after a `/` divide, and
/// the degrees `tp`, `dp` and `ep` are sizes as well: `mlp/tp` is what one device has, for graphs with collectives.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Extent {
    /// A number.
    Number(Size),
    /// A product.
    Product(String),
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Extent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of at least 1, or a product of sizes such as \"batch*seq\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Extent, E> {
                Err(E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Extent, E> {
                if value == 0 {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(0), &self));
                }
                Ok(Extent::Number(Size(value)))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Extent, E> {
                Ok(Extent::Product(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A tensor that the caller gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<Extent>,
    /// Element type; the model's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// What splits each dimension; left out, sharding decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Vec<Split>>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    /// Its name; in a block, the repetition is put before it: `layers.3.<name>`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<Extent>,
    /// What splits each dimension; left out, the parameter is the same on every device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Vec<Split>>,
}

/// An axis of the device grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Tensor parallelism.
    Tp,
    /// Data parallelism.
    Dp,
    /// Expert parallelism.
    Ep,
    /// Sequence parallelism: the axis of tensor parallelism with `--sequence-parallel`, nothing without.
    Sp,
}

impl Axis {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Tp => "tp",
            Axis::Dp => "dp",
            Axis::Ep => "ep",
            Axis::Sp => "sp",
        }
    }
}

/// What splits a dimension: nothing (`null`), an axis (`"tp"`), or several, outermost first (`["dp", "tp"]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split(pub Vec<Axis>);

/// [`Split`] as files have it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum SplitForm {
    Axis(Axis),
    Axes(Vec<Axis>),
}

impl Serialize for Split {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => serializer.serialize_none(),
            [axis] => axis.serialize(serializer),
            axes => axes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Split {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Option::<SplitForm>::deserialize(deserializer).map_err(|_| {
            de::Error::custom("expected null, an axis (dp, ep, tp or sp), or a list of axes, outermost first")
        })?;
        Ok(Split(match form {
            None => Vec::new(),
            Some(SplitForm::Axis(axis)) => vec![axis],
            Some(SplitForm::Axes(axes)) => axes,
        }))
    }
}

impl JsonSchema for Split {
    fn schema_name() -> Cow<'static, str> {
        "Split".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Option::<SplitForm>::json_schema(generator);
        schema.insert(
            "description".into(),
            "What splits a dimension: nothing, an axis, or several, outermost first.".into(),
        );
        schema
    }
}

/// Operations with parameters of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// What it is given.
    pub inputs: Vec<Input>,
    /// Its parameters, anew in each repetition.
    #[serde(default)]
    pub parameters: Vec<ParameterSpec>,
    /// Operations, in order; none of them `repeat`.
    pub ops: Vec<Op>,
    /// Names of its results. In a repetition they are the next one's first inputs.
    pub outputs: Vec<String>,
}
