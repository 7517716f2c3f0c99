//! Native code from end to end, against what `transformers` computes and against itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use t3c::{
    Compiler, CpuOptions, Goal, HostTensor, Outputs, Phase, Policy, Program, Runner, files,
    run::{Request, run_language_model},
};
use t3c_frontends::Options;
use t3c_ir::Element;
use t3c_passes::optimizer::AdamW;
use t3c_runtime::{Delays, Event, EventKind, StepKey};
use t3c_schedule::{Fused, StepKind, Trigger, Work, ring};

use crate::support::{Folder, json, repository, text_of};

type Tensors = BTreeMap<String, HostTensor>;

/// One of the models whose numbers come from `transformers`.
struct Golden {
    name: &'static str,
    tps: &'static [u64],
}

const GROUPED: Golden = Golden { name: "llama/grouped", tps: &[1, 3] };
const TIED: Golden = Golden { name: "llama/tied", tps: &[1, 2, 3] };
const UNTIED: Golden = Golden { name: "llama/untied", tps: &[1, 2, 3] };

/// Every other family: one device, and two where they take one set of key-value heads each.
const FAMILIES: [Golden; 16] = [
    Golden { name: "families/gemma2", tps: &[1, 2] },
    Golden { name: "families/gpt2", tps: &[1, 2] },
    Golden { name: "families/gpt_neox", tps: &[1, 2] },
    Golden { name: "families/gpt_neox-sequential", tps: &[1] },
    Golden { name: "families/llama-dynamic", tps: &[1] },
    Golden { name: "families/llama-yarn", tps: &[1] },
    Golden { name: "families/mistral", tps: &[1] },
    Golden { name: "families/mixtral", tps: &[1, 2] },
    Golden { name: "families/opt", tps: &[1] },
    Golden { name: "families/opt-post-norm", tps: &[1] },
    Golden { name: "families/phi3-long", tps: &[1] },
    Golden { name: "families/phi3-short", tps: &[1] },
    Golden { name: "families/qwen2", tps: &[1] },
    Golden { name: "families/qwen3", tps: &[1] },
    Golden { name: "families/qwen3_moe", tps: &[1] },
    Golden { name: "families/qwen3_moe-normalised", tps: &[1, 2] },
];

impl Golden {
    fn folder(&self) -> PathBuf {
        repository("tests/goldens").join(self.name)
    }

    fn weights(&self) -> Tensors {
        files::read_tensors(&self.folder()).expect("weights")
    }

    fn expected(&self) -> Tensors {
        files::read_tensors(&self.folder().join("golden.safetensors")).expect("expected tensors")
    }

    fn compiler(&self, phase: Phase, tp: u64) -> Compiler {
        Compiler::from_path(self.folder()).phase(phase).tp(tp).dtype(Element::F32).fuse(Policy::Always)
    }

    /// A training program of the golden's batch, with weights and tokens set.
    fn training(&self, tp: u64, goal: Goal, options: CpuOptions) -> Runner {
        let sequences = sequences(&self.expected()["tokens"]);
        let (batch, seq) = (sequences.len() as u64, sequences[0].len() as u64);
        let compiler = self.compiler(Phase::Training, tp).batch(batch).seq(seq).goal(goal);
        let mut runner = Runner::new(compiler, options).expect("a program");
        runner.set_weights(&self.folder(), &self.weights()).expect("weights");
        runner.set_tokens(&sequences).expect("tokens");
        runner.set_next_token_targets(&sequences).expect("targets");
        runner
    }

    fn outputs(&self, tp: u64, fuse: Policy) -> Outputs {
        let request = Request {
            tp: Some(tp),
            fuse,
            sequences: sequences(&self.expected()["tokens"]),
            flat: false,
            gradients: Some(Vec::new()),
            weights: self.folder(),
            threads: 0,
        };
        run_language_model(&self.folder(), &request).expect("outputs")
    }

    /// Logits, loss and all gradients, and that fusion changes no bit of them.
    fn check_outputs(&self) {
        let expected = self.expected();
        for &tp in self.tps {
            let fused = self.outputs(tp, Policy::Always);
            let known: Vec<_> =
                fused.iter().filter_map(|(name, tensor)| Some((name, tensor, expected.get(name)?))).collect();
            assert!(known.len() > 10, "{} at {tp}: {:?}", self.name, fused.keys());
            for (name, found, expected) in known {
                let tolerance = if name == "logits" { 2e-4 } else { 1e-3 };
                let distance = distance(expected, found);
                assert!(distance < tolerance, "{} at {tp}: {name} is {distance} away", self.name);
            }
            if tp > 1 {
                assert!(
                    self.outputs(tp, Policy::Never) == fused,
                    "{} at {tp}: fusion changes bits",
                    self.name
                );
            }
        }
    }

    fn check_optimizer(&self, tp: u64) {
        let expected = self.expected();
        let mut runner = self.training(tp, Goal::Optimizer(ADAMW), CpuOptions::default());
        set_optimizer(&mut runner);
        runner.run().expect("a step");
        for parameter in runner.info().parameters.clone() {
            let mut new = runner.get(&format!("param/{}", parameter.name)).expect("a parameter");
            new.r#type.shape = parameter.sources[0].shape.clone();
            let tensor = |kind: &str| &expected[&format!("{kind}/{}", parameter.name)];
            let problem = stepped_wrongly(tensor("grad"), tensor("adamw"), &new);
            assert_eq!(problem, None, "{} at {tp}: {}", self.name, parameter.name);
        }
    }

    /// A prompt in one call, then a token a call, in blocks that lie out of order.
    fn check_decode(&self) {
        let expected = self.expected();
        let tokens: Vec<i32> =
            integers(&expected["decode/tokens"]).iter().map(|token| *token as i32).collect();
        let steps = expected["decode/logits"].r#type.shape[0] as usize;
        let prompt = tokens.len() - steps;
        for &tp in self.tps {
            let compiler = |rows: usize| {
                let options = Options {
                    phase: Phase::Decode,
                    batch: Some(rows as u64),
                    seq: Some(tokens.len() as u64),
                    cache_blocks: Some(3),
                    tp: Some(tp),
                    dtype: Some(Element::F32),
                    ..Options::default()
                };
                self.compiler(Phase::Decode, tp).options(options)
            };
            let mut runner = Runner::new(compiler(prompt), CpuOptions::default()).expect("a program");
            runner.set_weights(&self.folder(), &self.weights()).expect("weights");
            set_rows(&mut runner, &tokens[..prompt], 0);
            runner.zero_missing().expect("caches");
            runner.run().expect("the prompt");
            let mut runner = runner.then(compiler(1), CpuOptions::default()).expect("a program");
            let mut logits = Vec::new();
            for position in prompt..tokens.len() {
                set_rows(&mut runner, &tokens[position..=position], position as i32);
                runner.run().expect("a step");
                logits.extend(runner.get("logits").expect("logits").to_f32().expect("floats"));
            }
            let logits = HostTensor::f32(expected["decode/logits"].r#type.shape.clone(), &logits);
            let distance = distance(&expected["decode/logits"], &logits);
            assert!(distance < 2e-4, "{} at {tp}: {distance} away", self.name);
        }
    }
}

/// The first element that a first optimizer step took elsewhere, and how far from where it should be.
///
/// That step is `lr · g / (|g| + eps)`: where the gradient is not far above eps, its rounding decides, and no
/// more is known than that the parameter moved by `lr` at most.
fn stepped_wrongly(gradient: &HostTensor, expected: &HostTensor, found: &HostTensor) -> Option<(usize, f32)> {
    assert_eq!(expected.r#type.shape, found.r#type.shape);
    let [gradient, expected, found] =
        [gradient, expected, found].map(|tensor| tensor.to_f32().expect("floats"));
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let errors = expected.iter().zip(&found).map(|(a, b)| (a - b).abs() / largest).enumerate();
    let tolerance = |index: usize| match gradient[index].abs() {
        size if size > 0.0 && size < 1e-6 => 2.0 * LEARNING_RATE as f32 / largest,
        _ => 1e-6,
    };
    errors.into_iter().find(|(index, error)| *error > tolerance(*index) || error.is_nan())
}

/// As in `goldens/llama.py`.
const LEARNING_RATE: f64 = 1e-3;
const ADAMW: AdamW =
    AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: None, keep_gradients: false };

/// The inputs of a first optimizer step.
fn set_optimizer(runner: &mut Runner) {
    let scalars = [("lr", LEARNING_RATE), ("bias1", 1.0 - ADAMW.beta1), ("bias2", 1.0 - ADAMW.beta2)];
    for (name, value) in scalars {
        runner.set(name, &HostTensor::f32([], &[value as f32])).expect("a scalar");
    }
    runner.zero_missing().expect("moments");
}

/// Successive tokens of one sequence from `position` on, whose cache blocks are 2 and 0.
fn set_rows(runner: &mut Runner, tokens: &[i32], position: i32) {
    let count = tokens.len() as u64;
    let positions: Vec<i32> = (position..).take(tokens.len()).collect();
    runner.set("tokens", &HostTensor::i32([count], tokens)).expect("tokens");
    runner.set("position", &HostTensor::i32([count], &positions)).expect("positions");
    runner.set("block_table", &HostTensor::i32([count, 2], &[2, 0].repeat(tokens.len()))).expect("blocks");
}

fn integers(tensor: &HostTensor) -> Vec<i64> {
    assert_eq!(tensor.r#type.element, Element::I64);
    tensor.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn sequences(tokens: &HostTensor) -> Vec<Vec<i64>> {
    integers(tokens).chunks(tokens.r#type.shape[1] as usize).map(<[i64]>::to_vec).collect()
}

/// Below it, values are what rounding left of zero.
const NOISE: f32 = 1e-4;

/// The largest error over the largest value.
#[track_caller]
fn distance(expected: &HostTensor, found: &HostTensor) -> f64 {
    assert_eq!(expected.r#type.elements(), found.r#type.elements());
    if expected.r#type.elements() > 1 {
        assert_eq!(expected.r#type.shape, found.r#type.shape);
    }
    let [expected, found] = [expected, found].map(|tensor| tensor.to_f32().expect("floats"));
    assert!(found.iter().all(|value| value.is_finite()), "not all numbers are finite");
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let error = expected.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    // What is zero but for rounding (a softmax does not see a key's bias) has no relative error.
    f64::from(error) / f64::from(largest.max(NOISE))
}

#[test]
fn logits_and_gradients_of_grouped_heads() {
    GROUPED.check_outputs();
}

#[test]
fn logits_and_gradients_of_tied_embeddings() {
    TIED.check_outputs();
}

#[test]
fn logits_and_gradients_of_untied_embeddings() {
    UNTIED.check_outputs();
}

#[test]
fn every_family_runs_as_transformers_runs_it() {
    FAMILIES.iter().for_each(Golden::check_outputs);
}

#[test]
fn every_family_decodes_with_a_cache() {
    // Dynamic frequencies are those of the length that the program is built for; `transformers` has those of the
    // sequence so far.
    FAMILIES.iter().filter(|golden| golden.name != "families/llama-dynamic").for_each(Golden::check_decode);
}

#[test]
fn an_optimizer_step_is_that_of_torch() {
    for (golden, tp) in [(GROUPED, 3), (TIED, 2), (UNTIED, 1), (UNTIED, 3)] {
        golden.check_optimizer(tp);
    }
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_sequence() {
    [GROUPED, TIED, UNTIED].iter().for_each(Golden::check_decode);
}

/// The fused steps of a program, each with how often one run executes it.
fn fused_steps(program: &Program) -> Vec<(StepKey, &Fused, usize)> {
    let schedule = program.schedule();
    let mut runs = vec![0; schedule.programs.len()];
    let mut calls = vec![schedule.entry];
    while let Some(program) = calls.pop() {
        runs[program] += 1;
        calls.extend(schedule.programs[program].steps.iter().filter_map(|step| match step.kind {
            StepKind::Call { program, .. } => Some(program),
            _ => None,
        }));
    }
    let all = schedule.programs.iter().enumerate().flat_map(|(index, program)| {
        program.steps.iter().filter_map(move |step| match &step.kind {
            StepKind::Fused(fused) => Some((StepKey { program: index, step: step.id }, fused)),
            _ => None,
        })
    });
    all.map(|(key, fused)| (key, fused, runs[key.program])).collect()
}

/// What one device's events of one execution of a fused step must be.
fn check_execution(fused: &Fused, device: u32, devices: u32, events: &[&Event]) {
    let of = |kind: &dyn Fn(EventKind) -> bool| -> Vec<(u32, u32)> {
        events.iter().filter(|event| kind(event.kind)).map(|event| (event.chunk, event.block)).collect()
    };
    let produced = of(&|kind| kind == EventKind::Produced);
    let mut order: Vec<u32> = produced.iter().map(|(chunk, _)| *chunk).collect();
    order.dedup();
    let by_schedule: Vec<u32> = fused.chunks.iter().map(|chunk| chunk.index(device, devices)).collect();
    assert_eq!(order, by_schedule, "device {device}");
    let by_ring: Vec<u32> = (0..devices).map(|step| ring::produced_chunk(device, step, devices)).collect();
    assert_eq!(order, by_ring, "device {device}");
    let neighbour = ring::neighbour(device, devices);
    let sent = of(&|kind| kind == EventKind::Sent { to: neighbour });
    let all_sent = of(&|kind| matches!(kind, EventKind::Sent { .. }));
    assert_eq!(sent, all_sent, "device {device} sent to another than its neighbour");
    let (done, incoming) = (of(&|kind| kind == EventKind::Done), of(&|kind| kind == EventKind::Incoming));
    for chunk in &fused.chunks {
        let index = chunk.index(device, devices);
        let blocks = |events: &[(u32, u32)]| -> BTreeSet<u32> {
            events.iter().filter(|(chunk, _)| *chunk == index).map(|(_, block)| *block).collect()
        };
        let once = |events: &[(u32, u32)]| events.iter().filter(|(chunk, _)| *chunk == index).count();
        let all = blocks(&produced);
        assert!(!all.is_empty() && once(&produced) == all.len(), "chunk {index}: a block was produced twice");
        let none = BTreeSet::new();
        let expect = |events: &[(u32, u32)], expected: &BTreeSet<u32>| {
            assert_eq!((blocks(events), once(events)), (expected.clone(), expected.len()), "chunk {index}");
        };
        let tracked = chunk.threshold == 2;
        expect(&incoming, if tracked { &all } else { &none });
        expect(&done, if index == device { &all } else { &none });
        expect(&sent, if tracked && index != device { &all } else { &none });
        assert_eq!(chunk.trigger == Trigger::Done, index == device);
        // A trigger fires after the updates that it counts.
        for event in events.iter().filter(|event| event.chunk == index) {
            if matches!(event.kind, EventKind::Sent { .. } | EventKind::Done) {
                let before = events.iter().filter(|other| {
                    (other.chunk, other.block) == (index, event.block) && other.order < event.order
                });
                assert_eq!(before.count(), 2, "chunk {index}");
            }
        }
    }
}

#[test]
fn workers_follow_the_address_space_of_the_schedule() {
    let devices = 3;
    let compiler = || UNTIED.compiler(Phase::Prefill, u64::from(devices)).batch(2).seq(18);
    let program = compiler().compile().expect("a program");
    let options = CpuOptions { trace: true, delays: Some(Delays::seeded(7)), ..CpuOptions::default() };
    let mut runner = Runner::new(compiler(), options).expect("a program");
    runner.set_weights(&UNTIED.folder(), &UNTIED.weights()).expect("weights");
    runner.set_tokens(&sequences(&UNTIED.expected()["tokens"])).expect("tokens");
    let steps = fused_steps(&program);
    assert!(steps.len() >= 2, "{} fused steps", steps.len());
    for run in 0..2u64 {
        runner.run().expect("logits");
        let events = runner.executable().take_trace();
        let mut by_execution: BTreeMap<(StepKey, u64, u32), Vec<&Event>> = BTreeMap::new();
        for event in &events {
            by_execution.entry((event.step, event.epoch, event.device)).or_default().push(event);
        }
        for (key, fused, runs) in &steps {
            for epoch in run * *runs as u64..(run + 1) * *runs as u64 {
                for device in 0..devices {
                    let events = by_execution.remove(&(*key, epoch, device)).expect("events of a fused step");
                    check_execution(fused, device, devices, &events);
                }
            }
        }
        assert!(by_execution.is_empty(), "events of no step: {:?}", by_execution.keys());
    }
}

#[test]
fn delays_change_no_bit_of_fifty_training_steps() {
    let options = |seed: Option<u64>| CpuOptions {
        timeout: Some(Duration::from_secs(20)),
        delays: seed.map(Delays::seeded),
        ..CpuOptions::default()
    };
    let start = |seed| {
        let mut runner = UNTIED.training(3, Goal::Optimizer(ADAMW), options(seed));
        set_optimizer(&mut runner);
        runner
    };
    let mut runners = [None, Some(1), Some(2)].map(start);
    let mut losses = Vec::new();
    for step in 0..50 {
        runners.iter_mut().for_each(|runner| runner.run().expect("a step"));
        let [plain, delayed @ ..] = &runners;
        for port in plain.executable().results() {
            let expected = plain.get(&port.name).expect("a result");
            for runner in delayed {
                assert!(runner.get(&port.name).expect("a result") == expected, "step {step}: {}", port.name);
            }
        }
        losses.push(plain.get("loss").expect("a loss").to_f32().expect("floats")[0]);
    }
    assert!(losses[49] < 0.9 * losses[0], "nothing was learned: {losses:?}");
}

/// The golden model `tied` with another number of layers.
fn with_layers(folder: &Folder, layers: u64, phase: Phase) -> Program {
    let mut config = json(&text_of("tests/goldens/llama/tied/config.json"));
    config["num_hidden_layers"] = layers.into();
    let path = folder.file("config.json", config.to_string());
    let compiler = Compiler::from_path(path).phase(phase).seq(12).tp(2).fuse(Policy::Always);
    compiler.goal(Goal::Gradients(Vec::new())).compile().expect("a program")
}

/// Names of programs with how often the entry calls them.
fn calls(program: &Program) -> BTreeMap<&str, usize> {
    let schedule = program.schedule();
    let mut counts = BTreeMap::new();
    for step in &schedule.programs[schedule.entry].steps {
        if let StepKind::Call { program, .. } = step.kind {
            *counts.entry(schedule.programs[program].name.as_str()).or_default() += 1;
        }
    }
    counts
}

/// All code that is generated: kernels by name, contractions by shape, fused steps.
fn code(program: &Program) -> (BTreeSet<&str>, BTreeSet<String>, usize) {
    let (mut kernels, mut contractions, mut fused) = (BTreeSet::new(), BTreeSet::new(), 0);
    for step in program.schedule().programs.iter().flat_map(|program| &program.steps) {
        let computes = match &step.kind {
            StepKind::Compute(compute) => std::slice::from_ref(compute),
            StepKind::Fused(step) => {
                fused += 1;
                &step.producers
            }
            StepKind::Consume(consume) => &consume.consumers,
            _ => &[],
        };
        for compute in computes {
            kernels.extend(compute.kernel.as_deref());
            if let Work::Contraction(contraction) = &compute.work {
                contractions.insert(format!("{contraction:?}"));
            }
        }
    }
    (kernels, contractions, fused)
}

#[test]
fn a_repeated_layer_is_compiled_once() {
    let folder = Folder::new();
    for phase in [Phase::Prefill, Phase::Training] {
        let (three, twelve) = (with_layers(&folder, 3, phase), with_layers(&folder, 12, phase));
        assert_eq!(three.schedule().programs.len(), twelve.schedule().programs.len(), "{phase:?}");
        assert_eq!(code(&three), code(&twelve), "{phase:?}");
        let layers: BTreeMap<&str, usize> =
            calls(&twelve).into_iter().filter(|(name, _)| name.contains("layer")).collect();
        assert_eq!(layers.len(), if phase == Phase::Prefill { 1 } else { 2 }, "{phase:?}: {layers:?}");
        assert!(layers.values().all(|count| *count == 12), "{phase:?}: {layers:?}");
        assert_eq!(twelve.summary().pairs.fused, 4 * three.summary().pairs.fused, "{phase:?}");
    }
}
