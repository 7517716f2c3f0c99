//! Rotary position embedding: for each position, the 2 × 2 rotation of each pair of a head's dimensions.
//!
//! `table[p, c, e, i]` is what half `c` of the input contributes to half `e` of the output at pair `i`, so that
//! turning queries and keys is a contraction over `c`. Pairs are (i, i + E). Where only a head's first dimensions
//! are rotated, the last pairs hold the others and are turned by nothing: weights' views put them there.

use super::config::{Rope, RopeScaling};

/// The table `[positions, 2, 2, half]`, row-major, for calls of up to `length` positions.
pub(super) fn table(rope: &Rope, positions: u64, half: u64, length: u64) -> Vec<f64> {
    let rotated = (rope.rotated(2 * half) / 2).min(half);
    let frequencies = frequencies(rope, rotated, length as f64);
    let factor = attention_factor(&rope.scaling);
    let mut table = Vec::with_capacity((positions * 4 * half) as usize);
    let still = (half - rotated) as usize;
    for position in 0..positions {
        let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
        let (mut sines, mut cosines): (Vec<f64>, Vec<f64>) =
            angles.map(|angle| (factor * angle.sin(), factor * angle.cos())).unzip();
        sines.extend(std::iter::repeat_n(0.0, still));
        cosines.extend(std::iter::repeat_n(1.0, still));
        table.extend(&cosines);
        table.extend(&sines);
        table.extend(sines.iter().map(|sine| -sine));
        table.extend(&cosines);
    }
    table
}

/// The factor on cos and sin.
fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor
        }
        _ => 1.0,
    }
}

/// Radians a position for each of `pairs` pairs.
fn frequencies(rope: &Rope, pairs: u64, length: f64) -> Vec<f64> {
    let theta = match rope.scaling {
        RopeScaling::Dynamic { factor, context } => {
            let stretched = factor * length.max(context) / context - (factor - 1.0);
            rope.theta * stretched.powf(pairs as f64 / (pairs as f64 - 1.0))
        }
        _ => rope.theta,
    };
    let frequency = |pair: u64| theta.powf(-(pair as f64) / pairs as f64);
    (0..pairs).map(|pair| scale(frequency(pair), pair as usize, pairs, rope, length)).collect()
}

fn scale(frequency: f64, pair: usize, pairs: u64, rope: &Rope, length: f64) -> f64 {
    match &rope.scaling {
        RopeScaling::Default | RopeScaling::Dynamic { .. } => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            llama3(frequency, *factor, (*low, *high), *original_context)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
            // The pair that makes this many turns in the original context.
            let pair_of = |turns: f64| {
                let wavelength = original_context / turns;
                pairs as f64 * (wavelength / (2.0 * std::f64::consts::PI)).ln() / rope.theta.ln()
            };
            let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(2.0 * pairs as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * divided + frequency * (1.0 - divided)
        }
        RopeScaling::LongRope { short, long, original_context, .. } => {
            let divisors = if length > *original_context { long } else { short };
            frequency / divisors.get(pair).copied().unwrap_or(1.0)
        }
    }
}

fn llama3(frequency: f64, factor: f64, (low, high): (f64, f64), original_context: f64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn each_pair_is_rotated_by_its_angle() {
        let rope = Rope { partial: 0.6, ..Rope::new(10_000.0) };
        let (half, position) = (5_u64, 3_u64);
        let table = table(&rope, 4, half, 4);
        for pair in 0..half {
            // Three pairs are rotated, the others stay.
            let angle = if pair < 3 { position as f64 * 10_000_f64.powf(-(pair as f64) / 3.0) } else { 0.0 };
            let at = |c: u64, e: u64| table[(((position * 2 + c) * 2 + e) * half + pair) as usize];
            // (x, y) → (x cos − y sin, x sin + y cos)
            close(at(0, 0), angle.cos());
            close(at(1, 0), -angle.sin());
            close(at(0, 1), angle.sin());
            close(at(1, 1), angle.cos());
        }
    }

    #[test]
    fn llama3_divides_low_frequencies_only() {
        let scale = |frequency| llama3(frequency, 8.0, (1.0, 4.0), 8192.0);
        assert_eq!(scale(1.0), 1.0);
        assert_eq!(scale(1e-5), 1e-5 / 8.0);
        let between = 2.0 * std::f64::consts::PI / 4096.0;
        let scaled = scale(between);
        assert!(between / 8.0 < scaled && scaled < between);
    }

    #[test]
    fn longrope_and_dynamic_depend_on_the_length() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_context: 16.0,
            attention_factor: 1.5,
        };
        let rope = Rope { scaling, ..Rope::new(100.0) };
        assert_eq!(frequencies(&rope, 2, 16.0), [1.0, 0.05]);
        assert_eq!(frequencies(&rope, 2, 17.0), [0.25, 0.0125]);
        close(table(&rope, 1, 2, 16)[0], 1.5);
        let rope = Rope { scaling: RopeScaling::Dynamic { factor: 2.0, context: 16.0 }, ..Rope::new(100.0) };
        close(frequencies(&rope, 2, 8.0)[1], 0.1);
        // At twice the context the base grows by (2 · 2 − 1)^(4 / 2).
        close(frequencies(&rope, 2, 32.0)[1], 0.1 / 3.0);
    }
}
