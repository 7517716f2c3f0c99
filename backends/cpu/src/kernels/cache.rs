//! Cache sizes of the host, and the block sizes of a matrix product that follow from them.

use super::isa::Machine;

/// Sizes of the data caches that one core sees, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// First level.
    pub l1: usize,
    /// Second level.
    pub l2: usize,
    /// Last level; the second where there is no third.
    pub l3: usize,
}

impl Caches {
    /// What Linux reports for the first CPU; where it reports nothing, 32 KiB, 512 KiB and 8 MiB.
    pub fn host() -> Self {
        let l1 = level(1).unwrap_or(32 << 10);
        let l2 = level(2).unwrap_or(512 << 10).max(l1);
        Caches { l1, l2, l3: level(3).unwrap_or(8 << 20).max(l2) }
    }
}

/// Size of the data or unified cache of `wanted` level.
fn level(wanted: u32) -> Option<usize> {
    (0..8).find_map(|index| {
        let read = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        let is_data = matches!(read("type")?.as_str(), "Data" | "Unified");
        (is_data && read("level")?.parse() == Ok(wanted)).then(|| parse_size(&read("size")?))?
    })
}

fn parse_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// Block sizes of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Steps of K that one pass of the micro-kernel sums.
    ///
    /// A function of the machine and K alone: an element's rounding depends on it, so nothing
    /// about M, N, the position or the threads may enter.
    pub kc: usize,
    /// Rows of A that are packed together.
    pub mc: usize,
    /// Panels of B that are packed together when B is not packed ahead.
    pub panels: usize,
}

/// Largest packed copy of B that a product makes for itself, in bytes.
const MAX_PACKED_B: usize = 64 << 20;

/// Terms that one pass sums at most, before rounding to the unrolled loop.
const LONGEST_PASS: usize = 1024;

/// No packed block of A has more floats, whatever the product.
pub(super) fn largest_block(machine: &Machine) -> usize {
    let kc = LONGEST_PASS + machine.tile.unroll;
    (machine.caches.l2 * 3 / 8 / 4).max(machine.tile.rows * kc)
}

/// No group of packed panels of B has more floats where at most `k` terms are summed.
pub(super) fn largest_group(machine: &Machine, k: usize) -> usize {
    (MAX_PACKED_B / 4).max(machine.tile_columns() * k)
}

/// Block sizes for a product that sums `k` terms.
pub fn blocking(machine: &Machine, k: usize) -> Blocking {
    let (mr, nr, l2) = (machine.tile.rows, machine.tile_columns(), machine.caches.l2);
    // kc × nr × 4 ≤ a quarter of L2: a panel of B comes from there for every mr rows, in order and
    // without a stall. Long sums pay, since each pass reads and writes C again, up to the length
    // where that no longer shows.
    let most = (l2 / 4 / (4 * nr)).clamp(64, LONGEST_PASS);
    // Equal blocks, so that no short one is left over.
    let kc = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(machine.tile.unroll).max(1);
    // mc × kc × 4 ≤ 3/8 of L2: a block of A stays there while all of B passes.
    let mc = (l2 * 3 / 8 / (4 * kc) / mr).clamp(1, 64) * mr;
    let panels = (MAX_PACKED_B / (4 * nr * k.max(1))).max(1);
    Blocking { kc, mc, panels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_size("32K"), Some(32 << 10));
        assert_eq!(parse_size("1M"), Some(1 << 20));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("3 cats"), None);
    }

    #[test]
    fn blocks_cover_any_k_and_fit() {
        let machine = Machine::host().expect("a machine that LLVM knows");
        for k in [0, 1, 7, 100, 255, 257, 1024, 4096, 100_003] {
            let Blocking { kc, mc, panels } = blocking(&machine, k);
            assert!(kc > 0 && panels > 0 && mc > 0 && mc % machine.tile.rows == 0);
            assert!(mc == machine.tile.rows || mc * kc * 4 <= machine.caches.l2 * 3 / 8);
        }
    }
}
