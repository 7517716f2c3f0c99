//! Grows the trees of many questions at once, one decode call for all live nodes.
//!
//! Each question advances at its own pace: only the nodes of one question wait for each other, since
//! their number decides the next slots. A prompt is decoded once for all first steps, a step's end
//! and the environment's answer once for all its children. What is drawn depends on the question and
//! the node, never on what else is in the batch.

use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::{Expansion, Node, Trajectory, Tree};
use crate::decode::{
    BlockAllocator, BlockTable, DecodeRows, DecodeShape, Decoder, Distribution, OutOfBlocks,
};
use crate::random::{Purpose, Seed};
use crate::task::{CHECKS, Ending, Task, Token};

/// The shape of a rollout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RolloutOptions {
    /// Trajectories a question, n.
    pub trajectories: usize,
    /// Candidates a live node, f.
    pub branching: usize,
    /// Steps of a trajectory, at most.
    pub t_max: u32,
    /// Tokens of a step, at most.
    pub max_step_tokens: usize,
    /// Positions of a sequence, at most.
    pub context: usize,
    /// Temperature of sampling; 0 is greedy.
    pub temperature: f32,
}

/// What a rollout cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeCounts {
    /// Decode calls.
    pub calls: usize,
    /// Rows decoded.
    pub rows: usize,
    /// Rows decoded with padding.
    pub padded_rows: usize,
    /// Cache blocks copied.
    pub copies: usize,
    /// Tokens sampled.
    pub sampled: usize,
}

/// Why a rollout stopped.
#[derive(Debug, Error)]
pub enum RolloutError<E: std::error::Error> {
    /// The decoder failed.
    #[error(transparent)]
    Decoder(E),
    /// The decoder returned another number of logits than rows times vocabulary.
    #[error("decode returned {found} logits, expected {rows} rows of {vocabulary}")]
    Logits {
        /// Logits returned.
        found: usize,
        /// Rows of the call.
        rows: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The decoder's shape has fewer blocks than its live sequences can need.
    #[error(transparent)]
    OutOfBlocks(#[from] OutOfBlocks),
    /// A question without a prompt: nothing predicts the first token.
    #[error("a question has an empty prompt")]
    EmptyPrompt,
    /// A prompt leaves no room for a step.
    #[error("a prompt of {prompt} tokens leaves no room for a step of {step} in a context of {context}")]
    PromptTooLong {
        /// Its tokens.
        prompt: usize,
        /// The longest step.
        step: usize,
        /// The longest sequence.
        context: usize,
    },
    /// One question needs more live sequences than the decoder has.
    #[error("{trajectories} trajectories a question, but only {live} live sequences")]
    TooFewSequences {
        /// Trajectories a question.
        trajectories: usize,
        /// Live sequences.
        live: usize,
    },
}

/// Grows one tree a question.
pub fn rollout<T: Task, D: Decoder>(
    decoder: &mut D,
    task: &T,
    questions: &[T::Question],
    options: &RolloutOptions,
    expansion: &dyn Expansion,
    shape: &DecodeShape,
    seed: Seed,
) -> Result<(Vec<Tree>, DecodeCounts), RolloutError<D::Error>> {
    if options.trajectories > shape.live {
        let (trajectories, live) = (options.trajectories, shape.live);
        return Err(RolloutError::TooFewSequences { trajectories, live });
    }
    for question in questions {
        let prompt = task.prompt(question).len();
        if prompt == 0 {
            return Err(RolloutError::EmptyPrompt);
        }
        if prompt + options.max_step_tokens > options.context {
            let (step, context) = (options.max_step_tokens, options.context);
            return Err(RolloutError::PromptTooLong { prompt, step, context });
        }
    }
    let mut rollout = Rollout {
        task,
        questions,
        options,
        expansion,
        shape,
        seed,
        allocator: BlockAllocator::new(shape.blocks),
        growing: questions.iter().map(|question| Growing::new(task.prompt(question))).collect(),
        admitted: 0,
        active: 0,
        feeds: Vec::new(),
        rows: DecodeRows::new(shape.width),
        logits: Vec::new(),
        last: Vec::new(),
        distribution: Distribution::default(),
        counts: DecodeCounts::default(),
    };
    rollout.admit();
    while !rollout.feeds.is_empty() {
        rollout.decode(decoder)?;
        rollout.sample();
        rollout.admit();
    }
    let trees = rollout.growing.into_iter().map(Growing::finish).collect();
    Ok((trees, rollout.counts))
}

/// Tokens on their way into the cache, and what follows once their logits are known.
struct Feed {
    question: usize,
    tokens: Vec<Token>,
    table: BlockTable,
    then: Then,
}

enum Then {
    /// The step goes on.
    Continue { node: usize, random: Box<ChaCha8Rng> },
    /// As many steps begin here.
    Fork { parent: Option<usize>, children: usize },
}

/// A tree and its nodes that wait for the others of their depth.
struct Growing {
    tree: Tree,
    /// Steps of the current depth that have not ended, those not begun yet included.
    decoding: usize,
    /// Steps that ended with a call, with the table and the answer.
    waiting: Vec<(usize, BlockTable, Vec<Token>)>,
}

impl Growing {
    fn new(prompt: &[Token]) -> Self {
        let tree = Tree { prompt: prompt.to_vec(), ..Tree::default() };
        Self { tree, decoding: 0, waiting: Vec::new() }
    }

    fn finish(mut self) -> Tree {
        self.tree.trajectories.sort_by_key(|trajectory| trajectory.leaf);
        self.tree
    }
}

struct Rollout<'a, T: Task> {
    task: &'a T,
    questions: &'a [T::Question],
    options: &'a RolloutOptions,
    expansion: &'a dyn Expansion,
    shape: &'a DecodeShape,
    seed: Seed,
    allocator: BlockAllocator,
    growing: Vec<Growing>,
    admitted: usize,
    active: usize,
    feeds: Vec<Feed>,
    rows: DecodeRows,
    logits: Vec<f32>,
    /// Logits of the last row of each feed.
    last: Vec<f32>,
    distribution: Distribution,
    counts: DecodeCounts,
}

impl<T: Task> Rollout<'_, T> {
    /// Starts questions while there is room for all their trajectories.
    fn admit(&mut self) {
        while self.admitted < self.questions.len()
            && (self.active + 1) * self.options.trajectories <= self.shape.live
        {
            let question = self.admitted;
            let tokens = self.growing[question].tree.prompt.clone();
            let then = Then::Fork { parent: None, children: self.options.trajectories };
            self.feeds.push(Feed { question, tokens, table: BlockTable::default(), then });
            self.growing[question].decoding = self.options.trajectories;
            self.admitted += 1;
            self.active += 1;
        }
    }

    /// Feeds all pending tokens, in as many calls as their number needs.
    fn decode<D: Decoder>(&mut self, decoder: &mut D) -> Result<(), RolloutError<D::Error>> {
        let mut copies = Vec::new();
        let mut feeds = std::mem::take(&mut self.feeds);
        let mut ends = Vec::with_capacity(feeds.len());
        self.rows.clear();
        for feed in &mut feeds {
            for token in &feed.tokens {
                let position = self.allocator.append(&mut feed.table, &mut copies)?;
                self.rows.push(*token, position, &feed.table);
            }
            ends.push(self.rows.len() - 1);
        }
        self.feeds = feeds;
        if !copies.is_empty() {
            decoder.copy_blocks(&copies).map_err(RolloutError::Decoder)?;
        }
        self.counts.copies += copies.len();
        self.counts.rows += self.rows.len();
        self.call(decoder, &ends)
    }

    fn call<D: Decoder>(&mut self, decoder: &mut D, ends: &[usize]) -> Result<(), RolloutError<D::Error>> {
        let vocabulary = self.task.vocabulary_size();
        let (total, most, width) = (self.rows.len(), self.shape.most_rows(), self.rows.width);
        let mut ends = ends.iter().copied().peekable();
        let mut chunk = DecodeRows::new(width);
        self.last.clear();
        for start in (0..total).step_by(most) {
            let end = (start + most).min(total);
            chunk.clear();
            chunk.tokens.extend_from_slice(&self.rows.tokens[start..end]);
            chunk.position.extend_from_slice(&self.rows.position[start..end]);
            chunk.block_table.extend_from_slice(&self.rows.block_table[start * width..end * width]);
            chunk.pad(self.shape.padded(end - start));
            decoder.decode(&chunk, &mut self.logits).map_err(RolloutError::Decoder)?;
            self.counts.calls += 1;
            self.counts.padded_rows += chunk.len();
            if self.logits.len() != chunk.len() * vocabulary {
                let (found, rows) = (self.logits.len(), chunk.len());
                return Err(RolloutError::Logits { found, rows, vocabulary });
            }
            while let Some(row) = ends.next_if(|row| *row < end) {
                let at = (row - start) * vocabulary;
                self.last.extend_from_slice(&self.logits[at..at + vocabulary]);
            }
        }
        Ok(())
    }

    /// Draws the next token of every step that goes on, and the first of every step that begins.
    fn sample(&mut self) {
        let vocabulary = self.task.vocabulary_size();
        let feeds = std::mem::take(&mut self.feeds);
        for (index, feed) in feeds.into_iter().enumerate() {
            let logits = &self.last[index * vocabulary..(index + 1) * vocabulary];
            self.distribution.set(logits, self.options.temperature);
            match feed.then {
                Then::Continue { node, random } => self.extend(feed.question, node, feed.table, random),
                Then::Fork { parent, children } => {
                    for _ in 0..children {
                        let table = self.allocator.fork(&feed.table);
                        let (node, random) = self.begin(feed.question, parent);
                        self.extend(feed.question, node, table, random);
                    }
                    self.allocator.release(feed.table);
                }
            }
        }
    }

    fn begin(&mut self, question: usize, parent: Option<usize>) -> (usize, Box<ChaCha8Rng>) {
        let growing = &mut self.growing[question];
        let node = growing.tree.nodes.len();
        growing.tree.nodes.push(Node {
            parent,
            depth: parent.map_or(1, |parent| growing.tree.nodes[parent].depth + 1),
            tokens: Vec::new(),
            logp: Vec::new(),
            response: Vec::new(),
            ending: Ending::Call,
            checks: [false; CHECKS],
        });
        (node, Box::new(self.seed.stream(Purpose::Tokens, question as u64, node as u64)))
    }

    /// Draws one token of a step from the current distribution.
    fn extend(&mut self, question: usize, node: usize, table: BlockTable, mut random: Box<ChaCha8Rng>) {
        let (token, logp) = self.distribution.draw(&mut random);
        self.counts.sampled += 1;
        let step = &mut self.growing[question].tree.nodes[node];
        step.tokens.push(token);
        step.logp.push(logp);
        if self.task.ends_step(token) || step.tokens.len() >= self.options.max_step_tokens {
            self.end_step(question, node, table);
        } else {
            let then = Then::Continue { node, random };
            self.feeds.push(Feed { question, tokens: vec![token], table, then });
        }
    }

    fn end_step(&mut self, question: usize, node: usize, table: BlockTable) {
        let asked = &self.questions[question];
        let growing = &mut self.growing[question];
        let step = self.task.step(asked, &growing.tree.nodes[node].tokens);
        let current = &mut growing.tree.nodes[node];
        current.checks = step.checks;
        current.ending = step.ending;
        // The last token of the step is not in the cache yet.
        let next_start = table.len() + 1 + step.response.len();
        let is_call = step.ending == Ending::Call;
        let has_room = next_start + self.options.max_step_tokens <= self.options.context;
        if is_call && current.depth < self.options.t_max && has_room {
            growing.waiting.push((node, table, step.response));
        } else {
            let r_out = self.task.outcome(asked, step.ending);
            growing.tree.trajectories.push(Trajectory { leaf: node, finished: !is_call, r_out });
            self.allocator.release(table);
        }
        growing.decoding -= 1;
        if growing.decoding == 0 {
            self.advance(question);
        }
    }

    /// All steps of this depth have ended: chooses which go on.
    fn advance(&mut self, question: usize) {
        let growing = &mut self.growing[question];
        let mut waiting = std::mem::take(&mut growing.waiting);
        if waiting.is_empty() {
            self.active -= 1;
            return;
        }
        waiting.sort_by_key(|(node, _, _)| *node);
        let nodes = &growing.tree.nodes;
        let live: Vec<&Node> = waiting.iter().map(|(node, _, _)| &nodes[*node]).collect();
        let mut random = self.seed.stream(Purpose::Selection, question as u64, u64::from(live[0].depth));
        let children = self.expansion.children(&live, self.options.branching, &mut random);
        growing.decoding = children.iter().sum();
        if growing.decoding == 0 {
            self.active -= 1;
        }
        for ((node, table, response), children) in waiting.into_iter().zip(children) {
            if children == 0 {
                growing.tree.branches_pruned += 1;
                self.allocator.release(table);
                continue;
            }
            growing.tree.forks_kept += children - 1;
            let step = &mut growing.tree.nodes[node];
            let tokens = step.tokens.last().copied().into_iter().chain(response.iter().copied());
            let tokens = tokens.collect();
            step.response = response;
            let then = Then::Fork { parent: Some(node), children };
            self.feeds.push(Feed { question, tokens, table, then });
        }
    }
}
