//! A partitioned program computes what it did before.

use t3c_ir::{
    Module, TensorType,
    function::entry,
    interpreter::{Interpreter, Tensor, gather, scatter},
};

use super::models::V;
use crate::shard::{Stage, partition_with};

/// Tokens of a sequence.
pub const SEQUENCE: u64 = 2;

/// Partitions a module, checks that it computes what it did, and prints it.
pub fn partitioned(module: &Module<'_>) -> String {
    partitioned_with(module, Stage::Off)
}

/// As [`partitioned`], with state split over data-parallel devices.
pub fn partitioned_with(module: &Module<'_>, stage: Stage) -> String {
    module.verify().unwrap();
    let whole = module.duplicate();
    partition_with(module.op(), stage).unwrap();
    let text = module.text(false);
    module.verify().unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert!(!text.contains("shard.shard ") && !text.contains("shard.sharding"), "{text}");
    compare(&whole, module);
    text
}

/// Values that an argument of this name can have.
fn input(name: &str, r#type: &TensorType, seed: u64) -> Tensor {
    let counted = |numbers: Vec<f64>| Tensor::from_numbers(r#type, &numbers).unwrap();
    let each = |number: &dyn Fn(u64) -> u64| (0..r#type.elements()).map(|row| number(row) as f64).collect();
    match name {
        "tokens" | "targets" => Tensor::random_below(r#type, V, seed).unwrap(),
        "subtree_end" => counted(each(&|row| (row / SEQUENCE + 1) * SEQUENCE)),
        // The row itself, or the one before it in its sequence.
        "rows" => counted(each(&|row| row - u64::from(row % SEQUENCE > 1))),
        "position" => counted(each(&|row| row)),
        "bias1" | "bias2" => counted(vec![0.5]),
        name if name.starts_with("v/") => {
            let squares = Tensor::random(r#type, seed).unwrap().numbers().iter().map(|x| x * x).collect();
            counted(squares)
        }
        "block_table" => counted((0..r#type.elements()).map(|at| (at % 2) as f64).collect()),
        _ => Tensor::random(r#type, seed).unwrap(),
    }
}

/// One big device and the grid give the same numbers.
pub fn compare(whole: &Module<'_>, parts: &Module<'_>) {
    let grid = t3c_ir::function::grid(parts.op()).unwrap().1;
    let name = entry(whole.op()).unwrap().name();
    let ports = entry(whole.op()).unwrap().argument_ports().unwrap();
    let inputs: Vec<Tensor> =
        ports.iter().zip(1..).map(|(port, seed)| input(&port.name, &port.r#type, seed)).collect();
    let expected = Interpreter::new(whole.op()).widened().on_one_device().run_one(&name, &inputs).unwrap();
    let local = entry(parts.op()).unwrap();
    let scattered: Vec<Vec<Tensor>> = inputs
        .iter()
        .zip(local.argument_ports().unwrap())
        .map(|(input, port)| scatter(input, &port.splits(), &grid).unwrap())
        .collect();
    let per_device: Vec<Vec<Tensor>> = (0..grid.devices() as usize)
        .map(|device| scattered.iter().map(|parts| parts[device].clone()).collect())
        .collect();
    let found = Interpreter::new(parts.op()).widened().run(&name, &per_device).unwrap();
    for (index, (expected, port)) in expected.iter().zip(local.result_ports().unwrap()).enumerate() {
        let parts: Vec<Tensor> = found.iter().map(|results| results[index].clone()).collect();
        let whole = gather(&parts, &port.splits(), &grid).unwrap();
        assert_eq!(whole.shape, expected.shape);
        for (found, expected) in whole.numbers().into_iter().zip(expected.numbers()) {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-10, "result {index}: {found} for {expected}\n{}", local.0);
        }
    }
}
