//! Timelines in the format that Chrome and Perfetto open.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{Error, recorder::Line};

/// The timeline of one sub-layer under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What is shown: sub-layer and policy.
    pub name: String,
    /// Device and line.
    pub lines: Vec<(usize, Line)>,
}

/// The traces as one JSON value: a process for each of them, a thread for each device's track.
pub fn to_json(traces: &[Trace]) -> Value {
    let mut events = Vec::new();
    for (process, trace) in traces.iter().enumerate() {
        events.push(json!({"name": "process_name", "ph": "M", "pid": process, "args": {"name": trace.name}}));
        let mut threads: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for (device, line) in &trace.lines {
            match line {
                Line::Span { name, track, start, length } => {
                    let next = threads.len();
                    let thread = *threads.entry((*device, track)).or_insert(next);
                    events.push(json!({
                        "name": name, "ph": "X", "pid": process, "tid": thread,
                        "ts": start.as_us(), "dur": length.as_us(),
                    }));
                }
                Line::Level { track, at, value } => {
                    let name = format!("device {device}: {track}");
                    events.push(json!({
                        "name": name, "ph": "C", "pid": process, "ts": at.as_us(), "args": {"value": value},
                    }));
                }
            }
        }
        for ((device, track), thread) in threads {
            let name = format!("device {device}: {track}");
            events.push(json!({
                "name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name},
            }));
        }
    }
    json!({"traceEvents": events, "displayTimeUnit": "ns"})
}

/// Writes the traces to a file.
pub fn write(traces: &[Trace], path: &Path) -> Result<(), Error> {
    std::fs::write(path, to_json(traces).to_string())
        .map_err(|source| Error::Write { path: path.display().to_string(), source })
}
