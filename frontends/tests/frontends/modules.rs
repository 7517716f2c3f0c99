//! Every model builds in every phase, and one layer is read by eye.

use std::path::PathBuf;

use melior::ir::operation::OperationLike;
use t3c_frontends::{Objective, Options, Phase, load};
use t3c_ir::{Context, Element, context::render_location, function, walk};

pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

const PORTOOL: Objective = Objective::Portool { clip_low: 0.2, clip_high: 0.28, beta: 0.001 };

fn options(phase: Phase) -> Options {
    Options { phase, batch: Some(2), seq: Some(32), ..Options::default() }
}

/// Names of the entry's arguments before its parameters, and of its results.
fn ports(path: &str, options: &Options) -> (Vec<String>, Vec<String>) {
    let graph = load(&repository(path), options).unwrap_or_else(|error| panic!("{error}"));
    let context = Context::new();
    let module = graph.build(&context).unwrap_or_else(|error| panic!("{path}: {error}"));
    let entry = function::entry(module.op()).expect("one entry");
    let names = |ports: Vec<function::Port>| ports.into_iter().map(|port| port.name).collect::<Vec<_>>();
    let mut arguments = names(entry.argument_ports().expect("static types"));
    let parameters: Vec<String> =
        graph.info().parameters.iter().map(|parameter| format!("param/{}", parameter.name)).collect();
    let data = arguments.len() - parameters.len();
    assert_eq!(arguments.split_off(data), parameters, "parameters come last, in the order of the checkpoint");
    (arguments, names(entry.result_ports().expect("static types")))
}

#[test]
fn public_configurations_build_in_every_phase() {
    for (path, tp) in [("examples/models/smollm2-135m", 3), ("examples/models/llama-3.1-8b", 8)] {
        for tp in [1, tp] {
            let with = |phase| Options { tp: Some(tp), ..options(phase) };
            let (arguments, results) = ports(path, &with(Phase::Prefill));
            assert_eq!(arguments, ["tokens", "position", "subtree_end"]);
            assert_eq!(results, ["logits"]);
            let (arguments, results) = ports(path, &with(Phase::Training));
            assert_eq!(arguments, ["tokens", "position", "subtree_end", "rows", "targets", "weight"]);
            assert_eq!(results, ["loss", "logp"]);
            let (arguments, results) = ports(path, &with(Phase::Decode));
            assert_eq!(arguments[..5], ["tokens", "position", "block_table", "cache/k/0", "cache/v/0"]);
            assert_eq!(results[..3], ["logits", "cache/k/0", "cache/v/0"]);
            assert_eq!(results[1..], arguments[3..]);
        }
    }
}

#[test]
fn an_rl_step_has_its_inputs() {
    let rl = |objective| Options { objective, temperature: Some(0.7), ..options(Phase::Training) };
    let (arguments, results) = ports("tests/goldens/llama/tied", &rl(PORTOOL));
    assert_eq!(arguments[3..], ["rows", "targets", "old_logp", "ref_logp", "a_plus", "a_minus", "weight"]);
    assert_eq!(results, ["loss", "loss_pg", "loss_kl", "logp"]);
    let free = Objective::Portool { clip_low: 0.2, clip_high: 0.28, beta: 0.0 };
    let (arguments, results) = ports("tests/goldens/llama/tied", &rl(free));
    assert_eq!(arguments[5..], ["old_logp", "a_plus", "a_minus", "weight"]);
    assert_eq!(results, ["loss", "loss_pg", "logp"]);
}

#[test]
fn known_sizes_come_out() {
    let smol =
        load(&repository("examples/models/smollm2-135m/config.json"), &Options::default()).expect("loads");
    assert_eq!(smol.info().parameter_count(), 134_515_008);
    assert_eq!((smol.info().name.as_str(), smol.info().layers), ("smollm2-135m", 30));
    assert_eq!(smol.info().degrees, [1, 3]);
    let llama = load(&repository("examples/models/llama-3.1-8b"), &Options::default()).expect("loads");
    assert_eq!(llama.info().parameter_count(), 8_030_261_248);
    assert_eq!(llama.info().default_degree(), 8);
    assert_eq!(llama.info().element, Element::Bf16);
}

#[test]
fn both_spellings_are_one_model() {
    use t3c_frontends::{hf, json::Source};
    let new = std::fs::read_to_string(repository("tests/goldens/llama/tied/config.json")).expect("golden");
    let read = |text: &str| hf::read(&Source::parse("config.json", text).expect("JSON")).expect("llama");
    let config = read(&new);
    let old = hf::config_json(&config, config.dtype).to_string();
    assert!(old.contains("rope_scaling") && !old.contains("rope_parameters"));
    assert_eq!(read(&old), config);
}

#[test]
fn types_of_two_bytes_build() {
    for dtype in [Element::F16, Element::Bf16, Element::F64] {
        for phase in [Phase::Prefill, Phase::Training, Phase::Decode] {
            ports(
                "tests/goldens/llama/untied",
                &Options { dtype: Some(dtype), tp: Some(2), ..options(phase) },
            );
        }
    }
}

/// The text of the module with its units left out.
fn text(path: &str, options: &Options) -> String {
    let graph = load(&repository(path), options).expect("loads");
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let functions = function::functions(module.op());
    let own = functions.iter().filter(|function| function.unit().is_none());
    own.map(|function| format!("{}\n", function.0)).collect()
}

#[test]
fn a_layer_reads_as_expected() {
    let options =
        Options { tp: Some(2), seq: Some(6), batch: Some(1), rows: Some(3), ..options(Phase::Training) };
    let text = text("tests/goldens/llama/untied", &options);
    let table =
        text.find("dense<\"").map(|start| (start, start + text[start..].find("\">").unwrap_or(0) + 2));
    let text = match table {
        Some((start, end)) => format!("{}dense<rotations>{}", &text[..start], &text[end..]),
        None => text,
    };
    insta::assert_snapshot!("layer", text);
}

#[test]
fn locations_name_the_tensor_and_the_line() {
    let graph = load(&repository("tests/goldens/llama/untied"), &options(Phase::Prefill)).expect("loads");
    let context = Context::new();
    let module = graph.build(&context).expect("builds");
    let layer = function::function(module.op(), "layer").expect("a layer");
    let operations = walk::operations(layer.body().expect("a body"));
    let places: Vec<String> =
        operations.iter().map(|operation| render_location(operation.location())).collect();
    let down =
        places.iter().find(|place| place.starts_with("model.layers.*.mlp.down_proj (")).expect("a location");
    assert!(down.ends_with("llama/untied/config.json:14:24)"), "{down}");
    assert!(module.text(true).contains("\"model.layers.1\""));
}
