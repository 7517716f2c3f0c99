//! What the commands print, and that one's output is another's input.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use crate::support::{Folder, json, t3c, t3c_with_input};

const T_NLG: &str = "examples/models/t-nlg.json";
const LLAMA: &str = "tests/goldens/llama/tied";

#[test]
fn compiling_with_no_flag_finds_and_fuses_pairs() {
    let text = t3c(&["compile", T_NLG]).succeeded();
    let first = text.lines().next().expect("a line");
    for word in ["t-nlg", "phase prefill", "batch 8", "seq 1024", "tp 8", "target sim", "system t3-80cu"] {
        assert!(first.contains(word), "`{word}` is missing: {first}");
    }
    let report = json(&t3c(&["compile", T_NLG, "--format", "json"]).succeeded());
    assert_eq!(report["schema"], "t3c.compile/1");
    // A row-parallel product in attention and one in the MLP, in each of 78 layers.
    assert_eq!(report["layers"], 78);
    assert_eq!(report["pairs"], serde_json::json!({"found": 156, "fused": 156, "declined": 0}));
    assert_eq!(report["tp"], 8);
    let remarks = report["remarks"].as_array().expect("remarks");
    assert!(remarks.iter().any(|remark| {
        remark["kind"] == "passed"
            && remark["location"].as_str().is_some_and(|place| place.contains("t-nlg.json:"))
    }));
    let spaces = report["address_spaces"].as_array().expect("address spaces");
    assert_eq!(spaces.len(), 2);
    assert_eq!(spaces[0]["chunks"].as_array().map(Vec::len), Some(8));
    assert!(report["predicted_speedup"]["geomean"]["t3"].as_f64().expect("a speedup") > 1.0);
}

#[test]
fn nothing_is_fused_where_nothing_may_be() {
    let report = json(&t3c(&["compile", T_NLG, "--fuse", "never", "--format", "json"]).succeeded());
    assert_eq!(report["pairs"], serde_json::json!({"found": 156, "fused": 0, "declined": 156}));
    assert_eq!(report["address_spaces"], serde_json::json!([]));
    let text = t3c(&["compile", T_NLG, "--fuse", "never"]).succeeded();
    assert_eq!(text.matches("declined 78: fusion-off: ").count(), 2, "{text}");
}

#[test]
fn remarks_go_to_standard_error() {
    let ran = t3c(&["compile", T_NLG, "--remarks", "--format", "json"]);
    assert!(ran.stderr.lines().all(|line| line.starts_with("remark: ")), "{}", ran.stderr);
    assert!(ran.stderr.contains("passed: fused"), "{}", ran.stderr);
    json(&ran.succeeded());
}

#[test]
fn every_stage_is_valid_input() {
    for stage in ["mlir", "sharded", "t3"] {
        let text = t3c(&["compile", T_NLG, "--emit", stage]).succeeded();
        assert_eq!(text.contains("t3.track_and_trigger"), stage == "t3");
        let again = t3c_with_input(&["opt", "--pass-pipeline=builtin.module(canonicalize)"], text.as_bytes())
            .succeeded();
        assert!(again.contains("func.func"), "{stage}");
    }
}

#[test]
fn opt_does_what_compile_does() {
    let sharded = t3c(&["compile", T_NLG, "--emit", "sharded"]).succeeded();
    let pipeline = "--pass-pipeline=builtin.module(t3-split-all-reduce,t3-find-pairs,t3-fuse{policy=always},\
                    t3-configure-address-space)";
    let ran = t3c_with_input(&["opt", pipeline, "--mlir-print-ir-after-all"], sharded.as_bytes());
    assert!(ran.stderr.contains("passed: fused"), "{}", ran.stderr);
    assert!(ran.stderr.contains("IR Dump After"), "{}", ran.stderr);
    let fused = ran.succeeded();
    assert_eq!(fused.matches("t3.track_and_trigger").count(), 2);
    assert!(t3c(&["opt", "--list-passes"]).succeeded().contains("t3-configure-address-space"));
}

#[test]
fn opt_prints_between_passes() {
    let text = t3c(&["compile", T_NLG, "--emit", "sharded"]).succeeded();
    let folder = Folder::new();
    let tree = folder.at("tree");
    let pipeline = "--pass-pipeline=builtin.module(t3-split-all-reduce,t3-split-all-reduce)";
    let run = |extra: &[&str]| t3c_with_input(&[&["opt", pipeline], extra].concat(), text.as_bytes());
    let changed = run(&["--mlir-print-ir-after-change"]);
    assert_eq!(changed.stderr.matches("IR Dump After").count(), 1, "{}", changed.stderr);
    assert_eq!(run(&["--mlir-print-ir-before-all"]).stderr.matches("IR Dump Before").count(), 2);
    assert!(!run(&["--mlir-print-ir-tree-dir", &tree]).stderr.contains("IR Dump"));
    let files = std::fs::read_dir(&tree).expect("a folder of dumps").flatten().count();
    assert!(files > 0);
    assert!(run(&["--mlir-timing"]).stderr.contains("Execution time report"));
}

#[test]
fn parts_of_a_file_are_modules_of_their_own() {
    let text = "func.func @a() { return }\n// -----\nfunc.func @a() { return }\n";
    let out = t3c_with_input(&["opt", "--split-input-file"], text.as_bytes()).succeeded();
    assert_eq!(out.matches("func.func @a").count(), 2);
    assert_eq!(out.matches("// -----").count(), 1);
    assert_eq!(t3c_with_input(&["opt"], text.as_bytes()).status, 1);
}

#[test]
fn a_reproducer_replays_the_failure() {
    let folder = Folder::new();
    let text = t3c(&["compile", T_NLG, "--emit", "mlir"]).succeeded();
    // A fusion before sharding: what it makes does not verify on a grid of another size.
    let broken = text.replace("shape = 8", "shape = 7");
    let (model, reproducer) = (folder.file("m.mlir", broken), folder.at("r.mlir"));
    let pipeline = "--pass-pipeline=builtin.module(canonicalize,t3-shard,t3-fuse{policy=always})";
    let ran = t3c(&["opt", &model, pipeline, "--mlir-pass-pipeline-crash-reproducer", &reproducer]);
    assert_eq!(ran.status, 1, "{ran:?}");
    let written = std::fs::read_to_string(&reproducer).expect("a reproducer");
    assert!(written.contains("t3-fuse{policy=always}"), "the pipeline keeps its options");
    let again = t3c(&["opt", &reproducer, "--run-reproducer"]);
    assert_eq!((again.status, again.stdout.as_str()), (1, ""), "{again:?}");
    let message = |stderr: &str| stderr.rsplit_once(": ").map(|(_, what)| what.to_owned());
    assert_eq!(message(&again.stderr), message(&ran.stderr));
}

#[test]
fn every_shipped_model_has_the_papers_pairs() {
    for (model, tp, layers) in
        [("mega-gpt-2", 8, 74), ("t-nlg", 8, 78), ("gpt-3", 32, 96), ("palm", 32, 118), ("mt-nlg", 32, 105)]
    {
        let path = format!("examples/models/{model}.json");
        let report = json(&t3c(&["compile", &path, "--format", "json"]).succeeded());
        assert_eq!((report["tp"].as_u64(), report["layers"].as_u64()), (Some(tp), Some(layers)), "{model}");
        assert_eq!(report["pairs"]["found"].as_u64(), Some(2 * layers), "{model}");
        let groups = report["pair_groups"].as_array().expect("groups");
        assert_eq!(groups.iter().map(|group| group["times"].as_u64()).collect::<Vec<_>>(), [Some(layers); 2]);
    }
}

#[test]
fn training_has_four_pairs_a_layer() {
    let small = ["--phase", "training", "--seq", "128", "--format", "json"];
    let report = json(&t3c(&[&["compile", T_NLG], &small[..]].concat()).succeeded());
    assert_eq!(report["pairs"]["found"].as_u64(), Some(4 * 78), "{:#}", report["pair_groups"]);
}

#[test]
fn sequence_parallelism_has_pairs_on_both_sides() {
    let arguments = ["compile", T_NLG, "--sequence-parallel", "--fuse", "always", "--format", "json"];
    let report = json(&t3c(&arguments).succeeded());
    let of = |kind: &str| -> u64 {
        let groups = report["pair_groups"].as_array().expect("groups");
        let these =
            groups.iter().filter(|group| group["pair"].as_str().is_some_and(|pair| pair.contains(kind)));
        these.filter_map(|group| group["times"].as_u64()).sum()
    };
    assert_eq!((of("reduce_scatter"), of("all_gather")), (2 * 78, 2 * 78), "{:#}", report["pair_groups"]);
}

#[test]
fn an_uneven_load_moves_more_rows() {
    let folder = Folder::new();
    let rows = |load: &str| -> u64 {
        let load = folder.file("load.json", load);
        let model = ["compile", "examples/models/mixtral-8x7b", "--tp", "2", "--ep", "2", "--seq", "256"];
        let text = t3c(&[&model[..], &["--expert-load", &load, "--emit", "sharded"]].concat()).succeeded();
        let all = text.split("t3.rows = ").skip(1);
        let all = all.filter_map(|rest| rest.split_whitespace().next().and_then(|rows| rows.parse().ok()));
        all.max().expect("an all-to-all of rows")
    };
    let (even, uneven) = (rows("[1, 1, 1, 1, 1, 1, 1, 1]"), rows("[50, 1, 1, 1, 1, 1, 1, 1]"));
    assert!(uneven > even, "{even} {uneven}");
}

#[test]
fn remarks_are_written_to_files() {
    let folder = Folder::new();
    for (name, expected) in [("r.yaml", "--- !Passed"), ("r.json", "t3c.remarks/1")] {
        let path = folder.at(name);
        t3c(&["compile", T_NLG, "--remarks-file", &path]).succeeded();
        let text = std::fs::read_to_string(path).expect("remarks");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn compiling_is_benchmarked() {
    let arguments = ["bench", "compile", "--layers", "1,2", "--seconds", "0", "--format", "json"];
    let report = json(&t3c(&arguments).succeeded());
    let names: Vec<_> = report["rows"].as_array().expect("rows").iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["compile.gpt-3.prefill.tp32.layers1", "compile.gpt-3.prefill.tp32.layers2"]);
}

#[test]
fn a_written_schedule_is_the_programs() {
    let folder = Folder::new();
    let path = folder.at("schedule.json");
    assert_eq!(t3c(&["compile", T_NLG, "-o", &path]).succeeded(), "");
    let written = std::fs::read_to_string(&path).expect("the schedule");
    let schedule = t3c_schedule::from_json(&written).expect("a schedule");
    let program =
        t3c::Compiler::from_path(crate::support::repository(T_NLG)).tp(8).compile().expect("a program");
    assert_eq!(schedule.grid, program.schedule().grid);
    let steps = |schedule: &t3c::Schedule| -> Vec<usize> {
        schedule.programs.iter().map(|p| p.steps.len()).collect()
    };
    assert_eq!(steps(&schedule), steps(program.schedule()));
    assert_eq!(folder.names(), ["schedule.json"]);
}

#[test]
fn native_code_is_written_in_each_form() {
    let folder = Folder::new();
    let compile = |name: &str| {
        let path = folder.at(name);
        t3c(&["compile", LLAMA, "--seq", "4", "--tp", "2", "--dtype", "f32", "-o", &path]).succeeded();
        std::fs::read(path).expect("code")
    };
    assert!(compile("a.o").starts_with(b"\x7fELF"));
    assert!(String::from_utf8_lossy(&compile("a.ll")).contains("define "));
    assert!(String::from_utf8_lossy(&compile("a.s")).contains(".text"));
}

#[test]
fn simulation_reports_policies_and_traffic() {
    let report = json(&t3c(&["simulate", T_NLG, "--format", "json"]).succeeded());
    assert_eq!(report["schema"], "t3c.simulate/1");
    let layers = report["sublayers"].as_array().expect("sub-layers");
    assert_eq!(layers.len(), 2);
    for policy in ["sequential", "t3", "ideal-overlap"] {
        assert!(layers[0]["policies"][policy]["time_us"].as_f64().is_some_and(|time| time > 0.0), "{policy}");
        assert!(layers[0]["policies"][policy]["dram_bytes"]["rs_reads"].as_u64().is_some(), "{policy}");
    }
    assert!(report["geomean"]["t3"].as_f64().is_some_and(|speedup| speedup > 1.0));
    let text = t3c(&["simulate", T_NLG]).succeeded();
    assert!(text.contains("sequential") && text.contains("MB") && text.contains("end to end"), "{text}");
}

#[test]
fn sweeps_give_a_row_for_every_value() {
    let csv = t3c(&["simulate", T_NLG, "--sweep", "tp=4,8", "--format", "csv"]).succeeded();
    let header = csv.lines().next().expect("a header");
    assert!(header.starts_with("\"tp\",sublayer,phase"), "{header}");
    for value in ["\"4\",", "\"8\","] {
        assert_eq!(csv.lines().filter(|line| line.starts_with(value)).count(), 2 * 7, "{csv}");
    }
    let sweep = ["simulate", T_NLG, "--sweep", "link.bandwidth=75 GB/s,150 GB/s", "--format", "json"];
    let report = json(&t3c(&sweep).succeeded());
    let time = |index: usize| {
        report["points"][index]["end_to_end"]["time_us"]["sequential"].as_f64().expect("a time")
    };
    assert!(time(0) > time(1));
}

#[test]
fn a_trace_has_events() {
    let folder = Folder::new();
    let path = folder.at("trace.json");
    t3c(&["simulate", T_NLG, "--trace", &path]).succeeded();
    let trace = json(&std::fs::read_to_string(path).expect("a trace"));
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 10));
}

#[test]
fn a_language_model_runs_alike_at_every_degree() {
    let folder = Folder::new();
    let run = |name: &str, extra: &[&str]| {
        let path = folder.at(name);
        t3c(&[&["run", LLAMA, "--tokens", "1,2,3", "-o", &path], extra].concat()).succeeded();
        std::fs::read(path).expect("results")
    };
    let (fused, unfused) = (run("a", &["--tp", "2"]), run("b", &["--tp", "2", "--fuse", "never"]));
    assert!(fused == unfused, "fused and unfused results differ");
    let file = safetensors::SafeTensors::deserialize(&fused).expect("a safetensors file");
    assert_eq!(file.tensor("logits").expect("logits").shape(), [3, 41]);
    let text = t3c(&["run", LLAMA, "--tokens", "1,2,3"]).succeeded();
    assert!(text.contains("likeliest next tokens"), "{text}");
}

#[test]
fn gradients_are_written_by_name() {
    let folder = Folder::new();
    let path = folder.at("out.safetensors");
    let name = "model.norm.weight";
    t3c(&["run", LLAMA, "--tokens", "1,2,3", "-o", &path, "--grad", name]).succeeded();
    let bytes = std::fs::read(path).expect("results");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut names = file.names();
    names.sort_unstable();
    assert_eq!(names, [&format!("grad/{name}"), "logits", "loss"]);
}

#[test]
fn a_graph_reads_and_writes_numbered_tensors() {
    let folder = Folder::new();
    let graph = "#id = affine_map<(i) -> (i)>
func.func @main(%x: tensor<4xf32>, %y: tensor<4xf32>) -> tensor<4xf32> {
  %e = tensor.empty() : tensor<4xf32>
  %s = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = [\"parallel\"]}
      ins(%x, %y : tensor<4xf32>, tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%a: f32, %b: f32, %c: f32):
    %d = arith.addf %a, %b : f32
    linalg.yield %d : f32
  } -> tensor<4xf32>
  return %s : tensor<4xf32>
}
";
    let graph = folder.file("graph.mlir", graph);
    let tensor = |values: [f32; 4]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (x, y) = (tensor([1.0, 2.0, 3.0, 4.0]), tensor([0.5; 4]));
    let view = |bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], bytes).expect("a tensor")
    };
    let bytes = safetensors::serialize([("in/0", view(&x)), ("in/1", view(&y))], None).expect("a file");
    let (inputs, out) = (folder.file("in.safetensors", bytes), folder.at("out.safetensors"));
    t3c(&["run", &graph, "--inputs", &inputs, "-o", &out]).succeeded();
    let bytes = std::fs::read(out).expect("results");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(file.tensor("out/0").expect("the result").data(), tensor([1.5, 2.5, 3.5, 4.5]));
}

#[test]
fn a_recipe_is_explained_and_its_step_compiles() {
    let folder = Folder::new();
    let recipe = folder.file("portool.json", r#"{"schema": "t3c.portool/1", "seed": 5}"#);
    let explained = json(&t3c(&["train", &recipe, "--explain", "--seed", "6"]).succeeded());
    assert_eq!(explained["seed"], 6);
    assert!(explained["rl"]["credit"]["gamma"].as_f64().is_some());
    let report = json(&t3c(&["compile", &recipe, "--tp", "2", "--format", "json"]).succeeded());
    assert_eq!(report["phase"], "training");
    assert!(report["pairs"]["found"].as_u64().is_some_and(|found| found > 0), "{}", report["pairs"]);
}

#[test]
fn a_bench_is_versioned() {
    let bench =
        ["bench", "gemm", "--format", "json", "--seconds", "0", "--threads", "1", "--shapes", "32x48x64"];
    let report = json(&t3c(&bench).succeeded());
    assert_eq!(report["schema"], "t3c.bench/1");
    assert_eq!(report["rows"][0]["name"], "gemm.f32.32x48x64.t1");
}

#[test]
fn a_closed_pipe_is_no_error() {
    // More than a pipe holds, so that the writer meets the closed end.
    let mut child = Command::new(env!("CARGO_BIN_EXE_t3c"))
        .args(["compile", T_NLG, "--emit", "mlir"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut first = [0; 16];
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut first).expect("the first bytes");
    drop(stdout);
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn training_writes_a_model_that_runs_and_the_same_bits_again() {
    let folder = Folder::new();
    let recipe = r#"{"schema": "t3c.portool/1",
        "model": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
                  "head_dim": 16, "intermediate_size": 64},
        "sft": {"steps": 2, "stop": null}, "rl": {"steps": 1, "questions": 2, "trajectories": 4},
        "evaluation": {"questions": 2, "every": 0}}"#;
    let recipe = folder.file("recipe.json", recipe);
    let train = |out: &str| {
        let text = t3c(&["train", &recipe, "--tp", "2", "--out", &folder.at(out)]).succeeded();
        (
            text,
            std::fs::read(folder.path().join(out).join("checkpoint/model.safetensors"))
                .expect("a checkpoint"),
        )
    };
    let (text, weights) = train("a");
    for shown in [
        "step 2/2: loss",
        "step 1/1: reward",
        "accuracy",
        "tool calls",
        "tokens/s",
        "held out",
        "metrics.jsonl",
    ] {
        assert!(text.contains(shown), "`{shown}` is missing: {text}");
    }
    assert!(weights == train("b").1, "two runs of one seed differ");
    let logits = t3c(&["run", &folder.at("a/checkpoint"), "--tokens", "1,2"]).succeeded();
    assert!(logits.contains("likeliest next tokens"), "{logits}");
    let resumed = t3c(&["train", &recipe, "--tp", "2", "--out", &folder.at("a"), "--resume"]).succeeded();
    assert!(!resumed.contains("step 1/"), "a finished run went on: {resumed}");
}

#[test]
fn an_index_that_depends_on_the_device_is_compiled() {
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/passes/cases/shard/index.mlir");
    let output = Command::new(env!("CARGO_BIN_EXE_t3c"))
        .args(["compile", case, "--target", "cpu", "--emit", "llvm"])
        .output()
        .expect("t3c runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("define "));
}
