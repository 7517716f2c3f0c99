//! Units: lookups, attention with its options, experts.

use t3c_ir::{
    Builder, Context, Module, Predicate, Ref, ScalarOp, TensorType, Val,
    interpreter::Tensor,
    units::{self, Unit},
};

use super::{F, check, entry, f64s, i32s, random, weighted};

/// Grouped-query attention with units: lookups of a table, rotation-free halves, a packed tree.
#[test]
fn attention_with_units_differentiates() {
    let context = Context::new();
    let (n, d) = (5, 3);
    let ports = [
        ("tokens", i32s(&[n])),
        ("subtree_end", i32s(&[n])),
        ("param/embedding", f64s(&[7, d])),
        ("param/wq", f64s(&[2, 2, 2, 1, d])),
        ("param/wk", f64s(&[2, 2, 1, d])),
        ("param/wv", f64s(&[2, 2, d])),
        ("param/wo", f64s(&[d, 2, 2, 2])),
    ];
    let module = entry(&context, &ports, |b, module, values| {
        let unit = |unit: &Unit, arguments: &[Val<'_, '_>]| {
            let symbol = units::ensure(module.op(), unit).unwrap();
            (symbol, unit.results.clone(), arguments.len())
        };
        let lookup = Unit::lookup(&ports[2].1, &ports[0].1);
        let (symbol, types, _) = unit(&lookup, values);
        let x = b.call(&symbol, &[values[2], values[0]], &types).unwrap()[0];
        let q = b.contract("nd,kgced->nkgce", x, values[3]).unwrap();
        let k = b.contract("nd,kced->nkce", x, values[4]).unwrap();
        let v = b.contract("nd,khd->nkh", x, values[5]).unwrap();
        let attention = Unit::attention(&TensorType::of(q).unwrap());
        let (symbol, types, _) = unit(&attention, values);
        let o = b.call(&symbol, &[q, k, v, values[1]], &types).unwrap()[0];
        let y = b.contract("nkgh,dkgh->nd", o, values[6]).unwrap();
        weighted(b, b.add(x, y).unwrap())
    });
    let mut inputs = random(&ports);
    inputs[0] = Tensor::i32([n], [1, 4, 1, 6, 0]);
    inputs[1] = Tensor::i32([n], [5, 3, 3, 5, 5]);
    let with = check(&module, &inputs);
    let text = with.text(false);
    assert!(text.contains("call @attention_grad") && text.contains("call @lookup_grad"), "{text}");
}

/// Calls a unit in a test's module.
fn call_unit<'c, 'a>(
    b: &Builder<'c, 'a>,
    module: &'a Module<'c>,
    unit: &Unit,
    arguments: &[Val<'c, 'a>],
) -> Vec<Val<'c, 'a>> {
    let symbol = units::ensure(module.op(), unit).unwrap();
    b.call(&symbol, arguments, &unit.results).unwrap()
}

#[test]
fn attention_with_a_bound_and_a_window_differentiates() {
    let context = Context::new();
    let q = f64s(&[6, 2, 2, 2, 1]);
    let base = Unit::attention(&q);
    for unit in [base.clone().softcapped(0.8), base.windowed(2).softcapped(1.3).scaled(0.9)] {
        let mut ports =
            vec![("param/q", q.clone()), ("param/k", f64s(&[6, 2, 2, 1])), ("param/v", f64s(&[6, 2, 2]))];
        ports.push(("subtree_end", i32s(&[6])));
        if unit.window.is_some() {
            ports.push(("position", i32s(&[6])));
        }
        let module =
            entry(&context, &ports, |b, module, values| weighted(b, call_unit(b, module, &unit, values)[0]));
        let mut inputs = random(&ports);
        inputs[3] = Tensor::i32([6], [6, 4, 4, 4, 6, 6]);
        if let Some(position) = inputs.get_mut(4) {
            *position = Tensor::i32([6], [0, 1, 2, 3, 1, 2]);
        }
        check(&module, &inputs);
    }
}

/// Scores, routes, rows, two grouped products around an activation, each row times its expert's probability, and
/// the sum of a token's rows: everything but the choice of experts has a gradient.
#[test]
fn a_mixture_of_experts_differentiates() {
    let context = Context::new();
    let (n, d, f, experts) = (6, 3, 4, 4);
    for (top_k, groups, slots) in [(2, 1, 1), (3, 2, 2)] {
        let local = experts / slots;
        let ports = [
            ("param/x", f64s(&[n, d])),
            ("param/router", f64s(&[experts, d])),
            ("param/up", f64s(&[slots, local, f, d])),
            ("param/down", f64s(&[slots, local, f, d])),
        ];
        let module = entry(&context, &ports, |b, module, values| {
            let scores = b.contract("nd,ed->ne", values[0], values[1]).unwrap();
            let sigmoid = b.map("ne->ne", &[scores], |body| body.unary(ScalarOp::Tanh, Ref::Arg(0))).unwrap();
            let unit = Unit::route(&f64s(&[n, experts]), top_k, groups, slots);
            let route = call_unit(b, module, &unit, &[scores]);
            let unit = Unit::lookup(&f64s(&[n, d]), &unit.results[0]);
            let rows = call_unit(b, module, &unit, &[values[0], route[0]])[0];
            let up = Unit::grouped(&unit.results[0], &ports[2].1, top_k);
            let h = call_unit(b, module, &up, &[rows, values[2], route[2]])[0];
            let h = b.map("pscf->pscf", &[h], |body| body.unary(ScalarOp::Tanh, Ref::Arg(0))).unwrap();
            let down = Unit::grouped_transposed(&up.results[0], &ports[3].1, top_k);
            let y = call_unit(b, module, &down, &[h, values[3], route[2]])[0];
            let all = Unit::lookup(&f64s(&[n, experts]), &unit.arguments[1]);
            let all = call_unit(b, module, &all, &[sigmoid, route[0]])[0];
            let own = b.structured("psce,psc->psc", &[all, route[1]], F, 0.0, |body| {
                let (expert, own) = (body.index(3), body.to_i64(Ref::Arg(1)));
                let hit = body.cmp_i(Predicate::Eq, expert, own);
                let zero = body.constant(0.0, F);
                let term = body.select(hit, Ref::Arg(0), zero);
                body.add(Ref::Arg(2), term)
            });
            let y = b.map("pscd,psc->pscd", &[y, own.unwrap()], |body| body.mul(Ref::Arg(0), Ref::Arg(1)));
            let sum = Unit::lookup_grad(&unit.arguments[1], &down.results[0], n);
            let y = call_unit(b, module, &sum, &[route[0], y.unwrap()])[0];
            weighted(b, y)
        });
        let text = check(&module, &random(&ports)).text(false);
        assert_eq!(text.matches("call @grouped_grad").count(), 2, "{text}");
        assert_eq!(text.matches("call @route").count(), 1, "{text}");
    }
}
