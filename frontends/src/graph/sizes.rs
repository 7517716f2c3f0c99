//! Named sizes, degrees, and the extents that are written in terms of both.

use std::collections::BTreeMap;

use t3c_schedule::{Axis as GridAxis, Grid};

use super::{Axis, Extent, Model, Split};
use crate::{
    Options,
    error::{Error, Field},
};

/// No tensor has more elements.
pub(super) const LOG2_MOST_ELEMENTS: u32 = 48;
/// No degree is larger.
pub(super) const LARGEST_DEGREE: u64 = 1024;

/// The devices of each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Degrees {
    pub tp: u64,
    pub dp: u64,
    pub ep: u64,
    pub sequence_parallel: bool,
}

impl Degrees {
    /// The options' degrees, else the file's, else 1.
    pub fn new(model: &Model, options: &Options) -> Result<Self, Error> {
        let file = model.parallelism.clone().unwrap_or_default();
        let of_file = |size: Option<crate::json::Size>| size.map_or(1, |size| size.0);
        let degrees = Self {
            tp: options.tp.unwrap_or(of_file(file.tp)),
            dp: options.dp.unwrap_or(of_file(file.dp)),
            ep: options.ep.unwrap_or(of_file(file.ep)),
            sequence_parallel: options.sequence_parallel,
        };
        for (option, degree) in [("--tp", degrees.tp), ("--dp", degrees.dp), ("--ep", degrees.ep)] {
            if !(1..=LARGEST_DEGREE).contains(&degree) {
                let reason = format!("expected a whole number from 1 to {LARGEST_DEGREE}");
                return Err(Error::Option { option, value: degree.to_string(), reason });
            }
        }
        Ok(degrees)
    }

    /// The grid: axes of more than one device.
    pub fn grid(&self) -> Grid {
        let axes = [("dp", self.dp), ("ep", self.ep), ("tp", self.tp)];
        let axes = axes.into_iter().filter(|(_, size)| *size > 1);
        Grid { axes: axes.map(|(name, size)| GridAxis { name: name.into(), size: size as u32 }).collect() }
    }

    fn of(&self, axis: Axis) -> u64 {
        match axis {
            Axis::Tp => self.tp,
            Axis::Dp => self.dp,
            Axis::Ep => self.ep,
            Axis::Sp if self.sequence_parallel => self.tp,
            Axis::Sp => 1,
        }
    }

    /// The positions in the grid of those axes that have more than one device.
    pub fn axes(&self, axes: &[Axis]) -> Vec<usize> {
        let grid = self.grid();
        let present = axes.iter().filter(|axis| self.of(**axis) > 1);
        let name = |axis: &Axis| if *axis == Axis::Sp { "tp" } else { axis.name() };
        present.filter_map(|axis| grid.axes.iter().position(|known| known.name == name(axis))).collect()
    }

    /// The positions in the grid that split each dimension.
    pub fn splits(&self, shard: &[Split]) -> Vec<Vec<usize>> {
        shard.iter().map(|split| self.axes(&split.0)).collect()
    }

    /// Devices of a group along these axes.
    pub fn group(&self, axes: &[Axis]) -> u64 {
        axes.iter().map(|axis| self.of(*axis)).product()
    }

    fn named(&self, name: &str) -> Option<u64> {
        match name {
            "tp" => Some(self.tp),
            "dp" => Some(self.dp),
            "ep" => Some(self.ep),
            _ => None,
        }
    }
}

/// A sharding names each axis once and has an entry a dimension.
pub(super) fn check_shard(path: &str, shard: &[Split], rank: usize) -> Result<(), Error> {
    if shard.len() != rank {
        let message = format!("{} entries for a shape of {rank} dimensions", shard.len());
        return Err(Error::invalid(path, message));
    }
    check_axes(path, shard.iter().flat_map(|split| &split.0))
}

/// An axis occurs once, and `sp` is the axis of `tp`.
pub(super) fn check_axes<'x>(path: &str, axes: impl Iterator<Item = &'x Axis>) -> Result<(), Error> {
    let mut seen: Vec<&str> = Vec::new();
    for axis in axes {
        let name = if *axis == Axis::Sp { "tp" } else { axis.name() };
        if seen.contains(&name) {
            return Err(Error::invalid(path, format!("the axis `{name}` twice; expected each at most once")));
        }
        seen.push(name);
    }
    Ok(())
}

/// Definite sizes.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    named: BTreeMap<String, u64>,
    pub degrees: Degrees,
}

impl Sizes {
    /// The file's sizes with the options' in their place.
    pub fn new(model: &Model, options: &Options) -> Result<Self, Error> {
        let mut named: BTreeMap<String, u64> =
            model.sizes.iter().map(|(name, size)| (name.clone(), size.0)).collect();
        let degrees = Degrees::new(model, options)?;
        if let Some(name) = named.keys().find(|name| degrees.named(name).is_some()) {
            let message = "the name of a degree of parallelism; expected another name";
            return Err(Error::invalid(format!("sizes.{name}"), message));
        }
        for (option, name, value) in [("--batch", "batch", options.batch), ("--seq", "seq", options.seq)] {
            let Some(value) = value else { continue };
            let reason = match named.get_mut(name) {
                Some(size) if value > 0 => {
                    *size = value;
                    continue;
                }
                Some(_) => "expected a whole number of at least 1".to_owned(),
                None => format!("the model has no size called `{name}`"),
            };
            return Err(Error::Option { option, value: value.to_string(), reason });
        }
        Ok(Self { named, degrees })
    }

    /// The size of this name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.named.get(name).copied()
    }

    /// The same sizes at another degree of tensor parallelism.
    pub fn at(&self, tp: u64) -> Self {
        Self { named: self.named.clone(), degrees: Degrees { tp, ..self.degrees } }
    }

    /// The number of an extent.
    ///
    /// # Errors
    /// An unknown name, a quotient that leaves a remainder, or a product beyond any size.
    pub fn extent(&self, path: &str, extent: &Extent) -> Result<u64, Error> {
        let text = match extent {
            Extent::Number(size) => return Ok(size.0),
            Extent::Product(text) => text,
        };
        let (numerator, denominators) = match text.split_once('/') {
            Some((numerator, denominators)) => (numerator, Some(denominators)),
            None => (text.as_str(), None),
        };
        let value = self.product(path, numerator.split('*'))?;
        let Some(denominators) = denominators else { return Ok(value) };
        let by = self.product(path, denominators.split('/'))?;
        if value.is_multiple_of(by) {
            return Ok(value / by);
        }
        let divisor = denominators.split('/').map(str::trim).collect::<Vec<_>>().join(" * ");
        Err(Error::Indivisible { field: Field::new(path), value, divisor, by, fits: Vec::new() })
    }

    fn product<'t>(&self, path: &str, factors: impl Iterator<Item = &'t str>) -> Result<u64, Error> {
        let mut product = 1_u64;
        for factor in factors.map(str::trim) {
            let value = match factor.parse::<u64>() {
                Ok(0) => return Err(Error::invalid(path, "a factor is 0")),
                Ok(value) => value,
                Err(_) => self.named(path, factor)?,
            };
            product = product.checked_mul(value).ok_or_else(|| too_large(path))?;
        }
        Ok(product)
    }

    fn named(&self, path: &str, name: &str) -> Result<u64, Error> {
        self.get(name).or_else(|| self.degrees.named(name)).ok_or_else(|| {
            let names: Vec<&str> = self.named.keys().map(String::as_str).collect();
            Error::unsupported(Field::new(path), name, &names)
        })
    }

    /// The numbers of a shape; `path` is the field that holds it.
    ///
    /// # Errors
    /// As [`Sizes::extent`], and when the tensor would be too large.
    pub fn shape(&self, path: &str, shape: &[Extent]) -> Result<Vec<u64>, Error> {
        let extents = shape
            .iter()
            .enumerate()
            .map(|(index, extent)| self.extent(&format!("{path}[{index}]"), extent))
            .collect::<Result<Vec<_>, _>>()?;
        let elements = extents.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent));
        match elements {
            Some(elements) if elements <= 1 << LOG2_MOST_ELEMENTS => Ok(extents),
            _ => Err(too_large(path)),
        }
    }
}

fn too_large(path: &str) -> Error {
    Error::TooLarge { field: Field::new(path), what: "the tensor".into(), log2_limit: LOG2_MOST_ELEMENTS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        let named = [("mlp".to_owned(), 24), ("n".to_owned(), 6)].into();
        let degrees = Degrees { tp: 4, dp: 2, ep: 1, sequence_parallel: false };
        Sizes { named, degrees }
    }

    #[test]
    fn extents_multiply_and_divide_exactly() {
        let extent = |text: &str| sizes().extent("x", &Extent::Product(text.into()));
        assert_eq!(extent("2 * mlp"), Ok(48));
        assert_eq!(extent("mlp*n/tp/dp"), Ok(18));
        assert!(matches!(extent("n/tp"), Err(Error::Indivisible { value: 6, by: 4, .. })));
        assert!(matches!(extent("n/0"), Err(Error::Invalid { .. })));
        assert!(matches!(extent("width"), Err(Error::Unsupported { .. })));
        assert!(matches!(extent("18446744073709551615*mlp"), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn axes_of_one_device_split_nothing() {
        let degrees = sizes().degrees;
        assert_eq!(degrees.axes(&[Axis::Dp, Axis::Ep, Axis::Tp]), [0, 1]);
        assert_eq!(degrees.axes(&[Axis::Sp]), Vec::<usize>::new());
        assert_eq!(Degrees { sequence_parallel: true, ..degrees }.axes(&[Axis::Sp]), [1]);
        assert!(check_axes("x", [Axis::Tp, Axis::Sp].iter()).is_err());
    }
}
