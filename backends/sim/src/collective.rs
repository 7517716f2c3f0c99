//! A collective alone: what each device sends, when it may, and what it adds at the end.
//!
//! A ring has a step for each neighbour, which waits for what the step before brought. Direct and
//! in-network collectives send everything at once, to the nearest device down the ring first, so that no
//! two devices send to the same one at the same time.

use t3c_schedule::{Op, ring};

use crate::{
    machine::{Machine, Payload, Transfer},
    network::MULTICAST,
    workload::{Collective, Divided, Operation, Pattern},
};

/// How far one device has come.
pub(crate) struct CollectiveState {
    pub collective: Collective,
    /// Steps begun.
    begun: u32,
    steps: u32,
    is_finished: bool,
    /// Bytes received and written, by step.
    received: Vec<u64>,
    expected: Vec<u64>,
}

impl CollectiveState {
    pub fn new(collective: Collective, divided: &Divided, device: u32) -> Self {
        let steps = divided.devices.saturating_sub(1);
        let expected = (0..steps)
            .map(|step| match (collective.pattern, collective.operation) {
                // What arrives in a step is the chunk that the device after this one sends in it.
                (Pattern::Ring, operation) => {
                    divided.bytes(device, (sent_chunk(operation, step) + 1) % divided.devices)
                }
                (_, Operation::AllGather) => divided.bytes(device, step + 1),
                (Pattern::InNetwork, Operation::ReduceScatter | Operation::ReduceScatterNearMemory) => {
                    if step == 0 { divided.bytes(device, 0) } else { 0 }
                }
                (_, _) => divided.bytes(device, 0),
            })
            .collect();
        let received = vec![0; steps as usize];
        Self { collective, begun: 0, steps, is_finished: false, received, expected }
    }

    pub fn is_gather(&self) -> bool {
        self.collective.operation == Operation::AllGather
    }

    pub fn receive(&mut self, step: u32, bytes: u64) {
        if let Some(received) = self.received.get_mut(step as usize) {
            *received += bytes;
        }
    }

    /// Steps whose data has arrived, counted from the first one without a gap.
    pub fn arrived(&self) -> usize {
        self.received
            .iter()
            .zip(&self.expected)
            .take_while(|(received, expected)| received >= expected)
            .count()
    }

    /// The steps whose data never came, in words.
    pub fn waiting(&self, device: usize) -> Vec<String> {
        let steps = self.received.iter().zip(&self.expected).enumerate();
        steps
            .filter(|(_, (received, expected))| received < expected)
            .map(|(step, (received, expected))| {
                format!("device {device}, step {step} of its collective has {received} of {expected} B")
            })
            .collect()
    }

    /// The next step that may begin; the one after the last is what follows all of them.
    fn next(&mut self) -> Option<u32> {
        if self.is_finished {
            return None;
        }
        let step = self.begun;
        let is_ready = match self.collective.pattern {
            _ if step == self.steps => self.arrived() == self.steps as usize,
            Pattern::Ring => step == 0 || self.arrived() >= step as usize,
            Pattern::Direct | Pattern::InNetwork => true,
        };
        if !is_ready {
            return None;
        }
        if step == self.steps {
            self.is_finished = true;
        } else {
            self.begun += 1;
        }
        Some(step)
    }
}

/// The chunk, as the device counts, that it sends in `step` of a ring.
fn sent_chunk(operation: Operation, step: u32) -> u32 {
    match operation {
        Operation::AllGather => step,
        _ => step + 1,
    }
}

impl Machine<'_> {
    /// Begins every step of `device`'s collective whose data is there.
    pub fn advance_collective(&mut self, device: usize) {
        while let Some(state) = &mut self.devices[device].collective {
            let (collective, steps) = (state.collective, state.steps);
            let Some(step) = state.next() else { return };
            if step < steps {
                self.begin_step(device, collective, step);
            } else if collective.operation == Operation::ReduceScatter {
                // The received parts of the device's own chunk and its own, to their sum.
                let parts = match collective.pattern {
                    Pattern::Ring => 2,
                    Pattern::Direct => u64::from(self.divided.devices),
                    Pattern::InNetwork => return,
                };
                let bytes = self.divided.bytes(device as u32, 0);
                self.reduce(device, bytes, parts);
            }
        }
    }

    fn begin_step(&mut self, device: usize, collective: Collective, step: u32) {
        let devices = self.divided.devices;
        let Collective { pattern, operation } = collective;
        let bytes = |relative| self.divided.bytes(device as u32, relative % devices);
        let payload = Payload::Step(step);
        let op = match operation {
            Operation::ReduceScatterNearMemory if pattern != Pattern::InNetwork => Op::Update,
            _ => Op::Store,
        };
        let transfers = match pattern {
            Pattern::Ring => {
                // From the second step of a reduction on, what arrived is added to the device's own part.
                let reads = if operation == Operation::ReduceScatter && step > 0 { 2 } else { 1 };
                let left = bytes(sent_chunk(operation, step));
                vec![Transfer { to: ring::neighbour_distance(devices), payload, op, left, reads }]
            }
            Pattern::InNetwork if operation == Operation::AllGather => match step {
                0 => vec![Transfer { to: MULTICAST, payload, op, left: bytes(0), reads: 1 }],
                _ => vec![],
            },
            Pattern::Direct | Pattern::InNetwork => {
                let to = devices - 1 - step;
                let merges = pattern == Pattern::InNetwork && operation != Operation::AllToAll;
                let payload = if merges { Payload::Merged } else { payload };
                let send = |to, left| Transfer { to, payload, op, left, reads: 1 };
                let left = bytes(if operation == Operation::AllGather { 0 } else { to });
                let mut transfers = vec![send(to, left)];
                if merges && step == 0 {
                    // The device's own contribution passes through the switch too.
                    transfers.push(send(0, bytes(0)));
                }
                transfers
            }
        };
        transfers.into_iter().for_each(|transfer| self.transfer(device, transfer));
    }
}
