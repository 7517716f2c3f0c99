//! Bad input: one error that names file, place and field.

use t3c_frontends::{Error, Options, Phase, load};

use crate::modules::repository;

const GOOD: &str = r#"{
  "model_type": "llama",
  "hidden_size": 24,
  "intermediate_size": 42,
  "num_attention_heads": 6,
  "num_key_value_heads": 3,
  "num_hidden_layers": 2,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "vocab_size": 37
}
"#;

/// The error for [`GOOD`] with one piece of text replaced, without the folder.
fn error_with(from: &str, to: &str, options: &Options) -> String {
    let text = GOOD.replace(from, to);
    assert_ne!(text, GOOD, "nothing was replaced");
    error("config.json", &text, options)
}

pub fn error(name: &str, text: &str, options: &Options) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("a file");
    let error = match load(&path, options) {
        Ok(_) => panic!("accepted {text}"),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text.replace(&format!("{}/", folder.path().display()), "")
}

fn small() -> Options {
    Options { seq: Some(16), ..Options::default() }
}

#[test]
fn the_good_one_is_good() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), GOOD).expect("a file");
    load(folder.path(), &small()).expect("loads");
}

#[test]
fn wrong_fields_are_named_with_their_place() {
    let table = [
        (
            "\"llama\"",
            "\"lama\"",
            "config.json:2:17: `model_type` = `lama` is not supported; supported: `gemma2`, `gpt2`, `gpt_neox`, `llama`, `mistral`, \
             `mixtral`, `opt`, `phi3`, `qwen2`, `qwen3`, `qwen3_moe`; nearest: `llama`",
        ),
        ("\"llama\"", "7", "config.json:2:17: `model_type`: expected a string"),
        (
            "24",
            "\"24\"",
            "config.json:3:18: `hidden_size`: invalid type: string \"24\", expected a whole number of at least 1",
        ),
        (
            "24",
            "0",
            "config.json:3:18: `hidden_size`: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            "24",
            "-24",
            "config.json:3:18: `hidden_size`: invalid value: integer `-24`, expected a whole number of at least 1",
        ),
        ("24", "25", "config.json:3:18: `hidden_size` = 25 is not divisible by `num_attention_heads` = 6"),
        ("24", "30", "config.json:1:1: `head_dim`: 5 is odd; heads are split in halves"),
        (
            "_heads\": 3",
            "_heads\": 4",
            "config.json:5:26: `num_attention_heads` = 6 is not divisible by `num_key_value_heads` = 4",
        ),
        (
            "37",
            "9000000000",
            "config.json:11:17: `vocab_size`: impossible size 9000000000; expected 1 to 2147483647",
        ),
        (
            "24",
            "2147483640",
            "config.json:5:26: `num_attention_heads`: impossible size: the query projection has more than 2^48 elements",
        ),
        (
            "_layers\": 2",
            "_layers\": 99999999",
            "config.json:7:24: `num_hidden_layers`: impossible size 99999999; expected 1 to 4096",
        ),
        (
            "  \"vocab_size\": 37",
            "  \"use_cache\": true",
            "config.json:1:1: `the file`: missing field `vocab_size`",
        ),
        ("10000.0", "-1.0", "config.json:10:17: `rope_theta`: -1 is no positive number"),
        (
            "\"vocab_size\": 37",
            "\"vocab_size\": 37, \"rope_scaling\": {\"type\": \"yarm\"}",
            "config.json:11:46: `rope_scaling.type` = `yarm` is not supported; supported: `default`, `linear`, \
             `dynamic`, `yarn`, `llama3`, `longrope`; nearest: `yarn`",
        ),
        (
            "\"vocab_size\": 37",
            "\"vocab_size\": 37, \"rope_scaling\": {\"type\": \"linear\"}",
            "config.json:11:37: `rope_scaling.factor`: missing; `linear` needs it",
        ),
        (
            "\"vocab_size\": 37",
            "\"vocab_size\": 37, \"torch_dtype\": \"int4\"",
            "config.json:11:36: `torch_dtype` = `int4` is not supported; supported: `float32`, `float16`, `bfloat16`, `float64`",
        ),
        (
            "\"vocab_size\": 37",
            "\"vocab_size\": 37, \"attention_bias\": 1",
            "config.json:11:39: `attention_bias`: invalid type: integer `1`, expected a boolean",
        ),
        ("37\n}", "37,\n", "config.json:13:1: unterminated object, which starts at line 1"),
    ];
    for (from, to, expected) in table {
        let found = error_with(from, to, &small());
        assert!(found.starts_with(expected), "{to}\n  found    {found}\n  expected {expected}");
    }
}

#[test]
fn options_that_do_not_fit_are_named() {
    let with = |options: Options| error("config.json", GOOD, &options);
    assert_eq!(
        with(Options { tp: Some(4), ..small() }),
        "config.json:5:26: `num_attention_heads` = 6 is not divisible by --tp = 4; degrees that fit: 1, 2, 3, 6"
    );
    assert_eq!(
        with(Options { tp: Some(5), ..small() }),
        "config.json:5:26: `num_attention_heads` = 6 is not divisible by --tp = 5; degrees that fit: 1, 2, 3, 6"
    );
    assert!(
        with(Options { seq: Some(65), ..small() }).starts_with("--seq = 65: longer than the model's context")
    );
    assert!(with(Options { seq: Some(0), ..small() }).starts_with("--seq = 0: expected"));
    assert!(with(Options { tp: Some(0), ..small() }).starts_with("--tp = 0: expected"));
    assert!(with(Options { batch: Some(u64::MAX), ..small() }).starts_with("--batch = "));
    assert!(
        with(Options { batch: Some(u64::MAX), phase: Phase::Decode, ..small() }).starts_with("--batch = ")
    );
    assert!(
        with(Options { cache_blocks: Some(u64::MAX), phase: Phase::Decode, ..small() }).starts_with("--")
    );
}

#[test]
fn a_degree_that_does_not_fit_a_public_model_names_those_that_do() {
    let refused = |name: &str, options: Options| {
        let path = repository("examples/models").join(name).join("config.json");
        let error = load(&path, &options).expect_err("refused").to_string();
        error.rsplit_once("config.json:").map_or(error.clone(), |(_, rest)| rest.to_owned())
    };
    let tp = |tp| Options { tp: Some(tp), ..Options::default() };
    assert_eq!(
        refused("qwen2.5-7b", tp(8)),
        "13:26: `num_attention_heads` = 28 is not divisible by --tp = 8; degrees that fit: 1, 2, 4"
    );
    assert_eq!(
        refused("gpt2", tp(8)),
        "13:13: `n_head` = 12 is not divisible by --tp = 8; degrees that fit: 1, 2, 3, 4, 6, 12"
    );
    assert_eq!(
        refused("smollm2-135m", tp(9)).split_once(": ").expect("a place").1,
        "`intermediate_size` = 1536 is not divisible by --tp = 9; degrees that fit: 1, 3"
    );
    assert_eq!(
        refused("mixtral-8x7b", Options { ep: Some(3), ..Options::default() }),
        "16:24: `num_local_experts` = 8 is not divisible by --ep = 3; degrees that fit: 1, 2, 4, 8"
    );
    assert_eq!(
        refused("gpt2", Options { ep: Some(2), ..Options::default() }),
        "--ep = 2: the model has no experts; tokens alone are split by --dp"
    );
    assert_eq!(
        refused("gpt2", Options { vocab_parallel: Some(true), ..tp(2) }),
        "28:17: `vocab_size` = 50257 is not divisible by --tp = 2; degrees that fit: 1"
    );
    assert_eq!(
        refused("gpt2", Options { dp: Some(2), batch: Some(3), ..Options::default() }),
        "--batch = 3: not divisible by --dp × --ep = 2, over which sequences are split"
    );
    assert_eq!(
        refused("gpt2", Options { sequence_parallel: true, seq: Some(9), ..tp(2) }),
        "--sequence-parallel = true: 9 tokens are not divisible by --dp × --ep × --tp = 2, over which they are split"
    );
}

#[test]
fn fields_of_families_are_named_as_they_spell_them() {
    let config = |model: &str, from: &str, to: &str| {
        let path = repository("tests/goldens/families").join(model).join("config.json");
        let text = std::fs::read_to_string(path).expect("a golden");
        assert!(text.contains(from), "{model}: {from}");
        let found = error("config.json", &text.replace(from, to), &Options::default());
        found.split_once(": ").expect("a place").1.to_owned()
    };
    let table = [
        ("gpt2", "\"n_head\": 6", "\"n_head\": 5", "`n_embd` = 24 is not divisible by `n_head` = 5"),
        (
            "gpt2",
            "\"scale_attn_by_inverse_layer_idx\": false",
            "\"scale_attn_by_inverse_layer_idx\": true",
            "`scale_attn_by_inverse_layer_idx` = `true` is not supported; supported: `false`",
        ),
        (
            "opt",
            "\"ffn_dim\": 42",
            "\"ffn_dim\": 0",
            "`ffn_dim`: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            "gpt_neox",
            "\"partial_rotary_factor\": 0.5",
            "\"partial_rotary_factor\": 0.3",
            "`rotary_pct`: 0.3 of heads of 12 dimensions; expected an even number of them, at least 2",
        ),
        (
            "mixtral",
            "\"num_experts_per_tok\": 2",
            "\"num_experts_per_tok\": 5",
            "`num_experts_per_tok`: impossible size 5; expected 1 to 4",
        ),
        ("qwen2", "\"full_attention\",", "", "`layer_types`: 1 types for 2 layers"),
        (
            "qwen2",
            "\"full_attention\",",
            "\"fool_attention\",",
            "`layer_types[0]` = `fool_attention` is not supported; supported: `full_attention`, \
             `sliding_attention`; nearest: `full_attention`",
        ),
        (
            "phi3-long",
            "\"partial_rotary_factor\": 0.75",
            "\"partial_rotary_factor\": 0.5",
            "`rope_scaling.short_factor`: 3 factors; expected 2",
        ),
    ];
    for (model, from, to, expected) in table {
        assert_eq!(config(model, from, to), expected, "{model}: {to}");
    }
}

#[test]
fn truncated_files_are_syntax_errors() {
    for end in (1..GOOD.trim_end().len()).filter(|&end| !GOOD[..end].trim().is_empty()) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        std::fs::write(&path, &GOOD[..end]).expect("a file");
        match load(&path, &small()) {
            Err(Error::Syntax { place, .. }) => assert!(place.line <= 12),
            other => panic!("{end}: {other:?}"),
        }
    }
}

#[test]
fn an_invalid_module_is_located() {
    let found = error("m.mlir", "func.func @f() {\n  oops\n}", &Options::default());
    assert!(found.starts_with("m.mlir:2:3: "), "{found}");
    let two = "func.func @f() { return }\nfunc.func @g() { return }";
    let found = error("m.mlir", two, &Options::default());
    assert!(found.contains("expected one public function, found f, g"), "{found}");
}

#[test]
fn a_recipes_model_is_located_in_the_recipe() {
    use std::sync::Arc;
    use t3c_frontends::{Objective, hf, json::Source, portool};
    let text = "{\n  \"schema\": \"t3c.portool/1\",\n  \"model\": {\n    \"num_key_value_heads\": 3\n  }\n}";
    let config = hf::read(&Source::parse("config.json", GOOD).expect("JSON")).expect("llama");
    let recipe = Arc::new(Source::parse("portool.json", text).expect("JSON"));
    let step = portool::Step { tokens: 90, rows: 40, objective: Objective::Lm, temperature: 1.0, tp: 4 };
    let error =
        portool::training(config.clone(), "small", &step, Some(&recipe)).expect_err("6 heads on 4 devices");
    assert_eq!(
        error.to_string(),
        "portool.json:3:12: `model.num_attention_heads` = 6 is not divisible by --tp = 4; degrees that fit: 1, 2, 3, 6"
    );
    let step = portool::Step { tp: 3, ..step };
    let decoder = portool::training(config.clone(), "small", &step, Some(&recipe)).expect("fits");
    t3c_frontends::Graph::Decoder(Box::new(decoder)).build(&t3c_ir::Context::new()).expect("builds");
    let decoder = portool::decode(config, "small", (8, 40), 3, Some(&recipe)).expect("fits");
    t3c_frontends::Graph::Decoder(Box::new(decoder)).build(&t3c_ir::Context::new()).expect("builds");
    let found = self::error("portool.json", text, &Options::default());
    assert!(found.contains("a recipe"), "{found}");
}
