//! `llama`: Llama 2 and 3, SmolLM2, and the many models that share their architecture.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    spelling: &[],
    names: TensorNames::LLAMA,
    defaults: Defaults::LLAMA,
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    let attention = fields.or("attention_bias", false)?;
    let mlp = fields.or("mlp_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp };
    Ok(())
}
