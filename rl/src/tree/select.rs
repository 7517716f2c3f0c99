//! Which forks survive.
//!
//! After each step the paper samples f candidates a live node and keeps n − n_c of all candidates,
//! where n_c trajectories are complete. Live nodes always number n − n_c, so every fork that is kept
//! costs another branch its life, and a rule that first serves each parent once would never fork.
//!
//! Random selection does not look at what the candidates contain. Given its parent, a candidate is
//! then an independent draw whether it is kept or not, and the kept ones are distributed as if only
//! they had been drawn. So the slots are chosen *before* sampling, and only survivors are decoded:
//! the same distribution for 1/f of the decoding.

use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Node;

/// A rule that gives slots to live nodes before anything is sampled for them.
pub trait Expansion {
    /// For each of the `live` nodes of one depth, in order, how many children it gets. The sum should
    /// be the number of live nodes: more would not fit the decoder, fewer lose trajectories.
    /// `branching` is the number of candidates a node has.
    fn children(&self, live: &[&Node], branching: usize, random: &mut ChaCha8Rng) -> Vec<usize>;
}

/// The rules that ship.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// PORTool with random selection: as many slots as live nodes, drawn without replacement from
    /// `branching` candidates a node.
    Portool,
    /// One continuation a node: plain chains, as in GRPO.
    Chains,
}

impl Expansion for Selection {
    fn children(&self, live: &[&Node], branching: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
        if *self == Self::Chains || branching <= 1 {
            return vec![1; live.len()];
        }
        let mut children = vec![0; live.len()];
        for candidate in rand::seq::index::sample(random, live.len() * branching, live.len()) {
            children[candidate / branching] += 1;
        }
        children
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Seed};
    use crate::task::Ending;

    fn node() -> Node {
        Node {
            parent: None,
            depth: 1,
            tokens: vec![1],
            logp: vec![-1.0],
            response: Vec::new(),
            ending: Ending::Call,
            checks: Default::default(),
        }
    }

    #[test]
    fn slots_are_drawn_without_replacement() {
        // With f = 2 and two live nodes: of 6 pairs of candidates, 2 fall on one parent.
        let mut forks = 0;
        for part in 0..3000 {
            let mut random = Seed { seed: 1, step: 2 }.stream(Purpose::Selection, 3, part);
            let children = Selection::Portool.children(&[&node(), &node()], 2, &mut random);
            assert_eq!(children.iter().sum::<usize>(), 2);
            forks += usize::from(children.contains(&2));
        }
        assert!((forks as f64 / 3000.0 - 1.0 / 3.0).abs() < 0.03, "{forks}");
    }

    #[test]
    fn chains_never_fork() {
        let mut random = Seed { seed: 1, step: 2 }.stream(Purpose::Selection, 3, 4);
        let node = node();
        let live = [&node; 5];
        assert_eq!(Selection::Chains.children(&live, 3, &mut random), vec![1; 5]);
        assert_eq!(Selection::Portool.children(&live, 1, &mut random), vec![1; 5]);
    }
}
