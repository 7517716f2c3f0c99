//! A discrete-event model of a multi-accelerator machine with track-and-trigger.
