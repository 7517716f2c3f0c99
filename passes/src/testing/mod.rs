//! Random modules for property tests.

mod models;
mod programs;

pub use models::{Model, Step, build, inputs, models, on_the_grid, whole};
pub use programs::{Move, Program, build_program, programs, run_program};
