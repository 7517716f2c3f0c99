//! A device that fails stops the others, with an error that names it.

use std::time::Duration;

use t3c_runtime::layout::Cut;
use t3c_runtime::{Error, Options, Runtime, StepKey};
use t3c_schedule::Reduction;

use crate::reference::{KEY, line, partial, run_fused, spec};

fn runtime(devices: u32, timeout: Option<Duration>) -> Runtime {
    let options = Options { timeout, ..Options::default() };
    Runtime::with_steps(&line(devices), vec![spec(devices, &[8, 2], 0, 1)], options).unwrap()
}

#[test]
fn a_panic_in_one_device_is_an_error_everywhere() {
    let runtime = runtime(4, None);
    let run = runtime.run(|device| {
        for epoch in 0..100 {
            if device.device() == 2 && epoch == 5 {
                panic!("bad weather");
            }
            run_fused(device, &spec(4, &[8, 2], 0, 1), &partial(device.device(), epoch, 16))?;
        }
        Ok::<(), Error>(())
    });
    assert_eq!(run.unwrap_err(), Error::Panicked { device: 2, message: "bad weather".to_string() });
    let again = runtime.run(|_| Ok::<(), Error>(()));
    assert!(again.unwrap_err().to_string().contains("device 2 stopped: device 2 panicked: bad weather"));
}

#[test]
fn a_panic_stops_devices_in_a_collective() {
    for _ in 0..50 {
        let run = runtime(3, None).run(|device| {
            let group = device.group(&[0])?;
            for turn in 0..1000 {
                let input = vec![turn as f32; 64];
                let mut output = vec![0.0; 64];
                if device.device() == 1 && turn == 20 {
                    panic!("stop");
                }
                group.all_reduce(&input, &mut output, Reduction::Sum)?;
            }
            Ok::<(), Error>(())
        });
        assert!(matches!(run, Err(Error::Panicked { device: 1, .. })));
    }
}

#[test]
fn a_timeout_names_the_tracker_that_waits() {
    let runtime = runtime(2, Some(Duration::from_millis(50)));
    let run = runtime.run(|device| match device.device() {
        0 => run_fused(device, &spec(2, &[8, 2], 0, 1), &partial(0, 0, 16)).map(drop),
        _ => Ok(()),
    });
    let message = run.unwrap_err().to_string();
    assert!(
        message.contains("the tracker of step 7 of program 0, chunk 0, block 0, epoch 0 (1 of 2 updates)"),
        "{message}"
    );
}

#[test]
fn different_collectives_at_once_are_noticed() {
    let run = runtime(2, None).run(|device| {
        let group = device.group(&[0])?;
        match device.device() {
            0 => group.barrier(),
            _ => group.all_gather(&[1.0_f32], &mut [0.0; 2], Cut { outer: 1, extent: 2, inner: 1 }),
        }
    });
    let message = run.unwrap_err().to_string();
    assert!(message.contains("`barrier`") && message.contains("`all_gather`"), "{message}");
}

#[test]
fn wrong_lengths_and_unknown_steps_are_errors() {
    let run = runtime(1, None).run(|device| device.fused(KEY, &mut [0.0; 3], |_| Ok::<(), Error>(())));
    assert!(run.unwrap_err().to_string().contains("the result holds 3 elements, expected 16"));
    let key = StepKey { program: 4, step: 1 };
    let run = runtime(1, None).run(|device| device.result_elements(key));
    assert_eq!(run.unwrap_err(), Error::UnknownStep(key));
}

#[test]
fn a_block_arrives_once_and_all_must() {
    let run = runtime(1, None).run(|device| {
        device.fused(KEY, &mut [0.0; 16], |run| {
            run.store(0, 0, |_, to| to.fill(1.0))?;
            run.store(0, 0, |_, to| to.fill(1.0))
        })
    });
    assert!(run.unwrap_err().to_string().contains("block 0 of chunk 0 has already arrived"));
    let run = runtime(1, None).run(|device| device.fused(KEY, &mut [0.0; 16], |_| Ok::<(), Error>(())));
    assert!(run.unwrap_err().to_string().contains("finished before every block has arrived"));
}
