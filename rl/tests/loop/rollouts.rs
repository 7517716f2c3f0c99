use t3c_rl::decode::{DecodeShape, Distribution};
use t3c_rl::random::{Purpose, Seed};
use t3c_rl::task::{Split, Task, Token};
use t3c_rl::tree::{DecodeCounts, RolloutOptions, Selection, Tree, rollout};

use crate::hash_decoder::{HashDecoder, logits};
use crate::toy::{Question, Toy};

const TASK: Toy = Toy { longest_filler: 40 };
const SEED: Seed = Seed { seed: 7, step: 3 };
const OPTIONS: RolloutOptions = RolloutOptions {
    trajectories: 6,
    branching: 2,
    t_max: 4,
    max_step_tokens: 12,
    context: 100,
    temperature: 0.8,
};

fn questions(count: u64) -> Vec<Question> {
    (0..count).map(|i| TASK.question(Split::Training, &mut SEED.stream(Purpose::Questions, i, 0))).collect()
}

fn grow_by(
    selection: Selection,
    options: &RolloutOptions,
    rows: Vec<usize>,
    live: usize,
) -> (Vec<Tree>, DecodeCounts, HashDecoder) {
    let shape = DecodeShape::new(rows, live, options.context);
    let mut decoder = HashDecoder::new(shape.blocks);
    let (trees, counts) =
        rollout(&mut decoder, &TASK, &questions(20), options, &selection, &shape, SEED).unwrap();
    (trees, counts, decoder)
}

fn grow(options: &RolloutOptions, rows: Vec<usize>, live: usize) -> (Vec<Tree>, DecodeCounts, HashDecoder) {
    grow_by(Selection::Portool, options, rows, live)
}

/// Everything before a step: the prompt, and the steps above it with their responses.
fn prefix(tree: &Tree, node: usize) -> Vec<Token> {
    let mut prefix = tree.prompt.clone();
    for above in tree.path(node).into_iter().filter(|above| *above != node) {
        prefix.extend(&tree.nodes[above].tokens);
        prefix.extend(&tree.nodes[above].response);
    }
    prefix
}

#[test]
fn every_step_is_what_decoding_its_sequence_from_scratch_gives() {
    let (trees, _, _) = grow(&OPTIONS, vec![8, 64], 120);
    let mut distribution = Distribution::default();
    let mut forks = 0;
    for (question, tree) in trees.iter().enumerate() {
        forks += tree.forks_kept;
        for (node, step) in tree.nodes.iter().enumerate() {
            let mut random = SEED.stream(Purpose::Tokens, question as u64, node as u64);
            let mut sequence = prefix(tree, node);
            for (token, logp) in step.tokens.iter().zip(&step.logp) {
                distribution.set(&logits(sequence.iter().copied()), OPTIONS.temperature);
                assert_eq!(distribution.draw(&mut random), (*token, *logp));
                sequence.push(*token);
            }
        }
    }
    assert!(forks > 10, "{forks}");
}

#[test]
fn trees_do_not_depend_on_batching() {
    let (together, counts, _) = grow(&OPTIONS, vec![16, 256], 120);
    let (apart, slow, _) = grow(&OPTIONS, vec![3], 6);
    assert_eq!(together, apart);
    assert_eq!((counts.rows, counts.sampled), (slow.rows, slow.sampled));
    assert!(counts.calls < slow.calls / 5, "{} {}", counts.calls, slow.calls);
}

#[test]
fn shared_prefixes_are_decoded_once() {
    let (trees, counts, decoder) = grow(&OPTIONS, vec![8, 64], 120);
    let mut rows = 0;
    for tree in &trees {
        rows += tree.prompt.len();
        for step in &tree.nodes {
            // The last token enters the cache only where the trajectory goes on, with the response.
            let goes_on = !step.response.is_empty();
            rows += step.tokens.len() - 1 + usize::from(goes_on) + step.response.len();
        }
    }
    assert_eq!((counts.rows, decoder.rows), (rows, rows));
    assert_eq!(counts.padded_rows, decoder.calls.iter().sum::<usize>());
    assert!(decoder.calls.iter().all(|rows| [8, 64].contains(rows)));
    assert!(counts.copies > 0);
}

#[test]
fn every_question_yields_its_trajectories_within_depth_and_context() {
    for selection in [Selection::Portool, Selection::Chains] {
        let options = RolloutOptions { context: 64, ..OPTIONS };
        let (trees, _, _) = grow_by(selection, &options, vec![64], 120);
        for tree in &trees {
            assert_eq!(tree.trajectories.len(), options.trajectories);
            let mut pruned = 0;
            for (node, through) in tree.trajectories_through().iter().enumerate() {
                let has_children = tree.nodes.iter().any(|other| other.parent == Some(node));
                pruned += usize::from(*through == 0 && !has_children);
            }
            assert_eq!(pruned, tree.branches_pruned);
            assert_eq!(tree.forks_kept, tree.branches_pruned);
            for trajectory in &tree.trajectories {
                let leaf = &tree.nodes[trajectory.leaf];
                assert!(leaf.depth <= options.t_max);
                assert!(prefix(tree, trajectory.leaf).len() + leaf.tokens.len() <= options.context);
            }
            if selection == Selection::Chains {
                assert_eq!(tree.forks_kept, 0);
                let counts = tree.token_counts();
                let prompts = tree.prompt.len() * (options.trajectories - 1);
                assert_eq!(counts.packed + prompts, counts.flattened);
            }
        }
    }
}

#[test]
fn greedy_chains_repeat() {
    let options = RolloutOptions { temperature: 0.0, ..OPTIONS };
    let (trees, _, _) = grow_by(Selection::Chains, &options, vec![64], 120);
    for tree in &trees {
        let first: Vec<_> = tree.path(tree.trajectories[0].leaf);
        for trajectory in &tree.trajectories {
            let path = tree.path(trajectory.leaf);
            let same = |(a, b): (&usize, &usize)| tree.nodes[*a].tokens == tree.nodes[*b].tokens;
            assert!(path.iter().zip(&first).all(same));
        }
    }
}

#[test]
fn impossible_shapes_are_errors() {
    let shape = DecodeShape::new(vec![8], 5, OPTIONS.context);
    let mut decoder = HashDecoder::new(shape.blocks);
    let asked = questions(1);
    assert!(rollout(&mut decoder, &TASK, &asked, &OPTIONS, &Selection::Portool, &shape, SEED).is_err());
    let options = RolloutOptions { context: 12, ..OPTIONS };
    let shape = DecodeShape::new(vec![8], 6, 12);
    assert!(rollout(&mut decoder, &TASK, &asked, &options, &Selection::Portool, &shape, SEED).is_err());
}
