//! Fused steps as a device's program runs them: the one place where the result's memory is vouched for.

use std::sync::OnceLock;

use crate::protocol::FusedRun;
use crate::runtime::DeviceContext;
use crate::unsafe_memory::Buffer;
use crate::{Error, StepKey};

/// A device's own result buffer, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct OwnResult(OnceLock<Buffer>);

impl<'a> DeviceContext<'a> {
    /// Begins the next execution of a fused step, whose reduced chunk goes to `result`: for generated
    /// code, which has its buffers in an arena.
    ///
    /// # Safety
    /// `result` points to [`DeviceContext::result_elements`] floats, valid until `Runtime::run`
    /// returns, which nothing else uses until [`FusedRun::finish`] has returned without an error.
    pub unsafe fn begin_fused(&self, step: StepKey, result: *mut f32) -> Result<FusedRun<'a>, Error> {
        let (instance, position) = self.fused_step(step)?;
        // SAFETY: handed on to the caller; a device has one thread.
        unsafe { instance.begin(position, result) }
    }

    /// Runs the next execution of a fused step: `produce` stores every block, and `result` gets the
    /// device's reduced chunk.
    pub fn fused<E: From<Error>>(
        &self,
        step: StepKey,
        result: &mut [f32],
        produce: impl FnOnce(&mut FusedRun<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (instance, position) = self.fused_step(step)?;
        let expected = instance.result_elements(position);
        if result.len() != expected {
            let (device, found) = (self.device(), result.len());
            let (collective, what) = ("a fused step", "the result");
            return Err(Error::Length { device, collective, what, found, expected }.into());
        }
        let own = self.own_result(step)?.0.get_or_init(|| Buffer::new(expected));
        // SAFETY: the buffer belongs to this step on this device and lives as long as the runtime; it is
        // read below only after `finish`. `FusedStep::begin` refuses a second run before that.
        let mut run = unsafe { instance.begin(position, own.at(0)) }?;
        produce(&mut run)?;
        if !run.is_of(instance, position) {
            return Err(instance.misuse(position, "its run was exchanged for another one").into());
        }
        run.finish()?;
        // SAFETY: `run` was this step's, whose `finish` waited for the last write to the buffer, which holds `expected` floats.
        result.copy_from_slice(unsafe { std::slice::from_raw_parts(own.at(0), expected) });
        Ok(())
    }
}
