use proptest::prelude::*;

use super::*;
use crate::credit::{Options, credit, k3, surrogate};
use crate::task::{Ending, Trace};
use crate::tree::{Node, Trajectory};

/// The tokens that token `index` sees, itself included.
fn visible(pack: &Pack, index: usize) -> Vec<Token> {
    let sees = |other: &usize| (*other <= index) && (index as i32) < pack.subtree_end[*other];
    (0..=index).filter(sees).map(|other| pack.tokens[other]).collect()
}

/// Log-probability of a target after a sequence, under a policy that hashes the sequence.
fn logp(sequence: &[Token], target: Token) -> f64 {
    let hash = sequence
        .iter()
        .chain([&target])
        .fold(7u64, |hash, token| (hash ^ *token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
    -0.01 - 2.0 * (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn node(parent: Option<usize>, depth: u32, tokens: Vec<Token>, response: Vec<Token>) -> Node {
    let logp = tokens.iter().map(|token| -0.1 - 0.01 * (*token % 50) as f32).collect();
    Node {
        parent,
        depth,
        tokens,
        logp,
        response,
        ending: Ending::Call,
        checks: [true, true, false, true, false],
    }
}

/// Random trees with distinct leaves; some branches are pruned.
fn trees() -> impl Strategy<Value = Tree> {
    let tokens = || prop::collection::vec(1..100i32, 1..5);
    let step = (any::<prop::sample::Index>(), tokens(), prop::collection::vec(1..100i32, 0..3));
    let outcomes = prop::collection::vec(-1i8..=1, 14);
    (tokens(), prop::collection::vec(step, 1..14), outcomes).prop_map(|(prompt, steps, outcomes)| {
        let mut tree = Tree { prompt, ..Tree::default() };
        for (index, (parent, tokens, response)) in steps.into_iter().enumerate() {
            let parent = parent.index(index + 1).checked_sub(1);
            let depth = parent.map_or(1, |parent| tree.nodes[parent].depth + 1);
            tree.nodes.push(node(parent, depth, tokens, response));
        }
        let nodes = tree.nodes.len();
        let is_leaf = |leaf: &usize| tree.nodes.iter().all(|node| node.parent != Some(*leaf));
        let leaves: Vec<_> = (0..nodes).filter(is_leaf).collect();
        let kept = leaves.len().max(2) - 1;
        for (leaf, r_out) in leaves.into_iter().take(kept).zip(outcomes) {
            tree.nodes[leaf].response.clear();
            tree.trajectories.push(Trajectory { leaf, finished: true, r_out: f64::from(r_out) });
        }
        tree
    })
}

/// The loss of a pack under the hashing policy, and its derivative by (visible tokens, target).
type Gradient = std::collections::BTreeMap<(Vec<Token>, Token), f64>;

fn loss(pack: &Pack, options: &Options) -> (f64, Gradient) {
    let (mut loss, mut gradient) = (0.0, Gradient::new());
    for row in 0..pack.rows.len() {
        let sequence = visible(pack, pack.rows[row] as usize);
        let now = logp(&sequence, pack.targets[row]);
        let old = f64::from(pack.old_logp[row]);
        let (plus, minus) = (f64::from(pack.a_plus[row]), f64::from(pack.a_minus[row]));
        let pg = surrogate(now, old, plus, minus, options);
        let kl = k3(now, old);
        let weight = options.beta * f64::from(pack.weight[row]);
        loss += pg.value + weight * kl.value;
        *gradient.entry((sequence, pack.targets[row])).or_default() += pg.derivative + weight * kl.derivative;
    }
    (loss, gradient)
}

fn check_invariants(pack: &Pack) -> Result<(), TestCaseError> {
    let count = pack.tokens.len();
    for index in 0..count {
        let end = pack.subtree_end[index];
        prop_assert!(end > index as i32 && end <= count as i32);
        // A token's depth is the number of tokens that it sees besides itself, and subtrees nest.
        prop_assert_eq!(pack.position[index] as usize + 1, visible(pack, index).len());
        for inner in index..end as usize {
            prop_assert!(pack.subtree_end[inner] <= end);
        }
    }
    for (row, target) in pack.rows.iter().zip(&pack.targets) {
        let row = *row as usize;
        let is_child = |child: usize| {
            (child as i32) < pack.subtree_end[row]
                && pack.position[child] == pack.position[row] + 1
                && pack.tokens[child] == *target
        };
        prop_assert!((row + 1..count).any(is_child));
    }
    Ok(())
}

proptest! {
    #[test]
    fn packs_are_preorders(first in trees(), second in trees()) {
        let options = Options::default();
        let mut pack = Pack::default();
        let mut model = 0;
        for tree in [&first, &second] {
            let credit = credit(&tree.credit_input(), &options).unwrap();
            // With the divergence no step on a trajectory is left out.
            let weighted = Weighted::new(tree, &credit, 1.0, true);
            let before = pack.size();
            pack.tree(&weighted);
            prop_assert_eq!(pack.tokens.len() - before.0, tree.token_counts().packed);
            prop_assert_eq!(weighted.size(), (pack.tokens.len() - before.0, pack.rows.len() - before.1));
            let through = tree.trajectories_through();
            model += (0..tree.nodes.len()).filter(|n| through[*n] > 0).map(|n| tree.nodes[n].tokens.len()).sum::<usize>();
        }
        prop_assert_eq!(pack.rows.len(), model);
        check_invariants(&pack)?;
    }

    #[test]
    fn packed_equals_flattened(tree in trees(), beta in prop::sample::select(vec![0.0, 0.02])) {
        let options = Options { beta, ..Options::default() };
        let credit = credit(&tree.credit_input(), &options).unwrap();
        let (mut packed, mut flattened) = (Pack::default(), Pack::default());
        packed.tree(&Weighted::new(&tree, &credit, 1.0, beta > 0.0));
        flattened.flattened(&tree, &credit);
        check_invariants(&flattened)?;
        prop_assert_eq!(flattened.tokens.len(), tree.token_counts().flattened);
        let ((loss_a, gradient_a), (loss_b, gradient_b)) = (loss(&packed, &options), loss(&flattened, &options));
        // The arrays are f32: weights of a shared step are rounded once here, several times there.
        prop_assert!((loss_a - loss_b).abs() < 1e-5, "{} {}", loss_a, loss_b);
        for (key, value) in &gradient_b {
            let packed = gradient_a.get(key).copied().unwrap_or(0.0);
            prop_assert!((packed - value).abs() < 1e-5, "{:?}: {} {}", key, packed, value);
        }
    }

    #[test]
    fn padding_has_no_weight_and_sees_itself(tree in trees(), tokens in 0..40usize, rows in 0..40usize) {
        let credit = credit(&tree.credit_input(), &Options::default()).unwrap();
        let mut pack = Pack::default();
        pack.tree(&Weighted::new(&tree, &credit, 1.0, true));
        let (used_tokens, used_rows) = pack.size();
        let bucket = Bucket { tokens: used_tokens + tokens, rows: used_rows + rows };
        let batch = pack.clone().pad(&[Bucket { tokens: 1000, rows: 1000 }, bucket]).unwrap();
        prop_assert_eq!(batch.bucket, bucket);
        prop_assert_eq!(batch.pack.subtree_end.len(), bucket.tokens);
        prop_assert_eq!(&batch.pack.subtree_end[..used_tokens], &pack.subtree_end[..]);
        for index in used_tokens..bucket.tokens {
            prop_assert_eq!(batch.pack.subtree_end[index], index as i32 + 1);
            prop_assert_eq!((batch.pack.tokens[index], batch.pack.position[index]), (0, 0));
        }
        for row in used_rows..bucket.rows {
            prop_assert_eq!((batch.pack.rows[row], batch.pack.targets[row]), (0, 0));
            prop_assert_eq!((batch.pack.a_plus[row], batch.pack.a_minus[row], batch.pack.weight[row]), (0.0, 0.0, 0.0));
        }
        let small = Bucket { tokens: used_tokens - 1, rows: used_rows };
        prop_assert!(pack.pad(&[small]).is_err());
    }
}

/// A prompt, two chains of one step; the outcome of the second differs.
fn two_chains(r_out: f64) -> Tree {
    Tree {
        prompt: vec![1, 2, 3],
        nodes: vec![node(None, 1, vec![4, 5], vec![]), node(None, 1, vec![6], vec![])],
        trajectories: vec![
            Trajectory { leaf: 0, finished: true, r_out: 1.0 },
            Trajectory { leaf: 1, finished: true, r_out },
        ],
        ..Tree::default()
    }
}

#[test]
fn a_pack_by_hand() {
    let tree = two_chains(-1.0);
    let credit = credit(&tree.credit_input(), &Options::default()).unwrap();
    let mut pack = Pack::default();
    pack.tree(&Weighted::new(&tree, &credit, 1.0, false));
    assert_eq!(pack.tokens, [1, 2, 3, 4, 5, 6]);
    assert_eq!(pack.position, [0, 1, 2, 3, 4, 3]);
    assert_eq!(pack.subtree_end, [6, 6, 6, 5, 5, 6]);
    assert_eq!(pack.rows, [2, 3, 2]);
    assert_eq!(pack.targets, [4, 5, 6]);
}

#[test]
fn trees_without_gradient_are_left_out_and_batches_are_scaled() {
    let (even, uneven) = (two_chains(1.0), two_chains(-1.0));
    let bucket = Bucket { tokens: 13, rows: 8 };
    let options = Options { w2: 0.0, ..Options::default() };
    let weighted = |tree| {
        let credit = credit(&Tree::credit_input(tree), &options).unwrap();
        Weighted::new(tree, &credit, 1.0, false)
    };
    let one = batches(vec![weighted(&even), weighted(&uneven)], &[bucket], 1).unwrap();
    assert_eq!((one.len(), one[0].used_tokens), (1, 6));
    // Three do not fit in one batch of 13 tokens.
    let two = batches(vec![weighted(&uneven), weighted(&uneven), weighted(&uneven)], &[bucket], 1).unwrap();
    assert_eq!(two.iter().map(|batch| batch.used_tokens).sum::<usize>(), 18);
    assert_eq!(two.len(), 2);
    assert_eq!(two[0].pack.a_plus[0], 2.0 * one[0].pack.a_plus[0]);
    let small = Bucket { tokens: 5, rows: 8 };
    assert!(batches(vec![weighted(&uneven)], &[small], 1).is_err());
    assert!(batches(vec![weighted(&even)], &[bucket], 1).unwrap().is_empty());
}

#[test]
fn warm_start_batches_fill_the_bucket() {
    let bucket = Bucket { tokens: 20, rows: 9 };
    let draw = || {
        let trace = Trace { tokens: vec![7, 8, 9, 4], is_model: vec![true, true, false, true] };
        (vec![1, 2], trace)
    };
    let batch = sft_batch(bucket, 6, draw).unwrap();
    assert_eq!((batch.used_tokens, batch.used_rows), (18, 9));
    assert_eq!(&batch.pack.rows[..6], [1, 2, 4, 7, 8, 10]);
    assert_eq!(&batch.pack.targets[..3], [7, 8, 4]);
    assert_eq!(batch.pack.weight, vec![1.0 / 9.0; 9]);
    check_invariants(&Pack { ..batch.pack.clone() }).unwrap();
    assert!(sft_batch(Bucket { tokens: 5, rows: 9 }, 6, draw).is_err());
    assert!(sft_batch(bucket, 5, draw).is_err());
}
