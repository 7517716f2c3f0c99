//! One persistent thread a device, which all run the same job each time they are called.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::Error;

/// The threads. Dropping the pool ends them.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    end: Condvar,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    job: Option<Job>,
    running: usize,
    stop: bool,
}

/// A borrowed job whose lifetime the pool answers for.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(u32) + Sync));

// SAFETY: the job is `Sync` and outlives its use, see `Pool::run`.
unsafe impl Send for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Job")
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Starts `devices` threads.
    pub(crate) fn new(devices: u32) -> Result<Pool, Error> {
        let mut pool = Pool { shared: Arc::default(), threads: Vec::new(), turn: Mutex::new(()) };
        for device in 0..devices {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("device {device}"));
            let thread = builder.spawn(move || work(device, &shared));
            pool.threads.push(thread.map_err(|error| Error::Spawn { device, reason: error.to_string() })?);
        }
        Ok(pool)
    }

    /// Runs `job` on every thread, with the thread's device, and waits for all. A panic in `job` ends
    /// that device's part only.
    pub(crate) fn run(&self, job: &(dyn Fn(u32) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is erased. This function returns after every thread has counted
        // itself out of `running`, after which no thread uses the job.
        let job = unsafe {
            std::mem::transmute::<*const (dyn Fn(u32) + Sync + '_), *const (dyn Fn(u32) + Sync + 'static)>(
                job,
            )
        };
        let mut state = self.shared.state();
        state.job = Some(Job(job));
        state.generation += 1;
        state.running = self.threads.len();
        self.shared.start.notify_all();
        while state.running > 0 {
            state = self.shared.end.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.start.notify_all();
        for thread in self.threads.drain(..) {
            // A thread catches its job's panics, so joining cannot fail.
            let _ = thread.join();
        }
    }
}

fn work(device: u32, shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut state = shared.state();
        while state.generation == seen && !state.stop {
            state = shared.start.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return;
        }
        seen = state.generation;
        let job = state.job;
        drop(state);
        if let Some(Job(job)) = job {
            // SAFETY: `Pool::run` keeps the job alive until `running` is 0.
            let job = unsafe { &*job };
            // The job reports its own panics.
            let _ = catch_unwind(AssertUnwindSafe(|| job(device)));
        }
        let mut state = shared.state();
        state.running -= 1;
        if state.running == 0 {
            shared.end.notify_all();
        }
    }
}
