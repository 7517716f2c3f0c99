//! Every policy has the same gradients, bit for bit, and keeps what it says.

use t3c_ir::{
    Context, Module, function,
    interpreter::{Interpreter, Tensor},
};

use super::{Autodiff, differentiated, entry, f64s, layer, random, weighted};
use crate::autodiff::Remat;

const N: u64 = 8;
const D: u64 = 12;
const FF: u64 = 16;

fn model(context: &Context) -> (Module<'_>, Vec<Tensor>) {
    let mut ports = vec![("x", f64s(&[N, D])), ("param/in", f64s(&[D, D]))];
    for [norm, up, down] in
        [["param/0.norm", "param/0.up", "param/0.down"], ["param/1.norm", "param/1.up", "param/1.down"]]
    {
        ports.extend([(norm, f64s(&[D])), (up, f64s(&[FF, D])), (down, f64s(&[D, FF]))]);
    }
    let module = entry(context, &ports, |b, module, values| {
        layer(context, module, N, D, FF);
        let result = [f64s(&[N, D])];
        let x = b.contract("nd,ed->ne", values[0], values[1]).unwrap();
        let x = b.call("layer", &[&[x], &values[2..5]].concat(), &result).unwrap()[0];
        let x = b.call("layer", &[&[x], &values[5..8]].concat(), &result).unwrap()[0];
        weighted(b, x)
    });
    let inputs = random(&ports);
    (module, inputs)
}

#[test]
fn every_policy_has_the_same_gradients() {
    let context = Context::new();
    let (module, inputs) = model(&context);
    let with = |remat| differentiated(&module, &Autodiff { remat, ..Autodiff::default() });
    let run = |module: &Module<'_>| Interpreter::new(module.op()).run_one("train", &inputs).unwrap();
    let expected = run(&with(Remat::None));
    // Kept by a layer beside its result: the sum of squares, the normal, tanh's argument and its result.
    let everything = 4;
    let bytes = 8 * 2 * (N + N * D + 2 * N * FF);
    // Of these, only tanh's argument is the result of a matrix product, and it costs most operations a byte.
    for (remat, kept) in [
        (Remat::None, everything),
        (Remat::Attention, 1),
        (Remat::Full, 0),
        (Remat::Bytes(0), 0),
        (Remat::Bytes(8 * 2 * N * FF), 1),
        (Remat::Bytes(bytes), everything),
    ] {
        let with = with(remat);
        let text = with.text(false);
        assert_eq!(run(&with), expected, "{remat}");
        let layer = function::function(with.op(), "layer").unwrap();
        assert_eq!(layer.results().len(), 1 + kept, "{remat}: {text}");
        let backward = function::function(with.op(), "layer_backward").unwrap();
        assert_eq!(backward.arguments().len(), 1 + 4 + kept, "{remat}: {text}");
    }
}
