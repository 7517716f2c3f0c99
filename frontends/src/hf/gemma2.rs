//! `gemma2`: embeddings times √d, norms with `1 + w` before and after each block, a window on every other layer, a
//! query scale of its own, and soft caps on scores and logits.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, Norm, Residual, TensorNames},
    error::Error,
    json::Size,
};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    // Newer files say `hidden_activation`; first ones only `hidden_act`, which then meant the same.
    spelling: &[("hidden_act", "hidden_activation")],
    names: TensorNames { mlp_norm: "pre_feedforward_layernorm", ..TensorNames::LLAMA },
    defaults: Defaults {
        context: 8192,
        activation: "gelu_pytorch_tanh",
        tied: true,
        head_dim: Some(256),
        ..Defaults::LLAMA
    },
    adapt,
};

/// Fields that a file may leave out.
const SCALAR: f64 = 256.0;
const WINDOW: u64 = 4096;
const CAPS: (f64, f64) = (50.0, 30.0);

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    config.norm = Norm::RmsPlusOne;
    config.residual = Residual::Sandwich;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    config.query_scale = Some(1.0 / fields.or("query_pre_attn_scalar", SCALAR)?.sqrt());
    config.attention_softcap = fields.nullable("attn_logit_softcapping", CAPS.0)?;
    config.logit_softcap = fields.nullable("final_logit_softcapping", CAPS.1)?;
    let bias = fields.or("attention_bias", false)?;
    config.biases = Biases { query_key_value: bias, output: bias, mlp: false };
    fields.only("use_bidirectional_attention", false, false)?;
    let window = fields.nullable("sliding_window", Size(WINDOW))?.map(|size| size.0);
    fields.windows(config, window, |layer| layer % 2 == 0)
}
