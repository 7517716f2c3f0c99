//! Why a pass left something as it is. The ids are stable: `--remarks`, the JSON output and the book's
//! page of reasons share them.

/// A reason, with the facts that it rests on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Decline {
    /// The devices divide no dimension of the value, so it has no equal chunks.
    #[error("no dimension of {shape:?} divides by {devices} devices")]
    Indivisible {
        /// The value's shape.
        shape: Vec<u64>,
        /// Devices of the group.
        devices: u32,
    },
    /// A scalar has no chunks; its all-reduce moves a few bytes.
    #[error("a scalar has no chunks")]
    Scalar,
    /// Only sums are tracked: updates in memory add.
    #[error("reduces by {reduction}, and updates in memory add")]
    NotASum {
        /// The reduction.
        reduction: &'static str,
    },
    /// The group has one device: nothing is sent.
    #[error("the group has one device")]
    OneDevice,
    /// The partial value has another user than the collective, which would need the whole of it.
    #[error("the partial value is also used by {user}")]
    PartialUsedElsewhere {
        /// The other user's name and place.
        user: String,
    },
    /// Between the product and the collective stands an operation that is not linear in the partial value.
    #[error("{operation} between the product and the collective is not a sum")]
    NonlinearBetween {
        /// The operation's name and place.
        operation: String,
    },
    /// The value comes from a call, an argument or another operation that no region can hold.
    #[error("the value comes from {producer}, which cannot store it chunk by chunk")]
    NoProducer {
        /// What it comes from.
        producer: String,
    },
    /// A named operation is not looked into.
    #[error("the value comes from {operation}, which is not in generic form")]
    NamedOperation {
        /// The operation's name and place.
        operation: String,
    },
    /// The operation cannot compute a part of its result along the chunks' dimension alone.
    #[error("{operation} cannot compute chunks along dimension {dimension} one by one")]
    NotDivisible {
        /// The operation's name and place.
        operation: String,
        /// The dimension of its result.
        dimension: usize,
    },
    /// The other half belongs to another pair already.
    #[error("its other half is fused with another collective: {other}")]
    FusedElsewhere {
        /// The other pair.
        other: String,
    },
    /// The target runs such a pair one after the other.
    #[error("the target runs {pair} one after the other")]
    UnsupportedByTarget {
        /// What the pair is.
        pair: String,
    },
    /// Nothing that reads the gathered value could work on parts of it.
    #[error("{users} cannot work on parts of the gathered value")]
    NoReader {
        /// Those who use it.
        users: String,
    },
    /// A product adds into an initial value that is not zero.
    #[error("the product at {location} starts from a value other than zero")]
    NonzeroStart {
        /// The product's place.
        location: String,
    },
    /// The pair would take longer fused than unfused on the chosen system.
    #[error(
        "sequential takes {sequential_us:.1} us, fused {fused_us:.1} us, of which triggers {trigger_us:.1} us"
    )]
    Unprofitable {
        /// Producer, then collective.
        sequential_us: f64,
        /// Both at once, with the cost of triggers.
        fused_us: f64,
        /// The triggers' part.
        trigger_us: f64,
    },
    /// A chunk is smaller than one tile of the product: nothing would overlap.
    #[error("a chunk has {chunk} of the scattered dimension's indices, less than a tile of {tile}")]
    ChunkBelowTile {
        /// Indices of a chunk.
        chunk: u64,
        /// Indices of a tile.
        tile: u64,
    },
    /// The reader sums over the gathered dimension, so the order of arrival would change its rounding.
    #[error("{reader} sums over dimension {dimension} of its operand, which is gathered")]
    GatheredDimensionReduced {
        /// The gathered dimension.
        dimension: usize,
        /// The reader's name and place.
        reader: String,
    },
    /// The user asked for no fusion.
    #[error("fusion is off")]
    FusionOff,
    /// The search stopped at a limit.
    #[error("the search stopped after {nodes} nodes: {limit}")]
    SearchLimit {
        /// Nodes reached.
        nodes: usize,
        /// Which limit.
        limit: String,
    },
}

impl Decline {
    /// The stable id.
    pub fn id(&self) -> &'static str {
        match self {
            Decline::Indivisible { .. } => "indivisible",
            Decline::Scalar => "scalar",
            Decline::NotASum { .. } => "not-a-sum",
            Decline::OneDevice => "one-device",
            Decline::PartialUsedElsewhere { .. } => "partial-used-elsewhere",
            Decline::NonlinearBetween { .. } => "nonlinear-between",
            Decline::NoProducer { .. } => "no-producer",
            Decline::NamedOperation { .. } => "named-operation",
            Decline::NotDivisible { .. } => "not-divisible",
            Decline::FusedElsewhere { .. } => "fused-elsewhere",
            Decline::UnsupportedByTarget { .. } => "unsupported-by-target",
            Decline::NoReader { .. } => "no-reader",
            Decline::NonzeroStart { .. } => "nonzero-start",
            Decline::Unprofitable { .. } => "unprofitable",
            Decline::ChunkBelowTile { .. } => "chunk-below-tile",
            Decline::GatheredDimensionReduced { .. } => "gathered-dimension-reduced",
            Decline::FusionOff => "fusion-off",
            Decline::SearchLimit { .. } => "search-limit",
        }
    }

    /// What the user may try.
    pub fn suggestion(&self) -> Option<&'static str> {
        match self {
            Decline::Indivisible { .. } => Some("choose a degree that divides one of them"),
            Decline::Unprofitable { .. } | Decline::ChunkBelowTile { .. } => {
                Some("--fuse always fuses it nevertheless")
            }
            Decline::FusionOff => Some("--fuse profitable or --fuse always"),
            Decline::PartialUsedElsewhere { .. } => {
                Some("use the collective's result instead, where the model allows it")
            }
            Decline::NonlinearBetween { .. } => Some("move it behind the collective"),
            Decline::NamedOperation { .. } => {
                Some("write it as linalg.generic; t3-normalize knows the usual ones")
            }
            Decline::NonzeroStart { .. } => Some("add the start in an operation of its own"),
            Decline::GatheredDimensionReduced { .. } => Some("gather along another dimension"),
            _ => None,
        }
    }

    /// The figures of the decision.
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        match *self {
            Decline::Indivisible { devices, .. } => vec![("devices", f64::from(devices))],
            Decline::Unprofitable { sequential_us, fused_us, trigger_us } => {
                vec![("sequential_us", sequential_us), ("fused_us", fused_us), ("trigger_us", trigger_us)]
            }
            Decline::ChunkBelowTile { chunk, tile } => {
                vec![("chunk", chunk as f64), ("tile", tile as f64)]
            }
            Decline::SearchLimit { nodes, .. } => vec![("nodes", nodes as f64)],
            _ => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_an_id_a_sentence_and_its_figures() {
        let decline = Decline::Unprofitable { sequential_us: 4.0, fused_us: 6.5, trigger_us: 3.0 };
        assert_eq!(decline.id(), "unprofitable");
        assert_eq!(decline.to_string(), "sequential takes 4.0 us, fused 6.5 us, of which triggers 3.0 us");
        assert_eq!(decline.numbers()[1], ("fused_us", 6.5));
        assert!(Decline::Scalar.suggestion().is_none());
    }
}
