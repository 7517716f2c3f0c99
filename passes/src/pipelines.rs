//! The named orders of passes, and how to run them.

use t3c_ir::Module;
use t3c_schedule::{Algorithm, cost::Rates};

use crate::{
    configure_address_space::{BLOCKS, TILE},
    find_pairs::FindPairs,
    fuse::{Fuse, Policy, RATES},
    pass::{Pass, PassError},
    registry,
    remark::{self, Kind, Remark},
    shard::Stage,
};

/// From annotations to one program a device; `reassociate` also allows rewrites that change the order of additions.
pub fn sharding(reassociate: bool) -> Vec<String> {
    sharding_with(Stage::Off, reassociate)
}

/// As [`sharding`], with state split over data-parallel devices (ZeRO).
pub fn sharding_with(stage: Stage, reassociate: bool) -> Vec<String> {
    let shard = match stage {
        Stage::Off => "t3-shard",
        Stage::State => "t3-shard{zero=1}",
        Stage::Parameters => "t3-shard{zero=3}",
    };
    owned(&["t3-normalize", shard, if reassociate { "t3-simplify{reassociate=1}" } else { "t3-simplify" }])
}

/// What the fusing passes need to know of the user's wishes and machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fusion {
    /// Which pairs to fuse.
    pub policy: Policy,
    /// The machine's rates, for the bound.
    pub rates: Rates,
    /// Rows or columns of a product's tile.
    pub tile: u64,
    /// Blocks of a chunk, at most.
    pub blocks: u64,
    /// How chunks travel.
    pub algorithm: Algorithm,
}

impl Default for Fusion {
    /// Profitable pairs on the paper's 80-CU machine.
    fn default() -> Self {
        Self {
            policy: Policy::Profitable,
            rates: RATES,
            tile: TILE,
            blocks: BLOCKS,
            algorithm: Algorithm::Ring,
        }
    }
}

/// From collectives to track-and-trigger.
pub fn fusion(options: &Fusion) -> Vec<String> {
    let Fusion { policy, rates, tile, blocks, algorithm } = options;
    let mut passes = owned(&["t3-normalize", "t3-split-all-reduce", "t3-find-pairs"]);
    passes.push(format!(
        "t3-fuse{{policy={policy} tile={tile} flops={:e} memory={:e} link={:e} latency={:e} trigger={:e} launch={:e}}}",
        rates.flops_per_second,
        rates.memory_bytes_per_second,
        rates.link_bytes_per_second,
        rates.link_latency_seconds,
        rates.trigger_seconds,
        rates.launch_seconds,
    ));
    let algorithm = match algorithm {
        Algorithm::Ring => "ring",
        Algorithm::Direct => "direct",
    };
    passes.push(format!("t3-configure-address-space{{tile={tile} blocks={blocks} algorithm={algorithm}}}"));
    passes
}

/// For a backend that runs only sums of products and their reduce-scatter chunk by chunk, and readers behind their
/// gather: every other producer before its collective. To run on what [`fusion`] made, before [`schedule`].
pub fn plain_producers() -> Vec<String> {
    owned(&["t3-unfuse{keep=sums}"])
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

/// Pairs of a program, counted as often as it runs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairCounts {
    /// Producers with their collectives, gathers with their readers: each is fused or declined.
    pub found: u64,
    /// Fused with their producers.
    pub fused: u64,
    /// Left as they are, with a reason.
    pub declined: u64,
}

/// What the remarks of [`fusion`] say about pairs.
pub fn pair_counts(remarks: &[Remark]) -> PairCounts {
    let times = |kind: Kind, pass: &str| -> u64 {
        let these = remarks.iter().filter(|remark| remark.kind == kind && remark.pass == pass);
        these.map(|remark| remark.times).sum()
    };
    let fused = times(Kind::Passed, Fuse::NAME);
    let declined = times(Kind::Missed, Fuse::NAME) + times(Kind::Missed, FindPairs::NAME);
    PairCounts { found: fused + declined, fused, declined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_of_the_fusion_and_schedule_pipelines_exists_with_its_options() {
        let options = Fusion { policy: Policy::Always, tile: 16, ..Fusion::default() };
        for pass in fusion(&options).iter().chain(&schedule()) {
            registry::check(pass).unwrap();
        }
        let text = &fusion(&options)[3];
        let (_, inside) = text.split_once('{').unwrap();
        let pass = Fuse::from_options(inside.trim_end_matches('}')).unwrap();
        assert_eq!((pass.policy, pass.tile, pass.rates), (Policy::Always, 16, RATES));
    }

    #[test]
    fn pairs_are_counted_over_all_layers() {
        let context = t3c_ir::Context::new();
        let text = include_str!("../cases/find_pairs/reasons.mlir").replace("private ", "");
        let mut module = context.parse(&text, "reasons.mlir").unwrap();
        let mut remarks = Vec::new();
        let options = Fusion { policy: Policy::Always, ..Fusion::default() };
        run_passes(&mut module, &fusion(&options), &mut remarks).unwrap();
        // `layer` is public here, and `main` calls it twice.
        assert_eq!(pair_counts(&remarks), PairCounts { found: 9, fused: 5, declined: 4 });
    }
}
