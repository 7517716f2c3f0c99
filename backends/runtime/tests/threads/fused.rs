//! Fused reduce-scatters: any number of devices, dimension, size and block, many times in a row.

use proptest::prelude::*;
use t3c_runtime::layout::Cut;
use t3c_runtime::{Delays, Error, Event, EventKind, FusedSpec, Options, Runtime, StepKey};
use t3c_schedule::{Reduction, Trigger};

use crate::reference::{KEY, bits, direct, line, partial, reduced, run_fused, spec};

/// Runs `epochs` executions and compares each with the reference and with the unfused collective.
fn check(devices: u32, spec: FusedSpec, epochs: u64, delays: Option<Delays>) {
    let cut = Cut::of(&spec.shape, spec.dimension).unwrap();
    let options = Options { delays, ..Options::default() };
    let runtime = Runtime::with_steps(&line(devices), vec![spec.clone()], options).unwrap();
    let run = runtime.run(|device| {
        for epoch in 0..epochs {
            let whole = partial(device.device(), epoch, cut.elements());
            let fused = run_fused(device, &spec, &whole)?;
            let want = reduced(cut, devices, device.device(), epoch);
            assert_eq!(bits(&fused), bits(&want), "device {} epoch {epoch}", device.device());
            if epoch % 16 == 0 {
                let mut unfused = vec![0.0; fused.len()];
                device.group(&[0])?.reduce_scatter(&whole, &mut unfused, cut, Reduction::Sum)?;
                assert_eq!(bits(&fused), bits(&unfused));
            }
        }
        Ok::<(), Error>(())
    });
    run.unwrap();
}

#[test]
fn every_number_of_devices_both_dimensions_and_all_blocks() {
    for devices in 1..9 {
        for dimension in 0..2 {
            for block in [1, 2, 3, 19] {
                check(devices, spec(devices, &[19, 17], dimension, block), 3, None);
            }
        }
    }
}

#[test]
fn hundreds_of_steps_in_a_row_under_random_delays() {
    for (devices, dimension, seed) in [(2, 0, 1), (2, 1, 2), (3, 0, 3), (4, 1, 4), (5, 0, 5), (8, 1, 6)] {
        let delays = Some(Delays::seeded(seed));
        check(devices, spec(devices, &[16, 11], dimension, 2), 300, delays);
    }
}

#[test]
fn the_direct_map_gives_the_same_bits() {
    for devices in 1..7 {
        let ring = spec(devices, &[13, 5], 0, 2);
        check(devices, FusedSpec { chunks: direct(devices), ..ring }, 40, Some(Delays::seeded(9)));
    }
}

#[test]
fn chunks_may_be_empty() {
    check(8, spec(8, &[5, 3], 0, 1), 50, Some(Delays::seeded(3)));
}

#[test]
fn different_steps_alternate_and_the_pool_is_reused() {
    let specs: Vec<FusedSpec> = (0..3)
        .map(|step| FusedSpec {
            key: StepKey { program: 1, step },
            block: 1 + step as u64,
            ..spec(3, &[9, 4], step % 2, 1)
        })
        .collect();
    let options = Options { delays: Some(Delays::seeded(11)), ..Options::default() };
    let runtime = Runtime::with_steps(&line(3), specs.clone(), options).unwrap();
    for call in 0..20 {
        let run = runtime.run(|device| {
            for layer in 0..12 {
                let spec = &specs[layer % 3];
                let epoch = call * 12 + layer as u64;
                let cut = Cut::of(&spec.shape, spec.dimension).unwrap();
                let fused = run_fused(device, spec, &partial(device.device(), epoch, cut.elements()))?;
                assert_eq!(bits(&fused), bits(&reduced(cut, 3, device.device(), epoch)));
            }
            Ok::<(), Error>(())
        });
        run.unwrap();
    }
}

#[test]
fn workers_see_the_chunk_order_of_the_schedule() {
    let devices = 4;
    let spec = spec(devices, &[16, 3], 0, 2);
    let options = Options { trace: true, ..Options::default() };
    let runtime = Runtime::with_steps(&line(devices), vec![spec.clone()], options).unwrap();
    let run = runtime.run(|device| {
        (0..3).try_for_each(|epoch| run_fused(device, &spec, &partial(device.device(), epoch, 48)).map(drop))
    });
    run.unwrap();
    let trace = runtime.take_trace();
    for (device, epoch) in (0..devices).flat_map(|device| (0..3).map(move |epoch| (device, epoch))) {
        let of = |event: &&Event| event.device == device && event.epoch == epoch && event.step == KEY;
        let kinds = |wanted: fn(&EventKind) -> bool| trace.iter().filter(of).filter(move |e| wanted(&e.kind));
        let mut produced: Vec<u32> = kinds(|kind| *kind == EventKind::Produced).map(|e| e.chunk).collect();
        assert_eq!(produced.len(), 8);
        produced.dedup();
        let schedule: Vec<u32> = spec.chunks.iter().map(|chunk| chunk.index(device, devices)).collect();
        assert_eq!(produced, schedule);
        let triggers = |wanted: fn(&Trigger) -> bool| {
            2 * spec.chunks.iter().filter(|chunk| wanted(&chunk.trigger)).count()
        };
        let sent = kinds(|kind| matches!(kind, EventKind::Sent { .. })).count();
        assert_eq!(sent, triggers(|trigger| matches!(trigger, Trigger::Dma { .. })));
        let done = kinds(|kind| *kind == EventKind::Done).count();
        assert_eq!(done, triggers(|trigger| *trigger == Trigger::Done));
        assert_eq!(kinds(|kind| *kind == EventKind::Incoming).count(), sent + done);
    }
    assert!(runtime.take_trace().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape(
        devices in 1_u32..7,
        shape in proptest::collection::vec(1_u64..9, 1..4),
        dimension in 0_usize..3,
        block in 1_u64..6,
        seed in any::<u64>(),
    ) {
        let dimension = dimension % shape.len();
        check(devices, spec(devices, &shape, dimension, block), 6, Some(Delays::seeded(seed)));
    }
}
