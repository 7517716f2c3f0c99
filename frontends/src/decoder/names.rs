//! What checkpoints call their tensors, and how they pack projections into them.

/// The checkpoint's names: modules, to which `.weight` or `.bias` is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TensorNames {
    pub embedding: &'static str,
    /// The table of learned positions.
    pub positions: &'static str,
    /// From the embedding's size to the hidden size, and back.
    pub project_in: &'static str,
    pub project_out: &'static str,
    pub layers: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub router: &'static str,
    /// The experts' projections, with `*` for the expert.
    pub expert_gate: &'static str,
    pub expert_up: &'static str,
    pub expert_down: &'static str,
    pub attention_norm: &'static str,
    pub attention_post_norm: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_post_norm: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// How query, key and value share a tensor, if they do.
    pub fused: Fused,
    /// Matrices are stored in × out.
    pub transposed: bool,
}

/// How the rows of query, key and value lie in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    /// In tensors of their own.
    Apart,
    /// In one tensor: all of the query's, then the key's, then the value's.
    Blocks,
    /// In one tensor: query, key and value of the first head, then of the second.
    Heads,
}

impl TensorNames {
    /// Llama's, which most families share.
    pub const LLAMA: Self = Self {
        embedding: "model.embed_tokens",
        positions: "model.embed_positions",
        project_in: "model.project_in",
        project_out: "model.project_out",
        layers: "model.layers",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
        router: "mlp.gate",
        expert_gate: "mlp.experts.*.gate_proj",
        expert_up: "mlp.experts.*.up_proj",
        expert_down: "mlp.experts.*.down_proj",
        attention_norm: "input_layernorm",
        attention_post_norm: "post_attention_layernorm",
        mlp_norm: "post_attention_layernorm",
        mlp_post_norm: "post_feedforward_layernorm",
        final_norm: "model.norm",
        head: "lm_head",
        fused: Fused::Apart,
        transposed: false,
    };

    pub(super) fn module(&self, role: Role) -> &'static str {
        match role {
            Role::Embedding => self.embedding,
            Role::Positions => self.positions,
            Role::ProjectIn => self.project_in,
            Role::ProjectOut => self.project_out,
            Role::Query => self.query,
            Role::Key => self.key,
            Role::Value => self.value,
            Role::Output => self.output,
            Role::QueryNorm => self.query_norm,
            Role::KeyNorm => self.key_norm,
            Role::Gate => self.gate,
            Role::Up => self.up,
            Role::Down => self.down,
            Role::Router => self.router,
            Role::ExpertGate => self.expert_gate,
            Role::ExpertUp => self.expert_up,
            Role::ExpertDown => self.expert_down,
            Role::AttentionNorm => self.attention_norm,
            Role::AttentionPostNorm => self.attention_post_norm,
            Role::MlpNorm => self.mlp_norm,
            Role::MlpPostNorm => self.mlp_post_norm,
            Role::FinalNorm => self.final_norm,
            Role::Head => self.head,
        }
    }
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Positions,
    ProjectIn,
    ProjectOut,
    Query,
    Key,
    Value,
    Output,
    QueryNorm,
    KeyNorm,
    Gate,
    Up,
    Down,
    Router,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    AttentionNorm,
    AttentionPostNorm,
    MlpNorm,
    MlpPostNorm,
    FinalNorm,
    Head,
}

impl Role {
    /// The field of the configuration that decides the weight's size.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Embedding | Self::Head => "vocab_size",
            Self::Positions => "max_position_embeddings",
            Self::ProjectIn | Self::ProjectOut => "word_embed_proj_dim",
            Self::Query | Self::Output => "num_attention_heads",
            Self::Key | Self::Value => "num_key_value_heads",
            Self::QueryNorm | Self::KeyNorm => "head_dim",
            Self::Gate | Self::Up | Self::Down => "intermediate_size",
            Self::Router => "num_experts",
            Self::ExpertGate | Self::ExpertUp | Self::ExpertDown => "moe_intermediate_size",
            Self::AttentionNorm
            | Self::AttentionPostNorm
            | Self::MlpNorm
            | Self::MlpPostNorm
            | Self::FinalNorm => "rms_norm_eps",
        }
    }
}
