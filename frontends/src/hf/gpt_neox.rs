//! `gpt_neox`: GPT-NeoX and Pythia. Attention and MLP read the same stream and are added together; query, key and
//! value lie head by head in one tensor; a quarter of each head is rotated.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, Fused, Norm, Residual, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    spelling: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_pct"),
    ],
    names: TensorNames {
        embedding: "gpt_neox.embed_in",
        layers: "gpt_neox.layers",
        query: "attention.query_key_value",
        key: "attention.query_key_value",
        value: "attention.query_key_value",
        output: "attention.dense",
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        final_norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
        fused: Fused::Heads,
        ..TensorNames::LLAMA
    },
    defaults: Defaults { eps: 1e-5, partial: 0.25, activation: "gelu", ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    let attention = fields.or("attention_bias", true)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: true };
    config.norm = Norm::Layer;
    config.gated = false;
    if fields.or("use_parallel_residual", true)? {
        config.residual = Residual::Parallel;
    }
    Ok(())
}
