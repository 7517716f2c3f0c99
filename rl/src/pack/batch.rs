//! Packs of a fixed size, as compiled code takes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Pack, Weighted};
use crate::task::{Token, Trace};

/// The size of a batch. Compiled code exists for a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens, N.
    pub tokens: usize,
    /// Loss rows, M.
    pub rows: usize,
}

impl Bucket {
    fn holds(self, (tokens, rows): (usize, usize)) -> bool {
        tokens <= self.tokens && rows <= self.rows
    }
}

/// Which loss a training step minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// −Σ weight·logp, at temperature 1.
    Sft,
    /// The clipped loss of A⁺ and A⁻ plus the weighted divergence, at the recipe's temperature.
    Portool,
}

/// A pack padded to a bucket. Padding tokens are token 0 at position 0 that see only themselves;
/// padding rows have row 0, target 0 and no weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its size.
    pub bucket: Bucket,
    /// Tokens before padding.
    pub used_tokens: usize,
    /// Loss rows before padding.
    pub used_rows: usize,
    /// The arrays, padded.
    pub pack: Pack,
    /// Log-probability of each target under the reference policy; empty if there is none.
    pub ref_logp: Vec<f32>,
}

/// One tree or trace that no bucket holds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{tokens} tokens with {rows} loss rows fit no batch: the largest has {} and {}", largest.tokens, largest.rows)]
pub struct TooLarge {
    /// Its tokens.
    pub tokens: usize,
    /// Its loss rows.
    pub rows: usize,
    /// The largest bucket.
    pub largest: Bucket,
}

impl Pack {
    /// Tokens and loss rows.
    pub fn size(&self) -> (usize, usize) {
        (self.tokens.len(), self.rows.len())
    }

    /// Padded to the smallest of `buckets` that holds it.
    pub fn pad(mut self, buckets: &[Bucket]) -> Result<Batch, TooLarge> {
        let (used_tokens, used_rows) = self.size();
        let fitting = buckets.iter().filter(|bucket| bucket.holds((used_tokens, used_rows)));
        let Some(bucket) = fitting.min_by_key(|bucket| (bucket.tokens, bucket.rows)).copied() else {
            return Err(TooLarge { tokens: used_tokens, rows: used_rows, largest: largest(buckets) });
        };
        self.tokens.resize(bucket.tokens, 0);
        self.position.resize(bucket.tokens, 0);
        self.subtree_end.extend(used_tokens as i32 + 1..=bucket.tokens as i32);
        for values in [&mut self.rows, &mut self.targets] {
            values.resize(bucket.rows, 0);
        }
        for values in [&mut self.old_logp, &mut self.a_plus, &mut self.a_minus, &mut self.weight] {
            values.resize(bucket.rows, 0.0);
        }
        Ok(Batch { bucket, used_tokens, used_rows, pack: self, ref_logp: Vec::new() })
    }
}

fn largest(buckets: &[Bucket]) -> Bucket {
    let largest = buckets.iter().max_by_key(|bucket| (bucket.tokens, bucket.rows));
    largest.copied().unwrap_or(Bucket { tokens: 0, rows: 0 })
}

/// Trees as batches: `minibatches` of them or, where that many do not hold them, the fewest that do.
/// Each is one optimizer step, so its weights are multiplied by the number of batches. Trees without
/// any gradient are left out.
pub fn batches(
    trees: Vec<Weighted<'_>>,
    buckets: &[Bucket],
    minibatches: usize,
) -> Result<Vec<Batch>, TooLarge> {
    let trees: Vec<_> = trees.into_iter().filter(|tree| !tree.is_zero()).collect();
    let largest = largest(buckets);
    if let Some((tokens, rows)) = trees.iter().map(Weighted::size).find(|size| !largest.holds(*size)) {
        return Err(TooLarge { tokens, rows, largest });
    }
    let mut count = minibatches.clamp(1, trees.len().max(1));
    let groups = loop {
        match split(&trees, count, largest) {
            Some(groups) => break groups,
            None => count += 1,
        }
    };
    let scale = groups.len() as f64;
    let mut batches = Vec::with_capacity(groups.len());
    let mut trees = trees.into_iter();
    for group in groups {
        let mut pack = Pack::default();
        for tree in trees.by_ref().take(group) {
            pack.tree(&tree.scaled(scale));
        }
        batches.push(pack.pad(buckets)?);
    }
    Ok(batches)
}

/// How many trees each of `count` batches takes, in order and of about equal tokens. `None` if one
/// does not fit; with as many batches as trees each does.
fn split(trees: &[Weighted<'_>], count: usize, largest: Bucket) -> Option<Vec<usize>> {
    let total: usize = trees.iter().map(|tree| tree.size().0).sum();
    let mut groups = vec![0; count];
    let mut sizes = vec![(0, 0); count];
    let mut before = 0;
    for (index, tree) in trees.iter().enumerate() {
        let (tokens, rows) = tree.size();
        let by_tokens = (before + tokens / 2) * count / total.max(1);
        let group = if count >= trees.len() { index } else { by_tokens.min(count - 1) };
        groups[group] += 1;
        sizes[group] = (sizes[group].0 + tokens, sizes[group].1 + rows);
        before += tokens;
    }
    groups.retain(|group| *group > 0);
    sizes.into_iter().all(|size| largest.holds(size)).then_some(groups)
}

/// Traces in a row that may be too long for the context before the task is found unfit for it.
const MOST_SKIPPED: usize = 1000;

/// A batch of the warm start: traces, one after the other, until the next would not fit. All model
/// tokens of the batch weigh the same. `next` draws prompts with their traces. The one that did not
/// fit is left out, and so are those longer than `context`, whose positions the model does not know.
pub fn sft_batch(
    bucket: Bucket,
    context: usize,
    mut next: impl FnMut() -> (Vec<Token>, Trace),
) -> Result<Batch, TooLarge> {
    let mut pack = Pack::default();
    let mut skipped = 0;
    loop {
        let (prompt, trace) = next();
        let model = trace.is_model.iter().filter(|is_model| **is_model).count();
        let (tokens, rows) = (prompt.len() + trace.tokens.len(), model);
        if tokens > context {
            skipped += 1;
            if skipped > MOST_SKIPPED {
                let largest = Bucket { tokens: context, rows: bucket.rows };
                return Err(TooLarge { tokens, rows, largest });
            }
            continue;
        }
        if !bucket.holds((pack.tokens.len() + tokens, pack.rows.len() + rows)) {
            if pack.tokens.is_empty() {
                return Err(TooLarge { tokens, rows, largest: bucket });
            }
            break;
        }
        pack.trace(&prompt, &trace.tokens, &trace.is_model, 1.0);
    }
    let weight = 1.0 / pack.rows.len().max(1) as f32;
    pack.weight.fill(weight);
    pack.pad(&[bucket])
}
