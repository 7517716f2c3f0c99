//! The C entry point through which the dialect's verifier uses this crate's arithmetic. The only unsafe
//! code of the crate.

use crate::{
    CollectiveKind,
    address_space::{Chunk, Op, Store, Trigger},
    arrivals::{Arrival, verify_arrivals},
    invariants::{verify_address_space, verify_exchange},
};

/// The number of `all_to_all` in `T3_Collective`.
const ALL_TO_ALL: u32 = 3;

/// Words of a chunk across the border: relative, store, op, threshold, trigger, to.
pub const WORDS: usize = 6;

/// A chunk as six words, or `None` when a word is out of range.
pub fn chunk_from_words(words: [u32; WORDS]) -> Option<Chunk> {
    let [relative, store, op, threshold, trigger, to] = words;
    Some(Chunk {
        relative,
        store: match store {
            0 => Store::Local,
            1 => Store::Remote(to),
            _ => return None,
        },
        op: match op {
            0 => Op::Store,
            1 => Op::Update,
            _ => return None,
        },
        threshold,
        trigger: match trigger {
            0 => Trigger::None,
            1 => Trigger::Dma { to, op: Op::Update },
            2 => Trigger::Reduce,
            3 => Trigger::Done,
            _ => return None,
        },
    })
}

/// The inverse of [`chunk_from_words`]. A DMA updates at its destination.
pub fn chunk_to_words(chunk: &Chunk) -> [u32; WORDS] {
    let (store, remote) = match chunk.store {
        Store::Local => (0, 0),
        Store::Remote(to) => (1, to),
    };
    let (trigger, dma) = match chunk.trigger {
        Trigger::None => (0, 0),
        Trigger::Dma { to, .. } => (1, to),
        Trigger::Reduce => (2, 0),
        Trigger::Done => (3, 0),
    };
    let op = match chunk.op {
        Op::Store => 0,
        Op::Update => 1,
    };
    [chunk.relative, store, op, chunk.threshold, trigger, remote.max(dma)]
}

/// Checks an address space for the dialect's verifier. `collective` is the number of `T3_Collective`.
///
/// Returns the length of the message written to `message`, 0 when the address space is well formed.
///
/// # Safety
/// `chunks` points to `count` × [`WORDS`] words, `message` to `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn t3_verify_address_space(
    chunks: *const u32,
    count: usize,
    collective: u32,
    devices: u32,
    message: *mut u8,
    capacity: usize,
) -> usize {
    // SAFETY: the caller's contract; an empty list may have any pointer.
    let words = if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(chunks, count * WORDS) } };
    let chunks: Option<Vec<Chunk>> =
        words.as_chunks::<WORDS>().0.iter().map(|words| chunk_from_words(*words)).collect();
    let verify = if collective == ALL_TO_ALL { verify_exchange } else { verify_address_space };
    let text = match chunks.map(|chunks| verify(&chunks, devices)) {
        Some(Ok(())) => return 0,
        Some(Err(error)) => error.to_string(),
        None => "has a chunk with an unknown store, op or trigger".to_owned(),
    };
    // SAFETY: the caller's contract.
    unsafe { write(&text, message, capacity) }
}

/// Checks arrivals for the dialect's verifier: for each, `relative`, `from`, the number of sends, the sends.
///
/// Returns the length of the message written to `message`, 0 when they perform the collective.
///
/// # Safety
/// `words` points to `count` words, `message` to `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn t3_verify_arrivals(
    words: *const u32,
    count: usize,
    collective: u32,
    devices: u32,
    message: *mut u8,
    capacity: usize,
) -> usize {
    // SAFETY: the caller's contract; an empty list may have any pointer.
    let words = if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(words, count) } };
    let kind = if collective == ALL_TO_ALL { CollectiveKind::AllToAll } else { CollectiveKind::AllGather };
    let text = match arrivals_from_words(words).map(|arrivals| verify_arrivals(kind, &arrivals, devices)) {
        Some(Ok(())) => return 0,
        Some(Err(error)) => error.to_string(),
        None => "has an arrival whose sends are cut off".to_owned(),
    };
    // SAFETY: the caller's contract.
    unsafe { write(&text, message, capacity) }
}

fn arrivals_from_words(mut words: &[u32]) -> Option<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    while let [relative, from, count, rest @ ..] = words {
        let (sends, after) = rest.split_at_checked(*count as usize)?;
        arrivals.push(Arrival { relative: *relative, from: *from, sends: sends.to_vec() });
        words = after;
    }
    words.is_empty().then_some(arrivals)
}

/// # Safety
/// `message` points to `capacity` writable bytes.
unsafe fn write(text: &str, message: *mut u8, capacity: usize) -> usize {
    let length = text.len().min(capacity);
    // SAFETY: `length` bytes fit both the text and the buffer, and they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), message, length) };
    length
}
