//! The runtime: one worker a device, the fused steps of a schedule, and a meeting point for every group.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use t3c_schedule::{CollectiveKind, Element, Grid, Schedule, StepId, StepKind};

use crate::Error;
use crate::collectives::Group;
use crate::hooks::{Delays, Event, Hooks};
use crate::plan::FusedSpec;
use crate::protocol::FusedStep;
use crate::transport::Board;
use crate::unsafe_device::OwnResult;
use crate::unsafe_pool::Pool;
use crate::watch::Watch;

/// A step of a program of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepKey {
    /// Index into `Schedule::programs`.
    pub program: usize,
    /// The step's id there.
    pub step: StepId,
}

/// What can be switched on.
#[derive(Debug, Default)]
pub struct Options {
    /// How long a wait may last; none by default.
    pub timeout: Option<Duration>,
    /// Whether to record events.
    pub trace: bool,
    /// Random delays, for tests.
    pub delays: Option<Delays>,
}

/// Runs device programs on threads.
#[derive(Debug)]
pub struct Runtime {
    pool: Pool,
    shared: Shared,
}

#[derive(Debug)]
struct Shared {
    devices: u32,
    axes: usize,
    watch: Arc<Watch>,
    hooks: Arc<Hooks>,
    steps: HashMap<StepKey, Step>,
    /// For each order of each set of axes: it is the order of the ring.
    groupings: HashMap<Vec<usize>, Grouping<Board>>,
}

/// One thing in each group along some axes.
#[derive(Debug)]
struct Grouping<T> {
    groups: Vec<(Vec<u32>, T)>,
    /// For each device, its group and its position there.
    place: Vec<(usize, u32)>,
}

#[derive(Debug)]
struct Step {
    instances: Grouping<FusedStep>,
    results: Vec<OwnResult>,
}

impl Runtime {
    /// The runtime for `schedule`: its grid and all its fused steps.
    pub fn new(schedule: &Schedule, options: Options) -> Result<Runtime, Error> {
        let mut specs = Vec::new();
        for (program, body) in schedule.programs.iter().enumerate() {
            for step in &body.steps {
                let StepKind::Fused(fused) = &step.kind else { continue };
                // Nothing is added: its producers' blocks are exchanged as they are.
                if fused.collective.kind == CollectiveKind::AllToAll {
                    continue;
                }
                let key = StepKey { program, step: step.id };
                if body.buffers.get(fused.result).is_none_or(|buffer| buffer.element != Element::F32) {
                    let reason = "only f32 results can be reduced as they arrive".to_string();
                    return Err(Error::Shape { step: key, reason });
                }
                specs.push(FusedSpec::of(key, fused));
            }
        }
        Runtime::with_steps(&schedule.grid, specs, options)
    }

    /// The runtime for some fused steps on a grid.
    pub fn with_steps(grid: &Grid, steps: Vec<FusedSpec>, options: Options) -> Result<Runtime, Error> {
        let devices = grid
            .axes
            .iter()
            .try_fold(1_u32, |devices, axis| devices.checked_mul(axis.size))
            .filter(|devices| (1..=MAX_DEVICES).contains(devices) && grid.axes.len() <= MAX_AXES)
            .ok_or_else(|| {
                Error::Grid(format!("expected 1 to {MAX_DEVICES} devices along at most {MAX_AXES} axes"))
            })?;
        let watch = Arc::new(Watch::new(devices, options.timeout));
        let hooks = Arc::new(Hooks::new(options.delays, options.trace));
        let mut instances = HashMap::new();
        for spec in steps {
            let fused =
                |members: Vec<u32>| FusedStep::new(&spec, members, Arc::clone(&watch), Arc::clone(&hooks));
            let results = (0..devices).map(|_| OwnResult::default()).collect();
            let step = Step { instances: Grouping::new(grid, &spec.axes, fused)?, results };
            instances.insert(spec.key, step);
        }
        let groupings = orders(grid.axes.len())
            .into_iter()
            .map(|axes| Ok((axes.clone(), Grouping::new(grid, &axes, |members| Ok(Board::new(members)))?)))
            .collect::<Result<_, Error>>()?;
        let shared = Shared { devices, axes: grid.axes.len(), watch, hooks, steps: instances, groupings };
        Ok(Runtime { pool: Pool::new(devices)?, shared })
    }

    /// Devices of the grid.
    pub fn devices(&self) -> u32 {
        self.shared.devices
    }

    /// Runs `program` on every device and returns what each returned, in device order.
    ///
    /// If one fails or panics, the waits of the others end with an error, and the first failure is
    /// returned. The state of the protocol is then unknown: every later call returns an error too. Do
    /// not call this from within `program`.
    pub fn run<R, E>(&self, program: impl Fn(&DeviceContext<'_>) -> Result<R, E> + Sync) -> Result<Vec<R>, E>
    where
        R: Send,
        E: From<Error> + std::fmt::Display + Send,
    {
        self.shared.watch.check()?;
        let outcomes: Vec<Mutex<Option<Result<R, E>>>> =
            (0..self.shared.devices).map(|_| Mutex::new(None)).collect();
        self.pool.run(&|device| {
            let context = DeviceContext { shared: &self.shared, device, _worker: OneThread::default() };
            let outcome = catch_unwind(AssertUnwindSafe(|| program(&context))).unwrap_or_else(|panic| {
                let message = panic_message(panic.as_ref());
                Err(Error::Panicked { device, message }.into())
            });
            if let Err(error) = &outcome {
                self.shared.watch.poison(device, &error.to_string());
            }
            *outcomes[device as usize].lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        });
        let outcomes =
            outcomes.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
        self.collect(outcomes)
    }

    /// The events since the last call, if tracing is on.
    pub fn take_trace(&self) -> Vec<Event> {
        self.shared.hooks.take()
    }

    /// All results, or the failure that came first.
    fn collect<R, E: From<Error>>(
        &self,
        outcomes: impl Iterator<Item = Option<Result<R, E>>>,
    ) -> Result<Vec<R>, E> {
        let first = self.shared.watch.cause().map(|(device, _)| device);
        let mut results = Vec::new();
        for (device, outcome) in (0..).zip(outcomes) {
            match outcome {
                Some(Ok(result)) => results.push(result),
                Some(Err(error)) if first == Some(device) => return Err(error),
                _ => {}
            }
        }
        self.shared.watch.check()?;
        Ok(results)
    }
}

/// More devices than any machine has cores, and few enough for 32-bit arithmetic everywhere.
const MAX_DEVICES: u32 = 1 << 12;
/// There is one meeting point for each order of each set of axes.
const MAX_AXES: usize = 5;

/// Every list of distinct axes.
fn orders(axes: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut done = 0;
    while done < all.len() {
        let longer = (0..axes).filter(|axis| !all[done].contains(axis));
        let longer: Vec<_> = longer.map(|axis| [all[done].as_slice(), &[axis]].concat()).collect();
        all.extend(longer);
        done += 1;
    }
    all
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_string())
}

impl<T> Grouping<T> {
    /// Makes one `T` for each group along `axes`.
    fn new(grid: &Grid, axes: &[usize], make: impl Fn(Vec<u32>) -> Result<T, Error>) -> Result<Self, Error> {
        if let Some(axis) = axes.iter().find(|&&axis| axis >= grid.axes.len()) {
            return Err(Error::Grid(format!("there is no axis {axis} among {}", grid.axes.len())));
        }
        let mut grouping = Grouping { groups: Vec::new(), place: Vec::new() };
        for device in 0..grid.devices() {
            let (members, position) = grid.group(device, axes);
            let known = grouping.groups.iter().position(|(others, _)| *others == members);
            let group = match known {
                Some(group) => group,
                None => {
                    grouping.groups.push((members.clone(), make(members)?));
                    grouping.groups.len() - 1
                }
            };
            grouping.place.push((group, position));
        }
        Ok(grouping)
    }

    fn of(&self, device: u32) -> (&[u32], &T, u32) {
        let (group, position) = self.place[device as usize];
        let (members, instance) = &self.groups[group];
        (members, instance, position)
    }
}

/// Keeps what belongs to a device on its worker's thread: a device does one thing at a time.
pub(crate) type OneThread = PhantomData<std::rc::Rc<()>>;

/// A device's view of the runtime, while its program runs.
#[derive(Clone, Copy, Debug)]
pub struct DeviceContext<'a> {
    shared: &'a Shared,
    device: u32,
    _worker: OneThread,
}

impl<'a> DeviceContext<'a> {
    /// The device's row-major index in the grid.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Devices of the grid.
    pub fn devices(&self) -> u32 {
        self.shared.devices
    }

    /// The device's group along `axes` (indices into `Grid::axes`), for collectives.
    pub fn group(&self, axes: &[usize]) -> Result<Group<'a>, Error> {
        let grouping = self.shared.groupings.get(axes).ok_or_else(|| {
            Error::Grid(format!("{axes:?} are not distinct axes among {}", self.shared.axes))
        })?;
        let (members, board, position) = grouping.of(self.device);
        let (watch, hooks) = (&*self.shared.watch, &*self.shared.hooks);
        Ok(Group { exchange: board, watch, hooks, members, position, _worker: self._worker })
    }

    /// Elements of the device's result of a fused step.
    pub fn result_elements(&self, step: StepKey) -> Result<usize, Error> {
        let (instance, position) = self.fused_step(step)?;
        Ok(instance.result_elements(position))
    }

    pub(crate) fn fused_step(&self, key: StepKey) -> Result<(&'a FusedStep, u32), Error> {
        let step = self.shared.steps.get(&key).ok_or(Error::UnknownStep(key))?;
        let (_, instance, position) = step.instances.of(self.device);
        Ok((instance, position))
    }

    pub(crate) fn own_result(&self, key: StepKey) -> Result<&'a OwnResult, Error> {
        let step = self.shared.steps.get(&key).ok_or(Error::UnknownStep(key))?;
        Ok(&step.results[self.device as usize])
    }
}
