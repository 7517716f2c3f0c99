//! `mixtral`: Mistral with experts on every layer, the probabilities of a token's experts made to sum to 1.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{DecoderConfig, Experts, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "mixtral",
    spelling: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    names: TensorNames {
        router: "block_sparse_moe.gate",
        expert_gate: "block_sparse_moe.experts.*.w1",
        expert_up: "block_sparse_moe.experts.*.w3",
        expert_down: "block_sparse_moe.experts.*.w2",
        ..TensorNames::LLAMA
    },
    defaults: Defaults { context: 131_072, eps: 1e-5, theta: 1e6, ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    fields.one_window(config)?;
    config.experts = Some(Experts {
        num_experts: fields.size_or("num_experts", 8)?,
        num_experts_per_tok: fields.size_or("num_experts_per_tok", 2)?,
        moe_intermediate_size: config.intermediate_size,
        norm_topk_prob: true,
        router_aux_loss_coef: fields.load_balance(0.001)?,
    });
    config.layers.iter_mut().for_each(|kind| kind.experts = true);
    Ok(())
}
