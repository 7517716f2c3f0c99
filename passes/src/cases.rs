//! The runner of `cases/<pass>/*.mlir`: a new case is one file, and its snapshot lies beside it.
//!
//! `// pass: every` runs each pass alone and writes what came of it: for modules that a pass must refuse or leave.
//! Else the first line names the passes (`// pass: t3-split-all-reduce`, several separated by commas). Checked for
//! every case, without a word in the file: the result verifies, prints and parses back to itself, a second run
//! changes nothing (unless the file says `// once`), and every function means the same before and after, on all
//! devices (functions of large or dynamic tensors are not interpreted). `// locations` prints them too.

use std::{collections::HashMap, fs, path::Path};

use t3c_ir::{
    Context, Module,
    function::{Function, SPLIT, functions},
    interpreter::{Interpreter, Tensor},
};

use crate::{
    Remark,
    fuse::Policy,
    pipelines::{self, Fusion},
    registry, run_passes,
};

/// The passes that the case's first line names.
fn passes(source: &str) -> Vec<String> {
    let line = source.lines().next().and_then(|line| line.strip_prefix("// pass:"));
    line.expect("the first line is `// pass: …`").split(',').map(|pass| pass.trim().to_owned()).collect()
}

/// Remarks, then the module after the passes (or the error).
fn run_case(path: &Path) -> String {
    let source = fs::read_to_string(path).expect("the case is readable");
    let file = path.file_name().and_then(|name| name.to_str()).expect("the case has a name");
    let (context, passes) = (Context::new(), passes(&source));
    if passes == ["every"] {
        return run_every_pass(&source, file);
    }
    let mut module = context.parse(&source, file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let (before, whole) = (meaning(&module, file), module.duplicate());
    let mut remarks: Vec<Remark> = Vec::new();
    let outcome = run_passes(&mut module, &passes, &mut remarks);
    let mut text: String = remarks.iter().map(|remark| format!("{remark}\n")).collect();
    if let Err(error) = outcome {
        return format!("{text}error: {error}\n");
    }
    if !changes_arguments(&passes) {
        compare(&before, &meaning(&module, file), file, tolerance(&passes));
    }
    if passes.iter().any(|pass| pass == "t3-shard") {
        crate::shard::tests::oracle::compare(&whole, &module);
    }
    let after = module.text(false);
    let again = context.parse(&after, file).unwrap_or_else(|error| panic!("{file}, printed: {error}"));
    assert_eq!(again.text(false), after, "{file} prints and parses back to itself");
    if !source.contains("// once") {
        run_passes(&mut module, &passes, &mut Vec::new()).expect("a second run succeeds");
        assert_eq!(module.text(false), after, "a second run of {file} changes nothing");
    }
    text.push_str("---\n");
    text.push_str(&if source.contains("// locations") { module.text(true) } else { after });
    if passes.iter().any(|pass| pass == "t3-schedule") {
        let schedule = crate::schedule(module.op()).expect("the pass made one already");
        text.push_str(&format!("---\n{schedule}"));
    }
    text
}

/// What each pass alone, and then all in their order, make of a module that nobody would write: something that
/// verifies and parses back, or an error that says where.
fn run_every_pass(source: &str, file: &str) -> String {
    let context = Context::new();
    if let Err(error) = context.parse(source, file) {
        assert!(error.to_string().contains(&format!("{file}:")), "{file}: {error}");
        return format!("error: {error}\n");
    }
    let one = |name: &str, passes: &[String]| {
        let mut module = context.parse(source, file).expect("parsed before");
        match run_passes(&mut module, passes, &mut Vec::new()) {
            Ok(()) => {
                let text = module.text(false);
                let again =
                    context.parse(&text, file).unwrap_or_else(|e| panic!("{file}: {name}: {e}\n{text}"));
                assert_eq!(again.text(false), text, "{file}: {name}");
                format!("{name}: fine\n")
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(&format!("{file}:")), "{file}: {name}: no place in `{error}`");
                assert!(!error.contains(" failed: "), "{file}: {error}");
                format!("{name}: {error}\n")
            }
        }
    };
    let mut text: String =
        registry::list().iter().map(|entry| one(entry.name, &[entry.name.to_owned()])).collect();
    let options = Fusion { policy: Policy::Always, ..Fusion::default() };
    let road = [pipelines::sharding(false), pipelines::fusion(&options), pipelines::schedule()].concat();
    text.push_str(&one("all", &road));
    text
}

/// After partitioning, devices take parts of the arguments: the whole is compared with what they put together. The
/// optimizer adds arguments: its own tests compare with a plain loop.
fn changes_arguments(passes: &[String]) -> bool {
    let name = |pass: &String| pass.split('{').next().unwrap_or_default().to_owned();
    passes.iter().any(|pass| ["t3-shard", "t3-optimizer"].contains(&name(pass).as_str()))
}

/// A reduce-scatter in an all-reduce's place adds the same numbers in another order; all else keeps every bit.
fn tolerance(passes: &[String]) -> f64 {
    let reorders = |pass: &String| pass == "t3-split-all-reduce" || pass.starts_with("t3-simplify");
    if passes.iter().any(reorders) { 1e-5 } else { 0.0 }
}

/// Elements of a function's arguments up to which it is interpreted.
const SMALL: u64 = 4096;

/// The results of each function, by name, for fixed inputs that differ from device to device, unless `t3.split` says
/// that the argument is not split along the axes between them.
fn meaning(module: &Module<'_>, file: &str) -> HashMap<String, Vec<Vec<Tensor>>> {
    let interpreter = Interpreter::new(module.op());
    let is_small = |function: &Function<'_, '_>| {
        let elements =
            |ports: Vec<t3c_ir::function::Port>| ports.iter().map(|port| port.r#type.elements()).sum();
        function.argument_ports().map(elements).is_ok_and(|elements: u64| elements <= SMALL)
    };
    let programs = functions(module.op()).into_iter().filter(|f| crate::outline::is_program(*f));
    let run = |function: Function<'_, '_>| {
        let ports = function.argument_ports().expect("arguments are tensors");
        let grid = interpreter.grid();
        let inputs: Vec<Vec<Tensor>> = (0..grid.devices())
            .map(|device| {
                let coordinates = grid.coordinates(device);
                let random = |(number, port): (usize, &t3c_ir::function::Port)| {
                    let promised = port.attributes.iter().any(|(name, _)| name == SPLIT);
                    let splits = port.splits().concat();
                    let place = coordinates.iter().enumerate().fold(0, |place, (axis, coordinate)| {
                        let differs = !promised || splits.contains(&axis);
                        place * u64::from(grid.axes[axis].size)
                            + if differs { u64::from(*coordinate) } else { 0 }
                    });
                    Tensor::random(&port.r#type, 1000 * place + number as u64).expect("has host data")
                };
                ports.iter().enumerate().map(random).collect()
            })
            .collect();
        let results = interpreter.run(&function.name(), &inputs);
        (function.name(), results.unwrap_or_else(|error| panic!("{file}: {}: {error}", function.name())))
    };
    programs.filter(is_small).map(run).collect()
}

fn compare(
    before: &HashMap<String, Vec<Vec<Tensor>>>,
    after: &HashMap<String, Vec<Vec<Tensor>>>,
    file: &str,
    tolerance: f64,
) {
    for (name, before) in before {
        let after = after.get(name).unwrap_or_else(|| panic!("{file}: @{name} is gone"));
        let numbers = |results: &[Vec<Tensor>]| -> Vec<f64> {
            results.iter().flatten().flat_map(Tensor::numbers).collect()
        };
        for (x, y) in numbers(before).into_iter().zip(numbers(after)) {
            assert!(
                x == y || (x - y).abs() <= tolerance * x.abs().max(1.0),
                "{file}: @{name}: {x} became {y}"
            );
        }
    }
}

#[test]
fn every_case_matches_its_snapshot() {
    insta::glob!("../cases", "**/*.mlir", |path| {
        let directory = path.parent().expect("a case lies in a folder").to_owned();
        let name = path.file_name().and_then(|name| name.to_str()).expect("the case has a name").to_owned();
        let text = run_case(path);
        insta::with_settings!({
            snapshot_path => directory,
            prepend_module_to_snapshot => false,
            omit_expression => true,
            snapshot_suffix => "",
        }, {
            insta::assert_snapshot!(name, text);
        });
    });
}
