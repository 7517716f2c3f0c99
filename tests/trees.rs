//! Packed rollout trees against their trajectories one by one, through the training graph in double precision.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use t3c_frontends::{
    DecoderConfig, Graph, Objective,
    decoder::{Position, Rope},
    portool,
};
use t3c_ir::{
    Context,
    function::{Port, entry},
    interpreter::{Interpreter, Tensor},
};
use t3c_passes::autodiff::{self, Autodiff};
use t3c_rl::{
    credit::{Credit, Options, Weighting, credit},
    pack::{Bucket, Pack, Weighted},
    task::Ending,
    tree::{Node, Trajectory, Tree},
};

const VOCABULARY: u64 = 17;

fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: VOCABULARY,
        hidden_size: 10,
        intermediate_size: 14,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        position: Position::Rotary(Rope::new(100.0)),
        ..DecoderConfig::llama()
    }
}

/// A training step's arrays: a pack's integers, and its numbers in double precision.
struct Step {
    pack: Pack,
    old_logp: Vec<f64>,
    ref_logp: Vec<f64>,
    a_plus: Vec<f64>,
    a_minus: Vec<f64>,
    weight: Vec<f64>,
    /// For each row the step of the tree and the token in it.
    places: Vec<(usize, usize)>,
}

impl Step {
    fn new() -> Self {
        let none = Vec::new;
        let (a_plus, a_minus, weight) = (none(), none(), none());
        Self {
            pack: Pack::default(),
            old_logp: none(),
            ref_logp: none(),
            a_plus,
            a_minus,
            weight,
            places: Vec::new(),
        }
    }

    fn node(&mut self, tree: &Tree, node: usize, [a_plus, a_minus, weight]: [f64; 3]) {
        for (token, old_logp) in tree.nodes[node].logp.iter().enumerate() {
            self.places.push((node, token));
            self.old_logp.push(f64::from(*old_logp));
            self.ref_logp.push(f64::from(*old_logp) + 0.1 * ((node * 7 + token * 3) as f64).sin());
            self.a_plus.push(a_plus);
            self.a_minus.push(a_minus);
            self.weight.push(weight);
        }
    }

    /// The arrays that were just built must be what the pack holds in single precision.
    #[track_caller]
    fn checked(self) -> Self {
        let single = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<_>>();
        assert_eq!(single(&self.a_plus), self.pack.a_plus);
        assert_eq!(single(&self.a_minus), self.pack.a_minus);
        assert_eq!(single(&self.weight), self.pack.weight);
        assert_eq!(single(&self.old_logp), self.pack.old_logp);
        self
    }

    /// The tree, each shared step once.
    fn packed(tree: &Tree, credit: &Credit, with_divergence: bool) -> Self {
        let mut step = Self::new();
        step.pack.tree(&Weighted::new(tree, credit, 1.0, with_divergence));
        let weights: Vec<[f64; 3]> = (0..tree.nodes.len())
            .map(|node| {
                [&credit.a_plus, &credit.a_minus, &credit.weight_sum]
                    .map(|values| values[node].unwrap_or(0.0))
            })
            .collect();
        let mut needed: Vec<bool> = weights
            .iter()
            .map(|[plus, minus, weight]| *plus != 0.0 || *minus != 0.0 || (with_divergence && *weight != 0.0))
            .collect();
        for node in (0..tree.nodes.len()).rev() {
            if let Some(parent) = tree.nodes[node].parent {
                needed[parent] |= needed[node];
            }
        }
        let mut open = vec![None];
        while let Some(place) = open.pop() {
            if let Some(node) = place {
                step.node(tree, node, weights[node]);
            }
            let children = (0..tree.nodes.len()).rev().filter(|child| tree.nodes[*child].parent == place);
            open.extend(children.filter(|child| needed[*child]).map(Some));
        }
        step.checked()
    }

    /// Its trajectories one after the other.
    fn flattened(tree: &Tree, credit: &Credit) -> Self {
        let mut step = Self::new();
        step.pack.flattened(tree, credit);
        for (index, trajectory) in tree.trajectories.iter().enumerate() {
            for (node, advantage) in tree.path(trajectory.leaf).into_iter().zip(&credit.a[index]) {
                let weight = credit.weight[index];
                step.node(tree, node, [weight * advantage.max(0.0), weight * advantage.min(0.0), weight]);
            }
        }
        step.checked()
    }

    /// With padding, as compiled code gets it.
    fn padded(mut self, tokens: usize, rows: usize) -> Self {
        let (used_tokens, used_rows) = self.pack.size();
        let bucket = Bucket { tokens: used_tokens + tokens, rows: used_rows + rows };
        self.pack = self.pack.pad(&[bucket]).expect("the bucket holds it").pack;
        for values in
            [&mut self.old_logp, &mut self.ref_logp, &mut self.a_plus, &mut self.a_minus, &mut self.weight]
        {
            values.resize(bucket.rows, 0.0);
        }
        self
    }

    fn input(&self, port: &Port, parameters: &Parameters) -> Tensor {
        let shape = port.r#type.shape.clone();
        let ints = |values: &[i32]| Tensor::i32(shape.clone(), values);
        let floats = |values: &[f64]| Tensor::f64(shape.clone(), values);
        match port.name.as_str() {
            "tokens" => ints(&self.pack.tokens),
            "position" => ints(&self.pack.position),
            "subtree_end" => ints(&self.pack.subtree_end),
            "rows" => ints(&self.pack.rows),
            "targets" => ints(&self.pack.targets),
            "old_logp" => floats(&self.old_logp),
            "ref_logp" => floats(&self.ref_logp),
            "a_plus" => floats(&self.a_plus),
            "a_minus" => floats(&self.a_minus),
            "weight" => floats(&self.weight),
            _ => parameters.tensor(port),
        }
    }
}

/// Parameters that depend on their names alone, moved along a direction that does too.
#[derive(Clone, Copy)]
struct Parameters {
    moved: f64,
}

impl Parameters {
    fn seed(port: &Port) -> u64 {
        port.name.bytes().fold(5, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
    }

    fn direction(port: &Port) -> Vec<f64> {
        Tensor::random(&port.r#type, Self::seed(port) + 1).expect("floats").numbers()
    }

    fn tensor(self, port: &Port) -> Tensor {
        let is_norm = port.r#type.shape.len() == 1;
        let (base, scale) = if is_norm { (1.0, 0.3) } else { (0.0, 0.7) };
        let values = Tensor::random(&port.r#type, Self::seed(port)).expect("floats").numbers();
        let moved = values
            .iter()
            .zip(Self::direction(port))
            .map(|(value, way)| base + scale * value + self.moved * way);
        Tensor::f64(port.r#type.shape.clone(), moved.collect::<Vec<_>>())
    }
}

/// What a step's graph computes.
struct Computed {
    loss: f64,
    logp: Vec<f64>,
    /// Gradients with their parameters' ports.
    gradients: Vec<(Port, Vec<f64>)>,
}

impl Computed {
    /// The derivative along the direction that [`Parameters::moved`] goes.
    fn slope(&self) -> f64 {
        let dot = |(port, gradient): &(Port, Vec<f64>)| -> f64 {
            gradient.iter().zip(Parameters::direction(port)).map(|(a, b)| a * b).sum()
        };
        self.gradients.iter().map(dot).sum()
    }
}

fn compute(step: &Step, options: &Options, temperature: f64, moved: f64) -> Computed {
    let (tokens, rows) = step.pack.size();
    let &Options { clip_low, clip_high, beta, .. } = options;
    let objective = Objective::Portool { clip_low, clip_high, beta };
    let sizes = portool::Step { tokens: tokens as u64, rows: rows as u64, objective, temperature, tp: 1 };
    let decoder = portool::training(config(), "tree", &sizes, None).expect("a graph");
    let context = Context::new();
    let module = Graph::Decoder(Box::new(decoder)).build(&context).expect("a module");
    autodiff::differentiate(module.op(), &Autodiff::default()).expect("gradients");
    module.verify().expect("a valid module");
    let entry = entry(module.op()).expect("an entry");
    let arguments = entry.argument_ports().expect("ports");
    let results = entry.result_ports().expect("ports");
    let inputs: Vec<Tensor> = arguments.iter().map(|port| step.input(port, &Parameters { moved })).collect();
    let outputs = Interpreter::new(module.op()).widened().run_one(&entry.name(), &inputs).expect("results");
    let find = |name: &str| {
        let index =
            results.iter().position(|port| port.name == name).unwrap_or_else(|| panic!("no result {name}"));
        outputs[index].numbers()
    };
    let gradients = arguments
        .iter()
        .filter_map(|port| Some((port.clone(), find(&format!("grad/{}", port.name.strip_prefix("param/")?)))))
        .collect();
    Computed { loss: find("loss")[0], logp: find("logp"), gradients }
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn tokens(&mut self, least: usize, most: usize) -> Vec<i32> {
        let count = self.0.random_range(least..=most);
        (0..count).map(|_| self.0.random_range(0..VOCABULARY as i32)).collect()
    }

    /// A step that another policy sampled: its log-probabilities have nothing to do with the model's.
    fn node(&mut self, parent: Option<(usize, u32)>) -> Node {
        let tokens = self.tokens(1, 3);
        let logp = tokens.iter().map(|_| self.0.random_range(-4.0..-1.5)).collect();
        Node {
            parent: parent.map(|(parent, _)| parent),
            depth: parent.map_or(1, |(_, depth)| depth + 1),
            tokens,
            logp,
            response: self.tokens(0, 2),
            ending: Ending::Call,
            checks: std::array::from_fn(|_| self.0.random_bool(0.7)),
        }
    }

    /// A tree whose steps hang on earlier ones, some on the first; one leaf is pruned.
    fn tree(&mut self, nodes: usize) -> Tree {
        let mut tree = Tree { prompt: self.tokens(2, 4), ..Tree::default() };
        for index in 0..nodes {
            let parent = match index {
                0 => None,
                1..=3 => Some(0),
                _ => self.0.random_range(0..=index).checked_sub(1),
            };
            let parent = parent.filter(|parent| tree.nodes[*parent].depth < 4);
            let parent = parent.map(|parent| (parent, tree.nodes[parent].depth));
            tree.nodes.push(self.node(parent));
        }
        let is_leaf = |leaf: &usize| tree.nodes.iter().all(|node| node.parent != Some(*leaf));
        let leaves: Vec<usize> = (0..nodes).filter(is_leaf).skip(1).collect();
        assert!(leaves.len() >= 3, "a tree without branches");
        self.finish(&mut tree, leaves);
        tree
    }

    fn chains(&mut self, chains: usize, steps: usize) -> Tree {
        let mut tree = Tree { prompt: self.tokens(2, 4), ..Tree::default() };
        let mut leaves = Vec::new();
        for _ in 0..chains {
            tree.nodes.push(self.node(None));
            for step in 1..steps {
                tree.nodes.push(self.node(Some((tree.nodes.len() - 1, step as u32))));
            }
            leaves.push(tree.nodes.len() - 1);
        }
        self.finish(&mut tree, leaves);
        tree
    }

    fn finish(&mut self, tree: &mut Tree, leaves: Vec<usize>) {
        for (index, leaf) in leaves.into_iter().enumerate() {
            tree.nodes[leaf].response.clear();
            // Both outcomes, whatever is drawn.
            let r_out =
                [1.0, -1.0].get(index).copied().unwrap_or_else(|| f64::from(self.0.random_range(-1..=1)));
            tree.trajectories.push(Trajectory { leaf, finished: true, r_out });
        }
    }
}

/// The largest difference over the largest value.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest =
        |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |most: f64, value| most.max(value.abs()));
    let difference = largest(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / largest(&mut a.iter().copied()) }
}

#[test]
fn a_packed_tree_has_the_gradient_of_its_trajectories() {
    let plain = Options::default();
    let with_divergence = Options { beta: 0.05, weight: Weighting::Grpo, w1: 0.7, ..plain };
    for (seed, nodes, options) in
        [(1, 9, plain), (2, 12, with_divergence), (3, 8, with_divergence), (4, 14, plain)]
    {
        let tree = Draw(ChaCha8Rng::seed_from_u64(seed)).tree(nodes);
        let credit = credit(&tree.credit_input(), &options).expect("credit");
        let packed = Step::packed(&tree, &credit, options.beta > 0.0).padded(3, 2);
        let flattened = Step::flattened(&tree, &credit);
        assert!(packed.places.len() < flattened.places.len(), "seed {seed}: nothing is shared");
        let (a, b) = (compute(&packed, &options, 0.9, 0.0), compute(&flattened, &options, 0.9, 0.0));
        assert!(distance(&[b.loss], &[a.loss]) < 1e-10, "seed {seed}: loss {} and {}", a.loss, b.loss);
        for (row, place) in packed.places.iter().enumerate() {
            let same = flattened.places.iter().zip(&b.logp).filter(|(other, _)| *other == place);
            assert!(same.clone().count() > 0);
            same.for_each(|(_, logp)| {
                assert!(distance(&[*logp], &[a.logp[row]]) < 1e-10, "seed {seed}: {place:?}")
            });
        }
        for ((port, packed), (_, flattened)) in a.gradients.iter().zip(&b.gradients) {
            assert!(flattened.iter().any(|value| *value != 0.0), "seed {seed}: no gradient of {}", port.name);
            let distance = distance(flattened, packed);
            assert!(distance < 1e-10, "seed {seed}: gradients of {} differ by {distance}", port.name);
        }
    }
}

/// GRPO's loss as its paper has it: means over samples of means over their tokens.
fn grpo(tree: &Tree, logp: &[f64], options: &Options) -> f64 {
    let count = tree.trajectories.len() as f64;
    let rewards: Vec<f64> = tree.trajectories.iter().map(|trajectory| trajectory.r_out).collect();
    let mean = rewards.iter().sum::<f64>() / count;
    let variance =
        rewards.iter().map(|reward| (reward - mean) * (reward - mean)).sum::<f64>() / (count - 1.0);
    let mut logp = logp.iter();
    let mut objective = 0.0;
    for (trajectory, reward) in tree.trajectories.iter().zip(&rewards) {
        let advantage = (reward - mean) / (variance.sqrt() + options.eps);
        let path = tree.path(trajectory.leaf);
        let old: Vec<f32> = path.iter().flat_map(|node| tree.nodes[*node].logp.clone()).collect();
        let tokens: f64 = old
            .iter()
            .map(|old| {
                let ratio = (logp.next().expect("a row a token") - f64::from(*old)).exp();
                let clipped = ratio.clamp(1.0 - options.clip_low, 1.0 + options.clip_high);
                (ratio * advantage).min(clipped * advantage)
            })
            .sum();
        objective += tokens / old.len() as f64;
    }
    -objective / count
}

#[test]
fn without_fork_advantages_chains_are_grpo() {
    // The graph holds 1 - clip_low and 1 + clip_high in single precision: these are exact.
    let (clip_low, clip_high) = (0.5, 0.875);
    let options = Options { w2: 0.0, weight: Weighting::Grpo, clip_low, clip_high, ..Options::default() };
    let tree = Draw(ChaCha8Rng::seed_from_u64(11)).chains(4, 2);
    let credit = credit(&tree.credit_input(), &options).expect("credit");
    let step = Step::packed(&tree, &credit, true);
    let here = compute(&step, &options, 1.0, 0.0);
    let plain = grpo(&tree, &here.logp, &options);
    assert!(distance(&[plain], &[here.loss]) < 1e-12, "{plain} and {}", here.loss);
    // Some ratios are clipped and some are not, else the test says little.
    let ratio = |(logp, old): (&f64, &f64)| (logp - old).exp();
    let outside = here
        .logp
        .iter()
        .zip(&step.old_logp)
        .map(ratio)
        .filter(|ratio| !(0.5..=1.875).contains(ratio))
        .count();
    assert!(outside > 0 && outside < here.logp.len(), "{outside} of {}", here.logp.len());
    let width = 1e-5;
    let (up, down) = (compute(&step, &options, 1.0, width), compute(&step, &options, 1.0, -width));
    let slope = here.slope();
    let by_graph = (up.loss - down.loss) / (2.0 * width);
    let by_hand = (grpo(&tree, &up.logp, &options) - grpo(&tree, &down.logp, &options)) / (2.0 * width);
    for difference in [by_graph, by_hand] {
        assert!(distance(&[slope], &[difference]) < 1e-6, "{slope} and {difference}");
    }
}
