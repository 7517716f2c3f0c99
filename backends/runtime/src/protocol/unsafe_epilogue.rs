//! The epilogue's way into the protocol from generated code: a C function.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::FusedRun;

/// The type of [`block_arrived`], for code generators.
pub type BlockArrived = unsafe extern "C" fn(run: *mut c_void, position: u64, block: u64) -> i32;

/// [`FusedRun::arrived`] for generated code: 0 when all is well, 1 when the kernel should return.
///
/// The error itself is recorded: `FusedRun::finish`, which the caller of the kernel calls next, and
/// every wait on other devices report it. No panic crosses into the generated code.
///
/// # Safety
/// `run` points to a live [`FusedRun`] that nothing else borrows during the call.
pub unsafe extern "C" fn block_arrived(run: *mut c_void, position: u64, block: u64) -> i32 {
    // SAFETY: the caller's contract.
    let run = unsafe { &mut *run.cast::<FusedRun<'_>>() };
    let (watch, device) = (&run.step.watch, run.step.members[run.device as usize]);
    let outcome = catch_unwind(AssertUnwindSafe(|| run.arrived(position as usize, block as usize)));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            watch.poison(device, &error.to_string());
            1
        }
        Err(_) => {
            watch.poison(device, "a panic in the arrival of a block");
            1
        }
    }
}
