//! Several steps of a plain loop beside as many calls.

use t3c_ir::{
    Context,
    function::{self, Port},
    interpreter::{Interpreter, Tensor},
};

use super::*;
use crate::autodiff::{Autodiff, differentiate};

/// `loss = b · Σ x w`: a matrix, and a vector of one element.
const SOURCE: &str = r#"
#id = affine_map<(a, c) -> (a, c)>
#last = affine_map<(a, c) -> (c)>
#none = affine_map<(a, c) -> ()>
func.func @train(%x: tensor<3x1xf64> {t3.name = "x"}, %w: tensor<3x1xf64> {t3.name = "param/w"}, %b: tensor<1xf64> {t3.name = "param/b"}) -> (tensor<f64> {t3.name = "loss"}) {
  %c = arith.constant 0.0 : f64
  %e = tensor.empty() : tensor<f64>
  %z = linalg.fill ins(%c : f64) outs(%e : tensor<f64>) -> tensor<f64>
  %0 = linalg.generic {indexing_maps = [#id, #id, #last, #none], iterator_types = ["reduction", "reduction"]} ins(%x, %w, %b : tensor<3x1xf64>, tensor<3x1xf64>, tensor<1xf64>) outs(%z : tensor<f64>) {
  ^bb0(%i: f64, %j: f64, %k: f64, %o: f64):
    %p = arith.mulf %i, %j : f64
    %q = arith.mulf %p, %k : f64
    %s = arith.addf %o, %q : f64
    linalg.yield %s : f64
  } -> tensor<f64>
  return %0 : tensor<f64>
}"#;

/// Parameters and state of the plain loop: three elements of `w`, one of `b`.
struct Plain {
    p: [f64; 4],
    m: [f64; 4],
    v: [f64; 4],
    acc: [f64; 4],
}

impl Plain {
    /// One call; returns the norm.
    fn call(&mut self, optimizer: &Optimizer, x: [f64; 3], [lr, bias1, bias2]: [f64; 3], apply: bool) -> f64 {
        let dot: f64 = x.iter().zip(&self.p).map(|(x, w)| x * w).sum();
        let gradient = [x[0] * self.p[3], x[1] * self.p[3], x[2] * self.p[3], dot];
        let total: [f64; 4] = std::array::from_fn(|at| gradient[at] + self.acc[at]);
        let norm = total.iter().map(|g| g * g).sum::<f64>().sqrt();
        if !apply {
            self.acc = total;
            return norm;
        }
        self.acc = [0.0; 4];
        let factor = optimizer.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        for (at, total) in total.iter().enumerate() {
            let g = total * factor;
            let decay =
                if at == 3 && optimizer.decay == Decay::Matrices { 0.0 } else { optimizer.weight_decay };
            match optimizer.rule {
                Rule::AdamW { beta1, beta2, eps } => {
                    self.m[at] = beta1 * self.m[at] + (1.0 - beta1) * g;
                    self.v[at] = beta2 * self.v[at] + (1.0 - beta2) * g * g;
                    let direction = self.m[at] / bias1 / ((self.v[at] / bias2).sqrt() + eps);
                    self.p[at] -= lr * (direction + decay * self.p[at]);
                }
                Rule::Sgd { momentum, nesterov } => {
                    let g = g + decay * self.p[at];
                    self.m[at] = momentum * self.m[at] + g;
                    self.p[at] -= lr * if nesterov { g + momentum * self.m[at] } else { self.m[at] };
                }
            }
        }
        norm
    }
}

const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8 };

fn names(ports: Vec<Port>) -> String {
    ports.into_iter().map(|port| port.name).collect::<Vec<_>>().join(" ")
}

/// Runs four calls; every second one steps where gradients are accumulated.
fn check(optimizer: &Optimizer, arguments: &str, results: &str) {
    let context = Context::new();
    let module = context.parse(SOURCE, "train.mlir").unwrap();
    differentiate(module.op(), &Autodiff::default()).unwrap();
    append(module.op(), optimizer).unwrap();
    module.verify().unwrap();
    let entry = function::entry(module.op()).unwrap();
    let ports = entry.argument_ports().unwrap();
    assert_eq!(names(ports.clone()), arguments);
    assert_eq!(names(entry.result_ports().unwrap()), results);
    let mut plain = Plain { p: [0.5, 1.5, -0.7, 1.1], m: [0.0; 4], v: [0.0; 4], acc: [0.0; 4] };
    for call in 1..=4 {
        let x = [0.3, -1.2 + 0.1 * f64::from(call), 2.0];
        let apply = !optimizer.accumulate || call % 2 == 0;
        let scalars = [0.01, 1.0 - 0.9_f64.powi(call), 1.0 - 0.99_f64.powi(call)];
        let input = |port: &Port| {
            let state = |all: &[f64; 4]| {
                if port.name.ends_with("/b") {
                    Tensor::f64([1], &all[3..])
                } else {
                    Tensor::f64([3, 1], &all[..3])
                }
            };
            match port.name.split('/').next().unwrap() {
                "x" => Tensor::f64([3, 1], x),
                "lr" => Tensor::f64([], [scalars[0]]),
                "bias1" => Tensor::f64([], [scalars[1]]),
                "bias2" => Tensor::f64([], [scalars[2]]),
                "apply" => Tensor::f64([], [f64::from(u8::from(apply))]),
                "param" => state(&plain.p),
                "m" => state(&plain.m),
                "v" => state(&plain.v),
                _ => state(&plain.acc),
            }
        };
        let inputs: Vec<Tensor> = ports.iter().map(input).collect();
        let found = Interpreter::new(module.op()).run_one("train", &inputs).unwrap();
        let norm = plain.call(optimizer, x, scalars, apply);
        let mut expected = vec![norm];
        for prefix in ["param/w", "m/w", "v/w", "acc/w"] {
            if results.split(' ').any(|name| name == prefix) {
                expected.extend(match prefix {
                    "param/w" => plain.p,
                    "m/w" => plain.m,
                    "v/w" => plain.v,
                    _ => plain.acc,
                });
            }
        }
        let found: Vec<f64> = found[1..].iter().flat_map(Tensor::numbers).collect();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-13, "call {call} of {optimizer:?}: {found} {expected}");
        }
    }
}

#[test]
fn adamw_equals_a_plain_loop() {
    for (clip, decay) in [(Some(0.5), Decay::All), (None, Decay::Matrices)] {
        let optimizer = Optimizer { rule: ADAMW, clip, decay, weight_decay: 0.1, ..Optimizer::default() };
        check(
            &optimizer,
            "x lr bias1 bias2 param/w param/b m/w m/b v/w v/b",
            "loss grad_norm param/w param/b m/w m/b v/w v/b",
        );
    }
}

#[test]
fn gradient_descent_equals_a_plain_loop() {
    for (momentum, nesterov, clip) in [(0.9, false, Some(0.5)), (0.8, true, None), (0.8, true, Some(2.0))] {
        let rule = Rule::Sgd { momentum, nesterov };
        let optimizer =
            Optimizer { rule, clip, weight_decay: 0.1, decay: Decay::Matrices, ..Optimizer::default() };
        check(&optimizer, "x lr param/w param/b m/w m/b", "loss grad_norm param/w param/b m/w m/b");
    }
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false };
    let optimizer = Optimizer { rule, weight_decay: 0.1, ..Optimizer::default() };
    check(&optimizer, "x lr param/w param/b", "loss grad_norm param/w param/b");
}

#[test]
fn gradients_add_up_until_a_call_applies_them() {
    let base = Optimizer { accumulate: true, clip: Some(0.7), ..Optimizer::default() };
    check(
        &Optimizer { rule: ADAMW, ..base.clone() },
        "x lr bias1 bias2 apply param/w param/b m/w m/b v/w v/b acc/w acc/b",
        "loss grad_norm param/w param/b m/w m/b v/w v/b acc/w acc/b",
    );
    check(
        &Optimizer { rule: Rule::Sgd { momentum: 0.9, nesterov: true }, ..base },
        "x lr apply param/w param/b m/w m/b acc/w acc/b",
        "loss grad_norm param/w param/b m/w m/b acc/w acc/b",
    );
}

#[test]
fn vectors_biases_and_norms_do_not_decay_among_matrices_only() {
    let optimizer = Optimizer { decay: Decay::Matrices, weight_decay: 0.1, ..Optimizer::default() };
    let decay = |name: &str, shape: &[u64], attribute: Option<&str>| {
        let r#type = t3c_ir::TensorType::new(shape, t3c_ir::Element::F32);
        let mut port = Port::new(name, r#type);
        port.attributes.extend(attribute.map(|text| (DECAY.to_owned(), text.to_owned())));
        optimizer.decay_of(&port)
    };
    assert_eq!(decay("param/model.embed_tokens.weight", &[7, 4], None), 0.1);
    assert_eq!(decay("param/layers.0.self_attn.q_proj.weight", &[2, 1, 2, 2, 4], None), 0.1);
    assert_eq!(decay("param/layers.0.self_attn.q_proj.bias", &[2, 1, 2, 2], None), 0.0);
    assert_eq!(decay("param/layers.0.self_attn.q_norm.weight", &[2, 2], None), 0.0);
    assert_eq!(decay("param/scale", &[4], None), 0.0);
    assert_eq!(decay("param/scale", &[4], Some("true")), 0.1);
    assert_eq!(decay("param/w", &[4, 4], Some("false")), 0.0);
}

/// bf16 parameters: all of the step is in f32, on masters of which the parameters are rounded copies.
#[test]
fn narrow_parameters_step_on_their_masters() {
    let source = r#"func.func @train(%l: tensor<f32>, %w: tensor<4x2xbf16> {t3.name = "param/w"}, %b: tensor<2xf32> {t3.name = "param/b"}, %g: tensor<4x2xbf16>, %h: tensor<2xf32>) -> (tensor<f32> {t3.name = "loss"}, tensor<4x2xbf16> {t3.name = "grad/w"}, tensor<2xf32> {t3.name = "grad/b"}) {
  return %l, %g, %h : tensor<f32>, tensor<4x2xbf16>, tensor<2xf32>
}"#;
    let context = Context::new();
    let module = context.parse(source, "train.mlir").unwrap();
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false };
    let optimizer = Optimizer { rule, master: true, clip: None, weight_decay: 0.0, ..Optimizer::default() };
    append(module.op(), &optimizer).unwrap();
    module.verify().unwrap();
    let entry = function::entry(module.op()).unwrap();
    let ports = entry.argument_ports().unwrap();
    assert_eq!(names(ports.clone()), " lr param/w param/b   master/w");
    let results: Vec<String> = entry
        .result_ports()
        .unwrap()
        .into_iter()
        .map(|port| format!("{} {}", port.name, t3c_ir::types::element_name(port.r#type.element)))
        .collect();
    assert_eq!(results.join(", "), "loss f32, grad_norm f32, param/w bf16, param/b f32, master/w f32");
    assert!(t3c_ir::ffi::uses(entry.arguments()[2]).is_empty(), "the rounded copy is not read");
    let mut inputs: Vec<Tensor> =
        ports.iter().zip(1..).map(|(port, seed)| Tensor::random(&port.r#type, seed).unwrap()).collect();
    // Steps so small that bf16 alone would lose every one of them.
    inputs[1] = Tensor::f32([], [1e-4]);
    let gradient = inputs[4].numbers();
    let mut master = vec![1.0_f32; 8];
    for _ in 0..40 {
        inputs[6] = Tensor::f32([4, 2], master.clone());
        let found = Interpreter::new(module.op()).run_one("train", &inputs).unwrap();
        master.iter_mut().zip(&gradient).for_each(|(p, g)| *p -= 1e-4_f32 * *g as f32);
        assert_eq!(found[4], Tensor::f32([4, 2], master.clone()));
        let masters: Vec<f64> = master.iter().map(|&p| f64::from(p)).collect();
        assert_eq!(found[2], Tensor::from_numbers(&ports[2].r#type, &masters).unwrap());
    }
    let rounded = Tensor::from_numbers(&ports[2].r#type, &[1.0 - 1e-4; 8]).unwrap();
    assert_eq!(rounded.numbers(), [1.0; 8], "one step alone rounds to nothing");
    let moved =
        Tensor::from_numbers(&ports[2].r#type, &master.iter().map(|&p| f64::from(p)).collect::<Vec<_>>());
    assert!(moved.unwrap().numbers().iter().any(|&p| p != 1.0), "but forty on the master do not");
}

#[test]
fn an_entry_without_gradients_and_bad_options_are_refused() {
    let context = Context::new();
    let module = context.parse(SOURCE, "train.mlir").unwrap();
    let text = append(module.op(), &AdamW::default()).unwrap_err().to_string();
    assert!(text.contains("t3-autodiff"), "{text}");
    for wrong in ["beta1=1.5", "rule=adam", "clip=0", "decay=some", "accumulate=1", "momentum=1", "eps=-1"] {
        assert!(Optimizer::from_options(wrong).is_err(), "{wrong}");
    }
    let found =
        Optimizer::from_options("rule=sgd momentum=0.5 clip=none decay=matrices accumulate=true").unwrap();
    let rule = Rule::Sgd { momentum: 0.5, nesterov: false };
    let expected =
        Optimizer { rule, clip: None, decay: Decay::Matrices, accumulate: true, ..Optimizer::default() };
    assert_eq!(found, expected);
}
