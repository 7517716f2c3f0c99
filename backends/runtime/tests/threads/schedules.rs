//! A runtime made from a whole schedule.

use t3c_runtime::layout::Cut;
use t3c_runtime::{Error, FusedSpec, Options, Runtime, StepKey};
use t3c_schedule::{
    Algorithm, Buffer, Collective, CollectiveKind, Element, Fused, Program, Reduction, SCHEMA, Schedule,
    Step, StepKind, configure_ring_reduce_scatter,
};

use crate::reference::{bits, line, partial, reduced, run_fused};

fn fused(id: usize, devices: u32) -> Step {
    let collective = Collective {
        kind: CollectiveKind::ReduceScatter,
        axes: vec![0],
        dimension: 1,
        concatenate: None,
        reduction: Reduction::Sum,
        bytes: 6 * 9 * 4,
        algorithm: Algorithm::Ring,
        input: 0,
        output: 1,
    };
    let kind = StepKind::Fused(Fused {
        producers: Vec::new(),
        collective,
        shape: vec![6, 9],
        dimension: 1,
        block: 2,
        chunks: configure_ring_reduce_scatter(devices),
        result: 1,
    });
    Step { id, after: Vec::new(), location: "model.layers.0.mlp.down_proj".to_string(), kind }
}

fn schedule(devices: u32, element: Element) -> Schedule {
    let buffer = |name: &str, columns| Buffer { name: name.to_string(), element, shape: vec![6, columns] };
    let program = |steps| Program {
        name: "layer".to_string(),
        buffers: vec![buffer("partial", 9), buffer("result", 9 / u64::from(devices))],
        arguments: Vec::new(),
        results: vec![1],
        steps,
    };
    Schedule {
        schema: SCHEMA.to_string(),
        grid: line(devices),
        programs: vec![program(Vec::new()), program(vec![fused(0, devices), fused(1, devices)])],
        entry: 0,
    }
}

#[test]
fn every_fused_step_of_a_schedule_runs() {
    let schedule = schedule(3, Element::F32);
    let runtime = Runtime::new(&schedule, Options::default()).unwrap();
    assert_eq!(runtime.devices(), 3);
    let run = runtime.run(|device| {
        for step in &schedule.programs[1].steps {
            let StepKind::Fused(fused) = &step.kind else { continue };
            let spec = FusedSpec::of(StepKey { program: 1, step: step.id }, fused);
            let found = run_fused(device, &spec, &partial(device.device(), 4, 54))?;
            let cut = Cut::of(&fused.shape, fused.dimension).unwrap();
            assert_eq!(bits(&found), bits(&reduced(cut, 3, device.device(), 4)));
        }
        Ok::<(), Error>(())
    });
    run.unwrap();
}

#[test]
fn what_cannot_run_is_refused_with_its_step() {
    let error = Runtime::new(&schedule(3, Element::Bf16), Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("step 0 of program 1: only f32"), "{error}");
    let mut wrong = schedule(3, Element::F32);
    wrong.grid = line(4);
    let error = Runtime::new(&wrong, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "step 0 of program 1: address space: 3 chunks for 4 devices");
    wrong.grid.axes.clear();
    wrong.programs[1].steps.truncate(1);
    let error = Runtime::new(&wrong, Options::default()).unwrap_err();
    assert!(error.to_string().contains("there is no axis 0 among 0"), "{error}");
}
