//! Collectives that are not fused, over a group of devices.
//!
//! They pull: each device reads its peers' buffers where they lie and writes only its own result, so
//! nothing is staged and every sum has one fixed order. The reduce-scatter divides and adds exactly as
//! the fused one does (`chunks::chunk_range`, `ring::addition_order`), so both give the same bits. The
//! all-reduce, which no schedule has split, adds in device order.

use t3c_schedule::{Reduction, ring};

use crate::Error;
use crate::hooks::Hooks;
use crate::layout::Cut;
use crate::runtime::OneThread;
use crate::transport::{Call, Exchange};
use crate::unsafe_memory::{Plain, bytes_of, combine_slices, values_of};
use crate::watch::Watch;

/// From this many elements on, each device of an all-reduce adds one part and gathers the others.
const DIVIDED_ALL_REDUCE: usize = 4096;

/// A device's membership in a group along some grid axes.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    pub(crate) exchange: &'a dyn Exchange,
    pub(crate) watch: &'a Watch,
    pub(crate) hooks: &'a Hooks,
    pub(crate) members: &'a [u32],
    pub(crate) position: u32,
    pub(crate) _worker: OneThread,
}

impl Group<'_> {
    /// The devices of the group, in ring order.
    pub fn members(&self) -> &[u32] {
        self.members
    }

    /// Devices in the group.
    pub fn size(&self) -> u32 {
        self.members.len() as u32
    }

    /// This device's place among the members.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// `output` = this device's chunk of the reduced `input`s, which have `cut`'s shape.
    pub fn reduce_scatter(
        &self,
        input: &[f32],
        output: &mut [f32],
        cut: Cut,
        reduction: Reduction,
    ) -> Result<(), Error> {
        let call = Call::ReduceScatter;
        let own = cut.chunk(self.size(), self.position);
        self.expect(call, "the input", input.len(), cut.elements())?;
        self.expect(call, "the output", output.len(), cut.elements_of(own.len()))?;
        self.meet(call, input, |parts| {
            self.expect_all(call, parts, cut.elements())?;
            let order: Vec<&[f32]> = ring::addition_order(self.position, self.size())
                .map(|device| parts[device as usize])
                .collect();
            let row_length = own.len() * cut.inner;
            for outer in 0..cut.outer {
                let row = cut.row(outer, &own);
                let sources: Vec<&[f32]> = order.iter().map(|part| &part[row.clone()]).collect();
                combine_slices(&mut output[outer * row_length..][..row_length], &sources, reduction);
            }
            Ok(())
        })
    }

    /// `output`, of `cut`'s shape, = the members' `input`s side by side along the cut dimension.
    pub fn all_gather<T: Plain>(&self, input: &[T], output: &mut [T], cut: Cut) -> Result<(), Error> {
        let call = Call::AllGather;
        let own = cut.chunk(self.size(), self.position);
        self.expect(call, "the input", input.len(), cut.elements_of(own.len()))?;
        self.expect(call, "the output", output.len(), cut.elements())?;
        self.meet(call, input, |parts| {
            for (device, part) in (0..).zip(parts) {
                let chunk = cut.chunk(self.size(), device);
                let row_length = chunk.len() * cut.inner;
                self.expect(call, "a peer's input", part.len(), cut.outer * row_length)?;
                for outer in 0..cut.outer {
                    output[cut.row(outer, &chunk)].copy_from_slice(&part[outer * row_length..][..row_length]);
                }
            }
            Ok(())
        })
    }

    /// `output` = the members' `input`s reduced, in device order.
    pub fn all_reduce(&self, input: &[f32], output: &mut [f32], reduction: Reduction) -> Result<(), Error> {
        let call = Call::AllReduce;
        self.expect(call, "the output", output.len(), input.len())?;
        if input.len() < DIVIDED_ALL_REDUCE || self.size() < 3 {
            return self.meet(call, input, |parts| {
                self.expect_all(call, parts, input.len())?;
                combine_slices(output, parts, reduction);
                Ok(())
            });
        }
        let cut = Cut { outer: 1, extent: input.len(), inner: 1 };
        let own = cut.chunk(self.size(), self.position);
        self.meet(call, input, |parts| {
            self.expect_all(call, parts, input.len())?;
            let parts: Vec<&[f32]> = parts.iter().map(|part| &part[own.clone()]).collect();
            combine_slices(&mut output[own.clone()], &parts, reduction);
            Ok(())
        })?;
        let (before, rest) = output.split_at_mut(own.start);
        let (mine, after) = rest.split_at_mut(own.len());
        self.meet(call, mine, |parts| {
            for (device, part) in (0..).zip(parts).filter(|(device, _)| *device != self.position) {
                let chunk = cut.chunk(self.size(), device);
                let target = if device < self.position {
                    &mut before[chunk]
                } else {
                    &mut after[chunk.start - own.end..chunk.end - own.end]
                };
                target.copy_from_slice(part);
            }
            Ok(())
        })
    }

    /// Splits each member's `input` of `shape` along `split`, sends the parts to the members in order,
    /// and lays what arrives side by side along `concat`.
    ///
    /// The group's size must divide the extent of `split`.
    pub fn all_to_all<T: Plain>(
        &self,
        input: &[T],
        output: &mut [T],
        shape: &[u64],
        split: usize,
        concat: usize,
    ) -> Result<(), Error> {
        let call = Call::AllToAll;
        let exchange = Transposition::new(shape, split, concat, self.size()).ok_or_else(|| {
            let size = self.size();
            Error::Grid(format!(
                "{size} devices cannot exchange a value of shape {shape:?} by dimension {split}"
            ))
        })?;
        self.expect(call, "the input", input.len(), exchange.elements)?;
        self.expect(call, "the output", output.len(), exchange.elements)?;
        self.meet(call, input, |parts| {
            self.expect_all(call, parts, exchange.elements)?;
            for (sender, part) in parts.iter().enumerate() {
                exchange.runs(sender, self.position as usize, |from, to, length| {
                    output[to..][..length].copy_from_slice(&part[from..][..length]);
                });
            }
            Ok(())
        })
    }

    /// Every member's `buffer` = that of the member at position `root`.
    pub fn broadcast<T: Plain>(&self, root: u32, buffer: &mut [T]) -> Result<(), Error> {
        let call = Call::Broadcast;
        if root >= self.size() {
            return Err(Error::Grid(format!("no member {root} in a group of {}", self.size())));
        }
        if root == self.position {
            return self.meet(call, &*buffer, |_| Ok(()));
        }
        self.meet(call, &[], |parts: &[&[T]]| {
            self.expect(call, "the root's buffer", parts[root as usize].len(), buffer.len())?;
            buffer.copy_from_slice(parts[root as usize]);
            Ok(())
        })
    }

    /// Waits until all members are here.
    pub fn barrier(&self) -> Result<(), Error> {
        self.meet(Call::Barrier, &[0_u8; 0], |_| Ok(()))
    }

    fn meet<T: Plain>(
        &self,
        call: Call,
        mine: &[T],
        mut read: impl FnMut(&[&[T]]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.hooks.pause();
        self.exchange.exchange(self.watch, self.position, call, bytes_of(mine), &mut |buffers| {
            self.hooks.pause();
            let mut parts = Vec::with_capacity(buffers.len());
            for bytes in buffers {
                let part = values_of(bytes);
                let error = || self.length(call, "a peer's bytes", bytes.len(), size_of::<T>());
                parts.push(part.ok_or_else(error)?);
            }
            read(&parts)
        })
    }

    fn expect_all<T>(&self, call: Call, parts: &[&[T]], expected: usize) -> Result<(), Error> {
        parts.iter().try_for_each(|part| self.expect(call, "a peer's input", part.len(), expected))
    }

    fn expect(&self, call: Call, what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
        if found == expected { Ok(()) } else { Err(self.length(call, what, found, expected)) }
    }

    fn length(&self, call: Call, what: &'static str, found: usize, expected: usize) -> Error {
        let device = self.members[self.position as usize];
        Error::Length { device, collective: call.name(), what, found, expected }
    }
}

/// The index arithmetic of an all-to-all: a value seen as `outer × first × middle × second × inner`
/// around its two dimensions.
#[derive(Clone, Copy, Debug)]
struct Transposition {
    devices: usize,
    elements: usize,
    outer: usize,
    first: usize,
    middle: usize,
    second: usize,
    inner: usize,
    /// Which dimension is split.
    split: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    First,
    Second,
    /// Split and concatenation are along the same dimension: `second` is 1.
    Both,
}

impl Transposition {
    fn new(shape: &[u64], split: usize, concat: usize, devices: u32) -> Option<Self> {
        let whole = Cut::of(shape, split)?;
        let devices = devices as usize;
        if concat >= shape.len() || devices == 0 || !whole.extent.is_multiple_of(devices) {
            return None;
        }
        let (low, high) = (split.min(concat), split.max(concat));
        let (low_cut, high_cut) = (Cut::of(shape, low)?, Cut::of(shape, high)?);
        let both = low == high;
        let middle: u64 = if both { 1 } else { shape[low + 1..high].iter().product() };
        Some(Transposition {
            devices,
            elements: whole.elements(),
            outer: low_cut.outer,
            first: low_cut.extent,
            middle: middle as usize,
            second: if both { 1 } else { high_cut.extent },
            inner: high_cut.inner,
            split: match (both, split == low) {
                (true, _) => Side::Both,
                (false, true) => Side::First,
                (false, false) => Side::Second,
            },
        })
    }

    /// Calls `copy(from, to, length)` for each contiguous run that `receiver` gets from `sender`.
    fn runs(&self, sender: usize, receiver: usize, mut copy: impl FnMut(usize, usize, usize)) {
        let Transposition { devices, outer, first, middle, second, inner, .. } = *self;
        let (first_part, second_part) = (first / devices, second / devices);
        for o in 0..outer {
            match self.split {
                Side::Both => {
                    let run = first_part * inner;
                    let start = o * first * inner;
                    copy(start + receiver * run, start + sender * run, run);
                }
                Side::First => (0..first_part * middle).for_each(|am| {
                    let from = (o * first + receiver * first_part) * middle + am;
                    let to = o * first_part * middle + am;
                    copy(from * second * inner, (to * devices + sender) * second * inner, second * inner);
                }),
                Side::Second => (0..first * middle).for_each(|am| {
                    let from = o * first * middle + am;
                    let to = (o * devices + sender) * first * middle + am;
                    let run = second_part * inner;
                    copy(from * second * inner + receiver * run, to * run, run);
                }),
            }
        }
    }
}
