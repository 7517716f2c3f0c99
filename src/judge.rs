//! What the simulator says about fused pairs: a remark for each, beside the closed-form bound by which it was fused.

use t3c_passes::{Remark, remark::Kind};
use t3c_sim::{Options, Policy, Report, SubLayerReport, System};

use crate::{Error, Program, program::phase_name};

/// The name under which these remarks stand.
pub(crate) const SIMULATION: &str = "simulation";

impl Program {
    /// Simulates every fused pair on `system` and adds a remark that says what it gains, or that it loses.
    ///
    /// # Errors
    /// When the schedule does not fit the system.
    pub fn judge(&mut self, system: &System) -> Result<(), Error> {
        let options = Options {
            phase: phase_name(self.phase()).to_owned(),
            policies: vec![Policy::T3, Policy::T3Mca],
            ..Options::default()
        };
        let report = t3c_sim::simulate(self.schedule(), system, &options)?;
        let judged = report.sublayers.iter().filter(|layer| layer.fused);
        let remarks: Vec<Remark> = judged.map(|layer| remark(layer, &report)).collect();
        self.add_remarks(remarks);
        Ok(())
    }
}

fn remark(layer: &SubLayerReport, report: &Report) -> Remark {
    let time = |policy: &str| layer.policies.get(policy).map_or(0.0, |result| result.time_us);
    let [sequential, t3, t3_mca] = ["sequential", "t3", "t3-mca"].map(time);
    let speedup = sequential / t3.min(t3_mca).max(f64::MIN_POSITIVE);
    let verdict = if speedup > 1.0 { "gains" } else { "loses" };
    Remark {
        kind: Kind::Analysis,
        pass: SIMULATION,
        reason: if speedup > 1.0 { "simulated-gain" } else { "simulated-loss" },
        message: format!(
            "{verdict} on {}: {sequential:.1} us one after the other, {t3:.1} us with track-and-trigger, {t3_mca:.1} us \
             where the product's accesses go first",
            report.system
        ),
        location: layer.name.clone(),
        function: String::new(),
        pair: None,
        times: layer.calls,
        numbers: vec![
            ("sequential_us", sequential),
            ("t3_us", t3),
            ("t3_mca_us", t3_mca),
            ("speedup", speedup),
        ],
        suggest: (speedup <= 1.0).then_some("--fuse never"),
    }
}
