//! `model.json`: T-NLG, a graph built in Rust, and what is refused.

use t3c_frontends::{Graph, Options, Phase, graph, load};
use t3c_ir::{Context, Element, Generic, function, walk};

use crate::{errors::error, modules::repository};

fn t_nlg(phase: Phase, tp: u64) -> Graph {
    let options = Options { phase, tp: Some(tp), ..Options::default() };
    load(&repository("examples/models/t-nlg.json"), &options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn t_nlg_has_the_papers_products() {
    let graph = t_nlg(Phase::Training, 8);
    assert_eq!((graph.info().layers, graph.info().element), (78, Element::F16));
    assert_eq!(graph.info().degrees, [1, 2, 4, 8, 16]);
    // Matrices 12 h², norms 4 h, biases 6 h: 17 billion.
    assert_eq!(graph.info().parameter_count(), 78 * (12 * 4256 * 4256 + 10 * 4256));
    let context = Context::new();
    let module = graph.build(&context).unwrap_or_else(|error| panic!("{error}"));
    let layer = function::function(module.op(), "layer").expect("a layer");
    let shapes: Vec<[u64; 3]> = walk::operations(layer.body().expect("a body"))
        .into_iter()
        .filter(|operation| Generic::is(*operation))
        .filter_map(|operation| Generic::read(operation).ok())
        .filter(|generic| generic.body.is_multiply_add() && generic.inputs.len() == 2)
        .map(|generic| {
            let reduced = generic.extents.iter().zip(&generic.iterators);
            let k =
                reduced.filter(|(_, kind)| **kind == t3c_ir::Iterator::Reduction).map(|(extent, _)| extent);
            let [m, n] = [generic.result.shape[0], generic.result.shape[1..].iter().product()];
            [m, n, k.product()]
        })
        .collect();
    // QKV, OP, FC-1, FC-2, before they are divided among devices.
    let expected = [[8192, 3 * 4256, 4256], [8192, 4256, 4256], [8192, 17024, 4256], [8192, 4256, 17024]];
    assert_eq!(shapes, expected);
    let entry = function::entry(module.op()).expect("one entry");
    let names: Vec<String> =
        entry.argument_ports().expect("types").into_iter().map(|port| port.name).collect();
    assert_eq!(names[..4], ["x", "subtree_end", "seed/y", "param/layers.0.attention.norm.weight"]);
    let results: Vec<String> =
        entry.result_ports().expect("types").into_iter().map(|port| port.name).collect();
    assert_eq!(results, ["loss", "y"]);
}

#[test]
fn sizes_follow_the_options() {
    let options = Options { batch: Some(1), seq: Some(32), ..Options::default() };
    let graph = load(&repository("examples/models/t-nlg.json"), &options).expect("loads");
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let ports = function::entry(module.op()).expect("one entry").argument_ports().expect("types");
    assert_eq!(ports[0].r#type.shape, [32, 4256]);
}

/// The model of [`SMALL`], built without a file.
fn small() -> graph::Model {
    use graph::{Extent, Input, Model, Op, ParameterSpec};
    use t3c_frontends::json::Size;
    let shape = |extents: &[u64]| extents.iter().map(|&extent| Extent::Number(Size(extent))).collect();
    Model {
        schema: "t3c.model/1".into(),
        name: "small".into(),
        description: None,
        dtype: graph::DType::F32,
        sizes: Default::default(),
        parallelism: None,
        inputs: vec![Input { name: "x".into(), shape: shape(&[4, 6]), dtype: None, shard: None }],
        parameters: vec![ParameterSpec { name: "w".into(), shape: shape(&[8, 6]), shard: None }],
        blocks: Default::default(),
        ops: vec![Op::Contract {
            result: "y".into(),
            inputs: ["x".into(), "w".into()],
            equation: "nd,fd->nf".into(),
            name: None,
        }],
        outputs: vec!["y".into()],
        loss: None,
    }
}

const SMALL: &str = r#"{
  "schema": "t3c.model/1",
  "name": "small",
  "inputs": [{"name": "x", "shape": [4, 6]}],
  "parameters": [{"name": "w", "shape": [8, 6]}],
  "ops": [{"op": "contract", "equation": "nd,fd->nf", "inputs": ["x", "w"], "result": "y"}],
  "outputs": ["y"]
}
"#;

#[test]
fn rust_and_json_build_one_graph() {
    let built = graph::ModelGraph::new(small(), &Options::default(), None).expect("checks");
    assert_eq!(serde_json::from_str::<graph::Model>(SMALL).expect("reads"), small());
    let context = Context::new();
    let module = Graph::Model(Box::new(built)).build(&context).expect("builds");
    assert!(module.text(false).contains("tensor<8x6xf32> {t3.name = \"param/w\"}"));
}

#[test]
fn wrong_graphs_are_named_with_their_place() {
    let table = [
        (
            "[4, 6]",
            "[4, 0]",
            "m.json:4:41: `inputs[0].shape[1]`: invalid value: integer `0`, expected a whole number of at least 1, or a product",
        ),
        ("[4, 6]", "[4, \"dim\"]", "m.json:4:41: `inputs[0].shape[1]` = `dim` is not supported"),
        ("[4, 6]", "[4, 7]", "m.json:6:11: `ops[0]`: loop `d` is both Some(7) and 6"),
        (
            "[\"x\", \"w\"]",
            "[\"x\", \"v\"]",
            "m.json:6:71: `ops[0].inputs[1]` = `v` is not supported; supported: `w`, `x`",
        ),
        ("\"contract\"", "\"contarct\"", "m.json:6:18: `ops[0].op`: unknown variant `contarct`"),
        ("\"equation\"", "\"equatoin\"", "m.json:6:11: `ops[0]`: unknown field `equatoin`"),
        ("->nf", "nf", "m.json:6:42: `ops[0].equation`: `nd,fdnf` has no `->`"),
        ("nd,fd", "nn,fd", "m.json:6:42: `ops[0].equation`: `nn` in `nn,fd->nf` has a letter twice"),
        ("[\"y\"]", "[\"z\"]", "m.json:7:15: `outputs[0]` = `z` is not supported"),
        (
            "\"name\": \"w\", ",
            "\"name\": \"w\", \"shard\": [\"tp\"], ",
            "m.json:5:41: `parameters[0].shard`: 1 entries for a shape of 2 dimensions",
        ),
        (
            "\"outputs\"",
            "\"sizes\": {\"a\": 1}, \"other\": 1, \"outputs\"",
            "m.json:7:31: `other`: unknown field `other`",
        ),
        ("[8, 6]", "[9000000000000000000, 6]", "m.json:5:41: `parameters[0].shape`: impossible size"),
    ];
    for (from, to, expected) in table {
        let text = SMALL.replace(from, to);
        let found = built_error(&text);
        assert!(found.starts_with(expected), "{to}\n  found    {found}\n  expected {expected}");
    }
}

/// The error of loading or building.
fn built_error(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.json");
    std::fs::write(&path, text).expect("a file");
    let built = load(&path, &Options::default()).and_then(|graph| graph.build(&Context::new()).map(drop));
    match built {
        Ok(()) => panic!("accepted {text}"),
        Err(error) => error.to_string().replace(&format!("{}/", folder.path().display()), ""),
    }
}

#[test]
fn options_that_do_not_fit_are_named() {
    let text = std::fs::read_to_string(repository("examples/models/t-nlg.json")).expect("the example");
    let found = error("m.json", &text, &Options { tp: Some(5), ..Options::default() });
    assert!(found.contains(": `blocks.layer.parameters[2].shape[1]` = 16 is not divisible by --tp = 5; degrees that fit: 1, 2, 4, 8, 16"), "{found}");
    let found = error("m.json", SMALL, &Options { batch: Some(5), ..Options::default() });
    assert_eq!(found, "--batch = 5: the model has no size called `batch`");
    let found = error("m.json", SMALL, &Options { tp: Some(2), ..Options::default() });
    assert_eq!(found, "--tp = 2: no parameter is sharded; expected 1");
}

#[test]
fn the_schema_is_published() {
    let schema = graph::json_schema();
    insta::assert_snapshot!("schema", format!("{schema:#}"));
}
