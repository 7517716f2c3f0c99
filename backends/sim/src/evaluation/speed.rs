//! How fast the simulator itself is, and how its work grows.

use std::time::Instant;

use serde::Serialize;
use t3c_schedule::testing::gemm_reduce_scatter;

use super::{
    MODELS,
    layer::{Pass, schedule},
};
use crate::{Error, Options, Policy, System, simulate};

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// What was simulated.
    pub name: String,
    /// Seconds, the least of several runs.
    pub seconds: f64,
    /// Events of the machine.
    pub events: u64,
    /// Events a second.
    pub events_per_second: f64,
}

/// Runs `work`, which gives its events, `times` times.
fn best(name: &str, times: usize, work: impl Fn() -> Result<u64, Error>) -> Result<Speed, Error> {
    let (mut seconds, mut events) = (f64::MAX, 0);
    for _ in 0..times {
        let start = Instant::now();
        events = work()?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok(Speed { name: name.to_owned(), seconds, events, events_per_second: events as f64 / seconds.max(1e-9) })
}

fn sub_layer([m, n, k]: [u64; 3], devices: u32, system: &System, options: &Options) -> Result<u64, Error> {
    Ok(simulate(&gemm_reduce_scatter(m, n, k, devices), system, options)?.events)
}

/// Measures: one sub-layer, growth with its tiles and with the devices, a whole model.
pub fn measure(system: &System) -> Result<Vec<Speed>, Error> {
    let one = Options { policies: vec![Policy::T3Mca], ..Options::default() };
    let all = Options::default();
    let mut speeds = vec![
        best("sub-layer.t-nlg.tp8.fc-2", 5, || sub_layer([8192, 4256, 2128], 8, system, &one))?,
        best("sub-layer.t-nlg.tp8.fc-2.all-policies", 5, || sub_layer([8192, 4256, 2128], 8, system, &all))?,
    ];
    for tiles in [256u64, 1024, 4096, 16384] {
        let name = format!("growth.tiles.{tiles}");
        let rows = tiles / 32 * 128;
        speeds.push(best(&name, 3, || sub_layer([rows, 4096, 1024], 8, system, &one))?);
    }
    // The largest groups are beyond any file's links; the model does not care.
    let wide = System { devices: 4096, ..system.clone() };
    for devices in [8u32, 64, 256, 1024] {
        let name = format!("growth.devices.{devices}");
        speeds.push(best(&name, 2, || sub_layer([16384, 3072, 1536], devices, &wide, &one))?);
    }
    let every = Options { all_devices: true, ..one.clone() };
    speeds.push(best("all-devices.64", 1, || sub_layer([8192, 1024, 256], 64, &wide, &every))?);
    let model = &MODELS[MODELS.len() - 1];
    let training = schedule(model, model.devices[0], Pass::Training, &|_| 0);
    speeds.push(best("end-to-end.mt-nlg.training", 1, || Ok(simulate(&training, system, &one)?.events))?);
    Ok(speeds)
}
