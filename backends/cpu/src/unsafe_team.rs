//! The threads of one device: a step's parts are divided among them, and the step ends when all parts have.
//!
//! Parts are taken in order by whoever is free, and a thread that is late joins what is left or nothing: a step
//! never waits for a thread to wake up. What a part computes must not depend on the thread that takes it, so a
//! step's result does not depend on the number of threads either.

use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
};

/// A part's number and the number of the thread that takes it.
type Work<'w> = dyn Fn(usize, usize) + Sync + 'w;

/// Times a thread looks for work before it sleeps: some tens of microseconds, longer than most steps.
const LOOKS: usize = 5_000;

/// Threads that share a device's work. Dropping the team ends them.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One step at a time.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    /// The step's number, whether threads may join it, and how many are inside: see [`Gate`].
    gate: AtomicUsize,
    /// Written while the gate is shut and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    asleep: Vec<AtomicBool>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: the job is written by the owner of the turn while the gate is shut and nobody is inside, and read by
// threads that are inside.
unsafe impl Sync for Shared {}
// SAFETY: as above; a job's pointer may be used by any thread, since what it points to is `Sync`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy, Debug)]
struct Job {
    work: *const Work<'static>,
    parts: usize,
}

/// The fields of a gate's word.
struct Gate;

impl Gate {
    const INSIDE: usize = 0xFFFF;
    const OPEN: usize = 1 << 16;
    const STEP: usize = 1 << 17;

    fn step(word: usize) -> usize {
        word / Self::STEP
    }
}

impl Team {
    /// The calling thread and `threads − 1` more; fewer where the system gives no more.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.clamp(1, Gate::INSIDE) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let helpers = (0..helpers)
            .map_while(|helper| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("helper {}", helper + 1));
                builder.spawn(move || shared.help(helper)).ok()
            })
            .collect();
        Team { shared, helpers, turn: Mutex::new(()) }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` for each of `parts`, with the number of the thread that runs it (the caller's is 0).
    ///
    /// # Panics
    /// Where `work` does, after all other parts have ended.
    pub fn run(&self, parts: usize, work: &Work<'_>) {
        if parts <= 1 || self.helpers.is_empty() {
            (0..parts).for_each(|part| work(part, 0));
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. This function returns after the gate was shut and everyone has
        // left, after which nobody uses the work.
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        let job = Job { work, parts };
        // SAFETY: the turn is ours, the gate is shut, and the last step's threads have left.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, SeqCst);
        let word = shared.gate.load(SeqCst);
        shared.gate.store((Gate::step(word) + 1).wrapping_mul(Gate::STEP) | Gate::OPEN, SeqCst);
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers) {
            if asleep.swap(false, SeqCst) {
                helper.thread().unpark();
            }
        }
        shared.take_parts(job, 0);
        let mut inside = shared.gate.fetch_and(!Gate::OPEN, SeqCst) & Gate::INSIDE;
        let mut looks = 0;
        while inside > 0 {
            std::hint::spin_loop();
            looks += 1;
            if looks % LOOKS == 0 {
                // A thread that lost its core needs ours.
                std::thread::yield_now();
            }
            inside = shared.gate.load(SeqCst) & Gate::INSIDE;
        }
        // A part's panic goes on in the thread that asked for the step; the runtime reports it for its device.
        if shared.panicked.swap(false, SeqCst) {
            panic!("a part of a step panicked");
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches its work's panics.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// A helper's life: joins each step that it sees open.
    fn help(&self, helper: usize) {
        let mut seen = 0;
        let mut looks = 0;
        while !self.stop.load(SeqCst) {
            let word = self.gate.load(SeqCst);
            let is_new = word & Gate::OPEN != 0 && Gate::step(word) != seen;
            if is_new && self.gate.compare_exchange(word, word + 1, SeqCst, SeqCst).is_ok() {
                seen = Gate::step(word);
                // SAFETY: inside: the job is not written before we leave.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.take_parts(job, helper + 1);
                }
                self.gate.fetch_sub(1, SeqCst);
                looks = 0;
            } else if is_new || looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                self.sleep(helper, seen);
                looks = 0;
            }
        }
    }

    /// Sleeps until a step after `seen` opens. Whoever opens it either finds the flag or was seen here.
    fn sleep(&self, helper: usize, seen: usize) {
        self.asleep[helper].store(true, SeqCst);
        let word = self.gate.load(SeqCst);
        let is_new = word & Gate::OPEN != 0 && Gate::step(word) != seen;
        if !is_new && !self.stop.load(SeqCst) {
            std::thread::park();
        }
        self.asleep[helper].store(false, SeqCst);
    }

    fn take_parts(&self, job: Job, thread: usize) {
        loop {
            let part = self.next.fetch_add(1, SeqCst);
            if part >= job.parts {
                return;
            }
            // SAFETY: `Team::run` keeps the work alive until everyone has left the step.
            let work = unsafe { &*job.work };
            if catch_unwind(AssertUnwindSafe(|| work(part, thread))).is_err() {
                self.panicked.store(true, SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for parts in (0..300).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                team.run(parts, &|part, thread| {
                    assert!(thread < team.threads());
                    counts[part].fetch_add(1, SeqCst);
                });
                assert!(
                    counts.iter().all(|count| count.load(SeqCst) == 1),
                    "{threads} threads, {parts} parts"
                );
                if parts % 97 == 0 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            team.run(8, &|part, _| assert_ne!(part, 3));
        }));
        assert!(failed.is_err());
        let done = AtomicUsize::new(0);
        team.run(8, &|_, _| {
            done.fetch_add(1, SeqCst);
        });
        assert_eq!(done.load(SeqCst), 8);
    }
}
