//! Schedules written by hand, for what small programs do not reach on their own.

use t3c_ir::{
    Context, TensorType,
    units::{Unit, ensure},
};
use t3c_schedule::{
    Algorithm, Axis, Buffer, Collective, CollectiveKind, Compute, Consume, Contraction, Element, Fused, Grid,
    Program, Reduction, SCHEMA, Schedule, Step, StepKind, Work, address_space::configure_ring_reduce_scatter,
};

use super::{Executable, Options};

fn buffer(shape: &[u64]) -> Buffer {
    Buffer { name: String::new(), element: Element::F32, shape: shape.to_vec() }
}

fn kernel(symbol: &str, reads: Vec<usize>, writes: Vec<usize>) -> Compute {
    Compute { work: Work::Loops { flops: 1 }, kernel: Some(symbol.into()), reads, writes }
}

fn collective(kind: CollectiveKind, axes: &[usize], dimension: usize, buffers: [usize; 2]) -> Collective {
    Collective {
        kind,
        axes: axes.to_vec(),
        dimension,
        concatenate: None,
        reduction: Reduction::Sum,
        bytes: 0,
        algorithm: Algorithm::Direct,
        input: buffers[0],
        output: buffers[1],
    }
}

fn schedule(axes: &[(&str, u32)], buffers: Vec<Buffer>, result: usize, kinds: Vec<StepKind>) -> Schedule {
    let step = |(id, kind)| Step { id, after: Vec::new(), location: "here".into(), kind };
    let axis = |(name, size): &(&str, u32)| Axis { name: (*name).into(), size: *size };
    let program = Program {
        name: "main".into(),
        buffers,
        arguments: vec![0],
        results: vec![result],
        steps: kinds.into_iter().enumerate().map(step).collect(),
    };
    let grid = Grid { axes: axes.iter().map(axis).collect() };
    Schedule { schema: SCHEMA.into(), grid, programs: vec![program], entry: 0 }
}

/// Runs a schedule of one argument `x` and one result `y`, whose parts lie along their splits.
fn run(text: &str, schedule: &Schedule, x: &[f32]) -> Vec<f32> {
    let context = Context::new();
    let module = context.parse(text, "test.mlir").expect("a module");
    let mut executable =
        Executable::new(&context, &module, schedule, Options::default()).expect("native code");
    let mut state = executable.state();
    let port = executable.arguments()[0].clone();
    let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    state.set("x", &port.r#type, &port.split, &bytes).expect("x");
    executable.run(&mut state).expect("a run");
    let (r#type, bytes) = state.get("y").expect("y");
    assert_eq!(r#type.elements() as usize * 4, bytes.len());
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `y[i] = x[i] + 100 · (the coordinate along axis 0) + 10 · (along axis 1) + the device's number`.
const PLACES: &str = r#"
module attributes {t3.axes = ["dp", "tp"]} {
  shard.grid @grid(shape = 2x3)
  func.func private @places(%x: tensor<2xf32>) -> tensor<2xf32> attributes {t3.kernel = "loops"} {
    %i, %j = shard.process_multi_index on @grid : index, index
    %n = shard.process_linear_index on @grid : index
    %c100 = arith.constant 100 : index
    %c10 = arith.constant 10 : index
    %a = arith.muli %i, %c100 : index
    %b = arith.muli %j, %c10 : index
    %c = arith.addi %a, %b : index
    %d = arith.addi %c, %n : index
    %e = arith.index_cast %d : index to i64
    %t = tensor.from_elements %e : tensor<i64>
    %init = tensor.empty() : tensor<2xf32>
    %y = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> ()>, affine_map<(d0) -> (d0)>],
        iterator_types = ["parallel"]} ins(%x, %t : tensor<2xf32>, tensor<i64>) outs(%init : tensor<2xf32>) {
      ^bb0(%v: f32, %o: i64, %out: f32):
        %f = arith.sitofp %o : i64 to f32
        %s = arith.addf %v, %f : f32
        linalg.yield %s : f32
    } -> tensor<2xf32>
    return %y : tensor<2xf32>
  }
  func.func @main(%x: tensor<2xf32> {t3.name = "x", t3.split = [array<i64>]})
      -> (tensor<2xf32> {t3.name = "y", t3.split = [array<i64>]}) {
    return %x : tensor<2xf32>
  }
}"#;

#[test]
fn kernels_know_where_their_device_stands() {
    let axes = [("dp", 2), ("tp", 3)];
    let compute = StepKind::Compute(kernel("places", vec![0], vec![1]));
    // Each device's own part: an all-reduce shows all of them.
    let sum = StepKind::Collective(collective(CollectiveKind::AllReduce, &[0, 1], 0, [1, 2]));
    let buffers = vec![buffer(&[2]), buffer(&[2]), buffer(&[2])];
    let y = run(PLACES, &schedule(&axes, buffers, 2, vec![compute, sum]), &[0.5, 0.0]);
    let places = 3.0 * 100.0 + 2.0 * (10.0 + 20.0) + 15.0;
    assert_eq!(y, [places + 3.0, places]);
}

/// A module whose entry has these types and splits.
fn signature(x: (&str, &str), y: (&str, &str)) -> String {
    format!(
        "module attributes {{t3.axes = [\"dp\", \"ep\"]}} {{
           shard.grid @grid(shape = 2x2)
           func.func @main(%x: tensor<{}xf32> {{t3.name = \"x\", t3.split = [{}]}})
             -> (tensor<{}xf32> {{t3.name = \"y\", t3.split = [{}]}}) {{
             %y = tensor.empty() : tensor<{}xf32>
             return %y : tensor<{}xf32>
           }}
         }}",
        x.0, x.1, y.0, y.1, y.0, y.0
    )
}

#[test]
fn an_all_to_all_moves_a_split_from_one_dimension_to_another_within_each_group() {
    let axes = [("dp", 2), ("ep", 2)];
    let exchange = StepKind::Collective(collective(CollectiveKind::AllToAll, &[1], 1, [0, 1]));
    let buffers = vec![buffer(&[2, 4]), buffer(&[4, 2])];
    let schedule = schedule(&axes, buffers, 1, vec![exchange]);
    let x: Vec<f32> = (0..16).map(|value| value as f32).collect();
    // x is split along its rows over `ep`; so is y along its columns. Both groups of `ep` hold the same.
    assert_eq!(
        run(
            &signature(("2x4", "array<i64: 1>, array<i64>"), ("4x2", "array<i64>, array<i64: 1>")),
            &schedule,
            &x
        ),
        x
    );
}

#[test]
fn readers_of_a_consumed_gather_see_all_of_it() {
    let axes = [("dp", 2), ("ep", 2)];
    // y[n, m] = Σ_k x[n, k] x[m, k], of the gathered x.
    let contraction = Contraction { extents: vec![8, 8, 3], a: vec![0, 2], b: vec![1, 2], c: vec![0, 1] };
    let reader =
        Compute { work: Work::Contraction(contraction), kernel: None, reads: vec![1, 1], writes: vec![2] };
    let consume = StepKind::Consume(Consume {
        collective: collective(CollectiveKind::AllGather, &[0, 1], 0, [0, 1]),
        dimension: 0,
        arrivals: Vec::new(),
        block: 0,
        consumers: vec![reader],
    });
    let buffers = vec![buffer(&[4, 3]), buffer(&[8, 3]), buffer(&[8, 8])];
    let mut schedule = schedule(&axes, buffers, 2, vec![consume]);
    // Along one axis, so that the argument's split of one axis a dimension says it.
    if let StepKind::Consume(consume) = &mut schedule.programs[0].steps[0].kind {
        consume.collective.axes = vec![0];
    }
    let x: Vec<f32> = (0..24).map(|value| (value % 7) as f32).collect();
    let y = run(
        &signature(("4x3", "array<i64: 0>, array<i64>"), ("8x8", "array<i64>, array<i64>")),
        &schedule,
        &x,
    );
    let expected = |n: usize, m: usize| (0..3).map(|k| x[3 * n + k] * x[3 * m + k]).sum::<f32>();
    for (index, value) in y.iter().enumerate() {
        assert_eq!(*value, expected(index / 8, index % 8), "{index}");
    }
}

/// `y[n, m] = Σ_k x[n, k] x[m, k]`, the second operand an argument that is packed ahead.
fn squares(n: u64, k: u64) -> (String, Schedule) {
    let contraction = Contraction { extents: vec![n, n, k], a: vec![0, 2], b: vec![1, 2], c: vec![0, 1] };
    let product =
        Compute { work: Work::Contraction(contraction), kernel: None, reads: vec![0, 0], writes: vec![1] };
    let schedule = schedule(&[], vec![buffer(&[n, k]), buffer(&[n, n])], 1, vec![StepKind::Compute(product)]);
    let text = format!(
        "func.func @main(%x: tensor<{n}x{k}xf32> {{t3.name = \"x\"}}) -> (tensor<{n}x{n}xf32> {{t3.name = \"y\"}}) {{
           %y = tensor.empty() : tensor<{n}x{n}xf32>
           return %y : tensor<{n}x{n}xf32>
         }}"
    );
    (text, schedule)
}

#[test]
fn threads_and_packed_weights_change_no_bit_and_new_weights_are_packed_again() {
    let (n, k) = (150, 1300);
    let (text, schedule) = squares(n, k);
    let context = Context::new();
    let module = context.parse(&text, "test.mlir").expect("a module");
    let values = |seed: u64| -> Vec<u8> {
        (0..n * k).flat_map(|i| (((i * 7919 + seed) % 97) as f32 / 97.0 - 0.5).to_le_bytes()).collect()
    };
    let mut results = Vec::new();
    for threads in [1, 2, 5] {
        let options = Options { threads, ..Options::default() };
        let mut executable = Executable::new(&context, &module, &schedule, options).expect("native code");
        assert_eq!(executable.packs.len(), 1);
        let mut state = executable.state();
        let port = executable.arguments()[0].clone();
        let mut run = |seed| {
            state.set("x", &port.r#type, &[vec![], vec![]], &values(seed)).expect("x");
            executable.run(&mut state).expect("a run");
            executable.run(&mut state).expect("a run with what was packed");
            state.get("y").expect("y").1
        };
        results.push([run(1), run(2), run(1)]);
    }
    assert!(results.iter().all(|result| *result == results[0]));
    assert_eq!(results[0][0], results[0][2]);
    assert_ne!(results[0][0], results[0][1]);
}

/// A program of one unit, its arguments called `in/<i>` and its results `out/<i>`, run on `inputs`.
fn run_unit(unit: &Unit, inputs: &[Vec<u8>], threads: usize) -> Vec<Vec<u8>> {
    let context = Context::new();
    let types = |types: &[TensorType]| types.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (arguments, results) = (types(&unit.arguments), types(&unit.results));
    let list = |role: &str, types: &[String]| -> Vec<String> {
        types.iter().enumerate().map(|(i, r#type)| format!("%{role}{i}: {type}")).collect()
    };
    let empty: String =
        results.iter().enumerate().map(|(i, r#type)| format!("%r{i} = tensor.empty() : {type}\n")).collect();
    let values: Vec<String> = (0..results.len()).map(|i| format!("%r{i}")).collect();
    let text = format!(
        "func.func @main({}) -> ({}) {{\n{empty}return {} : {}\n}}",
        list("a", &arguments).join(", "),
        results.join(", "),
        values.join(", "),
        results.join(", ")
    );
    let module = context.parse(&text, "unit.mlir").expect("a module");
    let symbol = ensure(module.op(), unit).expect("a unit");
    let buffers: Vec<Buffer> = unit.arguments.iter().chain(&unit.results).map(typed_buffer).collect();
    let (reads, writes) =
        ((0..arguments.len()).collect(), (arguments.len()..buffers.len()).collect::<Vec<_>>());
    let work = Work::Unit { name: unit.kind.name().into(), flops: 1 };
    let compute = Compute { work, kernel: Some(symbol), reads, writes: writes.clone() };
    let mut schedule = schedule(&[], buffers, 0, vec![StepKind::Compute(compute)]);
    schedule.programs[0].arguments = (0..arguments.len()).collect();
    schedule.programs[0].results = writes;
    let options = Options { threads, ..Options::default() };
    let mut executable = Executable::new(&context, &module, &schedule, options).expect("native code");
    let mut state = executable.state();
    for (port, bytes) in executable.arguments().to_vec().iter().zip(inputs) {
        state.set(&port.name, &port.r#type, &port.split, bytes).expect("an input");
    }
    executable.run(&mut state).expect("a run");
    (0..results.len()).map(|i| state.get(&format!("out/{i}")).expect("a result").1).collect()
}

fn typed_buffer(r#type: &TensorType) -> Buffer {
    Buffer { name: String::new(), element: r#type.element, shape: r#type.shape.clone() }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed) % 97) as f32 / 97.0 - 0.5).collect()
}

/// Two groups and two slots of two experts with seven rows each.
const OFFSETS: [i32; 12] = [0, 3, 5, 0, 0, 7, 0, 1, 1, 0, 4, 6];
const P: usize = 2;
const S: usize = 2;
const C: usize = 7;
const L: usize = 2;
const D: usize = 20;
const F: usize = 33;

/// For each row of each place, its expert over all slots.
fn expert_of(place: usize, row: usize) -> Option<usize> {
    let offsets = &OFFSETS[place * (L + 1)..][..L + 1];
    let local = (0..L).find(|&local| (offsets[local]..offsets[local + 1]).contains(&(row as i32)));
    local.map(|local| place % S * L + local)
}

#[test]
fn each_row_is_multiplied_by_its_experts_matrix() {
    let tensor = |shape: [usize; 4]| TensorType::new(shape.map(|extent| extent as u64), Element::F32);
    let (x, w) = (numbers(P * S * C * D, 1), numbers(S * L * F * D, 2));
    let plain = Unit::grouped(&tensor([P, S, C, D]), &tensor([S, L, F, D]), 1);
    let transposed = Unit::grouped_transposed(&tensor([P, S, C, D]), &tensor([S, L, D, F]), 1);
    let mut across = vec![0.0; w.len()];
    for (index, weight) in w.iter().enumerate() {
        let (expert, f, d) = (index / (F * D), index / D % F, index % D);
        across[(expert * D + d) * F + f] = *weight;
    }
    for (unit, w_bytes) in [(plain, bytes(&w)), (transposed, bytes(&across))] {
        let inputs = [bytes(&x), w_bytes, ints(&OFFSETS)];
        let outputs = [1, 3].map(|threads| run_unit(&unit, &inputs, threads).remove(0));
        assert_eq!(outputs[0], outputs[1]);
        for (index, y) in floats(&outputs[0]).into_iter().enumerate() {
            let (place, row, f) = (index / (C * F), index / F % C, index % F);
            let x = &x[(place * C + row) * D..][..D];
            let expected: f32 = expert_of(place, row).map_or(0.0, |expert| {
                x.iter().zip(&w[(expert * F + f) * D..][..D]).map(|(x, w)| x * w).sum()
            });
            assert!((y - expected).abs() < 1e-5, "{index}: {y}, expected {expected}");
        }
    }
}

#[test]
fn experts_gradients_sum_their_rows() {
    let tensor = |shape: [usize; 4]| TensorType::new(shape.map(|extent| extent as u64), Element::F32);
    let (x, dy) = (numbers(P * S * C * D, 1), numbers(P * S * C * F, 2));
    let unit = Unit::grouped_grad(&tensor([P, S, C, D]), &tensor([P, S, C, F]), L as u64);
    let dw = run_unit(&unit, &[bytes(&x), bytes(&dy), ints(&OFFSETS)], 2).remove(0);
    for (index, dw) in floats(&dw).into_iter().enumerate() {
        let (expert, f, d) = (index / (F * D), index / D % F, index % D);
        let rows = (0..P * S * C).filter(|row| expert_of(row / C, row % C) == Some(expert));
        let expected: f32 = rows.map(|row| x[row * D + d] * dy[row * F + f]).sum();
        assert!((dw - expected).abs() < 1e-5, "{index}: {dw}, expected {expected}");
    }
}

#[test]
fn ids_of_any_rank_look_rows_up_and_scatter_gradients() {
    let (table, ids) = (TensorType::new([5, 3], Element::F32), TensorType::new([2, 2], Element::I32));
    let rows =
        run_unit(&Unit::lookup(&table, &ids), &[bytes(&numbers(15, 3)), ints(&[4, 0, 4, 2])], 1).remove(0);
    let of_row = |row: usize| numbers(15, 3)[3 * row..3 * row + 3].to_vec();
    assert_eq!(floats(&rows), [of_row(4), of_row(0), of_row(4), of_row(2)].concat());
    let dout = TensorType::new([2, 2, 3], Element::F32);
    let unit = Unit::lookup_grad(&ids, &dout, 5);
    let gradient = run_unit(&unit, &[ints(&[4, 0, 4, 2]), rows], 1).remove(0);
    let twice: Vec<f32> = of_row(4).iter().map(|value| value + value).collect();
    assert_eq!(floats(&gradient), [of_row(0), vec![0.0; 3], of_row(2), vec![0.0; 3], twice].concat());
}

/// `y[n, d] = erf(x[n, d] · Σ x[n, ·]²)`, of so many rows of 128.
fn sums_of_squares(rows: u64) -> (String, Schedule) {
    let (whole, one) = (format!("tensor<{rows}x128xf32>"), format!("tensor<{rows}xf32>"));
    let text = format!(
        r#"
    func.func private @k(%x: {whole}) -> {whole} attributes {{t3.kernel = "loops"}} {{
      %zero = arith.constant 0.0 : f32
      %e = tensor.empty() : {one}
      %f = linalg.fill ins(%zero : f32) outs(%e : {one}) -> {one}
      %s = linalg.generic {{indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>],
          iterator_types = ["parallel", "reduction"]}} ins(%x : {whole}) outs(%f : {one}) {{
        ^bb0(%v: f32, %o: f32):
          %q = arith.mulf %v, %v : f32
          %r = arith.addf %o, %q : f32
          linalg.yield %r : f32
      }} -> {one}
      %d = tensor.empty() : {whole}
      %y = linalg.generic {{indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>,
          affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}}
          ins(%x, %s : {whole}, {one}) outs(%d : {whole}) {{
        ^bb0(%v: f32, %t: f32, %o: f32):
          %a = arith.mulf %v, %t : f32
          %b = math.erf %a : f32
          linalg.yield %b : f32
      }} -> {whole}
      return %y : {whole}
    }}
    func.func @main(%x: {whole} {{t3.name = "x"}}) -> ({whole} {{t3.name = "y"}}) {{
      return %x : {whole}
    }}"#
    );
    let compute = StepKind::Compute(kernel("k", vec![0], vec![1]));
    (text, schedule(&[], vec![buffer(&[rows, 128]), buffer(&[rows, 128])], 1, vec![compute]))
}

#[test]
fn a_row_of_a_kernel_has_the_bits_of_the_row_alone() {
    let x: Vec<f32> = numbers(5 * 128, 4).into_iter().map(|value| 0.1 * value).collect();
    let (text, schedule) = sums_of_squares(5);
    let together = run(&text, &schedule, &x);
    let (text, schedule) = sums_of_squares(1);
    for (row, together) in x.chunks(128).zip(together.chunks(128)) {
        assert_eq!(run(&text, &schedule, row), together);
        let sum: f32 = row.iter().map(|value| value * value).sum();
        for (value, y) in row.iter().zip(together) {
            // erf(x) = 2 / √π · (x − x³ / 3 + …), and x is small.
            let scaled = f64::from(value * sum);
            let expected = 2.0 / std::f64::consts::PI.sqrt() * (scaled - scaled.powi(3) / 3.0);
            assert!((f64::from(*y) - expected).abs() < 1e-6, "{y}, expected {expected}");
        }
    }
}

#[test]
fn kernels_that_join_a_product_change_no_bit() {
    let n = 128;
    let x: Vec<f32> = numbers(128 * 128, 6);
    let (text, squares) = squares(n, n);
    let product = run(&text, &squares, &x);
    let (text, alone) = sums_of_squares(n);
    let expected = run(&text, &alone, &product);
    let mut both = squares.clone();
    let program = &mut both.programs[0];
    program.buffers.push(buffer(&[n, n]));
    let compute = StepKind::Compute(kernel("k", vec![1], vec![2]));
    program.steps.push(Step { id: 1, after: Vec::new(), location: "here".into(), kind: compute });
    program.results = vec![2];
    for threads in [1, 2, 5] {
        let context = Context::new();
        let module = context.parse(&text, "test.mlir").expect("a module");
        let options = Options { threads, ..Options::default() };
        let mut executable = Executable::new(&context, &module, &both, options).expect("native code");
        assert!(executable.plan.instances[1].joined);
        let mut state = executable.state();
        let port = executable.arguments()[0].clone();
        state.set("x", &port.r#type, &port.split, &bytes(&x)).expect("x");
        executable.run(&mut state).expect("a run");
        assert_eq!(floats(&state.get("y").expect("y").1), expected);
    }
}

/// `y = x / 2` of 4 × 4, and an entry from `x` of 4 × 3 to rows of 4.
const HALF: &str = r#"
module attributes {t3.axes = ["tp"]} {
  shard.grid @grid(shape = 2)
  func.func private @half(%x: tensor<4x4xf32>) -> tensor<4x4xf32> attributes {t3.kernel = "loops"} {
    %half = arith.constant 0.5 : f32
    %init = tensor.empty() : tensor<4x4xf32>
    %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>],
        iterator_types = ["parallel", "parallel"]} ins(%x : tensor<4x4xf32>) outs(%init : tensor<4x4xf32>) {
      ^bb0(%v: f32, %out: f32):
        %s = arith.mulf %v, %half : f32
        linalg.yield %s : f32
    } -> tensor<4x4xf32>
    return %y : tensor<4x4xf32>
  }
  func.func @main(%x: tensor<4x3xf32> {t3.name = "x"})
      -> (tensor<2x4xf32> {t3.name = "y", t3.split = [array<i64: 0>, array<i64>]}) {
    %y = tensor.empty() : tensor<2x4xf32>
    return %y : tensor<2x4xf32>
  }
}"#;

#[test]
fn fused_steps_move_what_any_producer_makes() {
    let contraction = Contraction { extents: vec![4, 4, 3], a: vec![0, 2], b: vec![1, 2], c: vec![0, 1] };
    let product = |to| Compute {
        work: Work::Contraction(contraction.clone()),
        kernel: None,
        reads: vec![0, 0],
        writes: vec![to],
    };
    let fused = |producers, partial| {
        StepKind::Fused(Fused {
            producers,
            collective: collective(CollectiveKind::ReduceScatter, &[0], 0, [partial, 3]),
            shape: vec![4, 4],
            dimension: 0,
            block: 1,
            chunks: configure_ring_reduce_scatter(2),
            result: 3,
        })
    };
    let x: Vec<f32> = (0..12).map(|value| (value % 5) as f32).collect();
    let square = |n: usize, m: usize| (0..3).map(|k| x[3 * n + k] * x[3 * m + k]).sum::<f32>();
    // Two devices' contributions: half of a sum of two products behind it, or one product block by block.
    let behind = fused(vec![product(1), product(1), kernel("half", vec![1], vec![2])], 2);
    for (step, factor) in [(behind, 2.0), (fused(vec![product(2)], 2), 2.0)] {
        let buffers = vec![buffer(&[4, 3]), buffer(&[4, 4]), buffer(&[4, 4]), buffer(&[2, 4])];
        let y = run(HALF, &schedule(&[("tp", 2)], buffers, 3, vec![step]), &x);
        let expected: Vec<f32> = (0..16).map(|index| factor * square(index / 4, index % 4)).collect();
        assert_eq!(y, expected);
    }
}
