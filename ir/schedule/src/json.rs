//! The JSON form, with errors that name the field.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Chunk, Collective, Compute, Consume, Error, Fused, SCHEMA, Schedule, StepKind};

/// Reads a schedule and verifies it.
pub fn from_json(text: &str) -> Result<Schedule, Error> {
    let value: Value = serde_json::from_str(text).map_err(|error| Error::Syntax {
        line: error.line(),
        column: error.column(),
        message: without_position(&error),
    })?;
    if let Some(found) = value.get("schema").and_then(Value::as_str)
        && found != SCHEMA
    {
        return Err(Error::Schema { found: found.to_owned() });
    }
    let schedule = serde_json::from_value(value.clone()).map_err(|error| match locate(&value) {
        Some(error) => error,
        None => Error::Field { field: "schedule".to_owned(), message: error.to_string() },
    })?;
    crate::verify(&schedule)?;
    Ok(schedule)
}

/// The schedule as indented JSON.
pub fn to_json(schedule: &Schedule) -> Result<String, Error> {
    serde_json::to_string_pretty(schedule)
        .map_err(|error| Error::Field { field: "schedule".to_owned(), message: error.to_string() })
}

/// Reads a file.
pub fn load(path: &Path) -> Result<Schedule, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::File { path: path.display().to_string(), source })?;
    from_json(&text)
}

/// Writes a file.
pub fn save(schedule: &Schedule, path: &Path) -> Result<(), Error> {
    std::fs::write(path, to_json(schedule)?)
        .map_err(|source| Error::File { path: path.display().to_string(), source })
}

/// The message without serde's own ` at line …`.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split_once(" at line ").map_or(text.clone(), |(message, _)| message.to_owned())
}

/// The innermost part that cannot be read. Called when the whole cannot, so that reading good files
/// costs nothing.
fn locate(value: &Value) -> Option<Error> {
    if let Some(axes) = value.pointer("/grid/axes").and_then(Value::as_array) {
        each::<crate::Axis>(axes, "grid.axes").or_else(|| programs(value))
    } else {
        read::<crate::Grid>(value.get("grid")?, "grid")
    }
}

fn programs(value: &Value) -> Option<Error> {
    for (index, program) in value.get("programs")?.as_array()?.iter().enumerate() {
        let at = format!("programs[{index}]");
        let buffers = program.get("buffers").and_then(Value::as_array);
        let steps = program.get("steps").and_then(Value::as_array);
        let found = buffers
            .and_then(|buffers| each::<crate::Buffer>(buffers, &format!("{at}.buffers")))
            .or_else(|| {
                steps?
                    .iter()
                    .enumerate()
                    .find_map(|(number, value)| step(value, &format!("{at}.steps[{number}]")))
            })
            .or_else(|| read::<crate::Program>(program, &at));
        if found.is_some() {
            return found;
        }
    }
    None
}

fn step(value: &Value, at: &str) -> Option<Error> {
    let kind = value.get("kind")?;
    let part = |name: &str| kind.get(name).map(|part| (part, format!("{at}.kind.{name}")));
    let inside = part("compute").and_then(|(value, at)| read::<Compute>(value, &at)).or_else(|| {
        let (fused, at) = part("fused").or_else(|| part("consume"))?;
        let list = |name: &str| fused.get(name).and_then(Value::as_array);
        list("producers")
            .and_then(|list| each::<Compute>(list, &format!("{at}.producers")))
            .or_else(|| list("consumers").and_then(|l| each::<Compute>(l, &format!("{at}.consumers"))))
            .or_else(|| list("chunks").and_then(|list| each::<Chunk>(list, &format!("{at}.chunks"))))
            .or_else(|| read::<Collective>(fused.get("collective")?, &format!("{at}.collective")))
            .or_else(|| match kind.get("fused") {
                Some(_) => read::<Fused>(fused, &at),
                None => read::<Consume>(fused, &at),
            })
    });
    inside
        .or_else(|| part("collective").and_then(|(value, at)| read::<Collective>(value, &at)))
        .or_else(|| read::<StepKind>(kind, &format!("{at}.kind")))
        .or_else(|| read::<crate::Step>(value, at))
}

fn each<T: DeserializeOwned>(values: &[Value], at: &str) -> Option<Error> {
    values.iter().enumerate().find_map(|(index, value)| read::<T>(value, &format!("{at}[{index}]")))
}

fn read<T: DeserializeOwned>(value: &Value, at: &str) -> Option<Error> {
    let error = T::deserialize(value).err()?;
    Some(Error::Field { field: at.to_owned(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn edited(from: &str, to: &str) -> String {
        let text = serde_json::to_string(&testing::gemm_reduce_scatter(8, 6, 4, 4)).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        from_json(&text.replacen(from, to, 1)).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let schedule = testing::gemm_reduce_scatter(8, 6, 4, 4);
        assert_eq!(from_json(&to_json(&schedule).unwrap()).unwrap(), schedule);
    }

    /// A gather with a reader, an all-to-all of padded rows, and a transfer.
    fn every_other_step() -> crate::Schedule {
        use crate::*;
        let mut schedule = testing::gemm_reduce_scatter(8, 6, 4, 4);
        let program = &mut schedule.programs[0];
        let gather = |kind, input, output, concatenate| Collective {
            kind,
            axes: vec![0],
            dimension: if kind == CollectiveKind::AllToAll { 1 } else { 0 },
            concatenate,
            reduction: Reduction::Sum,
            bytes: 0,
            algorithm: Algorithm::Ring,
            input,
            output,
        };
        let buffer =
            |shape: &[u64]| Buffer { name: "b".into(), element: Element::F16, shape: shape.to_vec() };
        program.buffers = vec![buffer(&[2, 4]), buffer(&[8, 4]), buffer(&[8, 4]), buffer(&[32, 1])];
        (program.arguments, program.results) = (vec![0], vec![3]);
        let collective = Collective { bytes: 64, ..gather(CollectiveKind::AllGather, 0, 1, None) };
        let copy = Compute { work: Work::Copy, kernel: None, reads: vec![1], writes: vec![2] };
        let arrivals = configure_arrivals(CollectiveKind::AllGather, Algorithm::Ring, 4).unwrap();
        let consume = Consume { collective, dimension: 0, arrivals, block: 2, consumers: vec![copy] };
        let exchange = Collective { bytes: 40, ..gather(CollectiveKind::AllToAll, 2, 3, Some(0)) };
        let kinds = [
            StepKind::Consume(consume),
            StepKind::Transfer { to: 1, buffer: 2 },
            StepKind::Collective(exchange),
        ];
        let step = |(id, kind)| Step { id, after: vec![], location: "here".into(), kind };
        program.steps = kinds.into_iter().enumerate().map(step).collect();
        connect(&mut schedule);
        schedule
    }

    #[test]
    fn consumed_gathers_exchanges_and_transfers_are_read_again_too() {
        let schedule = every_other_step();
        crate::verify(&schedule).unwrap();
        assert_eq!(from_json(&to_json(&schedule).unwrap()).unwrap(), schedule);
        let expected = "\
  0: consume %1:8x4xf16 = all_gather %0:2x4xf16 over tp along 0, blocks of 2 // here
      part d+0: own, to +3
      part d+1: from +1, to +3
      part d+2: from +1, to +3
      part d+3: from +1
      %2:8x4xf16 = copy %1:8x4xf16
  1 after 0: send %2:8x4xf16 to +1 // here
  2 after 1: %3:32x1xf16 = all_to_all %2:8x4xf16 over tp along 1 to 0, 40 of 64 bytes // here
";
        assert!(schedule.to_string().ends_with(expected), "{schedule}");
        let mut broken = schedule;
        let crate::StepKind::Consume(consume) = &mut broken.programs[0].steps[0].kind else { unreachable!() };
        consume.arrivals.swap(0, 1);
        let error = crate::verify(&broken).unwrap_err().to_string();
        assert_eq!(error, "program `main`, step 0 (here): a device's own part must come first, from itself");
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(
            edited("\"block\":2", "\"block\":\"2\""),
            "`programs[0].steps[0].kind.fused`: invalid type: string \"2\", expected u64"
        );
        assert_eq!(
            edited("\"threshold\":0,", ""),
            "`programs[0].steps[0].kind.fused.chunks[0]`: missing field `threshold`"
        );
        assert_eq!(
            edited("\"element\":\"f16\"", "\"element\":\"f17\""),
            "`programs[0].buffers[0]`: unknown variant `f17`, expected one of `f64`, `f32`, `f16`, `bf16`, `i64`, `i32`, `i1`"
        );
        assert_eq!(
            edited("\"size\":4", "\"size\":-4"),
            "`grid.axes[0]`: invalid value: integer `-4`, expected u32"
        );
        assert!(edited("\"all_gather\"", "\"gather\"").starts_with("`programs[0].steps[1].kind.collective`"));
        assert_eq!(edited("t3c.schedule/1", "x"), "schema `x` is not `t3c.schedule/1`");
    }

    #[test]
    fn truncated_text_is_a_syntax_error_with_its_place() {
        let error = from_json("{\n  \"schema\":").unwrap_err().to_string();
        assert_eq!(error, "line 2, column 11: EOF while parsing a value");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("no/such.json")).unwrap_err().to_string();
        assert!(error.starts_with("no/such.json: "), "{error}");
    }
}
