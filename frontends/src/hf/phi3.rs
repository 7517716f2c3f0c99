//! `phi3`: Phi 3 and 4. Query, key and value share a tensor, and so do gate and up; long contexts come by LongRoPE.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{DecoderConfig, Fused, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    spelling: &[],
    names: TensorNames {
        query: "self_attn.qkv_proj",
        key: "self_attn.qkv_proj",
        value: "self_attn.qkv_proj",
        gate: "mlp.gate_up_proj",
        up: "mlp.gate_up_proj",
        fused: Fused::Blocks,
        ..TensorNames::LLAMA
    },
    defaults: Defaults { context: 4096, eps: 1e-5, ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    fields.one_window(config)
}
