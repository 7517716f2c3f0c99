//! Schedules as Chakra execution traces, which ASTRA-sim and its kin read.
//!
//! The format is MLCommons' (`schema/protobuf/et_def.proto`); the messages below hold those of its fields that a
//! schedule fills. A file is a sequence of messages, each after its length: the global metadata, then the
//! nodes. A fused step becomes what it is: a computation for each chunk, and sends and receives that depend on
//! the chunk they move. Traces recorded on GPUs lose that dependency, because there the collective is one
//! kernel that waits for the whole product.

use prost::Message;
use t3c_schedule::{
    Collective, CollectiveKind, Compute, Consume, Fused, Program, Schedule, StepKind, Store, Trigger,
    chunks::chunk_range, invariants::seen_from,
};

use crate::{Error, extract::cost};

/// A named value of a node.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(oneof = "AttributeValue", tags = "7, 9, 13, 27, 28, 29")]
    pub value: Option<AttributeValue>,
}

/// The kinds of values that a schedule needs.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs)]
pub enum AttributeValue {
    #[prost(int32, tag = "7")]
    Int32(i32),
    #[prost(int64, tag = "9")]
    Int64(i64),
    #[prost(uint64, tag = "13")]
    Uint64(u64),
    #[prost(bool, tag = "27")]
    Bool(bool),
    #[prost(message, tag = "28")]
    Bools(Bools),
    #[prost(string, tag = "29")]
    Text(String),
}

/// A list of truth values.
#[derive(Clone, PartialEq, Message)]
pub struct Bools {
    /// The values.
    #[prost(bool, repeated, tag = "1")]
    pub values: Vec<bool>,
}

/// The first message of a file.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The schema's version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// What wrote the file, for which device.
    #[prost(message, repeated, tag = "2")]
    pub attributes: Vec<Attribute>,
}

/// One operation of one device.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its place in the model.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it is.
    #[prost(enumeration = "NodeType", tag = "3")]
    pub kind: i32,
    /// Nodes before it in order.
    #[prost(uint64, repeated, tag = "4")]
    pub after: Vec<u64>,
    /// Nodes whose data it needs.
    #[prost(uint64, repeated, tag = "5")]
    pub needs: Vec<u64>,
    /// Sizes and partners.
    #[prost(message, repeated, tag = "10")]
    pub attributes: Vec<Attribute>,
}

/// Kinds of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum NodeType {
    Invalid = 0,
    Metadata = 1,
    Compute = 4,
    Send = 5,
    Receive = 6,
    Collective = 7,
}

/// More nodes than this make no useful trace.
const MOST_NODES: usize = 4_000_000;

/// The trace of `device`: the file's bytes.
///
/// # Errors
/// When the schedule is not well formed, or its calls unroll to more than four million nodes.
pub fn trace(schedule: &Schedule, device: u32) -> Result<Vec<u8>, Error> {
    let metadata = Metadata {
        version: "0.0.4".to_owned(),
        attributes: vec![
            attribute("schema", AttributeValue::Text("1.0.2-chakra.0.0.4".to_owned())),
            attribute("rank", AttributeValue::Uint64(u64::from(device))),
        ],
    };
    let mut bytes = metadata.encode_length_delimited_to_vec();
    for node in nodes(schedule, device)? {
        bytes.extend(node.encode_length_delimited_to_vec());
    }
    Ok(bytes)
}

/// The nodes of `device`, calls unrolled.
///
/// # Errors
/// As [`trace`].
pub fn nodes(schedule: &Schedule, device: u32) -> Result<Vec<Node>, Error> {
    t3c_schedule::verify(schedule)?;
    let mut writer = Writer { schedule, device, nodes: Vec::new(), collectives: 0 };
    writer.program(&schedule.programs[schedule.entry], &[])?;
    Ok(writer.nodes)
}

fn attribute(name: &str, value: AttributeValue) -> Attribute {
    Attribute { name: name.to_owned(), value: Some(value) }
}

struct Writer<'s> {
    schedule: &'s Schedule,
    device: u32,
    nodes: Vec<Node>,
    /// Steps that communicate so far: a tag for each, the same on every device.
    collectives: u32,
}

impl Writer<'_> {
    fn node(&mut self, name: &str, kind: NodeType, needs: &[u64], attributes: Vec<Attribute>) -> u64 {
        let id = self.nodes.len() as u64;
        let mut attributes = attributes;
        attributes.push(attribute("is_cpu_op", AttributeValue::Bool(false)));
        let needs = needs.to_vec();
        self.nodes.push(Node {
            id,
            name: name.to_owned(),
            kind: kind as i32,
            after: vec![],
            needs,
            attributes,
        });
        id
    }

    /// Writes a program whose first steps need `before`; the nodes that stand for its end.
    fn program(&mut self, program: &Program, before: &[u64]) -> Result<Vec<u64>, Error> {
        let mut ends: Vec<Vec<u64>> = Vec::with_capacity(program.steps.len());
        let mut is_last = vec![true; program.steps.len()];
        for step in &program.steps {
            if self.nodes.len() > MOST_NODES {
                let what = format!("its calls unroll to more than {MOST_NODES} nodes");
                return Err(Error::Unsupported { location: step.location.clone(), what });
            }
            let mut needs: Vec<u64> = step.after.iter().flat_map(|&id| ends[id].iter().copied()).collect();
            step.after.iter().for_each(|&id| is_last[id] = false);
            if needs.is_empty() {
                needs.extend_from_slice(before);
            }
            needs.sort_unstable();
            needs.dedup();
            let place = step.location.as_str();
            let end = match &step.kind {
                StepKind::Compute(compute) => {
                    vec![self.compute(place, program, std::slice::from_ref(compute), (1, 1), &needs)]
                }
                StepKind::Collective(collective) => vec![self.collective(place, collective, &needs)],
                StepKind::Fused(fused) => self.fused(place, program, fused, &needs),
                StepKind::Consume(consume) => self.consume(place, program, consume, &needs),
                StepKind::Transfer { to, buffer } => {
                    self.collectives += 1;
                    let bytes = program.buffers[*buffer].bytes();
                    let devices = self.schedule.grid.devices();
                    let peers = [(self.device + to) % devices, (self.device + devices - to) % devices];
                    let send = self.message(place, NodeType::Send, peers[0], 0, bytes, &needs);
                    vec![send, self.message(place, NodeType::Receive, peers[1], 0, bytes, &needs)]
                }
                StepKind::Call { program, .. } => {
                    let callee = &self.schedule.programs[*program];
                    self.program(callee, &needs)?
                }
            };
            ends.push(end);
        }
        let last = ends.into_iter().zip(is_last).filter(|(_, is_last)| *is_last);
        let ends: Vec<u64> = last.flat_map(|(end, _)| end).collect();
        Ok(if ends.is_empty() { before.to_vec() } else { ends })
    }

    /// Local work, or `share` of it.
    fn compute(
        &mut self,
        place: &str,
        program: &Program,
        works: &[Compute],
        share: (u64, u64),
        needs: &[u64],
    ) -> u64 {
        let (mut flops, mut bytes) = (0u64, 0u64);
        for work in works {
            let (operations, (read, written)) = cost(program, work);
            flops = flops.saturating_add(operations);
            bytes = bytes.saturating_add(read).saturating_add(written);
        }
        let part =
            |amount: u64| (u128::from(amount) * u128::from(share.0) / u128::from(share.1.max(1))) as u64;
        let attributes = vec![
            attribute("num_ops", AttributeValue::Uint64(part(flops))),
            attribute("tensor_size", AttributeValue::Uint64(part(bytes))),
        ];
        self.node(place, NodeType::Compute, needs, attributes)
    }

    fn collective(&mut self, place: &str, collective: &Collective, needs: &[u64]) -> u64 {
        self.collectives += 1;
        // Chakra's CollectiveCommType.
        let kind = match collective.kind {
            CollectiveKind::AllReduce => 0,
            CollectiveKind::AllGather => 2,
            CollectiveKind::AllToAll => 6,
            CollectiveKind::ReduceScatter => 7,
            // Local: each device keeps its part.
            CollectiveKind::AllSlice => {
                let attributes = vec![
                    attribute("num_ops", AttributeValue::Uint64(0)),
                    attribute("tensor_size", AttributeValue::Uint64(collective.bytes)),
                ];
                return self.node(place, NodeType::Compute, needs, attributes);
            }
        };
        let axes = 0..self.schedule.grid.axes.len();
        let involved = Bools { values: axes.map(|axis| collective.axes.contains(&axis)).collect() };
        let attributes = vec![
            attribute("comm_type", AttributeValue::Int64(kind)),
            attribute(
                "comm_size",
                AttributeValue::Int64(i64::try_from(collective.bytes).unwrap_or(i64::MAX)),
            ),
            attribute("involved_dim", AttributeValue::Bools(involved)),
        ];
        self.node(place, NodeType::Collective, needs, attributes)
    }

    fn message(
        &mut self,
        place: &str,
        kind: NodeType,
        peer: u32,
        part: u32,
        bytes: u64,
        needs: &[u64],
    ) -> u64 {
        let (from, to) = if kind == NodeType::Send { (self.device, peer) } else { (peer, self.device) };
        // A step's parts have tags of their own, so that they may overtake each other.
        let tag = self.collectives.wrapping_mul(4096).wrapping_add(part) as i32;
        let attributes = vec![
            attribute("comm_src", AttributeValue::Int32(from as i32)),
            attribute("comm_dst", AttributeValue::Int32(to as i32)),
            attribute("comm_tag", AttributeValue::Int32(tag & i32::MAX)),
            attribute("comm_size", AttributeValue::Int64(i64::try_from(bytes).unwrap_or(i64::MAX))),
        ];
        self.node(place, kind, needs, attributes)
    }

    /// The group of a collective, and this device's place in it.
    fn group(&self, collective: &Collective) -> (Vec<u32>, u32) {
        self.schedule.grid.group(self.device, &collective.axes)
    }

    fn fused(&mut self, place: &str, program: &Program, fused: &Fused, needs: &[u64]) -> Vec<u64> {
        self.collectives += 1;
        let (members, position) = self.group(&fused.collective);
        let devices = members.len() as u32;
        let extent = fused.shape[fused.dimension].max(1);
        let element = program.buffers[fused.result].element.bytes();
        let index_bytes = fused.shape.iter().product::<u64>() / extent * element;
        let mut before: Option<u64> = None;
        let mut ends = Vec::new();
        for chunk in &fused.chunks {
            let index = (position + chunk.relative) % devices;
            let range = chunk_range(extent, devices, index);
            let size = range.end - range.start;
            let bytes = size * index_bytes;
            let computed = self.compute(place, program, &fused.producers, (size, extent), needs);
            // Chunks are produced in order.
            self.nodes[computed as usize].after.extend(before.replace(computed));
            let mut ready = vec![computed];
            for other in &fused.chunks {
                let sent = match (other.store, other.trigger) {
                    (Store::Remote(to), _) => Some(to),
                    (_, Trigger::Dma { to, .. }) => Some(to),
                    _ => None,
                };
                let Some(to) = sent else { continue };
                if seen_from(other.relative, to, devices) == chunk.relative {
                    let from = members[((position + devices - to) % devices) as usize];
                    ready.push(self.message(place, NodeType::Receive, from, index, bytes, needs));
                }
            }
            let to = match (chunk.store, chunk.trigger) {
                (Store::Remote(to), _) => to,
                (_, Trigger::Dma { to, .. }) => to,
                _ => {
                    ends.extend(ready);
                    continue;
                }
            };
            let peer = members[((position + to) % devices) as usize];
            ends.push(self.message(place, NodeType::Send, peer, index, bytes, &ready));
        }
        ends
    }

    fn consume(&mut self, place: &str, program: &Program, consume: &Consume, needs: &[u64]) -> Vec<u64> {
        if consume.arrivals.is_empty() {
            let gathered = self.collective(place, &consume.collective, needs);
            return vec![self.compute(place, program, &consume.consumers, (1, 1), &[gathered])];
        }
        self.collectives += 1;
        let (members, position) = self.group(&consume.collective);
        let devices = members.len() as u32;
        let bytes = consume.collective.bytes / u64::from(devices.max(1));
        let mut before: Option<u64> = None;
        let mut ends = Vec::new();
        for arrival in &consume.arrivals {
            // An exchange's piece is named by who gets it, a gather's part by whose it is.
            let is_exchange = consume.collective.kind == CollectiveKind::AllToAll;
            let own = (position + arrival.relative) % devices;
            let mut ready = needs.to_vec();
            if arrival.from > 0 {
                let from = members[((position + arrival.from) % devices) as usize];
                let part = if is_exchange { position } else { own };
                ready = vec![self.message(place, NodeType::Receive, from, part, bytes, needs)];
            }
            for to in &arrival.sends {
                let to = (position + to) % devices;
                let part = if is_exchange { to } else { own };
                ends.push(self.message(place, NodeType::Send, members[to as usize], part, bytes, &ready));
            }
            let share = (1, u64::from(devices));
            let computed = self.compute(place, program, &consume.consumers, share, &ready);
            self.nodes[computed as usize].after.extend(before.replace(computed));
        }
        ends.extend(before);
        ends
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use t3c_schedule::testing::{gemm_all_reduce, gemm_reduce_scatter};

    use super::*;

    fn kinds(nodes: &[Node]) -> BTreeMap<NodeType, usize> {
        let mut kinds = BTreeMap::new();
        nodes.iter().for_each(|node| *kinds.entry(node.kind()).or_default() += 1);
        kinds
    }

    fn number(node: &Node, name: &str) -> i64 {
        match node.attributes.iter().find(|attribute| attribute.name == name).and_then(|a| a.value.clone()) {
            Some(AttributeValue::Int32(value)) => i64::from(value),
            Some(AttributeValue::Int64(value)) => value,
            _ => panic!("{name}"),
        }
    }

    #[test]
    fn a_fused_step_sends_each_chunk_when_it_is_computed() {
        let schedule = gemm_reduce_scatter(1024, 512, 256, 4);
        let nodes = nodes(&schedule, 2).unwrap();
        let kinds = kinds(&nodes);
        assert_eq!((kinds[&NodeType::Compute], kinds[&NodeType::Collective]), (4, 1));
        assert_eq!((kinds[&NodeType::Send], kinds[&NodeType::Receive]), (3, 3));
        let sends: Vec<&Node> = nodes.iter().filter(|node| node.kind() == NodeType::Send).collect();
        assert_eq!(sends[0].needs.len(), 1, "the first chunk waits for its product alone");
        assert_eq!(sends[1].needs.len(), 2, "the others for what arrives too");
        assert!(nodes.iter().all(|node| node.needs.iter().all(|&other| other < node.id)));
    }

    #[test]
    fn every_send_has_its_receive() {
        let schedule = gemm_reduce_scatter(1001, 512, 256, 4);
        let mut messages: BTreeMap<(i64, i64, i64, i64), i64> = BTreeMap::new();
        for device in 0..4 {
            for node in nodes(&schedule, device).unwrap() {
                let sign = match node.kind() {
                    NodeType::Send => 1,
                    NodeType::Receive => -1,
                    _ => continue,
                };
                let key = ["comm_src", "comm_dst", "comm_tag", "comm_size"].map(|name| number(&node, name));
                *messages.entry((key[0], key[1], key[2], key[3])).or_default() += sign;
            }
        }
        assert_eq!(messages.len(), 12);
        assert!(messages.values().all(|balance| *balance == 0), "{messages:?}");
    }

    #[test]
    fn a_file_reads_back() {
        let bytes = trace(&gemm_all_reduce(64, 32, 16, 4), 0).unwrap();
        let mut rest = bytes.as_slice();
        let metadata = Metadata::decode_length_delimited(&mut rest).unwrap();
        assert_eq!(metadata.version, "0.0.4");
        let mut nodes = Vec::new();
        while !rest.is_empty() {
            nodes.push(Node::decode_length_delimited(&mut rest).unwrap());
        }
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[1].needs, [0]);
        assert_eq!(number(&nodes[1], "comm_size"), 64 * 32 * 2);
    }
}
