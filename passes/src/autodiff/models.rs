//! Whole training steps of an imported model: gradients against differences, and partitioned against whole.

use t3c_frontends::{Objective, Options, Phase, load};
use t3c_ir::{
    Context, Element, Module, TensorType,
    function::{self, Port},
    interpreter::{Interpreter, Tensor, gather, scatter},
};

use super::{Autodiff, Remat, differentiate};
use crate::{
    optimizer::{AdamW, Decay, Optimizer, Rule, append},
    shard::partition,
};

const CONFIG: &str = r#"{
  "model_type": "llama", "hidden_size": 12, "intermediate_size": 18, "num_attention_heads": 6,
  "num_key_value_heads": 6, "num_hidden_layers": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "vocab_size": 18, "head_dim": 2, "tie_word_embeddings": TIED
}"#;

/// Routed experts: two of three a token.
const MIXTRAL: &str = r#"{
  "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 4,
  "num_key_value_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "vocab_size": 18, "num_local_experts": 3, "num_experts_per_tok": 2,
  "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

/// Bounded scores, alternating windows, norms of 1 + w.
const GEMMA2: &str = r#"{
  "model_type": "gemma2", "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "max_position_embeddings": 16,
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 18, "query_pre_attn_scalar": 6,
  "sliding_window": 2, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.8,
  "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true
}"#;

fn training<'c>(context: &'c Context, objective: Objective, tied: bool, tp: u64) -> Module<'c> {
    training_of(context, &CONFIG.replace("TIED", &tied.to_string()), objective, tp)
}

fn training_of<'c>(context: &'c Context, config: &str, objective: Objective, tp: u64) -> Module<'c> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).expect("a file");
    let options = Options {
        phase: Phase::Training,
        tokens: Some(6),
        rows: Some(6),
        tp: Some(tp),
        objective,
        ..Options::default()
    };
    load(&path, &options).expect("loads").build(context).expect("builds")
}

fn input(port: &Port, seed: u64) -> Tensor {
    let r#type = TensorType::new(port.r#type.shape.clone(), Element::F64);
    let scaled = |by: f64, shift: f64| {
        let random = Tensor::random(&r#type, seed).unwrap().numbers();
        let numbers: Vec<f64> = random.iter().map(|number| number * by + shift).collect();
        Tensor::from_numbers(&r#type, &numbers).unwrap()
    };
    match port.name.as_str() {
        "tokens" | "targets" => Tensor::random_below(&port.r#type, 18, seed).unwrap(),
        "position" => Tensor::i32([6], [0, 1, 2, 2, 0, 1]),
        "subtree_end" => Tensor::i32([6], [4, 4, 3, 4, 6, 6]),
        "rows" => Tensor::i32([6], [0, 1, 1, 4, 0, 0]),
        "old_logp" | "ref_logp" => scaled(0.3, -2.9),
        "a_plus" | "weight" => scaled(0.4, 0.5),
        "a_minus" => scaled(0.4, -0.5),
        "lr" => Tensor::f64([], [0.01]),
        "apply" => Tensor::f64([], [1.0]),
        "bias1" => Tensor::f64([], [0.19]),
        "bias2" => Tensor::f64([], [0.002]),
        name if name.starts_with("v/") => scaled(0.01, 0.02),
        name if name.contains("norm") => scaled(0.2, 1.0),
        _ => scaled(0.5, 0.0),
    }
}

fn inputs(module: &Module<'_>) -> Vec<Tensor> {
    let ports = function::entry(module.op()).unwrap().argument_ports().unwrap();
    ports.iter().zip(1..).map(|(port, seed)| input(port, seed)).collect()
}

fn portool() -> Objective {
    Objective::Portool { clip_low: 0.2, clip_high: 0.28, beta: 0.05 }
}

#[test]
fn training_steps_have_the_gradients_of_their_loss() {
    let llama = |tied: &str| CONFIG.replace("TIED", tied);
    let steps = [
        (llama("false"), Objective::Lm, Remat::None),
        (llama("true"), portool(), Remat::Attention),
        (MIXTRAL.into(), Objective::Lm, Remat::Full),
        (GEMMA2.into(), Objective::Lm, Remat::None),
    ];
    for (config, objective, remat) in steps {
        let context = Context::new();
        let module = training_of(&context, &config, objective, 1);
        let with = module.duplicate();
        differentiate(with.op(), &Autodiff { remat, ..Autodiff::default() }).unwrap();
        with.verify().unwrap();
        let entry = function::entry(with.op()).unwrap();
        let (ports, results) = (entry.argument_ports().unwrap(), entry.result_ports().unwrap());
        let inputs = inputs(&module);
        let found = Interpreter::new(with.op()).widened().run_one("training", &inputs).unwrap();
        let plain = Interpreter::new(module.op()).widened();
        let loss = |inputs: &[Tensor]| plain.run_one("training", inputs).unwrap()[0].numbers()[0];
        let parameters: Vec<usize> =
            (0..ports.len()).filter(|&index| ports[index].name.starts_with("param/")).collect();
        for index in parameters {
            let name = super::gradient_name(&ports[index].name);
            let at = results.iter().position(|port| port.name == name).unwrap();
            // Along one random direction a parameter.
            let direction = Tensor::random(&inputs[index].r#type(), 99 + index as u64).unwrap().numbers();
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                let numbers: Vec<f64> =
                    inputs[index].numbers().iter().zip(&direction).map(|(x, d)| x + by * d).collect();
                inputs[index] = Tensor::from_numbers(&inputs[index].r#type(), &numbers).unwrap();
                loss(&inputs)
            };
            let h = 1e-4;
            let expected = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
            let slope: f64 = found[at].numbers().iter().zip(&direction).map(|(g, d)| g * d).sum();
            assert!(
                (slope - expected).abs() <= 1e-8 * (1.0 + expected.abs()),
                "{name}: {slope}, differences say {expected}"
            );
        }
    }
}

/// The optimizer's step included: every result of every device is the part of the whole step's result.
#[test]
fn a_partitioned_training_step_equals_the_whole() {
    let adamw = Optimizer { keep_gradients: true, ..Optimizer::default() };
    let rule = Rule::Sgd { momentum: 0.9, nesterov: true };
    let accumulated = Optimizer { rule, accumulate: true, decay: Decay::Matrices, ..adamw.clone() };
    for (objective, tied, tp, remat, optimizer) in [
        (Objective::Lm, false, 2, Remat::Full, &adamw),
        (portool(), true, 3, Remat::Attention, &adamw),
        (Objective::Lm, true, 2, Remat::None, &accumulated),
    ] {
        let context = Context::new();
        let step = |tp| {
            let module = training(&context, objective.clone(), tied, tp);
            differentiate(module.op(), &Autodiff { remat, ..Autodiff::default() }).unwrap();
            append(module.op(), optimizer).unwrap();
            module.verify().unwrap();
            module
        };
        let (whole, parts) = (step(1), step(tp));
        let inputs = inputs(&whole);
        let expected = Interpreter::new(whole.op()).widened().run_one("training", &inputs).unwrap();
        partition(parts.op()).unwrap();
        parts.verify().unwrap();
        let entry = function::entry(parts.op()).unwrap();
        let interpreter = Interpreter::new(parts.op()).widened();
        let mut local = vec![Vec::new(); tp as usize];
        for (port, input) in entry.argument_ports().unwrap().iter().zip(&inputs) {
            let pieces = scatter(input, &port.splits(), interpreter.grid()).unwrap();
            local.iter_mut().zip(pieces).for_each(|(all, piece)| all.push(piece));
        }
        let found = interpreter.run("training", &local).unwrap();
        for (index, port) in entry.result_ports().unwrap().iter().enumerate() {
            let pieces: Vec<Tensor> = found.iter().map(|results| results[index].clone()).collect();
            let whole = gather(&pieces, &port.splits(), interpreter.grid())
                .unwrap_or_else(|error| panic!("{}: {error}", port.name));
            let (found, expected) = (whole.numbers(), expected[index].numbers());
            assert_eq!(found.len(), expected.len(), "{}", port.name);
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() <= 1e-10 * (1.0 + expected.abs()),
                    "{}: {found} {expected}",
                    port.name
                );
            }
        }
    }
}

/// A partitioned program, differentiated by the adjoints of its collectives, has the gradients of the whole.
#[test]
fn partitioning_before_differentiating_gives_the_same_gradients() {
    let context = Context::new();
    let (whole, parts) = (training(&context, portool(), true, 1), training(&context, portool(), true, 2));
    let inputs = inputs(&whole);
    differentiate(whole.op(), &Autodiff::default()).unwrap();
    let expected = Interpreter::new(whole.op()).widened().run_one("training", &inputs).unwrap();
    partition(parts.op()).unwrap();
    differentiate(parts.op(), &Autodiff::default()).unwrap();
    parts.verify().unwrap();
    let entry = function::entry(parts.op()).unwrap();
    let interpreter = Interpreter::new(parts.op()).widened();
    let mut local = vec![Vec::new(); 2];
    for (port, input) in entry.argument_ports().unwrap().iter().zip(&inputs) {
        let pieces = scatter(input, &port.splits(), interpreter.grid()).unwrap();
        local.iter_mut().zip(pieces).for_each(|(all, piece)| all.push(piece));
    }
    let found = interpreter.run("training", &local).unwrap();
    for (index, port) in entry.result_ports().unwrap().iter().enumerate() {
        let pieces: Vec<Tensor> = found.iter().map(|results| results[index].clone()).collect();
        let whole = gather(&pieces, &port.splits(), interpreter.grid())
            .unwrap_or_else(|error| panic!("{}: {error}", port.name));
        for (found, expected) in whole.numbers().iter().zip(expected[index].numbers()) {
            assert!(
                (found - expected).abs() <= 1e-10 * (1.0 + expected.abs()),
                "{}: {found} {expected}",
                port.name
            );
        }
    }
}

/// A layer's four sub-layers: two in the forward, and two in the backward, fed by two and by three products. And what
/// the split vocabulary sums: rows of the embedding, the softmax's two sums, the gradient of what the head reads.
#[test]
fn forward_and_backward_fuse_and_keep_their_bits() {
    let context = Context::new();
    let step = |passes: &[&str], remat| {
        let mut module = training(&context, portool(), true, 2);
        differentiate(module.op(), &Autodiff { remat, ..Autodiff::default() }).unwrap();
        append(module.op(), &AdamW::default()).unwrap();
        partition(module.op()).unwrap();
        let mut remarks = Vec::new();
        crate::run_passes(&mut module, passes, &mut remarks).unwrap();
        (module, remarks.iter().map(|remark| format!("{remark}\n")).collect::<String>())
    };
    let (unfused, _) = step(&["t3-split-all-reduce"], Remat::None);
    let fusion =
        ["t3-split-all-reduce", "t3-find-pairs", "t3-fuse{policy=always}", "t3-configure-address-space"];
    // The backward computes the layer's first half again, with its pair, and nothing of what follows.
    let (again, _) = step(&fusion, Remat::Full);
    assert_eq!(again.text(false).matches("= t3.track_and_trigger").count(), 9);
    let (fused, remarks) = step(&fusion, Remat::None);
    for feeding in ["o_proj", "down_proj", "2 products feed", "3 products feed"] {
        assert!(remarks.contains(feeding), "{remarks}");
    }
    let text = fused.text(false);
    assert_eq!(text.matches("= t3.track_and_trigger").count(), 8, "{remarks}");
    // What is left is the softmax's maximum and the norm of the gradients: one scalar, however many parameters are
    // partitioned.
    assert_eq!(text.matches("shard.all_reduce").count(), 2);
    let ports = function::entry(fused.op()).unwrap().argument_ports().unwrap();
    let interpreter = Interpreter::new(fused.op());
    let local = |device: u64| -> Vec<Tensor> {
        let narrow = |port: &Port, seed| {
            let tensor = input(port, seed);
            Tensor::from_numbers(&port.r#type, &tensor.numbers()).unwrap()
        };
        // Any inputs do: both programs see the same ones.
        ports.iter().zip(1 + 100 * device..).map(|(port, seed)| narrow(port, seed)).collect()
    };
    let inputs = [local(0), local(1)];
    let found = interpreter.run("training", &inputs).unwrap();
    assert_eq!(found, Interpreter::new(unfused.op()).run("training", &inputs).unwrap());
    assert_eq!(found, Interpreter::new(again.op()).run("training", &inputs).unwrap());
}
