//! A layer of experts, forward and backward, over data, expert and tensor parallelism.

use t3c_ir::{
    Builder, Context, Module, Predicate, Ref, Val,
    units::{Unit, ensure},
};

use super::{
    models::{D, F, add, grid, square_sum, tensor},
    oracle::partitioned,
    transformer::moves,
};
use crate::autodiff;

const N: u64 = 24;
const EXPERTS: u64 = 4;
const FF: u64 = 8;

struct Layout {
    axes: Vec<(&'static str, u32)>,
    tokens: Vec<usize>,
    experts: Vec<usize>,
    tensor: Vec<usize>,
    sequence: Vec<usize>,
    slots: u64,
}

/// Calls a unit.
fn call<'c, 'a>(
    module: &'a Module<'c>,
    b: &Builder<'c, 'a>,
    unit: &Unit,
    operands: &[Val<'c, 'a>],
) -> Vec<Val<'c, 'a>> {
    let symbol = ensure(module.op(), unit).unwrap();
    b.call(&symbol, operands, &unit.results).unwrap()
}

/// The probability with which each row's token chose its expert.
fn chosen<'c, 'a>(b: &Builder<'c, 'a>, scores: Val<'c, 'a>, expert: Val<'c, 'a>) -> Val<'c, 'a> {
    b.structured("psce,psc->psc", &[scores, expert], F, 0.0, |body| {
        let (e, own) = (body.index(3), body.to_i64(Ref::Arg(1)));
        let same = body.cmp_i(Predicate::Eq, e, own);
        let zero = body.constant(0.0, F);
        let picked = body.select(same, Ref::Arg(0), zero);
        body.add(Ref::Arg(2), picked)
    })
    .unwrap()
}

fn experts<'c, 'a>(
    module: &'a Module<'c>,
    b: &Builder<'c, 'a>,
    layout: &Layout,
    x: Val<'c, 'a>,
    weights: &[Val<'c, 'a>],
) -> Val<'c, 'a> {
    let groups = layout.axes.iter().enumerate().filter(|(axis, _)| layout.tokens.contains(axis));
    let groups: u64 = groups.map(|(_, axis)| u64::from(axis.1)).product();
    let scores = b.contract("nd,ed->ne", x, weights[0]).unwrap();
    let unit = Unit::route(&tensor(&[N, EXPERTS]), 2, groups, layout.slots);
    let routed = call(module, b, &unit, &[scores]);
    let source = unit.results[0].clone();
    let find = |table: Val<'c, 'a>, features: u64| {
        let unit = Unit::lookup(&tensor(&[N, features]), &source).aligned();
        call(module, b, &unit, &[table, routed[0]])[0]
    };
    let rows = |features: u64| tensor(&[groups, layout.slots, source.shape[2], features]);
    let local = EXPERTS / layout.slots;
    let up = Unit::grouped(&rows(D), &tensor(&[layout.slots, local, FF, D]), 2);
    let down = Unit::grouped(&rows(FF), &tensor(&[layout.slots, local, D, FF]), 2);
    let input = find(x, D);
    let g = call(module, b, &up, &[input, weights[1], routed[2]])[0];
    let u = call(module, b, &up, &[input, weights[2], routed[2]])[0];
    let h = b.map("pscf,pscf->pscf", &[g, u], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
    let y = call(module, b, &down, &[h, weights[3], routed[2]])[0];
    let p = chosen(b, find(scores, EXPERTS), routed[1]);
    let y = b.map("pscd,psc->pscd", &[y, p], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
    let back = Unit::lookup_grad(&source, &rows(D), N).aligned();
    call(module, b, &back, &[routed[0], y])[0]
}

fn layer<'c>(context: &'c Context, layout: &Layout, train: bool) -> Module<'c> {
    let module = grid(context, &layout.axes);
    let local = EXPERTS / layout.slots;
    let (up, down) = ([layout.slots, local, FF, D], [layout.slots, local, D, FF]);
    let arguments = [
        ("x", tensor(&[N, D])),
        ("param/router", tensor(&[EXPERTS, D])),
        ("param/gate", tensor(&up)),
        ("param/up", tensor(&up)),
        ("param/down", tensor(&down)),
    ];
    let results = [("y", tensor(&[N, D])), ("loss", tensor(&[]))];
    add(&module, "main", &arguments, &results, |b, a| {
        let tokens = [layout.tokens.as_slice(), &layout.sequence].concat();
        let x = b.shard(a[0], "grid", &[tokens, vec![]]).unwrap();
        let rows = [layout.experts.clone(), vec![], layout.tensor.clone(), vec![]];
        let columns = [layout.experts.clone(), vec![], vec![], layout.tensor.clone()];
        let weights = [
            a[1],
            b.shard(a[2], "grid", &rows).unwrap(),
            b.shard(a[3], "grid", &rows).unwrap(),
            b.shard(a[4], "grid", &columns).unwrap(),
        ];
        let y = experts(&module, b, layout, x, &weights);
        let y = b.add(x, y).unwrap();
        vec![y, square_sum(b, y, 2)]
    });
    if train {
        autodiff::differentiate(module.op(), &autodiff::Autodiff::default()).unwrap();
    }
    module
}

#[test]
fn rows_go_to_their_experts_and_come_back() {
    let layout = Layout {
        axes: vec![("dp", 2), ("ep", 2)],
        tokens: vec![0, 1],
        experts: vec![1],
        tensor: vec![],
        sequence: vec![],
        slots: 2,
    };
    let context = Context::new();
    let module = layer(&context, &layout, false);
    let text = partitioned(&module);
    let moved = moves(&module, "main");
    let big = moved.iter().filter(|text| text.starts_with("all_to_all")).count();
    assert_eq!(moved.last().map(String::as_str), Some("all_reduce 0,1"), "{text}");
    // Rows and the offsets of their experts; probabilities; rows again.
    assert_eq!((moved.len(), big), (5, 4), "{moved:?}\n{text}");
    // A group of 6 tokens with 2 experts each: 12 of 24 rows are routed.
    assert_eq!(text.matches("t3.rows = 12 : index").count(), 2, "{text}");
}

#[test]
fn experts_of_every_layout_compute_the_same() {
    let none = Vec::new;
    let layouts = [
        Layout {
            axes: vec![("tp", 2)],
            tokens: none(),
            experts: none(),
            tensor: vec![0],
            sequence: none(),
            slots: 1,
        },
        Layout {
            axes: vec![("ep", 2)],
            tokens: vec![0],
            experts: vec![0],
            tensor: none(),
            sequence: none(),
            slots: 2,
        },
        Layout {
            axes: vec![("dp", 2), ("ep", 2), ("tp", 2)],
            tokens: vec![0, 1],
            experts: vec![1],
            tensor: vec![2],
            sequence: none(),
            slots: 2,
        },
        Layout {
            axes: vec![("ep", 4), ("tp", 2)],
            tokens: vec![0],
            experts: vec![0],
            tensor: vec![1],
            sequence: vec![1],
            slots: 4,
        },
    ];
    for layout in &layouts {
        let context = Context::new();
        partitioned(&layer(&context, layout, true));
    }
}
