//! The schedule that both backends run, and its arithmetic.
