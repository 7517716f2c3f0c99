//! Links and switches: packets from one device's memory to another's.
//!
//! On a ring a packet that passes other devices occupies their links, and theirs this one's, so a longer
//! way is a longer time on the device's own link. A switch has a port for each device, with a line in each
//! direction; two devices that send to a third one share its line. A reducing switch adds contributions as
//! they pass and copies what all devices want; its buffers are taken as large enough.

use std::collections::{HashMap, VecDeque};

use t3c_schedule::ring;

use crate::{
    machine::{Event, Machine, Origin, Packet, Payload, Tag, kind_of},
    memory::{Kind, Request, Stream},
    system::Topology,
    tracker::BlockAt,
    units::{Picoseconds, duration},
};

/// The destination of a packet that a reducing switch copies to all other devices.
pub(crate) const MULTICAST: u32 = u32::MAX;

/// A queue of packets for one line.
#[derive(Default)]
pub(crate) struct Line {
    queue: VecDeque<Packet>,
    in_flight: Option<Packet>,
}

/// What one device's port of a switch holds.
#[derive(Default)]
pub(crate) struct Port {
    /// From the switch to the device.
    down: Line,
    /// Bytes that came for each part of a sum, and bytes of the sum that went on.
    sums: HashMap<(u32, u32), (u64, u64)>,
}

/// Lines that lead from a device.
pub(crate) fn lines(topology: Topology, devices: u32) -> Vec<Line> {
    let count = match topology {
        Topology::Ring => 2,
        Topology::FullyConnected => devices.saturating_sub(1).max(1) as usize,
        Topology::Switch | Topology::ReducingSwitch => 1,
    };
    (0..count).map(|_| Line::default()).collect()
}

impl Machine<'_> {
    /// The line that leads to distance `to`, and how many of its like a packet passes.
    fn route(&self, to: u32) -> (usize, u64) {
        let devices = self.divided.devices;
        match self.system.link.topology {
            Topology::FullyConnected => (to.saturating_sub(1) as usize, 1),
            Topology::Switch | Topology::ReducingSwitch => (0, 1),
            Topology::Ring if to * 2 > devices || to == ring::neighbour_distance(devices) => {
                (0, u64::from(devices - to))
            }
            Topology::Ring => (1, u64::from(to)),
        }
    }

    /// Bytes a second of the lines from `device`.
    fn link_bandwidth(&self, device: usize) -> u64 {
        let bandwidth = self.system.link.bandwidth;
        match self.slow(device) {
            Some(slow) => (bandwidth.saturating_mul(slow.link_percent) / 100).max(1),
            None => bandwidth,
        }
    }

    pub fn send(&mut self, device: usize, packet: Packet) {
        let (line, _) = self.route(packet.to);
        self.devices[device].lines[line].queue.push_back(packet);
        self.advance_line(device, line);
    }

    fn advance_line(&mut self, device: usize, line: usize) {
        let bandwidth = self.link_bandwidth(device);
        let state = &mut self.devices[device].lines[line];
        if state.in_flight.is_some() {
            return;
        }
        let Some(packet) = state.queue.pop_front() else { return };
        state.in_flight = Some(packet);
        let (_, hops) = self.route(packet.to);
        let time = duration(packet.bytes.saturating_mul(hops), bandwidth);
        if let Some(recorder) = &mut self.recorder {
            recorder.link(device, line, self.events.now(), time);
        }
        self.devices[device].sent += packet.bytes;
        self.events.after(time, Event::Sent(device as u32, line as u32));
    }

    pub fn packet_sent(&mut self, device: usize, line: usize) {
        let Some(packet) = self.devices[device].lines[line].in_flight.take() else { return };
        let (_, hops) = self.route(packet.to);
        let latency = Picoseconds(self.system.link.latency.0.saturating_mul(hops));
        if packet.to == MULTICAST {
            for to in 1..self.divided.devices {
                // Of the device at distance `to`, this one is the other way around.
                let step = self.divided.devices - 1 - to;
                self.fly(device, Packet { to, payload: Payload::Step(step), ..packet }, latency);
            }
        } else {
            self.fly(device, packet, latency);
        }
        self.advance_line(device, line);
        match packet.origin {
            Origin::Producer(slot) => self.store_accepted(device, slot),
            Origin::Sender => self.sender_is_free(device, packet.to),
        }
    }

    fn fly(&mut self, device: usize, packet: Packet, latency: Picoseconds) {
        let peer = self.peer(device, packet.to);
        let number = match self.landed.pop() {
            Some(number) => {
                self.flying[number as usize] = packet;
                number
            }
            None => {
                self.flying.push(packet);
                self.flying.len() as u32 - 1
            }
        };
        self.events.after(latency, Event::Arrived(peer as u32, number));
    }

    /// A packet is at its destination, or at the destination's port of a switch.
    pub fn packet_arrived(&mut self, device: usize, number: u32) {
        let packet = self.flying[number as usize];
        self.landed.push(number);
        let packet = match self.system.link.topology {
            Topology::Ring | Topology::FullyConnected => return self.receive(device, packet),
            Topology::Switch => packet,
            Topology::ReducingSwitch => match self.add_in_switch(device, packet) {
                Some(sum) => sum,
                None => return,
            },
        };
        self.devices[device].port.down.queue.push_back(packet);
        self.advance_port(device);
    }

    /// What the switch passes on of a packet: the part of a sum that is now complete.
    fn add_in_switch(&mut self, device: usize, packet: Packet) -> Option<Packet> {
        let devices = u64::from(self.divided.devices);
        let (key, copies) = match packet.payload {
            // Every device's contribution, the receiver's own among them.
            Payload::Merged => ((0, 0), devices),
            Payload::Block(BlockAt { relative, block }) => {
                let trackers = self.devices[device].trackers.as_ref();
                ((relative, block), trackers.map_or(1, |trackers| trackers.arrivals(relative)))
            }
            Payload::Step(_) => return Some(packet),
        };
        let (came, went) = self.devices[device].port.sums.entry(key).or_default();
        *came += packet.bytes;
        let bytes = *came / copies.max(1) - *went;
        *went += bytes;
        (bytes > 0).then_some(Packet { bytes, ..packet })
    }

    fn advance_port(&mut self, device: usize) {
        let bandwidth = self.link_bandwidth(device);
        let down = &mut self.devices[device].port.down;
        if down.in_flight.is_some() {
            return;
        }
        let Some(packet) = down.queue.pop_front() else { return };
        down.in_flight = Some(packet);
        self.events.after(duration(packet.bytes, bandwidth), Event::Descended(device as u32));
    }

    pub fn packet_descended(&mut self, device: usize) {
        let Some(packet) = self.devices[device].port.down.in_flight.take() else { return };
        self.advance_port(device);
        self.receive(device, packet);
    }

    /// Writes a packet to memory.
    fn receive(&mut self, device: usize, packet: Packet) {
        let state = &mut self.devices[device];
        let bytes = packet.bytes;
        let is_gather = state.collective.as_ref().is_some_and(|collective| collective.is_gather());
        *state.traffic.communication_writes(is_gather) += bytes;
        let kind = kind_of(packet.op);
        if kind == Kind::Update {
            state.traffic.updates += bytes;
        }
        let (stream, tag) = (Stream::Communication, Tag::Incoming(packet));
        self.request(device, Request { kind, stream, bytes, tag });
    }
}
