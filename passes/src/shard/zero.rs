//! ZeRO: what data parallelism splits beside tokens.
//!
//! Stage 1 splits the optimizer's state, so that gradients are reduce-scattered and updated parameters gathered.
//! Stage 3 (fully sharded data parallel) splits parameters as well; they are gathered where they are used, layer by
//! layer, in the forward and again in the backward. What is split is what annotations leave whole: a dimension that
//! the devices divide gets the data axes after its own.

use t3c_ir::TensorType;
use t3c_schedule::{Grid, chunks::divides};

use super::sharding::Sharding;

/// What is split over data-parallel devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Tokens only.
    #[default]
    Off,
    /// The optimizer's state (ZeRO-1).
    State,
    /// Parameters too (ZeRO-3, FSDP).
    Parameters,
}

/// The names of the axes along which tokens, and nothing else of the model, are split.
const DATA: [&str; 2] = ["dp", "ep"];

/// The stage on a grid.
#[derive(Clone, Debug, Default)]
pub struct Zero {
    stage: Stage,
    axes: Vec<usize>,
}

impl Zero {
    /// A stage, on the data axes of a grid.
    pub fn new(stage: Stage, grid: &Grid) -> Self {
        let axes = grid.axes.iter().enumerate();
        let data = axes.filter(|(_, axis)| axis.size > 1 && DATA.contains(&axis.name.as_str()));
        Self { stage, axes: data.map(|(axis, _)| axis).collect() }
    }

    /// Whether gradients and moments are split.
    pub fn splits_state(&self) -> bool {
        self.stage >= Stage::State && !self.axes.is_empty()
    }

    /// Whether parameters are.
    pub fn splits_parameters(&self) -> bool {
        self.stage == Stage::Parameters && !self.axes.is_empty()
    }

    /// Whether `axis` splits data.
    pub fn is_data(&self, axis: usize) -> bool {
        self.axes.contains(&axis)
    }

    /// How state lies whose parameter is annotated like this.
    pub fn state(&self, parameter: &Sharding, shape: &[u64], grid: &Grid) -> Sharding {
        let mut state = parameter.clone();
        let data: Vec<usize> = self.axes.iter().copied().filter(|&axis| !parameter.uses(axis)).collect();
        let local = parameter.local(shape, grid);
        if let Some(dimension) = local.iter().position(|&extent| divides(extent, grid.group_size(&data))) {
            state.splits[dimension].extend(data);
        }
        state
    }

    /// How the entry's port lies that belongs to a parameter annotated like this.
    pub fn port(&self, prefix: &str, parameter: &Sharding, r#type: &TensorType, grid: &Grid) -> Sharding {
        let split = if prefix == "param" { self.splits_parameters() } else { self.splits_state() };
        if split { self.state(parameter, &r#type.shape, grid) } else { parameter.clone() }
    }
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    #[test]
    fn state_takes_the_first_dimension_that_divides() {
        let axis = |name: &str, size| Axis { name: name.into(), size };
        let grid = Grid { axes: vec![axis("dp", 2), axis("ep", 2), axis("tp", 3)] };
        let zero = Zero::new(Stage::State, &grid);
        let rows = Sharding::split(vec![vec![2], vec![]]);
        assert_eq!(zero.state(&rows, &[12, 5], &grid).splits, [vec![2, 0, 1], vec![]]);
        assert_eq!(zero.state(&rows, &[3, 8], &grid).splits, [vec![2], vec![0, 1]]);
        assert_eq!(zero.state(&rows, &[3, 5], &grid), rows, "nothing divides");
        let experts = Sharding::split(vec![vec![1], vec![]]);
        assert_eq!(zero.state(&experts, &[4, 5], &grid).splits, [vec![1, 0], vec![]]);
        assert!(!zero.splits_parameters());
    }
}
