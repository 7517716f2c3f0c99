//! The training step's gradients are those of `transformers`, on one device and partitioned.

use t3c_frontends::{Options, Phase};
use t3c_ir::{
    Context, function,
    function::Port,
    interpreter::{Interpreter, Tensor, gather, scatter},
};

use crate::goldens::{
    BATCH, Numbers, SEQUENCE, VARIANTS, assert_close, graph, objective, packed, parameters,
};

/// Results by name, after `passes`, put together from all devices.
fn results(variant: &str, tp: u64, passes: &[&str]) -> Vec<(String, Vec<f64>)> {
    let (weights, golden) =
        (Numbers::read(variant, "model.safetensors"), Numbers::read(variant, "golden.safetensors"));
    let options = Options {
        phase: Phase::Training,
        batch: Some(BATCH),
        seq: Some(SEQUENCE),
        rows: Some(BATCH * (SEQUENCE - 1)),
        tp: Some(tp),
        ..Options::default()
    };
    let graph = graph(variant, options);
    let inputs =
        [packed(&golden), objective(&golden), parameters(&graph, &weights, |_, _, value| value)].concat();
    let context = Context::new();
    let mut module = graph.build(&context).expect("builds");
    t3c_passes::run_passes(&mut module, passes, &mut Vec::new()).unwrap_or_else(|error| panic!("{error}"));
    let entry = function::entry(module.op()).expect("one entry");
    let interpreter = Interpreter::new(module.op()).widened();
    let grid = interpreter.grid().clone();
    let mut devices = vec![Vec::new(); grid.devices() as usize];
    for (port, tensor) in entry.argument_ports().expect("ports").iter().zip(&inputs) {
        let parts = scatter(tensor, &port.splits(), &grid).expect("divides");
        devices.iter_mut().zip(parts).for_each(|(device, part)| device.push(part));
    }
    let found = interpreter.run(&entry.name(), &devices).unwrap_or_else(|error| panic!("{error}"));
    let whole = |(index, port): (usize, Port)| {
        let parts: Vec<Tensor> = found.iter().map(|device| device[index].clone()).collect();
        (port.name.clone(), gather(&parts, &port.splits(), &grid).expect("fits").numbers())
    };
    entry.result_ports().expect("ports").into_iter().enumerate().map(whole).collect()
}

#[test]
fn gradients_are_those_of_transformers() {
    for variant in VARIANTS {
        let golden = Numbers::read(variant, "golden.safetensors");
        for tp in [1, 2, 3].into_iter().filter(|&tp| tp != 2 || variant != "grouped") {
            let results = results(variant, tp, &["t3-autodiff", "t3-shard"]);
            let gradients = results.iter().filter(|(name, _)| name.starts_with("grad/"));
            assert!(gradients.clone().count() >= 20);
            for (name, found) in gradients {
                assert_close(&format!("{variant} at {tp}: {name}"), found, &golden.floats(name), 1e-5);
            }
        }
    }
}
