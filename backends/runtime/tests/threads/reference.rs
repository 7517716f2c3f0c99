//! The obvious version of everything: whole tensors, one loop, one thread.

use t3c_runtime::layout::Cut;
use t3c_runtime::{DeviceContext, Error, FusedSpec, StepKey};
use t3c_schedule::{Axis, Chunk, Grid, Op, Reduction, Store, Trigger, configure_ring_reduce_scatter, ring};

/// A contribution that no reordering of sums leaves unchanged: magnitudes differ by orders.
pub fn value(device: u32, epoch: u64, at: usize) -> f32 {
    let mixed = (at as u64 ^ epoch << 20 ^ u64::from(device) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let sign = if mixed >> 63 == 0 { 1.0 } else { -1.0 };
    sign * (mixed >> 40 & 0xFFFF) as f32 * 10_f32.powi((mixed >> 56 & 7) as i32 - 4)
}

/// The whole partial value of a device.
pub fn partial(device: u32, epoch: u64, elements: usize) -> Vec<f32> {
    (0..elements).map(|at| value(device, epoch, at)).collect()
}

/// The reduced chunk of the device at `position`.
pub fn reduced(cut: Cut, devices: u32, position: u32, epoch: u64) -> Vec<f32> {
    let own = cut.chunk(devices, position);
    let places = (0..cut.outer).flat_map(|outer| cut.row(outer, &own));
    let order: Vec<u32> = ring::addition_order(position, devices).collect();
    let add = |at| {
        order[1..].iter().fold(value(order[0], epoch, at), |sum, &device| sum + value(device, epoch, at))
    };
    places.map(add).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub const KEY: StepKey = StepKey { program: 0, step: 7 };

pub fn line(devices: u32) -> Grid {
    Grid { axes: vec![Axis { name: "tp".to_string(), size: devices }] }
}

pub fn spec(devices: u32, shape: &[u64], dimension: usize, block: u64) -> FusedSpec {
    FusedSpec {
        key: KEY,
        axes: vec![0],
        shape: shape.to_vec(),
        dimension,
        block,
        reduction: Reduction::Sum,
        chunks: configure_ring_reduce_scatter(devices),
    }
}

/// The map in which every device stores with the owner, which reduces.
pub fn direct(devices: u32) -> Vec<Chunk> {
    let remote = |relative| Chunk {
        relative,
        store: Store::Remote(relative),
        op: Op::Store,
        threshold: 0,
        trigger: Trigger::None,
    };
    let own = Chunk {
        relative: 0,
        store: Store::Local,
        op: Op::Store,
        threshold: devices,
        trigger: Trigger::Reduce,
    };
    (1..devices).map(remote).chain([own]).collect()
}

/// Runs a fused step once on a device: the "kernel" copies the device's partial value.
pub fn run_fused(device: &DeviceContext<'_>, spec: &FusedSpec, whole: &[f32]) -> Result<Vec<f32>, Error> {
    let cut = Cut::of(&spec.shape, spec.dimension).expect("a dimension");
    let mut result = vec![f32::NAN; device.result_elements(spec.key)?];
    device.fused(spec.key, &mut result, |run| {
        for chunk in run.chunks() {
            for block in 0..chunk.blocks {
                let range = run.block_range(chunk.position, block);
                run.store(chunk.position, block, |row, to| to.copy_from_slice(&whole[cut.row(row, &range)]))?;
            }
        }
        Ok::<(), Error>(())
    })?;
    Ok(result)
}
