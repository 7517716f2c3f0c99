//! Collectives over groups of a grid.

use t3c_runtime::layout::Cut;
use t3c_runtime::{Delays, Error, FusedSpec, Options, Runtime};
use t3c_schedule::{Axis, Grid, Reduction};

use crate::reference::{bits, line, partial, run_fused, spec, value};

fn grid() -> Grid {
    let axis = |name: &str, size| Axis { name: name.to_string(), size };
    Grid { axes: vec![axis("dp", 2), axis("tp", 3)] }
}

fn runtime(grid: &Grid) -> Runtime {
    let options = Options { delays: Some(Delays::seeded(5)), ..Options::default() };
    Runtime::with_steps(grid, Vec::new(), options).unwrap()
}

#[test]
fn an_all_reduce_adds_in_device_order_small_and_large() {
    for elements in [1, 100, 4096, 10_001] {
        for reduction in [Reduction::Sum, Reduction::Max] {
            let run = runtime(&line(5)).run(|device| {
                let mut output = vec![0.0; elements];
                let input = partial(device.device(), 0, elements);
                device.group(&[0])?.all_reduce(&input, &mut output, reduction)?;
                Ok::<_, Error>(output)
            });
            let combine = |left: f32, right: f32| match reduction {
                Reduction::Sum => left + right,
                Reduction::Max => left.max(right),
            };
            let want: Vec<f32> = (0..elements)
                .map(|at| (1..5).fold(value(0, 0, at), |sum, device| combine(sum, value(device, 0, at))))
                .collect();
            for output in run.unwrap() {
                assert_eq!(bits(&output), bits(&want));
            }
        }
    }
}

#[test]
fn gathers_undo_scatters_along_any_dimension_and_group() {
    let shape = [4, 7, 3];
    for (axes, size) in [(vec![0], 2), (vec![1], 3), (vec![0, 1], 6)] {
        for dimension in 0..3 {
            let cut = Cut::of(&shape, dimension).unwrap();
            let run = runtime(&grid()).run(|device| {
                let group = device.group(&axes)?;
                assert_eq!(group.size(), size);
                let own = cut.chunk(size, group.position());
                let seed = group.members()[0];
                let whole: Vec<i32> = (0..cut.elements()).map(|at| at as i32 + 1000 * seed as i32).collect();
                let part: Vec<i32> =
                    (0..cut.outer).flat_map(|outer| whole[cut.row(outer, &own)].to_vec()).collect();
                for _ in 0..20 {
                    let mut gathered = vec![-1; cut.elements()];
                    group.all_gather(&part, &mut gathered, cut)?;
                    assert_eq!(gathered, whole);
                }
                Ok::<(), Error>(())
            });
            run.unwrap();
        }
    }
}

/// `output[index] = input_j[index with split += i·part, concat −= j·extent]`.
fn all_to_all(shape: &[usize], split: usize, concat: usize, devices: usize, receiver: usize) -> Vec<i64> {
    let mut result_shape = shape.to_vec();
    result_shape[split] /= devices;
    let part = result_shape[split];
    result_shape[concat] *= devices;
    let width = if split == concat { part } else { shape[concat] };
    (0..result_shape.iter().product())
        .map(|mut rest: usize| {
            let mut index = vec![0; shape.len()];
            for axis in (0..shape.len()).rev() {
                index[axis] = rest % result_shape[axis];
                rest /= result_shape[axis];
            }
            let sender = index[concat] / width;
            index[concat] %= width;
            index[split] += receiver * part;
            let at = shape.iter().zip(&index).fold(0, |at, (extent, index)| at * extent + index);
            (sender * 100_000 + at) as i64
        })
        .collect()
}

#[test]
fn an_all_to_all_exchanges_any_two_dimensions() {
    let shape = [6, 3, 6, 2];
    for (split, concat) in [(0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 3), (0, 0), (2, 2)] {
        let run = runtime(&line(3)).run(|device| {
            let sender = device.device() as i64 * 100_000;
            let input: Vec<i64> = (0..216).map(|at| sender + at).collect();
            let mut output = vec![0; 216];
            let group = device.group(&[0])?;
            group.all_to_all(&input, &mut output, &shape.map(|extent| extent as u64), split, concat)?;
            Ok::<_, Error>(output)
        });
        for (receiver, output) in run.unwrap().into_iter().enumerate() {
            assert_eq!(output, all_to_all(&shape, split, concat, 3, receiver), "{split} to {concat}");
        }
    }
}

#[test]
fn a_broadcast_comes_from_its_root() {
    let run = runtime(&grid()).run(|device| {
        let group = device.group(&[1])?;
        let mut buffer = vec![device.device() as f32; 9];
        for root in 0..3 {
            buffer.fill(device.device() as f32);
            group.broadcast(root, &mut buffer)?;
            assert!(buffer.iter().all(|&value| value == group.members()[root as usize] as f32));
            group.barrier()?;
        }
        Ok::<(), Error>(())
    });
    run.unwrap();
}

#[test]
fn a_fused_step_runs_in_each_group() {
    for axes in [vec![0], vec![1], vec![1, 0]] {
        let size = grid().group_size(&axes);
        let spec = FusedSpec { axes: axes.clone(), ..spec(size, &[12, 5], 1, 1) };
        let cut = Cut::of(&spec.shape, 1).unwrap();
        let options = Options { delays: Some(Delays::seeded(8)), ..Options::default() };
        let runtime = Runtime::with_steps(&grid(), vec![spec.clone()], options).unwrap();
        let run = runtime.run(|device| {
            for epoch in 0..50 {
                let whole = partial(device.device(), epoch, 60);
                let fused = run_fused(device, &spec, &whole)?;
                let mut unfused = vec![0.0; fused.len()];
                device.group(&axes)?.reduce_scatter(&whole, &mut unfused, cut, Reduction::Sum)?;
                assert_eq!(bits(&fused), bits(&unfused));
            }
            Ok::<(), Error>(())
        });
        run.unwrap();
    }
}
