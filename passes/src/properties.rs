//! Random models through the whole road: each pass leaves a module that prints, parses, verifies and computes what
//! the model did on one big device; fusing changes no bit.

use std::cell::RefCell;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use t3c_ir::{Context, Module, interpreter::Tensor};

use crate::{
    fuse::Policy,
    pipelines::{Fusion, fusion, sharding},
    run_passes,
    testing::{
        Model, Program, build, build_program, inputs, models, on_the_grid, programs, run_program, whole,
    },
};

/// Models that are tried.
const CASES: u32 = 32;

/// Always the same models; `PROPTEST_CASES` asks for more.
fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|more| more.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn fail(pass: &str, module: &Module<'_>, what: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(format!("after {pass}: {what}\n{}", module.text(false)))
}

/// The largest difference, relative to the largest number.
fn difference(x: &[Tensor], y: &[Tensor]) -> f64 {
    let numbers = |all: &[Tensor]| all.iter().flat_map(Tensor::numbers).collect::<Vec<f64>>();
    let (x, y) = (numbers(x), numbers(y));
    let largest = x.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    let same = |(x, y): (&f64, &f64)| if x.to_bits() == y.to_bits() { 0.0 } else { (x - y).abs() / largest };
    let differences = x.iter().zip(&y).map(same);
    differences.fold(0.0, |most, one| if one.is_nan() { f64::INFINITY } else { most.max(one) })
}

fn prints_and_parses(context: &Context, pass: &str, module: &Module<'_>) -> Result<(), TestCaseError> {
    let text = module.text(false);
    let again = context.parse(&text, "again.mlir").map_err(|error| fail(pass, module, error))?;
    if again.text(false) == text { Ok(()) } else { Err(fail(pass, module, "prints another text")) }
}

/// What the passes found to do, so that models without anything to do are noticed.
#[derive(Debug, Default)]
struct Found {
    simplified: usize,
    fused: usize,
    consumed: usize,
}

fn road(model: &Model, reassociate: bool, count: &RefCell<Found>) -> Result<(), TestCaseError> {
    let context = Context::new();
    let mut module = build(&context, model);
    prints_and_parses(&context, "the generator", &module)?;
    let inputs = inputs(&module);
    let expected = whole(&module, &inputs);
    let options = Fusion { policy: Policy::Always, ..Fusion::default() };
    let mut passes = sharding(reassociate);
    passes.extend(fusion(&options));
    passes.push("t3-outline".to_owned());
    let mut unfused: Option<Vec<Tensor>> = None;
    for pass in passes {
        let before = module.text(false);
        let mut remarks = Vec::new();
        run_passes(&mut module, &[&pass], &mut remarks)
            .map_err(|error| TestCaseError::fail(format!("{pass}: {error}\n{before}")))?;
        count.borrow_mut().simplified += remarks.iter().filter(|r| r.reason == "simplified").count();
        prints_and_parses(&context, &pass, &module)?;
        let found = on_the_grid(&module, &inputs).map_err(|error| fail(&pass, &module, error))?;
        let error = difference(&expected, &found);
        if error > 1e-10 {
            return Err(fail(&pass, &module, format!("off by {error:e}; before it:\n{before}")));
        }
        match &unfused {
            Some(unfused) if difference(unfused, &found) > 0.0 => {
                return Err(fail(&pass, &module, format!("changes bits; before it:\n{before}")));
            }
            None if pass == "t3-split-all-reduce" => unfused = Some(found),
            _ => {}
        }
    }
    let text = module.text(false);
    let mut count = count.borrow_mut();
    count.fused += text.matches("t3.track_and_trigger").count();
    count.consumed += text.matches("t3.consume").count();
    Ok(())
}

#[test]
fn random_models_keep_their_meaning_through_all_passes() {
    let count = RefCell::default();
    runner(CASES)
        .run(&models(), |model| road(&model, false, &count))
        .unwrap_or_else(|error| panic!("{error}"));
    let Found { simplified, fused, consumed } = count.into_inner();
    assert!(simplified > 0 && fused > 0 && consumed > 0, "{simplified} {fused} {consumed}");
}

#[test]
fn random_models_keep_their_meaning_where_sums_may_be_reordered() {
    let count = RefCell::default();
    runner(CASES / 2)
        .run(&models(), |model| road(&model, true, &count))
        .unwrap_or_else(|error| panic!("{error}"));
}

fn simplifies(program: &Program, reassociate: bool, count: &RefCell<usize>) -> Result<(), TestCaseError> {
    let context = Context::new();
    let mut module = build_program(&context, program);
    let before = module.text(false);
    let expected = run_program(&module).map_err(|error| fail("the generator", &module, error))?;
    let pass = if reassociate { "t3-simplify{reassociate=1}" } else { "t3-simplify" };
    let mut remarks = Vec::new();
    run_passes(&mut module, &[pass], &mut remarks)
        .map_err(|error| TestCaseError::fail(format!("{error}\n{before}")))?;
    prints_and_parses(&context, pass, &module)?;
    *count.borrow_mut() += remarks.iter().filter(|remark| remark.reason == "simplified").count();
    let found = run_program(&module).map_err(|error| fail(pass, &module, error))?;
    let error = difference(&expected.concat(), &found.concat());
    if error > 1e-10 {
        return Err(fail(pass, &module, format!("off by {error:e}; before it:\n{before}")));
    }
    Ok(())
}

#[test]
fn random_programs_keep_their_meaning_when_simplified() {
    for reassociate in [false, true] {
        let count = RefCell::default();
        let outcome = runner(2 * CASES).run(&programs(), |p| simplifies(&p, reassociate, &count));
        outcome.unwrap_or_else(|error| panic!("{error}"));
        let count = count.into_inner();
        assert!(count > CASES as usize / 2, "{count} of {} programs were simplified", 2 * CASES);
    }
}
