//! The devices over which a collective runs.

use t3c_ir::{Op, function::grid, views::Collective};

use crate::pass::PassError;

/// A grid and the axes of it along which a group lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// The grid's symbol.
    pub grid: String,
    /// Its axes, outermost first.
    pub axes: Vec<usize>,
    /// Devices of a group.
    pub devices: u32,
}

impl Group {
    /// Grid and axes, as builders of collectives take them.
    pub fn on(&self) -> (&str, &[usize]) {
        (&self.grid, &self.axes)
    }

    /// The group of `collective`. Without axes each device is alone, as the `shard` dialect's verifier has it.
    ///
    /// # Errors
    /// When the module has no such grid, the grid no such axis, or the reduction is neither a sum nor a maximum.
    pub fn of(module: Op<'_, '_>, collective: Collective<'_, '_>) -> Result<Self, PassError> {
        collective.known_reduction()?;
        Self::new(module, collective.op, collective.grid(), collective.axes())
    }

    /// The group along `axes` of the grid called `symbol`.
    ///
    /// # Errors
    /// When the module has no such grid, or the grid no such axis.
    pub fn new(
        module: Op<'_, '_>,
        user: Op<'_, '_>,
        symbol: String,
        axes: Vec<usize>,
    ) -> Result<Self, PassError> {
        let Some((_, grid)) = grid(module).filter(|(name, _)| *name == symbol) else {
            return Err(PassError::at(user, format!("the module has no shard.grid @{symbol}")));
        };
        if let Some(axis) = axes.iter().find(|&&axis| axis >= grid.axes.len()) {
            let count = grid.axes.len();
            return Err(PassError::at(user, format!("names axis {axis} of @{symbol}, which has {count}")));
        }
        let devices = grid.group_size(&axes);
        if devices == 0 {
            return Err(PassError::at(user, format!("an axis of @{symbol} has no static extent")));
        }
        Ok(Self { grid: symbol, axes, devices })
    }
}
