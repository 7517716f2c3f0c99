//! Declares the `loom` configuration, under which `src/sync.rs` swaps its atomics.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rerun-if-changed=build.rs");
}
