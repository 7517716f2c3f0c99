//! The library as a program uses it.

use t3c::{Compiler, Phase, Policy, System};

use crate::support::repository;

#[test]
fn two_compilers_run_on_two_threads() {
    let compile = |policy: Policy, seq: u64| {
        let model = repository("tests/goldens/llama/tied");
        let compiler = Compiler::from_path(model).phase(Phase::Prefill).seq(seq).tp(2).fuse(policy);
        let program = compiler.compile().expect("a program");
        (program.schedule().clone(), program.remarks().to_vec())
    };
    let alone = (compile(Policy::Always, 4), compile(Policy::Never, 6));
    for _ in 0..3 {
        let together = std::thread::scope(|scope| {
            let first = scope.spawn(|| compile(Policy::Always, 4));
            let second = scope.spawn(|| compile(Policy::Never, 6));
            (first.join().expect("the first"), second.join().expect("the second"))
        });
        assert!(together == alone, "a compiler saw the other");
    }
}

#[test]
fn a_program_can_be_looked_at_and_simulated() {
    let program = Compiler::from_path(repository("examples/models/t-nlg.json"))
        .choose_degree()
        .compile()
        .expect("a program");
    assert_eq!(program.info().tp, 8);
    assert!(program.mlir(t3c::Stage::T3).contains("t3.track_and_trigger"));
    assert!(program.remarks().iter().any(|remark| remark.kind == t3c::Kind::Passed));
    let report = program.simulate(&System::open("t3-80cu").expect("a system")).expect("a report");
    assert!(report.geomean["t3"] > 1.0);
    // The same input gives the same output to the bit.
    assert_eq!(report, program.simulate(&System::open("t3-80cu").expect("a system")).expect("a report"));
}

#[test]
fn errors_are_typed_and_name_their_place() {
    let error =
        Compiler::from_mlir("func.func @main(", "graph.mlir").compile().expect_err("an invalid module");
    assert!(matches!(error, t3c::Error::Frontend(_)), "{error:?}");
    assert!(error.to_string().starts_with("graph.mlir:1:"), "{error}");
}
