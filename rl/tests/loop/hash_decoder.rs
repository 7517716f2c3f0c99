//! A decoder whose cache holds tokens and whose logits are a hash of the tokens it finds there: a
//! block that was shared, copied or freed wrongly changes them.

use std::convert::Infallible;

use t3c_rl::decode::{BLOCK, DecodeRows, Decoder};
use t3c_rl::task::Token;

use crate::toy::{ANSWER, CALL, VOCABULARY};

pub struct HashDecoder {
    cache: Vec<[Option<Token>; BLOCK]>,
    pub rows: usize,
    pub calls: Vec<usize>,
}

/// The logits after a sequence. The ends of steps are likely enough for steps of a few tokens.
pub fn logits(sequence: impl Iterator<Item = Token>) -> Vec<f32> {
    let mut hash = sequence.fold(0x51ed_270b_u64, |hash, token| {
        (hash ^ (token as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    });
    let mut logits = Vec::new();
    for token in 0..VOCABULARY as Token {
        hash = (hash ^ (hash >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bonus = if token == CALL { 2.0 } else { f32::from(u8::from(token == ANSWER)) };
        logits.push((hash >> 40) as f32 / (1u32 << 23) as f32 + bonus);
    }
    logits
}

impl HashDecoder {
    pub fn new(blocks: usize) -> Self {
        Self { cache: vec![[None; BLOCK]; blocks], rows: 0, calls: Vec::new() }
    }
}

impl Decoder for HashDecoder {
    type Error = Infallible;

    fn decode(&mut self, rows: &DecodeRows, out: &mut Vec<f32>) -> Result<(), Infallible> {
        let table =
            |row: usize, position: usize| rows.block_table[row * rows.width + position / BLOCK] as usize;
        let mut written = std::collections::HashSet::new();
        for row in 0..rows.len() {
            let position = rows.position[row] as usize;
            let block = table(row, position);
            if block != 0 {
                self.rows += 1;
                assert!(written.insert((block, position % BLOCK)), "two rows write the same slot");
            }
            self.cache[block][position % BLOCK] = Some(rows.tokens[row]);
        }
        self.calls.push(rows.len());
        out.clear();
        for row in 0..rows.len() {
            if table(row, 0) == 0 {
                out.extend([0.0; VOCABULARY]);
                continue;
            }
            let read = |position| self.cache[table(row, position)][position % BLOCK];
            let sequence = (0..=rows.position[row] as usize).map(read);
            out.extend(logits(sequence.map(|token| token.expect("a position that was written"))));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), Infallible> {
        for (from, to) in copies {
            assert!(copies.iter().all(|(other, _)| other != to), "a target is also a source");
            self.cache[*to as usize] = self.cache[*from as usize];
        }
        Ok(())
    }
}
