//! What each operation of the schema builds.

use t3c_ir::{Builder, Ref, ScalarBody, ScalarOp, TensorType, Val, scalar::Predicate, units::Unit};

use super::{Op, Split, build::Scope, collectives, elementwise, losses, sizes::check_shard};
use crate::{
    error::{Error, Field},
    nn,
};

/// Builds operation `index` and returns its result with the result's name.
pub(super) fn add<'o, 'c, 'a>(
    scope: &Scope<'_, 'c, 'a>,
    index: usize,
    op: &'o Op,
) -> Result<(&'o str, Val<'c, 'a>), Error> {
    let (b, path) = scope.at(index, op);
    let value = |name: &str, key: &str| scope.value(name, &format!("{path}.{key}"));
    let pair = |names: &[String; 2]| -> Result<[Val<'c, 'a>; 2], Error> {
        Ok([value(&names[0], "inputs[0]")?, value(&names[1], "inputs[1]")?])
    };
    let unary = |input: &str, function: fn(&mut ScalarBody, Ref) -> Ref| {
        value(input, "input").map(|x| nn::unary(&b, x, function))
    };
    let binary = |inputs: &[String; 2], equation: &Option<String>, op: ScalarOp| -> Result<_, Error> {
        let inputs = pair(inputs)?;
        let equation = elementwise_equation(&path, equation.as_deref(), inputs[0])?;
        Ok(b.map(&equation, &inputs, |body| body.binary(op, Ref::Arg(0), Ref::Arg(1))))
    };
    let (result, built) = match op {
        Op::Contract { result, inputs, equation, .. } => {
            check_equation(&path, equation, 2)?;
            let [x, y] = pair(inputs)?;
            (result, b.contract(equation, x, y))
        }
        Op::Add { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::AddF)?),
        Op::Sub { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::SubF)?),
        Op::Mul { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::MulF)?),
        Op::Div { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::DivF)?),
        Op::Max { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::MaxF)?),
        Op::Min { result, inputs, equation, .. } => (result, binary(inputs, equation, ScalarOp::MinF)?),
        Op::Scale { result, input, factor, .. } => {
            check_finite(&path, "factor", *factor)?;
            let x = value(input, "input")?;
            (result, elementwise::with_number(&b, x, *factor, ScalarOp::MulF))
        }
        Op::Shift { result, input, by, .. } => {
            check_finite(&path, "by", *by)?;
            let x = value(input, "input")?;
            (result, elementwise::with_number(&b, x, *by, ScalarOp::AddF))
        }
        Op::Neg { result, input, .. } => (result, unary(input, elementwise::neg)?),
        Op::Abs { result, input, .. } => (result, unary(input, elementwise::abs)?),
        Op::Square { result, input, .. } => (result, unary(input, elementwise::square)?),
        Op::Sqrt { result, input, .. } => (result, unary(input, elementwise::sqrt)?),
        Op::Rsqrt { result, input, .. } => (result, unary(input, elementwise::rsqrt)?),
        Op::Exp { result, input, .. } => (result, unary(input, elementwise::exp)?),
        Op::Log { result, input, .. } => (result, unary(input, elementwise::log)?),
        Op::Tanh { result, input, .. } => (result, unary(input, elementwise::tanh)?),
        Op::Sigmoid { result, input, .. } => (result, unary(input, elementwise::sigmoid)?),
        Op::Sum { result, input, equation, .. } => {
            check_equation(&path, equation, 1)?;
            (result, elementwise::sum(&b, equation, value(input, "input")?, 1.0))
        }
        Op::Mean { result, input, equation, .. } => {
            check_equation(&path, equation, 1)?;
            let x = value(input, "input")?;
            (result, elementwise::mean(&b, equation, x))
        }
        Op::Largest { result, input, equation, .. } => {
            check_equation(&path, equation, 1)?;
            (result, b.reduce(equation, value(input, "input")?, ScalarOp::MaxF))
        }
        Op::Softmax { result, input, dimension, .. } => {
            let x = value(input, "input")?;
            let rank = TensorType::of(x)?.shape.len();
            let dimension = dimension.unwrap_or(rank.saturating_sub(1));
            if dimension >= rank {
                let message = format!("{dimension} in a tensor of {rank} dimensions");
                return Err(Error::invalid(format!("{path}.dimension"), message));
            }
            (result, elementwise::softmax(&b, x, dimension))
        }
        Op::Transpose { result, input, equation, .. } => {
            check_equation(&path, equation, 1)?;
            check_permutation(&path, equation)?;
            (result, b.map(equation, &[value(input, "input")?], |_| Ref::Arg(0)))
        }
        Op::Broadcast { result, input, equation, extents, .. } => {
            check_equation(&path, equation, 1)?;
            check_keeps(&path, equation)?;
            let x = value(input, "input")?;
            let extents = extents
                .iter()
                .map(|(letter, extent)| {
                    Ok((*letter, scope.graph.sizes.extent(&format!("{path}.extents"), extent)?))
                })
                .collect::<Result<Vec<_>, Error>>()?;
            let element = TensorType::of(x)?.element;
            (result, b.structured_over(equation, &[x], &[], &extents, element, 0.0, |_| Ref::Arg(0)))
        }
        Op::Cast { result, input, dtype, .. } => {
            let x = value(input, "input")?;
            (result, Ok(elementwise::cast(&b, &path, x, super::element(*dtype))?))
        }
        Op::Constant { result, value, shape, dtype, .. } => {
            let shape = scope.graph.sizes.shape(&format!("{path}.shape"), shape)?;
            let element = dtype.map_or(scope.graph.element, super::element);
            (result, b.fill(*value, &TensorType::new(shape, element)))
        }
        Op::CrossEntropy { result, logits, targets, weights, .. } => {
            let weights = weights.as_ref().map(|weights| value(weights, "weights")).transpose()?;
            let (logits, targets) = (value(logits, "logits")?, value(targets, "targets")?);
            (result, Ok(losses::cross_entropy(&b, &path, logits, targets, weights)?))
        }
        Op::MeanSquaredError { result, input, target, .. } => {
            let (input, target) = (value(input, "input")?, value(target, "target")?);
            (result, Ok(losses::mean_squared_error(&b, input, target)?))
        }
        Op::Shard { result, input, split, .. } => {
            let x = value(input, "input")?;
            check_shard(&format!("{path}.split"), split, TensorType::of(x)?.shape.len())?;
            check_divides(scope, &format!("{path}.split"), split, &TensorType::of(x)?)?;
            (result, Ok(scope.graph.constrain(&b, x, split)?))
        }
        Op::AllReduce { result, input, .. }
        | Op::AllGather { result, input, .. }
        | Op::ReduceScatter { result, input, .. }
        | Op::AllSlice { result, input, .. }
        | Op::AllToAll { result, input, .. } => {
            let x = value(input, "input")?;
            (result, Ok(collectives::add(scope.graph, &b, &path, op, x)?))
        }
        Op::Silu { result, input, .. } => (result, unary(input, nn::silu)?),
        Op::Gelu { result, input, .. } => (result, unary(input, nn::gelu)?),
        Op::GeluTanh { result, input, .. } => (result, unary(input, nn::gelu_tanh)?),
        Op::Relu { result, input, .. } => (result, unary(input, nn::relu)?),
        Op::RmsNorm { result, input, weight, eps, .. } => {
            check_eps(&path, *eps)?;
            (result, nn::rms_norm(&b, value(input, "input")?, value(weight, "weight")?, *eps))
        }
        Op::LayerNorm { result, input, weight, bias, eps, .. } => {
            check_eps(&path, *eps)?;
            let [x, w, c] =
                [(input, "input"), (weight, "weight"), (bias, "bias")].map(|(name, key)| value(name, key));
            (result, nn::layer_norm(&b, x?, w?, c?, *eps))
        }
        Op::Take { result, input, equation, index, .. } => {
            check_equation(&path, equation, 1)?;
            (result, Ok(take(&b, &path, equation, value(input, "input")?, *index)?))
        }
        Op::Lookup { result, table, ids, aligned, .. } => {
            let (table, ids) = (value(table, "table")?, value(ids, "ids")?);
            (result, lookup(scope, &b, (table, ids), *aligned))
        }
        Op::Attention { result, .. } => (result, Ok(attention(scope, &b, &path, op)?)),
        Op::Repeat { .. } => {
            let message = "`repeat` inside a block; expected it among the model's own operations";
            return Err(Error::invalid(path, message));
        }
    };
    let built = built.map_err(|error| Error::invalid(&path, error.to_string()))?;
    Ok((result, built))
}

/// An equation has the right number of operands, one letter a dimension and no letter twice in one operand.
fn check_equation(path: &str, equation: &str, inputs: usize) -> Result<(), Error> {
    let wrong = |message: String| Err(Error::invalid(format!("{path}.equation"), message));
    let Some((left, right)) = equation.split_once("->") else {
        return wrong(format!("`{equation}` has no `->`"));
    };
    let operands: Vec<&str> = left.split(',').collect();
    if operands.len() != inputs {
        return wrong(format!("`{equation}` has {} operands; expected {inputs}", operands.len()));
    }
    for operand in operands.into_iter().chain([right]) {
        if let Some(other) = operand.chars().find(|letter| !letter.is_ascii_alphabetic()) {
            return wrong(format!("`{equation}` contains `{other}`; expected letters"));
        }
        if operand.chars().enumerate().any(|(index, letter)| operand[..index].contains(letter)) {
            return wrong(format!("`{operand}` in `{equation}` has a letter twice"));
        }
    }
    Ok(())
}

fn elementwise_equation(path: &str, equation: Option<&str>, first: Val<'_, '_>) -> Result<String, Error> {
    let Some(equation) = equation else {
        let dims: String = ('a'..='z').take(TensorType::of(first)?.shape.len()).collect();
        return Ok(format!("{dims},{dims}->{dims}"));
    };
    check_equation(path, equation, 2)?;
    let (left, right) = equation.split_once("->").unwrap_or_default();
    match left.chars().filter(|letter| *letter != ',').find(|&letter| !right.contains(letter)) {
        Some(letter) => {
            let message = format!("`{equation}` drops `{letter}`, and elementwise work cannot");
            Err(Error::invalid(format!("{path}.equation"), message))
        }
        None => Ok(equation.to_owned()),
    }
}

fn check_eps(path: &str, eps: f64) -> Result<(), Error> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("{path}.eps"), format!("{eps} is no small positive number")))
}

fn check_finite(path: &str, key: &str, number: f64) -> Result<(), Error> {
    match number.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{path}.{key}"), format!("{number} is no finite number"))),
    }
}

/// The result has every letter of the operand.
fn check_keeps(path: &str, equation: &str) -> Result<(), Error> {
    let (left, right) = equation.split_once("->").unwrap_or_default();
    match left.chars().find(|letter| !right.contains(*letter)) {
        None => Ok(()),
        Some(letter) => {
            Err(Error::invalid(format!("{path}.equation"), format!("`{equation}` drops `{letter}`")))
        }
    }
}

fn check_permutation(path: &str, equation: &str) -> Result<(), Error> {
    check_keeps(path, equation)?;
    let (left, right) = equation.split_once("->").unwrap_or_default();
    match right.chars().find(|letter| !left.contains(*letter)) {
        None => Ok(()),
        Some(letter) => {
            let message = format!("`{equation}` adds `{letter}`; expected the same letters, or `broadcast`");
            Err(Error::invalid(format!("{path}.equation"), message))
        }
    }
}

/// The devices of each split divide the dimension.
fn check_divides(
    scope: &Scope<'_, '_, '_>,
    path: &str,
    split: &[Split],
    r#type: &TensorType,
) -> Result<(), Error> {
    for (index, (split, &value)) in split.iter().zip(&r#type.shape).enumerate() {
        let by = scope.graph.sizes.degrees.group(&split.0);
        if !value.is_multiple_of(by) {
            let axes: Vec<&str> = split.0.iter().map(|axis| axis.name()).collect();
            let divisor = axes.join(" * ");
            let field = Field::new(format!("{path}[{index}]"));
            return Err(Error::Indivisible { field, value, divisor, by, fits: Vec::new() });
        }
    }
    Ok(())
}

/// The part at `index` of the dropped dimension: a sum of which one term counts, so that every map stays a
/// projected permutation.
fn take<'c, 'a>(
    b: &Builder<'c, 'a>,
    path: &str,
    equation: &str,
    x: Val<'c, 'a>,
    index: u64,
) -> Result<Val<'c, 'a>, Error> {
    let (left, right) = equation.split_once("->").unwrap_or_default();
    let r#type = TensorType::of(x)?;
    let dropped: Vec<usize> = (0..left.len()).filter(|&i| !right.contains(&left[i..=i])).collect();
    let &[dimension] = dropped.as_slice() else {
        let message = format!("`{equation}` drops {} letters; expected one", dropped.len());
        return Err(Error::invalid(format!("{path}.equation"), message));
    };
    let extent = r#type.shape.get(dimension).copied().unwrap_or(0);
    if index >= extent {
        let message = format!("{index} is outside the dimension of {extent}");
        return Err(Error::invalid(format!("{path}.index"), message));
    }
    let ones: Vec<(char, u64)> =
        right.chars().filter(|letter| !left.contains(*letter)).map(|letter| (letter, 1)).collect();
    let element = r#type.element;
    let taken = b.structured_over(equation, &[x], &[], &ones, element, 0.0, |body| {
        let (at, wanted) = (body.index(right.len()), body.int(index as i64));
        let hit = body.cmp_i(Predicate::Eq, at, wanted);
        let zero = body.constant(0.0, element);
        let term = body.select(hit, Ref::Arg(0), zero);
        body.add(Ref::Arg(1), term)
    });
    taken.map_err(|error| Error::invalid(path, error.to_string()))
}

fn lookup<'c, 'a>(
    scope: &Scope<'_, 'c, 'a>,
    b: &Builder<'c, 'a>,
    (table, ids): (Val<'c, 'a>, Val<'c, 'a>),
    aligned: bool,
) -> Result<Val<'c, 'a>, t3c_ir::Error> {
    let unit = Unit::lookup(&TensorType::of(table)?, &TensorType::of(ids)?);
    let unit = if aligned { unit.aligned() } else { unit };
    Ok(nn::call_unit(b, scope.module.op(), &unit, &[table, ids])?[0])
}

fn attention<'c, 'a>(
    scope: &Scope<'_, 'c, 'a>,
    b: &Builder<'c, 'a>,
    path: &str,
    op: &Op,
) -> Result<Val<'c, 'a>, Error> {
    let Op::Attention { q, k, v, subtree_end, position, scale, softcap, window, aligned, .. } = op else {
        return Err(Error::invalid(path, "expected attention"));
    };
    let mut names = vec![("q", q), ("k", k), ("v", v), ("subtree_end", subtree_end)];
    match (position, window) {
        (Some(position), Some(_)) => names.push(("position", position)),
        (None, None) => {}
        (Some(_), None) => {
            return Err(Error::invalid(format!("{path}.position"), "only a `window` reads positions"));
        }
        (None, Some(_)) => {
            return Err(Error::invalid(format!("{path}.window"), "expected `position` (i32) beside it"));
        }
    }
    let arguments = names
        .iter()
        .map(|(key, name)| scope.value(name, &format!("{path}.{key}")))
        .collect::<Result<Vec<_>, _>>()?;
    let types = arguments.iter().map(|&value| TensorType::of(value)).collect::<Result<Vec<_>, _>>()?;
    if types[0].shape.len() != 5 {
        return Err(Error::invalid(format!("{path}.q"), format!("a {}; expected [N, K, G, C, E]", types[0])));
    }
    let mut unit = Unit::attention(&types[0]);
    for (key, number) in [("scale", scale), ("softcap", softcap)] {
        if number.is_some_and(|number| !(number.is_finite() && number > 0.0)) {
            return Err(Error::invalid(format!("{path}.{key}"), "expected a positive number"));
        }
    }
    if window == &Some(0) {
        return Err(Error::invalid(format!("{path}.window"), "expected a whole number of at least 1"));
    }
    unit = scale.map_or(unit.clone(), |scale| unit.clone().scaled(scale));
    unit = softcap.map_or(unit.clone(), |cap| unit.clone().softcapped(cap));
    unit = window.map_or(unit.clone(), |window| unit.clone().windowed(window));
    unit = if *aligned { unit.aligned() } else { unit };
    for ((key, _), (found, expected)) in names.iter().zip(types.iter().zip(&unit.arguments)) {
        if found != expected {
            return Err(Error::invalid(format!("{path}.{key}"), format!("a {found}; expected {expected}")));
        }
    }
    Ok(nn::call_unit(b, scope.module.op(), &unit, &arguments)?[0])
}
