//! A ring collective alone: a step for each neighbour, each waiting for what the step before brought.

use t3c_schedule::{Op, ring};

use crate::{
    machine::{Machine, Payload, Transfer},
    workload::{Divided, Ring},
};

/// How far one device has come.
pub(crate) struct RingState {
    pub kind: Ring,
    /// Steps begun.
    begun: u32,
    steps: u32,
    is_finished: bool,
    /// Bytes received and written, by step.
    received: Vec<u64>,
    expected: Vec<u64>,
}

impl RingState {
    pub fn new(kind: Ring, divided: &Divided, device: u32) -> Self {
        let steps = divided.devices.saturating_sub(1);
        // What arrives in a step is the chunk that the device after this one sends in it.
        let expected = (0..steps)
            .map(|step| divided.bytes(device, (sent_chunk(kind, step) + 1) % divided.devices))
            .collect();
        let received = vec![0; steps as usize];
        Self { kind, begun: 0, steps, is_finished: false, received, expected }
    }

    pub fn receive(&mut self, step: u32, bytes: u64) {
        if let Some(received) = self.received.get_mut(step as usize) {
            *received += bytes;
        }
    }

    /// The next step whose data is there.
    fn next(&mut self) -> Option<u32> {
        let has_arrived = |step: usize| self.received[step] >= self.expected[step];
        let is_ready = self.begun == 0 || has_arrived(self.begun as usize - 1);
        if !is_ready || self.begun > self.steps || self.is_finished {
            return None;
        }
        let step = self.begun;
        if step == self.steps {
            self.is_finished = true;
        } else {
            self.begun += 1;
        }
        Some(step)
    }
}

/// The chunk, as the device counts, that it sends in `step`.
fn sent_chunk(kind: Ring, step: u32) -> u32 {
    match kind {
        Ring::ReduceScatter | Ring::ReduceScatterNearMemory => step + 1,
        Ring::AllGather => step,
    }
}

impl Machine<'_> {
    /// Begins every step of `device`'s collective whose data is there.
    pub fn advance_ring(&mut self, device: usize) {
        while let Some(ring) = &mut self.devices[device].ring {
            let (kind, steps) = (ring.kind, ring.steps);
            let Some(step) = ring.next() else { return };
            if step < steps {
                self.begin_step(device, kind, step);
            } else if kind == Ring::ReduceScatter {
                // The received part of the device's own chunk and its own, to their sum.
                let bytes = self.divided.bytes(device as u32, 0);
                self.reduce(device, bytes, 2);
            }
        }
    }

    fn begin_step(&mut self, device: usize, kind: Ring, step: u32) {
        let devices = self.divided.devices;
        let left = self.divided.bytes(device as u32, sent_chunk(kind, step) % devices);
        let (op, reads) = match kind {
            // From the second step on, what arrived is added to the device's own part.
            Ring::ReduceScatter => (Op::Store, if step == 0 { 1 } else { 2 }),
            Ring::ReduceScatterNearMemory => (Op::Update, 1),
            Ring::AllGather => (Op::Store, 1),
        };
        let to = ring::neighbour_distance(devices);
        self.transfer(device, Transfer { to, payload: Payload::RingStep(step), op, left, reads });
    }
}
