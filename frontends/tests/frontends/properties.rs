//! Any model of sensible sizes builds; any file at all is read or refused, without a panic.

use proptest::prelude::*;
use t3c_frontends::{
    DecoderConfig, Graph, Options, Phase, Source,
    decoder::{
        Activation, Biases, Decoder, Experts, Fused, LayerKind, Norm, Position, Residual, Rope, TensorNames,
    },
    load,
};
use t3c_ir::Context;

use crate::modules::repository;

/// Llama's, with query, key and value in one tensor where they are fused.
fn names(fused: Fused) -> TensorNames {
    let one = TensorNames {
        query: "self_attn.qkv",
        key: "self_attn.qkv",
        value: "self_attn.qkv",
        fused,
        ..TensorNames::LLAMA
    };
    if fused == Fused::Apart { TensorNames::LLAMA } else { one }
}

fn config() -> impl Strategy<Value = DecoderConfig> {
    let sizes = (1..50_u64, 1..40_u64, 1..40_u64, 1..4_u64, 1..4_u64, 1..4_u64, 2..6_u64);
    let activations =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];
    let norms = [Norm::Rms, Norm::RmsPlusOne, Norm::Layer];
    let residuals = [Residual::Pre, Residual::Post, Residual::Sandwich, Residual::Parallel];
    let kinds = (
        prop::sample::select(activations.to_vec()),
        prop::sample::select(norms.to_vec()),
        prop::sample::select(residuals.to_vec()),
        prop::sample::select(vec![Fused::Apart, Fused::Blocks]),
        // Tied, gated, biases, transposed, learned positions, partly rotated, query and key norms, caps.
        any::<[bool; 8]>(),
        prop::option::of(1..9_u64),
        prop::option::of((1..5_u64, 1..9_u64)),
    );
    (sizes, kinds).prop_map(|(sizes, kinds)| {
        let (vocab, hidden, mlp, layers, kv, groups, half) = sizes;
        let (activation, norm, residual, fused, flags, window, experts) = kinds;
        let [tied, gated, biased, transposed, learned, partial, head_norms, caps] = flags;
        let experts = experts.map(|(num_experts, width)| Experts {
            num_experts,
            num_experts_per_tok: num_experts.div_ceil(2),
            moe_intermediate_size: width,
            norm_topk_prob: biased,
            router_aux_loss_coef: if caps { 0.5 } else { 0.0 },
        });
        let rope = Rope { partial: if partial { 2.0 / (2 * half) as f64 } else { 1.0 }, ..Rope::new(100.0) };
        DecoderConfig {
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: mlp,
            num_hidden_layers: layers,
            num_attention_heads: kv * groups,
            num_key_value_heads: kv,
            head_dim: 2 * half,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: tied,
            activation,
            norm,
            residual,
            gated,
            biases: if biased { Biases::ALL } else { Biases::default() },
            position: if learned { Position::Learned { offset: 2 } } else { Position::Rotary(rope) },
            query_key_norm: head_norms,
            attention_softcap: caps.then_some(5.0),
            logit_softcap: caps.then_some(5.0),
            embedding_size: learned.then_some(3),
            layers: vec![LayerKind { window, experts: experts.is_some() }],
            experts,
            names: TensorNames { transposed, mlp_norm: "mlp_norm", ..names(fused) },
            ..DecoderConfig::llama()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_decoder_builds(config in config(), phase in 0..3_usize, batch in 1..4_u64, sequence in any::<bool>()) {
        let phase = [Phase::Prefill, Phase::Training, Phase::Decode][phase];
        for tp in config.degrees() {
            let sequence_parallel = sequence && (5 * batch).is_multiple_of(tp) && phase != Phase::Decode;
            let options = Options {
                phase,
                batch: Some(batch * batch),
                seq: Some(5),
                tp: Some(tp),
                dp: Some(batch),
                sequence_parallel,
                ..Options::default()
            };
            let decoder = Decoder::new(config.clone(), "some", &options, None).expect("fits");
            // Every element of the checkpoint is in one parameter, but for rows that no position reads.
            let checkpoint = decoder.info().checkpoint();
            let count: u64 = checkpoint.values().map(|shape| shape.iter().product::<u64>()).sum();
            let unread = if config.embedding_size.is_some() { 2 * config.hidden_size } else { 0 };
            prop_assert_eq!(count - unread, decoder.info().parameter_count());
            for parameter in &decoder.info().parameters {
                let read = |source: &Source| Ok::<_, ()>(vec![0_u8; source.elements() as usize]);
                prop_assert_eq!(parameter.gather(read).expect("reads").len() as u64, parameter.elements());
            }
            Graph::Decoder(Box::new(decoder)).build(&Context::new()).expect("builds");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_read_or_refused(
        example in 0..5_usize,
        at in any::<prop::sample::Index>(),
        cut in 0..40_usize,
        put in prop_oneof![
            "[ -~]{0,4}", Just("-1".to_owned()), Just("0".to_owned()), Just("null".to_owned()),
            Just("1e400".to_owned()), Just("18446744073709551615".to_owned()), Just("é\u{1F600}".to_owned()),
        ],
    ) {
        let example = ["examples/models/t-nlg.json", "tests/goldens/families/qwen3_moe/config.json",
            "tests/goldens/families/phi3-long/config.json", "tests/goldens/families/gpt2/config.json",
            "examples/models/llama-3.1-8b/config.json"][example];
        let text = std::fs::read_to_string(repository(example)).expect("an example");
        let start = at.index(text.len());
        let end = (start + cut).min(text.len());
        let mutated = format!("{}{put}{}", &text[..start], &text[end..]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("m.json");
        std::fs::write(&path, mutated).expect("a file");
        if let Err(error) = load(&path, &Options::default()) {
            let line = error.to_string();
            prop_assert!(!line.contains('\n') && line.contains("m.json"), "{}", line);
        }
    }
}
