//! A fused step as generated code runs it: stores through `BlockTarget`, arrivals by the C function,
//! the result in memory that outlives the run.

use std::ffi::c_void;

use t3c_runtime::layout::Cut;
use t3c_runtime::unsafe_memory::Buffer;
use t3c_runtime::{
    BlockArrived, BlockTarget, Destination, Error, FusedRun, FusedSpec, Options, Runtime, block_arrived,
};
use t3c_schedule::Reduction;

use crate::reference::{KEY, bits, line, reduced, spec, value};

/// Writes a block the way a kernel does: element by element, over whatever was there.
fn kernel(device: u32, epoch: u64, cut: Cut, range: std::ops::Range<usize>, target: BlockTarget) {
    assert_eq!((target.outer, target.extent, target.inner), (cut.outer, range.len(), cut.inner));
    for outer in 0..target.outer {
        for (at, from) in cut.row(outer, &range).enumerate() {
            let to = target.start.wrapping_add(outer * target.outer_stride + at);
            // SAFETY: `(outer, at)` lies in the block, which is this device's until it arrives.
            unsafe { to.write(value(device, epoch, from)) }
        }
    }
}

fn run_kernels(devices: u32, spec: FusedSpec) {
    let cut = Cut::of(&spec.shape, spec.dimension).unwrap();
    let runtime = Runtime::with_steps(&line(devices), vec![spec], Options::default()).unwrap();
    let arena: Vec<Buffer> = (0..devices).map(|_| Buffer::new(cut.elements())).collect();
    let arrived: BlockArrived = block_arrived;
    let run = runtime.run(|device| {
        let result = arena[device.device() as usize].at(0);
        for epoch in 0..30 {
            // SAFETY: the arena outlives `runtime.run`.
            let mut run: FusedRun<'_> = unsafe { device.begin_fused(KEY, result) }?;
            for chunk in run.chunks() {
                for block in 0..chunk.blocks {
                    let target = run.target(chunk.position, block)?;
                    let own = chunk.index == device.device();
                    assert_eq!(target.destination == Destination::Result, own);
                    kernel(device.device(), epoch, cut, run.block_range(chunk.position, block), target);
                    let context = (&raw mut run).cast::<c_void>();
                    // SAFETY: `run` is live and not borrowed.
                    assert_eq!(unsafe { arrived(context, chunk.position as u64, block as u64) }, 0);
                }
            }
            run.finish()?;
            let want = reduced(cut, devices, device.device(), epoch);
            // SAFETY: `finish` has returned, and the result holds as many elements as the reference.
            let found = unsafe { std::slice::from_raw_parts(result, want.len()) };
            assert_eq!(bits(found), bits(&want));
        }
        Ok::<(), Error>(())
    });
    run.unwrap();
}

#[test]
fn kernels_store_where_the_map_says() {
    for devices in 1..5 {
        run_kernels(devices, spec(devices, &[14, 9], 0, 3));
        run_kernels(devices, spec(devices, &[2, 3, 14, 5], 2, 2));
    }
}

#[test]
fn a_wrong_arrival_stops_the_kernel_and_names_the_block() {
    let runtime = Runtime::with_steps(&line(2), vec![spec(2, &[4, 2], 0, 1)], Options::default()).unwrap();
    let arena = Buffer::new(8);
    let run = runtime.run(|device| {
        if device.device() == 1 {
            return device.group(&[0])?.barrier();
        }
        // SAFETY: the arena outlives `runtime.run`.
        let mut run = unsafe { device.begin_fused(KEY, arena.at(0)) }?;
        // SAFETY: `run` is live and not borrowed.
        assert_eq!(unsafe { block_arrived((&raw mut run).cast(), 0, 77) }, 1);
        run.finish()
    });
    assert!(run.unwrap_err().to_string().contains("there is no block 77 of chunk 0"));
}

#[test]
fn maxima_are_reduced_as_they_arrive() {
    let spec = FusedSpec { reduction: Reduction::Max, ..spec(3, &[6], 0, 1) };
    let runtime = Runtime::with_steps(&line(3), vec![spec], Options::default()).unwrap();
    let run = runtime.run(|device| {
        let mut result = [0.0; 2];
        device.fused(KEY, &mut result, |run| {
            for chunk in run.chunks() {
                for block in 0..chunk.blocks {
                    let row = run.block_range(chunk.position, block).start;
                    run.store(chunk.position, block, |_, to| to.fill(value(device.device(), 0, row)))?;
                }
            }
            Ok::<(), Error>(())
        })?;
        Ok::<_, Error>(result)
    });
    let want = |row| (0..3).map(|device| value(device, 0, row)).fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(run.unwrap().concat(), (0..6).map(want).collect::<Vec<f32>>());
}
