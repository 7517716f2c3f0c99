//! The weights of a decoder: their shapes in the graph, where they lie in the checkpoint, and how they are split.
//!
//! Heads are dimensions of the weights, so that nothing is reshaped in the graph. A fused projection is read as a
//! view, and so is the order of a head's rows where only some of its dimensions are rotated: queries and keys are
//! permuted alike, which leaves their products as they were.

use t3c_ir::{Element, Splits};

use super::{
    DecoderConfig, Parallel, Role,
    config::{LayerKind, Norm, Position, Residual},
    names::Fused,
};
use crate::{Parameter, info::Source};

/// What the builder knows of one weight or bias.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub role: Role,
    pub bias: bool,
    /// Its module in the checkpoint, such as `self_attn.q_proj`.
    pub module: &'static str,
    pub split: Splits,
    shape: Vec<u64>,
    checkpoint: Vec<u64>,
    blocks: Vec<Block>,
    along: usize,
    /// What it is of its tensor, if it is not all of it.
    part: Option<&'static str>,
    /// Experts, each of which has such a tensor.
    stack: Option<u64>,
}

/// A block of a checkpoint tensor that is read in another shape.
#[derive(Clone, Debug, Default)]
struct Block {
    view: Vec<u64>,
    start: Vec<u64>,
    size: Vec<u64>,
}

impl Block {
    fn whole(view: &[u64]) -> Self {
        Self { view: view.to_vec(), start: vec![0; view.len()], size: view.to_vec() }
    }

    fn dimension(&mut self, at: usize, extent: u64) {
        self.view.insert(at, extent);
        self.start.insert(at, 0);
        self.size.insert(at, extent);
    }
}

impl Weight {
    /// The parameter, of the layer whose modules begin with `prefix`.
    pub fn parameter(&self, prefix: &str, element: Element) -> Parameter {
        let suffix = if self.bias { "bias" } else { "weight" };
        let tensor = format!("{prefix}{}.{suffix}", self.module);
        let tensors: Vec<String> = match self.stack {
            Some(count) => (0..count).map(|expert| tensor.replace('*', &expert.to_string())).collect(),
            None => vec![tensor.clone()],
        };
        let source = |name: &String, block: &Block| Source {
            tensor: name.clone(),
            shape: self.checkpoint.clone(),
            view: block.view.clone(),
            start: block.start.clone(),
            size: block.size.clone(),
        };
        let sources =
            tensors.iter().flat_map(|name| self.blocks.iter().map(move |block| source(name, block)));
        Parameter {
            sources: sources.collect(),
            name: self.part.map_or(tensor.clone(), |part| format!("{tensor}[{part}]")),
            shape: self.shape.clone(),
            along: self.along,
            split: self.split.clone(),
            element,
        }
    }
}

/// The sizes that weights are made of.
struct Sizes {
    d: u64,
    k: u64,
    g: u64,
    h: u64,
}

impl DecoderConfig {
    /// The parameters, in the order of the entry function's arguments.
    pub(super) fn parameters(&self, parallel: &Parallel, element: Element) -> Vec<Parameter> {
        let mut parameters: Vec<Parameter> =
            self.first_weights(parallel).iter().map(|weight| weight.parameter("", element)).collect();
        for layer in 0..self.num_hidden_layers {
            let prefix = format!("{}.{layer}.", self.names.layers);
            let weights = self.layer_weights(self.layer_kind(layer), parallel);
            parameters.extend(weights.iter().map(|weight| weight.parameter(&prefix, element)));
        }
        parameters.extend(self.last_weights(parallel).iter().map(|weight| weight.parameter("", element)));
        parameters
    }

    /// The weights before the layers.
    pub(super) fn first_weights(&self, parallel: &Parallel) -> Vec<Weight> {
        let mut weights = vec![self.vocabulary(Role::Embedding, parallel)];
        if let Position::Learned { offset } = self.position {
            let (rows, d) = (self.max_position_embeddings, self.hidden_size);
            let mut table = self.plain(Role::Positions, &[rows + offset, d], vec![Vec::new(); 2]);
            if offset > 0 {
                table.shape = vec![rows, d];
                table.blocks[0].start[0] = offset;
                table.blocks[0].size[0] = rows;
                table.part = Some("positions");
            }
            weights.push(table);
        }
        if let Some(size) = self.embedding_size {
            weights.push(self.plain(Role::ProjectIn, &[self.hidden_size, size], vec![Vec::new(); 2]));
        }
        weights
    }

    /// The weights after the layers.
    pub(super) fn last_weights(&self, parallel: &Parallel) -> Vec<Weight> {
        let mut weights = if self.final_norm { self.norm_weights(Role::FinalNorm) } else { Vec::new() };
        if let Some(size) = self.embedding_size {
            weights.push(self.plain(Role::ProjectOut, &[size, self.hidden_size], vec![Vec::new(); 2]));
        }
        if !self.tie_word_embeddings {
            weights.push(self.vocabulary(Role::Head, parallel));
        }
        weights
    }

    /// The weights of a layer, in the order of the checkpoint and of the layer function's arguments.
    pub(super) fn layer_weights(&self, kind: LayerKind, parallel: &Parallel) -> Vec<Weight> {
        let mut weights = Vec::new();
        for role in [Role::Query, Role::Key, Role::Value] {
            weights.push(self.head_weight(role, false, parallel));
            if self.biases.query_key_value {
                weights.push(self.head_weight(role, true, parallel));
            }
        }
        weights.push(self.output_weight(parallel));
        if self.biases.output {
            weights.push(self.replicated_bias(Role::Output));
        }
        if self.query_key_norm {
            weights.extend([Role::QueryNorm, Role::KeyNorm].map(|role| self.head_norm(role)));
        }
        if kind.experts {
            weights.extend(self.expert_weights(parallel));
        } else {
            weights.extend(self.mlp_weights(parallel));
        }
        weights.extend(self.norm_weights(Role::AttentionNorm));
        if self.residual == Residual::Sandwich {
            weights.extend(self.norm_weights(Role::AttentionPostNorm));
        }
        weights.extend(self.norm_weights(Role::MlpNorm));
        if self.residual == Residual::Sandwich {
            weights.extend(self.norm_weights(Role::MlpPostNorm));
        }
        weights
    }

    fn sizes(&self) -> Sizes {
        let (k, g) = (self.num_key_value_heads, self.groups());
        Sizes { d: self.hidden_size, k, g, h: self.head_dim }
    }

    /// A whole tensor in its own shape.
    fn plain(&self, role: Role, shape: &[u64], split: Splits) -> Weight {
        Weight {
            role,
            bias: false,
            module: self.names.module(role),
            split,
            shape: shape.to_vec(),
            checkpoint: shape.to_vec(),
            blocks: vec![Block::whole(shape)],
            along: 0,
            part: None,
            stack: None,
        }
    }

    fn vocabulary(&self, role: Role, parallel: &Parallel) -> Weight {
        let shape = [self.vocab_size, self.embedding_size.unwrap_or(self.hidden_size)];
        self.plain(role, &shape, Parallel::first(parallel.vocabulary_axes(), 2))
    }

    fn norm_weights(&self, role: Role) -> Vec<Weight> {
        let weight = self.plain(role, &[self.hidden_size], vec![Vec::new()]);
        match self.norm {
            Norm::Layer => vec![weight.clone(), Weight { bias: true, ..weight }],
            _ => vec![weight],
        }
    }

    fn replicated_bias(&self, role: Role) -> Weight {
        Weight { bias: true, ..self.plain(role, &[self.hidden_size], vec![Vec::new()]) }
    }

    /// The ranges of a head's dimensions in the order of the graph: halves of pairs, rotated pairs first.
    fn head_order(&self) -> Vec<(u64, u64)> {
        let h = self.head_dim;
        let Some(rotated) = self.rope().map(|rope| rope.rotated(h)).filter(|&rotated| rotated < h) else {
            return vec![(0, h)];
        };
        let (half, rest) = (rotated / 2, (h - rotated) / 2);
        vec![(0, half), (rotated, rest), (half, half), (rotated + rest, rest)]
    }

    /// A block for each range of a head's dimensions, which are dimension `at` of `block`.
    fn ordered(&self, role: Role, block: &Block, at: usize) -> Vec<Block> {
        if !matches!(role, Role::Query | Role::Key | Role::QueryNorm | Role::KeyNorm) {
            return vec![block.clone()];
        }
        let ranges = self.head_order().into_iter().filter(|(_, size)| *size > 0);
        ranges
            .map(|(start, size)| {
                let mut part = block.clone();
                (part.start[at], part.size[at]) = (start, size);
                part
            })
            .collect()
    }

    fn head_weight(&self, role: Role, bias: bool, parallel: &Parallel) -> Weight {
        let Sizes { d, k, g, h } = self.sizes();
        let (index, heads) = match role {
            Role::Query => (0, k * g),
            Role::Key => (1, k),
            _ => (2, k),
        };
        let first = [0, k * g, k * g + k][index];
        let (mut block, rows) = match self.names.fused {
            Fused::Apart => (Block::whole(&[heads, h]), heads * h),
            Fused::Blocks => {
                let all = k * g + 2 * k;
                (Block { view: vec![all, h], start: vec![first, 0], size: vec![heads, h] }, all * h)
            }
            Fused::Heads => {
                let (view, size) = (vec![k, 3, h], vec![k, 1, h]);
                (Block { view, start: vec![0, index as u64, 0], size }, 3 * k * h)
            }
        };
        let mut at = block.view.len() - 1;
        let mut shape = match role {
            Role::Query => vec![k, g, 2, h / 2],
            Role::Key => vec![k, 2, h / 2],
            _ => vec![k, h],
        };
        let mut split = vec![Vec::new(); shape.len()];
        split[0] = parallel.kv.clone();
        if role == Role::Query {
            split[1] = parallel.groups.clone();
        }
        let mut checkpoint = vec![rows];
        if !bias {
            let (place, outer) = if self.names.transposed { (0, 0) } else { (block.view.len(), 1) };
            block.dimension(place, d);
            at += usize::from(self.names.transposed);
            checkpoint.insert(outer, d);
            let place = if self.names.transposed { 0 } else { shape.len() };
            shape.insert(place, d);
            split.insert(place, Vec::new());
        }
        let blocks = self.ordered(role, &block, at);
        let part = (self.names.fused != Fused::Apart).then_some(["query", "key", "value"][index]);
        let module = self.names.module(role);
        Weight { role, bias, module, split, shape, checkpoint, blocks, along: at, part, stack: None }
    }

    fn head_norm(&self, role: Role) -> Weight {
        let h = self.head_dim;
        let weight = self.plain(role, &[h], vec![Vec::new(); 2]);
        let blocks = self.ordered(role, &Block::whole(&[h]), 0);
        Weight { shape: vec![2, h / 2], blocks, ..weight }
    }

    fn output_weight(&self, parallel: &Parallel) -> Weight {
        let Sizes { d, k, g, h } = self.sizes();
        let heads = [parallel.kv.clone(), parallel.groups.clone(), Vec::new()];
        let (shape, checkpoint, place) = if self.names.transposed {
            (vec![k, g, h, d], vec![k * g * h, d], 3)
        } else {
            (vec![d, k, g, h], vec![d, k * g * h], 0)
        };
        let mut split = heads.to_vec();
        split.insert(place, Vec::new());
        Weight { shape, ..self.plain(Role::Output, &checkpoint, split) }
    }

    fn mlp_weights(&self, parallel: &Parallel) -> Vec<Weight> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let tensor = parallel.tensor();
        let turned = |rows: (u64, Vec<usize>), columns: (u64, Vec<usize>)| {
            let (first, second) = if self.names.transposed { (columns, rows) } else { (rows, columns) };
            ([first.0, second.0], vec![first.1, second.1])
        };
        let mut weights = Vec::new();
        let roles = if self.gated { &[Role::Gate, Role::Up][..] } else { &[Role::Up][..] };
        for (index, &role) in roles.iter().enumerate() {
            let (shape, split) = turned((f, tensor.clone()), (d, Vec::new()));
            let mut weight = self.plain(role, &shape, split);
            if self.gated && self.names.gate == self.names.up {
                weight.checkpoint = vec![2 * f, d];
                let start = vec![index as u64, 0, 0];
                weight.blocks = vec![Block { view: vec![2, f, d], start, size: vec![1, f, d] }];
                weight.part = Some(["gate", "up"][index]);
            }
            weights.push(weight);
            if self.biases.mlp {
                let bias = self.plain(role, &[f], vec![tensor.clone()]);
                weights.push(Weight { bias: true, ..bias });
            }
        }
        let (shape, split) = turned((d, Vec::new()), (f, tensor));
        weights.push(self.plain(Role::Down, &shape, split));
        if self.biases.mlp {
            weights.push(self.replicated_bias(Role::Down));
        }
        weights
    }

    fn expert_weights(&self, parallel: &Parallel) -> Vec<Weight> {
        let Some(experts) = &self.experts else { return Vec::new() };
        let (d, f, count) = (self.hidden_size, experts.moe_intermediate_size, experts.num_experts);
        let (slots, tensor) = (parallel.ep, parallel.tensor());
        let stack = |role, rows: (u64, Vec<usize>), columns: (u64, Vec<usize>)| {
            let split = vec![parallel.experts(), Vec::new(), rows.1, columns.1];
            let tensor = [rows.0, columns.0];
            let weight = self.plain(role, &tensor, split);
            let shape = vec![slots, count / slots, rows.0, columns.0];
            Weight { shape, stack: Some(count), ..weight }
        };
        vec![
            self.plain(Role::Router, &[count, d], vec![Vec::new(); 2]),
            stack(Role::ExpertGate, (f, tensor.clone()), (d, Vec::new())),
            stack(Role::ExpertUp, (f, tensor.clone()), (d, Vec::new())),
            stack(Role::ExpertDown, (d, Vec::new()), (f, tensor)),
        ]
    }
}
