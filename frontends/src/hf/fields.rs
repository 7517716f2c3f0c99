//! A configuration's fields, by our names for them, and the decoder that most families share.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Family, rope::RopeFields};
use crate::{
    decoder::{Activation, DecoderConfig, LayerKind, MOST_LAYERS, Position, spell},
    error::{Error, Field},
    json::{Size, Source},
};

/// The fields of one file.
pub(super) struct Fields<'s> {
    source: &'s Source,
    values: Map<String, Value>,
    spelling: &'static [(&'static str, &'static str)],
}

impl<'s> Fields<'s> {
    pub fn new(source: &'s Source, family: &Family) -> Result<Self, Error> {
        Ok(Self { source, values: source.read()?, spelling: family.spelling })
    }

    /// What the file calls a field.
    pub fn name<'n>(&self, field: &'n str) -> &'n str {
        spell(self.spelling, field, Some(self.source))
    }

    /// A field that may be missing or `null`.
    pub fn optional<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let name = self.name(field);
        let value = self.values.get(name).filter(|value| !value.is_null());
        value
            .map(|value| serde_json::from_value(value.clone()))
            .transpose()
            .map_err(|error| Error::Invalid { field: self.source.field(name), message: error.to_string() })
    }

    /// A field with a default.
    pub fn or<T: DeserializeOwned>(&self, field: &str, default: T) -> Result<T, Error> {
        Ok(self.optional(field)?.unwrap_or(default))
    }

    /// A size that may be missing.
    pub fn size_or(&self, field: &str, default: u64) -> Result<u64, Error> {
        Ok(self.optional::<Size>(field)?.map_or(default, |size| size.0))
    }

    /// A size.
    pub fn size(&self, field: &str) -> Result<u64, Error> {
        let name = self.name(field);
        let missing = || {
            let place = Field { name: "the file".into(), ..self.source.field("") };
            Error::Invalid { field: place, message: format!("missing field `{name}`") }
        };
        Ok(self.optional::<Size>(field)?.ok_or_else(missing)?.0)
    }

    /// Refuses a field that is not as the builder has it.
    pub fn only(&self, field: &str, expected: bool, default: bool) -> Result<(), Error> {
        let found: bool = self.or(field, default)?;
        if found == expected {
            return Ok(());
        }
        let field = self.source.field(self.name(field));
        Err(Error::unsupported(field, &found.to_string(), &[&expected.to_string()]))
    }

    /// A field of which `null` means none, and a missing one the default.
    pub fn nullable<T: DeserializeOwned>(&self, field: &str, default: T) -> Result<Option<T>, Error> {
        match self.values.contains_key(self.name(field)) {
            true => self.optional(field),
            false => Ok(Some(default)),
        }
    }

    /// The weight of the routers' load balance, which counts where the file asks for the routers' results.
    pub fn load_balance(&self, default: f64) -> Result<f64, Error> {
        let coefficient = self.or("router_aux_loss_coef", default)?;
        Ok(if self.or("output_router_logits", false)? { coefficient } else { 0.0 })
    }

    fn activation(&self, default: &str) -> Result<Activation, Error> {
        const NAMES: [(&str, Activation); 9] = [
            ("silu", Activation::Silu),
            ("swish", Activation::Silu),
            ("gelu", Activation::Gelu),
            ("gelu_new", Activation::GeluTanh),
            ("gelu_fast", Activation::GeluTanh),
            ("gelu_pytorch_tanh", Activation::GeluTanh),
            ("gelu_tanh", Activation::GeluTanh),
            ("quick_gelu", Activation::QuickGelu),
            ("relu", Activation::Relu),
        ];
        let name: String = self.or("hidden_act", default.to_owned())?;
        NAMES.iter().find(|row| row.0 == name).map(|row| row.1).ok_or_else(|| {
            let supported: Vec<&str> = NAMES.iter().map(|row| row.0).collect();
            Error::unsupported(self.source.field(self.name("hidden_act")), &name, &supported)
        })
    }

    /// Which layers have a window: those that `layer_types` says, else those of `sliding`.
    pub fn windows(
        &self,
        config: &mut DecoderConfig,
        window: Option<u64>,
        sliding: impl Fn(u64) -> bool,
    ) -> Result<(), Error> {
        const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
        let listed: Option<Vec<String>> = self.optional("layer_types")?;
        let layers = config.num_hidden_layers.min(MOST_LAYERS);
        if let Some(types) = &listed {
            if types.len() as u64 != config.num_hidden_layers {
                let message = format!("{} types for {} layers", types.len(), config.num_hidden_layers);
                return Err(Error::invalid("layer_types", message));
            }
            if let Some(index) = types.iter().position(|name| !TYPES.contains(&name.as_str())) {
                let field = Field::new(format!("layer_types[{index}]"));
                return Err(Error::unsupported(field, &types[index], &TYPES));
            }
        }
        let slides = |layer: u64| match &listed {
            Some(types) => types.get(layer as usize).is_some_and(|name| name == TYPES[1]),
            None => sliding(layer),
        };
        let kind =
            |layer: u64| LayerKind { window: window.filter(|_| slides(layer)), ..config.layer_kind(layer) };
        config.layers = (0..layers).map(kind).collect();
        Ok(())
    }

    /// The window of a family whose layers are all alike.
    pub fn one_window(&self, config: &mut DecoderConfig) -> Result<(), Error> {
        let window = self.optional::<Size>("sliding_window")?.map(|size| size.0);
        let layers = config.num_hidden_layers.min(MOST_LAYERS);
        config.layers = vec![LayerKind { window, ..LayerKind::default() }; layers as usize];
        Ok(())
    }

    /// The decoder of the fields that families share.
    pub fn decoder(&self, family: &Family) -> Result<DecoderConfig, Error> {
        let defaults = &family.defaults;
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_dim = match self.optional::<Size>("head_dim")? {
            Some(size) => size.0,
            None => defaults.head_dim.map_or_else(|| self.head_dim(hidden, heads), Ok)?,
        };
        let context = self.size_or("max_position_embeddings", defaults.context)?;
        let (dtype_field, dtype) = match self.optional::<String>("dtype")? {
            Some(dtype) => ("dtype", Some(dtype)),
            None => ("torch_dtype", self.optional("torch_dtype")?),
        };
        let rope = RopeFields {
            theta: self.optional("rope_theta")?,
            theta_name: self.name("rope_theta"),
            default_theta: defaults.theta,
            partial: self.optional("partial_rotary_factor")?,
            default_partial: defaults.partial,
            original_context: self.optional("original_max_position_embeddings")?,
            scaling: self.optional("rope_scaling")?,
            parameters: self.optional("rope_parameters")?,
        };
        Ok(DecoderConfig {
            vocab_size: self.size("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: match defaults.widening {
                Some(factor) => self.size_or("intermediate_size", hidden.saturating_mul(factor))?,
                None => self.size("intermediate_size")?,
            },
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: self.size_or("num_key_value_heads", heads)?,
            head_dim,
            max_position_embeddings: context,
            rms_norm_eps: self.or("rms_norm_eps", defaults.eps)?,
            tie_word_embeddings: self.or("tie_word_embeddings", defaults.tied)?,
            position: Position::Rotary(rope.read(context)?),
            activation: self.activation(defaults.activation)?,
            dtype: super::element(dtype_field, dtype.as_deref())?,
            names: family.names,
            spelling: family.spelling,
            ..DecoderConfig::llama()
        })
    }

    fn head_dim(&self, hidden: u64, heads: u64) -> Result<u64, Error> {
        if hidden.is_multiple_of(heads) {
            return Ok(hidden / heads);
        }
        Err(Error::Indivisible {
            field: Field::new(self.name("hidden_size")),
            value: hidden,
            divisor: format!("`{}`", self.name("num_attention_heads")),
            by: heads,
            fits: Vec::new(),
        })
    }
}
