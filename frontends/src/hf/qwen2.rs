//! `qwen2`: Qwen 2 and 2.5. Query, key and value have biases, the output has none; with `use_sliding_window`, the
//! layers from `max_window_layers` on have a window, the first ones none.

use super::{Defaults, Family, fields::Fields};
use crate::{
    decoder::{Biases, DecoderConfig, TensorNames},
    error::Error,
    json::Size,
};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    spelling: &[],
    names: TensorNames::LLAMA,
    defaults: Defaults { context: 32_768, ..Defaults::LLAMA },
    adapt,
};

/// `max_window_layers` where a file has none.
const FULL_LAYERS: u64 = 28;
/// `sliding_window` where a file that uses one has none.
const WINDOW: u64 = 4096;

fn adapt(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    config.biases = Biases { query_key_value: true, ..Biases::default() };
    windows(fields, config)
}

/// The windows of Qwen's families.
pub(super) fn windows(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    let window = fields.nullable("sliding_window", Size(WINDOW))?.map(|size| size.0);
    let window = if fields.or("use_sliding_window", false)? { window } else { None };
    let first = fields.or("max_window_layers", FULL_LAYERS)?;
    fields.windows(config, window, |layer| layer >= first)
}

/// The one window of a family that does not count layers.
pub(super) fn uniform_window(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), Error> {
    if fields.or("use_sliding_window", false)? && fields.optional::<Size>("sliding_window")?.is_some() {
        fields.one_window(config)?;
    }
    Ok(())
}
