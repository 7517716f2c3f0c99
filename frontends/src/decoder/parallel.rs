//! The grid, and which of its axes split what.
//!
//! Axes stand in the order `dp`, `ep`, `tp`, each where it has more than one device. Tokens are split over the
//! first two: expert parallelism lives inside data parallelism. Where tensor parallelism exceeds what the KV heads
//! divide by, its axis is two: `kv`, which splits them, and `replica`, over which they are replicated; query heads
//! are split over both.

use t3c_ir::Splits;
use t3c_schedule::{Axis, Grid};

use super::{Role, config::DecoderConfig};
use crate::{
    Options,
    error::{Error, Field},
    info::gcd,
};

/// Degrees of parallelism as axes of the grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parallel {
    pub dp: u64,
    pub ep: u64,
    pub tp: u64,
    axes: Vec<(&'static str, u64)>,
    /// The axes that split KV heads.
    pub kv: Vec<usize>,
    /// Those that split the query heads of a KV head.
    pub groups: Vec<usize>,
    /// Whether the vocabulary is split over tensor parallelism.
    pub vocabulary: bool,
    /// Whether the residual stream's tokens are.
    pub sequence: bool,
}

/// No cluster has more devices.
const MOST_DEVICES: u64 = 1 << 16;

impl Parallel {
    /// The grid of `options`, checked against the model.
    pub fn new(config: &DecoderConfig, options: &Options) -> Result<Self, Error> {
        let [dp, ep, tp] = [options.dp, options.ep, options.tp].map(|degree| degree.unwrap_or(1));
        for (option, degree) in [("--dp", dp), ("--ep", ep), ("--tp", tp)] {
            if degree == 0 || degree > MOST_DEVICES {
                let reason = format!("expected a whole number of 1 to {MOST_DEVICES}");
                return Err(Error::Option { option, value: degree.to_string(), reason });
            }
        }
        config.check_degree(tp)?;
        config.check_expert_degree(ep)?;
        let splits_vocabulary = config.vocab_size.is_multiple_of(tp);
        if options.vocab_parallel == Some(true) && !splits_vocabulary {
            return Err(Error::Indivisible {
                field: Field::new("vocab_size"),
                value: config.vocab_size,
                divisor: "--tp".into(),
                by: tp,
                fits: config
                    .degrees()
                    .into_iter()
                    .filter(|degree| config.vocab_size.is_multiple_of(*degree))
                    .collect(),
            });
        }
        let mut parallel =
            Self { dp, ep, tp, sequence: options.sequence_parallel && tp > 1, ..Self::default() };
        parallel.vocabulary = tp > 1 && options.vocab_parallel.unwrap_or(splits_vocabulary);
        parallel.axis("dp", dp);
        parallel.axis("ep", ep);
        let kv = gcd(config.num_key_value_heads, tp);
        if kv == tp {
            parallel.kv = parallel.axis("tp", tp);
        } else {
            parallel.kv = parallel.axis("kv", kv);
            parallel.groups = parallel.axis("replica", tp / kv);
        }
        Ok(parallel)
    }

    /// Adds an axis; its number, if it has more than one device.
    fn axis(&mut self, name: &'static str, size: u64) -> Vec<usize> {
        if size == 1 {
            return Vec::new();
        }
        self.axes.push((name, size));
        vec![self.axes.len() - 1]
    }

    /// The grid, where there is more than one device.
    pub fn grid(&self) -> Option<Grid> {
        let axes = self.axes.iter().map(|&(name, size)| Axis { name: name.into(), size: size as u32 });
        (!self.axes.is_empty()).then(|| Grid { axes: axes.collect() })
    }

    fn named(&self, names: &[&str]) -> Vec<usize> {
        let axes = self.axes.iter().enumerate();
        axes.filter(|(_, (name, _))| names.contains(name)).map(|(axis, _)| axis).collect()
    }

    /// The axes that split tokens.
    pub fn tokens(&self) -> Vec<usize> {
        self.named(&["dp", "ep"])
    }

    /// The axis that splits experts.
    pub fn experts(&self) -> Vec<usize> {
        self.named(&["ep"])
    }

    /// The axes of tensor parallelism.
    pub fn tensor(&self) -> Vec<usize> {
        [self.kv.as_slice(), &self.groups].concat()
    }

    /// The axes that split the tokens of the residual stream.
    pub fn residual(&self) -> Vec<usize> {
        let tensor = if self.sequence { self.tensor() } else { Vec::new() };
        [self.tokens(), tensor].concat()
    }

    /// The axes that split the rows of an embedding or a head.
    pub fn vocabulary_axes(&self) -> Vec<usize> {
        if self.vocabulary { self.tensor() } else { Vec::new() }
    }

    /// Blocks into which tokens are split.
    pub fn blocks(&self) -> u64 {
        self.dp * self.ep
    }

    /// `split` of the first dimension of a tensor of this rank.
    pub fn first(split: Vec<usize>, rank: usize) -> Splits {
        let mut splits = vec![Vec::new(); rank];
        if let Some(first) = splits.first_mut() {
            *first = split;
        }
        splits
    }

    /// Checks that the tokens of a call are split evenly, whole sequences to a block.
    pub fn check_tokens(
        &self,
        (option, sequences): (&'static str, u64),
        tokens: u64,
        rows: u64,
    ) -> Result<(), Error> {
        let blocks = self.blocks();
        let refused = |option, value: u64, what: &str| {
            let reason = format!("not divisible by --dp × --ep = {blocks}, over which {what} are split");
            Err(Error::Option { option, value: value.to_string(), reason })
        };
        if !sequences.is_multiple_of(blocks) {
            return refused(option, sequences, "sequences");
        }
        if !rows.is_multiple_of(blocks) {
            return refused("--rows", rows, "rows");
        }
        if self.sequence && !tokens.is_multiple_of(blocks * self.tp) {
            let all = blocks * self.tp;
            let reason = format!(
                "{tokens} tokens are not divisible by --dp × --ep × --tp = {all}, over which they are split"
            );
            return Err(Error::Option { option: "--sequence-parallel", value: "true".into(), reason });
        }
        Ok(())
    }
}

impl DecoderConfig {
    /// Widths of the MLPs that the layers have.
    fn widths(&self) -> Vec<(&'static str, u64)> {
        let kinds = self.layer_kinds();
        let mut widths = Vec::new();
        if kinds.iter().any(|kind| !kind.experts) {
            widths.push((Role::Up.field(), self.intermediate_size));
        }
        if let Some(experts) = self.experts.as_ref().filter(|_| kinds.iter().any(|kind| kind.experts)) {
            widths.push((Role::ExpertUp.field(), experts.moe_intermediate_size));
        }
        widths
    }

    /// Whether heads can be split over `tp` devices, KV heads perhaps replicated.
    fn heads_fit(&self, tp: u64) -> bool {
        self.groups().is_multiple_of(tp / gcd(self.num_key_value_heads, tp))
    }

    /// Degrees of tensor parallelism that divide heads and MLPs.
    pub fn degrees(&self) -> Vec<u64> {
        let most = self.num_attention_heads.min(1024);
        let fits = |tp: &u64| self.heads_fit(*tp) && self.widths().iter().all(|(_, width)| width % tp == 0);
        (1..=most).filter(|tp| self.num_attention_heads.is_multiple_of(*tp)).filter(fits).collect()
    }

    /// Checks a degree of tensor parallelism.
    fn check_degree(&self, tp: u64) -> Result<(), Error> {
        let fits = self.degrees();
        if fits.contains(&tp) {
            return Ok(());
        }
        let widths = self.widths();
        let (name, value) = if !self.num_attention_heads.is_multiple_of(tp) {
            ("num_attention_heads", self.num_attention_heads)
        } else if !self.heads_fit(tp) {
            ("num_key_value_heads", self.num_key_value_heads)
        } else {
            let width = widths.iter().find(|(_, width)| width % tp != 0);
            width.copied().unwrap_or(("num_attention_heads", self.num_attention_heads))
        };
        Err(Error::Indivisible { field: Field::new(name), value, divisor: "--tp".into(), by: tp, fits })
    }

    /// Checks a degree of expert parallelism.
    fn check_expert_degree(&self, ep: u64) -> Result<(), Error> {
        let Some(experts) = &self.experts else {
            if ep == 1 {
                return Ok(());
            }
            let reason = "the model has no experts; tokens alone are split by --dp".into();
            return Err(Error::Option { option: "--ep", value: ep.to_string(), reason });
        };
        if experts.num_experts.is_multiple_of(ep) {
            return Ok(());
        }
        let fits =
            (1..=experts.num_experts).filter(|degree| experts.num_experts.is_multiple_of(*degree)).collect();
        Err(Error::Indivisible {
            field: Field::new("num_experts"),
            value: experts.num_experts,
            divisor: "--ep".into(),
            by: ep,
            fits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(heads: u64, kv: u64) -> DecoderConfig {
        DecoderConfig {
            vocab_size: 96,
            hidden_size: 64,
            intermediate_size: 3 * 5 * 7 * 64,
            num_hidden_layers: 1,
            num_attention_heads: heads,
            num_key_value_heads: kv,
            head_dim: 8,
            ..DecoderConfig::llama()
        }
    }

    #[test]
    fn real_numbers_of_heads_fit_what_divides_them() {
        assert_eq!(heads(9, 3).degrees(), [1, 3]);
        assert_eq!(heads(12, 12).degrees(), [1, 2, 3, 4, 6, 12]);
        assert_eq!(heads(14, 2).degrees(), [1, 2, 7, 14]);
        assert_eq!(heads(25, 5).degrees(), [1, 5]);
        assert_eq!(heads(28, 4).degrees(), [1, 2, 4, 7, 14, 28]);
        assert_eq!(heads(40, 10).degrees(), [1, 2, 4, 5, 8, 10, 20, 40]);
    }

    #[test]
    fn few_kv_heads_split_the_axis_in_two() {
        let parallel = |config: &DecoderConfig, dp, tp| {
            let options = Options { dp: Some(dp), tp: Some(tp), ..Options::default() };
            Parallel::new(config, &options).expect("fits")
        };
        let eight = parallel(&heads(28, 4), 2, 28);
        assert_eq!(eight.axes, [("dp", 2), ("kv", 4), ("replica", 7)]);
        assert_eq!((eight.kv.as_slice(), eight.groups.as_slice()), (&[1][..], &[2][..]));
        let one = parallel(&heads(8, 1), 1, 8);
        assert_eq!(one.axes, [("replica", 8)]);
        assert!(one.kv.is_empty() && one.tensor() == [0]);
        let four = parallel(&heads(40, 10), 1, 4);
        assert_eq!(four.axes, [("kv", 2), ("replica", 2)]);
    }
}
