//! From a recipe to the graphs that are compiled for it.

use t3c_frontends::{
    DecoderConfig, Objective as Loss,
    decoder::{Position, Rope},
    portool,
};
use t3c_rl::{pack::Objective, recipe::Recipe};

/// The recipe's model with the task's vocabulary.
pub(super) fn decoder_config(recipe: &Recipe, vocabulary: usize) -> DecoderConfig {
    let model = &recipe.model;
    DecoderConfig {
        vocab_size: vocabulary as u64,
        hidden_size: model.hidden_size as u64,
        intermediate_size: model.intermediate_size as u64,
        num_hidden_layers: model.num_hidden_layers as u64,
        num_attention_heads: model.num_attention_heads as u64,
        num_key_value_heads: model.num_key_value_heads as u64,
        head_dim: model.head_dim as u64,
        max_position_embeddings: model.max_position_embeddings as u64,
        rms_norm_eps: model.rms_norm_eps,
        tie_word_embeddings: true,
        position: Position::Rotary(Rope::new(model.rope_theta)),
        ..DecoderConfig::llama()
    }
}

/// The loss of reinforcement learning.
pub(super) fn loss(recipe: &Recipe) -> Loss {
    let credit = &recipe.rl.credit;
    Loss::Portool { clip_low: credit.clip_low, clip_high: credit.clip_high, beta: credit.beta }
}

/// A training step of `size` = (tokens, loss rows).
pub(super) fn step(recipe: &Recipe, objective: Objective, size: (u64, u64), tp: u64) -> portool::Step {
    let (objective, temperature) = match objective {
        Objective::Sft => (Loss::Lm, 1.0),
        Objective::Portool => (loss(recipe), recipe.rl.temperature),
    };
    portool::Step { tokens: size.0, rows: size.1, objective, temperature, tp }
}
