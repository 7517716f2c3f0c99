//! The clock: a tool whose result depends on the episode, so that a question cannot be answered
//! from memory.

use super::Tool;

pub(super) const GET_HOUR: Tool = Tool {
    name: "get_hour",
    description: "The current hour of the day, 0 to 23.",
    parameters: &[],
    run: |_, episode| Ok(f64::from(episode.hour)),
};
