//! Loads models as a user would and looks at the modules that come out.

mod errors;
mod graph;
mod modules;
