//! Waiting without hanging: every wait of the crate goes through [`Watch::until`], which gives up when
//! another device has failed or when the timeout has passed, and then says what was waited for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Error;
use crate::sync::Backoff;

/// The failure flag that all devices share, and the timeout of every wait.
#[derive(Debug, Default)]
pub struct Watch {
    poisoned: AtomicBool,
    cause: Mutex<Option<(u32, String)>>,
    timeout: Option<Duration>,
    patient: bool,
}

impl Watch {
    /// Rounds between two looks at the clock.
    const CLOCK_ROUNDS: u32 = 256;

    /// A watch over `devices`, whose waits last at most `timeout`.
    pub fn new(devices: u32, timeout: Option<Duration>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Watch { timeout, patient: devices as usize <= cores, ..Watch::default() }
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.patient)
    }

    /// Records that `device` failed; the first failure counts. Every later wait returns an error.
    pub fn poison(&self, device: u32, cause: &str) {
        let mut first = self.cause.lock().unwrap_or_else(|broken| broken.into_inner());
        first.get_or_insert_with(|| (device, cause.to_string()));
        drop(first);
        // SeqCst: the other half of the exchange's `reading` flags, see `unsafe_board`.
        self.poisoned.store(true, Ordering::SeqCst);
    }

    /// Whether a device has failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }

    /// The device that failed first and why.
    pub fn cause(&self) -> Option<(u32, String)> {
        self.cause.lock().unwrap_or_else(|broken| broken.into_inner()).clone()
    }

    /// An error once a device has failed.
    pub fn check(&self) -> Result<(), Error> {
        if !self.is_poisoned() {
            return Ok(());
        }
        let (device, cause) = self.cause().unwrap_or((0, "unknown".to_string()));
        Err(Error::Stopped { device, cause })
    }

    /// Waits on behalf of `device` until `ready`; `waiting` names what is missing.
    pub fn until(
        &self,
        device: u32,
        mut ready: impl FnMut() -> bool,
        waiting: impl Fn() -> String,
    ) -> Result<(), Error> {
        if ready() {
            return Ok(());
        }
        let mut backoff = self.backoff();
        let mut started = None;
        while !ready() {
            self.check()?;
            backoff.snooze();
            if let Some(timeout) = self.timeout
                && backoff.rounds().is_multiple_of(Self::CLOCK_ROUNDS)
                && started.get_or_insert_with(Instant::now).elapsed() > timeout
            {
                let error =
                    Error::Timeout { device, milliseconds: timeout.as_millis() as u64, waiting: waiting() };
                self.poison(device, &error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_names_what_was_waited_for_and_stops_the_others() {
        let watch = Watch::new(2, Some(Duration::from_millis(5)));
        let error = watch.until(3, || false, || "the tracker of chunk 2".to_string()).unwrap_err();
        assert!(error.to_string().contains("device 3 waited longer than 5 ms for the tracker of chunk 2"));
        assert!(matches!(watch.until(0, || false, String::new), Err(Error::Stopped { device: 3, .. })));
    }

    #[test]
    fn the_first_failure_is_the_cause() {
        let watch = Watch::default();
        watch.poison(1, "first");
        watch.poison(2, "second");
        assert_eq!(watch.cause(), Some((1, "first".to_string())));
    }
}
