//! What can be wrong with a schedule.

use thiserror::Error;

use crate::{BufferId, StepId};

/// Why an address space does not perform its reduction. Each renders to one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressSpaceError {
    /// The group is empty.
    #[error("an address space needs at least one device")]
    NoDevices,
    /// A chunk that no entry names, or that lies outside the group.
    #[error(
        "the address space has {entries} chunks for {devices} devices: each device owns exactly one chunk"
    )]
    WrongCount {
        /// Entries in the map.
        entries: usize,
        /// Devices of the group.
        devices: u32,
    },
    /// A chunk number beyond the group.
    #[error("chunk +{relative} is out of range for {devices} devices")]
    ChunkOutOfRange {
        /// The entry's relative number.
        relative: u32,
        /// Devices of the group.
        devices: u32,
    },
    /// Two entries for one chunk; so another one has none.
    #[error("chunk +{relative} is produced twice: the chunks must partition the output")]
    ProducedTwice {
        /// The chunk.
        relative: u32,
    },
    /// A store or transfer that stays at home or leaves the group.
    #[error(
        "chunk +{relative} is sent to distance +{distance}, which is not another of the {devices} devices"
    )]
    DistanceOutOfRange {
        /// The chunk.
        relative: u32,
        /// The distance it names.
        distance: u32,
        /// Devices of the group.
        devices: u32,
    },
    /// A chunk whose address-space threshold differs from what the map implies.
    #[error("chunk +{relative} expects {threshold} updates an element, but the map delivers {arrivals}")]
    WrongThreshold {
        /// The chunk.
        relative: u32,
        /// What the tracker expects.
        threshold: u32,
        /// What arrives.
        arrivals: u32,
    },
    /// Updates arrive where nothing waits for them.
    #[error("chunk +{relative} receives {arrivals} updates an element, but nothing is triggered there")]
    Lost {
        /// The chunk.
        relative: u32,
        /// What arrives.
        arrivals: u32,
    },
    /// Not exactly one device ends with the sum.
    #[error("{owners} chunks of a device end as its own: exactly one must")]
    Owners {
        /// Entries whose trigger is `reduce` or `done`.
        owners: usize,
    },
    /// The device's own chunk is another one.
    #[error("a device ends with chunk +{relative} of the sum, but its own chunk is +0")]
    WrongOwner {
        /// The entry whose trigger is `reduce` or `done`.
        relative: u32,
    },
    /// A contribution that never reaches the owner.
    #[error("the contribution that a device makes to chunk +{relative} does not reach the chunk's owner")]
    ContributionMissing {
        /// The chunk, as the contributing device counts.
        relative: u32,
    },
    /// A plain store where several contributions meet.
    #[error("chunk +{relative} receives {arrivals} contributions, one of them as a store that overwrites")]
    Overwritten {
        /// The chunk.
        relative: u32,
        /// What arrives.
        arrivals: u32,
    },
    /// The first chunk is tracked, although nothing ever arrives for it.
    #[error("chunk +{relative} is produced first and must not be tracked at its producer")]
    FirstTracked {
        /// The chunk.
        relative: u32,
    },
    /// An update in a map that must keep pieces apart.
    #[error("chunk +{relative} is added where it lands, but an all-to-all keeps pieces apart")]
    Added {
        /// The chunk.
        relative: u32,
    },
    /// A transfer or a reduction in a map that only stores.
    #[error("chunk +{relative} triggers a transfer or a reduction, but an all-to-all has neither")]
    Forwarded {
        /// The chunk.
        relative: u32,
    },
    /// Transfers that wait for each other around the group.
    #[error("the transfer of chunk +{relative} waits for itself around the group")]
    CycleOfWaits {
        /// A chunk on the cycle.
        relative: u32,
    },
}

/// Why arrivals do not perform their gather. Each renders to one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArrivalError {
    /// Only gathers and all-to-alls have arrivals.
    #[error("nothing arrives part by part from this collective")]
    Collective,
    /// Not one arrival a device.
    #[error("{entries} parts arrive from {devices} devices: each gives exactly one")]
    WrongCount {
        /// Entries.
        entries: usize,
        /// Devices of the group.
        devices: u32,
    },
    /// A number beyond the group.
    #[error("part +{relative} names distance +{distance}, which is not one of the {devices} devices")]
    OutOfRange {
        /// The part.
        relative: u32,
        /// The distance it names.
        distance: u32,
        /// Devices of the group.
        devices: u32,
    },
    /// Two entries for one part.
    #[error("part +{relative} arrives twice")]
    Twice {
        /// The part.
        relative: u32,
    },
    /// The device's own part is used before others, and comes from nowhere else.
    #[error("a device's own part must come first, from itself")]
    OwnFirst,
    /// The device that a part is to come from does not send it.
    #[error("part +{relative} is to come from +{from}, which does not send it")]
    NotSent {
        /// The part.
        relative: u32,
        /// The sender.
        from: u32,
    },
    /// A part that is sent to a device that takes it from another.
    #[error("part +{relative} is sent to +{to}, which does not take it from here")]
    NotTaken {
        /// The part.
        relative: u32,
        /// The receiver.
        to: u32,
    },
    /// A part that never leaves its owner.
    #[error("part +{relative} waits for itself around the group")]
    CycleOfWaits {
        /// The part.
        relative: u32,
    },
    /// A piece of an all-to-all that another device than its maker hands on.
    #[error("piece +{relative} comes from +{from}: only its maker has it")]
    HandedOn {
        /// The piece.
        relative: u32,
        /// The sender.
        from: u32,
    },
}

/// Why a schedule is not one that a backend can run.
#[derive(Debug, Error)]
pub enum Error {
    /// The text is not JSON, or not this version's.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// One-based line.
        line: usize,
        /// One-based column.
        column: usize,
        /// The reader's words.
        message: String,
    },
    /// A field has the wrong form.
    #[error("`{field}`: {message}")]
    Field {
        /// Path from the root, such as `programs[0].steps[3].kind`.
        field: String,
        /// What was expected.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not [`crate::SCHEMA`].
    #[error("schema `{found}` is not `{}`", crate::SCHEMA)]
    Schema {
        /// What the file says.
        found: String,
    },
    /// A grid without devices.
    #[error("grid axis `{axis}` has no devices")]
    EmptyAxis {
        /// The axis.
        axis: String,
    },
    /// A size beyond what arithmetic on it is safe for.
    #[error("{what} is too large")]
    TooLarge {
        /// What.
        what: String,
    },
    /// An index of a program that does not exist.
    #[error("{at} names program {program} of {programs}")]
    NoProgram {
        /// Who names it.
        at: String,
        /// The index.
        program: usize,
        /// How many there are.
        programs: usize,
    },
    /// A program that calls itself, directly or not.
    #[error("program `{program}` calls itself")]
    Recursion {
        /// The program.
        program: String,
    },
    /// A step's error, with its place.
    #[error("program `{program}`, step {step} ({location}): {error}")]
    Step {
        /// The program.
        program: String,
        /// The step.
        step: StepId,
        /// The step's place in the user's model.
        location: String,
        /// What is wrong.
        error: Box<StepError>,
    },
    /// A program's argument or result.
    #[error("program `{program}` names buffer {buffer} of {buffers} as an argument or result")]
    Interface {
        /// The program.
        program: String,
        /// The index.
        buffer: BufferId,
        /// How many there are.
        buffers: usize,
    },
    /// Steps that wait for each other.
    #[error("program `{program}`: steps {} wait for each other", steps.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(", "))]
    CycleOfWaits {
        /// The program.
        program: String,
        /// The steps on cycles or behind them.
        steps: Vec<StepId>,
    },
}

/// What is wrong with one step.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// `id` is not the index.
    #[error("its id is {id}")]
    Id {
        /// What it says.
        id: StepId,
    },
    /// `after` names no step of the program.
    #[error("it waits for step {after}, which does not exist")]
    NoStep {
        /// What it names.
        after: StepId,
    },
    /// The list is not a valid order.
    #[error("it waits for step {after}, which stands later in the list")]
    WaitsForLater {
        /// What it names.
        after: StepId,
    },
    /// A buffer outside the program.
    #[error("it uses buffer {buffer} of {buffers}")]
    NoBuffer {
        /// The index.
        buffer: BufferId,
        /// How many there are.
        buffers: usize,
    },
    /// It uses what another step writes without waiting for it.
    #[error("it does not wait for step {step}, with which it shares buffer {buffer}")]
    MissingDependency {
        /// The other step.
        step: StepId,
        /// The buffer.
        buffer: BufferId,
    },
    /// Shapes that disagree.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which value.
        what: String,
        /// The buffer's shape.
        found: Vec<u64>,
        /// What the step implies.
        expected: Vec<u64>,
    },
    /// A loop of a contraction that does not exist.
    #[error("operand {operand} names loop {index} of {loops}")]
    NoLoop {
        /// `a`, `b` or `c`.
        operand: char,
        /// The loop.
        index: usize,
        /// How many there are.
        loops: usize,
    },
    /// A number of buffers that the work does not have.
    #[error("{what}: found {found}, expected {expected}")]
    Count {
        /// Of what.
        what: String,
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// An axis of the grid that does not exist.
    #[error("its collective names grid axis {axis} of {axes}")]
    NoAxis {
        /// The axis.
        axis: usize,
        /// How many there are.
        axes: usize,
    },
    /// A dimension that the value does not have.
    #[error("dimension {dimension} of a value with {rank} dimensions")]
    NoDimension {
        /// The dimension.
        dimension: usize,
        /// The rank.
        rank: usize,
    },
    /// The collective's size is not its value's.
    #[error("its collective moves {found} bytes, but its value has {expected}")]
    Bytes {
        /// What it says.
        found: u64,
        /// The value's size.
        expected: u64,
    },
    /// A contraction beyond what arithmetic on it is safe for.
    #[error("its contraction is too large")]
    TooLarge,
    /// A block of no index.
    #[error("a trigger moves blocks of 0 indices")]
    EmptyBlock,
    /// A tracked block that would not fire exactly once.
    #[error("block {block} of chunk +{relative} fires {fired} times an epoch")]
    Fires {
        /// The chunk.
        relative: u32,
        /// The block.
        block: u64,
        /// How often.
        fired: u64,
    },
    /// The address space.
    #[error(transparent)]
    AddressSpace(#[from] AddressSpaceError),
    /// The arrivals.
    #[error(transparent)]
    Arrival(#[from] ArrivalError),
    /// A transfer that stays at home or leaves the grid.
    #[error("it sends to distance +{to} among {devices} devices")]
    TransferTarget {
        /// The distance.
        to: u32,
        /// Devices of the grid.
        devices: u32,
    },
}
