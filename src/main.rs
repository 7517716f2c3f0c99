//! The `t3c` command.

fn main() {}
