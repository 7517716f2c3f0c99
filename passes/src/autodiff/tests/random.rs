//! Random graphs: gradients equal central differences.

use t3c_ir::{
    Builder, Context, Predicate, Ref, ScalarOp, Val,
    attributes::{integers_attr, named},
};

use super::{F, check, entry, f64s, random, weighted};

/// Rows 1 and 2 of `x`, columns 1 and 3, written over the middle of `y`.
fn slices<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, y: Val<'c, 'a>) -> Val<'c, 'a> {
    let context = b.context();
    let parse = |text: &str| melior::ir::Attribute::parse(context, text).unwrap();
    let slice = |name: &str, operands: &[Val<'c, 'a>], shape: [u64; 2], strides: [i64; 2], segments: &str| {
        let attributes = [
            named(context, "static_offsets", integers_attr(context, &[1, 1])),
            named(context, "static_sizes", integers_attr(context, &[2, 2])),
            named(context, "static_strides", integers_attr(context, &strides)),
            named(context, "operandSegmentSizes", parse(segments)),
        ];
        let result = [f64s(&shape).to_mlir(context)];
        b.op(name, operands, &result, &attributes, vec![]).unwrap().result(0).unwrap().into()
    };
    let part = slice("tensor.extract_slice", &[x], [2, 2], [1, 2], "array<i32: 1, 0, 0, 0>");
    slice("tensor.insert_slice", &[part, y], [4, 4], [1, 1], "array<i32: 1, 1, 0, 0, 0>")
}

/// To `[16]` and back, transposed.
fn reshapes<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    let context = b.context();
    let collapse = melior::ir::Attribute::parse(context, "[[0, 1]]").unwrap();
    let flat = [f64s(&[16]).to_mlir(context)];
    let attributes = [named(context, "reassociation", collapse)];
    let flat = b.op("tensor.collapse_shape", &[x], &flat, &attributes, vec![]).unwrap();
    let attributes = [
        named(context, "reassociation", collapse),
        named(context, "static_output_shape", integers_attr(context, &[4, 4])),
    ];
    let square = [f64s(&[4, 4]).to_mlir(context)];
    let flat: Val<'c, 'a> = flat.result(0).unwrap().into();
    let square = b.op("tensor.expand_shape", &[flat], &square, &attributes, vec![]).unwrap();
    let square: Val<'c, 'a> = square.result(0).unwrap().into();
    b.map("ij->ji", &[square], |body| body.unary(ScalarOp::Sin, Ref::Arg(0))).unwrap()
}

/// One step of a random graph on values `[4, 4]`: what it does and which earlier values it takes.
type Move = (u8, usize, usize);

fn apply<'c, 'a>(b: &Builder<'c, 'a>, (kind, x, y): Move, values: &[Val<'c, 'a>]) -> Val<'c, 'a> {
    let [x, y] = [x, y].map(|at| values[at % values.len()]);
    let made = match kind % 11 {
        0 => b.contract("ij,jk->ik", x, y),
        1 => b.contract("ij,kj->ki", x, y),
        2 => b.add(x, y),
        3 => b.map("ij,ji->ij", &[x, y], |body| body.mul(Ref::Arg(0), Ref::Arg(1))),
        4 => b.map("ij->ji", &[x], |body| body.unary(ScalarOp::Tanh, Ref::Arg(0))),
        5 => b.reduce("ij->j", x, ScalarOp::AddF).and_then(|sum| {
            b.map("ij,j->ij", &[y, sum], |body| {
                let exp = body.unary(ScalarOp::Tanh, Ref::Arg(1));
                body.sub(Ref::Arg(0), exp)
            })
        }),
        6 => b.map("ij,ij->ij", &[x, y], |body| {
            let square = body.mul(Ref::Arg(1), Ref::Arg(1));
            let one = body.constant(1.0, F);
            let positive = body.add(one, square);
            body.div(Ref::Arg(0), positive)
        }),
        7 => b.map("ij,ij->ij", &[x, y], |body| {
            let (row, column) = (body.index(0), body.index(1));
            let below = body.cmp_i(Predicate::Le, column, row);
            body.select(below, Ref::Arg(0), Ref::Arg(1))
        }),
        8 => b
            .reduce("ij->i", x, ScalarOp::MaxF)
            .and_then(|max| b.map("ij,i->ij", &[y, max], |body| body.mul(Ref::Arg(0), Ref::Arg(1)))),
        9 => Ok(slices(b, x, y)),
        _ => Ok(reshapes(b, x)),
    };
    // Kept small, so that differences stay exact.
    b.map("ij->ij", &[made.unwrap()], |body| body.unary(ScalarOp::Sin, Ref::Arg(0))).unwrap()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn random_graphs_have_the_gradients_of_their_loss(
        moves in proptest::collection::vec((0u8..11, 0usize..16, 0usize..16), 1..7),
    ) {
        let context = Context::new();
        let ports = [("x", f64s(&[4, 4])), ("param/a", f64s(&[4, 4])), ("param/b", f64s(&[4, 4]))];
        let module = entry(&context, &ports, |b, _, values| {
            let mut values = values.to_vec();
            for &step in &moves {
                values.push(apply(b, step, &values));
            }
            weighted(b, values[values.len() - 1])
        });
        check(&module, &random(&ports));
    }
}
