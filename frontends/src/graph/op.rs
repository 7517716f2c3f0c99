//! The operations of `model.json`.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{Axis, DType, Extent, Split};

/// How contributions are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Added.
    #[default]
    Sum,
    /// The largest.
    Max,
}

macro_rules! operations {
    ($($(#[$meta:meta])* $variant:ident { $($field:tt)* })*) => {
        /// An operation. `name` stands in locations and remarks; the result's name where it is left out.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
        #[allow(missing_docs)]
        pub enum Op {
            $($(#[$meta])* $variant { result: String, $($field)* name: Option<String> },)*
            /// A block, `count` times: its outputs are the next repetition's first inputs. Parameters are named
            /// `<prefix>.<i>.<name>`.
            Repeat { block: String, count: Extent, prefix: String, inputs: Vec<String>, results: Vec<String> },
        }

        impl Op {
            /// The name for its location.
            pub(super) fn label(&self) -> Cow<'_, str> {
                match self {
                    $(Self::$variant { result, name, .. } => name.as_ref().unwrap_or(result).into(),)*
                    Self::Repeat { prefix, .. } => prefix.into(),
                }
            }
        }
    };
}

operations! {
    /// A contraction by an equation such as `nd,fd->nf`: letters missing from the result are summed over.
    Contract { inputs: [String; 2], equation: String, }
    /// A sum, elementwise; with an equation such as `nf,f->nf`, broadcast.
    Add { inputs: [String; 2], equation: Option<String>, }
    /// A difference, elementwise; with an equation, broadcast.
    Sub { inputs: [String; 2], equation: Option<String>, }
    /// A product, elementwise; with an equation, broadcast.
    Mul { inputs: [String; 2], equation: Option<String>, }
    /// A quotient, elementwise; with an equation, broadcast.
    Div { inputs: [String; 2], equation: Option<String>, }
    /// The larger, elementwise; with an equation, broadcast.
    Max { inputs: [String; 2], equation: Option<String>, }
    /// The smaller, elementwise; with an equation, broadcast.
    Min { inputs: [String; 2], equation: Option<String>, }
    /// `factor · x`.
    Scale { input: String, factor: f64, }
    /// `x + by`.
    Shift { input: String, by: f64, }
    /// `−x`.
    Neg { input: String, }
    /// `|x|`.
    Abs { input: String, }
    /// `x²`.
    Square { input: String, }
    /// `√x`.
    Sqrt { input: String, }
    /// `1 / √x`.
    Rsqrt { input: String, }
    /// `eˣ`.
    Exp { input: String, }
    /// The natural logarithm.
    Log { input: String, }
    /// The hyperbolic tangent.
    Tanh { input: String, }
    /// `σ(x) = 1 / (1 + e⁻ˣ)`.
    Sigmoid { input: String, }
    /// `x · σ(x)`.
    Silu { input: String, }
    /// `x · Φ(x)`.
    Gelu { input: String, }
    /// GELU by tanh.
    GeluTanh { input: String, }
    /// `max(x, 0)`.
    Relu { input: String, }
    /// The sum over the letters that an equation such as `nd->` drops.
    Sum { input: String, equation: String, }
    /// The mean over the letters that an equation drops.
    Mean { input: String, equation: String, }
    /// The largest over the letters that an equation drops.
    Largest { input: String, equation: String, }
    /// `e^(x − max) / Σ e^(x − max)` along a dimension, the last where it is left out.
    Softmax { input: String, dimension: Option<usize>, }
    /// `x / √(mean x² + eps) · weight` over the last of two dimensions.
    RmsNorm { input: String, weight: String, eps: f64, }
    /// `(x − mean) / √(variance + eps) · weight + bias` over the last of two dimensions.
    LayerNorm { input: String, weight: String, bias: String, eps: f64, }
    /// Dimensions in another order, by an equation such as `nd->dn`.
    Transpose { input: String, equation: String, }
    /// Copies along the letters that only the result of an equation such as `d->nd` has; `extents` gives their sizes.
    Broadcast { input: String, equation: String, extents: BTreeMap<char, Extent>, }
    /// Another element type.
    Cast { input: String, dtype: DType, }
    /// One number everywhere.
    Constant { value: f64, shape: Vec<Extent>, dtype: Option<DType>, }
    /// The part at `index` of the one letter that an equation such as `nckh->nkh` drops; letters that only the
    /// result has are dimensions of extent 1.
    Take { input: String, equation: String, index: u64, }
    /// Rows `ids` (i32) of a table. `aligned` promises that, where rows are split among devices, each device's ids
    /// point into its own rows.
    Lookup { table: String, ids: String, #[serde(default)] aligned: bool, }
    /// Attention of `q [N, K, G, C, E]` to `k [N, K, C, E]` and `v [N, K, C·E]`; token `j` is visible to `i` where
    /// `j ≤ i < subtree_end[j]` (i32). The result is `[N, K, G, C·E]`. Scores are scaled by `scale` [default:
    /// `1/√(C·E)`] and bounded by `softcap · tanh(score / softcap)`; `window` keeps the last so many positions,
    /// which `position` (i32) tells. `aligned` promises that no sequence lies on two devices where tokens are split.
    Attention {
        q: String, k: String, v: String, subtree_end: String, position: Option<String>, scale: Option<f64>,
        softcap: Option<f64>, window: Option<u64>, #[serde(default)] aligned: bool,
    }
    /// The mean over rows of `−log softmax(logits [M, V])[targets [M]]` (i32); with `weights [M]`, the sum of
    /// weighted rows.
    CrossEntropy { logits: String, targets: String, weights: Option<String>, }
    /// The mean of `(input − target)²` over all elements.
    MeanSquaredError { input: String, target: String, }
    /// The same tensor, split so: a sharding that is asked for.
    Shard { input: String, split: Vec<Split>, }
    /// Each device's tensor combined with all others' along `axes`. This and the following operations make a graph
    /// of what one device does: nothing in it may have a sharding, and its shapes are a device's.
    AllReduce { input: String, axes: Vec<Axis>, #[serde(default)] combine: Combine, }
    /// The devices' tensors, one after the other along `dimension`.
    AllGather { input: String, axes: Vec<Axis>, dimension: usize, }
    /// The device's part, along `dimension`, of the combined tensor.
    ReduceScatter { input: String, axes: Vec<Axis>, dimension: usize, #[serde(default)] combine: Combine, }
    /// The device's part, along `dimension`, of a tensor that every device has.
    AllSlice { input: String, axes: Vec<Axis>, dimension: usize, }
    /// Parts along `split` go to one device each; what arrives lies one after the other along `concatenate`.
    AllToAll { input: String, axes: Vec<Axis>, split: usize, concatenate: usize, }
}
