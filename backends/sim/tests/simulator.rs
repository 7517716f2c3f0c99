//! What must hold of every simulation: bytes counted to the byte, order between policies, one result
//! whether one device stands for all or not, and clear ends for what cannot end.

use proptest::prelude::*;
use t3c_schedule::{
    Chunk, Op, Schedule, StepKind, Store, Trigger,
    testing::{gemm_all_reduce, gemm_reduce_scatter},
};
use t3c_sim::{Error, Options, PolicyReport, Report, System, simulate};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn system() -> System {
    System::open("t3-80cu").unwrap()
}

fn report(schedule: &Schedule) -> Report {
    simulate(schedule, &system(), &Options::default()).unwrap()
}

fn policy<'r>(report: &'r Report, name: &str) -> &'r PolicyReport {
    &report.sublayers[0].policies[name]
}

fn chunks_of(schedule: &mut Schedule) -> &mut Vec<Chunk> {
    match &mut schedule.programs[0].steps[0].kind {
        StepKind::Fused(fused) => &mut fused.chunks,
        _ => unreachable!(),
    }
}

#[test]
fn even_chunks_are_counted_to_the_chunk() {
    for devices in [4u32, 8, 16, 32, 64] {
        let n = u64::from(devices);
        let (rows, columns) = (128 * n, 384);
        let report = report(&gemm_reduce_scatter(rows, columns, 96, devices));
        let chunk = 128 * columns * 2;
        let sequential = policy(&report, "sequential").dram_bytes.by_cause;
        assert_eq!(sequential.rs_reads, (2 * n - 1) * chunk);
        assert_eq!(sequential.gemm_writes + sequential.rs_writes, 2 * n * chunk);
        assert_eq!(sequential.updates, 0);
        for name in ["t3", "t3-mca"] {
            let fused = policy(&report, name).dram_bytes.by_cause;
            assert_eq!(fused.rs_reads, (n - 2) * chunk);
            assert_eq!(fused.updates, (2 * n - 2) * chunk);
            assert_eq!(fused.gemm_writes + fused.rs_writes, fused.updates);
            assert_eq!((fused.ag_reads, fused.ag_writes), ((n - 1) * chunk, (n - 1) * chunk));
        }
        assert_eq!(sequential.ag_reads, (n - 1) * chunk);
        assert_eq!(sequential.ag_writes, (n - 1) * chunk);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// With S the output, f the chunk that device 0 sends first and o its own.
    #[test]
    fn uneven_chunks_are_counted_to_the_byte(m in 1u64..700, n in 1u64..300, k in 1u64..200, devices in 2u32..9) {
        let report = report(&gemm_reduce_scatter(m, n, k, devices));
        let bytes = |chunk| {
            let range = t3c_schedule::chunks::chunk_range(m, devices, chunk % devices);
            (range.end - range.start) * n * 2
        };
        let (s, f, o) = (m * n * 2, bytes(1), bytes(0));
        let sequential = policy(&report, "sequential").dram_bytes.by_cause;
        prop_assert_eq!(sequential.rs_reads, 2 * s - f);
        prop_assert_eq!(sequential.gemm_writes + sequential.rs_writes, 2 * s - f + o);
        let fused = policy(&report, "t3").dram_bytes.by_cause;
        prop_assert_eq!(fused.rs_reads, s - f - o);
        prop_assert_eq!(fused.updates, 2 * (s - f));
        prop_assert_eq!(fused.ag_reads, sequential.ag_reads);
    }

    /// One device that stands for all gives what all of them give.
    #[test]
    fn mirrored_equals_simulated_in_full(rows in 1u64..200, n in 1u64..400, k in 1u64..300, devices in 2u32..6) {
        let schedule = gemm_reduce_scatter(rows * u64::from(devices), n, k, devices);
        let all = Options { all_devices: true, ..Options::default() };
        let (mirrored, all) = (report(&schedule), simulate(&schedule, &system(), &all).unwrap());
        prop_assert_eq!((mirrored.sublayers, mirrored.end_to_end), (all.sublayers, all.end_to_end));
    }

    /// A faster link or memory never makes a policy slower by more than the effects of order.
    #[test]
    fn bandwidth_helps(m in 1u64..20, n in 1u64..20, k in 1u64..2000, devices in 2u32..9, factor in 2u64..8) {
        let schedule = gemm_reduce_scatter(m * 128 * u64::from(devices), n * 128, k, devices);
        let slow = report(&schedule);
        let mut faster_link = system();
        faster_link.link.bandwidth *= factor;
        let mut faster_memory = system();
        faster_memory.memory.bandwidth *= factor;
        for system in [faster_link, faster_memory] {
            let fast = simulate(&schedule, &system, &Options::default()).unwrap();
            for name in ["sequential", "t3", "t3-mca", "ideal-overlap"] {
                let (slow, fast) = (policy(&slow, name).time_us, policy(&fast, name).time_us);
                prop_assert!(fast <= slow * 1.01, "{}: {} to {}", name, slow, fast);
            }
        }
    }
}

/// The numbers of a JSON value, in order.
fn numbers<'v>(value: &'v mut serde_json::Value, found: &mut Vec<&'v mut serde_json::Value>) {
    match value {
        serde_json::Value::Number(_) => found.push(value),
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| numbers(value, found)),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(|value| numbers(value, found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// A schedule with any one or two numbers changed is simulated or refused, in bounded time.
    #[test]
    fn no_schedule_panics(
        at in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(),
        also in any::<prop::sample::Index>(), to_also in any::<prop::sample::Index>(), fused in any::<bool>(),
    ) {
        let schedule = if fused { gemm_reduce_scatter(40, 12, 6, 4) } else { gemm_all_reduce(40, 12, 6, 4) };
        let mut value = serde_json::to_value(schedule).unwrap();
        let values = [0, 1, 2, 3, 5, 64, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX / 2, u64::MAX];
        let mut found = Vec::new();
        numbers(&mut value, &mut found);
        let count = found.len();
        *found[at.index(count)] = values[to.index(values.len())].into();
        *found[also.index(count)] = values[to_also.index(values.len())].into();
        // As a backend would see it, and as a careless caller might pass it on.
        let _ = t3c_schedule::from_json(&value.to_string());
        if let Ok(schedule) = serde_json::from_value::<Schedule>(value) {
            let _ = schedule.to_string();
            let _ = t3c_schedule::verify(&schedule);
            let _ = simulate(&schedule, &system(), &Options::default());
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// A system with any field at an extreme is simulated or refused.
    #[test]
    fn no_system_panics(at in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let counts = [
            "compute.units", "compute.workgroups_per_unit", "compute.tile_rows", "compute.tile_columns",
            "compute.k_step", "compute.matrix_flops_per_cycle_f16", "memory.channels", "memory.queue",
            "memory.burst", "memory.direction_limit", "memory.update_percent", "memory.read_to_write_cycles",
            "trigger.outstanding", "trigger.tracker_entries", "devices",
        ];
        let quantities = [
            ("compute.clock", "Hz"), ("cache.capacity", "B"), ("cache.bandwidth", "MB/s"),
            ("cache.latency", "ps"), ("memory.bandwidth", "MB/s"), ("memory.clock", "Hz"),
            ("memory.access", "B"), ("memory.latency", "ps"), ("link.bandwidth", "MB/s"),
            ("link.latency", "ps"), ("link.packet", "B"), ("trigger.latency", "ps"),
            ("arbitration.starvation", "ps"),
        ];
        let numbers = ["0", "1", "2", "1000000", "1e12", "1e18", "1e30"];
        let index = at.index(counts.len() + quantities.len());
        let number = numbers[to.index(numbers.len())];
        let (key, value) = match counts.get(index) {
            Some(key) => (*key, number.to_owned()),
            None => {
                let (key, unit) = quantities[index - counts.len()];
                (key, format!("{number} {unit}"))
            }
        };
        if let Ok(system) = System::open_with("t3-80cu", &[(key, &value)]) {
            let _ = simulate(&gemm_reduce_scatter(40, 12, 6, 4), &system, &Options::default());
        }
    }
}

#[test]
fn every_tracked_block_fires_once() {
    // 8 chunks of 1000 rows in blocks of 128: 8 blocks each, the first chunk untracked.
    let report = report(&gemm_reduce_scatter(8000, 256, 64, 8));
    assert_eq!(policy(&report, "t3").blocks_fired, 7 * 8);
    assert_eq!(policy(&report, "sequential").blocks_fired, 0);
    assert!(policy(&report, "t3").tracker_peak > 0);
}

#[test]
fn policies_are_ordered_where_transfer_matters() {
    for (m, n, k) in [(16384, 3072, 1536), (8192, 4256, 2128), (8192, 4256, 1596)] {
        let report = report(&gemm_reduce_scatter(m, n, k, 8));
        let time = |name| policy(&report, name).time_us;
        assert!(time("ideal-overlap") <= time("t3"), "{m}x{n}x{k}");
        assert!(time("t3-mca") <= time("t3"), "{m}x{n}x{k}");
        assert!(time("t3") < time("sequential"), "{m}x{n}x{k}");
        assert!(time("ideal-overlap+nmc") <= time("ideal-overlap"), "{m}x{n}x{k}");
    }
}

#[test]
fn the_same_input_gives_the_same_output() {
    let schedule = gemm_reduce_scatter(4096, 1024, 512, 8);
    assert_eq!(report(&schedule), report(&schedule));
}

#[test]
fn what_is_not_fused_runs_in_sequence() {
    let report = report(&gemm_all_reduce(1024, 512, 256, 4));
    let layer = &report.sublayers[0];
    assert!(!layer.fused);
    assert_eq!(layer.policies["t3"].time_us, layer.policies["sequential"].time_us);
    assert!(layer.speedup["ideal-overlap"] > 1.0);
    assert_eq!(policy(&report, "sequential").parts.len(), 3, "product, reduce-scatter, all-gather");
}

#[test]
fn calls_multiply_and_equal_layers_are_reported_once_a_step() {
    let mut schedule = gemm_reduce_scatter(1024, 512, 256, 4);
    let once = report(&schedule);
    let mut main = schedule.programs[0].clone();
    main.name = "twice".to_owned();
    let call = |program| StepKind::Call { program, arguments: vec![0, 1], results: vec![4] };
    for step in &mut main.steps {
        step.kind = call(0);
    }
    schedule.programs.push(main);
    schedule.entry = 1;
    t3c_schedule::connect(&mut schedule);
    let twice = report(&schedule);
    assert_eq!(twice.sublayers.len(), 1);
    assert_eq!(twice.sublayers[0].calls, 2);
    assert_eq!(twice.end_to_end.time_us["t3"], 2.0 * once.end_to_end.time_us["t3"]);
}

#[test]
fn an_address_space_of_direct_stores_runs_too() {
    let mut schedule = gemm_reduce_scatter(1024, 512, 256, 4);
    let remote = |relative| Chunk {
        relative,
        store: Store::Remote(relative),
        op: Op::Store,
        threshold: 0,
        trigger: Trigger::None,
    };
    let own =
        Chunk { relative: 0, store: Store::Local, op: Op::Store, threshold: 4, trigger: Trigger::Reduce };
    *chunks_of(&mut schedule) = vec![remote(1), remote(2), remote(3), own];
    let mut connected = system();
    connected.link.topology = t3c_sim::system::Topology::FullyConnected;
    let report = simulate(&schedule, &connected, &Options::default()).unwrap();
    let fused = policy(&report, "t3").dram_bytes.by_cause;
    let chunk = 256 * 512 * 2;
    // Four contributions in their slots, read and added by the owner.
    assert_eq!((fused.gemm_writes, fused.rs_writes, fused.rs_reads), (chunk, 4 * chunk, 4 * chunk));
    assert_eq!(fused.updates, 0);
}

#[test]
fn a_deadlock_names_who_waits() {
    let mut schedule = gemm_reduce_scatter(512, 128, 64, 4);
    chunks_of(&mut schedule)[1].threshold = 3;
    let error = simulate(&schedule, &system(), &Options::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "gemm: deadlock, 3 trackers wait: device 0, chunk +0, block 0 (128 indices) has 1 of 2 updates; \
         device 0, chunk +2, block 0 (128 indices) has 2 of 3 updates; \
         device 0, chunk +3, block 0 (128 indices) has 1 of 2 updates"
    );
}

#[test]
fn an_overrun_is_an_error() {
    let mut schedule = gemm_reduce_scatter(512, 128, 64, 4);
    chunks_of(&mut schedule)[2].threshold = 1;
    let error = simulate(&schedule, &system(), &Options::default()).unwrap_err().to_string();
    assert_eq!(error, "gemm: device 0, chunk +3, block 0 received more updates than its threshold");
}

#[test]
fn what_runs_but_does_not_reduce_is_an_error() {
    let mut schedule = gemm_reduce_scatter(512, 128, 64, 4);
    let chunks = chunks_of(&mut schedule);
    // The first chunk stays at home and nothing is expected in its place.
    chunks[0].store = Store::Local;
    chunks[1].threshold = 1;
    let error = simulate(&schedule, &system(), &Options::default());
    assert!(matches!(error, Err(Error::Schedule(_))), "{error:?}");
}

#[test]
fn a_group_beyond_the_machine_is_refused() {
    let error = simulate(&gemm_reduce_scatter(1300, 8, 8, 65), &system(), &Options::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "gemm: a group of 65 devices on system `t3-80cu`, which connects 64"
    );
}

#[test]
fn the_report_has_the_fixed_fields() {
    let value = serde_json::to_value(report(&gemm_reduce_scatter(1024, 512, 256, 4))).unwrap();
    assert_eq!(value["schema"], "t3c.simulate/1");
    let layer = &value["sublayers"][0];
    assert_eq!((layer["name"].as_str(), layer["phase"].as_str()), (Some("gemm"), Some("prefill")));
    assert!(layer["policies"]["sequential"]["time_us"].as_f64().unwrap() > 0.0);
    assert_eq!(layer["policies"]["sequential"]["dram_bytes"]["rs_reads"], 7 * 256 * 512 * 2);
    assert!(layer["speedup"]["ideal-overlap+nmc"].as_f64().unwrap() > 1.0);
    assert!(value["geomean"]["t3"].as_f64().unwrap() > 1.0);
    assert!(value["end_to_end"]["time_us"]["t3-mca"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_trace_holds_waves_links_and_levels() {
    let options = Options { trace: true, ..Options::default() };
    let report = simulate(&gemm_reduce_scatter(1024, 1024, 256, 4), &system(), &options).unwrap();
    let value = t3c_sim::trace::to_json(&report.traces);
    let events = value["traceEvents"].as_array().unwrap();
    let has = |phase: &str, name: &str| {
        events.iter().any(|event| {
            let label = if phase == "M" { &event["args"]["name"] } else { &event["name"] };
            event["ph"] == phase && label.as_str().is_some_and(|text| text.contains(name))
        })
    };
    assert!(has("M", "gemm: t3-mca"));
    assert!(has("X", "wave 0") && has("X", "track-and-trigger") && has("X", "busy"));
    assert!(
        has("C", "packets of transfers") && has("C", "tracked tiles") && has("C", "memory: communication")
    );
    let untraced =
        simulate(&gemm_reduce_scatter(1024, 1024, 256, 4), &system(), &Options::default()).unwrap();
    assert_eq!(untraced.sublayers, report.sublayers, "watching changes nothing");
}
