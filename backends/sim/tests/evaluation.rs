//! The paper's evaluation: what agrees with the published figures stays so. What does not is in the README.

use std::sync::LazyLock;

use t3c_sim::{
    Policy, System,
    evaluation::{
        cases, evaluate_all,
        rows::{Reproduction, Row, reproduce, sub_layer_share},
        sensitivity::sensitivity,
    },
    page,
};

static RESULT: LazyLock<Reproduction> =
    LazyLock::new(|| reproduce(&System::open("t3-80cu").unwrap(), |_, _| {}).unwrap());

fn row(id: &str) -> &'static Row {
    RESULT.rows.iter().find(|row| row.id == id).unwrap()
}

#[test]
fn speedups_are_near_the_papers() {
    for (id, points) in [
        ("ideal-overlap.sublayer.geomean", 2.0),
        ("ideal-overlap.sublayer.max", 2.0),
        ("t3.sublayer.geomean", 3.0),
        ("t3-mca.sublayer.geomean", 3.0),
        ("t3-mca.large.geomean", 7.0),
        ("nmc.reduce-scatter.tp8", 1.0),
        ("nmc.reduce-scatter.tp16", 1.0),
        ("cu-split.gemm.64", 3.0),
        ("end-to-end.training.t3-mca.geomean", 3.0),
        ("end-to-end.training.t3-mca.max", 3.0),
        ("end-to-end.prompt.t3-mca.geomean", 3.0),
        ("dram.total.geomean", 3.0),
        ("dram.gemm-rs-writes.geomean", 1.0),
    ] {
        let row = row(id);
        assert!(row.deviation.abs() <= points, "{id}: {} where the paper has {}", row.ours, row.published);
    }
    assert_eq!(row("dram.rs-reads.tp8").ours, 2.5);
}

#[test]
fn compute_first_is_never_far_behind_taking_turns() {
    for evaluated in RESULT.cases.iter().filter(|evaluated| evaluated.case.is_main) {
        let (t3, mca, ideal) =
            (evaluated.speedup("t3"), evaluated.speedup("t3-mca"), evaluated.speedup("ideal-overlap+nmc"));
        let name = &evaluated.case.name;
        assert!(mca > 0.93 * t3, "{name}: {t3} and {mca}");
        assert!(t3 < 1.01 * ideal && mca < 1.01 * ideal, "{name}: {t3}, {mca}, {ideal}");
    }
}

#[test]
fn sub_layers_are_a_third_to_half_of_the_time() {
    for model in &RESULT.models {
        let share = sub_layer_share(&model.report);
        assert!((0.3..0.55).contains(&share), "{}: {share}", model.name);
    }
}

#[test]
fn the_same_on_every_run_and_on_a_page() {
    let some: Vec<_> = cases().into_iter().take(4).collect();
    let system = System::open("t3-80cu").unwrap();
    let again = evaluate_all(&some, &system, &Policy::ALL, |_| {}).unwrap();
    for (again, first) in again.iter().zip(&RESULT.cases) {
        assert_eq!(again.report.sublayers, first.report.sublayers, "{}", first.case.name);
    }
    let varied = sensitivity("t3-80cu", |_, _| {}).unwrap();
    assert_eq!((varied[0].field, varied[0].conclusions), ("", [true; 4]));
    let base = (varied[0].t3_mca * 1e6).round();
    assert_eq!(base, (row("t3-mca.sublayer.geomean").ours * 1e6).round(), "the file as it is, both ways");
    let text = page::reproduction(&RESULT, &varied, "t3-80cu");
    assert!(text.matches("<svg").count() == 4 && !text.contains("NaN") && !text.contains("http"));
}
