//! The named orders of passes, and how to run them.

use t3c_ir::Module;

use crate::{
    pass::PassError,
    registry,
    remark::{self, Remark},
};

/// From annotations to one program a device.
pub fn sharding() -> Vec<String> {
    owned(&["t3-shard", "t3-simplify"])
}

/// From collectives to track-and-trigger. `policy` is that of `t3-fuse`: `always`, `profitable` or `never`.
pub fn fusion(policy: &str) -> Vec<String> {
    let mut passes = owned(&["t3-split-all-reduce", "t3-find-pairs"]);
    passes.push(format!("t3-fuse{{policy={policy}}}"));
    passes.push("t3-configure-address-space".to_owned());
    passes
}

/// What remains before a schedule can be read off: elementwise work gathered into kernels.
pub fn schedule() -> Vec<String> {
    owned(&["t3-outline", "t3-schedule"])
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Runs passes in order, ours and upstream ones, each as in a textual pipeline (`t3-fuse{policy=always}`,
/// `canonicalize`). The module is verified after each. Remarks are appended to `remarks`, also on failure.
///
/// # Errors
/// A name or option that does not fit, or the first diagnostic of a pass.
pub fn run_passes<S: AsRef<str>>(
    module: &mut Module<'_>,
    passes: &[S],
    remarks: &mut Vec<Remark>,
) -> Result<(), PassError> {
    registry::register_all();
    passes.iter().try_for_each(|pass| registry::check(pass.as_ref()))?;
    let elements: Vec<&str> = passes.iter().map(AsRef::as_ref).collect();
    let pipeline = format!("builtin.module({})", elements.join(","));
    let (outcome, made) = remark::collect(|| module.run(&pipeline));
    remarks.extend(made);
    Ok(outcome?)
}
