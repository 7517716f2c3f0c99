//! Meaning of operations and collectives on small tensors.

use t3c_schedule::{Axis, Element, Grid};

use super::{Interpreter, Tensor, gather, generalize, scatter};
use crate::{Builder, Context, Error, Location, TensorType, function, units};

fn parse_and_run(source: &str, inputs: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>, Error> {
    let context = Context::new();
    let mut module = context.parse(source, "test.mlir")?;
    generalize(&mut module)?;
    Interpreter::new(module.op()).run("f", inputs)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.numbers()
}

#[test]
fn named_operations_views_and_slices() {
    let source = r"
func.func @f(%a: tensor<2x3xf64>, %b: tensor<3x2xf64>) -> (tensor<2x2xf64>, tensor<3xf64>, tensor<4xf64>, tensor<2x2xf64>, tensor<4xf64>) {
  %z = arith.constant dense<1.0> : tensor<2x2xf64>
  %p = linalg.matmul ins(%a, %b : tensor<2x3xf64>, tensor<3x2xf64>) outs(%z : tensor<2x2xf64>) -> tensor<2x2xf64>
  %row = tensor.extract_slice %a[1, 0] [1, 3] [1, 1] : tensor<2x3xf64> to tensor<3xf64>
  %flat = tensor.collapse_shape %p [[0, 1]] : tensor<2x2xf64> into tensor<4xf64>
  %w = tensor.insert_slice %row into %a[0, 0] [1, 3] [1, 1] : tensor<3xf64> into tensor<2x3xf64>
  %e = tensor.empty() : tensor<3x2xf64>
  %t = linalg.transpose ins(%w : tensor<2x3xf64>) outs(%e : tensor<3x2xf64>) permutation = [1, 0]
  %cut = tensor.extract_slice %t[0, 0] [2, 2] [2, 1] : tensor<3x2xf64> to tensor<2x2xf64>
  %table = arith.constant dense<[1.0, -2.0, 3.0, -4.0]> : tensor<4xf64>
  %abs = math.absf %table : tensor<4xf64>
  %sum = arith.addf %abs, %flat : tensor<4xf64>
  return %p, %row, %flat, %cut, %sum : tensor<2x2xf64>, tensor<3xf64>, tensor<4xf64>, tensor<2x2xf64>, tensor<4xf64>
}";
    let inputs = vec![
        Tensor::f64([2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        Tensor::f64([3, 2], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    ];
    let results = parse_and_run(source, &[inputs]).unwrap().remove(0);
    assert_eq!(numbers(&results[0]), [5.0, 6.0, 11.0, 12.0]);
    assert_eq!(numbers(&results[1]), [4.0, 5.0, 6.0]);
    assert_eq!(results[2].shape, [4]);
    assert_eq!(numbers(&results[3]), [4.0, 4.0, 6.0, 6.0]);
    assert_eq!(numbers(&results[4]), [6.0, 8.0, 14.0, 16.0]);
}

const COLLECTIVES: &str = r"
shard.grid @grid(shape = 3)
func.func @f(%x: tensor<3x2xf32>) -> (tensor<3x2xf32>, tensor<1x2xf32>, tensor<9x2xf32>, tensor<1x2xf32>, tensor<3x2xf32>, tensor<1xi64>) {
  %0 = shard.all_reduce %x on @grid grid_axes = [0] : tensor<3x2xf32> -> tensor<3x2xf32>
  %1 = shard.reduce_scatter %x on @grid grid_axes = [0] scatter_axis = 0 : tensor<3x2xf32> -> tensor<1x2xf32>
  %2 = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<3x2xf32> -> tensor<9x2xf32>
  %3 = shard.all_slice %x on @grid grid_axes = [0] slice_axis = 0 : tensor<3x2xf32> -> tensor<1x2xf32>
  %4 = shard.all_reduce %x on @grid grid_axes = [0] reduction = max : tensor<3x2xf32> -> tensor<3x2xf32>
  %i = shard.process_multi_index on @grid axes = [0] : index
  %c = arith.index_cast %i : index to i64
  %5 = tensor.from_elements %c : tensor<1xi64>
  return %0, %1, %2, %3, %4, %5 : tensor<3x2xf32>, tensor<1x2xf32>, tensor<9x2xf32>, tensor<1x2xf32>, tensor<3x2xf32>, tensor<1xi64>
}";

#[test]
fn collectives_add_in_the_order_of_the_design() {
    // Chosen so that every order of addition gives another f32.
    let columns = [[1e8_f32, 1.0], [-1e8, 3.0], [1.5, -7.0]];
    let inputs: Vec<Vec<Tensor>> = columns
        .iter()
        .map(|pair| vec![Tensor::f32([3, 2], [pair.as_slice(), pair, pair].concat())])
        .collect();
    let results = parse_and_run(COLLECTIVES, &inputs).unwrap();
    let [a, b, c] = columns.map(|pair| pair[0]);
    for device in 0..3 {
        assert_eq!(numbers(&results[device][0])[0], f64::from((a + b) + c));
        // Chunk c is ((p[c−1] + p[c−2]) + p[c]).
        let expected = [(c + b) + a, (a + c) + b, (b + a) + c][device];
        assert_eq!(numbers(&results[device][1])[0], f64::from(expected));
        assert_eq!(results[device][2].shape, [9, 2]);
        assert_eq!(numbers(&results[device][2])[6], -1e8);
        assert_eq!(numbers(&results[device][3]), columns[device].map(f64::from));
        assert_eq!(numbers(&results[device][4])[..2], [1e8, 3.0]);
        assert_eq!(numbers(&results[device][5]), [device as f64]);
    }
}

#[test]
fn an_all_to_all_transposes_pieces() {
    let source = r"
shard.grid @grid(shape = 2)
func.func @f(%x: tensor<2x1xf32>) -> tensor<1x2xf32> {
  %0 = shard.all_to_all %x on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<2x1xf32> -> tensor<1x2xf32>
  return %0 : tensor<1x2xf32>
}";
    let inputs = [[1.0_f32, 2.0], [3.0, 4.0]].map(|values| vec![Tensor::f32([2, 1], values)]);
    let results = parse_and_run(source, &inputs).unwrap();
    assert_eq!([numbers(&results[0][0]), numbers(&results[1][0])], [[1.0, 3.0], [2.0, 4.0]]);
}

#[test]
fn a_fused_pair_means_its_unfused_form() {
    let body = r"
  %zero = arith.constant dense<0.0> : tensor<4x2xf32>
  %p = linalg.matmul ins(%A, %B : tensor<4x3xf32>, tensor<3x2xf32>) outs(%zero : tensor<4x2xf32>) -> tensor<4x2xf32>";
    let unfused = format!(
        "shard.grid @grid(shape = 2)
func.func @f(%x: tensor<2x3xf32>, %w: tensor<3x2xf32>) -> tensor<2x2xf32> {{
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x3xf32> -> tensor<4x3xf32>{}
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<4x2xf32> -> tensor<2x2xf32>
  return %r : tensor<2x2xf32>
}}",
        body.replace("%A", "%g").replace("%B", "%w")
    );
    let fused = format!(
        "shard.grid @grid(shape = 2)
func.func @f(%x: tensor<2x3xf32>, %w: tensor<3x2xf32>) -> tensor<2x2xf32> {{
  %g = t3.consume all_gather on @grid axes = [0] dim = 0 (%x) : (tensor<2x3xf32>) -> (tensor<4x3xf32>) {{
  ^bb0(%whole: tensor<4x3xf32>):
    t3.yield %whole : tensor<4x3xf32>
  }}
  %r = t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 (%g, %w) : (tensor<4x3xf32>, tensor<3x2xf32>) -> tensor<2x2xf32> {{
  ^bb0(%a: tensor<4x3xf32>, %b: tensor<3x2xf32>):{}
    t3.yield %p : tensor<4x2xf32>
  }}
  return %r : tensor<2x2xf32>
}}",
        body.replace("%A", "%a").replace("%B", "%b")
    );
    let inputs: Vec<Vec<Tensor>> = (0..2_u64)
        .map(|device| {
            let tensor = |shape: [u64; 2], seed: u64| {
                Tensor::random(&TensorType::new(shape, Element::F32), seed + 10 * device).unwrap()
            };
            vec![tensor([2, 3], 1), tensor([3, 2], 2)]
        })
        .collect();
    assert_eq!(parse_and_run(&unfused, &inputs).unwrap(), parse_and_run(&fused, &inputs).unwrap());
}

#[test]
fn scatter_and_gather_are_inverse_on_a_grid_of_two_axes() {
    let axis = |name: &str, size| Axis { name: name.into(), size };
    let grid = Grid { axes: vec![axis("dp", 2), axis("tp", 3)] };
    let whole = Tensor::random(&TensorType::new([4, 6, 2], Element::F32), 7).unwrap();
    for split in [
        [vec![0], vec![1], vec![]],
        [vec![1], vec![], vec![0]],
        [vec![], vec![0, 1], vec![]],
        [vec![], vec![1, 0], vec![]],
    ] {
        let Ok(parts) = scatter(&whole, &split, &grid) else {
            assert_eq!(split[0], [1], "three devices do not divide four rows");
            continue;
        };
        assert_eq!(gather(&parts, &split, &grid).unwrap(), whole);
    }
    let mut parts = scatter(&whole, &[vec![0], vec![], vec![]], &grid).unwrap();
    parts[1] = parts[4].clone();
    assert!(gather(&parts, &[vec![0], vec![], vec![]], &grid).unwrap_err().to_string().contains("replicas"));
}

#[test]
fn widening_computes_an_f32_program_in_f64() {
    let source = r"
func.func @f(%x: tensor<f32>) -> tensor<f32> {
  %c = arith.constant dense<1.0> : tensor<f32>
  %0 = arith.addf %x, %c : tensor<f32>
  %1 = arith.subf %0, %c : tensor<f32>
  return %1 : tensor<f32>
}";
    let context = Context::new();
    let module = context.parse(source, "test.mlir").unwrap();
    let narrow = Interpreter::new(module.op()).run_one("f", &[Tensor::f32([], [1e-9])]).unwrap();
    assert_eq!(narrow[0], Tensor::f32([], [0.0]));
    let wide = Interpreter::new(module.op()).widened().run_one("f", &[Tensor::f64([], [1e-9])]).unwrap();
    assert!((numbers(&wide[0])[0] - 1e-9).abs() < 1e-15);
}

#[test]
fn errors_name_the_operation_and_its_place() {
    let source = "func.func @f(%x: tensor<2xf32>) -> tensor<f32> {
  %i = arith.constant 5 : index
  %0 = tensor.extract %x[%i] : tensor<2xf32>
  %1 = tensor.from_elements %0 : tensor<f32>
  return %1 : tensor<f32>
}";
    let error = parse_and_run(source, &[vec![Tensor::f32([2], [1.0, 2.0])]]).unwrap_err().to_string();
    assert!(error.contains("test.mlir:3:") && error.contains("outside 0..2"), "{error}");
    let error = parse_and_run(source, &[vec![Tensor::f32([3], [1.0; 3])]]).unwrap_err().to_string();
    assert!(error.contains("tensor<2xf32>") && error.contains("tensor<3xf32>"), "{error}");
    let unknown = "func.func @f(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = math.sinh %x : tensor<2xf32>
  return %0 : tensor<2xf32>
}";
    let error = parse_and_run(unknown, &[vec![Tensor::f32([2], [1.0; 2])]]).unwrap_err().to_string();
    assert!(error.contains("math.sinh") && error.contains("test.mlir:2:"), "{error}");
}

/// Attention's reference body against plain loops, on a packed tree.
#[test]
fn units_run_by_their_reference_bodies() {
    let context = Context::new();
    let module = context.module(Location::unknown(context.mlir()));
    let q = TensorType::new([5, 2, 1, 2, 2], Element::F64);
    let unit = units::Unit::attention(&q);
    let symbol = units::ensure(module.op(), &unit).unwrap();
    let end = [5, 3, 3, 5, 5];
    let mut inputs: Vec<Tensor> = unit.arguments[..3]
        .iter()
        .zip(1..)
        .map(|(r#type, seed)| Tensor::random(r#type, seed).unwrap())
        .collect();
    inputs.push(Tensor::i32([5], end));
    let out = Interpreter::new(module.op()).run_one(&symbol, &inputs).unwrap().remove(0);
    let [q, k, v] = [0, 1, 2].map(|index| numbers(&inputs[index]));
    let row = |x: &[f64], token: usize, head: usize| x[(token * 2 + head) * 4..][..4].to_vec();
    for token in 0..5 {
        for head in 0..2 {
            let visible: Vec<usize> = (0..=token).filter(|&other| token < end[other] as usize).collect();
            let query = row(&q, token, head);
            let weights: Vec<f64> = visible
                .iter()
                .map(|&other| {
                    let key = row(&k, other, head);
                    (query.iter().zip(&key).map(|(x, y)| x * y).sum::<f64>() * 0.5).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            for lane in 0..4 {
                let expected: f64 = visible
                    .iter()
                    .zip(&weights)
                    .map(|(&other, w)| w / sum * row(&v, other, head)[lane])
                    .sum();
                let found = row(&numbers(&out), token, head)[lane];
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        }
    }
}

#[test]
fn calls_share_their_compiled_bodies() {
    let context = Context::new();
    let location = Location::unknown(context.mlir());
    let module = context.module(location);
    let r#type = TensorType::new([3], Element::F32);
    let port = || vec![function::Port::new("", r#type.clone())];
    let signature = |name: &str, public| function::Signature {
        name: name.into(),
        arguments: port(),
        results: port(),
        public,
        unit: None,
    };
    let (twice, block) = function::add_function(&module, &signature("twice", false), location).unwrap();
    let x = function::Function::cast(twice).unwrap().arguments()[0];
    let b = Builder::at_end(context.mlir(), block, location);
    b.ret(&[b.add(x, x).unwrap()]).unwrap();
    let (f, block) = function::add_function(&module, &signature("f", true), location).unwrap();
    let x = function::Function::cast(f).unwrap().arguments()[0];
    let b = Builder::at_end(context.mlir(), block, location);
    let y = b.call("twice", &[x], std::slice::from_ref(&r#type)).unwrap();
    let z = b.call("twice", &y, std::slice::from_ref(&r#type)).unwrap();
    b.ret(&z).unwrap();
    let interpreter = Interpreter::new(module.op());
    let out = interpreter.run_one("f", &[Tensor::f32([3], [1.0, 2.0, 3.0])]).unwrap();
    assert_eq!(numbers(&out[0]), [4.0, 8.0, 12.0]);
    assert_eq!(interpreter.structured.borrow().len(), 1);
}

/// Sum and maximum of one pass, and two elementwise results of which one reads its initial value.
#[test]
fn several_results_are_computed_apart() {
    let source = r#"
#id = affine_map<(n) -> (n)>
#none = affine_map<(n) -> ()>
func.func @f(%x: tensor<3xf64>, %y: tensor<3xf64>, %s: tensor<f64>, %m: tensor<f64>) -> (tensor<f64>, tensor<f64>, tensor<3xf64>, tensor<3xf64>) {
  %0:2 = linalg.generic {indexing_maps = [#id, #none, #none], iterator_types = ["reduction"]} ins(%x : tensor<3xf64>) outs(%s, %m : tensor<f64>, tensor<f64>) {
  ^bb0(%i: f64, %a: f64, %b: f64):
    %sum = arith.addf %a, %i : f64
    %max = arith.maximumf %b, %i : f64
    linalg.yield %sum, %max : f64, f64
  } -> (tensor<f64>, tensor<f64>)
  %1:2 = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel"]} ins(%x : tensor<3xf64>) outs(%y, %x : tensor<3xf64>, tensor<3xf64>) {
  ^bb0(%i: f64, %a: f64, %b: f64):
    %product = arith.mulf %i, %a : f64
    %twice = arith.addf %i, %i : f64
    linalg.yield %product, %twice : f64, f64
  } -> (tensor<3xf64>, tensor<3xf64>)
  return %0#0, %0#1, %1#0, %1#1 : tensor<f64>, tensor<f64>, tensor<3xf64>, tensor<3xf64>
}"#;
    let inputs = vec![
        Tensor::f64([3], [1.0, 5.0, -2.0]),
        Tensor::f64([3], [3.0, 4.0, 5.0]),
        Tensor::f64([], [10.0]),
        Tensor::f64([], [2.0]),
    ];
    let results = parse_and_run(source, &[inputs]).unwrap().remove(0);
    let found: Vec<Vec<f64>> = results.iter().map(numbers).collect();
    let expected = [vec![14.0], vec![5.0], vec![3.0, 20.0, -10.0], vec![2.0, 10.0, -4.0]];
    assert_eq!(found, expected);
    let coupled = source.replace("arith.maximumf %b, %i", "arith.maximumf %b, %a");
    let error = parse_and_run(
        &coupled,
        &[vec![
            Tensor::f64([3], [1.0; 3]),
            Tensor::f64([3], [1.0; 3]),
            Tensor::f64([], [0.0]),
            Tensor::f64([], [0.0]),
        ]],
    );
    assert!(error.unwrap_err().to_string().contains("depend on each other"));
}
