//! Records what happens, for traces.

use crate::{memory::Stream, units::Picoseconds};

/// One line of a trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Something that lasted.
    Span {
        /// What.
        name: String,
        /// Where.
        track: String,
        /// When it began.
        start: Picoseconds,
        /// How long it took.
        length: Picoseconds,
    },
    /// A level that holds from a time on.
    Level {
        /// Of what.
        track: String,
        /// From when.
        at: Picoseconds,
        /// The level.
        value: f64,
    },
}

/// The width of a bin of memory traffic.
const BIN: Picoseconds = Picoseconds(1_000_000);

/// Collects the lines of one run, shifted by the time at which the run begins.
#[derive(Default)]
pub(crate) struct Recorder {
    pub lines: Vec<(usize, Line)>,
    offset: Picoseconds,
    /// Bin and bytes, by device and stream.
    bins: Vec<[(u64, u64); 2]>,
    /// Open span of each device's links.
    links: Vec<Vec<Option<(Picoseconds, Picoseconds)>>>,
    levels: Vec<[u64; 2]>,
}

const STREAMS: [&str; 2] = ["memory: compute, GB/s", "memory: communication, GB/s"];

impl Recorder {
    pub fn starting_at(offset: Picoseconds) -> Self {
        Self { offset, ..Self::default() }
    }

    pub fn wave(&mut self, device: usize, slot: u32, wave: usize, start: Picoseconds, end: Picoseconds) {
        let track = format!("compute units, work-group {slot}");
        self.span(device, format!("wave {wave}"), track, start, end - start);
    }

    fn span(&mut self, device: usize, name: String, track: String, at: Picoseconds, length: Picoseconds) {
        self.lines.push((device, Line::Span { name, track, start: at + self.offset, length }));
    }

    pub fn kernel(&mut self, name: &str, start: Picoseconds, end: Picoseconds) {
        let (name, track) = (name.to_owned(), "kernels".to_owned());
        self.lines.push((0, Line::Span { name, track, start, length: end - start }));
    }

    fn level(&mut self, device: usize, track: &str, at: Picoseconds, value: f64) {
        self.lines.push((device, Line::Level { track: track.to_owned(), at: at + self.offset, value }));
    }

    pub fn memory(&mut self, device: usize, now: Picoseconds, stream: Stream, bytes: u64) {
        if self.bins.len() <= device {
            self.bins.resize(device + 1, [(0, 0); 2]);
        }
        let bin = now.0 / BIN.0;
        let (open, sum) = self.bins[device][stream as usize];
        if open == bin {
            self.bins[device][stream as usize].1 += bytes;
            return;
        }
        self.bins[device][stream as usize] = (bin, bytes);
        self.close_bin(device, stream as usize, open, sum);
        if bin > open + 1 {
            self.level(device, STREAMS[stream as usize], Picoseconds((open + 1) * BIN.0), 0.0);
        }
    }

    fn close_bin(&mut self, device: usize, stream: usize, bin: u64, bytes: u64) {
        let rate = bytes as f64 * 1e12 / BIN.0 as f64 / 1e9;
        self.level(device, STREAMS[stream], Picoseconds(bin * BIN.0), rate);
    }

    pub fn tracker(&mut self, device: usize, now: Picoseconds, live: u64) {
        self.changing(device, 0, "tracked tiles", now, live);
    }

    /// Packets that senders have under way between memory and link.
    pub fn transfers(&mut self, device: usize, now: Picoseconds, packets: u64) {
        self.changing(device, 1, "packets of transfers", now, packets);
    }

    /// A level of which only changes are kept.
    fn changing(&mut self, device: usize, which: usize, track: &str, now: Picoseconds, value: u64) {
        if self.levels.len() <= device {
            self.levels.resize(device + 1, [0; 2]);
        }
        if self.levels[device][which] != value {
            self.levels[device][which] = value;
            self.level(device, track, now, value as f64);
        }
    }

    pub fn link(&mut self, device: usize, link: usize, now: Picoseconds, time: Picoseconds) {
        if self.links.len() <= device {
            self.links.resize(device + 1, Vec::new());
        }
        if self.links[device].len() <= link {
            self.links[device].resize(link + 1, None);
        }
        match &mut self.links[device][link] {
            Some((_, end)) if *end == now => *end = now + time,
            open => {
                let finished = open.replace((now, now + time));
                if let Some((start, end)) = finished {
                    self.span(device, "busy".to_owned(), format!("link {link}"), start, end - start);
                }
            }
        }
    }

    /// Closes what is open: the run is over.
    pub fn close(&mut self) {
        for (device, links) in std::mem::take(&mut self.links).into_iter().enumerate() {
            for (link, open) in links.into_iter().enumerate() {
                if let Some((start, end)) = open {
                    self.span(device, "busy".to_owned(), format!("link {link}"), start, end - start);
                }
            }
        }
        for (device, bins) in std::mem::take(&mut self.bins).into_iter().enumerate() {
            for (stream, (bin, bytes)) in bins.into_iter().enumerate() {
                self.close_bin(device, stream, bin, bytes);
                self.level(device, STREAMS[stream], Picoseconds((bin + 1) * BIN.0), 0.0);
            }
        }
        self.levels.clear();
    }
}
