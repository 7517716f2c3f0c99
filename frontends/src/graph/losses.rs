//! What training minimises: loss operations, and the seeded loss of graphs that name none.

use t3c_ir::{Builder, Element, Ref, TensorType, Val};

use crate::{error::Error, nn};

/// A loss is one float.
pub(super) fn check(path: &str, name: &str, value: Val<'_, '_>) -> Result<(), Error> {
    let r#type = TensorType::of(value)?;
    if r#type.shape.is_empty() && r#type.element != Element::I32 {
        return Ok(());
    }
    Err(Error::invalid(path, format!("`{name}` is a {type}; expected a scalar", r#type = r#type)))
}

/// `Σ seed · result`: its gradient with respect to a result is that result's seed.
pub(super) fn seeded<'c, 'a>(
    b: &Builder<'c, 'a>,
    results: &[Val<'c, 'a>],
    seeds: &[Val<'c, 'a>],
) -> Result<Val<'c, 'a>, Error> {
    let mut loss: Option<Val<'c, 'a>> = None;
    for (&result, &seed) in results.iter().zip(seeds) {
        let r#type = TensorType::of(result)?;
        let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
        let wide = nn::wide(r#type.element);
        let term = b.structured(&format!("{dims},{dims}->"), &[result, seed], wide, 0.0, |body| {
            let [x, seed] = [Ref::Arg(0), Ref::Arg(1)].map(|value| nn::cast(body, value, wide));
            let product = body.mul(x, seed);
            body.add(Ref::Arg(2), product)
        })?;
        loss = Some(match loss {
            Some(sum) => b.add(sum, term)?,
            None => term,
        });
    }
    loss.ok_or_else(|| Error::invalid("outputs", "the model has none; expected at least one"))
}

/// `−Σ weight · log softmax(logits)[target]`, every weight being one over the rows where there are none.
pub(super) fn cross_entropy<'c, 'a>(
    b: &Builder<'c, 'a>,
    path: &str,
    logits: Val<'c, 'a>,
    targets: Val<'c, 'a>,
    weights: Option<Val<'c, 'a>>,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(logits)?;
    let &[rows, _] = r#type.shape.as_slice() else {
        let message = format!("a {type}; expected [rows, classes]", r#type = r#type);
        return Err(Error::invalid(format!("{path}.logits"), message));
    };
    let expected = TensorType::new([rows], Element::I32);
    let found = TensorType::of(targets)?;
    if found != expected {
        return Err(Error::invalid(format!("{path}.targets"), format!("a {found}; expected {expected}")));
    }
    let wide = nn::wide(r#type.element);
    let logits = nn::convert(b, logits, wide)?;
    let logp = nn::log_probability(b, logits, targets)?.logp;
    let loss = match weights {
        Some(weights) => b.structured("m,m->", &[logp, weights], wide, 0.0, |body| {
            let weight = nn::cast(body, Ref::Arg(1), wide);
            let term = body.mul(Ref::Arg(0), weight);
            body.sub(Ref::Arg(2), term)
        }),
        None => b.structured("m->", &[logp], wide, 0.0, |body| {
            let share = body.constant(-1.0 / rows as f64, wide);
            let term = body.mul(Ref::Arg(0), share);
            body.add(Ref::Arg(1), term)
        }),
    };
    Ok(loss?)
}

/// `Σ (x − y)² / elements`.
pub(super) fn mean_squared_error<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    y: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
    let wide = nn::wide(r#type.element);
    let share = 1.0 / r#type.elements() as f64;
    Ok(b.structured(&format!("{dims},{dims}->"), &[x, y], wide, 0.0, |body| {
        let [x, y] = [Ref::Arg(0), Ref::Arg(1)].map(|value| nn::cast(body, value, wide));
        let difference = body.sub(x, y);
        let square = body.mul(difference, difference);
        let share = body.constant(share, wide);
        let term = body.mul(square, share);
        body.add(Ref::Arg(2), term)
    })?)
}
