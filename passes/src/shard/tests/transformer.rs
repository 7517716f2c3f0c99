//! A decoder's training step under the parallelisms that people combine: what moves, and that nothing changes.

use melior::ir::Attribute;
use t3c_ir::{
    Builder, Context, Module, Predicate, Ref, ScalarOp, Splits, Val, ffi,
    units::{Unit, ensure},
    views::Collective,
    walk,
};

use super::{
    models::{D, E, F, FF, V, add, grid, ids, rms_norm, silu, tensor},
    oracle::{partitioned, partitioned_with},
};
use crate::{
    autodiff::{self, STOP_GRADIENT},
    optimizer::{AdamW, append},
    shard::Stage,
};

/// Tokens, in sequences of [`super::oracle::SEQUENCE`].
const N: u64 = 24;

/// Which grid axes do what.
#[derive(Clone, Debug, Default)]
struct Layout {
    axes: Vec<(&'static str, u32)>,
    data: Vec<usize>,
    /// Key-value heads, and what is left of tensor parallelism.
    heads: Vec<usize>,
    groups: Vec<usize>,
    sequence: bool,
    kv: u64,
    /// Groups of queries a head.
    queries: u64,
}

impl Layout {
    fn tensor(&self) -> Vec<usize> {
        [self.heads.as_slice(), &self.groups].concat()
    }

    fn residual(&self) -> Vec<usize> {
        if self.sequence { [self.data.clone(), self.tensor()].concat() } else { self.data.clone() }
    }

    fn weights(&self) -> Vec<(&'static str, Vec<u64>, Splits)> {
        let (k, g, tp) = (self.kv, self.queries, self.tensor());
        let (heads, groups) = (&self.heads, &self.groups);
        let none = Vec::new;
        vec![
            ("norm", vec![D], vec![none()]),
            ("q", vec![k, g, 2, E, D], vec![heads.clone(), groups.clone(), none(), none(), none()]),
            ("k", vec![k, 2, E, D], vec![heads.clone(), none(), none(), none()]),
            ("v", vec![k, 2 * E, D], vec![heads.clone(), none(), none()]),
            ("o", vec![D, k, g, 2 * E], vec![none(), heads.clone(), groups.clone(), none()]),
            ("mlp_norm", vec![D], vec![none()]),
            ("gate", vec![FF, D], vec![tp.clone(), none()]),
            ("up", vec![FF, D], vec![tp.clone(), none()]),
            ("down", vec![D, FF], vec![none(), tp]),
        ]
    }
}

fn annotate<'c, 'a>(
    b: &Builder<'c, 'a>,
    values: &[Val<'c, 'a>],
    weights: &[(&str, Vec<u64>, Splits)],
) -> Vec<Val<'c, 'a>> {
    values.iter().zip(weights).map(|(&value, weight)| b.shard(value, "grid", &weight.2).unwrap()).collect()
}

fn add_layer(module: &Module<'_>, layout: &Layout) {
    let q = tensor(&[N, layout.kv, layout.queries, 2, E]);
    let unit = Unit::attention(&q).aligned();
    let attention = ensure(module.op(), &unit).unwrap();
    let weights = layout.weights();
    let mut arguments =
        vec![("x", tensor(&[N, D])), ("subtree_end", ids(&[N])), ("rotation", tensor(&[N, 2, 2, E]))];
    arguments.extend(weights.iter().map(|(name, shape, _)| (*name, tensor(shape))));
    add(module, "layer", &arguments, &[("y", tensor(&[N, D]))], |b, a| {
        let w = annotate(b, &a[3..], &weights);
        let xn = rms_norm(b, a[0], w[0]);
        let q = b.contract("nd,kghed->nkghe", xn, w[1]).unwrap();
        let q = b.contract("nkgci,ncei->nkgei", q, a[2]).unwrap();
        let k = b.contract("nd,khed->nkhe", xn, w[2]).unwrap();
        let k = b.contract("nkci,ncei->nkei", k, a[2]).unwrap();
        let v = b.contract("nd,khd->nkh", xn, w[3]).unwrap();
        let att = b.call(&attention, &[q, k, v, a[1]], &unit.results).unwrap()[0];
        let o = b.contract("nkgh,dkgh->nd", att, w[4]).unwrap();
        let x = b.add(a[0], o).unwrap();
        let xn = rms_norm(b, x, w[5]);
        let g = b.contract("td,fd->tf", xn, w[6]).unwrap();
        let u = b.contract("td,fd->tf", xn, w[7]).unwrap();
        let h = b.map("tf,tf->tf", &[silu(b, g), u], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
        let y = b.contract("tf,df->td", h, w[8]).unwrap();
        vec![b.add(x, y).unwrap()]
    });
}

/// Minus the log probabilities of the targets, added up.
fn cross_entropy<'c, 'a>(b: &Builder<'c, 'a>, logits: Val<'c, 'a>, targets: Val<'c, 'a>) -> Val<'c, 'a> {
    let max = b.reduce("nv->n", logits, ScalarOp::MaxF).unwrap();
    ffi::set_attribute(ffi::value_owner(max).unwrap(), STOP_GRADIENT, Attribute::unit(b.context()));
    let exps = b
        .map("nv,n->nv", &[logits, max], |body| {
            let centred = body.sub(Ref::Arg(0), Ref::Arg(1));
            body.unary(ScalarOp::Exp, centred)
        })
        .unwrap();
    let sum = b.reduce("nv->n", exps, ScalarOp::AddF).unwrap();
    let pick = b
        .structured("nv,n->n", &[logits, targets], F, 0.0, |body| {
            let (v, id) = (body.index(1), body.to_i64(Ref::Arg(1)));
            let same = body.cmp_i(Predicate::Eq, v, id);
            let zero = body.constant(0.0, F);
            let picked = body.select(same, Ref::Arg(0), zero);
            body.add(Ref::Arg(2), picked)
        })
        .unwrap();
    let loss = b
        .map("n,n,n->n", &[pick, max, sum], |body| {
            let log = body.unary(ScalarOp::Log, Ref::Arg(2));
            let centred = body.sub(Ref::Arg(1), Ref::Arg(0));
            body.add(centred, log)
        })
        .unwrap();
    b.reduce("n->", loss, ScalarOp::AddF).unwrap()
}

/// Two layers of the same weights between an embedding and a head, both split by vocabulary, and the gradients.
fn training_step<'c>(context: &'c Context, layout: &Layout) -> Module<'c> {
    let module = grid(context, &layout.axes);
    add_layer(&module, layout);
    let embed = Unit::lookup(&tensor(&[V, D]), &ids(&[N]));
    let pick = Unit::lookup(&tensor(&[N, D]), &ids(&[N])).aligned();
    let symbols = [&embed, &pick].map(|unit| ensure(module.op(), unit).unwrap());
    let weights = layout.weights();
    let names: Vec<String> = weights.iter().map(|(name, ..)| format!("param/{name}")).collect();
    let mut arguments = vec![
        ("tokens", ids(&[N])),
        ("subtree_end", ids(&[N])),
        ("rows", ids(&[N])),
        ("targets", ids(&[N])),
        ("rotation", tensor(&[N, 2, 2, E])),
        ("param/embedding", tensor(&[V, D])),
        ("param/head", tensor(&[V, D])),
    ];
    arguments.extend(names.iter().zip(&weights).map(|(name, weight)| (name.as_str(), tensor(&weight.1))));
    add(&module, "main", &arguments, &[("loss", tensor(&[]))], |b, a| {
        let rows = |value, rank: usize| {
            let mut splits = t3c_ir::splits::whole(rank);
            splits[0].clone_from(&layout.data);
            b.shard(value, "grid", &splits).unwrap()
        };
        let data: Vec<Val<'_, '_>> =
            a[..5].iter().zip([1, 1, 1, 1, 4]).map(|(&x, rank)| rows(x, rank)).collect();
        let vocabulary = [layout.tensor(), vec![]];
        let embedding = b.shard(a[5], "grid", &vocabulary).unwrap();
        let head = b.shard(a[6], "grid", &vocabulary).unwrap();
        let layer = annotate(b, &a[7..], &weights);
        let x = b.call(&symbols[0], &[embedding, data[0]], &embed.results).unwrap()[0];
        let mut x = b.shard(x, "grid", &[layout.residual(), vec![]]).unwrap();
        for _ in 0..2 {
            let operands = [&[x, data[1], data[4]], &layer[..]].concat();
            x = b.call("layer", &operands, &[tensor(&[N, D])]).unwrap()[0];
            x = b.shard(x, "grid", &[layout.residual(), vec![]]).unwrap();
        }
        let x = b.call(&symbols[1], &[x, data[2]], &pick.results).unwrap()[0];
        let logits = b.contract("nd,vd->nv", x, head).unwrap();
        vec![cross_entropy(b, logits, data[3])]
    });
    autodiff::differentiate(module.op(), &autodiff::Autodiff::default()).unwrap();
    module
}

/// The collectives of a function: `all_gather 1 @0` is over axis 1 along dimension 0.
pub fn moves(module: &Module<'_>, function: &str) -> Vec<String> {
    let function = t3c_ir::function::function(module.op(), function).unwrap();
    let text = |collective: Collective<'_, '_>| {
        let axes: Vec<String> = collective.axes().iter().map(usize::to_string).collect();
        let at = collective.dimension().map_or(String::new(), |dimension| format!(" @{dimension}"));
        format!("{} {}{at}", walk::name(collective.op).trim_start_matches("shard."), axes.join(","))
    };
    walk::walk(function.0).into_iter().filter_map(Collective::cast).map(text).collect()
}

#[test]
fn tensor_parallel() {
    let context = Context::new();
    let layout = Layout { axes: vec![("tp", 3)], heads: vec![0], kv: 3, queries: 2, ..Layout::default() };
    let module = training_step(&context, &layout);
    let text = partitioned(&module);
    assert_eq!(moves(&module, "layer"), ["all_reduce 0", "all_reduce 0"], "{text}");
    assert_eq!(moves(&module, "layer_backward"), ["all_reduce 0", "all_reduce 0"], "{text}");
    // The embedding's rows; the maximum, the sum and the target's logit; the gradient of what the head reads.
    assert_eq!(moves(&module, "main"), vec!["all_reduce 0"; 5], "{text}");
}

#[test]
fn sequence_parallel() {
    let context = Context::new();
    let layout = Layout {
        axes: vec![("tp", 3)],
        heads: vec![0],
        sequence: true,
        kv: 3,
        queries: 2,
        ..Layout::default()
    };
    let module = training_step(&context, &layout);
    let text = partitioned(&module);
    let block = ["all_gather 0 @0", "reduce_scatter 0 @0"];
    assert_eq!(moves(&module, "layer"), [block, block].concat(), "{text}");
    // The gradient of the output and, again, the normalised input are gathered; the norms' gradients are sums over
    // the sequence.
    let (gather, scatter, norm) = ("all_gather 0 @0", "reduce_scatter 0 @0", "all_reduce 0");
    let backward = [gather, gather, scatter, gather, gather, scatter, norm, norm];
    assert_eq!(moves(&module, "layer_backward"), backward, "{text}");
    let (forward, rows) = ([scatter, gather, norm, norm, norm], [scatter, gather]);
    assert_eq!(moves(&module, "main"), [forward.as_slice(), &rows].concat(), "{text}");
}

#[test]
fn data_and_sequence_parallel() {
    let context = Context::new();
    let layout = Layout {
        axes: vec![("dp", 2), ("tp", 3)],
        data: vec![0],
        heads: vec![1],
        sequence: true,
        kv: 3,
        queries: 2,
        ..Layout::default()
    };
    let module = training_step(&context, &layout);
    let text = partitioned(&module);
    let block = ["all_gather 1 @0", "reduce_scatter 1 @0"];
    assert_eq!(moves(&module, "layer"), [block, block].concat(), "{text}");
    let weights = moves(&module, "layer_backward").split_off(6);
    let (norm, weight) = ("all_reduce 0,1", "all_reduce 0");
    assert_eq!(weights, [norm, weight, weight, weight, weight, norm, weight, weight, weight], "{text}");
    let forward = ["reduce_scatter 1 @0", "all_gather 1 @0", "all_reduce 1", "all_reduce 1", "all_reduce 1"];
    let backward = ["reduce_scatter 1 @0", "all_gather 1 @0"];
    assert_eq!(moves(&module, "main"), [&forward[..], &backward, &["all_reduce 0"; 3]].concat(), "{text}");
}

#[test]
fn fewer_key_value_heads_than_devices() {
    let context = Context::new();
    let layout = Layout {
        axes: vec![("dp", 2), ("kv", 3), ("replica", 2)],
        data: vec![0],
        heads: vec![1],
        groups: vec![2],
        sequence: false,
        kv: 3,
        queries: 2,
    };
    let module = training_step(&context, &layout);
    let text = partitioned(&module);
    assert_eq!(moves(&module, "layer"), ["all_reduce 1,2", "all_reduce 1,2"], "{text}");
    let (block, replica, data) = ("all_reduce 1,2", "all_reduce 0,2", "all_reduce 0");
    let weights = [data, data, replica, replica, data, data, data, data, data];
    assert_eq!(moves(&module, "layer_backward"), [&[block, block][..], &weights].concat(), "{text}");
}

/// A step on two data-parallel and three tensor-parallel devices; elements of parameters and of moments a device.
fn zero(stage: Stage) -> (Vec<String>, Vec<String>, [u64; 2]) {
    let context = Context::new();
    let layout = Layout {
        axes: vec![("dp", 2), ("tp", 3)],
        data: vec![0],
        heads: vec![1],
        kv: 3,
        queries: 2,
        ..Layout::default()
    };
    let module = training_step(&context, &layout);
    append(module.op(), &AdamW::default()).unwrap();
    partitioned_with(&module, stage);
    let ports = t3c_ir::function::entry(module.op()).unwrap().argument_ports().unwrap();
    let held = |prefix: &str| {
        let ports = ports.iter().filter(|port| port.name.starts_with(prefix));
        ports.map(|port| port.r#type.elements()).sum()
    };
    (moves(&module, "layer"), moves(&module, "layer_backward"), [held("param/"), held("m/")])
}

#[test]
fn state_and_parameters_split_over_data() {
    let count = |moves: &[String], what: &str| moves.iter().filter(|text| text.starts_with(what)).count();
    let (forward, backward, [parameters, moments]) = zero(Stage::Off);
    assert_eq!((count(&forward, "all_gather"), count(&backward, "reduce_scatter")), (0, 0));
    assert_eq!(parameters, moments);
    let (forward, backward, [held, moments]) = zero(Stage::State);
    assert_eq!(count(&forward, "all_gather"), 0);
    // Seven matrices and two norms.
    assert_eq!(count(&backward, "reduce_scatter 0"), 9, "{backward:?}");
    assert_eq!((held, moments * 2), (parameters, parameters));
    let (forward, backward, [held, moments]) = zero(Stage::Parameters);
    assert_eq!(count(&forward, "all_gather 0"), 9, "{forward:?}");
    assert_eq!(
        (count(&backward, "all_gather 0"), count(&backward, "reduce_scatter 0")),
        (9, 9),
        "{backward:?}"
    );
    assert_eq!((held * 2, moments * 2), (parameters, parameters));
}
