//! A `config.json` for a checkpoint that we write, in the spelling that every `transformers` reads.

use serde_json::{Value, json};
use t3c_ir::Element;

use crate::decoder::{DecoderConfig, Rope, RopeScaling};

/// The configuration as the `config.json` of a `llama` checkpoint whose tensors are of type `dtype`.
pub fn config_json(config: &DecoderConfig, dtype: Element) -> Value {
    let dtype = match dtype {
        Element::F16 => "float16",
        Element::Bf16 => "bfloat16",
        Element::F64 => "float64",
        _ => "float32",
    };
    let rope = config.rope().cloned().unwrap_or(Rope::new(0.0));
    let scaling = scaling(&rope.scaling);
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": false,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": scaling,
        "rope_theta": rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    })
}

fn scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor, .. } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original_context, truncate } => {
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "attention_factor": attention_factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_max_position_embeddings": *original_context as u64,
                "truncate": truncate,
            })
        }
        RopeScaling::Llama3 { factor, low, high, original_context } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": *original_context as u64,
        }),
        RopeScaling::LongRope { short, long, original_context, attention_factor } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": *original_context as u64,
        }),
    }
}
