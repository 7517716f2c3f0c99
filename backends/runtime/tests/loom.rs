//! The protocol under every interleaving (within a bound on preemptions) that `loom` can make:
//! `RUSTFLAGS="--cfg loom" cargo test -p t3c-runtime --test loom --release`.
//!
//! A lost trigger is a model that never ends, which loom reports; an overwritten block, or one read too
//! early, is an access to its cell that nothing orders, or a wrong sum; two adders write one cell.
#![cfg(loom)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use t3c_runtime::FusedRun;
use t3c_runtime::StepKey;
use t3c_runtime::hooks::Hooks;
use t3c_runtime::plan::{FusedSpec, Plan};
use t3c_runtime::protocol::FusedStep;
use t3c_runtime::tracker::{Arrival, Tracker};
use t3c_runtime::transport::{Board, Call, Delivery, Exchange, Slot, Threads, Transport};
use t3c_runtime::watch::Watch;
use t3c_schedule::{Chunk, Op, Reduction, Store, Trigger, configure_ring_reduce_scatter, ring};

fn model(preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(scenario);
}

fn value(device: u32, epoch: u64, row: usize) -> f32 {
    (1 + device) as f32 * 1.1 + epoch as f32 * 17.3 + row as f32 * 1e5
}

fn spec(chunks: Vec<Chunk>, rows: u64) -> FusedSpec {
    FusedSpec {
        key: StepKey { program: 0, step: 0 },
        axes: vec![0],
        shape: vec![rows],
        dimension: 0,
        block: 1,
        reduction: Reduction::Sum,
        chunks,
    }
}

fn step(chunks: Vec<Chunk>, rows: u64) -> Arc<FusedStep> {
    let members = (0..chunks.len() as u32).collect();
    let (watch, hooks) = (Arc::new(Watch::default()), Arc::new(Hooks::default()));
    Arc::new(FusedStep::new(&spec(chunks, rows), members, watch, hooks).unwrap())
}

fn produce<'a>(step: &'a FusedStep, device: u32, epoch: u64, result: &mut Vec<f32>) -> FusedRun<'a> {
    result.resize(step.result_elements(device), f32::NAN);
    // SAFETY: `result` outlives the run and is read after `finish` (or after all threads have ended);
    // each device has one thread.
    let mut run = unsafe { step.begin(device, result.as_mut_ptr()) }.unwrap();
    for chunk in run.chunks() {
        for block in 0..chunk.blocks {
            let first = run.block_range(chunk.position, block).start;
            run.store(chunk.position, block, |_, to| to.fill(value(device, epoch, first))).unwrap();
        }
    }
    run
}

fn check(step: &FusedStep, device: u32, epoch: u64, result: &[f32]) {
    let devices = step.plan().devices;
    let order: Vec<u32> = ring::addition_order(device, devices).collect();
    for (row, &sum) in step.plan().cut.chunk(devices, device).zip(result) {
        let add = |sum, &peer: &u32| sum + value(peer, epoch, row);
        assert_eq!(sum, order[1..].iter().fold(value(order[0], epoch, row), add));
    }
}

/// The programs of `devices` on one thread: in each epoch all produce, then all finish.
fn programs(step: &FusedStep, devices: &[u32], epochs: u64) {
    let mut results = vec![Vec::new(); devices.len()];
    for epoch in 0..epochs {
        let parts = devices.iter().zip(&mut results);
        let runs: Vec<_> = parts.map(|(&device, result)| produce(step, device, epoch, result)).collect();
        runs.into_iter().for_each(|run| run.finish().unwrap());
        for (&device, result) in devices.iter().zip(&results) {
            check(step, device, epoch, result);
        }
    }
}

/// Two threads that wait for each other, with the even and the odd devices: every transfer along the
/// ring goes from one to the other. (More than two waiting threads starve each other under `loom`.)
fn run(chunks: Vec<Chunk>, rows: u64, epochs: u64) {
    let (even, odd) = (0..chunks.len() as u32).partition::<Vec<u32>, _>(|device| device % 2 == 0);
    let step = step(chunks, rows);
    let other = Arc::clone(&step);
    let thread = loom::thread::spawn(move || programs(&other, &odd, epochs));
    programs(&step, &even, epochs);
    thread.join().unwrap();
}

/// One epoch with a thread a device; nobody waits before all have produced.
fn run_apart(chunks: Vec<Chunk>) {
    let devices = chunks.len() as u32;
    let step = step(chunks, u64::from(devices));
    let produce_one = |device: u32| {
        let step = Arc::clone(&step);
        move || {
            let mut result = Vec::new();
            let run = produce(&step, device, 0, &mut result);
            drop(run);
            result
        }
    };
    let threads: Vec<_> = (1..devices).map(|device| loom::thread::spawn(produce_one(device))).collect();
    let mut results = vec![Vec::new()];
    let own = produce(&step, 0, 0, &mut results[0]);
    results.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    own.finish().unwrap();
    (0..devices).for_each(|device| check(&step, device, 0, &results[device as usize]));
}

fn direct(devices: u32) -> Vec<Chunk> {
    let chunk =
        |relative, store, threshold, trigger| Chunk { relative, store, op: Op::Store, threshold, trigger };
    let remote = |relative| chunk(relative, Store::Remote(relative), 0, Trigger::None);
    (1..devices).map(remote).chain([chunk(0, Store::Local, devices, Trigger::Reduce)]).collect()
}

#[test]
fn exactly_one_arrival_is_the_last() {
    model(4, || {
        let (tracker, last) = (Arc::new(Tracker::default()), Arc::new(AtomicU64::new(0)));
        let arrive = |tracker: Arc<Tracker>, last: Arc<AtomicU64>| {
            for epoch in 0..2 {
                match tracker.arrive(epoch, 3) {
                    Arrival::Early => {}
                    Arrival::Last => {
                        last.fetch_add(1 << (8 * epoch), Ordering::Relaxed);
                    }
                    Arrival::Overrun(count) => panic!("{count} updates"),
                }
            }
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (tracker, last) = (Arc::clone(&tracker), Arc::clone(&last));
                loom::thread::spawn(move || arrive(tracker, last))
            })
            .collect();
        arrive(Arc::clone(&tracker), Arc::clone(&last));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(last.load(Ordering::Relaxed), 1 << 8 | 1);
    });
}

#[test]
fn two_devices_reuse_credits_over_three_epochs() {
    model(4, || run(configure_ring_reduce_scatter(2), 2, 3));
}

/// A sender that never waits for its receiver's results: only the credits keep it from overwriting. (In
/// a whole step `finish` already keeps neighbours within an epoch of each other.)
#[test]
fn a_sender_never_overtakes_the_credits_of_its_receiver() {
    model(3, || {
        const EPOCHS: u64 = 5;
        let plan = Plan::new(&spec(configure_ring_reduce_scatter(2), 2), 2).unwrap();
        let transport = Arc::new(Threads::new(&plan));
        let slot = Slot { receiver: 1, channel: 0, block: 0 };
        let arrived = Arc::new(AtomicU64::new(0));
        let receiver = {
            let (transport, arrived) = (Arc::clone(&transport), Arc::clone(&arrived));
            loom::thread::spawn(move || {
                for epoch in 0..EPOCHS {
                    while arrived.load(Ordering::Acquire) <= epoch {
                        loom::thread::yield_now();
                    }
                    let place = transport.incoming(slot, epoch);
                    // SAFETY: the slot holds one element, which the sender has written.
                    let found = place.access.read(|| unsafe { place.start.read() });
                    assert_eq!(found, epoch as f32);
                    transport.free(slot, epoch);
                }
            })
        };
        for epoch in 0..EPOCHS {
            while !transport.has_credit(slot, epoch) {
                loom::thread::yield_now();
            }
            let place = transport.outgoing(slot, epoch);
            // SAFETY: the slot holds one element, and the credit says that nobody reads it.
            place.access.write(|| unsafe { place.start.write(epoch as f32) });
            assert_eq!(transport.deliver(slot, epoch), Delivery::Here);
            arrived.store(epoch + 1, Ordering::Release);
        }
        receiver.join().unwrap();
    });
}

#[test]
fn two_devices_with_two_blocks_a_chunk() {
    model(4, || run(configure_ring_reduce_scatter(2), 4, 1));
}

#[test]
fn three_devices_forward_along_the_ring() {
    model(3, || run_apart(configure_ring_reduce_scatter(3)));
}

#[test]
fn three_devices_reuse_slots_and_tiles_over_three_epochs() {
    model(2, || run(configure_ring_reduce_scatter(3), 3, 3));
    model(2, || run(configure_ring_reduce_scatter(4), 4, 1));
}

#[test]
fn the_owner_of_a_direct_map_adds_once() {
    model(2, || run_apart(direct(3)));
    model(3, || run(direct(2), 2, 3));
}

/// A buffer whose accesses loom sees, and whose address the board shows.
#[derive(Default)]
struct Shown(loom::cell::UnsafeCell<u8>);

// SAFETY: what the models check is that its accesses are ordered.
unsafe impl Sync for Shown {}

#[test]
fn a_shown_buffer_is_written_again_only_after_everybody_has_read_it() {
    model(3, || {
        let shared =
            Arc::new((Board::new(vec![0, 1]), Watch::default(), [Shown::default(), Shown::default()]));
        let program = |shared: &(Board, Watch, [Shown; 2]), position: u32| {
            let (board, watch, buffers) = shared;
            for turn in 0..3_u8 {
                // SAFETY: the exchange before has ended, so nobody reads.
                buffers[position as usize].0.with_mut(|mine| unsafe { *mine = 10 * turn + position as u8 });
                // The board shows stand-ins; the models watch the buffers themselves.
                let read = &mut |stand_ins: &[&[u8]]| {
                    for (peer, (buffer, stand_in)) in (0..).zip(buffers.iter().zip(stand_ins)) {
                        // SAFETY: everybody shows theirs, so nobody writes.
                        let found = buffer.0.with(|theirs| unsafe { *theirs });
                        assert_eq!(found, 10 * turn + peer);
                        assert_eq!(**stand_in, [turn]);
                    }
                    Ok(())
                };
                board.exchange(watch, position, Call::AllGather, &[turn], read).unwrap();
            }
        };
        let other = Arc::clone(&shared);
        let thread = loom::thread::spawn(move || program(&other, 1));
        program(&shared, 0);
        thread.join().unwrap();
    });
}
