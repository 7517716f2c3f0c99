//! Whole modules through the partitioner.

use t3c_ir::{
    Builder, Context, Element, Module, Predicate, Ref, ScalarOp, TensorType, Val,
    function::{Function, Port, Signature, add_function, add_grid, entry},
    units::{Unit, ensure},
    walk,
};
use t3c_schedule::{Axis, Grid};

use super::{Error, partition};

const F: Element = Element::F64;

fn tensor(shape: &[u64]) -> TensorType {
    TensorType::new(shape, F)
}

fn ids(shape: &[u64]) -> TensorType {
    TensorType::new(shape, Element::I32)
}

/// A module on a line of `devices`.
fn module(context: &Context, devices: u32) -> Module<'_> {
    let module = context.module(t3c_ir::Location::new(context.mlir(), "model.json", 1, 1));
    add_grid(&module, "grid", &Grid { axes: vec![Axis { name: "tp".into(), size: devices }] }).unwrap();
    module
}

/// Adds a function; `build` gets its builder and arguments and returns its results.
fn add<'c, 'a>(
    module: &'a Module<'c>,
    name: &str,
    arguments: &[(&str, TensorType)],
    results: &[(&str, TensorType)],
    build: impl FnOnce(&Builder<'c, 'a>, &[Val<'c, 'a>]) -> Vec<Val<'c, 'a>>,
) {
    let ports = |ports: &[(&str, TensorType)]| {
        ports.iter().map(|(name, r#type)| Port::new(*name, r#type.clone())).collect()
    };
    let signature = Signature {
        name: name.into(),
        arguments: ports(arguments),
        results: ports(results),
        public: name == "main",
        unit: None,
    };
    let location = t3c_ir::Location::new(module.context().mlir(), "model.json", 3, 5);
    let (operation, block) = add_function(module, &signature, location).unwrap();
    let b = Builder::at_end(module.context().mlir(), block, location);
    let arguments = Function(operation).arguments();
    let results = build(&b, &arguments);
    b.ret(&results).unwrap();
}

fn partitioned(module: &Module<'_>) -> String {
    module.verify().unwrap();
    partition(module.op()).unwrap();
    let text = module.text(false);
    module.verify().unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert!(!text.contains("shard.shard ") && !text.contains("shard.sharding"), "{text}");
    text
}

/// The collectives of each function, in order: `layer: all_reduce all_reduce`.
fn collectives(module: &Module<'_>) -> Vec<(String, Vec<String>)> {
    t3c_ir::function::functions(module.op())
        .into_iter()
        .map(|function| {
            let inside = walk::walk(function.0)
                .into_iter()
                .filter_map(t3c_ir::views::Collective::cast)
                .map(|collective| walk::name(collective.op).trim_start_matches("shard.").to_owned())
                .collect();
            (function.name(), inside)
        })
        .collect()
}

fn of(module: &Module<'_>, function: &str) -> Vec<String> {
    collectives(module).into_iter().find(|(name, _)| name == function).unwrap().1
}

fn silu<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    b.map("tf->tf", &[x], |body| {
        let negative = body.unary(ScalarOp::NegF, Ref::Arg(0));
        let (e, one) = (body.unary(ScalarOp::Exp, negative), body.constant(1.0, F));
        let denominator = body.add(one, e);
        body.div(Ref::Arg(0), denominator)
    })
    .unwrap()
}

fn rms_norm<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, w: Val<'c, 'a>) -> Val<'c, 'a> {
    let squares = b
        .structured("td->t", &[x], F, 0.0, |body| {
            let square = body.mul(Ref::Arg(0), Ref::Arg(0));
            body.add(Ref::Arg(1), square)
        })
        .unwrap();
    b.map("td,t,d->td", &[x, squares, w], |body| {
        let epsilon = body.constant(1e-5, F);
        let mean = body.add(Ref::Arg(1), epsilon);
        let scale = body.unary(ScalarOp::Rsqrt, mean);
        let scaled = body.mul(Ref::Arg(0), scale);
        body.mul(scaled, Ref::Arg(2))
    })
    .unwrap()
}

/// `x + down(silu(gate(x)) · up(x))`, rows of weights as Hugging Face stores them.
fn mlp<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, weights: &[Val<'c, 'a>]) -> Val<'c, 'a> {
    let gate = b.shard(weights[0], "grid", &[Some(0), None]).unwrap();
    let up = b.shard(weights[1], "grid", &[Some(0), None]).unwrap();
    let down = b.shard(weights[2], "grid", &[None, Some(0)]).unwrap();
    let g = b.contract("td,fd->tf", x, gate).unwrap();
    let u = b.contract("td,fd->tf", x, up).unwrap();
    let h = b.map("tf,tf->tf", &[silu(b, g), u], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
    let y = b.contract("tf,df->td", h, down).unwrap();
    b.add(x, y).unwrap()
}

const T: u64 = 5;
const D: u64 = 6;
const FF: u64 = 12;

fn mlp_arguments() -> Vec<(&'static str, TensorType)> {
    vec![
        ("x", tensor(&[T, D])),
        ("param/gate", tensor(&[FF, D])),
        ("param/up", tensor(&[FF, D])),
        ("param/down", tensor(&[D, FF])),
    ]
}

#[test]
fn an_mlp_has_one_all_reduce_before_its_residual() {
    for devices in [2, 3, 4] {
        let context = Context::new();
        let module = module(&context, devices);
        add(&module, "main", &mlp_arguments(), &[("y", tensor(&[T, D]))], |b, a| vec![mlp(b, a[0], &a[1..])]);
        let text = partitioned(&module);
        assert_eq!(of(&module, "main"), ["all_reduce"], "{text}");
        assert!(text.contains(&format!("tensor<{}x6xf64>", 12 / devices)), "{text}");
        assert!(text.contains("t3.split = array<i64: 0, -1>"), "{text}");
    }
}

const N: u64 = 4;
const K: u64 = 12;
const G: u64 = 2;
const E: u64 = 2;

fn layer_weights() -> Vec<(&'static str, TensorType)> {
    vec![
        ("param/norm", tensor(&[D])),
        ("param/wq", tensor(&[K, G, 2, E, D])),
        ("param/wk", tensor(&[K, 2, E, D])),
        ("param/wv", tensor(&[K, 2 * E, D])),
        ("param/wo", tensor(&[D, K, G, 2 * E])),
    ]
}

fn annotate<'c, 'a>(b: &Builder<'c, 'a>, weights: &[Val<'c, 'a>]) -> Vec<Val<'c, 'a>> {
    let heads =
        |rank: usize, at: usize| (0..rank).map(|index| (index == at).then_some(0)).collect::<Vec<_>>();
    let shard = |index: usize, rank, at| b.shard(weights[index], "grid", &heads(rank, at)).unwrap();
    vec![weights[0], shard(1, 5, 0), shard(2, 4, 0), shard(3, 3, 0), shard(4, 4, 1)]
}

/// The attention block of a layer, as a function that also returns what its gradient needs.
fn add_layer(module: &Module<'_>) {
    let q = tensor(&[N, K, G, 2, E]);
    let attention = ensure(module.op(), &Unit::attention(&q)).unwrap();
    let mut arguments =
        vec![("x", tensor(&[N, D])), ("subtree_end", ids(&[N])), ("rotation", tensor(&[N, 2, 2, E]))];
    arguments.extend(layer_weights());
    let results = [
        ("y", tensor(&[N, D])),
        ("xn", tensor(&[N, D])),
        ("q", q.clone()),
        ("k", tensor(&[N, K, 2, E])),
        ("v", tensor(&[N, K, 2 * E])),
        ("att", tensor(&[N, K, G, 2 * E])),
    ];
    add(module, "layer", &arguments, &results, |b, a| {
        let w = annotate(b, &a[3..]);
        let xn = rms_norm(b, a[0], w[0]);
        let q = b.contract("nd,kghed->nkghe", xn, w[1]).unwrap();
        let q = b.contract("nkgci,ncei->nkgei", q, a[2]).unwrap();
        let k = b.contract("nd,khed->nkhe", xn, w[2]).unwrap();
        let k = b.contract("nkci,ncei->nkei", k, a[2]).unwrap();
        let v = b.contract("nd,khd->nkh", xn, w[3]).unwrap();
        let out = tensor(&[N, K, G, 2 * E]);
        let att = b.call(&attention, &[q, k, v, a[1]], &[out]).unwrap()[0];
        let o = b.contract("nkgh,dkgh->nd", att, w[4]).unwrap();
        vec![b.add(a[0], o).unwrap(), xn, q, k, v, att]
    });
}

/// Its gradient, without annotations, and without the rotation's part.
fn add_layer_grad(module: &Module<'_>) {
    let q = tensor(&[N, K, G, 2, E]);
    let unit = Unit::attention_grad(&q, 0.5);
    let attention_grad = ensure(module.op(), &unit).unwrap();
    let mut arguments = vec![
        ("x", tensor(&[N, D])),
        ("subtree_end", ids(&[N])),
        ("xn", tensor(&[N, D])),
        ("q", q),
        ("k", tensor(&[N, K, 2, E])),
        ("v", tensor(&[N, K, 2 * E])),
        ("att", tensor(&[N, K, G, 2 * E])),
        ("dy", tensor(&[N, D])),
    ];
    arguments.extend(layer_weights());
    let mut results = vec![("dx", tensor(&[N, D]))];
    results.extend(layer_weights());
    add(module, "layer_grad", &arguments, &results, |b, a| {
        let &[x, end, xn, q, k, v, att, dy, norm, wq, wk, wv, wo] = a else { panic!("13 arguments") };
        let datt = b.contract("nd,dkgh->nkgh", dy, wo).unwrap();
        let dwo = b.contract("nd,nkgh->dkgh", dy, att).unwrap();
        let d = b.call(&attention_grad, &[q, k, v, end, datt], &unit.results).unwrap();
        let from_q = b.contract("nkghe,kghed->nd", d[0], wq).unwrap();
        let from_k = b.contract("nkhe,khed->nd", d[1], wk).unwrap();
        let from_v = b.contract("nkh,khd->nd", d[2], wv).unwrap();
        let dxn = b.add(b.add(from_q, from_k).unwrap(), from_v).unwrap();
        let dwq = b.contract("nd,nkghe->kghed", xn, d[0]).unwrap();
        let dwk = b.contract("nd,nkhe->khed", xn, d[1]).unwrap();
        let dwv = b.contract("nd,nkh->khd", xn, d[2]).unwrap();
        let dnorm = b
            .structured("nd,nd->d", &[dxn, x], F, 0.0, |body| {
                let product = body.mul(Ref::Arg(0), Ref::Arg(1));
                body.add(Ref::Arg(2), product)
            })
            .unwrap();
        let dx = b
            .map("nd,nd,d->nd", &[dy, dxn, norm], |body| {
                let scaled = body.mul(Ref::Arg(1), Ref::Arg(2));
                body.add(Ref::Arg(0), scaled)
            })
            .unwrap();
        vec![dx, dnorm, dwq, dwk, dwv, dwo]
    });
}

/// One parameter's update and the squared norm of its gradient.
fn update<'c, 'a>(
    b: &Builder<'c, 'a>,
    state: [Val<'c, 'a>; 4],
    scale: Val<'c, 'a>,
    rank: usize,
) -> Val<'c, 'a> {
    let dims: String = ('a'..='z').take(rank).collect();
    b.map(
        &format!("{dims},{dims},{dims},{dims},->{dims}"),
        &[state[0], state[1], state[2], state[3], scale],
        |body| {
            let step = body.mul(Ref::Arg(1), Ref::Arg(4));
            let step = body.mul(step, Ref::Arg(2));
            let square = body.mul(Ref::Arg(1), Ref::Arg(1));
            let root = body.unary(ScalarOp::Sqrt, square);
            let denominator = body.add(root, Ref::Arg(3));
            let step = body.div(step, denominator);
            body.sub(Ref::Arg(0), step)
        },
    )
    .unwrap()
}

fn square_sum<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, rank: usize) -> Val<'c, 'a> {
    let dims: String = ('a'..='z').take(rank).collect();
    b.structured(&format!("{dims}->"), &[x], F, 0.0, |body| {
        let square = body.mul(Ref::Arg(0), Ref::Arg(0));
        body.add(Ref::Arg(1), square)
    })
    .unwrap()
}

/// Two layers forward, backward, the gradient's norm and an update of every parameter.
fn training_step(module: &Module<'_>) {
    add_layer(module);
    add_layer_grad(module);
    let mut arguments = vec![
        ("x", tensor(&[N, D])),
        ("subtree_end", ids(&[N])),
        ("rotation", tensor(&[N, 2, 2, E])),
        ("dy", tensor(&[N, D])),
        ("one", tensor(&[])),
    ];
    let names = ["param/0", "param/1", "m/0", "m/1", "v/0", "v/1"];
    let weights: Vec<TensorType> = layer_weights().into_iter().map(|weight| weight.1).collect();
    let mut ports: Vec<(String, TensorType)> = Vec::new();
    for prefix in names {
        for (index, weight) in weights.iter().enumerate() {
            let (kind, layer) = prefix.split_once('/').unwrap();
            ports.push((format!("{kind}/{layer}.{index}"), weight.clone()));
        }
    }
    arguments.extend(ports.iter().map(|(name, r#type)| (name.as_str(), r#type.clone())));
    let mut results = vec![("norm", tensor(&[]))];
    results.extend(ports[..10].iter().map(|(name, r#type)| (name.as_str(), r#type.clone())));
    add(module, "main", &arguments, &results, |b, a| {
        let params = [annotate(b, &a[5..10]), annotate(b, &a[10..15])].concat();
        let results: Vec<TensorType> = t3c_ir::function::function(module.op(), "layer")
            .unwrap()
            .result_ports()
            .unwrap()
            .into_iter()
            .map(|port| port.r#type)
            .collect();
        let grads: Vec<TensorType> = t3c_ir::function::function(module.op(), "layer_grad")
            .unwrap()
            .result_ports()
            .unwrap()
            .into_iter()
            .map(|port| port.r#type)
            .collect();
        let mut saved = Vec::new();
        let mut x = a[0];
        for layer in 0..2 {
            let operands = [&[x, a[1], a[2]], &params[layer * 5..layer * 5 + 5]].concat();
            let out = b.call("layer", &operands, &results).unwrap();
            saved.push([vec![x, a[1]], out[1..].to_vec()].concat());
            x = out[0];
        }
        let mut gradients = vec![vec![]; 2];
        let mut dy = a[3];
        for layer in [1, 0] {
            let operands = [&saved[layer], &[dy][..], &params[layer * 5..layer * 5 + 5]].concat();
            let out = b.call("layer_grad", &operands, &grads).unwrap();
            dy = out[0];
            gradients[layer] = out[1..].to_vec();
        }
        let gradients = gradients.concat();
        let mut norm = None;
        for (index, gradient) in gradients.iter().enumerate() {
            let square = square_sum(b, *gradient, weights[index % 5].shape.len());
            norm = Some(norm.map_or(square, |norm| b.add(norm, square).unwrap()));
        }
        let norm = norm.unwrap();
        let scale = b
            .map(",->", &[norm, a[4]], |body| {
                let root = body.unary(ScalarOp::Sqrt, Ref::Arg(0));
                body.div(Ref::Arg(1), root)
            })
            .unwrap();
        let mut out = vec![norm];
        for (index, gradient) in gradients.iter().enumerate() {
            let rank = weights[index % 5].shape.len();
            out.push(update(b, [params[index], *gradient, a[15 + index], a[25 + index]], scale, rank));
        }
        out
    });
}

#[test]
fn a_training_step_reduces_once_a_block_and_once_for_the_norm() {
    for devices in [2, 3, 4] {
        let context = Context::new();
        let module = module(&context, devices);
        training_step(&module);
        let text = partitioned(&module);
        assert_eq!(of(&module, "layer"), ["all_reduce"], "{text}");
        assert_eq!(of(&module, "layer_grad"), ["all_reduce"], "{text}");
        assert_eq!(of(&module, "main"), ["all_reduce"], "{text}");
        assert_eq!(t3c_ir::function::functions(module.op()).len(), 5, "{text}");
        let results = entry(module.op()).unwrap().result_ports().unwrap();
        assert_eq!(results[2].r#type.shape[0], K / u64::from(devices));
        assert_eq!(results[5].attributes, [("t3.split".to_owned(), "array<i64: -1, 0, -1, -1>".to_owned())]);
    }
}

const V: u64 = 12;

/// A vocabulary-parallel embedding (lookup or one-hot), head and cross-entropy.
fn vocabulary(module: &Module<'_>, one_hot: bool) {
    let arguments = [
        ("tokens", ids(&[N])),
        ("targets", ids(&[N])),
        ("param/embedding", tensor(&[V, D])),
        ("param/head", tensor(&[V, D])),
    ];
    let unit = Unit::lookup(&tensor(&[V, D]), &ids(&[N]));
    let lookup = ensure(module.op(), &unit).unwrap();
    add(module, "main", &arguments, &[("logp", tensor(&[N]))], |b, a| {
        let embedding = b.shard(a[2], "grid", &[Some(0), None]).unwrap();
        let head = b.shard(a[3], "grid", &[Some(0), None]).unwrap();
        let x = if one_hot {
            b.structured("n,vd->nd", &[a[0], embedding], F, 0.0, |body| {
                let (v, id) = (body.index(2), body.to_i64(Ref::Arg(0)));
                let same = body.cmp_i(Predicate::Eq, v, id);
                let zero = body.constant(0.0, F);
                let picked = body.select(same, Ref::Arg(1), zero);
                body.add(Ref::Arg(2), picked)
            })
            .unwrap()
        } else {
            b.call(&lookup, &[embedding, a[0]], &unit.results).unwrap()[0]
        };
        let logits = b.contract("nd,vd->nv", x, head).unwrap();
        let max = b.reduce("nv->n", logits, ScalarOp::MaxF).unwrap();
        let sum = b
            .structured("nv,n->n", &[logits, max], F, 0.0, |body| {
                let centred = body.sub(Ref::Arg(0), Ref::Arg(1));
                let e = body.unary(ScalarOp::Exp, centred);
                body.add(Ref::Arg(2), e)
            })
            .unwrap();
        let pick = b
            .structured("nv,n->n", &[logits, a[1]], F, 0.0, |body| {
                let (v, id) = (body.index(1), body.to_i64(Ref::Arg(1)));
                let same = body.cmp_i(Predicate::Eq, v, id);
                let zero = body.constant(0.0, F);
                let picked = body.select(same, Ref::Arg(0), zero);
                body.add(Ref::Arg(2), picked)
            })
            .unwrap();
        let logp = b
            .map("n,n,n->n", &[pick, max, sum], |body| {
                let log = body.unary(ScalarOp::Log, Ref::Arg(2));
                let centred = body.sub(Ref::Arg(0), Ref::Arg(1));
                body.sub(centred, log)
            })
            .unwrap();
        vec![logp]
    });
}

#[test]
fn a_split_vocabulary_reduces_rows_and_never_gathers() {
    for one_hot in [true, false] {
        let context = Context::new();
        let module = module(&context, 3);
        vocabulary(&module, one_hot);
        let text = partitioned(&module);
        assert_eq!(of(&module, "main"), vec!["all_reduce"; 4], "{text}");
        assert_eq!(text.matches("reduction =  max").count(), 1, "{text}");
        assert!(text.contains("shard.process_multi_index"), "{text}");
    }
}

#[test]
fn an_indivisible_dimension_is_refused_and_nothing_changes() {
    let context = Context::new();
    let module = module(&context, 5);
    add(&module, "main", &mlp_arguments(), &[("y", tensor(&[T, D]))], |b, a| vec![mlp(b, a[0], &a[1..])]);
    let before = module.text(true);
    let error = partition(module.op()).unwrap_err();
    assert!(matches!(error, Error::Indivisible { dimension: 0, extent: 12, size: 5, .. }), "{error}");
    assert!(error.to_string().starts_with("model.json:3:5: dimension 0 of size 12"), "{error}");
    assert_eq!(module.text(true), before);
}

#[test]
fn a_body_that_reads_a_split_tensor_is_refused() {
    let context = Context::new();
    let module = module(&context, 2);
    let arguments = [("tokens", ids(&[N])), ("param/embedding", tensor(&[V, D]))];
    add(&module, "main", &arguments, &[("x", tensor(&[N, D]))], |b, a| {
        let table = b.shard(a[1], "grid", &[Some(0), None]).unwrap();
        let x = b.structured_over("n->nd", &[a[0]], &[table], &[('d', D)], F, 0.0, |body| {
            let (id, d) = (body.to_i64(Ref::Arg(0)), body.index(1));
            body.push(ScalarOp::Extract(0), &[id, d], F)
        });
        vec![x.unwrap()]
    });
    let before = module.text(true);
    assert!(matches!(partition(module.op()), Err(Error::Captured { .. })));
    assert_eq!(module.text(true), before);
}

#[test]
fn a_sequence_parallel_residual_scatters_and_gathers() {
    let context = Context::new();
    let module = module(&context, 3);
    let mut arguments = mlp_arguments();
    arguments[0].1 = tensor(&[6, D]);
    add(&module, "main", &arguments, &[("y", tensor(&[6, D]))], |b, a| {
        let x = b.shard(a[0], "grid", &[Some(0), None]).unwrap();
        vec![mlp(b, x, &a[1..])]
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), ["all_gather", "reduce_scatter"], "{text}");
}

#[test]
fn annotations_without_a_grid_are_refused_and_plain_modules_left_alone() {
    let context = Context::new();
    let module = context.module(t3c_ir::Location::unknown(context.mlir()));
    add(&module, "main", &[("x", tensor(&[4]))], &[("y", tensor(&[4]))], |b, a| {
        vec![b.shard(a[0], "grid", &[Some(0)]).unwrap()]
    });
    assert!(matches!(partition(module.op()), Err(Error::NoGrid { .. })));
    let plain = context.module(t3c_ir::Location::unknown(context.mlir()));
    add(&plain, "main", &[("x", tensor(&[4]))], &[("y", tensor(&[4]))], |_, a| vec![a[0]]);
    partition(plain.op()).unwrap();
}

#[test]
fn an_initial_value_is_added_once() {
    let context = Context::new();
    let module = module(&context, 3);
    let arguments = [("x", tensor(&[N, D])), ("bias", tensor(&[N, 4])), ("param/w", tensor(&[4, D]))];
    add(&module, "main", &arguments, &[("y", tensor(&[N, 4])), ("z", tensor(&[]))], |b, a| {
        let w = b.shard(a[2], "grid", &[None, Some(0)]).unwrap();
        let multiply_add = |body: &mut t3c_ir::ScalarBody| {
            let product = body.mul(Ref::Arg(0), Ref::Arg(1));
            body.add(Ref::Arg(2), product)
        };
        let y = b.accumulate("nd,fd->nf", &[a[0], w], &[], a[1], multiply_add).unwrap();
        // Accumulated onto a contribution: still one all-reduce.
        let first = b.contract("nd,fd->", a[0], w).unwrap();
        let z = b.accumulate("nd,fd->", &[a[0], w], &[], first, multiply_add).unwrap();
        vec![y, z]
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), ["all_reduce", "all_reduce"], "{text}");
    assert!(text.contains("shard.process_multi_index"), "{text}");
}

#[test]
fn a_cache_split_by_heads_keeps_decoding_local() {
    let context = Context::new();
    let module = module(&context, 2);
    let q = tensor(&[N, K, G, 2, E]);
    let unit = Unit::attention_paged(&q, 3, 2);
    let paged = ensure(module.op(), &unit).unwrap();
    let names = ["q", "k", "v", "cache/k/0", "cache/v/0", "block_table", "position"];
    let arguments: Vec<_> = names.into_iter().zip(unit.arguments.clone()).collect();
    let results: Vec<_> = ["out", "cache/k/0", "cache/v/0"].into_iter().zip(unit.results.clone()).collect();
    add(&module, "main", &arguments, &results, |b, a| {
        let heads = [None, None, Some(0), None, None];
        let keys = b.shard(a[3], "grid", &heads).unwrap();
        let values = b.shard(a[4], "grid", &heads[..4]).unwrap();
        b.call(&paged, &[a[0], a[1], a[2], keys, values, a[5], a[6]], &unit.results).unwrap()
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), ["all_slice"; 3], "{text}");
    let results = entry(module.op()).unwrap().result_ports().unwrap();
    assert_eq!(results[1].attributes[0].1, "array<i64: -1, -1, 0, -1, -1>");
}
