//! Fused steps and collectives on threads against a serial reference, bit for bit.
#![cfg(not(loom))]

mod failures;
mod fused;
mod groups;
mod reference;
mod schedules;
mod unsafe_kernel;
mod unsafe_mailbox;
