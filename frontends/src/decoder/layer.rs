//! A layer as a private function: attention and an MLP or experts, with norms, added to the residual stream.
//!
//! Layers of one kind share it and pass their weights, so its locations name `model.layers.*.…`; the call names
//! the layer.

use t3c_ir::{
    Builder, Element, Module, Splits, TensorType, Val,
    function::{Function, Port, Signature, add_function},
    units::BLOCK,
};

use super::{
    Decoder, Parallel, Role,
    config::{LayerKind, Norm, Residual},
    weights::Weight,
};
use crate::{Error, Phase, nn};

/// The symbol of the grid.
pub(super) const GRID: &str = "grid";
/// The KV-head dimension of a cache `[NB, 16, K, …]`.
const CACHE_HEADS: usize = 2;

/// A layer function, for its callers.
pub(super) struct Layer {
    pub kind: LayerKind,
    pub symbol: String,
    pub results: Vec<TensorType>,
}

/// What a layer's function receives besides weights.
pub(super) struct Inputs<'c, 'a> {
    pub hidden: Val<'c, 'a>,
    pub rotation: Option<Val<'c, 'a>>,
    pub position: Option<Val<'c, 'a>>,
    pub subtree_end: Option<Val<'c, 'a>>,
    pub block_table: Option<Val<'c, 'a>>,
    pub caches: Vec<Val<'c, 'a>>,
}

/// The places and weights of one layer.
pub(super) struct Place<'d, 'c, 'a> {
    pub decoder: &'d Decoder,
    pub module: &'a Module<'c>,
    pub kind: LayerKind,
    pub b: Builder<'c, 'a>,
    weights: Vec<(Weight, Val<'c, 'a>)>,
}

impl Decoder {
    /// The types of a layer's arguments before its weights, with their names.
    pub(super) fn layer_inputs(&self, kind: LayerKind) -> Vec<Port> {
        let (config, plan) = (&self.config, &self.plan);
        let float = |shape: &[u64]| TensorType::new(shape, plan.element);
        let integer = |shape: &[u64]| TensorType::new(shape, Element::I32);
        let n = plan.tokens;
        let mut ports = vec![Port::new("hidden", float(&[n, config.hidden_size]))];
        if config.rope().is_some() {
            ports.push(Port::new("rotation", float(&[n, 2, 2, config.head_dim / 2])));
        }
        if plan.phase == Phase::Decode {
            ports.push(Port::new("position", integer(&[n])));
            ports.push(Port::new("block_table", integer(&[n, plan.table])));
            ports.extend(self.caches().map(|(name, r#type)| Port::new(format!("cache/{name}"), r#type)));
        } else {
            ports.push(Port::new("subtree_end", integer(&[n])));
            if kind.window.is_some() {
                ports.push(Port::new("position", integer(&[n])));
            }
        }
        ports
    }

    /// Names and types of a layer's caches.
    pub(super) fn caches(&self) -> [(&'static str, TensorType); 2] {
        let (config, plan) = (&self.config, &self.plan);
        let (k, h) = (config.num_key_value_heads, config.head_dim);
        [
            ("k", TensorType::new([plan.blocks, BLOCK, k, 2, h / 2], plan.element)),
            ("v", TensorType::new([plan.blocks, BLOCK, k, h], plan.element)),
        ]
    }

    /// The symbol of a kind of layer, after what differs between kinds.
    fn symbol(&self, kind: LayerKind) -> String {
        let kinds = self.config.layer_kinds();
        let mut symbol = "layer".to_owned();
        if kinds.iter().any(|other| other.window != kind.window) {
            symbol += &kind.window.map_or("_full".into(), |window| format!("_window_{window}"));
        }
        if kinds.iter().any(|other| other.experts != kind.experts) {
            symbol += if kind.experts { "_experts" } else { "_dense" };
        }
        symbol
    }

    /// Adds the function of a kind of layer to `module`.
    pub(super) fn layer(&self, module: &Module<'_>, kind: LayerKind) -> Result<Layer, Error> {
        let context = module.context().mlir();
        let weights = self.config.layer_weights(kind, &self.plan.parallel);
        let inputs = self.layer_inputs(kind);
        let mut results = vec![Port::new("", inputs[0].r#type.clone())];
        if self.plan.phase == Phase::Decode {
            results.extend(self.caches().map(|(_, r#type)| Port::new("", r#type)));
        }
        let ports = weights.iter().map(|weight| {
            let parameter = weight.parameter("", self.plan.element);
            Port::new(parameter.name, TensorType::new(parameter.shape, parameter.element))
        });
        if self.balances(kind) {
            results.extend(self.balance_types().map(|r#type| Port::new("", r#type)));
        }
        let symbol = self.symbol(kind);
        let signature = Signature {
            name: symbol.clone(),
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
                let annotated = self.annotate(&b, &self.module_name(&weight), value, &weight.split)?;
                Ok((weight, annotated))
            })
            .collect::<Result<_, Error>>()?;
        let place = Place { decoder: self, module, kind, b, weights };
        let inputs = place.inputs(&inputs, values)?;
        let returned = place.build(&inputs)?;
        b.ret(&returned)?;
        Ok(Layer { kind, symbol, results: results.into_iter().map(|port| port.r#type).collect() })
    }

    /// `value` with its sharding; as it is on a single device.
    pub(super) fn annotate<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        name: &str,
        value: Val<'c, 'a>,
        split: &Splits,
    ) -> Result<Val<'c, 'a>, Error> {
        if self.plan.parallel.grid().is_none() {
            return Ok(value);
        }
        Ok(b.named(name).shard(value, GRID, split)?)
    }

    /// A tensor whose first dimension is tokens, or blocks of tokens, with its sharding.
    pub(super) fn annotate_tokens<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        name: &str,
        value: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let tokens = self.plan.parallel.tokens();
        if tokens.is_empty() {
            return Ok(value);
        }
        let rank = TensorType::of(value)?.shape.len();
        self.annotate(b, name, value, &Parallel::first(tokens, rank))
    }

    /// The residual stream with its sharding: also what is added to it, where more is done to that first.
    pub(super) fn annotate_residual<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        hidden: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let split = self.plan.parallel.residual();
        if split.is_empty() {
            return Ok(hidden);
        }
        self.annotate(b, "residual", hidden, &Parallel::first(split, 2))
    }

    /// A cache with its sharding.
    pub(super) fn annotate_cache<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        cache: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let parallel = &self.plan.parallel;
        let mut split = Parallel::first(parallel.tokens(), TensorType::of(cache)?.shape.len());
        split[CACHE_HEADS] = parallel.kv.clone();
        self.annotate(b, "cache", cache, &split)
    }

    /// The module of a layer's weight, for all layers.
    pub(super) fn module_name(&self, weight: &Weight) -> String {
        format!("{}.*.{}", self.config.names.layers, weight.module)
    }
}

impl<'c, 'a> Place<'_, 'c, 'a> {
    fn inputs(&self, ports: &[Port], values: &[Val<'c, 'a>]) -> Result<Inputs<'c, 'a>, Error> {
        let find = |name: &str| ports.iter().position(|port| port.name == name).map(|index| values[index]);
        let caches = [find("cache/k"), find("cache/v")].into_iter().flatten();
        let caches = caches.map(|cache| self.decoder.annotate_cache(&self.b, cache));
        Ok(Inputs {
            hidden: self.decoder.annotate_residual(&self.b, values[0])?,
            rotation: find("rotation"),
            position: find("position"),
            subtree_end: find("subtree_end"),
            block_table: find("block_table"),
            caches: caches.collect::<Result<_, _>>()?,
        })
    }

    /// The weight or bias of a role, if the layer has one.
    pub(super) fn find(&self, role: Role, bias: bool) -> Option<Val<'c, 'a>> {
        let mut weights = self.weights.iter();
        weights.find(|(weight, _)| weight.role == role && weight.bias == bias).map(|(_, value)| *value)
    }

    /// The weight of a role.
    pub(super) fn weight(&self, role: Role) -> Result<Val<'c, 'a>, Error> {
        let missing = || t3c_ir::Error::Mlir(format!("a layer has no weight for {role:?}"));
        Ok(self.find(role, false).ok_or_else(missing)?)
    }

    /// The builder at the place of a role.
    pub(super) fn at(&self, role: Role) -> Builder<'c, 'a> {
        let names = &self.decoder.config.names;
        let location = self.decoder.location(self.b.context(), role.field());
        self.b.at(location).named(&format!("{}.*.{}", names.layers, names.module(role)))
    }

    /// `x` times the weight of a role, without its bias; the letters of the output are those of the weight that
    /// `x` does not have.
    pub(super) fn product(
        &self,
        specification: &str,
        x: Val<'c, 'a>,
        role: Role,
    ) -> Result<Val<'c, 'a>, Error> {
        Ok(self.at(role).contract(specification, x, self.weight(role)?)?)
    }

    /// `x` plus the bias of a role, if it has one.
    pub(super) fn biased(&self, x: Val<'c, 'a>, role: Role) -> Result<Val<'c, 'a>, Error> {
        match self.find(role, true) {
            Some(bias) => Ok(nn::biased(&self.at(role), x, bias)?),
            None => Ok(x),
        }
    }

    fn norm(&self, x: Val<'c, 'a>, role: Role) -> Result<Val<'c, 'a>, Error> {
        let (b, weight) = (self.at(role), self.weight(role)?);
        let normal = self.decoder.norm(&b, x, weight, self.find(role, true))?;
        // Its gradient is a sum over devices, which is scattered for having this place.
        if self.decoder.plan.parallel.sequence {
            self.decoder.annotate_residual(&b, normal)
        } else {
            Ok(normal)
        }
    }

    fn build(&self, inputs: &Inputs<'c, 'a>) -> Result<Vec<Val<'c, 'a>>, Error> {
        let residual = self.decoder.config.residual;
        let before = |x, role| if residual == Residual::Post { Ok(x) } else { self.norm(x, role) };
        let normal = before(inputs.hidden, Role::AttentionNorm)?;
        let (attended, mut caches) = self.attention(normal, inputs)?;
        let hidden = if residual == Residual::Parallel {
            let normal = self.norm(inputs.hidden, Role::MlpNorm)?;
            let (computed, balance) = self.feed_forward(normal)?;
            caches.extend(balance);
            let sum = self.at(Role::Down).add(attended, computed)?;
            let biases: Vec<_> =
                [Role::Output, Role::Down].into_iter().filter_map(|role| self.find(role, true)).collect();
            let hidden = nn::residual(&self.at(Role::Down), inputs.hidden, sum, &biases)?;
            self.decoder.annotate_residual(&self.b, hidden)?
        } else {
            let hidden = self.join(inputs.hidden, attended, Role::Output)?;
            let normal = before(hidden, Role::MlpNorm)?;
            let (computed, balance) = self.feed_forward(normal)?;
            caches.extend(balance);
            self.join(hidden, computed, Role::Down)?
        };
        Ok([vec![hidden], caches].concat())
    }

    /// Adds what `role` projected to the residual stream, with the norms that stand there.
    fn join(&self, x: Val<'c, 'a>, added: Val<'c, 'a>, role: Role) -> Result<Val<'c, 'a>, Error> {
        let (before, after) = match role {
            Role::Output => (Role::AttentionPostNorm, Role::AttentionNorm),
            _ => (Role::MlpPostNorm, Role::MlpNorm),
        };
        let b = self.at(role);
        let joined = if self.decoder.config.residual == Residual::Sandwich {
            // The norm is taken where the residual stream lies.
            let biased = self.decoder.annotate_residual(&b, self.biased(added, role)?)?;
            b.add(x, self.norm(biased, before)?)?
        } else {
            let biases: Vec<_> = self.find(role, true).into_iter().collect();
            nn::residual(&b, x, added, &biases)?
        };
        let joined =
            if self.decoder.config.residual == Residual::Post { self.norm(joined, after)? } else { joined };
        self.decoder.annotate_residual(&self.b, joined)
    }
}

impl Decoder {
    /// The model's norm of `x [N, D]`.
    pub(super) fn norm<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        x: Val<'c, 'a>,
        weight: Val<'c, 'a>,
        bias: Option<Val<'c, 'a>>,
    ) -> Result<Val<'c, 'a>, Error> {
        let eps = self.config.rms_norm_eps;
        let rms = |gain| nn::rms_norm_over(b, nn::NormDims::ROWS, x, weight, gain, eps);
        Ok(match (self.config.norm, bias) {
            (Norm::Layer, Some(bias)) => nn::layer_norm(b, x, weight, bias, eps)?,
            (Norm::RmsPlusOne, _) => rms(nn::Gain::OnePlusWeight)?,
            _ => rms(nn::Gain::Weight)?,
        })
    }
}
