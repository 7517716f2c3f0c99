//! Random programs with collectives: every collective gets its remark, fusing keeps every bit, and the schedule is
//! well formed and reads back.

use std::collections::HashMap;

use melior::ir::{Attribute, operation::OperationLike};
use proptest::prelude::*;
use t3c_ir::{
    Builder, Context, Element, Location, Module, ScalarOp, TensorType, Val,
    attributes::{index_attr, integers_attr, named},
    context::render_location,
    ffi,
    function::{Function, Port, Signature, add_function, add_grid},
    interpreter::{Interpreter, Tensor},
    scalar::Ref,
    views::Collective,
    walk,
};
use t3c_schedule::{Axis, CollectiveKind, Grid};

use crate::{Kind, Remark, find_pairs::FindPairs, fuse::Fuse, pass::Pass, pipelines, run_passes};

/// One choice of the generator: what to do, with which values, along which dimension and axes.
type Choice = (u8, usize, usize, bool, u8);

/// Elements up to which a value is used further.
const LARGEST: u64 = 600;

/// Arguments of the program, in multiples of the number of devices.
const ARGUMENTS: [&[u64]; 5] = [&[1, 1], &[1, 2], &[2, 1], &[1, 1], &[2]];

struct Generator<'c, 'a> {
    b: Builder<'c, 'a>,
    grid: Grid,
    values: Vec<Val<'c, 'a>>,
    made: usize,
}

impl<'c, 'a> Generator<'c, 'a> {
    fn shape(&self, value: Val<'c, 'a>) -> Vec<u64> {
        TensorType::of(value).unwrap().shape
    }

    /// A value of `rank` dimensions.
    fn pick(&self, at: usize, rank: usize) -> Val<'c, 'a> {
        let fit: Vec<Val<'c, 'a>> =
            self.values.iter().copied().filter(|value| self.shape(*value).len() == rank).collect();
        // Recent values more often, so that chains arise.
        let window = if at.is_multiple_of(2) { fit.len().min(3) } else { fit.len() };
        fit[fit.len() - 1 - at / 2 % window]
    }

    fn builder(&mut self) -> Builder<'c, 'a> {
        self.made += 1;
        self.b.named(&format!("layer.{}", self.made))
    }

    fn choose(&mut self, (what, x, y, second, axes): Choice) {
        let (x, other) = (self.pick(x, 2), self.pick(y, 2));
        let (shape, b) = (self.shape(x), self.builder());
        let dimension = usize::from(second);
        let made = match what % 10 {
            0 | 1 => self.product(x, other),
            2 => Some(b.map("td->td", &[x], |body| body.unary(ScalarOp::Tanh, Ref::Arg(0))).unwrap()),
            3 if self.shape(other) == shape => Some(b.add(x, other).unwrap()),
            3 => Some(b.map("td->dt", &[x], |_| Ref::Arg(0)).unwrap()),
            4 => {
                let sum = b.reduce(if second { "td->d" } else { "td->t" }, x, ScalarOp::AddF).unwrap();
                let scaled = if second { "td,d->td" } else { "td,t->td" };
                Some(b.map(scaled, &[x, sum], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap())
            }
            5 => Some(self.views(x, dimension)),
            kind => self.collective(kind, x, dimension, axes),
        };
        if let Some(made) = made.filter(|made| self.shape(*made).iter().product::<u64>() <= LARGEST) {
            self.values.push(made);
        }
    }

    fn product(&mut self, x: Val<'c, 'a>, y: Val<'c, 'a>) -> Option<Val<'c, 'a>> {
        let (a, c) = (self.shape(x), self.shape(y));
        let specification = match () {
            () if a[1] == c[1] => "td,fd->tf",
            () if a[1] == c[0] => "td,df->tf",
            () if a[0] == c[0] => "dt,df->tf",
            () => return None,
        };
        Some(self.b.contract(specification, x, y).unwrap())
    }

    /// Splits a dimension in two, negates, and joins them again.
    fn views(&mut self, x: Val<'c, 'a>, dimension: usize) -> Val<'c, 'a> {
        let b = self.builder();
        let mut shape = self.shape(x);
        let outer = if shape[dimension].is_multiple_of(2) { 2 } else { 1 };
        let groups = if dimension == 0 { "[[0, 1], [2]]" } else { "[[0], [1, 2]]" };
        let groups = Attribute::parse(b.context(), groups).unwrap();
        shape[dimension] /= outer;
        shape.insert(dimension, outer);
        let long = TensorType::new(shape.clone(), Element::F32);
        let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        let attributes = [
            named(b.context(), "reassociation", groups),
            named(b.context(), "static_output_shape", integers_attr(b.context(), &extents)),
        ];
        let types = [long.to_mlir(b.context())];
        let long = b.op("tensor.expand_shape", &[x], &types, &attributes, vec![]).unwrap();
        let negated = b
            .map("abc->abc", &[long.result(0).unwrap().into()], |body| {
                body.unary(ScalarOp::NegF, Ref::Arg(0))
            })
            .unwrap();
        let types = [TensorType::of(x).unwrap().to_mlir(b.context())];
        let joined = b.op("tensor.collapse_shape", &[negated], &types, &attributes[..1], vec![]).unwrap();
        joined.result(0).unwrap().into()
    }

    fn collective(&mut self, kind: u8, x: Val<'c, 'a>, dimension: usize, axes: u8) -> Option<Val<'c, 'a>> {
        let axes: Vec<usize> = match (self.grid.axes.len(), axes % 3) {
            (1, _) | (_, 0) => vec![0],
            (_, 1) => vec![1],
            _ => vec![0, 1],
        };
        let parts = u64::from(self.grid.group_size(&axes));
        let mut shape = self.shape(x);
        let other = 1 - dimension;
        let (name, attribute) = match kind {
            6 => ("shard.reduce_scatter", Some("scatter_axis")),
            7 => ("shard.all_gather", Some("gather_axis")),
            8 => ("shard.all_to_all", Some("split_axis")),
            _ => ("shard.all_reduce", None),
        };
        if matches!(kind, 6 | 8) {
            if !shape[dimension].is_multiple_of(parts) {
                return None;
            }
            shape[dimension] /= parts;
        }
        if kind == 7 {
            shape[dimension] *= parts;
        }
        if kind == 8 {
            shape[other] *= parts;
        }
        let b = self.builder();
        let r#type = TensorType::new(shape, Element::F32);
        let attribute = attribute.map(|attribute| (attribute, dimension));
        let made = b.collective(name, x, ("grid", &axes), attribute, None, &r#type).unwrap();
        if kind == 8 {
            let op = ffi::value_owner(made).unwrap();
            ffi::set_attribute(op, "concat_axis", index_attr(b.context(), other as i64));
        }
        Some(made)
    }
}

fn program<'c>(context: &'c Context, sizes: &[u32], choices: &[Choice]) -> Module<'c> {
    let location = Location::new(context.mlir(), "random.mlir", 1, 1);
    let module = context.module(location);
    let axes = sizes.iter().enumerate().map(|(index, &size)| Axis { name: format!("axis{index}"), size });
    let grid = Grid { axes: axes.collect() };
    add_grid(&module, "grid", &grid).unwrap();
    let devices = u64::from(grid.devices());
    let port = |shape: &&[u64]| {
        let shape: Vec<u64> = shape.iter().map(|extent| extent * devices).collect();
        Port::new("", TensorType::new(shape, Element::F32))
    };
    // Results are known only once the body is there: a private draft first, then the signature.
    let arguments: Vec<Port> = ARGUMENTS.iter().map(port).collect();
    let signature = Signature {
        name: "main".into(),
        arguments: arguments.clone(),
        results: vec![],
        public: true,
        unit: None,
    };
    let (op, block) = add_function(&module, &signature, location).unwrap();
    let function = Function::cast(op).unwrap();
    let b = Builder::at_end(context.mlir(), block, location);
    let mut generator = Generator { b, grid, values: function.arguments(), made: 0 };
    choices.iter().for_each(|choice| generator.choose(*choice));
    let made = &generator.values[ARGUMENTS.len()..];
    // What nothing else uses is a result, and a few values that something does.
    let returned: Vec<Val<'c, '_>> = made
        .iter()
        .enumerate()
        .filter(|(index, value)| ffi::uses(**value).is_empty() || index % 5 == 4)
        .map(|(_, value)| *value)
        .collect();
    generator.b.ret(&returned).unwrap();
    let results: Vec<Port> =
        returned.iter().map(|value| Port::new("", TensorType::of(*value).unwrap())).collect();
    function.set_signature(&arguments, &results).unwrap();
    module.verify().unwrap();
    module
}

fn bits(module: &Module<'_>) -> Vec<Vec<Vec<u64>>> {
    let interpreter = Interpreter::new(module.op());
    let function = t3c_ir::function::entry(module.op()).unwrap();
    let inputs: Vec<Vec<Tensor>> = (0..u64::from(interpreter.grid().devices()))
        .map(|device| {
            let ports = function.argument_ports().unwrap();
            let random =
                |(number, port): (usize, &Port)| Tensor::random(&port.r#type, 100 * device + number as u64);
            ports.iter().enumerate().map(|port| random(port).unwrap()).collect()
        })
        .collect();
    let results = interpreter.run(&function.name(), &inputs).unwrap();
    let bits = |tensor: &Tensor| tensor.numbers().into_iter().map(f64::to_bits).collect();
    results.iter().map(|results| results.iter().map(bits).collect()).collect()
}

/// Places of the collectives that t3-find-pairs speaks about, and how many there are at each.
fn candidates(module: &Module<'_>) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    for collective in walk::walk(module.op()).into_iter().filter_map(Collective::cast) {
        if !matches!(collective.kind, CollectiveKind::AllReduce | CollectiveKind::AllSlice) {
            *found.entry(render_location(collective.op.location())).or_default() += 1;
        }
    }
    found
}

fn check_remarks(candidates: &HashMap<String, usize>, remarks: &[Remark]) -> Result<(), TestCaseError> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for remark in remarks.iter().filter(|remark| remark.pass == FindPairs::NAME) {
        *seen.entry(remark.location.clone()).or_default() += 1;
        prop_assert_eq!(&remark.function, "main");
    }
    prop_assert_eq!(candidates, &seen);
    let count = |pass: &str, wanted: &dyn Fn(&Remark) -> bool| {
        remarks.iter().filter(|remark| remark.pass == pass && wanted(remark)).count()
    };
    let pairs = count(FindPairs::NAME, &|remark| remark.reason == "pair");
    prop_assert_eq!(pairs, count(Fuse::NAME, &|remark| remark.kind != Kind::Analysis));
    Ok(())
}

fn check(sizes: &[u32], choices: &[Choice], policy: &str) -> Result<(), TestCaseError> {
    let context = Context::new();
    let mut module = program(&context, sizes, choices);
    let mut remarks = Vec::new();
    run_passes(&mut module, &["t3-split-all-reduce"], &mut remarks).unwrap();
    let (places, before) = (candidates(&module), bits(&module));
    let fuse = format!("t3-fuse{{policy={policy} tile=1}}");
    let ring = if choices.len().is_multiple_of(2) { "ring" } else { "direct" };
    let configure = format!("t3-configure-address-space{{blocks=2 tile=1 algorithm={ring}}}");
    run_passes(&mut module, &["t3-find-pairs", &fuse, &configure], &mut remarks).unwrap();
    check_remarks(&places, &remarks)?;
    prop_assert_eq!(&bits(&module), &before, "fused");
    let text = module.text(true);
    run_passes(&mut module, &pipelines::schedule(), &mut Vec::new()).unwrap();
    prop_assert_eq!(&bits(&module), &before, "outlined");
    let schedule = crate::schedule(module.op()).unwrap();
    let json = t3c_schedule::to_json(&schedule).unwrap();
    prop_assert_eq!(t3c_schedule::from_json(&json).unwrap(), schedule);
    for unfuse in ["t3-unfuse", "t3-unfuse{keep=sums}"] {
        let mut module = context.parse(&text, "fused.mlir").unwrap();
        run_passes(&mut module, &[unfuse], &mut Vec::new()).unwrap();
        prop_assert_eq!(&bits(&module), &before, "{}", unfuse);
        run_passes(&mut module, &pipelines::schedule(), &mut Vec::new()).unwrap();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fusing_random_programs_keeps_every_bit_and_misses_nothing(
        sizes in prop_oneof![Just(vec![2]), Just(vec![3]), Just(vec![5]), Just(vec![2, 2]), Just(vec![3, 2])],
        choices in prop::collection::vec(any::<Choice>(), 3..22),
        profitable in any::<bool>(),
    ) {
        check(&sizes, &choices, if profitable { "profitable" } else { "always" })?;
    }
}

/// The generator is worth its time only while it makes every form of pair.
#[test]
fn random_programs_hold_every_form_of_pair() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(any::<Choice>(), 22);
    let mut seen: HashMap<String, usize> = HashMap::new();
    for _ in 0..40 {
        let choices = strategy.new_tree(&mut runner).unwrap().current();
        let context = Context::new();
        let mut module = program(&context, &[2], &choices);
        let mut remarks = Vec::new();
        run_passes(&mut module, &["t3-split-all-reduce", "t3-fuse{policy=always}"], &mut remarks).unwrap();
        for remark in remarks.iter().filter(|remark| remark.kind == Kind::Passed) {
            let pair = remark.pair.as_deref().unwrap_or_default();
            let kind =
                ["reduce_scatter", "all_gather", "all_to_all"].into_iter().find(|kind| pair.contains(kind));
            let reads = if kind.is_some_and(|kind| pair.starts_with(kind)) { "read" } else { "fed" };
            *seen.entry(format!("{} {reads}", kind.unwrap_or("?"))).or_default() += 1;
        }
    }
    for form in ["reduce_scatter fed", "all_to_all fed", "all_to_all read", "all_gather read"] {
        assert!(seen.get(form).copied().unwrap_or(0) > 3, "{form}: {seen:?}");
    }
}

/// What became of the collectives of a model: the pair or the place, by remark.
fn outcomes(model: &str, options: &t3c_frontends::Options) -> Vec<Remark> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/families/").to_owned() + model;
    let graph = t3c_frontends::load(std::path::Path::new(&path), options).unwrap();
    let context = Context::new();
    let mut module = graph.build(&context).unwrap();
    let training = options.phase == t3c_frontends::Phase::Training;
    let mut passes = if training { vec!["t3-autodiff".to_owned()] } else { vec![] };
    passes.extend(pipelines::sharding(false));
    passes.push("t3-split-all-reduce".to_owned());
    run_passes(&mut module, &passes, &mut Vec::new()).unwrap();
    let found: usize = candidates(&module).values().sum();
    let fusion = pipelines::Fusion { policy: crate::fuse::Policy::Always, ..Default::default() };
    let mut remarks = Vec::new();
    run_passes(&mut module, &pipelines::fusion(&fusion), &mut remarks).unwrap();
    let is_outcome = |remark: &Remark| {
        (remark.pass == Fuse::NAME || remark.pass == FindPairs::NAME) && remark.reason != "pair"
    };
    remarks.retain(is_outcome);
    assert_eq!(remarks.len(), found, "{model}: {remarks:#?}");
    run_passes(&mut module, &pipelines::schedule(), &mut Vec::new()).unwrap();
    remarks
}

fn options(phase: t3c_frontends::Phase, tp: u64, ep: u64, sequence_parallel: bool) -> t3c_frontends::Options {
    t3c_frontends::Options {
        phase,
        tp: Some(tp),
        ep: Some(ep),
        sequence_parallel,
        batch: Some(2),
        seq: Some(8),
        ..Default::default()
    }
}

#[test]
fn sequence_parallelism_pairs_each_gather_with_its_products() {
    let outcomes = outcomes("gpt_neox/config.json", &options(t3c_frontends::Phase::Prefill, 2, 1, true));
    let mut pairs: Vec<(String, u64)> =
        outcomes.into_iter().filter_map(|remark| Some((remark.pair?, remark.times))).collect();
    pairs.sort();
    // A parallel residual: attention and MLP share one reduction.
    let expected = [
        ("all_gather dense_h_to_4h", 2),
        ("all_gather embed_out", 1),
        ("all_gather query_key_value", 2),
        ("dense + dense_4h_to_h reduce_scatter", 2),
        ("embed_in reduce_scatter", 1),
    ];
    assert_eq!(pairs, expected.map(|(pair, times)| (pair.to_owned(), times)));
}

#[test]
fn no_collective_of_a_training_step_goes_without_a_remark() {
    let dense = options(t3c_frontends::Phase::Training, 2, 1, true);
    let outcomes = outcomes("gpt_neox/config.json", &dense);
    let backward = |remark: &&Remark| remark.pair.as_deref().is_some_and(|pair| pair.contains(".backward"));
    assert!(outcomes.iter().filter(backward).count() > 3, "{outcomes:#?}");
    // A weight's gradient sums over the tokens that are gathered.
    assert!(outcomes.iter().any(|remark| remark.reason == "gathered-dimension-reduced"));
}

#[test]
fn experts_are_pairs_with_their_exchanges() {
    let prefill = t3c_frontends::Phase::Prefill;
    for (tp, ep, expected) in
        [(1, 2, ["all_to_all w1, w3", "w2 all_to_all"]), (2, 1, ["w2 reduce_scatter"; 2])]
    {
        let outcomes = outcomes("mixtral/config.json", &options(prefill, tp, ep, tp > 1));
        for pair in expected {
            let found = outcomes.iter().find(|remark| remark.pair.as_deref() == Some(pair));
            assert_eq!(
                found.map(|remark| (remark.kind, remark.times)),
                Some((Kind::Passed, 2)),
                "{outcomes:#?}"
            );
        }
    }
}
