//! A unit at definite shapes, as plain data: how it is made, what it is called, what it costs.

use t3c_schedule::Element;

use super::{
    UnitKind,
    attention::{BLOCK, default_scale, types as attention_types},
};
use crate::{TensorType, types::element_name};

/// A unit at definite shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Which.
    pub kind: UnitKind,
    /// Types of the arguments.
    pub arguments: Vec<TensorType>,
    /// Types of the results.
    pub results: Vec<TensorType>,
    /// The factor on attention scores.
    pub scale: Option<f64>,
    /// The bound of attention scores: `cap · tanh(score / cap)` of the scaled score.
    pub softcap: Option<f64>,
    /// How many positions a token attends to, itself included.
    pub window: Option<u64>,
    /// Whether index operands point into their own block wherever the token dimension is split, so that a device
    /// needs no other's tokens.
    pub aligned: bool,
    /// How many experts a token is routed to.
    pub top_k: Option<u64>,
    /// Whether a grouped product contracts its weights along their third dimension.
    pub transposed: bool,
    /// The fraction of a grouped product's rows that are routed ones, where it is known.
    pub density: Option<f64>,
}

impl Unit {
    /// A unit without options.
    pub fn new(kind: UnitKind, arguments: Vec<TensorType>, results: Vec<TensorType>) -> Self {
        Self {
            kind,
            arguments,
            results,
            scale: None,
            softcap: None,
            window: None,
            aligned: false,
            top_k: None,
            transposed: false,
            density: None,
        }
    }

    /// A row gather.
    pub fn lookup(table: &TensorType, ids: &TensorType) -> Self {
        let shape = [ids.shape.as_slice(), table.shape.get(1..).unwrap_or_default()].concat();
        let result = TensorType::new(shape, table.element);
        Self::new(UnitKind::Lookup, vec![table.clone(), ids.clone()], vec![result])
    }

    /// The gradient of a row gather from a table of `rows` rows: rows are added up where `ids` say.
    pub fn lookup_grad(ids: &TensorType, dout: &TensorType, rows: u64) -> Self {
        let shape = [&[rows], dout.shape.get(ids.shape.len()..).unwrap_or_default()].concat();
        let result = TensorType::new(shape, dout.element);
        Self::new(UnitKind::LookupGrad, vec![ids.clone(), dout.clone()], vec![result])
    }

    /// Attention over packed tokens; scores are scaled by 1/√H. `q` is `[N,K,G,2,E]`.
    pub fn attention(q: &TensorType) -> Self {
        let [q, k, v, end, out] = attention_types(q);
        let scale = Some(default_scale(&v));
        Self { scale, ..Self::new(UnitKind::Attention, vec![q, k, v, end], vec![out]) }
    }

    /// The gradient of [`Unit::attention`] without further options.
    pub fn attention_grad(q: &TensorType, scale: f64) -> Self {
        let [q, k, v, end, out] = attention_types(q);
        let arguments = vec![q.clone(), k.clone(), v.clone(), end, out];
        Self { scale: Some(scale), ..Self::new(UnitKind::AttentionGrad, arguments, vec![q, k, v]) }
    }

    /// Attention with a cache of `blocks` blocks; a row sees at most `table` of them.
    pub fn attention_paged(q: &TensorType, blocks: u64, table: u64) -> Self {
        let [q, k, v, _, out] = attention_types(q);
        let rows = q.shape.first().copied().unwrap_or(0);
        let cache = |part: &TensorType| {
            let shape = [&[blocks, BLOCK], part.shape.get(1..).unwrap_or_default()].concat();
            TensorType::new(shape, part.element)
        };
        let (k_cache, v_cache) = (cache(&k), cache(&v));
        let scale = Some(default_scale(&v));
        let results = vec![out, k_cache.clone(), v_cache.clone()];
        let indices = |shape: &[u64]| TensorType::new(shape, Element::I32);
        let arguments = vec![q, k, v, k_cache, v_cache, indices(&[rows, table]), indices(&[rows])];
        Self { scale, ..Self::new(UnitKind::AttentionPaged, arguments, results) }
    }

    /// The rows of `scores [N,E]`'s `top_k` experts a token, for `groups` blocks of tokens and `slots` blocks of
    /// experts.
    pub fn route(scores: &TensorType, top_k: u64, groups: u64, slots: u64) -> Self {
        let extent = |dimension: usize| scores.shape.get(dimension).copied().unwrap_or(0);
        let (tokens, experts) = (extent(0) / groups.max(1), extent(1) / slots.max(1));
        let rows = TensorType::new([groups, slots, tokens * top_k.min(experts)], Element::I32);
        let offsets = TensorType::new([groups, slots, experts + 1], Element::I32);
        let results = vec![rows.clone(), rows, offsets];
        Self { top_k: Some(top_k), ..Self::new(UnitKind::Route, vec![scores.clone()], results) }
    }

    /// Each row of `x [P,S,C,D]` times its expert's matrix of `w [S,L,F,D]`, of tokens that are routed to `top_k`
    /// experts.
    pub fn grouped(x: &TensorType, w: &TensorType, top_k: u64) -> Self {
        Self::grouped_by(x, w, false, Some(density(x, w, top_k)))
    }

    /// As [`Unit::grouped`], with `w [S,L,D,F]`.
    pub fn grouped_transposed(x: &TensorType, w: &TensorType, top_k: u64) -> Self {
        Self::grouped_by(x, w, true, Some(density(x, w, top_k)))
    }

    fn grouped_by(x: &TensorType, w: &TensorType, transposed: bool, density: Option<f64>) -> Self {
        let mut shape = x.shape.clone();
        if let (Some(last), Some(&extent)) = (shape.last_mut(), w.shape.get(if transposed { 3 } else { 2 })) {
            *last = extent;
        }
        let arguments = vec![x.clone(), w.clone(), offsets(x, w.shape.get(1).copied().unwrap_or(0))];
        let result = TensorType::new(shape, x.element);
        Self { transposed, density, ..Self::new(UnitKind::Grouped, arguments, vec![result]) }
    }

    /// The gradient of `experts` matrices a slot from the rows `x` and the gradient `dy` of the products.
    pub fn grouped_grad(x: &TensorType, dy: &TensorType, experts: u64) -> Self {
        let extent =
            |r#type: &TensorType, dimension: usize| r#type.shape.get(dimension).copied().unwrap_or(0);
        let result = TensorType::new([extent(x, 1), experts, extent(dy, 3), extent(x, 3)], x.element);
        let arguments = vec![x.clone(), dy.clone(), offsets(x, experts)];
        Self::new(UnitKind::GroupedGrad, arguments, vec![result])
    }

    /// The unit that gives the gradients of an attention's queries, keys and values, with the same options.
    pub fn attention_gradient(&self) -> Self {
        let mut arguments = self.arguments.clone();
        arguments.extend(self.results.first().cloned());
        let results = self.arguments.get(..3).unwrap_or_default().to_vec();
        Self { kind: UnitKind::AttentionGrad, arguments, results, ..self.clone() }
    }

    /// The unit that gives the gradient of a grouped product's rows, from the gradient of its result.
    pub fn grouped_rows_gradient(&self) -> Self {
        Self::grouped_by(&self.results[0], &self.arguments[1], !self.transposed, self.density)
    }

    /// The unit that gives the gradient of a grouped product's matrices: of `(x, dy, offsets)`, and of `(dy, x,
    /// offsets)` where the product is transposed.
    pub fn grouped_weight_gradient(&self) -> Self {
        let (x, dy, experts) = (&self.arguments[0], &self.results[0], self.arguments[1].shape[1]);
        let unit = if self.transposed {
            Self::grouped_grad(dy, x, experts)
        } else {
            Self::grouped_grad(x, dy, experts)
        };
        Self { density: self.density, ..unit }
    }

    /// The same attention with another factor on scores.
    pub fn scaled(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// The same attention with scores bounded by `cap`.
    pub fn softcapped(self, cap: f64) -> Self {
        Self { softcap: Some(cap), ..self }
    }

    /// The same attention over the last `window` positions: packed attention then also takes `position`, after
    /// `subtree_end`.
    pub fn windowed(mut self, window: u64) -> Self {
        if self.window.is_none()
            && self.kind != UnitKind::AttentionPaged
            && let Some(end) = self.arguments.get(3).cloned()
        {
            self.arguments.insert(4, end);
        }
        Self { window: Some(window), ..self }
    }

    /// The same unit, whose index operands point into their own block of tokens.
    pub fn aligned(self) -> Self {
        Self { aligned: true, ..self }
    }

    /// The symbol of the unit's function: kind, shapes and options.
    pub fn symbol(&self) -> String {
        let mut symbol = self.kind.name().to_owned();
        for r#type in self.arguments.iter().chain(&self.results) {
            symbol.push('_');
            for extent in &r#type.shape {
                symbol.push_str(&format!("{extent}x"));
            }
            symbol.push_str(element_name(r#type.element));
        }
        if let (Some(scale), Some(v)) = (self.scale, self.arguments.get(2))
            && scale != default_scale(v)
        {
            symbol.push_str(&format!("_scale{:016x}", scale.to_bits()));
        }
        if let Some(cap) = self.softcap {
            symbol.push_str(&format!("_softcap{:016x}", cap.to_bits()));
        }
        for (name, value) in [("window", self.window), ("top", self.top_k)] {
            if let Some(value) = value {
                symbol.push_str(&format!("_{name}{value}"));
            }
        }
        for (name, value) in [("transposed", self.transposed), ("aligned", self.aligned)] {
            if value {
                symbol.push_str(&format!("_{name}"));
            }
        }
        if let Some(density) = self.density.filter(|density| *density != 1.0) {
            symbol.push_str(&format!("_density{:016x}", density.to_bits()));
        }
        symbol
    }

    /// What a schedule calls the unit: its kind, and the options that change what a kernel computes
    /// (`attention+softcap+window`).
    pub fn label(&self) -> String {
        let options = [("softcap", self.softcap.is_some()), ("window", self.window.is_some())];
        let set = options.into_iter().filter(|option| option.1).map(|option| format!("+{}", option.0));
        [self.kind.name().to_owned()].into_iter().chain(set).collect()
    }

    /// Floating-point operations: attention counted over all visible pairs of a causal sequence, grouped products
    /// over the rows that are routed.
    pub fn flops(&self) -> u64 {
        let elements = |argument: usize| self.arguments.get(argument).map_or(0, TensorType::elements);
        match self.kind {
            UnitKind::Lookup | UnitKind::Route => 0,
            UnitKind::LookupGrad => elements(1),
            UnitKind::Attention => 4 * self.visible_products(),
            UnitKind::AttentionGrad => 10 * self.visible_products(),
            UnitKind::AttentionPaged => {
                let span = BLOCK * self.arguments[5].shape[1];
                4 * elements(0) * self.window.map_or(span, |window| window.min(span))
            }
            UnitKind::Grouped => self.routed(elements(0) * self.results[0].shape[3]),
            UnitKind::GroupedGrad => self.routed(elements(0) * self.arguments[1].shape[3]),
        }
    }

    /// Elements of a query times the tokens it sees, over a causal sequence.
    fn visible_products(&self) -> u64 {
        let (q, n) = (&self.arguments[0], self.arguments[0].shape[0]);
        let window = self.window.map_or(n, |window| window.min(n));
        let pairs = window * (window + 1) / 2 + (n - window) * window;
        q.elements() / n.max(1) * pairs
    }

    fn routed(&self, products: u64) -> u64 {
        (2.0 * products as f64 * self.density.unwrap_or(1.0)).round() as u64
    }

    /// A unit made from its first arguments has the right shapes everywhere; one made by hand may not.
    pub(super) fn check(&self) -> Result<(), String> {
        let rank = |index: usize| self.arguments.get(index).map_or(0, |r#type| r#type.shape.len());
        let argument = |index: usize| &self.arguments[index];
        let wrong = |expected: &str| Err(format!("{} expects {expected}", self.kind.name()));
        let expected = match self.kind {
            UnitKind::Lookup if rank(0) >= 1 && self.arguments.len() == 2 => {
                Self::lookup(argument(0), argument(1))
            }
            UnitKind::Lookup => return wrong("(table [V, D…], ids [I…])"),
            UnitKind::LookupGrad if self.arguments.len() == 2 && self.rows().is_some() => {
                let prefix = argument(0).shape.as_slice();
                if !argument(1).shape.starts_with(prefix) {
                    return wrong("(ids [I…], dout [I…, D…])");
                }
                Self::lookup_grad(argument(0), argument(1), self.rows().unwrap_or(0))
            }
            UnitKind::LookupGrad => return wrong("(ids [I…], dout [I…, D…])"),
            UnitKind::Attention if rank(0) == 5 => Self::attention(argument(0)),
            UnitKind::AttentionGrad if rank(0) == 5 => Self::attention_grad(argument(0), 1.0),
            UnitKind::AttentionPaged if rank(0) == 5 && rank(3) == 5 && rank(5) == 2 => {
                Self::attention_paged(argument(0), argument(3).shape[0], argument(5).shape[1])
            }
            UnitKind::Attention | UnitKind::AttentionGrad | UnitKind::AttentionPaged => {
                return wrong("q of shape [N, K, G, 2, E]");
            }
            UnitKind::Route => return self.check_route(),
            UnitKind::Grouped if rank(0) == 4 && rank(1) == 4 => {
                let (x, w) = (argument(0), argument(1));
                if x.shape[3] != w.shape[if self.transposed { 2 } else { 3 }] || x.shape[1] != w.shape[0] {
                    return wrong("x [P, S, C, D] and w [S, L, F, D] ([S, L, D, F] if transposed)");
                }
                Self::grouped_by(x, w, self.transposed, None)
            }
            UnitKind::GroupedGrad if rank(0) == 4 && rank(1) == 4 && self.results.len() == 1 => {
                if argument(0).shape[..3] != argument(1).shape[..3] {
                    return wrong("x [P, S, C, D] and dy [P, S, C, F]");
                }
                Self::grouped_grad(
                    argument(0),
                    argument(1),
                    self.results[0].shape.get(1).copied().unwrap_or(0),
                )
            }
            UnitKind::Grouped | UnitKind::GroupedGrad => return wrong("rows of shape [P, S, C, D]"),
        };
        let expected = match self.window {
            Some(window) => expected.windowed(window),
            None => expected,
        };
        self.same_types(&expected)
    }

    fn rows(&self) -> Option<u64> {
        self.results.first()?.shape.first().copied()
    }

    fn check_route(&self) -> Result<(), String> {
        let shape =
            |types: &[TensorType]| types.first().map(|r#type| r#type.shape.clone()).unwrap_or_default();
        let (scores, rows) = (shape(&self.arguments), shape(&self.results));
        let (&[tokens, experts], &[groups, slots, _], Some(k)) =
            (scores.as_slice(), rows.as_slice(), self.top_k)
        else {
            return Err("route expects scores of shape [N, E] and a number of experts a token".into());
        };
        if groups == 0 || slots == 0 || tokens % groups != 0 || experts % slots != 0 {
            return Err(format!(
                "route cannot cut {tokens} tokens into {groups} groups and {experts} experts into {slots} slots"
            ));
        }
        if k == 0 || k > experts {
            return Err(format!("route cannot choose {k} of {experts} experts"));
        }
        self.same_types(&Self::route(&self.arguments[0], k, groups, slots))
    }

    fn same_types(&self, expected: &Self) -> Result<(), String> {
        if (&expected.arguments, &expected.results) == (&self.arguments, &self.results) {
            Ok(())
        } else {
            Err(format!("{} has operands whose shapes disagree", self.kind.name()))
        }
    }
}

/// The offsets of the experts' rows in `x [P,S,C,D]`.
fn offsets(x: &TensorType, experts: u64) -> TensorType {
    TensorType::new(
        [x.shape.first(), x.shape.get(1)]
            .map(|e| e.copied().unwrap_or(0))
            .into_iter()
            .chain([experts + 1])
            .collect::<Vec<_>>(),
        Element::I32,
    )
}

/// What part of the rows is routed: a slot has room for every token to choose only its experts.
fn density(x: &TensorType, w: &TensorType, top_k: u64) -> f64 {
    let (slots, experts) = (x.shape.get(1).copied().unwrap_or(1), w.shape.get(1).copied().unwrap_or(1));
    let room = slots * top_k.min(experts);
    if room == 0 { 1.0 } else { top_k as f64 / room as f64 }
}
