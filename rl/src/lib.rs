//! Rewarded-tree reinforcement learning: tools, rollouts, rewards, advantages and the loop.
//!
//! Knows tasks, trees and the arithmetic of credit. Knows neither MLIR nor how a model is run: a
//! model is a [`trainer::Policy`], which takes a packed batch for one optimizer step and rows for one
//! decode step. The root package implements it with compiled code.

pub mod credit;
pub mod decode;
pub mod pack;
pub mod random;
pub mod recipe;
pub mod task;
pub mod tools;
pub mod trainer;
pub mod tree;
