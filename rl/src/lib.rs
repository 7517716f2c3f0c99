//! Rewarded-tree reinforcement learning: tools, rollouts, rewards, advantages and the loop.
//!
//! Knows tasks, trees and the arithmetic of credit. Knows neither MLIR nor how a model is run: a
//! model is a [`trainer::Policy`], which takes a packed batch for one optimizer step and rows for one
//! decode step. The root package implements it with compiled code.
//!
//! From question to update:
//!
//! | module | what it does |
//! |---|---|
//! | [`recipe`] | reads `portool.json` and says which sizes must be compiled |
//! | [`task`], [`tools`] | ask, answer calls, judge answers, teach |
//! | [`tree`], [`decode`] | grow one tree a question, all in one batch, shared prefixes decoded once |
//! | [`credit`] | rewards, advantages and loss of a tree, in double precision |
//! | [`pack`] | trees as flat arrays in depth-first preorder |
//! | [`trainer`] | the loop, its state and its metrics |
//!
//! Everything random is drawn from [`random`] by seed, step and place, so that the same recipe and
//! the same policy give the same bits, whatever the batching, resumed or not.

pub mod credit;
pub mod decode;
pub mod pack;
pub mod random;
pub mod recipe;
pub mod task;
pub mod tools;
pub mod trainer;
pub mod tree;
