//! The entry function: embedding, layers, head, and in training the loss.

use t3c_ir::{
    Builder, Context, Element, Module, TensorType, Val,
    function::{self, Function, Port, Signature, add_function},
};
use t3c_schedule::{Axis, Grid};

use super::{
    Decoder, Weight,
    layer::{GRID, Layer},
    loss, rope,
};
use crate::{Error, Phase, nn};

/// The entry while it is being built: arguments are taken in the order of the signature.
struct Entry<'d, 'c, 'a> {
    decoder: &'d Decoder,
    module: &'a Module<'c>,
    b: Builder<'c, 'a>,
    data: Vec<(String, Val<'c, 'a>)>,
    /// In checkpoint order, annotated.
    parameters: Vec<Val<'c, 'a>>,
}

impl Decoder {
    /// Builds the module.
    ///
    /// # Errors
    /// When the IR is refused.
    pub fn build<'c>(&self, context: &'c Context) -> Result<Module<'c>, Error> {
        let location = self.location(context.mlir(), "model_type");
        let module = context.module(location);
        if self.plan.tp > 1 {
            let axes = vec![Axis { name: "tp".into(), size: self.plan.tp as u32 }];
            function::add_grid(&module, GRID, &Grid { axes })?;
        }
        let data = self.data_ports();
        let signature = self.signature(&data);
        let (operation, block) = add_function(&module, &signature, location)?;
        let b = Builder::at_end(context.mlir(), block, location);
        let layer = self.layer(&module)?;
        let mut arguments = Function(operation).arguments();
        let parameters = self.parameters(&b, arguments.split_off(data.len()))?;
        let data = data.into_iter().map(|port| port.name).zip(arguments).collect();
        let entry = Entry { decoder: self, module: &module, b, data, parameters };
        let results = entry.build(&layer)?;
        b.ret(&results)?;
        Ok(module)
    }

    fn parameters<'c, 'a>(
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

    fn at_weight(&self, weight: &Weight) -> Builder<'c, 'a> {
        self.at(weight.module, weight.field)
    }

    fn build(&self, layer: &Layer) -> Result<Vec<Val<'c, 'a>>, Error> {
        let decoder = self.decoder;
        let embedding = decoder.config.embedding();
        let b = self.at_weight(&embedding);
        let hidden = nn::lookup(&b, self.module.op(), self.parameters[0], self.data("tokens")?)?;
        let rotation = self.rotation()?;
        let (hidden, caches) = self.layers(layer, hidden, rotation)?;
        let logits = self.head(hidden)?;
        match decoder.plan.phase {
            Phase::Training => self.loss(logits),
            _ => Ok([vec![logits], caches].concat()),
        }
    }

    /// The rotation of each token, by its position.
    fn rotation(&self) -> Result<Val<'c, 'a>, Error> {
        let (config, plan) = (&self.decoder.config, &self.decoder.plan);
        let half = config.head_dim / 2;
        let b = self.at("rotary_embedding", "max_position_embeddings");
        let r#type = TensorType::new([plan.positions, 2, 2, half], nn::wide(plan.element));
        let table = b.constant(&rope::table(&config.rope, plan.positions, half), &r#type)?;
        let rotation = nn::lookup(&b, self.module.op(), table, self.data("position")?)?;
        Ok(nn::convert(&b, rotation, plan.element)?)
    }

    fn layers(
        &self,
        layer: &Layer,
        mut hidden: Val<'c, 'a>,
        rotation: Val<'c, 'a>,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let config = &self.decoder.config;
        let count = config.layer_weights().len();
        let mut caches = Vec::new();
        for index in 0..config.num_hidden_layers {
            let name = format!("{}.{index}", config.names.layers);
            let b = self.at(&name, "num_hidden_layers");
            let first = 1 + index as usize * count;
            let mut arguments = vec![hidden, rotation];
            if self.decoder.plan.phase == Phase::Decode {
                arguments.extend([self.data("position")?, self.data("block_table")?]);
                for part in ["k", "v"] {
                    let cache = self.data(&format!("cache/{part}/{index}"))?;
                    arguments.push(self.decoder.annotate_cache(&b, cache)?);
                }
            } else {
                arguments.push(self.data("subtree_end")?);
            }
            arguments.extend(&self.parameters[first..first + count]);
            let results = b.call(layer.symbol, &arguments, &layer.results)?;
            hidden = results[0];
            caches.extend(&results[1..]);
        }
        Ok((hidden, caches))
    }

    /// Logits of the chosen rows, or of every token.
    fn head(&self, hidden: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let config = &self.decoder.config;
        let norm_index = 1 + config.num_hidden_layers as usize * config.layer_weights().len();
        let (norm, head) = (config.final_norm(), config.head());
        let b = self.at_weight(&norm);
        let hidden = match self.find("rows") {
            Some(rows) => nn::lookup(&b, self.module.op(), hidden, rows)?,
            None => hidden,
        };
        let normal = nn::rms_norm(&b, hidden, self.parameters[norm_index], config.rms_norm_eps)?;
        let (head, weight) = if config.tie_word_embeddings {
            (config.embedding(), self.parameters[0])
        } else {
            (head, self.parameters[norm_index + 1])
        };
        let b = self.at_weight(&head);
        let logits = b.contract("nd,vd->nv", normal, weight)?;
        Ok(nn::convert(&b, logits, nn::wide(self.decoder.plan.element))?)
    }

    /// The objective's results, then log-probabilities.
    fn loss(&self, logits: Val<'c, 'a>) -> Result<Vec<Val<'c, 'a>>, Error> {
        let plan = &self.decoder.plan;
        let b = self.at("log_softmax", "vocab_size");
        let logits = loss::cooled(&b, logits, plan.temperature)?;
        let logp = nn::log_probability(&b, logits, self.data("targets")?)?;
        let inputs =
            plan.objective.inputs().iter().map(|name| self.data(name)).collect::<Result<Vec<_>, _>>()?;
        let mut results = plan.objective.build(&self.b, logp, &inputs)?;
        results.push(logp);
        Ok(results)
    }
}
