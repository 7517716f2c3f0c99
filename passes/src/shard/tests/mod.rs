//! Whole modules through the partitioner.

mod experts;
mod imported;
mod models;
pub(crate) mod oracle;
mod transformer;

use t3c_ir::{
    Context, Module, Ref, ScalarOp,
    function::entry,
    units::{Unit, ensure},
    walk,
};

use self::{models::*, oracle::partitioned};
use super::{Error, partition};
use crate::autodiff;

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

#[test]
fn an_mlp_has_one_all_reduce_before_its_residual() {
    for devices in [2, 3, 4] {
        let context = Context::new();
        let module = module(&context, devices);
        add(&module, "main", &mlp_arguments(), &[("y", tensor(&[T, D]))], |b, a| vec![mlp(b, a[0], &a[1..])]);
        let text = partitioned(&module);
        assert_eq!(of(&module, "main"), ["all_reduce"], "{text}");
        assert!(text.contains(&format!("tensor<{}x6xf64>", 12 / devices)), "{text}");
        assert!(text.contains("t3.split = [array<i64: 0>, array<i64>]"), "{text}");
    }
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
        assert_eq!(
            results[5].attributes,
            [("t3.split".to_owned(), "[array<i64>, array<i64: 0>, array<i64>, array<i64>]".to_owned())]
        );
    }
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
        let table = b.shard(a[1], "grid", &[vec![0], vec![]]).unwrap();
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
        let x = b.shard(a[0], "grid", &[vec![0], vec![]]).unwrap();
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
        vec![b.shard(a[0], "grid", &[vec![0]]).unwrap()]
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
        let w = b.shard(a[2], "grid", &[vec![], vec![0]]).unwrap();
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
    assert_eq!(of(&module, "main"), ["all_slice", "all_reduce", "all_reduce"], "{text}");
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
        let heads = [vec![], vec![], vec![0], vec![], vec![]];
        let keys = b.shard(a[3], "grid", &heads).unwrap();
        let values = b.shard(a[4], "grid", &heads[..4]).unwrap();
        b.call(&paged, &[a[0], a[1], a[2], keys, values, a[5], a[6]], &unit.results).unwrap()
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), ["all_slice"; 3], "{text}");
    let results = entry(module.op()).unwrap().result_ports().unwrap();
    assert_eq!(results[1].attributes[0].1, "[array<i64>, array<i64>, array<i64: 0>, array<i64>, array<i64>]");
}

#[test]
fn parameters_that_lie_differently_get_a_function_each() {
    let context = Context::new();
    let module = module(&context, 2);
    add(&module, "scale", &[("w", tensor(&[4, 6]))], &[("y", tensor(&[4, 6]))], |b, a| {
        vec![doubled(b, a[0])]
    });
    let weights = [("param/a", tensor(&[4, 6])), ("param/b", tensor(&[4, 6])), ("param/c", tensor(&[4, 6]))];
    let results: Vec<_> =
        ["param/a", "param/b", "param/c"].into_iter().map(|name| (name, tensor(&[4, 6]))).collect();
    add(&module, "main", &weights, &results, |b, a| {
        let rows = b.shard(a[0], "grid", &[vec![0], vec![]]).unwrap();
        let columns = b.shard(a[1], "grid", &[vec![], vec![0]]).unwrap();
        let also_rows = b.shard(a[2], "grid", &[vec![0], vec![]]).unwrap();
        [rows, columns, also_rows].map(|w| b.call("scale", &[w], &[tensor(&[4, 6])]).unwrap()[0]).to_vec()
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), Vec::<String>::new(), "{text}");
    assert_eq!(text.matches("func.func").count(), 3, "{text}");
    assert!(text.contains("@scale_1(%arg0: tensor<4x3xf64>"), "{text}");
}

#[test]
fn data_and_tensor_parallel_axes_combine() {
    let context = Context::new();
    let module = grid(&context, &[("dp", 2), ("tp", 3)]);
    let arguments = [
        ("x", tensor(&[4, D])),
        ("dy", tensor(&[4, D])),
        ("param/up", tensor(&[FF, D])),
        ("param/down", tensor(&[D, FF])),
    ];
    let results = [
        ("y", tensor(&[4, D])),
        ("grad/up", tensor(&[FF, D])),
        ("grad/down", tensor(&[D, FF])),
        ("dx", tensor(&[4, D])),
    ];
    add(&module, "main", &arguments, &results, |b, a| {
        let x = b.shard(a[0], "grid", &[vec![0], vec![]]).unwrap();
        let dy = b.shard(a[1], "grid", &[vec![0], vec![]]).unwrap();
        let up = b.shard(a[2], "grid", &[vec![1], vec![]]).unwrap();
        let down = b.shard(a[3], "grid", &[vec![], vec![1]]).unwrap();
        let h = b.contract("td,fd->tf", x, up).unwrap();
        let y = b.contract("tf,df->td", h, down).unwrap();
        let dh = b.contract("td,df->tf", dy, down).unwrap();
        let d_down = b.contract("td,tf->df", dy, h).unwrap();
        let d_up = b.contract("tf,td->fd", dh, x).unwrap();
        let dx = b.contract("tf,fd->td", dh, up).unwrap();
        vec![y, d_up, d_down, dx]
    });
    let text = partitioned(&module);
    assert_eq!(of(&module, "main"), vec!["all_reduce"; 4], "{text}");
    let ports = entry(module.op()).unwrap().result_ports().unwrap();
    let splits: Vec<&str> = ports.iter().map(|port| port.attributes[0].1.as_str()).collect();
    assert_eq!(
        splits,
        [
            "[array<i64: 0>, array<i64>]",
            "[array<i64: 1>, array<i64>]",
            "[array<i64>, array<i64: 1>]",
            "[array<i64: 0>, array<i64>]"
        ]
    );
}

#[test]
fn a_parameter_that_a_callee_annotates_otherwise_is_refused() {
    let context = Context::new();
    let module = module(&context, 2);
    add(&module, "scale", &[("w", tensor(&[4, 6]))], &[("y", tensor(&[4, 6]))], |b, a| {
        let w = b.shard(a[0], "grid", &[vec![], vec![0]]).unwrap();
        vec![doubled(b, w)]
    });
    add(&module, "main", &[("param/a", tensor(&[4, 6]))], &[("y", tensor(&[4, 6]))], |b, a| {
        let rows = b.shard(a[0], "grid", &[vec![0], vec![]]).unwrap();
        b.call("scale", &[rows], &[tensor(&[4, 6])]).unwrap()
    });
    let error = partition(module.op()).unwrap_err();
    assert!(matches!(error, Error::Disagree { argument: 0, .. }), "{error}");
}

#[test]
fn a_function_that_calls_itself_and_a_wrong_axis_are_refused() {
    let context = Context::new();
    let module = module(&context, 2);
    add(&module, "main", &[("x", tensor(&[4]))], &[("y", tensor(&[4]))], |b, a| {
        let x = b.shard(a[0], "grid", &[vec![0]]).unwrap();
        b.call("main", &[x], &[tensor(&[4])]).unwrap()
    });
    assert!(matches!(partition(module.op()), Err(Error::Recursive { .. })));
    let module = self::module(&context, 2);
    add(&module, "main", &[("x", tensor(&[4]))], &[("y", tensor(&[4]))], |b, a| {
        vec![b.shard(a[0], "grid", &[vec![3]]).unwrap()]
    });
    assert!(matches!(partition(module.op()), Err(Error::Annotation { .. })));
}

#[test]
fn a_product_gathers_activations_and_refuses_parameters() {
    let build = |name: &'static str| {
        let context = Context::new();
        let module = module(&context, 2);
        add(&module, "main", &[(name, tensor(&[4]))], &[("y", tensor(&[]))], |b, a| {
            let x = b.shard(a[0], "grid", &[vec![0]]).unwrap();
            let product = b.structured("a->", &[x], F, 1.0, |body| {
                body.binary(ScalarOp::MulF, Ref::Arg(1), Ref::Arg(0))
            });
            vec![product.unwrap()]
        });
        if name == "x" {
            partitioned(&module);
            assert_eq!(of(&module, "main"), ["all_gather"]);
        } else {
            assert!(matches!(partition(module.op()), Err(Error::Reduction { .. })));
        }
    };
    build("x");
    build("param/x");
}

#[test]
fn a_differentiated_program_reduces_once_a_block_each_way() {
    let context = Context::new();
    let module = module(&context, 3);
    add(&module, "layer", &mlp_arguments(), &[("y", tensor(&[T, D]))], |b, a| vec![mlp(b, a[0], &a[1..])]);
    let weights = mlp_arguments().split_off(1);
    add(&module, "main", &mlp_arguments(), &[("loss", tensor(&[]))], |b, a| {
        let splits = [[vec![0], vec![]], [vec![0], vec![]], [vec![], vec![0]]];
        let annotated: Vec<_> =
            a[1..].iter().zip(&splits).map(|(&w, splits)| b.shard(w, "grid", splits).unwrap()).collect();
        let layer = |x| b.call("layer", &[&[x], &annotated[..]].concat(), &[tensor(&[T, D])]).unwrap()[0];
        vec![square_sum(b, layer(layer(a[0])), 2)]
    });
    autodiff::differentiate(module.op(), &autodiff::Autodiff::default()).unwrap();
    let text = partitioned(&module);
    assert_eq!(of(&module, "layer"), ["all_reduce"], "{text}");
    assert_eq!(of(&module, "layer_backward"), ["all_reduce"], "{text}");
    assert_eq!(of(&module, "main"), Vec::<String>::new(), "{text}");
    let results = entry(module.op()).unwrap().result_ports().unwrap();
    let gradient = |name: &str| results.iter().find(|port| port.name == format!("grad/{name}")).unwrap();
    for (name, whole) in weights {
        let local = gradient(name.trim_start_matches("param/"));
        assert_eq!(local.r#type.elements() * 3, whole.elements(), "{name}");
    }
}
