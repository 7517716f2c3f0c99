//! `llama`: Llama 2 and 3, SmolLM2, and the many models that share their architecture.

use serde::Deserialize;

use super::rope::{RopeFields, RopeParameters};
use crate::{
    decoder::{Activation, DecoderConfig, TensorNames},
    error::{Error, Field},
    json::{Size, Source},
};

/// The fields that matter to the graph; the others (token ids, dropout, initialisation) are left alone.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Option<Size>,
    #[serde(default = "default_context")]
    max_position_embeddings: Size,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
}

// The defaults of `LlamaConfig` in transformers.
fn default_context() -> Size {
    Size(2048)
}
fn default_eps() -> f64 {
    1e-6
}
fn default_activation() -> String {
    "silu".into()
}

pub(super) fn read(source: &Source) -> Result<DecoderConfig, Error> {
    let config: Config = source.read()?;
    for (name, value) in [("attention_bias", config.attention_bias), ("mlp_bias", config.mlp_bias)] {
        if value {
            return Err(Error::unsupported(Field::new(name), "true", &["false"]));
        }
    }
    if config.hidden_act != "silu" {
        return Err(Error::unsupported(Field::new("hidden_act"), &config.hidden_act, &["silu"]));
    }
    let (hidden, heads) = (config.hidden_size.0, config.num_attention_heads.0);
    let head_dim = match config.head_dim {
        Some(size) => size.0,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(Error::Indivisible {
                field: Field::new("hidden_size"),
                value: hidden,
                divisor: "`num_attention_heads`".into(),
                by: heads,
                fits: Vec::new(),
            });
        }
    };
    let rope = RopeFields {
        theta: config.rope_theta,
        scaling: config.rope_scaling.as_ref(),
        parameters: config.rope_parameters.as_ref(),
    };
    let (dtype_field, dtype) = match &config.dtype {
        Some(dtype) => ("dtype", Some(dtype)),
        None => ("torch_dtype", config.torch_dtype.as_ref()),
    };
    Ok(DecoderConfig {
        vocab_size: config.vocab_size.0,
        hidden_size: hidden,
        intermediate_size: config.intermediate_size.0,
        num_hidden_layers: config.num_hidden_layers.0,
        num_attention_heads: heads,
        num_key_value_heads: config.num_key_value_heads.map_or(heads, |size| size.0),
        head_dim,
        max_position_embeddings: config.max_position_embeddings.0,
        rms_norm_eps: config.rms_norm_eps,
        tie_word_embeddings: config.tie_word_embeddings,
        rope: rope.read(config.max_position_embeddings.0)?,
        activation: Activation::Silu,
        dtype: super::element(dtype_field, dtype.map(String::as_str))?,
        names: TensorNames::LLAMA,
    })
}
