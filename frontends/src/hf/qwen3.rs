//! `qwen3`: heads of queries and keys are normalised, and their size is a field of its own.

use super::{Defaults, Family, fields::Fields, qwen2};
use crate::{
    decoder::{Biases, DecoderConfig, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    spelling: &[],
    names: TensorNames::LLAMA,
    defaults: Defaults { context: 32_768, head_dim: Some(128), ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    config.query_key_norm = true;
    let bias = fields.or("attention_bias", false)?;
    config.biases = Biases { query_key_value: bias, output: bias, mlp: false };
    qwen2::windows(fields, config)
}
