//! `gpt2`: learned positions, layer norms, biases everywhere, matrices stored in × out.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, Fused, Norm, Position, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    spelling: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("num_key_value_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
    ],
    names: TensorNames {
        embedding: "transformer.wte",
        positions: "transformer.wpe",
        layers: "transformer.h",
        query: "attn.c_attn",
        key: "attn.c_attn",
        value: "attn.c_attn",
        output: "attn.c_proj",
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        attention_norm: "ln_1",
        mlp_norm: "ln_2",
        final_norm: "transformer.ln_f",
        fused: Fused::Blocks,
        transposed: true,
        ..TensorNames::LLAMA
    },
    defaults: Defaults {
        context: 1024,
        eps: 1e-5,
        activation: "gelu_new",
        tied: true,
        widening: Some(4),
        ..Defaults::LLAMA
    },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    config.position = Position::Learned { offset: 0 };
    config.norm = Norm::Layer;
    config.gated = false;
    config.biases = Biases::ALL;
    if !fields.or("scale_attn_weights", true)? {
        config.query_scale = Some(1.0);
    }
    fields.only("scale_attn_by_inverse_layer_idx", false, false)?;
    fields.only("add_cross_attention", false, false)
}
