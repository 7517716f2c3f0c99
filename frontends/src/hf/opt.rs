//! `opt`: learned positions behind two unused rows, norms before or after the blocks, and in one size an embedding
//! narrower than the model.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, Norm, Position, Residual, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "opt",
    spelling: &[("intermediate_size", "ffn_dim"), ("hidden_act", "activation_function")],
    names: TensorNames {
        embedding: "model.decoder.embed_tokens",
        positions: "model.decoder.embed_positions",
        project_in: "model.decoder.project_in",
        project_out: "model.decoder.project_out",
        layers: "model.decoder.layers",
        output: "self_attn.out_proj",
        up: "fc1",
        down: "fc2",
        attention_norm: "self_attn_layer_norm",
        mlp_norm: "final_layer_norm",
        final_norm: "model.decoder.final_layer_norm",
        ..TensorNames::LLAMA
    },
    defaults: Defaults { eps: 1e-5, activation: "relu", tied: true, ..Defaults::LLAMA },
    adapt,
};

/// Rows of the table of positions before the first position's.
const OFFSET: u64 = 2;

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    let before = fields.or("do_layer_norm_before", true)?;
    config.position = Position::Learned { offset: OFFSET };
    config.norm = Norm::Layer;
    config.residual = if before { Residual::Pre } else { Residual::Post };
    config.final_norm = before && !fields.or("_remove_final_layer_norm", false)?;
    config.gated = false;
    if fields.or("enable_bias", true)? {
        config.biases = Biases::ALL;
    }
    let size = fields.size_or("word_embed_proj_dim", config.hidden_size)?;
    config.embedding_size = (size != config.hidden_size).then_some(size);
    fields.only("layer_norm_elementwise_affine", true, true)
}
