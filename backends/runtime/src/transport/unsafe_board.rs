//! The meeting point of threads for collectives that are not fused: each shows its buffer, all read
//! each other's directly, and nobody leaves before its buffer has been read. No staging, no lock.
//!
//! Order: a member's `posted` is a release store after its buffer's address; peers load it with acquire.
//! `acks` are release increments after reading; the owner waits for them with acquire. A member posts
//! its next buffer only after all acks for the last, so one set of fields suffices.
//!
//! Failure: a member that gives up returns to a caller who may free the buffer, while a peer may just
//! have begun to read it. So a reader raises its `reading` flag *before* it looks whether a device has
//! failed, and a member that gives up marks the failure *before* it waits for all `reading` flags to
//! fall. All four operations are sequentially consistent: either the reader sees the failure or the
//! leaver sees the flag.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::{Call, Exchange, Read};
use crate::Error;
use crate::sync::{AtomicU64, Padded};
use crate::watch::Watch;

/// The board of one group of threads.
#[derive(Debug)]
pub struct Board {
    devices: Vec<u32>,
    members: Vec<Padded<Member>>,
}

#[derive(Debug, Default)]
struct Member {
    /// Buffers shown so far.
    posted: AtomicU64,
    start: AtomicPtr<u8>,
    bytes: AtomicUsize,
    call: AtomicUsize,
    /// Reads of this member's buffers so far, by all peers.
    acks: AtomicU64,
    /// Whether this member is reading the others' buffers.
    reading: AtomicBool,
}

impl Board {
    /// The board on which `devices` meet.
    pub fn new(devices: Vec<u32>) -> Self {
        let members = devices.iter().map(|_| Padded::default()).collect();
        Board { devices, members }
    }

    fn peers(&self, position: u32) -> impl Iterator<Item = (usize, &Member)> {
        let others = self.members.iter().enumerate().filter(move |(peer, _)| *peer != position as usize);
        others.map(|(peer, member)| (peer, &member.0))
    }

    /// Shows `mine` and waits until everybody shows theirs.
    fn meet(&self, watch: &Watch, position: u32, call: Call, mine: &[u8]) -> Result<u64, Error> {
        let me = &self.members[position as usize].0;
        let sequence = me.posted.load(Ordering::Relaxed) + 1;
        me.start.store(mine.as_ptr().cast_mut(), Ordering::Relaxed);
        me.bytes.store(mine.len(), Ordering::Relaxed);
        me.call.store(call as usize, Ordering::Relaxed);
        me.posted.store(sequence, Ordering::Release);
        for (peer, member) in self.peers(position) {
            let ready = || member.posted.load(Ordering::Acquire) >= sequence;
            let waiting = || format!("device {} to enter {}", self.devices[peer], call.name());
            watch.until(self.devices[position as usize], ready, waiting)?;
        }
        Ok(sequence)
    }

    /// Reads everybody's buffers.
    fn read(&self, watch: &Watch, position: u32, call: Call, read: &mut Read<'_>) -> Result<(), Error> {
        self.members[position as usize].0.reading.store(true, Ordering::SeqCst);
        watch.check()?;
        let device = self.devices[position as usize];
        let mut buffers = Vec::with_capacity(self.members.len());
        for (peer, Padded(member)) in self.members.iter().enumerate() {
            let theirs = member.call.load(Ordering::Relaxed);
            if theirs != call as usize {
                let other = Call::ALL.get(theirs).map_or("another collective", |call| call.name());
                return Err(Error::Mismatch {
                    device,
                    collective: call.name(),
                    peer: self.devices[peer],
                    other,
                });
            }
            let (start, bytes) = (member.start.load(Ordering::Relaxed), member.bytes.load(Ordering::Relaxed));
            // SAFETY: the member posted a live slice and stays in `exchange` until this device has
            // acknowledged it, or, once a device has failed, until this device's `reading` flag falls.
            buffers.push(unsafe { std::slice::from_raw_parts(start.cast_const(), bytes) });
        }
        read(&buffers)
    }
}

// SAFETY: nobody's sequence runs ahead of another's by more than one, so `posted` is the same call; the
// module's argument keeps the buffers alive.
unsafe impl Exchange for Board {
    fn exchange(
        &self,
        watch: &Watch,
        position: u32,
        call: Call,
        mine: &[u8],
        read: &mut Read<'_>,
    ) -> Result<(), Error> {
        let mut stay = Stay { board: self, watch, position, cause: Some("a panic in a collective".into()) };
        let outcome = self.meet(watch, position, call, mine).and_then(|sequence| {
            self.read(watch, position, call, read)?;
            let me = &self.members[position as usize].0;
            me.reading.store(false, Ordering::Release);
            for (_, peer) in self.peers(position) {
                peer.acks.fetch_add(1, Ordering::Release);
            }
            let expected = sequence * (self.members.len() as u64 - 1);
            watch.until(
                self.devices[position as usize],
                || me.acks.load(Ordering::Acquire) >= expected,
                || format!("all devices to leave {}", call.name()),
            )
        });
        stay.cause = outcome.as_ref().err().map(Error::to_string);
        outcome
    }
}

/// Keeps a member that gives up from leaving while its buffer is being read.
struct Stay<'a> {
    board: &'a Board,
    watch: &'a Watch,
    position: u32,
    cause: Option<String>,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let Some(cause) = &self.cause else { return };
        self.board.members[self.position as usize].0.reading.store(false, Ordering::SeqCst);
        self.watch.poison(self.board.devices[self.position as usize], cause);
        let mut backoff = self.watch.backoff();
        for (_, peer) in self.board.peers(self.position) {
            while peer.reading.load(Ordering::SeqCst) {
                backoff.snooze();
            }
        }
    }
}
