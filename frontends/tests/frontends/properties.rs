//! Any model of sensible sizes builds; any file at all is read or refused, without a panic.

use proptest::prelude::*;
use t3c_frontends::{
    DecoderConfig, Graph, Options, Phase,
    decoder::{Activation, Decoder},
    load,
};
use t3c_ir::Context;

use crate::modules::repository;

fn config() -> impl Strategy<Value = DecoderConfig> {
    let sizes = (1..50_u64, 1..40_u64, 1..40_u64, 1..4_u64, 1..4_u64, 1..4_u64, 1..6_u64);
    let kinds = (any::<bool>(), prop_oneof![Just(Activation::Silu), Just(Activation::GeluTanh)]);
    (sizes, kinds).prop_map(|((vocab, hidden, mlp, layers, kv, groups, half), (tied, activation))| {
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
            ..DecoderConfig::llama()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_decoder_builds(config in config(), phase in 0..3_usize, batch in 1..4_u64) {
        let phase = [Phase::Prefill, Phase::Training, Phase::Decode][phase];
        for tp in config.degrees() {
            let options = Options { phase, batch: Some(batch), seq: Some(5), tp: Some(tp), ..Options::default() };
            let decoder = Decoder::new(config.clone(), "some", &options, None).expect("fits");
            let count: u64 = decoder.info().checkpoint().values().map(|shape| shape.iter().product::<u64>()).sum();
            prop_assert_eq!(count, decoder.info().parameter_count());
            Graph::Decoder(Box::new(decoder)).build(&Context::new()).expect("builds");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_read_or_refused(
        example in 0..3_usize,
        at in any::<prop::sample::Index>(),
        cut in 0..40_usize,
        put in prop_oneof![
            "[ -~]{0,4}", Just("-1".to_owned()), Just("0".to_owned()), Just("null".to_owned()),
            Just("1e400".to_owned()), Just("18446744073709551615".to_owned()), Just("é\u{1F600}".to_owned()),
        ],
    ) {
        let example = ["examples/models/t-nlg.json", "tests/goldens/llama/tied/config.json",
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
