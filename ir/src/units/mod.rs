//! Units: what linalg cannot say well (lookups, attention and its cache, routing and the grouped product of
//! experts), as private functions with a plain reference body and the attribute `t3.unit`.
//!
//! The interpreter and any fallback use the body. Autodiff, sharding and kernels key on the attribute, so that
//! attention's backward recomputes and never stores scores, a lookup's gradient is a scatter, and experts do the
//! work of the rows that are routed to them.

mod attention;
mod experts;
mod lookup;
mod unit;

#[cfg(test)]
mod tests;

use melior::ir::{
    Attribute, Location, Type,
    attribute::{FloatAttribute, IntegerAttribute},
    operation::OperationLike,
};

pub use self::{attention::BLOCK, unit::Unit};
use crate::{
    Builder, Error, Op, TensorType, Val,
    attributes::integer_attr,
    ffi,
    function::{Function, Port, Signature, add_function_to, function},
};

/// The attribute that holds an attention unit's factor on scores.
pub const SCALE: &str = "t3.scale";
/// The attribute that holds the bound `cap` of an attention unit's scores: `cap · tanh(score / cap)`.
pub const SOFTCAP: &str = "t3.softcap";
/// The attribute that holds how many positions a token sees, itself included.
pub const WINDOW: &str = "t3.window";
/// The attribute that promises that index operands point into their own block of the split token dimension.
pub const ALIGNED: &str = "t3.aligned";
/// The attribute that holds how many experts a token is routed to.
pub const TOP_K: &str = "t3.top_k";
/// The attribute on a grouped product whose weights are contracted along their third dimension.
pub const TRANSPOSED: &str = "t3.transposed";
/// The attribute that holds the fraction of a grouped product's rows that are routed ones; the others are padding.
pub const DENSITY: &str = "t3.density";

/// The units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// `(table [V, D…], ids [I…]) → [I…, D…]`: row gather.
    Lookup,
    /// `(ids [I…], dout [I…, D…]) → [V, D…]`: the gradient of the table; equal ids are added in row order.
    LookupGrad,
    /// `(q [N,K,G,2,E], k [N,K,2,E], v [N,K,H], subtree_end [N]) → [N,K,G,H]` with `H = 2E`: token `j` is visible
    /// to `i` where `j ≤ i < subtree_end[j]`. With a window, `position [N]` follows, and `position[i] −
    /// position[j] < window` must hold too.
    Attention,
    /// `(q, k, v, subtree_end, [position,] dout) → (dq, dk, dv)`: recomputes the probabilities.
    AttentionGrad,
    /// `(q [S,K,G,2,E], k [S,K,2,E], v [S,K,H], k_cache [NB,16,K,2,E], v_cache [NB,16,K,H], block_table [S,B],
    /// position [S]) → (out [S,K,G,H], k_cache, v_cache)`: writes every row, then every row attends to positions
    /// `0..=position` of its block table, with a window to the last ones of them.
    AttentionPaged,
    /// `(scores [N,E]) → (source [P,S,C], expert [P,S,C], offsets [P,S,E/S+1])`: the rows of each group of `N/P`
    /// tokens and each slot of `E/S` experts, one for every token and every expert of the slot among the token's
    /// best (of equal scores, the lower expert), sorted by expert, then token. `source` is the token and `expert`
    /// the expert of a row; padding has the group's first token and expert −1. Rows `offsets[p,s,e]..offsets[p,s,e+1]`
    /// belong to the slot's expert `e`. A score that is no number counts as the lowest.
    Route,
    /// `(x [P,S,C,D], w [S,L,F,D], offsets [P,S,L+1]) → [P,S,C,F]`: each row times the matrix of its expert, zero
    /// for padding. Transposed: `w [S,L,D,F]`.
    Grouped,
    /// `(x [P,S,C,D], dy [P,S,C,F], offsets [P,S,L+1]) → [S,L,F,D]`: the gradient of the matrices.
    GroupedGrad,
}

const NAMES: [(UnitKind, &str); 8] = [
    (UnitKind::Lookup, "lookup"),
    (UnitKind::LookupGrad, "lookup_grad"),
    (UnitKind::Attention, "attention"),
    (UnitKind::AttentionGrad, "attention_grad"),
    (UnitKind::AttentionPaged, "attention_paged"),
    (UnitKind::Route, "route"),
    (UnitKind::Grouped, "grouped"),
    (UnitKind::GroupedGrad, "grouped_grad"),
];

impl UnitKind {
    /// The value of `t3.unit`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// The unit of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }
}

/// The function of `unit`, added to the module with its reference body where it is not there yet.
///
/// # Errors
/// When the shapes do not fit the unit.
pub fn ensure(module: Op<'_, '_>, unit: &Unit) -> Result<String, Error> {
    let symbol = unit.symbol();
    if function(module, &symbol).is_some() {
        return Ok(symbol);
    }
    unit.check().map_err(|message| Error::at(module, message))?;
    let ports = |types: &[TensorType]| types.iter().map(|r#type| Port::new("", r#type.clone())).collect();
    let signature = Signature {
        name: symbol.clone(),
        arguments: ports(&unit.arguments),
        results: ports(&unit.results),
        public: false,
        unit: Some(unit.kind.name().to_owned()),
    };
    let context = ffi::context_of(module);
    let location = Location::name(context, unit.kind.name(), Location::unknown(context));
    let (operation, block) = add_function_to(module, &signature, location)?;
    write_options(operation, unit);
    let b = Builder::at_end(context, block, location);
    b.ret(&body(&b, &Function(operation).arguments(), unit)?)?;
    Ok(symbol)
}

fn body<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    unit: &Unit,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    Ok(match unit.kind {
        UnitKind::Lookup => vec![lookup::lookup(b, arguments[0], arguments[1])?],
        UnitKind::LookupGrad => {
            vec![lookup::lookup_grad(b, arguments[0], arguments[1], unit.results[0].shape[0])?]
        }
        UnitKind::Attention => vec![attention::attention(b, arguments, unit)?],
        UnitKind::AttentionGrad => attention::attention_grad(b, arguments, unit)?,
        UnitKind::AttentionPaged => attention::attention_paged(b, arguments, unit)?,
        UnitKind::Route => experts::route(b, arguments[0], unit)?,
        UnitKind::Grouped => vec![experts::grouped(b, arguments, unit.transposed)?],
        UnitKind::GroupedGrad => vec![experts::grouped_grad(b, arguments, unit.results[0].shape[1])?],
    })
}

fn write_options(operation: Op<'_, '_>, unit: &Unit) {
    let context = ffi::context_of(operation);
    let set = |name: &str, value: Attribute<'_>| ffi::set_attribute(operation, name, value);
    for (name, value) in [(SCALE, unit.scale), (SOFTCAP, unit.softcap), (DENSITY, unit.density)] {
        if let Some(value) = value {
            set(name, FloatAttribute::new(context, Type::float64(context), value).into());
        }
    }
    for (name, value) in [(WINDOW, unit.window), (TOP_K, unit.top_k)] {
        if let Some(value) = value {
            set(name, integer_attr(context, value as i64));
        }
    }
    for (name, value) in [(ALIGNED, unit.aligned), (TRANSPOSED, unit.transposed)] {
        if value {
            set(name, Attribute::unit(context));
        }
    }
}

/// The unit that a function implements, if it is one.
pub fn unit_of(function: Function<'_, '_>) -> Option<Unit> {
    let kind = UnitKind::from_name(&function.unit()?)?;
    let types = |ports: Vec<Port>| ports.into_iter().map(|port| port.r#type).collect();
    let attribute = |name: &str| function.0.attribute(name).ok();
    let float = |name| attribute(name).and_then(|value| FloatAttribute::try_from(value).ok());
    let integer = |name| {
        let value = attribute(name).and_then(|value| IntegerAttribute::try_from(value).ok())?;
        u64::try_from(value.value()).ok()
    };
    let mut unit =
        Unit::new(kind, types(function.argument_ports().ok()?), types(function.result_ports().ok()?));
    unit.scale = float(SCALE).map(|scale| scale.value());
    unit.softcap = float(SOFTCAP).map(|cap| cap.value());
    unit.density = float(DENSITY).map(|density| density.value());
    unit.window = integer(WINDOW);
    unit.top_k = integer(TOP_K);
    unit.aligned = attribute(ALIGNED).is_some();
    unit.transposed = attribute(TRANSPOSED).is_some();
    Some(unit)
}
