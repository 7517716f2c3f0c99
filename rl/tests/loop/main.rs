//! Rollouts against a decoder that can be checked token by token, and the loop against a policy
//! small enough to learn in milliseconds.

mod hash_decoder;
mod rollouts;
mod tables;
mod toy;
mod training;
