//! Small schedules, for the tests of everything that takes one.

use crate::*;

/// A float16 matrix product `m × n × k` a device whose partial results are reduced over `devices`
/// devices along the rows, then gathered: the paper's sub-layer.
pub fn gemm_reduce_scatter(m: u64, n: u64, k: u64, devices: u32) -> Schedule {
    sub_layer([m, n, k], 0, devices, true)
}

/// The same with chunks along `dimension` of the product's result: 0 for rows, 1 for columns.
pub fn gemm_reduce_scatter_along(dimension: usize, m: u64, n: u64, k: u64, devices: u32) -> Schedule {
    sub_layer([m, n, k], dimension, devices, true)
}

/// The same as three steps that nothing fuses: product, all-reduce.
pub fn gemm_all_reduce(m: u64, n: u64, k: u64, devices: u32) -> Schedule {
    sub_layer([m, n, k], 0, devices, false)
}

/// A step that is a fused product over `shape`, with all other dimensions as one.
pub fn fused(shape: &[u64], dimension: usize, block: u64, devices: u32) -> Fused {
    let bytes = shape.iter().product::<u64>() * Element::F16.bytes();
    Fused {
        producers: vec![],
        collective: collective(CollectiveKind::ReduceScatter, dimension, bytes, 2, 3),
        shape: shape.to_vec(),
        dimension,
        block,
        chunks: configure_ring_reduce_scatter(devices),
        result: 3,
    }
}

fn collective(
    kind: CollectiveKind,
    dimension: usize,
    bytes: u64,
    input: BufferId,
    output: BufferId,
) -> Collective {
    Collective {
        kind,
        axes: vec![0],
        dimension,
        concatenate: None,
        reduction: Reduction::Sum,
        bytes,
        algorithm: Algorithm::Ring,
        input,
        output,
    }
}

fn sub_layer([m, n, k]: [u64; 3], dimension: usize, devices: u32, is_fused: bool) -> Schedule {
    let buffer = |name: &str, shape: &[u64]| Buffer {
        name: name.to_owned(),
        element: Element::F16,
        shape: shape.to_vec(),
    };
    // The largest chunk: the first ones hold one index more where the devices do not divide them all.
    let mut chunk = [m, n];
    chunk[dimension] = chunk[dimension].div_ceil(u64::from(devices));
    let buffers = vec![
        buffer("x", &[m, k]),
        buffer("w", &[k, n]),
        buffer("partial", &[m, n]),
        buffer("reduced", &chunk),
        buffer("gathered", &[m, n]),
    ];
    let contraction = Contraction { extents: vec![m, n, k], a: vec![0, 2], b: vec![2, 1], c: vec![0, 1] };
    let producer =
        Compute { work: Work::Contraction(contraction), kernel: None, reads: vec![0, 1], writes: vec![2] };
    let bytes = buffers[2].bytes();
    let kinds = if is_fused {
        vec![
            StepKind::Fused(Fused {
                producers: vec![producer],
                block: 128.min(chunk[dimension]),
                ..fused(&[m, n], dimension, 1, devices)
            }),
            StepKind::Collective(collective(CollectiveKind::AllGather, dimension, bytes, 3, 4)),
        ]
    } else {
        vec![
            StepKind::Compute(producer),
            StepKind::Collective(collective(CollectiveKind::AllReduce, 0, bytes, 2, 4)),
        ]
    };
    let steps = kinds
        .into_iter()
        .enumerate()
        .map(|(id, kind)| Step { id, after: vec![], location: "gemm".to_owned(), kind })
        .collect();
    let mut schedule = Schedule {
        schema: SCHEMA.to_owned(),
        grid: Grid { axes: vec![Axis { name: "tp".to_owned(), size: devices }] },
        programs: vec![Program {
            name: "main".to_owned(),
            buffers,
            arguments: vec![0, 1],
            results: vec![4],
            steps,
        }],
        entry: 0,
    };
    effects::connect(&mut schedule);
    schedule
}
