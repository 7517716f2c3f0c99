//! Programs for one big device.

use t3c_ir::{
    Builder, Context, Element, Module, Predicate, Ref, ScalarOp, TensorType, Val,
    function::{Function, Port, Signature, add_function, add_grid},
    units::{Unit, ensure},
};
use t3c_schedule::{Axis, Grid};

pub const F: Element = Element::F64;

pub fn tensor(shape: &[u64]) -> TensorType {
    TensorType::new(shape, F)
}

pub fn ids(shape: &[u64]) -> TensorType {
    TensorType::new(shape, Element::I32)
}

/// A module on a grid of these axes.
pub fn grid<'c>(context: &'c Context, axes: &[(&str, u32)]) -> Module<'c> {
    let module = context.module(t3c_ir::Location::new(context.mlir(), "model.json", 1, 1));
    let axes = axes.iter().map(|&(name, size)| Axis { name: name.into(), size }).collect();
    add_grid(&module, "grid", &Grid { axes }).unwrap();
    module
}

/// A module on a line of `devices`.
pub fn module(context: &Context, devices: u32) -> Module<'_> {
    grid(context, &[("tp", devices)])
}

/// Twice a matrix.
pub fn doubled<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    b.map("ab->ab", &[x], |body| body.add(Ref::Arg(0), Ref::Arg(0))).unwrap()
}

/// Adds a function; `build` gets its builder and arguments and returns its results.
pub fn add<'c, 'a>(
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

pub fn silu<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    b.map("tf->tf", &[x], |body| {
        let negative = body.unary(ScalarOp::NegF, Ref::Arg(0));
        let (e, one) = (body.unary(ScalarOp::Exp, negative), body.constant(1.0, F));
        let denominator = body.add(one, e);
        body.div(Ref::Arg(0), denominator)
    })
    .unwrap()
}

pub fn rms_norm<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, w: Val<'c, 'a>) -> Val<'c, 'a> {
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
pub fn mlp<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, weights: &[Val<'c, 'a>]) -> Val<'c, 'a> {
    let gate = b.shard(weights[0], "grid", &[vec![0], vec![]]).unwrap();
    let up = b.shard(weights[1], "grid", &[vec![0], vec![]]).unwrap();
    let down = b.shard(weights[2], "grid", &[vec![], vec![0]]).unwrap();
    let g = b.contract("td,fd->tf", x, gate).unwrap();
    let u = b.contract("td,fd->tf", x, up).unwrap();
    let h = b.map("tf,tf->tf", &[silu(b, g), u], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
    let y = b.contract("tf,df->td", h, down).unwrap();
    b.add(x, y).unwrap()
}

pub const T: u64 = 5;
pub const D: u64 = 6;
pub const FF: u64 = 12;

pub fn mlp_arguments() -> Vec<(&'static str, TensorType)> {
    vec![
        ("x", tensor(&[T, D])),
        ("param/gate", tensor(&[FF, D])),
        ("param/up", tensor(&[FF, D])),
        ("param/down", tensor(&[D, FF])),
    ]
}

pub const N: u64 = 4;
pub const K: u64 = 12;
pub const G: u64 = 2;
pub const E: u64 = 2;

pub fn layer_weights() -> Vec<(&'static str, TensorType)> {
    vec![
        ("param/norm", tensor(&[D])),
        ("param/wq", tensor(&[K, G, 2, E, D])),
        ("param/wk", tensor(&[K, 2, E, D])),
        ("param/wv", tensor(&[K, 2 * E, D])),
        ("param/wo", tensor(&[D, K, G, 2 * E])),
    ]
}

pub fn annotate<'c, 'a>(b: &Builder<'c, 'a>, weights: &[Val<'c, 'a>]) -> Vec<Val<'c, 'a>> {
    let heads = |rank: usize, at: usize| {
        (0..rank).map(|index| if index == at { vec![0] } else { vec![] }).collect::<Vec<_>>()
    };
    let shard = |index: usize, rank, at| b.shard(weights[index], "grid", &heads(rank, at)).unwrap();
    vec![weights[0], shard(1, 5, 0), shard(2, 4, 0), shard(3, 3, 0), shard(4, 4, 1)]
}

/// The attention block of a layer, as a function that also returns what its gradient needs.
pub fn add_layer(module: &Module<'_>) {
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
pub fn add_layer_grad(module: &Module<'_>) {
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
pub fn update<'c, 'a>(
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

pub fn square_sum<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, rank: usize) -> Val<'c, 'a> {
    let dims: String = ('a'..='z').take(rank).collect();
    b.structured(&format!("{dims}->"), &[x], F, 0.0, |body| {
        let square = body.mul(Ref::Arg(0), Ref::Arg(0));
        body.add(Ref::Arg(1), square)
    })
    .unwrap()
}

/// Two layers forward, backward, the gradient's norm and an update of every parameter.
pub fn training_step(module: &Module<'_>) {
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

pub const V: u64 = 12;

/// A vocabulary-parallel embedding (lookup or one-hot), head and cross-entropy.
pub fn vocabulary(module: &Module<'_>, one_hot: bool) {
    let arguments = [
        ("tokens", ids(&[N])),
        ("targets", ids(&[N])),
        ("param/embedding", tensor(&[V, D])),
        ("param/head", tensor(&[V, D])),
    ];
    let unit = Unit::lookup(&tensor(&[V, D]), &ids(&[N]));
    let lookup = ensure(module.op(), &unit).unwrap();
    add(module, "main", &arguments, &[("logp", tensor(&[N]))], |b, a| {
        let embedding = b.shard(a[2], "grid", &[vec![0], vec![]]).unwrap();
        let head = b.shard(a[3], "grid", &[vec![0], vec![]]).unwrap();
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
