//! The rotation table: for each position, the 2 × 2 rotation of each pair of a head's dimensions.
//!
//! `table[p, c, e, i]` is what half `c` of the input contributes to half `e` of the output at pair `i`, so that
//! turning queries and keys is a contraction over `c`. Pairs are (i, i + E), as Hugging Face stores them.

use super::config::{Rope, RopeScaling};

/// The table `[positions, 2, 2, half]`, row-major.
pub(super) fn table(rope: &Rope, positions: u64, half: u64) -> Vec<f64> {
    let frequencies = frequencies(rope, half);
    let mut table = Vec::with_capacity((positions * 4 * half) as usize);
    for position in 0..positions {
        let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
        let (sines, cosines): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        table.extend(&cosines);
        table.extend(&sines);
        table.extend(sines.iter().map(|sine| -sine));
        table.extend(&cosines);
    }
    table
}

/// Radians a position for each pair.
fn frequencies(rope: &Rope, half: u64) -> Vec<f64> {
    (0..half).map(|pair| scale(rope.theta.powf(-(pair as f64) / half as f64), rope.scaling)).collect()
}

fn scale(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength > original_context / low {
                return frequency / factor;
            }
            if wavelength < original_context / high {
                return frequency;
            }
            let smooth = (original_context / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_rotated_by_its_angle() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Default };
        let (half, position) = (5_u64, 3_u64);
        let table = table(&rope, 4, half);
        for pair in 0..half {
            let angle = position as f64 * 10_000_f64.powf(-(pair as f64) / 5.0);
            let at = |c: u64, e: u64| table[(((position * 2 + c) * 2 + e) * half + pair) as usize];
            // (x, y) → (x cos − y sin, x sin + y cos)
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12);
            close(at(0, 0), angle.cos());
            close(at(1, 0), -angle.sin());
            close(at(0, 1), angle.sin());
            close(at(1, 1), angle.cos());
        }
    }

    #[test]
    fn llama3_divides_low_frequencies_only() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        assert_eq!(scale(1.0, scaling), 1.0);
        assert_eq!(scale(1e-5, scaling), 1e-5 / 8.0);
        let between = 2.0 * std::f64::consts::PI / 4096.0;
        let scaled = scale(between, scaling);
        assert!(between / 8.0 < scaled && scaled < between);
    }
}
