use proptest::prelude::*;

use super::*;

const EPS: f64 = 1e-12;

fn node(parent: i64, format_score: f64, logp: &[f64], old_logp: &[f64]) -> NodeInput {
    NodeInput {
        parent,
        model_tokens: logp.len(),
        tool_tokens: 1,
        format_score,
        logp: logp.to_vec(),
        old_logp: old_logp.to_vec(),
        ref_logp: old_logp.iter().map(|value| value - 0.1).collect(),
    }
}

fn ended(leaf: i64, r_out: f64) -> TrajectoryInput {
    TrajectoryInput { leaf, finished: true, r_out }
}

/// Query → 0 → {1, 2}; query → 3; 4 was pruned. Trajectories end in 1 (right), 2 (wrong), 3 (right).
fn forked() -> TreeInput {
    TreeInput {
        prompt_tokens: 5,
        nodes: vec![
            node(-1, 0.8, &[-0.5, -1.0], &[-0.7, -0.9]),
            node(0, 1.0, &[-0.3], &[-0.9]),
            node(0, 0.6, &[-2.0, -0.4], &[-1.2, -0.5]),
            node(-1, 1.0, &[-0.8, -0.2, -0.1], &[-0.8, -0.6, -0.1]),
            node(3, 0.2, &[-1.0], &[-1.0]),
        ],
        trajectories: vec![ended(1, 1.0), ended(2, -1.0), ended(3, 1.0)],
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= EPS * a.abs().max(b.abs()).max(1.0)
}

/// The loss trajectory by trajectory, a shared step as often as trajectories pass through it, and
/// clipped once each. Derivatives are added where a token recurs.
fn flattened(input: &TreeInput, options: &Options, credit: &Credit) -> (f64, Vec<Vec<f64>>) {
    let mut loss = 0.0;
    let mut dlogp: Vec<Vec<f64>> = input.nodes.iter().map(|n| vec![0.0; n.model_tokens]).collect();
    for (index, trajectory) in input.trajectories.iter().enumerate() {
        let mut step = credit.a[index].len();
        let mut current = trajectory.leaf;
        while current >= 0 {
            step -= 1;
            let (advantage, weight) = (credit.a[index][step], credit.weight[index]);
            let node = &input.nodes[current as usize];
            let row = &mut dlogp[current as usize];
            for (token, derivative) in row.iter_mut().enumerate() {
                let ratio = (node.logp[token] - node.old_logp[token]).exp();
                let clipped = ratio.clamp(1.0 - options.clip_low, 1.0 + options.clip_high);
                let is_clipped = clipped * advantage < ratio * advantage;
                loss -= weight * (ratio * advantage).min(clipped * advantage);
                let slope = if is_clipped { 0.0 } else { ratio * advantage };
                *derivative -= weight * slope;
                if options.beta > 0.0 {
                    let d = node.ref_logp[token] - node.logp[token];
                    loss += weight * options.beta * (d.exp() - d - 1.0);
                    *derivative += weight * options.beta * (1.0 - d.exp());
                }
            }
            current = node.parent;
        }
    }
    (loss, dlogp)
}

#[test]
fn a_tree_by_hand() {
    let options = Options { gamma: 0.5, t_max: 2, traj_norm: TrajNorm::None, ..Options::default() };
    let credit = credit(&forked(), &options).unwrap();
    // ±γ²/2 = ±0.125, scaled by 2·score − 1.
    let r_fm = [0.6 * 0.125, 0.125, 0.2 * 0.125, 0.125];
    let r_step = [(0.5 - 0.5) / 2.0 + r_fm[0], 1.0 + r_fm[1], -1.0 + r_fm[2], 1.0 + r_fm[3]];
    for index in 0..4 {
        assert!(close(credit.r_fm[index].unwrap(), r_fm[index]));
        assert!(close(credit.r_step[index].unwrap(), r_step[index]));
    }
    let (centre_first, centre_second) = ((r_step[0] + r_step[3]) / 2.0, (r_step[1] + r_step[2]) / 2.0);
    let a_fork = [
        r_step[0] - centre_first,
        r_step[1] - centre_second,
        r_step[2] - centre_second,
        r_step[3] - centre_first,
    ];
    let a_traj = [1.0 - 1.0 / 3.0, -1.0 - 1.0 / 3.0, 1.0 - 1.0 / 3.0];
    for (found, expected) in credit.a_fork.iter().zip(a_fork) {
        assert!(close(found.unwrap(), expected));
    }
    // |τ| = 3, 4, 3: token mean.
    assert_eq!(credit.weight, vec![0.1; 3]);
    assert!(close(credit.a[1][0], a_traj[1] + a_fork[0]));
    let plus = 0.1 * (a_traj[0] + a_fork[0]).max(0.0) + 0.1 * (a_traj[1] + a_fork[0]).max(0.0);
    assert!(close(credit.a_plus[0].unwrap(), plus));
    assert!(close(credit.weight_sum[0].unwrap(), 0.2));
    let pruned = [credit.r_fm[4], credit.r_step[4], credit.a_fork[4], credit.a_plus[4], credit.weight_sum[4]];
    assert_eq!(pruned, [None; 5]);
    assert_eq!(credit.dlogp[4], vec![0.0]);
}

#[test]
fn aggregates_of_a_shared_step_differ() {
    let reward = |aggregate| {
        let options = Options { aggregate, gamma: 1.0, ..Options::default() };
        credit(&forked(), &options).unwrap().r_step[0].unwrap()
    };
    let form = 0.6 / 2.0;
    for (aggregate, expected) in
        [(Aggregate::Mean, form), (Aggregate::Max, 1.0 + form), (Aggregate::Min, -1.0 + form)]
    {
        assert!(close(reward(aggregate), expected));
    }
}

#[test]
fn chains_without_fork_advantages_are_grpo() {
    let rewards = [1.0, -1.0, 0.0, 1.0];
    let nodes = (0..4).map(|i| node(-1, 0.2 * f64::from(i), &[-0.1, -0.4], &[-0.2, -0.3])).collect();
    let trajectories = (0..4).map(|i| ended(i, rewards[i as usize])).collect();
    let input = TreeInput { prompt_tokens: 3, nodes, trajectories };
    let options = Options { w2: 0.0, weight: Weighting::Grpo, ..Options::default() };
    let credit = credit(&input, &options).unwrap();
    // Written out: mean 0.25, unbiased variance (0.75² + 1.25² + 0.25² + 0.75²)/3.
    let std = (2.75f64 / 3.0).sqrt() + 1e-6;
    let mut loss = 0.0;
    for (index, reward) in rewards.iter().enumerate() {
        let advantage = (reward - 0.25) / std;
        assert!(close(credit.a[index][0], advantage));
        for ratio in [0.1f64.exp(), (-0.1f64).exp()] {
            loss -= (ratio * advantage).min(ratio.clamp(0.8, 1.28) * advantage) / 8.0;
        }
    }
    assert!(close(credit.loss, loss));
}

#[test]
fn equal_rewards_give_no_gradient() {
    for traj_score in [TrajScore::Outcome, TrajScore::Mean, TrajScore::Sum] {
        let mut input = forked();
        input.nodes.remove(4);
        input.nodes[3].parent = -1;
        // Same depth and form everywhere, same outcome.
        input.nodes.truncate(3);
        input.nodes[1].parent = -1;
        input.nodes[2].parent = -1;
        input.nodes.iter_mut().for_each(|node| node.format_score = 0.7);
        input.trajectories = vec![ended(0, 0.1), ended(1, 0.1), ended(2, 0.1)];
        let options = Options { traj_score, fork_norm: ForkNorm::Std, eps: 0.0, ..Options::default() };
        let credit = credit(&input, &options).unwrap();
        assert_eq!(credit.loss, 0.0);
        assert!(credit.dlogp.iter().flatten().all(|value| *value == 0.0));
    }
}

#[test]
fn a_lone_child_and_a_lone_trajectory_have_no_advantage() {
    let mut input = forked();
    input.trajectories.truncate(1);
    let options = Options { fork_norm: ForkNorm::Std, eps: 0.0, ..Options::default() };
    let credit = credit(&input, &options).unwrap();
    assert_eq!(credit.a, vec![vec![0.0, 0.0]]);
    assert_eq!(credit.r_step[2], None);
}

#[test]
fn a_shared_step_has_one_reward_and_as_many_advantages_as_trajectories() {
    let credit = credit(&forked(), &Options::default()).unwrap();
    assert!(credit.a_traj[0] != credit.a_traj[1]);
    assert!(close(credit.a[0][0] - credit.a_traj[0], credit.a[1][0] - credit.a_traj[1]));
}

#[test]
fn permuting_siblings_permutes_advantages() {
    let input = forked();
    let mut swapped = input.clone();
    swapped.nodes.swap(1, 2);
    swapped.trajectories = vec![ended(1, -1.0), ended(2, 1.0), ended(3, 1.0)];
    let options = Options { fork_norm: ForkNorm::Std, ..Options::default() };
    let (a, b) = (credit(&input, &options).unwrap(), credit(&swapped, &options).unwrap());
    assert!(close(a.a_fork[1].unwrap(), b.a_fork[2].unwrap()));
    assert!(close(a.a_fork[2].unwrap(), b.a_fork[1].unwrap()));
    assert!(close(a.a_plus[1].unwrap(), b.a_plus[2].unwrap()));
    assert!(close(a.loss, b.loss));
}

#[test]
fn fork_normalisation_spares_pairs_where_asked() {
    let advantage = |fork_norm| {
        let options = Options { fork_norm, eps: 0.0, ..Options::default() };
        credit(&forked(), &options).unwrap().a_fork[1].unwrap()
    };
    assert!(close(advantage(ForkNorm::Std), 0.5f64.sqrt()));
    assert!(close(advantage(ForkNorm::StdIf3), advantage(ForkNorm::None)));
}

#[test]
fn merging_before_clipping_is_not_adding_up_advantages() {
    let mut input = forked();
    // One shared step far off-policy: both clips are active.
    input.nodes[0].old_logp = vec![-2.0, 0.5];
    let options = Options { w2: 0.0, ..Options::default() };
    let credit = credit(&input, &options).unwrap();
    let summed = credit.a_plus[0].unwrap() + credit.a_minus[0].unwrap();
    let naive: f64 = [1.5f64.exp(), (-1.5f64).exp()]
        .iter()
        .map(|ratio| -(ratio * summed).min(ratio.clamp(0.8, 1.28) * summed))
        .sum();
    let exact: f64 = [(-0.5, -2.0), (-1.0, 0.5)]
        .iter()
        .map(|(logp, old)| {
            let (plus, minus) = (credit.a_plus[0].unwrap(), credit.a_minus[0].unwrap());
            surrogate(*logp, *old, plus, minus, &options).value
        })
        .sum();
    assert!((naive - exact).abs() > 0.1, "{naive} {exact}");
    assert!(close(flattened(&input, &options, &credit).0, credit.loss));
}

#[test]
fn dual_clip_bounds_negative_advantages() {
    let options = Options { dual_clip: Some(3.0), ..Options::default() };
    let bounded = surrogate(2.0, 0.0, 0.0, -1.0, &options);
    assert_eq!(bounded, TokenLoss { value: 3.0, derivative: 0.0 });
    let free = surrogate(1.0, 0.0, 0.0, -1.0, &options);
    assert!(close(free.value, 1f64.exp()) && close(free.derivative, 1f64.exp()));
}

#[test]
fn ratios_and_divergences_are_clamped() {
    let options = Options { clip_low: 1.0, clip_high: 1e12, ..Options::default() };
    assert_eq!(surrogate(30.0, 0.0, 1.0, 0.0, &options).value, -20f64.exp());
    assert_eq!(surrogate(30.0, 0.0, 1.0, 0.0, &options).derivative, 0.0);
    assert_eq!(k3(-9.0, 0.0), TokenLoss { value: 10.0, derivative: 0.0 });
}

#[test]
fn bad_input_is_named() {
    type Break = fn(&mut TreeInput, &mut Options);
    let cases: [(Break, &str); 17] = [
        (|t, _| t.nodes[1].parent = 1, "input.nodes[1].parent"),
        (|t, _| t.nodes[1].parent = 2, "input.nodes[1].parent"),
        (|t, _| t.nodes[1].parent = 99, "input.nodes[1].parent"),
        (|t, _| t.nodes[0].parent = -2, "input.nodes[0].parent"),
        (|t, _| t.nodes[2].logp.push(0.0), "input.nodes[2].logp"),
        (|t, _| t.nodes[2].old_logp.clear(), "input.nodes[2].old_logp"),
        (|t, o| (t.nodes[2].ref_logp.clear(), o.beta = 0.1).1, "input.nodes[2].ref_logp"),
        (|t, _| t.nodes[2].logp[1] = f64::NAN, "input.nodes[2].logp[1]"),
        (|t, _| t.nodes[2].format_score = 1.5, "input.nodes[2].format_score"),
        (|t, _| t.trajectories.clear(), "input.trajectories"),
        (|t, _| t.trajectories[0].leaf = 5, "input.trajectories[0].leaf"),
        (|t, _| t.trajectories[0].leaf = -1, "input.trajectories[0].leaf"),
        (|t, _| t.trajectories[0].r_out = f64::INFINITY, "input.trajectories[0].r_out"),
        (|t, _| t.trajectories[0].finished = false, "input.trajectories[0].finished"),
        (|_, o| o.gamma = 1.5, "options.gamma"),
        (|_, o| o.eps = f64::NAN, "options.eps"),
        (|_, o| o.dual_clip = Some(1.0), "options.dual_clip"),
    ];
    for (spoil, field) in cases {
        let (mut input, mut options) = (forked(), Options::default());
        spoil(&mut input, &mut options);
        let message = credit(&input, &options).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
    let mut empty = forked();
    for node in &mut empty.nodes {
        (node.model_tokens, node.logp, node.old_logp, node.ref_logp) = (0, vec![], vec![], vec![]);
    }
    assert!(matches!(credit(&empty, &Options::default()), Err(CreditError::Empty { .. })));
}

#[test]
fn what_overflows_is_an_error() {
    let options = Options { w1: f64::MAX, w2: f64::MAX, ..Options::default() };
    assert_eq!(credit(&forked(), &options), Err(CreditError::Overflow));
}

#[test]
fn an_unfinished_trajectory_counts_as_wrong() {
    let mut input = forked();
    input.trajectories[1].finished = false;
    assert!(credit(&input, &Options::default()).is_ok());
}

#[test]
fn the_json_form_is_read_and_written() {
    let text = r#"{"input": {"prompt_tokens": 5, "nodes": [
        {"parent": -1, "model_tokens": 1, "tool_tokens": 1, "format_score": 0.8,
         "logp": [-0.1], "old_logp": [-0.2], "ref_logp": [-0.3]}],
        "trajectories": [{"leaf": 0, "finished": true, "r_out": 1.0}]},
        "options": {"gamma": 0.95, "G": "mean", "t_max": 4, "traj_score": "outcome",
        "traj_norm": "std", "fork_norm": "std_if_3", "w1": 1, "w2": 1, "eps": 1e-6,
        "weight": "grpo", "l_max": 64, "clip_low": 0.2, "clip_high": 0.28, "beta": 0.001,
        "dual_clip": null}}"#;
    let request: Request = serde_json::from_str(text).unwrap();
    let written = serde_json::to_value(credit(&request.input, &request.options).unwrap()).unwrap();
    let names: Vec<_> = written.as_object().unwrap().keys().map(String::as_str).collect();
    for name in ["r_fm", "r_step", "traj_score", "a_traj", "a_fork", "a", "weight", "a_plus"] {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(names.len(), 14);
    assert!(serde_json::from_str::<Request>(&text.replace("l_max", "lmax")).is_err());
}

/// A random tree: parents before children, every leaf may carry a trajectory.
fn trees() -> impl Strategy<Value = TreeInput> {
    let logp = -2.0..-0.01f64;
    let token = (logp.clone(), logp.clone(), logp);
    let node = (any::<prop::sample::Index>(), 0.0..=1.0f64, prop::collection::vec(token, 1..4));
    let nodes = prop::collection::vec(node, 1..12);
    (nodes, prop::collection::vec(-1i8..=1, 12)).prop_map(|(drawn, outcomes)| {
        let mut nodes = Vec::new();
        for (index, (parent, format_score, tokens)) in drawn.into_iter().enumerate() {
            let parent = parent.index(index + 1) as i64 - 1;
            nodes.push(NodeInput {
                parent,
                model_tokens: tokens.len(),
                tool_tokens: 0,
                format_score,
                logp: tokens.iter().map(|t| t.0).collect(),
                old_logp: tokens.iter().map(|t| t.1).collect(),
                ref_logp: tokens.iter().map(|t| t.2).collect(),
            });
        }
        let is_leaf = |index: &i64| !nodes.iter().any(|node: &NodeInput| node.parent == *index);
        let leaves: Vec<i64> = (0..nodes.len() as i64).filter(is_leaf).collect();
        // The last leaf of several is pruned.
        let kept = leaves.len().max(2) - 1;
        let trajectories = leaves.iter().take(kept).zip(&outcomes);
        let trajectories = trajectories.map(|(leaf, r)| ended(*leaf, f64::from(*r))).collect();
        TreeInput { prompt_tokens: 2, nodes, trajectories }
    })
}

fn choices() -> impl Strategy<Value = Options> {
    let weights = [Weighting::Grpo, Weighting::Dapo, Weighting::Drgrpo];
    let scores = [TrajScore::Outcome, TrajScore::Mean, TrajScore::Sum];
    let aggregates = [Aggregate::Mean, Aggregate::Max, Aggregate::Min];
    (
        prop::sample::select(weights.to_vec()),
        prop::sample::select(scores.to_vec()),
        prop::sample::select(aggregates.to_vec()),
        0.0..2.0f64,
        prop::sample::select(vec![0.0, 0.01]),
    )
        .prop_map(|(weight, traj_score, aggregate, w2, beta)| Options {
            weight,
            traj_score,
            aggregate,
            w2,
            beta,
            ..Options::default()
        })
}

proptest! {
    #[test]
    fn merged_loss_equals_flattened_loss(input in trees(), options in choices()) {
        let credit = credit(&input, &options).unwrap();
        let (loss, dlogp) = flattened(&input, &options, &credit);
        // k3 is capped in the one and not in the other; these log-ratios stay below the cap.
        prop_assert!(close(loss, credit.loss), "{} {}", loss, credit.loss);
        for (a, b) in dlogp.iter().flatten().zip(credit.dlogp.iter().flatten()) {
            prop_assert!(close(*a, *b), "{} {}", a, b);
        }
    }

    #[test]
    fn the_derivative_is_the_loss_s(input in trees(), options in choices()) {
        let base = credit(&input, &options).unwrap();
        let step = 1e-6;
        let (high, low) = ((1.0 + options.clip_high).ln(), (1.0 - options.clip_low).ln());
        for node in 0..input.nodes.len() {
            for token in 0..input.nodes[node].model_tokens {
                let ratio = input.nodes[node].logp[token] - input.nodes[node].old_logp[token];
                // The loss has a kink at each clip.
                if (ratio - high).abs() < 1e-5 || (ratio - low).abs() < 1e-5 {
                    continue;
                }
                let mut moved = input.clone();
                moved.nodes[node].logp[token] += step;
                let up = credit(&moved, &options).unwrap().loss;
                moved.nodes[node].logp[token] -= 2.0 * step;
                let down = credit(&moved, &options).unwrap().loss;
                let slope = (up - down) / (2.0 * step);
                prop_assert!((slope - base.dlogp[node][token]).abs() < 1e-6, "{} {}", slope, base.dlogp[node][token]);
            }
        }
    }
}
