//! A decoder's configuration: the one table of what differs between families.
//!
//! Fields have the names that most of Hugging Face's configurations give them; a family that spells one
//! differently says so in [`DecoderConfig::spelling`], so that errors name what the user wrote.

use t3c_ir::Element;

use super::names::TensorNames;
use crate::{
    error::{Error, Field},
    json::Source,
};

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct DecoderConfig {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    /// Even: heads are halves.
    pub head_dim: u64,
    pub max_position_embeddings: u64,
    /// The epsilon of every norm.
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// The embedding's width, where it is not the hidden size (`word_embed_proj_dim`).
    pub embedding_size: Option<u64>,
    /// What embeddings are multiplied with.
    pub embedding_scale: Option<f64>,
    pub position: Position,
    pub norm: Norm,
    pub residual: Residual,
    /// Whether a norm stands before the head.
    pub final_norm: bool,
    pub activation: Activation,
    /// Whether the MLP is `down(activation(gate) · up)`; else `down(activation(up))`.
    pub gated: bool,
    pub biases: Biases,
    /// What scores are multiplied with; `None` is 1/√head_dim.
    pub query_scale: Option<f64>,
    /// Whether heads of queries and keys are normalised.
    pub query_key_norm: bool,
    /// Scores become `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// Logits likewise.
    pub logit_softcap: Option<f64>,
    pub experts: Option<Experts>,
    /// The kind of each layer; those beyond the list are of the default kind.
    pub layers: Vec<LayerKind>,
    /// Element type of the checkpoint.
    pub dtype: Element,
    /// What the family's checkpoints call their tensors.
    pub names: TensorNames,
    /// Fields that the family calls otherwise: our name, theirs.
    pub spelling: &'static [(&'static str, &'static str)],
}

/// How a token's position enters.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// Pairs of the dimensions of queries and keys are rotated.
    Rotary(Rope),
    /// A row of a table is added to the embedding. The checkpoint's table has `offset` rows before the first
    /// position's.
    Learned {
        /// Rows that no position reads.
        offset: u64,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// What was done to reach longer contexts.
    pub scaling: RopeScaling,
    /// The share of a head's dimensions that are rotated: its first.
    pub partial: f64,
}

impl Rope {
    /// A rotation of all dimensions with unscaled frequencies.
    pub fn new(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default, partial: 1.0 }
    }

    /// The dimensions of a head that are rotated.
    pub fn rotated(&self, head_dim: u64) -> u64 {
        (head_dim as f64 * self.partial) as u64
    }
}

/// How frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with the length of the call, beyond the context of training.
    Dynamic {
        /// How much longer than the context a call may be.
        factor: f64,
        /// The context.
        context: f64,
    },
    /// YaRN: high frequencies kept, low ones divided, a ramp between.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// The factor on cos and sin.
        attention_factor: f64,
        /// Turns in the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// The context that the model was first trained for.
        original_context: f64,
        /// Whether the ramp's ends are whole pairs.
        truncate: bool,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original_context / high` are high frequencies.
        high: f64,
        /// The context that the model was first trained for.
        original_context: f64,
    },
    /// LongRoPE: a divisor for each pair, another set for calls beyond the original context.
    LongRope {
        /// Divisors up to the original context.
        short: Vec<f64>,
        /// Divisors beyond it.
        long: Vec<f64>,
        /// The context that the model was first trained for.
        original_context: f64,
        /// The factor on cos and sin.
        attention_factor: f64,
    },
}

/// What normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms · w`.
    Rms,
    /// `x / rms · (1 + w)`.
    RmsPlusOne,
    /// `(x − mean) / deviation · w + b`.
    Layer,
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x + f(norm(x))`, attention then MLP.
    Pre,
    /// `norm(x + f(x))`.
    Post,
    /// `x + norm(f(norm(x)))`.
    Sandwich,
    /// `x + attention(norm(x)) + mlp(norm'(x))`.
    Parallel,
}

/// The function on the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Silu,
    Gelu,
    GeluTanh,
    /// `x · σ(1.702 x)`.
    QuickGelu,
    Relu,
}

/// Which products add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Biases {
    pub query_key_value: bool,
    pub output: bool,
    pub mlp: bool,
}

impl Biases {
    /// Every product of a layer.
    pub const ALL: Self = Self { query_key_value: true, output: true, mlp: true };
}

/// A mixture of experts in place of an MLP.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Experts {
    pub num_experts: u64,
    pub num_experts_per_tok: u64,
    pub moe_intermediate_size: u64,
    /// Whether the probabilities of a token's experts are made to sum to 1.
    pub norm_topk_prob: bool,
    /// The weight of the routers' load balance in the loss; 0 leaves it out.
    pub router_aux_loss_coef: f64,
}

/// What may differ between the layers of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerKind {
    /// A token sees tokens at a distance below this.
    pub window: Option<u64>,
    /// Whether experts stand in place of the MLP.
    pub experts: bool,
}

/// No tensor and no model has more elements: beyond it, bytes overflow sooner or later.
const LOG2_MOST_ELEMENTS: u32 = 48;
/// Deeper models than any that exists, and few enough to build.
pub(crate) const MOST_LAYERS: u64 = 4096;
/// More experts than any model has.
const MOST_EXPERTS: u64 = 4096;

impl DecoderConfig {
    /// A model of Llama's kind without its sizes, from which others say in what they differ.
    pub fn llama() -> Self {
        Self {
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            embedding_size: None,
            embedding_scale: None,
            position: Position::Rotary(Rope::new(10_000.0)),
            norm: Norm::Rms,
            residual: Residual::Pre,
            final_norm: true,
            activation: Activation::Silu,
            gated: true,
            biases: Biases::default(),
            query_scale: None,
            query_key_norm: false,
            attention_softcap: None,
            logit_softcap: None,
            experts: None,
            layers: Vec::new(),
            dtype: Element::F32,
            names: TensorNames::LLAMA,
            spelling: &[],
        }
    }

    /// Query heads that share a KV head.
    pub fn groups(&self) -> u64 {
        self.num_attention_heads / self.num_key_value_heads.max(1)
    }

    /// The kind of a layer.
    pub fn layer_kind(&self, layer: u64) -> LayerKind {
        self.layers.get(layer as usize).copied().unwrap_or_default()
    }

    /// The kinds of layers that the model has, in the order in which they are met.
    pub fn layer_kinds(&self) -> Vec<LayerKind> {
        let mut kinds = Vec::new();
        for kind in (0..self.num_hidden_layers).map(|layer| self.layer_kind(layer)) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// Positions that the model can address: more than the trained context where frequencies are scaled for it.
    pub fn context(&self) -> u64 {
        let scaled = match &self.position {
            Position::Rotary(Rope { scaling: RopeScaling::Dynamic { factor, context }, .. }) => {
                (factor * context) as u64
            }
            Position::Rotary(Rope {
                scaling: RopeScaling::Yarn { factor, original_context, .. }, ..
            }) => (factor * original_context) as u64,
            _ => 0,
        };
        self.max_position_embeddings.max(scaled)
    }

    pub(crate) fn rope(&self) -> Option<&Rope> {
        match &self.position {
            Position::Rotary(rope) => Some(rope),
            Position::Learned { .. } => None,
        }
    }

    /// What the family calls a field; where it has two spellings, the one that the file has.
    pub(crate) fn spell<'n>(&self, field: &'n str, source: Option<&Source>) -> &'n str {
        spell(self.spelling, field, source)
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), Error> {
        self.check_ranges()?;
        let indivisible = |field, value: u64, divisor: &str, by: u64| Error::Indivisible {
            field: Field::new(field),
            value,
            divisor: format!("`{divisor}`"),
            by,
            fits: Vec::new(),
        };
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
            return Err(indivisible("num_attention_heads", heads, "num_key_value_heads", kv));
        }
        if !self.head_dim.is_multiple_of(2) {
            let message = format!("{} is odd; heads are split in halves", self.head_dim);
            return Err(Error::invalid("head_dim", message));
        }
        if self.names.fused == super::names::Fused::Heads && self.groups() != 1 {
            let message =
                "differs from `num_attention_heads`, but query, key and value share a tensor by head";
            return Err(Error::invalid("num_key_value_heads", message));
        }
        self.check_rope()?;
        self.check_products()
    }

    fn check_ranges(&self) -> Result<(), Error> {
        let ids = i32::MAX as u64;
        let mut sizes = vec![
            ("vocab_size", self.vocab_size, ids),
            ("hidden_size", self.hidden_size, ids),
            ("intermediate_size", self.intermediate_size, ids),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, ids),
            ("num_key_value_heads", self.num_key_value_heads, ids),
            ("head_dim", self.head_dim, ids),
            ("max_position_embeddings", self.max_position_embeddings, ids),
            ("word_embed_proj_dim", self.embedding_size.unwrap_or(1), ids),
        ];
        if let Some(experts) = &self.experts {
            sizes.push(("num_experts", experts.num_experts, MOST_EXPERTS));
            sizes.push(("num_experts_per_tok", experts.num_experts_per_tok, experts.num_experts));
            sizes.push(("moe_intermediate_size", experts.moe_intermediate_size, ids));
        }
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Error::invalid(name, format!("impossible size {value}; expected 1 to {most}")));
            }
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let message = format!("{} is no small positive number", self.rms_norm_eps);
            return Err(Error::invalid("rms_norm_eps", message));
        }
        let positive = [
            ("query_pre_attn_scalar", self.query_scale),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
            ("rope_theta", self.rope().map(|rope| rope.theta)),
        ];
        for (name, value) in positive {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(Error::invalid(name, format!("{value} is no positive number")));
            }
        }
        if self.layers.iter().any(|kind| kind.window == Some(0)) {
            return Err(Error::invalid("sliding_window", "a window of 0 tokens; expected at least 1"));
        }
        Ok(())
    }

    fn check_rope(&self) -> Result<(), Error> {
        let Some(rope) = self.rope() else { return Ok(()) };
        let rotated = rope.rotated(self.head_dim);
        if !(rope.partial > 0.0 && rope.partial <= 1.0) || rotated < 2 || !rotated.is_multiple_of(2) {
            let message = format!(
                "{} of heads of {} dimensions; expected an even number of them, at least 2",
                rope.partial, self.head_dim
            );
            return Err(Error::invalid("partial_rotary_factor", message));
        }
        if let RopeScaling::LongRope { short, long, .. } = &rope.scaling {
            for (name, factors) in [("short_factor", short), ("long_factor", long)] {
                if factors.len() as u64 != rotated / 2 {
                    let message = format!("{} factors; expected {}", factors.len(), rotated / 2);
                    return Err(Error::invalid(format!("rope_scaling.{name}"), message));
                }
            }
        }
        if matches!(rope.scaling, RopeScaling::Dynamic { .. }) && rotated == 2 {
            return Err(Error::invalid("head_dim", "dynamic scaling needs heads of at least 4 dimensions"));
        }
        Ok(())
    }

    fn check_products(&self) -> Result<(), Error> {
        let most = 1_u64 << LOG2_MOST_ELEMENTS;
        let too_large = |field: &str, what: &str| Error::TooLarge {
            field: Field::new(field),
            what: what.to_owned(),
            log2_limit: LOG2_MOST_ELEMENTS,
        };
        let within = |factors: &[u64]| {
            factors
                .iter()
                .try_fold(1_u64, |product, &factor| product.checked_mul(factor))
                .filter(|&p| p <= most)
        };
        let (d, n) = (self.hidden_size, self.num_attention_heads);
        let projection = within(&[n, self.head_dim, d])
            .ok_or_else(|| too_large("num_attention_heads", "the query projection"))?;
        let mlp = within(&[self.intermediate_size, d])
            .ok_or_else(|| too_large("intermediate_size", "the MLP's weight"))?;
        let experts = match &self.experts {
            Some(experts) => within(&[experts.num_experts, experts.moe_intermediate_size, d])
                .ok_or_else(|| too_large("num_experts", "the experts' weight"))?,
            None => 0,
        };
        let embedding = within(&[self.vocab_size, self.embedding_size.unwrap_or(d)])
            .ok_or_else(|| too_large("vocab_size", "the embedding"))?;
        let layer = 4 * projection + 3 * mlp.max(experts);
        within(&[layer, self.num_hidden_layers])
            .and_then(|layers| layers.checked_add(2 * embedding))
            .filter(|&total| total <= most)
            .map(drop)
            .ok_or_else(|| too_large("num_hidden_layers", "the model"))
    }

    /// Checks that the activations of calls of these many rows can be addressed.
    pub(super) fn check_activations(&self, rows: &[u64]) -> Result<(), Error> {
        let experts = self
            .experts
            .as_ref()
            .map_or(0, |experts| experts.num_experts_per_tok * experts.moe_intermediate_size);
        let widest = [
            self.vocab_size,
            self.intermediate_size,
            self.hidden_size,
            self.num_attention_heads * self.head_dim,
            experts,
        ]
        .into_iter()
        .max()
        .unwrap_or(1);
        let fits = |rows: u64| rows.checked_mul(widest).is_some_and(|n| n <= 1 << LOG2_MOST_ELEMENTS);
        match rows.iter().find(|&&rows| !fits(rows)) {
            None => Ok(()),
            Some(rows) => Err(Error::Option {
                option: "--batch",
                value: rows.to_string(),
                reason: format!("activations of more than 2^{LOG2_MOST_ELEMENTS} elements"),
            }),
        }
    }
}

/// See [`DecoderConfig::spell`].
pub(crate) fn spell<'n>(
    spelling: &'static [(&'static str, &'static str)],
    field: &'n str,
    source: Option<&Source>,
) -> &'n str {
    let mut names = spelling.iter().filter(|(ours, _)| *ours == field).map(|(_, theirs)| *theirs).peekable();
    let first = names.peek().copied();
    let present = names.find(|name| source.is_some_and(|source| source.has(name)));
    match (present, first) {
        (Some(name), _) => name,
        (None, Some(name)) if !source.is_some_and(|source| source.has(field)) => name,
        _ => field,
    }
}
