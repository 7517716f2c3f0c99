//! Every file format against what it must refuse: one `error:` line that names the file and the field, exit
//! status 1, nothing on standard output, nothing written.

use serde_json::{Value, json};

use crate::support::{Folder, Ran, json, t3c, t3c_with_input, text_of};

/// Checks one refusal: `names` must all stand in the message.
#[track_caller]
fn refused(ran: &Ran, names: &[&str]) {
    assert_eq!(ran.status, 1, "{ran:?}");
    assert_eq!(ran.stdout, "", "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{ran:?}");
    assert!(lines[0].starts_with("error: "), "{ran:?}");
    for name in names {
        assert!(lines[0].contains(name), "`{name}` is missing: {}", lines[0]);
    }
}

/// Gives `contents` as file `name` to `command`, whose argument `{}` is the file's path and `{out}` a file to write.
#[track_caller]
fn file_refused(command: &[&str], name: &str, contents: &[u8], names: &[&str]) {
    let folder = Folder::new();
    let path = folder.file(name, contents);
    let arguments: Vec<String> =
        command.iter().map(|part| part.replace("{out}", &folder.at("out")).replace("{}", &path)).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = t3c(&arguments);
    refused(&ran, names);
    assert!(ran.stderr.contains(name), "{ran:?}");
    assert_eq!(folder.names(), [name]);
}

/// A JSON text with the value at `pointer` replaced.
fn with(text: &str, pointer: &str, value: Value) -> Vec<u8> {
    let mut root = json(text);
    *root.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    root.to_string().into_bytes()
}

fn half(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len() / 2]
}

const EMIT: [&str; 6] = ["compile", "{}", "--emit", "t3", "-o", "{out}"];
const LLAMA: &str = "tests/goldens/llama/tied";

#[test]
fn configurations() {
    let config = text_of(&format!("{LLAMA}/config.json"));
    let check = |contents: &[u8], names: &[&str]| file_refused(&EMIT, "config.json", contents, names);
    check(b"", &["empty"]);
    check(b"\xff\xfe", &["unknown format"]);
    check(b"[1]", &["unknown format"]);
    check(half(&config), &["config.json:"]);
    check(&with(&config, "/model_type", json!("lama")), &["`model_type`", "`lama`", "nearest: `llama`"]);
    check(&with(&config, "/model_type", json!(7)), &["model_type"]);
    check(&with(&config, "/hidden_size", json!("wide")), &["config.json:1:", "hidden_size"]);
    check(&with(&config, "/hidden_size", json!(-1)), &["hidden_size"]);
    check(&with(&config, "/vocab_size", json!(0)), &["vocab_size"]);
    check(&with(&config, "/intermediate_size", json!(1u64 << 62)), &["intermediate_size"]);
    check(&with(&config, "/num_hidden_layers", json!(u64::MAX)), &["num_hidden_layers"]);
    check(&with(&config, "/num_attention_heads", json!(7)), &["num_attention_heads"]);
}

#[test]
fn paths() {
    let folder = Folder::new();
    refused(&t3c(&["compile", &folder.at("none.json")]), &["none.json", "no such file"]);
    refused(&t3c(&["compile", &folder.path().display().to_string()]), &["config.json"]);
    let model = "examples/models/t-nlg.json";
    let out = folder.at("missing/out.mlir");
    refused(&t3c(&["compile", model, "--emit", "t3", "-o", &out]), &["out.mlir", "missing"]);
    let folder_out = folder.path().display().to_string();
    refused(&t3c(&["compile", model, "--emit", "t3", "-o", &folder_out]), &["is a folder"]);
    refused(&t3c(&["compile", model, "-o", &folder.at("out")]), &["--emit"]);
    assert!(folder.names().is_empty());
}

#[test]
fn models() {
    let model = text_of("examples/models/t-nlg.json");
    let check = |contents: &[u8], names: &[&str]| file_refused(&EMIT, "model.json", contents, names);
    check(half(&model), &["model.json:"]);
    check(&with(&model, "/schema", json!("t3c.model/9")), &["`schema`", "t3c.model/1"]);
    check(&with(&model, "/sizes/hidden", json!("wide")), &["sizes"]);
    check(&with(&model, "/sizes/hidden", json!(1u64 << 61)), &["impossible size"]);
    check(&with(&model, "/blocks/layer/ops/0/op", json!("layer_nrom")), &["layer_nrom"]);
    check(&with(&model, "/blocks/layer/ops/1/inputs/0", json!("nothing")), &["nothing"]);
    check(&with(&model, "/dtype", json!("f17")), &["dtype"]);
}

#[test]
fn recipes() {
    let recipe =
        r#"{"schema": "t3c.portool/1", "seed": 1, "model": {"hidden_size": 64}, "rl": {"steps": 2}}"#;
    let out = ["train", "{}", "--out", "{out}"];
    for command in [&EMIT[..], &out[..]] {
        let check = |contents: &[u8], names: &[&str]| file_refused(command, "portool.json", contents, names);
        check(half(recipe), &["portool.json:1:"]);
        check(&with(recipe, "/seed", json!("one")), &["portool.json:1:", "seed"]);
        check(&with(recipe, "/model/hidden_size", json!("wide")), &["portool.json:1:", "hidden_size"]);
        check(&with(recipe, "/model/hidden_size", json!(1u64 << 62)), &["model.hidden_size"]);
        check(&with(recipe, "/rl", json!({"stepps": 1})), &["stepps"]);
    }
    file_refused(&out, "portool.json", b"", &["portool.json"]);
}

/// A safetensors file: the header's text, then bytes.
fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn weights() {
    let run = ["run", LLAMA, "--tokens", "1,2,3", "--weights", "{}", "-o", "{out}"];
    let check = |contents: &[u8], names: &[&str]| file_refused(&run, "w.safetensors", contents, names);
    let whole =
        std::fs::read(crate::support::repository(&format!("{LLAMA}/model.safetensors"))).expect("weights");
    check(b"", &["safetensors"]);
    check(&whole[..4], &["safetensors"]);
    check(&whole[..whole.len() / 2], &["safetensors"]);
    check(&u64::MAX.to_le_bytes(), &["safetensors"]);
    check(&safetensors(&json!({}), b""), &["missing", "model."]);
    let name = "model.embed_tokens.weight";
    let tensor = |dtype: &str, shape: Value, bytes: usize| {
        let header = json!({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, bytes]}});
        safetensors(&header, &vec![0; bytes])
    };
    check(&tensor("F32", json!([2, 2]), 16), &[name, "shape"]);
    check(&tensor("U8", json!([4]), 4), &[name, "type"]);
    check(&tensor("F32", json!([1u64 << 40, 1u64 << 40]), 16), &["safetensors"]);
    refused(&t3c(&["run", LLAMA, "--tokens", "1", "--weights", "none.safetensors"]), &["none.safetensors"]);
}

#[test]
fn inputs() {
    let folder = Folder::new();
    let run = ["run", LLAMA, "--inputs", "{}", "-o", "{out}"];
    let check = |contents: &[u8], names: &[&str]| file_refused(&run, "in.safetensors", contents, names);
    let tokens = |dtype: &str, shape: Value, data: &[u8]| {
        safetensors(
            &json!({"tokens": {"dtype": dtype, "shape": shape, "data_offsets": [0, data.len()]}}),
            data,
        )
    };
    check(&safetensors(&json!({}), b""), &["`tokens`", "missing"]);
    check(&tokens("F32", json!([2]), &[0; 8]), &["`tokens`", "int64"]);
    check(&tokens("I64", json!([1, 1, 1]), &[0; 8]), &["`tokens`", "shape"]);
    check(&tokens("I64", json!([0]), &[]), &["`tokens`", "empty"]);
    refused(&t3c(&["run", LLAMA, "--tokens", "1,99999"]), &["99999", "vocabulary"]);
    refused(&t3c(&["run", LLAMA, "--tokens", "1,2", "--grad", "nothing"]), &["--grad", "nothing"]);
    let graph = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }";
    let graph = folder.file("graph.mlir", graph);
    let run = ["run", &graph, "--inputs", "{}", "-o", "{out}"];
    file_refused(&run, "in.safetensors", &safetensors(&json!({}), b""), &["`in/0`", "missing"]);
    refused(&t3c(&["run", &graph, "--tokens", "1"]), &["--tokens", "--inputs"]);
}

#[test]
fn mlir() {
    for command in [&EMIT[..], &["opt", "{}", "-o", "{out}"][..]] {
        let check =
            |contents: &str, names: &[&str]| file_refused(command, "m.mlir", contents.as_bytes(), names);
        check("func.func @main(%x: tensor<4xf32>) -> ", &["m.mlir:1:"]);
        check("\nfunc.func @main(%x: tensor<4xf33>) { return }", &["m.mlir:2:"]);
        check("func.func @main(%x: tensor<99999999999999999999xf32>) { return }", &["m.mlir:1:"]);
        check("func.func @main() { \"no.such\"() : () -> () return }", &["m.mlir:1:"]);
        check(
            "func.func @main(%x: tensor<4xf32>) -> tensor<5xf32> { return %x : tensor<4xf32> }",
            &["m.mlir:1:"],
        );
    }
    file_refused(&EMIT, "m.mlir", b" \n", &["empty"]);
    // A tracker that waits for an update too many. Without locations, so that the file's own are named.
    let emitted = t3c(&["compile", "examples/models/t-nlg.json", "--emit", "t3"]).succeeded();
    let broken =
        t3c_with_input(&["opt"], emitted.as_bytes()).succeeded().replace("threshold = 2", "threshold = 3");
    for command in [&EMIT[..], &["opt", "{}", "-o", "{out}"][..]] {
        file_refused(command, "m.mlir", broken.as_bytes(), &["m.mlir:", "t3.track_and_trigger"]);
    }
    let parts = "func.func @a() { return }\n// -----\nfunc.func @b( { return }\n";
    file_refused(
        &["opt", "--split-input-file", "{}", "-o", "{out}"],
        "m.mlir",
        parts.as_bytes(),
        &["m.mlir:3:"],
    );
    file_refused(&["opt", "--run-reproducer", "{}"], "m.mlir", b"module {}", &["no reproducer"]);
    let ran = t3c_with_input(&["opt", "-", "--pass-pipeline=builtin.module(t3-shrad)"], b"module {}");
    refused(&ran, &["t3-shrad", "t3-shard"]);
    let ran = t3c_with_input(&["opt", "--pass-pipeline=builtin.module(no-such-pass)"], b"module {}");
    refused(&ran, &["--pass-pipeline", "no-such-pass"]);
    let ran = t3c_with_input(&["opt", "--pass-pipeline=builtin.module(t3-fuse{policy=some})"], b"module {}");
    refused(&ran, &["t3-fuse", "policy=some", "always"]);
}

#[test]
fn trees() {
    let tree = r#"{"input": {"nodes": [{"parent": -1, "model_tokens": 1, "format_score": 1, "logp": [-0.5],
        "old_logp": [-0.7]}], "trajectories": [{"leaf": 0, "finished": true, "r_out": 1}]}, "options": {"gamma": 0.9}}"#;
    t3c_with_input(&["credit"], tree.as_bytes()).succeeded();
    let check = |contents: &[u8], names: &[&str]| refused(&t3c_with_input(&["credit"], contents), names);
    check(b"", &["<stdin>", "empty"]);
    check(b"\xff", &["<stdin>"]);
    check(half(tree), &["<stdin>:"]);
    check(&with(tree, "/input/nodes/0/parent", json!("x")), &["<stdin>:1:", "`input.nodes[0].parent`"]);
    check(&with(tree, "/input/nodes/0/parent", json!(3)), &["`input.nodes[0].parent`"]);
    check(&with(tree, "/input/nodes/0/model_tokens", json!(1u64 << 60)), &["`input.nodes[0].logp`"]);
    check(&with(tree, "/input/trajectories/0/leaf", json!(9)), &["`input.trajectories[0].leaf`"]);
    check(&with(tree, "/options/gamma", json!(2)), &["`options.gamma`"]);
    check(&with(tree, "/options", json!({"gama": 1})), &["gama"]);
}

#[test]
fn systems() {
    let system = text_of("examples/systems/t3-80cu.toml");
    let command = ["compile", "examples/models/t-nlg.json", "--system", "{}", "--emit", "t3", "-o", "{out}"];
    let check = |contents: &str, names: &[&str]| file_refused(&command, "s.toml", contents.as_bytes(), names);
    check("", &["name"]);
    check(&system[..system.find("[link]").expect("a table")], &["link"]);
    check(&system.replace("units = 80", "units = \"many\""), &["s.toml:", "units"]);
    check(&system.replace("units = 80", "unit = 80"), &["s.toml:", "unit"]);
    check(&system.replace("units = 80", "units = 0"), &["s.toml:", "units"]);
    check(&system.replace("\"1 TB/s\"", "\"1 TB\""), &["s.toml:", "bandwidth"]);
    check(&system.replace("units = 80", "units = 80000000000000000000"), &["s.toml:"]);
    refused(&t3c(&["simulate", "examples/models/t-nlg.json", "--system", "none"]), &["none", "t3-80cu"]);
    let sweep = ["simulate", "examples/models/t-nlg.json", "--sweep"];
    refused(&t3c(&[&sweep[..], &["link.bandwith=1 GB/s"]].concat()), &["bandwith"]);
    refused(&t3c(&[&sweep[..], &["tp=x"]].concat()), &["--sweep", "tp=x"]);
}

#[test]
fn options_that_do_not_fit() {
    let compile = |extra: &[&str]| t3c(&[&["compile", "examples/models/t-nlg.json"], extra].concat());
    refused(&compile(&["--tp", "3"]), &["tp", "3"]);
    refused(&compile(&["--dp", "3"]), &["--dp", "3", "batch of 8"]);
    for (option, value) in [("--zero", "1"), ("--remat", "full"), ("--remat", "some")] {
        refused(&compile(&[option, value]), &[option, value]);
    }
    refused(&compile(&["--remarks-file", "remarks.txt"]), &["--remarks-file", "remarks.txt", ".yaml"]);
    for option in ["--sequence-parallel", "--reassociate"] {
        refused(&t3c(&["run", LLAMA, "--tokens", "1", option]), &[option]);
    }
    for (option, value) in [("--dp", "2"), ("--zero", "1")] {
        refused(&t3c(&["run", LLAMA, "--tokens", "1", option, value]), &[option, value]);
    }
    refused(&t3c(&["compile", LLAMA, "--tp", "5"]), &["num_attention_heads", "5", "degrees that fit"]);
    refused(&compile(&["--phase", "decode"]), &["--phase", "decode"]);
    refused(&t3c(&["run", LLAMA, "--tokens", "1", "--dtype", "f16"]), &["--dtype", "f16", "f32"]);
    refused(&t3c(&["run", "examples/models/t-nlg.json", "--tokens", "1"]), &["t-nlg.json", "language model"]);
}

#[test]
fn expert_loads() {
    let command =
        ["compile", "examples/models/t-nlg.json", "--expert-load", "{}", "--emit", "t3", "-o", "{out}"];
    let check = |contents: &str, names: &[&str]| file_refused(&command, "l.json", contents.as_bytes(), names);
    check("", &["JSON list"]);
    check("{}", &["JSON list"]);
    check("[1, -1]", &["negative"]);
    check("[0, 0]", &["only zeros"]);
    check("[1e999]", &["l.json"]);
    let folder = Folder::new();
    let load = folder.file("l.json", "[1, 2]");
    refused(&t3c(&["compile", "examples/models/t-nlg.json", "--expert-load", &load]), &["no experts"]);
    refused(
        &t3c(&["compile", "examples/models/mixtral-8x7b", "--expert-load", &load]),
        &["2 numbers", "8 experts"],
    );
}

#[test]
fn wrong_usage_is_status_two() {
    let usages: [&[&str]; 9] = [
        &[],
        &["cmopile"],
        &["compile"],
        &["compile", "a.json", "--tp", "0"],
        &["compile", "a.json", "--phase", "training-ish"],
        &["run", "a.json"],
        &["run", "a.json", "--tokens", "1,x"],
        &["simulate", "a.json", "--sweep", "tp"],
        &["bench", "nothing"],
    ];
    for usage in usages {
        let ran = t3c(usage);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{ran:?}");
    }
}
