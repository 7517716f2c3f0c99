//! Operations of `model.json`: their numbers by the interpreter, shardings, collectives and losses.

use serde_json::{Value, json};
use t3c_frontends::{Graph, Options, Phase, graph};
use t3c_ir::{
    Context, function,
    interpreter::{Interpreter, Tensor},
};

/// A model of two rows of three with these operations, whose result is `y`.
fn model(extra: Value) -> graph::Model {
    let mut model = json!({
        "schema": "t3c.model/1",
        "name": "small",
        "dtype": "f64",
        "inputs": [{"name": "x", "shape": [2, 3]}],
        "ops": [],
        "outputs": ["y"],
    });
    for (key, value) in extra.as_object().expect("an object") {
        model[key] = value.clone();
    }
    serde_json::from_value(model).expect("a model")
}

fn build(model: graph::Model, options: &Options) -> Result<Graph, t3c_frontends::Error> {
    Ok(Graph::Model(Box::new(graph::ModelGraph::new(model, options, None)?)))
}

/// The first result of the model, on one device.
fn run(model: graph::Model, inputs: &[Tensor]) -> Vec<f64> {
    let graph = build(model, &Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let context = Context::new();
    let module = graph.build(&context).unwrap_or_else(|error| panic!("{error}"));
    let entry = function::entry(module.op()).expect("one entry").name();
    let results = Interpreter::new(module.op()).run_one(&entry, inputs);
    results.unwrap_or_else(|error| panic!("{error}"))[0].numbers()
}

const X: [f64; 6] = [0.5, -1.0, 2.0, 4.0, 0.25, -3.0];

#[track_caller]
fn check(op: Value, expected: &[f64]) {
    let found = run(model(json!({"ops": [op]})), &[Tensor::f64([2, 3], X)]);
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-9;
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{op}: {found:?}");
}

#[test]
fn operations_compute_what_they_are_called() {
    let each = |function: fn(f64) -> f64| X.map(function);
    let unary = |op: &str| json!({"op": op, "input": "x", "result": "y"});
    check(unary("neg"), &each(|x| -x));
    check(unary("abs"), &each(f64::abs));
    check(unary("square"), &each(|x| x * x));
    check(unary("exp"), &each(f64::exp));
    check(unary("tanh"), &each(f64::tanh));
    check(unary("sigmoid"), &each(|x| 1.0 / (1.0 + (-x).exp())));
    check(json!({"op": "scale", "input": "x", "factor": -2.0, "result": "y"}), &each(|x| -2.0 * x));
    check(json!({"op": "shift", "input": "x", "by": 0.5, "result": "y"}), &each(|x| x + 0.5));
    for (op, function) in
        [("sub", (|_| 0.0) as fn(f64) -> f64), ("div", |_| 1.0), ("max", |x| x), ("min", |x| x)]
    {
        check(json!({"op": op, "inputs": ["x", "x"], "result": "y"}), &each(function));
    }
    let reduced = |op: &str| json!({"op": op, "input": "x", "equation": "nd->n", "result": "y"});
    check(reduced("sum"), &[1.5, 1.25]);
    check(reduced("mean"), &[0.5, 1.25 / 3.0]);
    check(reduced("largest"), &[2.0, 4.0]);
    let transposed = [0.5, 4.0, -1.0, 0.25, 2.0, -3.0];
    check(json!({"op": "transpose", "input": "x", "equation": "nd->dn", "result": "y"}), &transposed);
    let softmax = |row: &[f64]| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect::<Vec<_>>()
    };
    check(unary("softmax"), &[softmax(&X[..3]), softmax(&X[3..])].concat());
    check(
        json!({"op": "broadcast", "input": "x", "equation": "nd->nkd", "extents": {"k": 2}, "result": "y"}),
        &[&X[..3], &X[..3], &X[3..], &X[3..]].concat(),
    );
    check(json!({"op": "constant", "value": 1.5, "shape": [2], "result": "y"}), &[1.5, 1.5]);
}

#[test]
fn losses_are_means_over_rows() {
    let loss = json!({
        "inputs": [{"name": "x", "shape": [2, 3]}, {"name": "t", "shape": [2], "dtype": "i32"}],
        "ops": [{"op": "cross_entropy", "logits": "x", "targets": "t", "result": "y"}],
    });
    let log_sum = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln();
    let expected = (log_sum(&X[..3]) - X[2] + log_sum(&X[3..]) - X[3]) / 2.0;
    let found = run(model(loss), &[Tensor::f64([2, 3], X), Tensor::i32([2], [2, 0])]);
    assert!((found[0] - expected).abs() < 1e-9, "{found:?} {expected}");
    let squares = json!({
        "inputs": [{"name": "x", "shape": [2, 3]}, {"name": "t", "shape": [2, 3]}],
        "ops": [{"op": "mean_squared_error", "input": "x", "target": "t", "result": "y"}],
    });
    let found = run(model(squares), &[Tensor::f64([2, 3], X), Tensor::f64([2, 3], X.map(|x| x + 3.0))]);
    assert!((found[0] - 9.0).abs() < 1e-9, "{found:?}");
}

/// A layer whose loss is named, so that only training has it.
fn trained() -> graph::Model {
    model(json!({
        "parameters": [{"name": "w", "shape": [4, 3], "shard": ["tp", null]}],
        "ops": [
            {"op": "contract", "equation": "nd,fd->nf", "inputs": ["x", "w"], "result": "y"},
            {"op": "square", "input": "y", "result": "squares"},
            {"op": "mean", "equation": "nf->", "input": "squares", "result": "error"},
        ],
        "loss": "error",
    }))
}

#[test]
fn a_named_loss_is_trainings_first_result_and_absent_elsewhere() {
    let results = |phase| {
        let graph = build(trained(), &Options { phase, ..Options::default() }).expect("checks");
        let context = Context::new();
        let module = graph.build(&context).expect("builds");
        let ports = function::entry(module.op()).expect("one entry").result_ports().expect("types");
        let names: Vec<String> = ports.into_iter().map(|port| port.name).collect();
        (names, module.text(false).matches("linalg.generic").count())
    };
    assert_eq!(results(Phase::Training), (vec!["loss".into(), "y".into()], 3));
    assert_eq!(results(Phase::Prefill), (vec!["y".into()], 1));
    let mut wrong = trained();
    wrong.loss = Some("y".into());
    let graph = build(wrong, &Options { phase: Phase::Training, ..Options::default() }).expect("checks");
    let error = graph.build(&Context::new()).err().expect("refused").to_string();
    assert_eq!(error, "`loss`: `y` is a tensor<2x4xf64>; expected a scalar");
}

/// Megatron's MLP as one device runs it.
fn per_device() -> graph::Model {
    model(json!({
        "sizes": {"mlp": 8},
        "parallelism": {"tp": 2},
        "parameters": [{"name": "up", "shape": ["mlp/tp", 3]}, {"name": "down", "shape": [3, "mlp/tp"]}],
        "ops": [
            {"op": "contract", "equation": "nd,fd->nf", "inputs": ["x", "up"], "result": "wide"},
            {"op": "contract", "equation": "nf,df->nd", "inputs": ["wide", "down"], "result": "part"},
            {"op": "all_reduce", "axes": ["dp", "tp"], "input": "part", "result": "y"},
        ],
    }))
}

#[test]
fn a_graph_with_collectives_is_one_devices() {
    let graph = build(per_device(), &Options::default()).expect("checks");
    assert_eq!(graph.info().degrees, [1, 2, 4, 8]);
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let text = module.text(false);
    assert!(text.contains("shard.grid @grid(shape = 2)"), "{text}");
    assert!(text.contains("tensor<4x3xf64> {t3.name = \"param/up\"}"), "{text}");
    assert!(text.contains("shard.all_reduce") && !text.contains("shard.shard "), "{text}");
    let devices = Interpreter::new(module.op());
    let ones = |shape: [u64; 2]| Tensor::f64(shape, vec![1.0; (shape[0] * shape[1]) as usize]);
    let inputs = vec![vec![ones([2, 3]), ones([4, 3]), ones([3, 4])]; 2];
    let results = devices.run("prefill", &inputs).expect("runs");
    assert_eq!(results[1][0].numbers(), [24.0; 6]);
    let alone = build(per_device(), &Options { tp: Some(1), ..Options::default() }).expect("checks");
    assert!(!alone.build(&context).expect("builds").text(false).contains("all_reduce"));
    let error = build(per_device(), &Options { tp: Some(3), ..Options::default() }).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "`parameters[0].shape[0]` = 8 is not divisible by tp = 3; degrees that fit: 1, 2, 4, 8"
    );
    let mut both = per_device();
    both.parameters[0].shard = Some(vec![graph::Split(vec![graph::Axis::Tp]), graph::Split::default()]);
    let error = build(both, &Options::default()).expect_err("refused").to_string();
    assert!(error.starts_with("`ops[2]`: a collective in a graph with shardings"), "{error}");
}

#[test]
fn shardings_name_axes_one_or_many() {
    let split: Vec<graph::Split> = serde_json::from_value(json!([null, "tp", ["dp", "sp"]])).expect("reads");
    use graph::Axis::{Dp, Sp, Tp};
    assert_eq!(split, [vec![], vec![Tp], vec![Dp, Sp]].map(graph::Split));
    assert_eq!(serde_json::to_value(&split).expect("writes"), json!([null, "tp", ["dp", "sp"]]));
    let with = |split: Value| {
        let ops = json!([{"op": "shard", "input": "x", "split": split, "result": "y"}]);
        let graph =
            build(model(json!({"parallelism": {"dp": 2, "tp": 3}, "ops": ops})), &Options::default())?;
        Ok(graph.build(&Context::new())?.text(false))
    };
    let text = with(json!(["dp", "tp"])).unwrap_or_else(|error: t3c_frontends::Error| panic!("{error}"));
    assert!(text.contains("shard.grid @grid(shape = 2x3)"), "{text}");
    assert!(text.contains("[[0], [1]]"), "{text}");
    let refused = |split: Value| with(split).expect_err("refused").to_string();
    assert_eq!(refused(json!(["tp", null])), "`ops[0].split[0]` = 2 is not divisible by tp = 3");
    assert!(refused(json!(["tp"])).contains("1 entries for a shape of 2 dimensions"));
    assert!(refused(json!(["tp", "tp"])).contains("the axis `tp` twice"));
}

#[test]
fn the_books_example_builds() {
    let page =
        std::fs::read_to_string(crate::modules::repository("docs/src/how-to/models.md")).expect("a page");
    let text = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let model: graph::Model = serde_json::from_str(text).expect("a model");
    for phase in [Phase::Prefill, Phase::Training] {
        let options =
            Options { phase, tp: Some(4), dp: Some(2), sequence_parallel: true, ..Options::default() };
        let graph = build(model.clone(), &options).unwrap_or_else(|error| panic!("{error}"));
        graph.build(&Context::new()).unwrap_or_else(|error| panic!("{error}"));
    }
}
