//! Bytes requested at memory, by cause.

use std::ops::{Add, Mul};

use serde::Serialize;

/// Bytes requested at one device's memory. `updates` are part of the writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Traffic {
    /// Operands of the producer, beyond what the cache holds.
    pub gemm_reads: u64,
    /// Its output, where it is stored in the device's own memory.
    pub gemm_writes: u64,
    /// Reads of the reduce-scatter.
    pub rs_reads: u64,
    /// What it writes: received parts and results.
    pub rs_writes: u64,
    /// Reads of the all-gather.
    pub ag_reads: u64,
    /// What it writes.
    pub ag_writes: u64,
    /// Of `gemm_writes` and `rs_writes`, the bytes that memory itself added (near-memory updates).
    pub updates: u64,
    /// Counters that the tracker could not hold, written and read back.
    pub tracker_spills: u64,
}

impl Traffic {
    /// All reads and writes.
    pub fn total(&self) -> u64 {
        let (gemm, rs) = (self.gemm_reads + self.gemm_writes, self.rs_reads + self.rs_writes);
        gemm + rs + self.ag_reads + self.ag_writes + self.tracker_spills
    }

    pub(crate) fn communication_reads(&mut self, is_gather: bool) -> &mut u64 {
        if is_gather { &mut self.ag_reads } else { &mut self.rs_reads }
    }

    pub(crate) fn communication_writes(&mut self, is_gather: bool) -> &mut u64 {
        if is_gather { &mut self.ag_writes } else { &mut self.rs_writes }
    }
}

impl Add for Traffic {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            gemm_reads: self.gemm_reads + other.gemm_reads,
            gemm_writes: self.gemm_writes + other.gemm_writes,
            rs_reads: self.rs_reads + other.rs_reads,
            rs_writes: self.rs_writes + other.rs_writes,
            ag_reads: self.ag_reads + other.ag_reads,
            ag_writes: self.ag_writes + other.ag_writes,
            updates: self.updates + other.updates,
            tracker_spills: self.tracker_spills + other.tracker_spills,
        }
    }
}

impl Mul<u64> for Traffic {
    type Output = Self;
    fn mul(self, times: u64) -> Self {
        Self {
            gemm_reads: self.gemm_reads * times,
            gemm_writes: self.gemm_writes * times,
            rs_reads: self.rs_reads * times,
            rs_writes: self.rs_writes * times,
            ag_reads: self.ag_reads * times,
            ag_writes: self.ag_writes * times,
            updates: self.updates * times,
            tracker_spills: self.tracker_spills * times,
        }
    }
}
