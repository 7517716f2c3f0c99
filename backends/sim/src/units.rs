//! Quantities with units, as system files write them, and integer picoseconds.

use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// Simulated time. Integers, so that the same input gives the same output to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Picoseconds(pub u64);

impl Picoseconds {
    /// Picoseconds of a second.
    pub const PER_SECOND: u64 = 1_000_000_000_000;

    /// As microseconds, for reports.
    pub fn as_us(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// As seconds.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e12
    }
}

impl Add for Picoseconds {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Picoseconds {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Picoseconds {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// The time that `amount` takes at `per_second`, rounded up. Saturates instead of overflowing.
pub fn duration(amount: u64, per_second: u64) -> Picoseconds {
    let picoseconds =
        (u128::from(amount) * u128::from(Picoseconds::PER_SECOND)).div_ceil(u128::from(per_second.max(1)));
    Picoseconds(u64::try_from(picoseconds).unwrap_or(u64::MAX))
}

/// What a field measures, and so which units it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Picoseconds; `ps`, `ns`, `us`, `ms`.
    Time,
    /// Bytes a second; `MB/s`, `GB/s`, `TB/s` and the binary ones.
    Bandwidth,
    /// Hertz; `MHz`, `GHz`.
    Frequency,
    /// Bytes; `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB`, `GB`.
    Size,
}

impl Dimension {
    /// The units, each with what one of it is.
    fn units(self) -> &'static [(&'static str, f64)] {
        const KIB: f64 = 1024.0;
        match self {
            Dimension::Time => &[("ps", 1.0), ("ns", 1e3), ("us", 1e6), ("µs", 1e6), ("ms", 1e9)],
            Dimension::Bandwidth => &[
                ("MB/s", 1e6),
                ("GB/s", 1e9),
                ("TB/s", 1e12),
                ("MiB/s", KIB * KIB),
                ("GiB/s", KIB * KIB * KIB),
                ("TiB/s", KIB * KIB * KIB * KIB),
            ],
            Dimension::Frequency => &[("Hz", 1.0), ("kHz", 1e3), ("MHz", 1e6), ("GHz", 1e9)],
            Dimension::Size => &[
                ("B", 1.0),
                ("kB", 1e3),
                ("MB", 1e6),
                ("GB", 1e9),
                ("KiB", KIB),
                ("MiB", KIB * KIB),
                ("GiB", KIB * KIB * KIB),
            ],
        }
    }

    /// An example for messages.
    pub fn example(self) -> &'static str {
        match self {
            Dimension::Time => "500 ns",
            Dimension::Bandwidth => "1 TB/s",
            Dimension::Frequency => "1.4 GHz",
            Dimension::Size => "16 MiB",
        }
    }

    /// Reads a number with its unit into the base unit. The message says what is wrong.
    pub fn parse(self, text: &str) -> Result<u64, String> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.eE_".contains(c))).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.trim();
        let value: f64 = number
            .replace('_', "")
            .parse()
            .map_err(|_| format!("`{text}` does not start with a number, such as \"{}\"", self.example()))?;
        if unit.is_empty() {
            return Err(format!("`{text}` has no unit, such as \"{}\"", self.example()));
        }
        let known = || self.units().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let (_, scale) = self
            .units()
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("unit `{unit}` is not one of {}", known()))?;
        let base = (value * scale).round();
        if value < 0.0 {
            return Err(format!("`{text}` is negative"));
        }
        if base < 1.0 {
            return Err(format!("`{text}` is zero: it must be positive"));
        }
        if !base.is_finite() || base > 1e18 {
            return Err(format!("`{text}` is too large"));
        }
        Ok(base as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_with_units() {
        assert_eq!(Dimension::Time.parse("500 ns"), Ok(500_000));
        assert_eq!(Dimension::Time.parse("3.5us"), Ok(3_500_000));
        assert_eq!(Dimension::Bandwidth.parse("1 TB/s"), Ok(1_000_000_000_000));
        assert_eq!(Dimension::Frequency.parse("1.4 GHz"), Ok(1_400_000_000));
        assert_eq!(Dimension::Size.parse("16 MiB"), Ok(16 << 20));
    }

    #[test]
    fn bad_quantities_say_why() {
        let error = |text: &str| Dimension::Bandwidth.parse(text).unwrap_err();
        assert_eq!(error("150"), "`150` has no unit, such as \"1 TB/s\"");
        assert_eq!(error("-1 GB/s"), "`-1 GB/s` is negative");
        assert_eq!(error("0 GB/s"), "`0 GB/s` is zero: it must be positive");
        assert_eq!(error("fast"), "`fast` does not start with a number, such as \"1 TB/s\"");
        assert_eq!(error("1 GiB"), "unit `GiB` is not one of MB/s, GB/s, TB/s, MiB/s, GiB/s, TiB/s");
        assert!(error("1e400 GB/s").contains("too large"));
    }

    #[test]
    fn durations_round_up() {
        assert_eq!(duration(1, 3), Picoseconds(333_333_333_334));
        assert_eq!(duration(u64::MAX, 1), Picoseconds(u64::MAX));
    }
}
