//! `qwen3_moe`: Qwen 3 with experts on every `decoder_sparse_step`-th layer but those of `mlp_only_layers`. The
//! probabilities of a token's experts sum to 1 only where `norm_topk_prob` says so.

use super::{Defaults, Family, fields::Fields, qwen2};
use crate::{
    decoder::{Biases, DecoderConfig, Experts, LayerKind, MOST_LAYERS, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    spelling: &[("num_experts", "num_experts"), ("num_experts", "num_local_experts")],
    names: TensorNames::LLAMA,
    defaults: Defaults { context: 32_768, ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    config.query_key_norm = true;
    let bias = fields.or("attention_bias", false)?;
    config.biases = Biases { query_key_value: bias, output: bias, mlp: false };
    qwen2::uniform_window(fields, config)?;
    config.experts = Some(Experts {
        num_experts: fields.size("num_experts")?,
        num_experts_per_tok: fields.size("num_experts_per_tok")?,
        moe_intermediate_size: fields.size("moe_intermediate_size")?,
        norm_topk_prob: fields.or("norm_topk_prob", false)?,
        router_aux_loss_coef: fields.load_balance(0.001)?,
    });
    let step = fields.size_or("decoder_sparse_step", 1)?;
    let dense: Vec<u64> = fields.or("mlp_only_layers", Vec::new())?;
    let kind = |layer: u64| LayerKind {
        experts: !dense.contains(&layer) && (layer + 1).is_multiple_of(step),
        ..config.layer_kind(layer)
    };
    config.layers = (0..config.num_hidden_layers.min(MOST_LAYERS)).map(kind).collect();
    Ok(())
}
