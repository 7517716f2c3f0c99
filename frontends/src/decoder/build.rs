//! The entry function: embedding, layers, head, and in training the loss.

use t3c_ir::{
    Builder, Context, Element, Module, TensorType, Val,
    function::{self, Function, Port, Signature, add_function},
};

use super::{
    Decoder, Parallel, Role,
    layer::{GRID, Layer},
    loss, rope,
    weights::Weight,
};
use crate::{Error, Phase, nn};

/// The entry while it is being built: arguments are taken in the order of the signature.
struct Entry<'d, 'c, 'a> {
    decoder: &'d Decoder,
    module: &'a Module<'c>,
    b: Builder<'c, 'a>,
    /// Inputs by name, annotated.
    data: Vec<(String, Val<'c, 'a>)>,
    /// Weights before and after the layers, annotated.
    own: Vec<(Weight, Val<'c, 'a>)>,
    /// Weights of each layer, annotated.
    layers: Vec<Vec<Val<'c, 'a>>>,
}

impl Decoder {
    /// Builds the module.
    ///
    /// # Errors
    /// When the IR is refused.
    pub fn build<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        let location = self.location(context.mlir(), "model_type");
        let module = context.module(location);
        if let Some(grid) = self.plan.parallel.grid() {
            function::add_grid(&module, GRID, &grid)?;
        }
        let data = self.data_ports();
        let signature = self.signature(&data);
        let (operation, block) = add_function(&module, &signature, location)?;
        let b = Builder::at_end(context.mlir(), block, location);
        let kinds = self.config.layer_kinds();
        let layers =
            kinds.into_iter().map(|kind| self.layer(&module, kind)).collect::<Result<Vec<_>, _>>()?;
        let mut arguments = Function(operation).arguments();
        let parameters = self.annotated(&b, arguments.split_off(data.len()))?;
        let (own, layer_weights) = self.sorted(parameters);
        let named = data.into_iter().zip(arguments).map(|(port, value)| {
            let annotated = match port.name.as_str() {
                name if name.starts_with("cache/") => self.annotate_cache(&b, value)?,
                name => self.annotate_tokens(&b, name, value)?,
            };
            Ok((port.name, annotated))
        });
        let data = named.collect::<Result<_, Error>>()?;
        let entry = Entry { decoder: self, module: &module, b, data, own, layers: layer_weights };
        let results = entry.build(&layers)?;
        b.ret(&results)?;
        Ok(module)
    }

    /// Parameters with their shardings.
    fn annotated<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        values: Vec<Val<'c, 'a>>,
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let annotate = |(parameter, value): (&crate::Parameter, Val<'c, 'a>)| {
            let module = parameter.name.trim_end_matches(".weight");
            self.annotate(b, module, value, &parameter.split)
        };
        self.info.parameters.iter().zip(values).map(annotate).collect()
    }

    /// The entry's own weights, and those of each layer.
    #[allow(clippy::type_complexity)]
    fn sorted<'c, 'a>(
        &self,
        parameters: Vec<Val<'c, 'a>>,
    ) -> (Vec<(Weight, Val<'c, 'a>)>, Vec<Vec<Val<'c, 'a>>>) {
        let (config, parallel) = (&self.config, &self.plan.parallel);
        let mut values = parameters.into_iter();
        let mut own: Vec<_> = config.first_weights(parallel).into_iter().zip(values.by_ref()).collect();
        let layers = (0..config.num_hidden_layers).map(|layer| {
            let count = config.layer_weights(config.layer_kind(layer), parallel).len();
            values.by_ref().take(count).collect()
        });
        let layers = layers.collect();
        own.extend(config.last_weights(parallel).into_iter().zip(values));
        (own, layers)
    }

    /// The entry's arguments before its parameters.
    fn data_ports(&self) -> Vec<Port> {
        let plan = &self.plan;
        let integer = |name: &str, shape: &[u64]| Port::new(name, TensorType::new(shape, Element::I32));
        let n = plan.tokens;
        let mut ports = vec![integer("tokens", &[n]), integer("position", &[n])];
        if plan.phase == Phase::Decode {
            ports.push(integer("block_table", &[n, plan.table]));
            ports.extend(self.cache_ports());
            return ports;
        }
        ports.push(integer("subtree_end", &[n]));
        if let Some(rows) = plan.rows {
            ports.push(integer("rows", &[rows]));
            if plan.phase == Phase::Training {
                ports.push(integer("targets", &[rows]));
                ports.extend(plan.objective.ports(rows, nn::wide(plan.element)));
            }
        }
        ports
    }

    fn cache_ports(&self) -> impl Iterator<Item = Port> {
        let caches = self.caches();
        (0..self.config.num_hidden_layers).flat_map(move |layer| {
            caches.clone().map(|(name, r#type)| Port::new(format!("cache/{name}/{layer}"), r#type))
        })
    }

    fn signature(&self, data: &[Port]) -> Signature {
        let plan = &self.plan;
        let parameters = self.info.parameters.iter().map(|parameter| {
            let r#type = TensorType::new(parameter.shape.clone(), parameter.element);
            Port::new(format!("param/{}", parameter.name), r#type)
        });
        let wide = nn::wide(plan.element);
        let results = match plan.phase {
            Phase::Training => {
                let losses = plan.objective.results().iter();
                let logp = TensorType::new([plan.rows.unwrap_or(plan.tokens)], wide);
                losses
                    .map(|&name| Port::new(name, loss::loss_type(plan.element)))
                    .chain([Port::new("logp", logp)])
                    .collect()
            }
            _ => {
                let shape = [plan.rows.unwrap_or(plan.tokens), self.config.vocab_size];
                let mut ports = vec![Port::new("logits", TensorType::new(shape, wide))];
                if plan.phase == Phase::Decode {
                    ports.extend(self.cache_ports());
                }
                ports
            }
        };
        let name = match plan.phase {
            Phase::Prefill => "prefill",
            Phase::Training => "training",
            Phase::Decode => "decode",
        };
        Signature {
            name: name.into(),
            arguments: data.iter().cloned().chain(parameters).collect(),
            results,
            public: true,
            unit: None,
        }
    }
}

impl<'c, 'a> Entry<'_, 'c, 'a> {
    fn data(&self, name: &str) -> Result<Val<'c, 'a>, Error> {
        self.find(name).ok_or_else(|| t3c_ir::Error::Mlir(format!("the entry has no `{name}`")).into())
    }

    fn find(&self, name: &str) -> Option<Val<'c, 'a>> {
        self.data.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }

    /// The builder at the place of what `field` decides, under `name`.
    fn at(&self, name: &str, field: &str) -> Builder<'c, 'a> {
        self.b.at(self.decoder.location(self.b.context(), field)).named(name)
    }

    fn at_role(&self, role: Role) -> Builder<'c, 'a> {
        self.at(self.decoder.config.names.module(role), role.field())
    }

    fn weight(&self, role: Role, bias: bool) -> Option<Val<'c, 'a>> {
        let mut own = self.own.iter();
        own.find(|(weight, _)| weight.role == role && weight.bias == bias).map(|(_, value)| *value)
    }

    fn build(&self, layers: &[Layer]) -> Result<Vec<Val<'c, 'a>>, Error> {
        let hidden = self.embedding()?;
        let rotation = self.rotation()?;
        let (hidden, caches) = self.layers(layers, hidden, rotation)?;
        let logits = self.head(hidden)?;
        match self.decoder.plan.phase {
            Phase::Training => self.loss(logits, &caches),
            _ => Ok([vec![logits], caches].concat()),
        }
    }

    /// What enters the first layer.
    fn embedding(&self) -> Result<Val<'c, 'a>, Error> {
        let config = &self.decoder.config;
        let b = self.at_role(Role::Embedding);
        let mut hidden = nn::lookup(&b, self.module.op(), self.table()?, self.data("tokens")?)?;
        if let Some(scale) = config.embedding_scale {
            hidden = nn::scaled(&b, hidden, scale)?;
        }
        if let Some(weight) = self.weight(Role::ProjectIn, false) {
            hidden = self.at_role(Role::ProjectIn).contract("nw,dw->nd", hidden, weight)?;
        }
        if let Some(table) = self.weight(Role::Positions, false) {
            let b = self.at_role(Role::Positions);
            let positions = nn::lookup(&b, self.module.op(), table, self.data("position")?)?;
            let [hidden_part, positions] =
                [hidden, positions].map(|value| self.decoder.annotate_residual(&b, value));
            hidden = b.add(hidden_part?, positions?)?;
        }
        self.decoder.annotate_residual(&self.b, hidden)
    }

    /// The embedding's weight.
    fn table(&self) -> Result<Val<'c, 'a>, Error> {
        let missing = || t3c_ir::Error::Mlir("the model has no embedding".into());
        Ok(self.weight(Role::Embedding, false).ok_or_else(missing)?)
    }

    /// The rotation of each token, by its position.
    fn rotation(&self) -> Result<Option<Val<'c, 'a>>, Error> {
        let (config, plan) = (&self.decoder.config, &self.decoder.plan);
        let Some(rope) = config.rope() else { return Ok(None) };
        let half = config.head_dim / 2;
        let b = self.at("rotary_embedding", "max_position_embeddings");
        let r#type = TensorType::new([plan.positions, 2, 2, half], nn::wide(plan.element));
        let table = b.constant(&rope::table(rope, plan.positions, half, plan.length), &r#type)?;
        let rotation = nn::lookup(&b, self.module.op(), table, self.data("position")?)?;
        Ok(Some(nn::convert(&b, rotation, plan.element)?))
    }

    fn layers(
        &self,
        layers: &[Layer],
        mut hidden: Val<'c, 'a>,
        rotation: Option<Val<'c, 'a>>,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let config = &self.decoder.config;
        let mut caches = Vec::new();
        for (index, weights) in self.layers.iter().enumerate() {
            let kind = config.layer_kind(index as u64);
            let layer = layers.iter().find(|layer| layer.kind == kind);
            let layer = layer.ok_or_else(|| t3c_ir::Error::Mlir(format!("no function for {kind:?}")))?;
            let b = self.at(&format!("{}.{index}", config.names.layers), "num_hidden_layers");
            let mut arguments = Vec::new();
            for port in self.decoder.layer_inputs(kind) {
                arguments.push(match port.name.as_str() {
                    "hidden" => hidden,
                    "rotation" => rotation.ok_or_else(|| t3c_ir::Error::Mlir("no rotation".into()))?,
                    name if name.starts_with("cache/") => self.data(&format!("{name}/{index}"))?,
                    name => self.data(name)?,
                });
            }
            arguments.extend(weights);
            let results = b.call(&layer.symbol, &arguments, &layer.results)?;
            hidden = results[0];
            caches.extend(&results[1..]);
        }
        Ok((hidden, caches))
    }

    /// Logits of the chosen rows, or of every token.
    fn head(&self, hidden: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let (decoder, config) = (self.decoder, &self.decoder.config);
        let b = self.at_role(Role::FinalNorm);
        let mut hidden = match self.find("rows") {
            Some(rows) if decoder.plan.parallel.sequence => {
                // Rows may be any of the tokens of their block.
                let split = Parallel::first(decoder.plan.parallel.tokens(), 2);
                let block = decoder.annotate(&b, "residual", hidden, &split)?;
                nn::aligned_lookup(&b, self.module.op(), block, rows)?
            }
            Some(rows) if decoder.plan.parallel.tokens().is_empty() => {
                nn::lookup(&b, self.module.op(), hidden, rows)?
            }
            Some(rows) => nn::aligned_lookup(&b, self.module.op(), hidden, rows)?,
            None => hidden,
        };
        if let Some(weight) = self.weight(Role::FinalNorm, false) {
            hidden = decoder.norm(&b, hidden, weight, self.weight(Role::FinalNorm, true))?;
        }
        if let Some(weight) = self.weight(Role::ProjectOut, false) {
            hidden = self.at_role(Role::ProjectOut).contract("nd,wd->nw", hidden, weight)?;
        }
        let (role, weight) = match self.weight(Role::Head, false) {
            Some(weight) => (Role::Head, weight),
            None => (Role::Embedding, self.table()?),
        };
        let b = self.at_role(role);
        let logits = b.contract("nd,vd->nv", hidden, weight)?;
        let logits = nn::convert(&b, logits, nn::wide(decoder.plan.element))?;
        match config.logit_softcap {
            Some(cap) => Ok(nn::capped(&b, logits, cap)?),
            None => Ok(logits),
        }
    }

    /// The objective's results, then log-probabilities. `balance` is what the layers return for the routers'.
    fn loss(&self, logits: Val<'c, 'a>, balance: &[Val<'c, 'a>]) -> Result<Vec<Val<'c, 'a>>, Error> {
        let plan = &self.decoder.plan;
        let b = self.at("log_softmax", "vocab_size");
        let logits = loss::cooled(&b, logits, plan.temperature)?;
        let softmax = nn::log_probability(&b, logits, self.data("targets")?)?;
        let logp = softmax.logp;
        let inputs =
            plan.objective.inputs().iter().map(|name| self.data(name)).collect::<Result<Vec<_>, _>>()?;
        let mut results = plan.objective.build(&self.b, logp, &inputs)?;
        if plan.z_loss > 0.0 {
            let log_sum = softmax.log_sum(&b)?;
            let z = loss::z_loss(&self.b, log_sum, self.data("weight")?, plan.z_loss)?;
            results[0] = self.b.named("loss").add(results[0], z)?;
        }
        if !balance.is_empty() {
            let b = self.at("load_balance", "num_experts");
            let balance = self.decoder.load_balance(&b, balance)?;
            results[0] = self.b.named("loss").add(results[0], balance)?;
        }
        results.push(logp);
        Ok(results)
    }
}
