//! How a tensor is divided over the device grid: for each dimension the grid axes that split it, outermost first.
//! A device holds the block that its coordinates along those axes number, in row-major order.

use t3c_schedule::{Grid, chunks::divides};

use crate::Error;

/// The grid axes that split each dimension, outermost first; none for a dimension that every device has whole.
pub type Splits = Vec<Vec<usize>>;

/// Whole in every dimension.
pub fn whole(rank: usize) -> Splits {
    vec![vec![]; rank]
}

/// Splits as the attribute [`crate::function::SPLIT`]: `[array<i64: 0, 1>, array<i64>]`.
pub fn render(splits: &[Vec<usize>]) -> String {
    let dimension = |axes: &Vec<usize>| {
        let axes: Vec<String> = axes.iter().map(usize::to_string).collect();
        if axes.is_empty() { "array<i64>".to_owned() } else { format!("array<i64: {}>", axes.join(", ")) }
    };
    format!("[{}]", splits.iter().map(dimension).collect::<Vec<_>>().join(", "))
}

/// The inverse of [`render`] for a tensor of rank `rank`: dimensions that the text leaves out are whole.
pub fn parse(text: &str, rank: usize) -> Splits {
    let mut splits: Splits = text
        .split("array<i64")
        .skip(1)
        .map(|part| {
            let axes = part.split('>').next().unwrap_or_default().trim_start_matches(':');
            axes.split(',').filter_map(|axis| axis.trim().parse().ok()).collect()
        })
        .collect();
    splits.resize(rank, vec![]);
    splits
}

/// The shape of each device's block.
///
/// # Errors
/// When an axis does not exist, or the devices do not divide a dimension.
pub fn block(shape: &[u64], splits: &[Vec<usize>], grid: &Grid) -> Result<Vec<u64>, Error> {
    let mut block = shape.to_vec();
    for (dimension, (extent, axes)) in block.iter_mut().zip(splits).enumerate() {
        let devices = devices(axes, grid)?;
        if !divides(*extent, devices) {
            let problem =
                format!("dimension {dimension} of extent {extent} does not divide by {devices} devices");
            return Err(Error::Invalid(problem));
        }
        *extent /= u64::from(devices);
    }
    Ok(block)
}

/// The whole shape of what every device has a block of shape `block` of: the inverse of [`block`].
///
/// # Errors
/// When an axis does not exist.
pub fn unblock(block: &[u64], splits: &[Vec<usize>], grid: &Grid) -> Result<Vec<u64>, Error> {
    let mut shape = block.to_vec();
    for (extent, axes) in shape.iter_mut().zip(splits) {
        *extent *= u64::from(devices(axes, grid)?);
    }
    Ok(shape)
}

/// Where the block of shape `block` of `device` begins.
///
/// # Errors
/// When an axis does not exist.
pub fn offsets(block: &[u64], splits: &[Vec<usize>], grid: &Grid, device: u32) -> Result<Vec<u64>, Error> {
    let coordinates = grid.coordinates(device);
    let mut offsets = vec![0; block.len()];
    for ((offset, axes), extent) in offsets.iter_mut().zip(splits).zip(block) {
        for &axis in axes {
            let size = devices(&[axis], grid)?;
            *offset = *offset * u64::from(size) + u64::from(coordinates[axis]);
        }
        *offset *= extent;
    }
    Ok(offsets)
}

fn devices(axes: &[usize], grid: &Grid) -> Result<u32, Error> {
    let size = |&axis: &usize| {
        let missing = || Error::Invalid(format!("the grid has no axis {axis}"));
        grid.axes.get(axis).filter(|axis| axis.size > 0).map(|axis| axis.size).ok_or_else(missing)
    };
    axes.iter().map(size).product()
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    #[test]
    fn text_round_trips() {
        for splits in [vec![], vec![vec![]], vec![vec![0, 2], vec![], vec![1]]] {
            assert_eq!(parse(&render(&splits), splits.len()), splits);
        }
        assert_eq!(parse("", 2), whole(2));
    }

    #[test]
    fn blocks_are_numbered_row_major() {
        let axis = |name: &str, size| Axis { name: name.into(), size };
        let grid = Grid { axes: vec![axis("dp", 2), axis("tp", 3)] };
        let splits = vec![vec![0, 1], vec![]];
        let part = block(&[12, 5], &splits, &grid).unwrap();
        assert_eq!(part, [2, 5]);
        assert_eq!(unblock(&part, &splits, &grid).unwrap(), [12, 5]);
        let starts: Vec<u64> =
            (0..6).map(|device| offsets(&part, &splits, &grid, device).unwrap()[0]).collect();
        assert_eq!(starts, [0, 2, 4, 6, 8, 10]);
        let turned: Vec<u64> =
            (0..6).map(|device| offsets(&[2], &[vec![1, 0]], &grid, device).unwrap()[0]).collect();
        assert_eq!(turned, [0, 4, 8, 2, 6, 10]);
        assert!(block(&[9], &[vec![0]], &grid).is_err());
        assert!(block(&[9], &[vec![7]], &grid).is_err());
    }
}
