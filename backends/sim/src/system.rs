//! The machine: every parameter that the model uses, read from a system file.

use t3c_schedule::{Element, cost::Rates};

use crate::{
    Error,
    fields::{Fields, Source, with_field},
    units::{Dimension, Picoseconds, duration},
};

/// How the devices of a group are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topology {
    /// Each device to the next one up and down; longer distances pass through the devices between.
    Ring,
    /// Each device to every other by a link of its own.
    FullyConnected,
    /// Each device to a switch, by a line in each direction.
    Switch,
    /// The same with a switch that adds contributions as they pass and copies what all want.
    ReducingSwitch,
}

/// The compute units and what one work-group does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compute {
    /// Compute units.
    pub units: u64,
    /// Work-groups that a unit holds at a time; it multiplies for one while others load or store.
    pub workgroups_per_unit: u64,
    /// Their clock, in hertz.
    pub clock: u64,
    /// 16-bit floating-point operations a cycle of one unit's matrix pipeline.
    pub matrix_flops_per_cycle_f16: u64,
    /// The same in 32 bits.
    pub matrix_flops_per_cycle_f32: u64,
    /// Elementwise floating-point operations a cycle of one unit.
    pub vector_flops_per_cycle: u64,
    /// Rows of a work-group's output tile.
    pub tile_rows: u64,
    /// Columns of a work-group's output tile.
    pub tile_columns: u64,
    /// Reduction indices that a work-group loads ahead while it multiplies the ones before.
    pub k_step: u64,
    /// From the host's launch to the first work-group.
    pub kernel_launch: Picoseconds,
    /// Bytes a second, loads and stores together, that one unit moves when it runs a collective.
    pub unit_bandwidth: u64,
    /// Wavefronts of a work-group: each has a counter of its own in the tracker.
    pub wavefronts_per_workgroup: u64,
}

/// What part of a limit measured kernels reach, for work that is not simulated tile by tile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Efficiency {
    /// Of the matrix pipelines, in attention.
    pub attention_percent: u64,
    /// Of the memory's bandwidth, in elementwise work, norms and look-ups.
    pub memory_percent: u64,
}

/// One device that is slower than the others. All devices are simulated then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Straggler {
    /// Which.
    pub device: u32,
    /// Its arithmetic, in percent of the others'.
    pub compute_percent: u64,
    /// Its links, in percent of the others'.
    pub link_percent: u64,
}

/// Which item leaves a full cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Replacement {
    /// The one not used for longest: a sweep just over the capacity never hits.
    LeastRecentlyUsed,
    /// Any, by a fixed generator: a sweep over the capacity hits in part.
    Random,
}

/// The last-level cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cache {
    /// Bytes.
    pub capacity: u64,
    /// Bytes a second to the compute units.
    pub bandwidth: u64,
    /// From a request to its data, on a hit.
    pub latency: Picoseconds,
    /// What leaves when it is full.
    pub replacement: Replacement,
}

/// Memory and its controller. Addresses are interleaved over all channels, so the channels are alike
/// and a burst occupies all of them at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Channels.
    pub channels: u64,
    /// Bytes a second of all of them.
    pub bandwidth: u64,
    /// The controller's clock, in hertz.
    pub clock: u64,
    /// Bytes of one access to one channel.
    pub access: u64,
    /// Accesses that a channel's queue holds.
    pub queue: u64,
    /// Accesses to one open row that are served together.
    pub burst: u64,
    /// Bursts of one direction that are served before a waiting one of the other.
    pub direction_limit: u64,
    /// Idle cycles when a write follows a read.
    pub read_to_write_cycles: u64,
    /// Idle cycles when a read follows a write.
    pub write_to_read_cycles: u64,
    /// From the end of an access to its data at the compute units.
    pub latency: Picoseconds,
    /// Time of a near-memory update in hundredths of a write's.
    pub update_percent: u64,
}

/// Arbitration between the two streams under `t3-mca`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arbitration {
    /// Queue occupancies (accesses a channel) under which communication may enter, for kernels from
    /// the most to the least memory-intensive; beyond the last there is no limit.
    pub thresholds: [u64; 3],
    /// Share of the memory's time that the first stage uses, in percent, from which each threshold
    /// applies.
    pub intensity_percent: [u64; 3],
    /// The longest that communication waits.
    pub starvation: Picoseconds,
}

/// Links between devices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Shape of the network.
    pub topology: Topology,
    /// Bytes a second of one link in one direction.
    pub bandwidth: u64,
    /// From one end to the other.
    pub latency: Picoseconds,
    /// Bytes that travel as one unit.
    pub packet: u64,
}

/// Tracker and DMA engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trigger {
    /// Sets of the tracker's table.
    pub tracker_entries: u64,
    /// Counters of a set.
    pub tracker_ways: u64,
    /// From the last update to the transfer's first access.
    pub latency: Picoseconds,
    /// Packets that one device's sender has under way between memory and link.
    pub outstanding: u64,
}

/// One machine of alike accelerators.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct System {
    /// Its name, for reports.
    pub name: String,
    /// The largest group of devices that its links connect.
    pub devices: u32,
    /// Compute units.
    pub compute: Compute,
    /// Last-level cache.
    pub cache: Cache,
    /// Memory.
    pub memory: Memory,
    /// Tracker and DMA engine.
    pub trigger: Trigger,
    /// Stream arbitration.
    pub arbitration: Arbitration,
    /// Links.
    pub link: Link,
    /// What measured kernels reach.
    pub efficiency: Efficiency,
    /// A slower device, if there is one.
    pub straggler: Option<Straggler>,
}

fn read(path: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
        built_in: System::built_in_names().collect::<Vec<_>>().join(", "),
    })
}

/// The systems that are built in, by name.
const BUILT_IN: [(&str, &str); 9] = [
    ("t3-80cu", include_str!("../../../examples/systems/t3-80cu.toml")),
    ("t3-80cu-75gb", include_str!("../../../examples/systems/t3-80cu-75gb.toml")),
    ("t3-160cu", include_str!("../../../examples/systems/t3-160cu.toml")),
    ("a100-x8", include_str!("../../../examples/systems/a100-x8.toml")),
    ("h200-x8", include_str!("../../../examples/systems/h200-x8.toml")),
    ("mi210-x8", include_str!("../../../examples/systems/mi210-x8.toml")),
    ("mi300x-x8", include_str!("../../../examples/systems/mi300x-x8.toml")),
    ("h100-x8", include_str!("../../../examples/systems/h100-x8.toml")),
    ("mi210-x4", include_str!("../../../examples/systems/mi210-x4.toml")),
];

impl System {
    /// The names that [`System::open`] knows without a file.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// A built-in system by name, or a system file by path.
    pub fn open(name_or_path: &str) -> Result<System, Error> {
        System::open_with(name_or_path, &[])
    }

    /// The same with some fields changed, such as `("link.bandwidth", "75 GB/s")`: what a sweep does.
    pub fn open_with(name_or_path: &str, changes: &[(&str, &str)]) -> Result<System, Error> {
        let (mut text, file) = match BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            Some((name, text)) => ((*text).to_owned(), format!("{name}.toml")),
            None => (read(name_or_path)?, name_or_path.to_owned()),
        };
        for (key, value) in changes {
            text = with_field(Source { file: &file, text: &text }, key, value)?;
        }
        System::parse(&text, &file)
    }

    /// Whether a system has a field of that name, such as `link.bandwidth`.
    pub fn has_field(key: &str) -> bool {
        let (name, text) = BUILT_IN[0];
        with_field(Source { file: name, text }, key, "1").is_ok()
    }

    /// Reads the text of a system file; `file` is its name in errors.
    pub fn parse(text: &str, file: &str) -> Result<System, Error> {
        let source = Source { file, text };
        let mut root = Fields::root(source)?;
        let system = System {
            name: root.text("name")?,
            devices: u32::try_from(root.count("devices")?).unwrap_or(u32::MAX),
            compute: Compute::read(root.table("compute")?)?,
            cache: Cache::read(root.table("cache")?)?,
            memory: Memory::read(root.table("memory")?)?,
            trigger: Trigger::read(root.table("trigger")?)?,
            arbitration: Arbitration::read(root.table("arbitration")?)?,
            link: Link::read(root.table("link")?)?,
            efficiency: Efficiency::read(root.table("efficiency")?)?,
            straggler: match root.has("straggler") {
                true => Some(Straggler::read(root.table("straggler")?)?),
                false => None,
            },
        };
        root.finish()?;
        system.moves(&source)?;
        Ok(system)
    }

    /// Memory drains a full queue, and a link a packet, in a time that a simulation reaches: what does not is a
    /// unit gone wrong.
    fn moves(&self, source: &Source) -> Result<(), Error> {
        const LONGEST: Picoseconds = Picoseconds(Picoseconds::PER_SECOND / 1000);
        let memory = &self.memory;
        let queue = memory.queue.saturating_mul(memory.access).saturating_mul(memory.channels);
        let link = (self.link.packet, self.link.bandwidth, "link.bandwidth", "a packet");
        for (bytes, rate, field, what) in
            [(queue, memory.bandwidth, "memory.bandwidth", "a full queue"), link]
        {
            let time = duration(bytes, rate);
            if time > LONGEST {
                let ms = time.as_us() / 1000.0;
                let message = format!(
                    "`{field}` never drains its queue: {what} of {bytes} B takes {ms:.0} ms, where 1 ms is the most"
                );
                return Err(source.field_error(field, message));
            }
        }
        Ok(())
    }

    /// Floating-point operations a second of the whole device's matrix pipelines.
    pub fn matrix_flops_per_second(&self, element: Element) -> u64 {
        let per_cycle = self.compute.units * self.compute.matrix_flops_per_cycle(element);
        per_cycle.saturating_mul(self.compute.clock)
    }

    /// Floating-point operations a second of the whole device's vector units.
    pub fn vector_flops_per_second(&self) -> u64 {
        (self.compute.units * self.compute.vector_flops_per_cycle).saturating_mul(self.compute.clock)
    }

    /// What the closed-form bound needs.
    pub fn rates(&self, element: Element) -> Rates {
        Rates {
            flops_per_second: self.matrix_flops_per_second(element) as f64,
            memory_bytes_per_second: self.memory.bandwidth as f64,
            link_bytes_per_second: self.link.bandwidth as f64,
            link_latency_seconds: self.link.latency.as_seconds(),
            trigger_seconds: self.trigger.latency.as_seconds(),
            launch_seconds: self.compute.kernel_launch.as_seconds(),
        }
    }
}

impl Compute {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            units: fields.count("units")?,
            workgroups_per_unit: fields.count("workgroups_per_unit")?,
            clock: fields.quantity("clock", Dimension::Frequency)?,
            matrix_flops_per_cycle_f16: fields.count("matrix_flops_per_cycle_f16")?,
            matrix_flops_per_cycle_f32: fields.count("matrix_flops_per_cycle_f32")?,
            vector_flops_per_cycle: fields.count("vector_flops_per_cycle")?,
            tile_rows: fields.count("tile_rows")?,
            tile_columns: fields.count("tile_columns")?,
            k_step: fields.count("k_step")?,
            kernel_launch: Picoseconds(fields.quantity("kernel_launch", Dimension::Time)?),
            unit_bandwidth: fields.quantity("unit_bandwidth", Dimension::Bandwidth)?,
            wavefronts_per_workgroup: fields.count("wavefronts_per_workgroup")?,
        };
        fields.finish()?;
        Ok(read)
    }

    /// Operations a cycle of one unit on `element`; 64-bit ones run at half the 32-bit rate.
    pub fn matrix_flops_per_cycle(&self, element: Element) -> u64 {
        match element {
            Element::F16 | Element::Bf16 => self.matrix_flops_per_cycle_f16,
            Element::F64 | Element::I64 => self.matrix_flops_per_cycle_f32.div_ceil(2),
            Element::F32 | Element::I32 | Element::I1 => self.matrix_flops_per_cycle_f32,
        }
    }
}

impl Cache {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let replacements = [("lru", Replacement::LeastRecentlyUsed), ("random", Replacement::Random)];
        let read = Self {
            capacity: fields.quantity("capacity", Dimension::Size)?,
            bandwidth: fields.quantity("bandwidth", Dimension::Bandwidth)?,
            latency: Picoseconds(fields.quantity("latency", Dimension::Time)?),
            replacement: fields.choice("replacement", &replacements)?,
        };
        fields.finish()?;
        Ok(read)
    }
}

impl Memory {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            channels: fields.count("channels")?,
            bandwidth: fields.quantity("bandwidth", Dimension::Bandwidth)?,
            clock: fields.quantity("clock", Dimension::Frequency)?,
            access: fields.quantity("access", Dimension::Size)?,
            queue: fields.count("queue")?,
            burst: fields.count("burst")?,
            direction_limit: fields.count("direction_limit")?,
            read_to_write_cycles: fields.count("read_to_write_cycles")?,
            write_to_read_cycles: fields.count("write_to_read_cycles")?,
            latency: Picoseconds(fields.quantity("latency", Dimension::Time)?),
            update_percent: fields.count("update_percent")?,
        };
        if read.burst > read.queue {
            return Err(fields.error("burst", "a burst must fit the queue"));
        }
        fields.finish()?;
        Ok(read)
    }

    /// Bytes of one burst over all channels.
    pub fn burst_bytes(&self) -> u64 {
        self.burst.saturating_mul(self.access).saturating_mul(self.channels)
    }

    /// The time of `cycles` of the controller's clock.
    pub fn cycles(&self, cycles: u64) -> Picoseconds {
        duration(cycles, self.clock)
    }
}

impl Trigger {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            tracker_entries: fields.count("tracker_entries")?,
            tracker_ways: fields.count("tracker_ways")?,
            latency: Picoseconds(fields.quantity("latency", Dimension::Time)?),
            outstanding: fields.count("outstanding")?,
        };
        fields.finish()?;
        Ok(read)
    }
}

impl Efficiency {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            attention_percent: fields.percent("attention_percent")?,
            memory_percent: fields.percent("memory_percent")?,
        };
        fields.finish()?;
        Ok(read)
    }
}

impl Straggler {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            device: u32::try_from(fields.index("device")?).unwrap_or(u32::MAX),
            compute_percent: fields.percent("compute_percent")?,
            link_percent: fields.percent("link_percent")?,
        };
        fields.finish()?;
        Ok(read)
    }
}

impl Arbitration {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let read = Self {
            thresholds: fields.counts("thresholds")?,
            intensity_percent: fields.counts("intensity_percent")?,
            starvation: Picoseconds(fields.quantity("starvation", Dimension::Time)?),
        };
        fields.finish()?;
        Ok(read)
    }
}

impl Link {
    fn read(mut fields: Fields) -> Result<Self, Error> {
        let topologies = [
            ("ring", Topology::Ring),
            ("fully-connected", Topology::FullyConnected),
            ("switch", Topology::Switch),
            ("reducing-switch", Topology::ReducingSwitch),
        ];
        let read = Self {
            topology: fields.choice("topology", &topologies)?,
            bandwidth: fields.quantity("bandwidth", Dimension::Bandwidth)?,
            latency: Picoseconds(fields.quantity("latency", Dimension::Time)?),
            packet: fields.quantity("packet", Dimension::Size)?,
        };
        fields.finish()?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(from: &str, to: &str) -> String {
        let text = BUILT_IN[0].1;
        assert!(text.contains(from), "{from}");
        System::parse(&text.replacen(from, to, 1), "s.toml").unwrap_err().to_string()
    }

    /// The line of the built-in file that holds `text`.
    fn line(text: &str) -> usize {
        BUILT_IN[0].1.lines().position(|line| line.starts_with(text)).unwrap() + 1
    }

    #[test]
    fn the_built_in_systems_are_valid() {
        for (name, _) in BUILT_IN {
            assert_eq!(System::open(name).unwrap().name, name);
        }
        let system = System::open("t3-80cu").unwrap();
        assert_eq!(system.compute.units, 80);
        assert_eq!(system.link.bandwidth, 150_000_000_000);
        let halved = System::open("t3-80cu-75gb").unwrap();
        assert_eq!(halved.link.bandwidth, 75_000_000_000);
        let renamed = Link { bandwidth: system.link.bandwidth, ..halved.link.clone() };
        assert_eq!(System { name: system.name.clone(), link: renamed, ..halved }, system);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let at = line("units");
        assert_eq!(
            edited("units = 80", "units = 0"),
            format!("s.toml:{at}: `compute.units` is zero: it must be positive")
        );
        assert_eq!(edited("units = 80", "units = -8"), format!("s.toml:{at}: `compute.units` is negative"));
        assert_eq!(
            edited("units = 80", "units = \"80\""),
            format!("s.toml:{at}: `compute.units` is a string, expected a whole number")
        );
        let at = line("[compute]");
        assert_eq!(edited("units = 80", ""), format!("s.toml:{at}: `compute.units` is missing"));
        let at = line("capacity");
        assert_eq!(
            edited("\"16 MiB\"", "\"16\""),
            format!("s.toml:{at}: `cache.capacity`: `16` has no unit, such as \"16 MiB\"")
        );
        assert_eq!(
            edited("\"16 MiB\"", "16"),
            format!(
                "s.toml:{at}: `cache.capacity` is a number without unit, expected one such as \"16 MiB\""
            )
        );
        let at = line("topology");
        assert_eq!(
            edited("\"ring\"", "\"star\""),
            format!(
                "s.toml:{at}: `link.topology`: `star` is not one of ring, fully-connected, switch, reducing-switch"
            )
        );
        assert_eq!(
            edited("topology =", "topolgy ="),
            format!("s.toml:{}: `link.topology` is missing", line("[link]"))
        );
        assert_eq!(
            edited("topology =", "speed = 1\ntopology ="),
            format!("s.toml:{at}: `link.speed` is not a field of a system")
        );
    }

    #[test]
    fn what_never_drains_a_queue_is_refused() {
        let at = BUILT_IN[0].1.lines().position(|l| l.starts_with("bandwidth = \"150")).unwrap() + 1;
        let error = System::open_with("t3-80cu", &[("link.bandwidth", "1 MB/s")]).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "t3-80cu.toml:{at}: `link.bandwidth` never drains its queue: a packet of 16384 B takes 16 ms, \
                 where 1 ms is the most"
            )
        );
        assert!(System::open_with("t3-80cu", &[("memory.bandwidth", "1 MB/s")]).is_err());
    }

    #[test]
    fn fields_can_be_changed_by_name() {
        let changes = [
            ("link.bandwidth", "75 GB/s"),
            ("compute.units", "160"),
            ("arbitration.thresholds", "[1, 2, 3]"),
        ];
        let system = System::open_with("t3-80cu", &changes).unwrap();
        assert_eq!(system.link.bandwidth, 75_000_000_000);
        assert_eq!(system.compute.units, 160);
        assert_eq!(system.arbitration.thresholds, [1, 2, 3]);
        let error = |key, value| System::open_with("t3-80cu", &[(key, value)]).unwrap_err().to_string();
        assert!(error("link.speed", "1").contains("`link.speed` is not a field of a system"));
        assert!(error("link", "1").contains("`link` is not a field of a system"));
        let at = BUILT_IN[0].1.lines().position(|l| l.starts_with("bandwidth = \"150")).unwrap() + 1;
        let expected = format!("t3-80cu.toml:{at}: `link.bandwidth`: `75` has no unit, such as \"1 TB/s\"");
        assert_eq!(error("link.bandwidth", "75"), expected);
        assert!(error("compute.units", "80\nspeed = 1").contains("`compute.speed` is not a field"));
    }

    #[test]
    fn broken_toml_has_its_line() {
        let error = System::parse("name = \"x\"\ndevices = = 3\n", "s.toml").unwrap_err().to_string();
        assert!(error.starts_with("s.toml:2: "), "{error}");
        assert!(System::open("no-such").unwrap_err().to_string().contains("t3-80cu"));
    }
}
