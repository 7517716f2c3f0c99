//! What must hold of collectives, topologies, trackers and unequal devices, beside the ring that the paper has.

use proptest::prelude::*;
use t3c_schedule::{
    Algorithm, Buffer, Collective, CollectiveKind, Compute, Consume, Contraction, Element, Fused, Schedule,
    Step, StepKind, Work, configure_all_to_all, configure_arrivals, configure_direct_reduce_scatter,
    testing::gemm_reduce_scatter,
};
use t3c_sim::{
    Options, Policy, Report, System, Traffic,
    evaluation::{self, split::split},
    page, simulate,
    system::{Straggler, Topology},
};

fn system() -> System {
    System::open("t3-80cu").unwrap()
}

fn on(topology: Topology) -> System {
    let mut system = system();
    system.link.topology = topology;
    system
}

fn run(schedule: &Schedule, system: &System) -> Report {
    simulate(schedule, system, &Options::default()).unwrap()
}

fn traffic(report: &Report, policy: &str) -> Traffic {
    report.sublayers[0].policies[policy].dram_bytes.by_cause
}

fn time(report: &Report, policy: &str) -> f64 {
    report.sublayers[0].policies[policy].time_us
}

fn fused(schedule: &mut Schedule) -> &mut Fused {
    match &mut schedule.programs[0].steps[0].kind {
        StepKind::Fused(fused) => fused,
        _ => unreachable!(),
    }
}

/// The same reduce-scatter, every chunk straight to its owner.
fn direct(m: u64, n: u64, k: u64, devices: u32) -> Schedule {
    let mut schedule = gemm_reduce_scatter(m, n, k, devices);
    let fused = fused(&mut schedule);
    fused.collective.algorithm = Algorithm::Direct;
    fused.chunks = configure_direct_reduce_scatter(devices);
    schedule
}

/// A gather of `m × k` and a product that reads it.
fn gather_and_product(m: u64, n: u64, k: u64, devices: u32, algorithm: Algorithm) -> Schedule {
    let mut schedule = gemm_reduce_scatter(m, n, k, devices);
    let buffer = |name: &str, shape: &[u64]| Buffer {
        name: name.to_owned(),
        element: Element::F16,
        shape: shape.to_vec(),
    };
    let collective = Collective {
        kind: CollectiveKind::AllGather,
        bytes: m * k * 2,
        algorithm,
        input: 0,
        output: 1,
        ..fused(&mut schedule).collective.clone()
    };
    let contraction = Contraction { extents: vec![m, n, k], a: vec![0, 2], b: vec![2, 1], c: vec![0, 1] };
    let reader =
        Compute { work: Work::Contraction(contraction), kernel: None, reads: vec![1, 2], writes: vec![3] };
    let arrivals = configure_arrivals(CollectiveKind::AllGather, algorithm, devices).unwrap();
    let consume = Consume { collective, dimension: 0, arrivals, block: 128, consumers: vec![reader] };
    let program = &mut schedule.programs[0];
    program.buffers = vec![
        buffer("part", &[m / u64::from(devices), k]),
        buffer("whole", &[m, k]),
        buffer("w", &[k, n]),
        buffer("y", &[m, n]),
    ];
    (program.arguments, program.results) = (vec![0, 2], vec![3]);
    program.steps =
        vec![Step { id: 0, after: vec![], location: "gather".to_owned(), kind: StepKind::Consume(consume) }];
    schedule
}

#[test]
fn direct_transfers_are_counted_to_the_chunk() {
    let (chunk, n) = (256 * 512 * 2, 4);
    for topology in [Topology::FullyConnected, Topology::Switch, Topology::Ring] {
        let report = run(&direct(1024, 512, 256, 4), &on(topology));
        let alone = traffic(&report, "sequential");
        assert_eq!(alone.rs_reads, (2 * n - 1) * chunk, "each part sent, then all read: {topology:?}");
        assert_eq!(alone.gemm_writes + alone.rs_writes, 2 * n * chunk);
        let fused = traffic(&report, "t3");
        // The product's stores are the transfer: the owner alone reads.
        assert_eq!((fused.gemm_writes, fused.rs_writes, fused.rs_reads), (chunk, n * chunk, n * chunk));
        assert_eq!((fused.ag_reads, fused.ag_writes), ((n - 1) * chunk, (n - 1) * chunk));
    }
}

#[test]
fn a_reducing_switch_delivers_sums_and_copies() {
    let (chunk, n) = (256 * 512 * 2, 4);
    let report = run(&direct(1024, 512, 256, 4), &on(Topology::ReducingSwitch));
    let alone = traffic(&report, "sequential");
    assert_eq!((alone.rs_reads, alone.rs_writes), (n * chunk, chunk), "each part once up, the sum once down");
    assert_eq!((alone.ag_reads, alone.ag_writes), (chunk, (n - 1) * chunk), "one part up, copies down");
    let fused = traffic(&report, "t3");
    assert_eq!((fused.rs_writes, fused.rs_reads), (2 * chunk, 2 * chunk), "the others' sum, and the total");
    // Parts, the own one too, and one part to gather; through a plain switch the others' parts, twice.
    let sent = |report: &Report| report.sublayers[0].policies["sequential"].link_bytes;
    assert_eq!(sent(&report), (n + 1) * chunk);
    assert_eq!(sent(&run(&direct(1024, 512, 256, 4), &on(Topology::Switch))), 2 * (n - 1) * chunk);
}

#[test]
fn software_overlap_moves_what_the_sequence_moves() {
    let report = run(&gemm_reduce_scatter(1024, 512, 256, 8), &system());
    let alone = traffic(&report, "sequential");
    for policy in ["cu-split-8", "cu-split-16"] {
        let split = traffic(&report, policy);
        assert_eq!((split.rs_reads, split.rs_writes), (alone.rs_reads, alone.rs_writes), "{policy}");
        assert_eq!((split.gemm_writes, split.updates), (alone.gemm_writes, 0), "{policy}");
    }
}

#[test]
fn fewer_units_make_a_collective_slower() {
    let cases: Vec<_> = evaluation::cases().into_iter().take(4).collect();
    let [ideal, eight, sixteen] = [0, 8, 16].map(|units| split(&cases, &system(), units).unwrap());
    assert_eq!((ideal.all_reduce, ideal.product), (1.0, 1.0));
    assert!(eight.all_reduce > sixteen.all_reduce && sixteen.all_reduce >= 1.0);
    assert!(sixteen.product > eight.product && eight.product > 1.0);
    assert!(ideal.potential > eight.potential.max(sixteen.potential));
}

#[test]
fn a_full_tracker_spills_and_loses_nothing() {
    let schedule = gemm_reduce_scatter(8192, 2048, 128, 8);
    let mut small = system();
    (small.trigger.tracker_entries, small.trigger.tracker_ways) = (1, 1);
    let mut large = system();
    large.trigger.tracker_entries = 1 << 16;
    let (small, large) = (run(&schedule, &small), run(&schedule, &large));
    let (spilled, kept) = (traffic(&small, "t3"), traffic(&large, "t3"));
    assert!(spilled.tracker_spills > 0);
    assert_eq!(kept.tracker_spills, 0);
    assert_eq!(Traffic { tracker_spills: 0, ..spilled }, kept);
    let fired = |report: &Report| report.sublayers[0].policies["t3"].blocks_fired;
    assert_eq!(fired(&small), fired(&large));
    assert!(time(&small, "t3") > time(&large, "t3"));
}

#[test]
fn one_slow_device_holds_up_all() {
    let schedule = gemm_reduce_scatter(2048, 1024, 2048, 4);
    let even = run(&schedule, &system());
    let straggler = |compute_percent, link_percent| {
        let straggler = Some(Straggler { device: 2, compute_percent, link_percent });
        run(&schedule, &System { straggler, ..system() })
    };
    let same = straggler(100, 100);
    assert_eq!(same.sublayers[0].policies, even.sublayers[0].policies, "a straggler at full speed is none");
    for policy in ["sequential", "t3", "t3-mca", "ideal-overlap"] {
        let (even, slow) = (time(&even, policy), time(&straggler(50, 100), policy));
        assert!(slow > even && slow < 2.0 * even, "{policy}: {even} to {slow}");
        assert!(time(&straggler(100, 25), policy) > even, "{policy}");
    }
}

#[test]
fn readers_begin_before_a_gather_ends() {
    for (algorithm, topology) in
        [(Algorithm::Ring, Topology::Ring), (Algorithm::Direct, Topology::FullyConnected)]
    {
        let schedule = gather_and_product(4096, 2048, 2048, 8, algorithm);
        let report = run(&schedule, &on(topology));
        assert_eq!(report.sublayers.len(), 1);
        assert!(report.sublayers[0].fused);
        let alone = traffic(&report, "sequential");
        for policy in ["t3", "t3-mca"] {
            assert!(time(&report, policy) < time(&report, "sequential"), "{policy}, {algorithm:?}");
            let consumed = traffic(&report, policy);
            assert_eq!((consumed.ag_reads, consumed.ag_writes), (alone.ag_reads, alone.ag_writes));
            assert_eq!(consumed.gemm_writes, alone.gemm_writes);
        }
        let parts = &report.sublayers[0].policies["sequential"].parts;
        assert_eq!(parts.iter().map(|part| part.name).collect::<Vec<_>>(), ["all-gather", "gemm"]);
    }
}

#[test]
fn a_product_feeds_an_exchange_piece_by_piece() {
    let mut schedule = gemm_reduce_scatter(2048, 1024, 1024, 4);
    let step = fused(&mut schedule);
    step.collective.kind = CollectiveKind::AllToAll;
    step.collective.algorithm = Algorithm::Direct;
    step.collective.concatenate = Some(0);
    step.chunks = configure_all_to_all(4);
    let program = &mut schedule.programs[0];
    program.steps.truncate(1);
    program.buffers[3].shape = vec![2048, 1024];
    program.results = vec![3];
    let report = run(&schedule, &on(Topology::Switch));
    let chunk = 512 * 1024 * 2;
    let fused = traffic(&report, "t3");
    assert_eq!((fused.gemm_writes, fused.rs_writes, fused.rs_reads), (chunk, 3 * chunk, 0));
    let alone = traffic(&report, "sequential");
    assert_eq!((alone.rs_reads, alone.rs_writes), (3 * chunk, 3 * chunk));
    assert!(time(&report, "t3") < time(&report, "sequential"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// One device stands for all on every topology, for ring, direct and consumed collectives.
    #[test]
    fn mirrored_equals_simulated_in_full(
        rows in 1u64..100, n in 1u64..300, k in 1u64..200, devices in 2u32..6,
        topology in prop::sample::select(vec![
            Topology::Ring, Topology::FullyConnected, Topology::Switch, Topology::ReducingSwitch,
        ]),
        kind in 0..3,
    ) {
        let m = rows * u64::from(devices);
        let schedule = match kind {
            0 => gemm_reduce_scatter(m, n, k, devices),
            1 => direct(m, n, k, devices),
            _ => gather_and_product(m, n, k, devices, Algorithm::Ring),
        };
        let system = on(topology);
        let all = Options { all_devices: true, ..Options::default() };
        let (one, all) = (run(&schedule, &system), simulate(&schedule, &system, &all).unwrap());
        for policy in Policy::ALL {
            let (one, all) = (&one.sublayers[0].policies[policy.name()], &all.sublayers[0].policies[policy.name()]);
            prop_assert_eq!(one.dram_bytes, all.dram_bytes);
            prop_assert_eq!(one.time_us, all.time_us, "{}", policy.name());
        }
    }
}

#[test]
fn a_page_stands_alone() {
    let options = Options { trace: true, ..Options::default() };
    let report = simulate(&gemm_reduce_scatter(1024, 512, 256, 4), &system(), &options).unwrap();
    let shown = [("1", &report), ("2", &report)]
        .map(|(value, report)| page::Shown { value: value.to_owned(), report });
    for text in [
        page::simulation(&shown[..1], None, "a <model>"),
        page::simulation(&shown, Some("link.latency"), "a model"),
    ] {
        assert!(text.matches("<svg").count() >= 4);
        assert!(!text.contains("http") && !text.contains("<script") && !text.contains("NaN"));
        assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    }
    assert!(page::simulation(&shown[..1], None, "a <model>").contains("a &lt;model&gt;"));
}
