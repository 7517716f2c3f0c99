//! How fast a reduce-scatter is on this machine, plain and fused, beside its bare additions and stores:
//!
//!     cargo run --release -p t3c-runtime --example reduce_scatter [DEVICES [MEGABYTES [BLOCK_ROWS]]]
//!
//! Each round runs every variant once, after a barrier; a variant's time in a round is that of its
//! slowest device, and the figure is the best round.

use std::time::{Duration, Instant};

use t3c_runtime::layout::Cut;
use t3c_runtime::unsafe_memory::combine_slices;
use t3c_runtime::{DeviceContext, Error, FusedSpec, Options, Runtime, StepKey};
use t3c_schedule::{Axis, Grid, Reduction, configure_ring_reduce_scatter};

const KEY: StepKey = StepKey { program: 0, step: 0 };
const COLUMNS: usize = 1024;
const ROUNDS: usize = 300;
const VARIANTS: [&str; 5] = [
    "barrier",
    "reduce-scatter, plain",
    "the same additions on the device's own memory",
    "stores of the whole value (a producer's own)",
    "the same stores, fused: summed and scattered",
];

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().ok());
    let mut next = |default| arguments.next().flatten().filter(|&value| value > 0).unwrap_or(default);
    let (devices, megabytes, block) = (next(2) as u32, next(4), next(64));
    let rows = (megabytes << 20) / (COLUMNS * size_of::<f32>());
    let spec = FusedSpec {
        key: KEY,
        axes: vec![0],
        shape: vec![rows as u64, COLUMNS as u64],
        dimension: 0,
        block: block as u64,
        reduction: Reduction::Sum,
        chunks: configure_ring_reduce_scatter(devices),
    };
    let grid = Grid { axes: vec![Axis { name: "tp".to_string(), size: devices }] };
    let runtime = Runtime::with_steps(&grid, vec![spec], Options::default())?;
    let cut = Cut { outer: 1, extent: rows, inner: COLUMNS };
    let rounds = runtime.run(|device| measure(device, cut))?;
    let empty = || {
        let started = Instant::now();
        runtime.run(|_| Ok::<(), Error>(())).map(|_| started.elapsed())
    };
    let starts = (0..ROUNDS).map(|_| empty()).collect::<Result<Vec<_>, _>>()?;
    println!("{devices} devices, {megabytes} MB on each, blocks of {block} rows");
    for (variant, name) in VARIANTS.iter().enumerate() {
        let slowest = |round: usize| rounds.iter().map(|device| device[round][variant]).max();
        let best = (0..ROUNDS).filter_map(slowest).min().unwrap_or_default();
        println!("{:9.2} us  {name}", best.as_secs_f64() * 1e6);
    }
    let best = starts.iter().min().copied().unwrap_or_default();
    println!("{:9.2} us  starting and ending an empty program", best.as_secs_f64() * 1e6);
    Ok(())
}

/// The times of each round.
fn measure(device: &DeviceContext<'_>, cut: Cut) -> Result<Vec<[Duration; VARIANTS.len()]>, Error> {
    let group = device.group(&[0])?;
    let own = cut.row(0, &cut.chunk(group.size(), group.position()));
    let (input, other) = (vec![1.5_f32; cut.elements()], vec![2.5_f32; cut.elements()]);
    let mut whole = vec![0.0_f32; cut.elements()];
    let mut output = vec![0.0_f32; own.len()];
    let mut result = vec![0.0_f32; own.len()];
    let mut sources = vec![&other[own.clone()]; group.size() as usize];
    sources[0] = &input[own.clone()];
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut times = [Duration::ZERO; VARIANTS.len()];
        for (variant, time) in times.iter_mut().enumerate() {
            group.barrier()?;
            let started = Instant::now();
            match variant {
                0 => group.barrier()?,
                1 => group.reduce_scatter(&input, &mut output, cut, Reduction::Sum)?,
                2 => combine_slices(&mut output, &sources, Reduction::Sum),
                3 => whole.copy_from_slice(&input),
                _ => fused(device, cut, &input, &mut result)?,
            }
            *time = started.elapsed();
        }
        std::hint::black_box((&whole, &output, &result));
        rounds.push(times);
    }
    Ok(rounds)
}

fn fused(device: &DeviceContext<'_>, cut: Cut, input: &[f32], result: &mut [f32]) -> Result<(), Error> {
    // SAFETY: `result` has the size of the device's chunk. It is freed by `measure`, before `run` has
    // returned; that is sound because every device here runs the same steps and none of them fails.
    let mut run = unsafe { device.begin_fused(KEY, result.as_mut_ptr()) }?;
    for chunk in run.chunks() {
        for block in 0..chunk.blocks {
            let from = cut.row(0, &run.block_range(chunk.position, block));
            run.store(chunk.position, block, |_, to| to.copy_from_slice(&input[from.clone()]))?;
        }
    }
    run.finish()
}
