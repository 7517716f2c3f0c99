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
fn public_configurations_have_their_published_sizes() {
    let published = [
        ("gpt2", 124_439_808),
        ("pythia-1.4b", 1_414_647_808),
        ("qwen2.5-7b", 7_615_616_512),
        ("mistral-7b", 7_241_732_096),
        ("gemma-2-9b", 9_241_705_984),
        ("mixtral-8x7b", 46_702_792_704),
        ("phi-3-mini", 3_821_079_552),
        ("qwen3-30b-a3b", 30_532_122_624),
    ];
    for (name, parameters) in published {
        let path = repository("examples/models").join(name);
        let graph = load(&path, &Options::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(graph.info().parameter_count(), parameters, "{name}");
    }
}

#[test]
fn public_configurations_build_on_grids() {
    let grid = |tp, dp, ep, sequence_parallel| Options {
        tp: Some(tp),
        dp: Some(dp),
        ep: Some(ep),
        sequence_parallel,
        ..Options::default()
    };
    let cases = [
        ("gpt2", grid(4, 1, 1, false)),
        ("pythia-1.4b", grid(8, 2, 1, true)),
        ("qwen2.5-7b", grid(4, 1, 1, true)),
        ("gemma-2-9b", grid(16, 1, 1, false)),
        ("mixtral-8x7b", grid(4, 2, 8, true)),
        ("phi-3-mini", grid(8, 1, 1, false)),
        ("qwen3-30b-a3b", grid(8, 1, 16, false)),
    ];
    for (name, options) in cases {
        let batch = options.dp.unwrap_or(1) * options.ep.unwrap_or(1);
        for phase in [Phase::Prefill, Phase::Decode] {
            // Sequence parallelism splits the rows of a step.
            let rows = if phase == Phase::Decode { 8 * batch } else { batch };
            let options = Options { phase, batch: Some(rows), seq: Some(56), ..options.clone() };
            let (arguments, _) = ports(&format!("examples/models/{name}"), &options);
            assert_eq!(arguments[..2], ["tokens", "position"]);
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
