//! A decoder's configuration: the one table of what differs between families.
//!
//! Fields have the names that Hugging Face gives them, so that errors name what the user wrote.

use t3c_ir::Element;

use crate::error::{Error, Field};

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
    /// Even: rotary embedding turns pairs.
    pub head_dim: u64,
    pub max_position_embeddings: u64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub rope: Rope,
    pub activation: Activation,
    /// Element type of the checkpoint.
    pub dtype: Element,
    /// What the family's checkpoints call their tensors.
    pub names: TensorNames,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// What was done to reach longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
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
}

/// The function on the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Silu,
    Gelu,
    GeluTanh,
}

/// The checkpoint's names: modules, to which `.weight` is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
}

impl TensorNames {
    /// Llama's, which most families share.
    pub const LLAMA: Self = Self {
        embedding: "model.embed_tokens",
        layers: "model.layers",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
        attention_norm: "input_layernorm",
        mlp_norm: "post_attention_layernorm",
        final_norm: "model.norm",
        head: "lm_head",
    };
}

/// No tensor and no model has more elements: beyond it, bytes overflow sooner or later.
const LOG2_MOST_ELEMENTS: u32 = 48;
/// Deeper models than any that exists, and few enough to build.
const MOST_LAYERS: u64 = 4096;

impl DecoderConfig {
    /// Query heads that share a KV head.
    pub fn groups(&self) -> u64 {
        self.num_attention_heads / self.num_key_value_heads.max(1)
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
            let message = format!("{} is odd; rotary embedding turns pairs", self.head_dim);
            return Err(Error::invalid("head_dim", message));
        }
        self.check_products()
    }

    fn check_ranges(&self) -> Result<(), Error> {
        let ids = i32::MAX as u64;
        let sizes = [
            ("vocab_size", self.vocab_size, ids),
            ("hidden_size", self.hidden_size, ids),
            ("intermediate_size", self.intermediate_size, ids),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, ids),
            ("num_key_value_heads", self.num_key_value_heads, ids),
            ("head_dim", self.head_dim, ids),
            ("max_position_embeddings", self.max_position_embeddings, ids),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Error::invalid(name, format!("impossible size {value}; expected 1 to {most}")));
            }
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let message = format!("{} is no small positive number", self.rms_norm_eps);
            return Err(Error::invalid("rms_norm_eps", message));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(Error::invalid("rope_theta", format!("{} is no positive number", self.rope.theta)));
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
        let embedding =
            within(&[self.vocab_size, d]).ok_or_else(|| too_large("vocab_size", "the embedding"))?;
        let layer = 4 * projection + 3 * mlp;
        within(&[layer, self.num_hidden_layers])
            .and_then(|layers| layers.checked_add(2 * embedding))
            .filter(|&total| total <= most)
            .map(drop)
            .ok_or_else(|| too_large("num_hidden_layers", "the model"))
    }

    /// Checks that the activations of calls of these many rows can be addressed.
    pub(super) fn check_activations(&self, rows: &[u64]) -> Result<(), Error> {
        let widest = [
            self.vocab_size,
            self.intermediate_size,
            self.hidden_size,
            self.num_attention_heads * self.head_dim,
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

    /// Checks a degree of tensor parallelism.
    pub(super) fn check_degree(&self, tp: u64) -> Result<(), Error> {
        let fits = self.degrees();
        if fits.contains(&tp) {
            return Ok(());
        }
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("intermediate_size", self.intermediate_size),
        ];
        let (name, value) = sizes.into_iter().find(|(_, size)| size % tp != 0).unwrap_or(sizes[1]);
        Err(Error::Indivisible { field: Field::new(name), value, divisor: "--tp".into(), by: tp, fits })
    }
}
