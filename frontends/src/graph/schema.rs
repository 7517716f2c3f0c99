//! The types of `model.json`. They are what a graph is built from in Rust, too: the file is only their JSON.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

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
    /// Names of the results. A scalar called `loss` is what training differentiates; without one, training takes
    /// the results' gradients as inputs called `seed/<name>`.
    pub outputs: Vec<String>,
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

/// Degrees of parallelism.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parallelism {
    /// Tensor parallelism.
    pub tp: Size,
}

/// An extent: a number, or a product of numbers and named sizes such as `batch*seq`.
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
    pub shard: Option<Vec<Option<Axis>>>,
}

/// An axis of the device grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Tensor parallelism.
    Tp,
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

/// An operation. `name` stands in locations and remarks; the result's name where it is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Op {
    /// A contraction by an equation such as `nd,fd->nf`: letters missing from the result are summed over.
    Contract { result: String, inputs: [String; 2], equation: String, name: Option<String> },
    /// A sum, elementwise; with an equation such as `nf,f->nf`, broadcast.
    Add { result: String, inputs: [String; 2], equation: Option<String>, name: Option<String> },
    /// A product, elementwise; with an equation, broadcast.
    Mul { result: String, inputs: [String; 2], equation: Option<String>, name: Option<String> },
    /// The sum over the letters that an equation such as `nd->` drops.
    Sum { result: String, input: String, equation: String, name: Option<String> },
    /// `x · σ(x)`.
    Silu { result: String, input: String, name: Option<String> },
    /// `x · Φ(x)`.
    Gelu { result: String, input: String, name: Option<String> },
    /// GELU by tanh.
    GeluTanh { result: String, input: String, name: Option<String> },
    /// `max(x, 0)`.
    Relu { result: String, input: String, name: Option<String> },
    /// `x / √(mean x² + eps) · weight` over the last of two dimensions.
    RmsNorm { result: String, input: String, weight: String, eps: f64, name: Option<String> },
    /// `(x − mean) / √(variance + eps) · weight + bias` over the last of two dimensions.
    LayerNorm { result: String, input: String, weight: String, bias: String, eps: f64, name: Option<String> },
    /// The part at `index` of the one letter that an equation such as `nckh->nkh` drops; letters that only the
    /// result has are dimensions of extent 1.
    Take { result: String, input: String, equation: String, index: u64, name: Option<String> },
    /// Rows `ids` (i32) of a table.
    Lookup { result: String, table: String, ids: String, name: Option<String> },
    /// Attention of `q [N, K, G, C, E]` to `k [N, K, C, E]` and `v [N, K, C·E]`; token `j` is visible to `i` where
    /// `j ≤ i < subtree_end[j]` (i32). The result is `[N, K, G, C·E]`.
    Attention { result: String, q: String, k: String, v: String, subtree_end: String, name: Option<String> },
    /// A block, `count` times: its outputs are the next repetition's first inputs. Parameters are named
    /// `<prefix>.<i>.<name>`.
    Repeat { block: String, count: Extent, prefix: String, inputs: Vec<String>, results: Vec<String> },
}

impl Op {
    /// The name for its location.
    pub(super) fn label(&self) -> Cow<'_, str> {
        match self {
            Self::Contract { result, name, .. }
            | Self::Add { result, name, .. }
            | Self::Mul { result, name, .. }
            | Self::Sum { result, name, .. }
            | Self::Silu { result, name, .. }
            | Self::Gelu { result, name, .. }
            | Self::GeluTanh { result, name, .. }
            | Self::Relu { result, name, .. }
            | Self::RmsNorm { result, name, .. }
            | Self::LayerNorm { result, name, .. }
            | Self::Take { result, name, .. }
            | Self::Lookup { result, name, .. }
            | Self::Attention { result, name, .. } => name.as_ref().unwrap_or(result).into(),
            Self::Repeat { prefix, .. } => prefix.into(),
        }
    }
}
