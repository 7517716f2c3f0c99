//! The schedule: what every device computes and sends, in which order, and what each arrival triggers.
//!
//! It is the only thing that leaves MLIR, and nothing rewrites it: what the simulator times is what
//! the CPU backend runs. The arithmetic of rings, chunks and thresholds lives here once, and is called
//! by passes, the dialect's verifier, the simulator, the runtime and the tests.
//!
//! Knows nothing but numbers and names: neither MLIR nor LLVM, neither model files nor machines.

pub mod address_space;
pub mod arrivals;
pub mod chunks;
pub mod cost;
pub mod effects;
mod error;
pub mod ffi;
pub mod invariants;
pub mod json;
pub mod ring;
pub mod testing;
mod text;
mod types;
pub mod wellformed;

pub use address_space::{
    Chunk, Op, Store, Trigger, configure_address_space, configure_all_to_all,
    configure_direct_reduce_scatter, configure_ring_reduce_scatter,
};
pub use arrivals::{Arrival, configure_arrivals, verify_arrivals};
pub use effects::{Effects, connect, dependencies};
pub use error::{AddressSpaceError, ArrivalError, Error, StepError};
pub use invariants::{verify_address_space, verify_exchange};
pub use json::{from_json, to_json};
pub use types::*;
pub use wellformed::{verify, verify_address_spaces, verify_structure};
