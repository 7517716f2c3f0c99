//! One layer as a private function: attention and a gated MLP, each after a norm and added to the residual.
//!
//! The layers of a model share it and pass their weights, so its locations name `model.layers.*.…`; the call
//! names the layer.

use t3c_ir::{
    Builder, Module, TensorType, Val,
    function::{Function, Port, Signature, add_function},
    units::Unit,
};

use super::{Decoder, Weight};
use crate::{Error, Phase, decoder::Activation, nn};

/// The symbol of the grid.
pub(super) const GRID: &str = "grid";
/// The grid axis of tensor parallelism.
pub(super) const TP_AXIS: usize = 0;
/// The KV-head dimension of a cache `[NB, 16, K, …]`.
const CACHE_SPLIT: usize = 2;

/// A layer function, for its callers.
pub(super) struct Layer {
    pub symbol: &'static str,
    pub results: Vec<TensorType>,
}

/// What a layer's function receives besides weights.
struct Inputs<'c, 'a> {
    hidden: Val<'c, 'a>,
    rotation: Val<'c, 'a>,
    visibility: Visibility<'c, 'a>,
}

/// What tells which tokens a token sees.
enum Visibility<'c, 'a> {
    Packed { subtree_end: Val<'c, 'a> },
    Paged { position: Val<'c, 'a>, block_table: Val<'c, 'a>, k_cache: Val<'c, 'a>, v_cache: Val<'c, 'a> },
}

/// The places and weights of one layer.
struct Place<'d, 'c, 'a> {
    decoder: &'d Decoder,
    module: &'a Module<'c>,
    b: Builder<'c, 'a>,
    weights: Vec<(Weight, Val<'c, 'a>)>,
}

impl Decoder {
    /// The types of a layer's arguments before its weights, with their names.
    pub(super) fn layer_inputs(&self) -> Vec<Port> {
        let (config, plan) = (&self.config, &self.plan);
        let float = |shape: &[u64]| TensorType::new(shape, plan.element);
        let integer = |shape: &[u64]| TensorType::new(shape, t3c_ir::Element::I32);
        let n = plan.tokens;
        let mut ports = vec![
            Port::new("hidden", float(&[n, config.hidden_size])),
            Port::new("rotation", float(&[n, 2, 2, config.head_dim / 2])),
        ];
        if plan.phase == Phase::Decode {
            ports.push(Port::new("position", integer(&[n])));
            ports.push(Port::new("block_table", integer(&[n, plan.table])));
            ports.extend(self.caches().map(|(name, r#type)| Port::new(name, r#type)));
        } else {
            ports.push(Port::new("subtree_end", integer(&[n])));
        }
        ports
    }

    /// Names and types of a layer's caches.
    pub(super) fn caches(&self) -> [(&'static str, TensorType); 2] {
        let (config, plan) = (&self.config, &self.plan);
        let (blocks, positions) = (plan.blocks, t3c_ir::units::BLOCK);
        let (k, h) = (config.num_key_value_heads, config.head_dim);
        [
            ("k", TensorType::new([blocks, positions, k, 2, h / 2], plan.element)),
            ("v", TensorType::new([blocks, positions, k, h], plan.element)),
        ]
    }

    /// Adds the layer's function to `module`.
    pub(super) fn layer(&self, module: &Module<'_>) -> Result<Layer, Error> {
        let context = module.context().mlir();
        let weights = self.config.layer_weights();
        let inputs = self.layer_inputs();
        let hidden = inputs[0].clone();
        let mut results = vec![Port::new("", hidden.r#type)];
        if self.plan.phase == Phase::Decode {
            results.extend(self.caches().map(|(_, r#type)| Port::new("", r#type)));
        }
        let ports = weights.iter().map(|weight| {
            let parameter = weight.parameter("", self.plan.element);
            Port::new(parameter.name, TensorType::new(parameter.shape, parameter.element))
        });
        let signature = Signature {
            name: "layer".into(),
            arguments: inputs.iter().cloned().chain(ports).collect(),
            results: results.clone(),
            public: false,
            unit: None,
        };
        let location = self.location(context, "num_hidden_layers");
        let (function, block) = add_function(module, &signature, location)?;
        let b = Builder::at_end(context, block, location);
        let arguments = Function(function).arguments();
        let (values, weight_values) = arguments.split_at(inputs.len());
        let weights = weights
            .into_iter()
            .zip(weight_values)
            .map(|(weight, &value)| {
                Ok((weight.clone(), self.annotate(&b, &weight.module_name(self), value, &weight.splits())?))
            })
            .collect::<Result<_, Error>>()?;
        let place = Place { decoder: self, module, b, weights };
        let inputs = place.inputs(values)?;
        let returned = place.build(&inputs)?;
        b.ret(&returned)?;
        Ok(Layer { symbol: "layer", results: results.into_iter().map(|port| port.r#type).collect() })
    }

    /// `value` with its sharding; as it is on a single device.
    pub(super) fn annotate<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        name: &str,
        value: Val<'c, 'a>,
        splits: &[Vec<usize>],
    ) -> Result<Val<'c, 'a>, Error> {
        if self.plan.tp == 1 {
            return Ok(value);
        }
        Ok(b.named(name).shard(value, GRID, splits)?)
    }

    /// A cache with its sharding.
    pub(super) fn annotate_cache<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        cache: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let axes = |at: usize| if at == CACHE_SPLIT { vec![TP_AXIS] } else { vec![] };
        let splits: Vec<_> = (0..TensorType::of(cache)?.shape.len()).map(axes).collect();
        self.annotate(b, "cache", cache, &splits)
    }
}

impl Weight {
    fn module_name(&self, decoder: &Decoder) -> String {
        format!("{}.*.{}", decoder.config.names.layers, self.module)
    }
}

impl<'c, 'a> Place<'_, 'c, 'a> {
    fn inputs(&self, values: &[Val<'c, 'a>]) -> Result<Inputs<'c, 'a>, Error> {
        let cache = |value| self.decoder.annotate_cache(&self.b, value);
        let visibility = match *values {
            [_, _, subtree_end] => Visibility::Packed { subtree_end },
            [_, _, position, block_table, k_cache, v_cache] => Visibility::Paged {
                position,
                block_table,
                k_cache: cache(k_cache)?,
                v_cache: cache(v_cache)?,
            },
            _ => return Err(t3c_ir::Error::Mlir("a layer takes 3 or 6 inputs".into()).into()),
        };
        Ok(Inputs { hidden: values[0], rotation: values[1], visibility })
    }

    /// The weight of `module`, and a builder whose location is that weight's.
    fn weight(&self, module: &str) -> Result<(Builder<'c, 'a>, Val<'c, 'a>), Error> {
        let (weight, value) = self
            .weights
            .iter()
            .find(|(weight, _)| weight.module == module)
            .ok_or_else(|| t3c_ir::Error::Mlir(format!("a layer has no weight `{module}`")))?;
        let location = self.decoder.location(self.b.context(), weight.field);
        Ok((self.b.at(location).named(&weight.module_name(self.decoder)), *value))
    }

    fn product(&self, specification: &str, x: Val<'c, 'a>, module: &str) -> Result<Val<'c, 'a>, Error> {
        let (b, weight) = self.weight(module)?;
        Ok(b.contract(specification, x, weight)?)
    }

    fn norm(&self, x: Val<'c, 'a>, module: &str) -> Result<Val<'c, 'a>, Error> {
        let (b, weight) = self.weight(module)?;
        Ok(nn::rms_norm(&b, x, weight, self.decoder.config.rms_norm_eps)?)
    }

    fn build(&self, inputs: &Inputs<'c, 'a>) -> Result<Vec<Val<'c, 'a>>, Error> {
        let names = self.decoder.config.names;
        let normal = self.norm(inputs.hidden, names.attention_norm)?;
        let (attended, caches) = self.attention(normal, inputs)?;
        let projected = self.product("nkgh,dkgh->nd", attended, names.output)?;
        let hidden = self.weight(names.output)?.0.add(inputs.hidden, projected)?;
        let normal = self.norm(hidden, names.mlp_norm)?;
        let gate = self.product("nd,fd->nf", normal, names.gate)?;
        let up = self.product("nd,fd->nf", normal, names.up)?;
        let activation = match self.decoder.config.activation {
            Activation::Silu => nn::silu,
            Activation::Gelu => nn::gelu,
            Activation::GeluTanh => nn::gelu_tanh,
        };
        let active = nn::gated(&self.weight(names.gate)?.0, gate, up, activation)?;
        let projected = self.product("nf,df->nd", active, names.down)?;
        let hidden = self.weight(names.down)?.0.add(hidden, projected)?;
        Ok([vec![hidden], caches].concat())
    }

    /// Attention before its output projection, and the caches in decode.
    fn attention(
        &self,
        normal: Val<'c, 'a>,
        inputs: &Inputs<'c, 'a>,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let names = self.decoder.config.names;
        let q = self.product("nd,kgcid->nkgci", normal, names.query)?;
        let k = self.product("nd,kcid->nkci", normal, names.key)?;
        let v = self.product("nd,khd->nkh", normal, names.value)?;
        let q = self.weight(names.query)?.0.contract("nkgci,ncei->nkgei", q, inputs.rotation)?;
        let k = self.weight(names.key)?.0.contract("nkci,ncei->nkei", k, inputs.rotation)?;
        let module = names.query.rsplit_once('.').map_or("attention", |(module, _)| module);
        let location = self.decoder.location(self.b.context(), "num_attention_heads");
        let b = self.b.at(location).named(&format!("{}.*.{module}", names.layers));
        let query = TensorType::of(q)?;
        match inputs.visibility {
            Visibility::Packed { subtree_end } => {
                let unit = Unit::attention(&query);
                let results = nn::call_unit(&b, self.module.op(), &unit, &[q, k, v, subtree_end])?;
                Ok((results[0], Vec::new()))
            }
            Visibility::Paged { position, block_table, k_cache, v_cache } => {
                let plan = &self.decoder.plan;
                let unit = Unit::attention_paged(&query, plan.blocks, plan.table);
                let arguments = [q, k, v, k_cache, v_cache, block_table, position];
                let results = nn::call_unit(&b, self.module.op(), &unit, &arguments)?;
                Ok((results[0], results[1..].to_vec()))
            }
        }
    }
}
