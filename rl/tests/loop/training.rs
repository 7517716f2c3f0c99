use std::convert::Infallible;
use std::ops::ControlFlow;

use t3c_rl::decode::{DecodeRows, Decoder};
use t3c_rl::pack::{Batch, Bucket, Objective};
use t3c_rl::recipe::{Recipe, StopOptions};
use t3c_rl::task::{MiniTask, Task, TaskOptions};
use t3c_rl::trainer::{Evaluation, Event, Hyper, Phase, Policy, RlMetrics, State, StepOutcome, Trainer};
use t3c_rl::tree::Selection;

use crate::tables::Tables;
use crate::toy::{Toy, VOCABULARY};

fn recipe() -> Recipe {
    let mut recipe = Recipe::default();
    recipe.model.max_position_embeddings = 64;
    recipe.sft.batch = Bucket { tokens: 128, rows: 96 };
    recipe.sft.steps = 100;
    recipe.sft.warmup_steps = 5;
    recipe.sft.learning_rate = 0.05;
    recipe.rl.steps = 40;
    recipe.rl.learning_rate = 0.3;
    recipe.rl.questions = 10;
    recipe.rl.trajectories = 6;
    recipe.rl.max_step_tokens = 6;
    recipe.rl.temperature = 1.0;
    recipe.rl.batches = vec![Bucket { tokens: 2048, rows: 2048 }, Bucket { tokens: 512, rows: 512 }];
    recipe.evaluation.questions = 100;
    recipe.evaluation.every = 20;
    recipe.check().unwrap();
    recipe
}

/// All events of a run, without what a clock says.
fn run(recipe: &Recipe, policy: &mut Tables, state: State, until: usize) -> (Vec<Event>, State) {
    let mut trainer = Trainer::new(recipe.clone(), Toy { longest_filler: 8 }, state);
    let mut events = Vec::new();
    let mut sink = |event: &Event, _: &mut Tables, _: &State| {
        events.push(without_clock(event.clone()));
        if events.len() >= until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let state = trainer.run(policy, &mut sink).unwrap();
    (events, state)
}

fn without_clock(mut event: Event) -> Event {
    match &mut event {
        Event::Sft(metrics) => (metrics.seconds, metrics.tokens_per_second) = (0.0, 0.0),
        Event::Rl(metrics) => {
            (metrics.rollout_seconds, metrics.train_seconds, metrics.tokens_per_second) = (0.0, 0.0, 0.0);
        }
        Event::Probe(evaluation) | Event::Evaluated(evaluation) => evaluation.seconds = 0.0,
        Event::Phase { .. } => {}
    }
    event
}

fn whole(recipe: &Recipe) -> Vec<Event> {
    run(recipe, &mut Tables::new(recipe, VOCABULARY), State::default(), usize::MAX).0
}

fn rl(events: &[Event]) -> Vec<&RlMetrics> {
    let mut found = Vec::new();
    for event in events {
        if let Event::Rl(metrics) = event {
            found.push(metrics);
        }
    }
    found
}

fn evaluations(events: &[Event]) -> Vec<&Evaluation> {
    let mut found = Vec::new();
    for event in events {
        if let Event::Evaluated(evaluation) = event {
            found.push(evaluation);
        }
    }
    found
}

#[test]
fn rewards_rise_from_the_warm_start() {
    let events = whole(&recipe());
    let losses: Vec<f64> =
        events.iter().filter_map(|e| if let Event::Sft(m) = e { Some(m.loss) } else { None }).collect();
    assert!(losses[99] < 0.5 * losses[0], "{losses:?}");
    let steps = rl(&events);
    assert_eq!(steps.len(), 40);
    assert!(steps[0].rollout.reward < 0.0 && steps[39].rollout.reward > 0.8, "{:?}", steps[39].rollout);
    // Fewer steps to the same end are worth more, and the hint is not needed.
    assert!(steps[39].rollout.tool_calls < steps[0].rollout.tool_calls);
    let sampled: Vec<_> = evaluations(&events).into_iter().filter(|e| e.temperature > 0.0).collect();
    assert_eq!(sampled.iter().map(|e| e.rl_steps).collect::<Vec<_>>(), [0, 20, 40]);
    assert!(sampled[0].summary.accuracy < 0.6 && sampled[2].summary.accuracy > 0.9);
    for step in steps {
        assert!(step.logprob_abs_diff < 1e-5, "{step:?}");
        assert_eq!(step.clip_fraction, 0.0);
        assert!(step.tree_token_ratio > 0.0 && step.tree_token_ratio < 1.0);
        assert_eq!(step.forks_kept, step.branches_pruned);
    }
}

#[test]
fn a_run_is_determined_by_its_seed_and_resumes_exactly() {
    let recipe = recipe();
    let events = whole(&recipe);
    assert_eq!(events, whole(&recipe));
    let mut other = recipe.clone();
    other.seed = 1;
    assert_ne!(events, whole(&other));
    // Broken off in the warm start, at its end, and after some steps of reinforcement learning.
    for until in [40, 101, 108, 125] {
        let mut policy = Tables::new(&recipe, VOCABULARY);
        let (mut first, state) = run(&recipe, &mut policy, State::default(), until);
        let state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        let (second, end) = run(&recipe, &mut policy, state, usize::MAX);
        first.extend(second);
        assert_eq!(first, events);
        assert_eq!(end.phase, Phase::Done);
    }
}

#[test]
fn chains_without_fork_advantages_also_learn() {
    let mut recipe = recipe();
    recipe.rl.selection = Selection::Chains;
    recipe.rl.credit.w2 = 0.0;
    let events = whole(&recipe);
    let steps = rl(&events);
    assert!(steps.iter().all(|step| step.forks_kept == 0));
    assert!(steps[39].rollout.reward > 0.8, "{:?}", steps[39].rollout);
}

#[test]
fn several_updates_and_the_divergence_work_together() {
    let mut recipe = recipe();
    recipe.rl.epochs = 2;
    recipe.rl.minibatches = 2;
    recipe.rl.credit.beta = 0.01;
    recipe.rl.learning_rate = 0.1;
    let events = whole(&recipe);
    let steps = rl(&events);
    assert!(steps.iter().all(|step| step.updates == 4));
    assert!(steps[0].loss_kl.abs() < 1e-3 && steps[39].loss_kl > steps[0].loss_kl);
    assert!(steps.iter().any(|step| step.kl != 0.0));
    assert!(steps[39].rollout.reward > 0.5, "{:?}", steps[39].rollout);
}

#[test]
fn the_warm_start_stops_when_good_enough() {
    let mut recipe = recipe();
    recipe.sft.stop = Some(StopOptions { accuracy: 0.25, every: 10, questions: 60 });
    let (events, state) = run(&recipe, &mut Tables::new(&recipe, VOCABULARY), State::default(), usize::MAX);
    let probes: Vec<_> =
        events.iter().filter_map(|e| if let Event::Probe(p) = e { Some(p) } else { None }).collect();
    assert!(state.sft_steps < 100, "{state:?}");
    assert_eq!(probes.len() as u64, state.sft_steps / 10);
    let (last, before) = probes.split_last().unwrap();
    assert!(last.summary.accuracy >= 0.25 && before.iter().all(|p| p.summary.accuracy < 0.25));
}

#[test]
fn the_mini_task_runs_through_the_loop() {
    let mut recipe = Recipe::default();
    (recipe.sft.steps, recipe.rl.steps, recipe.rl.questions) = (30, 1, 6);
    (recipe.sft.learning_rate, recipe.sft.warmup_steps) = (0.1, 1);
    recipe.evaluation.questions = 20;
    let task = MiniTask::new(TaskOptions::default());
    let mut policy = Tables::new(&recipe, task.vocabulary_size());
    let mut trainer = Trainer::new(recipe, task, State::default());
    let mut events = Vec::new();
    let mut sink = |event: &Event, _: &mut Tables, _: &State| {
        events.push(event.clone());
        ControlFlow::Continue(())
    };
    trainer.run(&mut policy, &mut sink).unwrap();
    let transcripts = trainer.transcripts(&mut policy, 3).unwrap();
    assert_eq!(transcripts.len(), 3);
    let text = trainer.task().vocabulary().detokenise(&transcripts[0].tokens);
    assert!(text.starts_with("<tools>") && text.contains("?"), "{text}");
    let step = rl(&events)[0];
    assert!(step.sampled_tokens > 500 && step.rollout.format_score > 0.0, "{step:?}");
    assert_eq!(evaluations(&events).len(), 4);
}

type Spoil = fn(&mut StepOutcome);

/// A policy whose reports are spoiled.
struct Broken(Tables, Spoil);

impl Decoder for Broken {
    type Error = Infallible;

    fn decode(&mut self, rows: &DecodeRows, logits: &mut Vec<f32>) -> Result<(), Infallible> {
        self.0.decode(rows, logits)
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), Infallible> {
        self.0.copy_blocks(copies)
    }
}

impl Policy for Broken {
    fn train(
        &mut self,
        objective: Objective,
        batch: &Batch,
        hyper: &Hyper,
    ) -> Result<StepOutcome, Infallible> {
        let mut outcome = self.0.train(objective, batch, hyper)?;
        (self.1)(&mut outcome);
        Ok(outcome)
    }

    fn reset_optimizer(&mut self) -> Result<(), Infallible> {
        self.0.reset_optimizer()
    }

    fn keep_reference(&mut self) -> Result<(), Infallible> {
        self.0.keep_reference()
    }

    fn reference_logp(&mut self, batch: &Batch) -> Result<Vec<f32>, Infallible> {
        self.0.reference_logp(batch)
    }
}

#[test]
fn a_policy_s_bad_report_ends_the_run() {
    let cases: [(Spoil, &str); 3] = [
        (|outcome| outcome.loss = f32::NAN, "step 1: the loss is NaN"),
        (|outcome| outcome.grad_norm = f32::INFINITY, "step 1: the gradient norm is inf"),
        (|outcome| outcome.logp.truncate(3), "reported 3 log-probabilities for 96 loss rows"),
    ];
    for (spoil, expected) in cases {
        let recipe = recipe();
        let mut policy = Broken(Tables::new(&recipe, VOCABULARY), spoil);
        let mut trainer = Trainer::new(recipe, Toy { longest_filler: 8 }, State::default());
        let message = trainer.sft_step(&mut policy).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(trainer.state().sft_steps, 0);
    }
}
