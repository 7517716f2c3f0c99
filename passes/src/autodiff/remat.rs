//! Rematerialisation: what a function that the entry calls (a layer) keeps of its forward for its backward, and what
//! the backward computes again.
//!
//! Kept values are results of the forward function and arguments of the backward function, so that the trade is
//! visible in both signatures. Functions that a layer calls keep everything: their layer decides whether it keeps
//! what they return. Values that a function returns anyway, and its arguments, cost nothing.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
};

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Error, Generic, Op, Val, ffi,
    function::{self, Function},
    units::unit_of,
    views::Collective,
    walk,
};

use super::activity::operations;

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remat {
    /// Everything that the backward reads.
    #[default]
    None,
    /// The results of matrix products, attention and other units, calls and collectives. Norms, activations, masks and
    /// rotations are computed again; the scores of attention are never kept under any policy.
    Attention,
    /// Nothing but the layer's arguments: the backward begins with the forward.
    Full,
    /// At most so many bytes over all layers of the whole model, before it is partitioned, spent on the values that
    /// save most operations a byte.
    Bytes(u64),
}

impl FromStr for Remat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "none" => Ok(Self::None),
            "attention" => Ok(Self::Attention),
            "full" => Ok(Self::Full),
            number => number.parse().map(Self::Bytes).map_err(drop),
        }
    }
}

impl fmt::Display for Remat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::Attention => write!(f, "attention"),
            Self::Full => write!(f, "full"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// A value of a function: the number of its operation, and of the result.
pub type Place = (usize, usize);

/// A value that the backward of a function takes from its forward.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The function.
    pub function: String,
    /// Which value.
    pub place: Place,
    /// Its bytes, over all calls of the function.
    pub bytes: u64,
    /// The operations that computing it again costs, beyond computing what it is made of.
    pub flops: u64,
}

/// The values that are kept within `budget` bytes: greedily, by operations a byte.
pub fn choose(mut saved: Vec<Saved>, budget: u64) -> HashMap<String, HashSet<Place>> {
    let density = |one: &Saved| one.flops as f64 / one.bytes.max(1) as f64;
    saved.sort_by(|x, y| density(y).total_cmp(&density(x)));
    let (mut left, mut chosen) = (budget, HashMap::<String, HashSet<Place>>::new());
    for one in saved {
        if one.bytes <= left {
            left -= one.bytes;
            chosen.entry(one.function).or_default().insert(one.place);
        }
    }
    chosen
}

/// What the backward of one function keeps.
#[derive(Clone, Debug)]
pub enum Keep<'t> {
    /// All that it reads.
    Everything,
    /// What is expensive to compute again, and these values.
    Products(Kept<'t>),
    /// These values.
    Only(Kept<'t>),
}

/// Values by key, and the symbols of lookups, which only copy rows.
#[derive(Clone, Debug)]
pub struct Kept<'t> {
    keys: HashSet<usize>,
    lookups: &'t HashSet<String>,
}

impl<'t> Keep<'t> {
    /// The rule of `policy` for `function`. `chosen` are the values within a budget.
    pub fn new(
        policy: Remat,
        function: Function<'_, '_>,
        chosen: Option<&HashSet<Place>>,
        lookups: &'t HashSet<String>,
    ) -> Self {
        let mut keys: HashSet<usize> = function.results().into_iter().map(ffi::value_key).collect();
        if let Some(chosen) = chosen {
            let all = operations(function);
            let found =
                chosen.iter().filter_map(|&(operation, result)| all.get(operation)?.result(result).ok());
            keys.extend(found.map(|value| ffi::value_key(value.into())));
        }
        match policy {
            Remat::None => Self::Everything,
            Remat::Attention => Self::Products(Kept { keys, lookups }),
            Remat::Full | Remat::Bytes(_) => Self::Only(Kept { keys, lookups }),
        }
    }

    /// Whether the result `value` of `operation` is taken from the forward.
    pub fn keeps(&self, operation: Op<'_, '_>, value: Val<'_, '_>) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(kept) => kept.keys.contains(&ffi::value_key(value)),
            Self::Products(kept) => {
                kept.keys.contains(&ffi::value_key(value)) || is_expensive(operation, kept.lookups)
            }
        }
    }
}

fn is_expensive(operation: Op<'_, '_>, lookups: &HashSet<String>) -> bool {
    if Collective::cast(operation).is_some() {
        return true;
    }
    if walk::is(operation, "func.call") {
        let callee = t3c_ir::attributes::string(operation, "callee").unwrap_or_default();
        return !lookups.contains(&callee);
    }
    Generic::is(operation) && Generic::read(operation).is_ok_and(|generic| generic.is_matrix_product())
}

/// The operations that computing an operation again costs.
pub fn flops(module: Op<'_, '_>, operation: Op<'_, '_>) -> u64 {
    if let Some(callee) = function::callee(module, operation) {
        return match unit_of(callee) {
            Some(unit) => unit.flops(),
            None => operations(callee).into_iter().map(|inner| flops(module, inner)).sum(),
        };
    }
    walk::is(operation, "linalg.generic")
        .then(|| Generic::read_all(operation).ok())
        .flatten()
        .map_or(0, |generics| generics.iter().map(Generic::flops).sum())
}

/// The functions that `entry` calls, and how often.
pub fn layers(module: Op<'_, '_>, entry: Function<'_, '_>) -> Result<HashMap<String, u64>, Error> {
    let mut layers = HashMap::new();
    for operation in operations(entry) {
        if let Some(callee) = function::callee(module, operation).filter(|callee| callee.unit().is_none()) {
            *layers.entry(callee.name()).or_insert(0) += 1;
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_on_what_costs_most_operations_a_byte() {
        let saved = |place, bytes, flops| Saved { function: "layer".into(), place, bytes, flops };
        let all = vec![
            saved((0, 0), 100, 100),
            saved((1, 0), 100, 900),
            saved((2, 0), 50, 300),
            saved((3, 0), 0, 0),
        ];
        let chosen = |budget| {
            let mut places: Vec<Place> =
                choose(all.clone(), budget).remove("layer").unwrap_or_default().into_iter().collect();
            places.sort_unstable();
            places
        };
        assert_eq!(chosen(0), [(3, 0)]);
        assert_eq!(chosen(99), [(2, 0), (3, 0)]);
        assert_eq!(chosen(150), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!("attention".parse(), Ok(Remat::Attention));
        assert_eq!("4096".parse(), Ok(Remat::Bytes(4096)));
        assert!("half".parse::<Remat>().is_err());
    }
}
