//! A device's memory: two streams, arbitration into a finite queue, and bursts with their timing.
//!
//! Addresses are interleaved over all channels, so every burst occupies each channel alike and one
//! channel stands for all. A burst is a run of accesses to one open row; the controller serves bursts
//! of one direction while the queue holds any (up to a limit), because turning the bus around costs
//! idle cycles.

use std::collections::VecDeque;

use crate::{
    system::System,
    units::{Picoseconds, duration},
};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// Near-memory op-and-store.
    Update,
}

/// Whose accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Compute,
    Communication,
}

/// How the streams enter the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Arbitration {
    /// In turn.
    RoundRobin,
    /// Compute first; communication while the queue is short (the paper's MCA).
    ComputeFirst,
}

pub(crate) struct Request<T> {
    pub kind: Kind,
    pub stream: Stream,
    pub bytes: u64,
    pub tag: T,
}

struct Waiting<T> {
    request: Request<T>,
    since: Picoseconds,
}

struct Burst<T> {
    kind: Kind,
    stream: Stream,
    bytes: u64,
    /// The request's tag, with its last burst.
    finishes: Option<T>,
}

pub(crate) struct Memory<T> {
    /// The compute stream's loads and uncached updates, in order.
    compute: VecDeque<Waiting<T>>,
    /// Its plain stores: the cache holds them and writes them back when no load waits.
    write_back: VecDeque<Waiting<T>>,
    communication: VecDeque<Waiting<T>>,
    queue: VecDeque<Burst<T>>,
    in_service: Option<Burst<T>>,
    last_kind: Kind,
    /// Bursts served in one direction without a break.
    run: u64,
    last_stream: Stream,
    arbitration: Arbitration,
    /// Accesses in the queue from which communication waits; `None` is no limit.
    threshold: Option<u64>,
    last_communication: Picoseconds,
    /// Time in which bursts of each stream were served.
    pub busy: [Picoseconds; 2],
}

impl<T: Copy> Memory<T> {
    pub fn new(arbitration: Arbitration) -> Self {
        Self {
            compute: VecDeque::new(),
            write_back: VecDeque::new(),
            communication: VecDeque::new(),
            queue: VecDeque::new(),
            in_service: None,
            last_kind: Kind::Read,
            run: 0,
            last_stream: Stream::Communication,
            arbitration,
            threshold: None,
            last_communication: Picoseconds(0),
            busy: [Picoseconds(0); 2],
        }
    }

    pub fn push(&mut self, request: Request<T>, now: Picoseconds) {
        let waiting = match (request.stream, request.kind) {
            (Stream::Communication, _) => &mut self.communication,
            (Stream::Compute, Kind::Write) => &mut self.write_back,
            (Stream::Compute, _) => &mut self.compute,
        };
        waiting.push_back(Waiting { request, since: now });
    }

    /// Chooses the queue occupancy under which communication may enter, from the share of time that
    /// the first stage kept memory busy.
    pub fn choose_threshold(&mut self, elapsed: Picoseconds, system: &System) {
        let percent = self.busy[Stream::Compute as usize].0.saturating_mul(100) / elapsed.0.max(1);
        let rules = system.arbitration.intensity_percent.iter().zip(system.arbitration.thresholds);
        self.threshold = rules.into_iter().find(|(from, _)| percent >= **from).map(|(_, limit)| limit);
    }

    /// Fills the queue and, if memory is idle, starts a burst: the result is how long it takes.
    pub fn advance(&mut self, now: Picoseconds, system: &System) -> Option<Picoseconds> {
        self.admit(now, system);
        if self.in_service.is_some() {
            return None;
        }
        let burst = self.select(system)?;
        let time = self.service_time(&burst, system);
        self.busy[burst.stream as usize] += time;
        self.in_service = Some(burst);
        // The place in the queue is free from now on.
        self.admit(now, system);
        Some(time)
    }

    /// The burst in service is over. If it was its request's last one, the request's tag is returned;
    /// with it the stream and bytes of the burst.
    pub fn complete(&mut self) -> Option<(Stream, u64, Option<T>)> {
        self.in_service.take().map(|burst| (burst.stream, burst.bytes, burst.finishes))
    }

    fn admit(&mut self, now: Picoseconds, system: &System) {
        let memory = &system.memory;
        while (self.queue.len() as u64 + 1) * memory.burst <= memory.queue {
            let Some(stream) = self.choose_stream(now, system) else { return };
            let waiting = match stream {
                Stream::Communication => &mut self.communication,
                Stream::Compute if self.compute.is_empty() => &mut self.write_back,
                Stream::Compute => &mut self.compute,
            };
            let Some(head) = waiting.front_mut() else { return };
            let bytes = head.request.bytes.min(memory.burst_bytes());
            head.request.bytes -= bytes;
            let kind = head.request.kind;
            let finishes = (head.request.bytes == 0).then_some(head.request.tag);
            if finishes.is_some() {
                waiting.pop_front();
            }
            if stream == Stream::Communication {
                self.last_communication = now;
            }
            self.last_stream = stream;
            self.queue.push_back(Burst { kind, stream, bytes, finishes });
        }
    }

    fn choose_stream(&self, now: Picoseconds, system: &System) -> Option<Stream> {
        let has_no_compute = self.compute.is_empty() && self.write_back.is_empty();
        match (has_no_compute, self.communication.front()) {
            (true, None) => None,
            (false, None) => Some(Stream::Compute),
            (is_alone, Some(head)) => match self.arbitration {
                Arbitration::RoundRobin if is_alone => Some(Stream::Communication),
                Arbitration::RoundRobin => Some(match self.last_stream {
                    Stream::Compute => Stream::Communication,
                    Stream::Communication => Stream::Compute,
                }),
                Arbitration::ComputeFirst => {
                    let since = head.since.max(self.last_communication);
                    let is_starved = now - since >= system.arbitration.starvation;
                    let occupancy = self.queue.len() as u64 * system.memory.burst;
                    let is_short = self.threshold.is_none_or(|limit| occupancy < limit);
                    match is_alone {
                        _ if is_starved => Some(Stream::Communication),
                        false => Some(Stream::Compute),
                        true => is_short.then_some(Stream::Communication),
                    }
                }
            },
        }
    }

    /// First ready: the oldest burst in the bus's direction, until the run is long enough.
    fn select(&mut self, system: &System) -> Option<Burst<T>> {
        let reads = self.last_kind == Kind::Read;
        let keeps_direction = self.run < system.memory.direction_limit;
        let preferred = |burst: &Burst<T>| ((burst.kind == Kind::Read) == reads) == keeps_direction;
        let index = self.queue.iter().position(preferred).unwrap_or(0);
        self.queue.remove(index)
    }

    fn service_time(&mut self, burst: &Burst<T>, system: &System) -> Picoseconds {
        let memory = &system.memory;
        let mut time = duration(burst.bytes, memory.bandwidth);
        if burst.kind == Kind::Update {
            time = Picoseconds(time.0.saturating_mul(memory.update_percent) / 100);
        }
        let (was_read, is_read) = (self.last_kind == Kind::Read, burst.kind == Kind::Read);
        if was_read == is_read {
            self.run += 1;
        } else {
            self.run = 1;
            time += memory.cycles(if was_read {
                memory.read_to_write_cycles
            } else {
                memory.write_to_read_cycles
            });
        }
        self.last_kind = burst.kind;
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(arbitration: Arbitration, requests: &[(Kind, Stream)]) -> (Vec<usize>, Picoseconds) {
        let system = System::open("t3-80cu").unwrap();
        let mut memory = Memory::new(arbitration);
        let bytes = system.memory.burst_bytes();
        for (tag, &(kind, stream)) in requests.iter().enumerate() {
            memory.push(Request { kind, stream, bytes, tag }, Picoseconds(0));
        }
        let (mut now, mut order) = (Picoseconds(0), vec![]);
        while let Some(time) = memory.advance(now, &system) {
            now += time;
            order.extend(memory.complete().and_then(|(_, _, tag)| tag));
        }
        (order, now)
    }

    use Kind::*;
    use Stream::*;

    #[test]
    fn streams_take_turns_or_compute_goes_first() {
        let requests = [(Read, Communication), (Read, Communication), (Read, Compute), (Read, Compute)];
        assert_eq!(order(Arbitration::RoundRobin, &requests).0, [2, 0, 3, 1]);
        assert_eq!(order(Arbitration::ComputeFirst, &requests).0, [2, 3, 0, 1]);
    }

    #[test]
    fn loads_pass_cached_stores_but_not_updates() {
        let first_read = |before| {
            let mut requests = vec![(before, Compute); 20];
            requests.push((Read, Compute));
            let (served, _) = order(Arbitration::RoundRobin, &requests);
            served.iter().position(|&tag| tag == 20).unwrap()
        };
        assert_eq!(first_read(Write), 0);
        assert!(first_read(Update) > 10);
    }

    #[test]
    fn bursts_of_one_direction_go_together() {
        let mixed = [(Read, Compute), (Write, Compute), (Read, Compute), (Write, Compute)];
        let (served, mixed_time) = order(Arbitration::RoundRobin, &mixed);
        assert_eq!(served, [0, 2, 1, 3]);
        let (_, reads_time) = order(Arbitration::RoundRobin, &[(Read, Compute); 4]);
        assert_eq!(mixed_time - reads_time, Picoseconds(13_000), "one turn of 13 cycles at 1 GHz");
    }

    #[test]
    fn updates_take_longer_than_writes() {
        let (_, writes) = order(Arbitration::RoundRobin, &[(Write, Compute)]);
        let (_, updates) = order(Arbitration::RoundRobin, &[(Update, Compute)]);
        assert_eq!(updates - writes, Picoseconds(16_384));
    }
}
