//! The simulator beside measurements on real machines. Each machine has one figure that one of its
//! parameters was set by; what is compared here is everything else. `-- --nocapture` prints the errors.

use t3c_schedule::testing::gemm_reduce_scatter;
use t3c_sim::{
    Options, Policy, System,
    evaluation::{cases, split::contention},
    simulate,
};

/// Milliseconds of the product and of the reduce-scatter after it.
fn times(system: &System, m: u64, n: u64, k: u64, devices: u32) -> (f64, f64) {
    let options = Options { policies: vec![Policy::Sequential], ..Options::default() };
    let report = simulate(&gemm_reduce_scatter(m, n, k, devices), system, &options).unwrap();
    let parts = &report.sublayers[0].policies["sequential"].parts;
    (parts[0].time_us / 1000.0, parts[1].time_us / 1000.0)
}

/// Products, then NCCL's reduce-scatter, on H100s: rows, columns, reduction indices of all devices,
/// devices, milliseconds. Sources: bytedance/flux issue 90; Triton-distributed pull request 166.
const H100: [(u64, u64, u64, u32, f64); 12] = [
    (1024, 8192, 28672, 8, 0.180),
    (2048, 8192, 28672, 8, 0.2895),
    (4096, 8192, 28672, 8, 0.542),
    (8192, 8192, 28672, 8, 1.040),
    (16384, 8192, 28672, 8, 2.011),
    (32768, 8192, 28672, 8, 3.978),
    (4096, 4096, 8192, 2, 0.275),
    (4096, 4096, 8192, 4, 0.205),
    (4096, 4096, 8192, 8, 0.167),
    (8192, 8192, 29568, 2, 3.077),
    (8192, 8192, 29568, 4, 1.707),
    (8192, 8192, 29568, 8, 1.045),
];

#[test]
fn products_and_reduce_scatters_on_h100() {
    let system = System::open("h100-x8").unwrap();
    for (m, n, k, devices, measured) in H100 {
        let (product, reduce_scatter) = times(&system, m, n, k / u64::from(devices), devices);
        let error = (product + reduce_scatter) / measured - 1.0;
        let allowed = if m >= 8192 { 0.07 } else { 0.15 };
        println!("{m}x{n}x{k} on {devices}: {:+.1} %", 100.0 * error);
        assert!(error.abs() < allowed, "{m}x{n}x{k} on {devices}: {:+.1} %", 100.0 * error);
    }
}

/// Products on one MI210: rows, columns and reduction indices, milliseconds.
/// Source: LLMCompass, real_hardware/matmul_MI210.csv.
const MI210: [(u64, u64, f64); 13] = [
    (32, 12288, 0.5493),
    (128, 12288, 0.5932),
    (512, 12288, 1.4054),
    (1024, 12288, 2.7173),
    (2048, 12288, 5.3905),
    (4096, 12288, 10.4494),
    (8192, 256, 0.0485),
    (8192, 512, 0.0863),
    (8192, 1024, 0.1950),
    (8192, 2048, 0.5822),
    (8192, 4096, 2.2901),
    (8192, 8192, 9.4150),
    (8192, 16384, 36.7552),
];

/// A call that waits for its result costs 34 us (LLMCompass's own constant for these measurements), more than
/// a launch that nobody waits for.
#[test]
fn products_on_mi210() {
    let system = System::open_with("mi210-x4", &[("compute.kernel_launch", "34 us")]).unwrap();
    for (m, n, measured) in MI210 {
        let (product, _) = times(&system, m, n, n, 2);
        let error = product / measured - 1.0;
        println!("{m}x{n}x{n}: {:+.1} %", 100.0 * error);
        // A hundred rows and fewer run slower than the model says: what rocBLAS does for them is not
        // modelled. The model must not err on the other side.
        let allowed = if m <= 128 { -0.55..0.15 } else { -0.10..0.10 };
        assert!(allowed.contains(&error), "{m}x{n}x{n}: {:+.1} %", 100.0 * error);
    }
}

/// Products of a GPT-3 layer on one of four A100s: columns and reduction indices of 16384 rows,
/// milliseconds. Source: LLMCompass, transformer_A100.csv. The first MLP product set the clock.
const A100: [(u64, u64, f64); 3] = [(9216, 12288, 13.72), (12288, 3072, 4.54), (12288, 12288, 17.49)];

#[test]
fn products_on_a100() {
    let system = System::open("a100-x8").unwrap();
    for (n, k, measured) in A100 {
        let (product, _) = times(&system, 16384, n, k, 2);
        let error = product / measured - 1.0;
        println!("16384x{n}x{k}: {:+.1} %", 100.0 * error);
        assert!(error.abs() < 0.06, "16384x{n}x{k}: {:+.1} %", 100.0 * error);
    }
}

/// NCCL's reduce-scatter on eight A100s: MiB, milliseconds. Source: aiconfigurator. Its ends set the link.
const A100_REDUCE_SCATTER: [(u64, f64); 6] =
    [(16, 0.1234), (32, 0.2100), (64, 0.3272), (128, 0.6240), (256, 1.1495), (512, 2.2071)];

#[test]
fn reduce_scatters_on_a100() {
    let system = System::open("a100-x8").unwrap();
    for (size, measured) in A100_REDUCE_SCATTER {
        let (_, reduce_scatter) = times(&system, 8192, (size << 20) / 2 / 8192, 8, 8);
        let error = reduce_scatter / measured - 1.0;
        println!("{size} MiB: {:+.1} %", 100.0 * error);
        assert!(error.abs() < 0.15, "{size} MiB: {:+.1} %", 100.0 * error);
    }
}

/// Compute slows by 18.9 % on average and 40 % at most when overlapped with a collective on four GPUs, A100s
/// among them (arXiv 2507.03114). Here with NCCL's 24 channels, each a unit.
#[test]
fn contention_on_four_a100s() {
    let system = System::open("a100-x8").unwrap();
    let mut slower = Vec::new();
    for mut case in cases().into_iter().filter(|case| case.is_main && case.devices == 8) {
        (case.devices, case.shape[2]) = (4, 2 * case.shape[2]);
        slower.push(contention(&case, &system, 24).unwrap() - 1.0);
    }
    let mean = slower.iter().sum::<f64>() / slower.len() as f64;
    println!("{:.1} % on average of {:.3?}", 100.0 * mean, slower);
    assert!((0.12..0.26).contains(&mean), "{mean}");
    assert!(slower.iter().all(|slower| (0.0..0.40).contains(slower)), "{slower:?}");
}

/// Overlap in software loses for small products on H100s (kraken issue 19, up to 1024 rows; Triton-distributed falls
/// back to the sequence below 10¹¹ operations a device) and can win for large ones.
#[test]
fn small_products_are_not_worth_overlapping_in_software() {
    let system = System::open("h100-x8").unwrap();
    let speedup = |m, n, k| {
        let policies = vec![Policy::CuSplit8, Policy::CuSplit16];
        let options = Options { policies, ..Options::default() };
        let report = simulate(&gemm_reduce_scatter(m, n, k, 8), &system, &options).unwrap();
        report.sublayers[0].speedup.values().copied().fold(0.0, f64::max)
    };
    for (m, n, k) in [(512, 4096, 14336), (1024, 4096, 14336), (4096, 4096, 1024), (8192, 8192, 3696)] {
        let operations = (2 * m * n * k) as f64;
        println!("{m}x{n}x{k}, {operations:.1e} operations: {:.2}", speedup(m, n, k));
    }
    assert!(speedup(512, 4096, 14336) < 1.0);
    assert!(speedup(1024, 4096, 14336) < 1.0);
    assert!(speedup(8192, 8192, 3696) > 1.0);
    assert!(speedup(4096, 4096, 1024) < 1.0);
}
