//! Loads models as a user would and looks at the modules that come out.

mod errors;
mod families;
mod goldens;
mod gradients;
mod graph;
mod graph_ops;
mod modules;
mod objectives;
mod properties;
