//! Runs the loops of [`measure`] that reach the machine's own limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::jit::{Jit, JitBuilder};
use crate::kernels::emit::measure::{self, PEAK_CHAINS, PEAK_UNROLL, READ_VECTORS};
use crate::kernels::{Error, Machine};

const PEAK: &str = "t3c_peak_f32";
const READ: &str = "t3c_read_f32";
/// Floats of the largest vector.
const MAX_LANES: usize = 16;

/// Measures this core: multiply-adds a second, bytes a second.
pub struct Limits {
    lanes: usize,
    peak: unsafe extern "C" fn(i64, *mut f32),
    read: unsafe extern "C" fn(i64, *const f32, *mut f32),
    _code: Arc<Jit>,
}

impl Limits {
    /// Compiles the loops for `machine`.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        let mut builder = JitBuilder::new(machine)?;
        builder.add_module("t3c_limits", |context, module, machine| {
            measure::emit_peak(context, module, machine, PEAK)?;
            measure::emit_read(context, module, machine, READ)
        })?;
        let code = Arc::new(builder.finish()?);
        // SAFETY: `measure::emit_*` gave these names exactly these signatures, and `_code` keeps them.
        let (peak, read) = unsafe { (code.function(PEAK)?, code.function(READ)?) };
        Ok(Limits { lanes: machine.lanes, peak, read, _code: code })
    }

    /// Floating-point operations a second of independent multiply-adds, over about a millisecond.
    pub fn peak_flops(&self) -> f64 {
        const TURNS: usize = 20_000;
        let mut memory = [0.5f32; MAX_LANES];
        let started = Instant::now();
        // SAFETY: `memory` holds a vector.
        unsafe { (self.peak)(TURNS as i64, memory.as_mut_ptr()) };
        let flops = 2 * TURNS * PEAK_CHAINS * PEAK_UNROLL * self.lanes;
        flops as f64 / seconds(started.elapsed())
    }

    /// Bytes a second at which `memory` is read, whose end may be left out.
    pub fn read_bytes_per_second(&self, memory: &[f32]) -> f64 {
        let step = READ_VECTORS * self.lanes;
        let count = memory.len() / step * step;
        let mut result = [0f32; MAX_LANES];
        let started = Instant::now();
        // SAFETY: `count` floats are inside `memory`, and `result` holds a vector.
        unsafe { (self.read)(count as i64, memory.as_ptr(), result.as_mut_ptr()) };
        let elapsed = started.elapsed();
        std::hint::black_box(result);
        size_of_val(memory) as f64 / seconds(elapsed)
    }
}

fn seconds(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive() {
        let limits = Limits::new(&Machine::host().expect("host")).expect("compiled");
        assert!(limits.peak_flops() > 1e6);
        assert!(limits.read_bytes_per_second(&vec![1.0; 1 << 16]) > 1e6);
    }
}
