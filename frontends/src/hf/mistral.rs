//! `mistral`: Llama with a sliding window on every layer, where the file has one.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{DecoderConfig, TensorNames},
    error::Error,
};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    spelling: &[],
    names: TensorNames::LLAMA,
    defaults: Defaults { context: 131_072, ..Defaults::LLAMA },
    adapt,
};

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    fields.one_window(config)
}
