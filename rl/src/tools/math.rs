//! The 17 functions of the Berkeley function-calling leaderboard's `math_api`, with its parameter
//! names and its results. Where the original computes with adjustable precision (`square_root`,
//! `logarithm`) the result is the double rounded to that many significant digits.

use super::{CallError, Kind, Observation, Parameter, Tool};

const A_B: &[Parameter] = &[
    Parameter::required("a", Kind::Number, "First number."),
    Parameter::required("b", Kind::Number, "Second number."),
];
const NUMBERS: &[Parameter] = &[Parameter::required("numbers", Kind::Numbers, "The numbers, at least one.")];
const UNITS: &[Parameter] = &[
    Parameter::required("value", Kind::Number, "Value to convert."),
    Parameter::required("unit_in", Kind::Text, "Unit of the value."),
    Parameter::required("unit_out", Kind::Text, "Unit to convert to."),
];

/// In alphabetical order.
pub(super) static TOOLS: [Tool; 17] = [
    Tool {
        name: "absolute_value",
        description: "The absolute value of a number.",
        parameters: &[Parameter::required("number", Kind::Number, "The number.")],
        run: |arguments, _| Ok(arguments.number("number")?.abs()),
    },
    Tool {
        name: "add",
        description: "Adds two numbers.",
        parameters: A_B,
        run: |arguments, _| Ok(arguments.number("a")? + arguments.number("b")?),
    },
    Tool {
        name: "divide",
        description: "Divides one number by another.",
        parameters: A_B,
        run: |arguments, _| {
            let (a, b) = (arguments.number("a")?, arguments.number("b")?);
            if b == 0.0 { Err(CallError::Undefined("cannot divide by zero")) } else { Ok(a / b) }
        },
    },
    Tool {
        name: "imperial_si_conversion",
        description: "Converts a value between imperial and SI units.",
        parameters: UNITS,
        run: |arguments, _| {
            let value = arguments.number("value")?;
            imperial(value, arguments.text("unit_in")?, arguments.text("unit_out")?)
        },
    },
    Tool {
        name: "logarithm",
        description: "The logarithm of a number to a base, with adjustable precision.",
        parameters: &[
            Parameter::required("value", Kind::Number, "The number."),
            Parameter::required("base", Kind::Number, "The base of the logarithm."),
            Parameter::required("precision", Kind::Integer, "Significant digits of the result."),
        ],
        run: |arguments, _| {
            let logarithm = arguments.number("value")?.ln() / arguments.number("base")?.ln();
            significant(logarithm, arguments.number("precision")?)
        },
    },
    Tool {
        name: "max_value",
        description: "The largest number of a list.",
        parameters: NUMBERS,
        run: |arguments, _| {
            let numbers = arguments.numbers("numbers")?;
            numbers.into_iter().reduce(f64::max).ok_or(EMPTY)
        },
    },
    Tool {
        name: "mean",
        description: "The mean of a list of numbers.",
        parameters: NUMBERS,
        run: |arguments, _| mean(&arguments.numbers("numbers")?),
    },
    Tool {
        name: "min_value",
        description: "The smallest number of a list.",
        parameters: NUMBERS,
        run: |arguments, _| {
            let numbers = arguments.numbers("numbers")?;
            numbers.into_iter().reduce(f64::min).ok_or(EMPTY)
        },
    },
    Tool {
        name: "multiply",
        description: "Multiplies two numbers.",
        parameters: A_B,
        run: |arguments, _| Ok(arguments.number("a")? * arguments.number("b")?),
    },
    Tool {
        name: "percentage",
        description: "What percentage one number is of another.",
        parameters: &[
            Parameter::required("part", Kind::Number, "The part."),
            Parameter::required("whole", Kind::Number, "The whole."),
        ],
        run: |arguments, _| {
            let (part, whole) = (arguments.number("part")?, arguments.number("whole")?);
            if whole == 0.0 {
                return Err(CallError::Undefined("whole value cannot be zero"));
            }
            Ok(part / whole * 100.0)
        },
    },
    Tool {
        name: "power",
        description: "Raises a number to a power.",
        parameters: &[
            Parameter::required("base", Kind::Number, "The base."),
            Parameter::required("exponent", Kind::Number, "The exponent."),
        ],
        run: |arguments, _| Ok(arguments.number("base")?.powf(arguments.number("exponent")?)),
    },
    Tool {
        name: "round_number",
        description: "Rounds a number to a number of decimal places; exact halves to even.",
        parameters: &[
            Parameter::required("number", Kind::Number, "The number to round."),
            Parameter::optional("decimal_places", Kind::Integer, "Decimal places, 0 if absent."),
        ],
        run: |arguments, _| {
            let places = arguments.number("decimal_places").unwrap_or(0.0);
            round_half_even(arguments.number("number")?, places)
        },
    },
    Tool {
        name: "si_unit_conversion",
        description: "Converts a length between SI units (km, m, cm, mm, um, nm).",
        parameters: UNITS,
        run: |arguments, _| {
            let (from, to) = (arguments.text("unit_in")?, arguments.text("unit_out")?);
            match (metres(from), metres(to)) {
                (Some(a), Some(b)) => Ok(arguments.number("value")? * a * (1.0 / b)),
                _ => Err(CallError::Units(from.to_owned(), to.to_owned())),
            }
        },
    },
    Tool {
        name: "square_root",
        description: "The square root of a number, with adjustable precision.",
        parameters: &[
            Parameter::required("number", Kind::Number, "The number."),
            Parameter::required("precision", Kind::Integer, "Significant digits of the result."),
        ],
        run: |arguments, _| {
            let number = arguments.number("number")?;
            if number < 0.0 {
                return Err(CallError::Undefined("no square root of a negative number"));
            }
            significant(number.sqrt(), arguments.number("precision")?)
        },
    },
    Tool {
        name: "standard_deviation",
        description: "The population standard deviation of a list of numbers.",
        parameters: NUMBERS,
        run: |arguments, _| {
            let numbers = arguments.numbers("numbers")?;
            let centre = mean(&numbers)?;
            let squares: f64 = numbers.iter().map(|x| (x - centre).powi(2)).sum();
            Ok((squares / numbers.len() as f64).sqrt())
        },
    },
    Tool {
        name: "subtract",
        description: "Subtracts the second number from the first.",
        parameters: A_B,
        run: |arguments, _| Ok(arguments.number("a")? - arguments.number("b")?),
    },
    Tool {
        name: "sum_values",
        description: "The sum of a list of numbers.",
        parameters: NUMBERS,
        run: |arguments, _| {
            let numbers = arguments.numbers("numbers")?;
            if numbers.is_empty() { Err(EMPTY) } else { Ok(numbers.iter().sum()) }
        },
    },
];

const EMPTY: CallError = CallError::Undefined("the list is empty");

fn mean(numbers: &[f64]) -> Observation {
    if numbers.is_empty() {
        return Err(EMPTY);
    }
    Ok(numbers.iter().sum::<f64>() / numbers.len() as f64)
}

fn metres(unit: &str) -> Option<f64> {
    let table = [("km", 1e3), ("m", 1.0), ("cm", 1e-2), ("mm", 1e-3), ("um", 1e-6), ("nm", 1e-9)];
    table.into_iter().find_map(|(name, metres)| (name == unit).then_some(metres))
}

fn imperial(value: f64, from: &str, to: &str) -> Observation {
    if from == to {
        return Ok(value);
    }
    let factor = match (from, to) {
        ("cm", "in") => 0.393_701,
        ("in", "cm") => 2.54,
        ("m", "ft") => 3.280_84,
        ("ft", "m") => 0.304_8,
        ("m", "yd") => 1.093_61,
        ("yd", "m") => 0.914_4,
        ("km", "miles") => 0.621_371,
        ("miles", "km") => 1.609_34,
        ("kg", "lb") => 2.204_62,
        ("lb", "kg") => 0.453_592,
        ("celsius", "fahrenheit") => return Ok(value * 1.8 + 32.0),
        ("fahrenheit", "celsius") => return Ok((value - 32.0) * (5.0 / 9.0)),
        _ => return Err(CallError::Units(from.to_owned(), to.to_owned())),
    };
    Ok(value * factor)
}

/// Rounds the exact decimal value of the double, so 2.675 (a little below) becomes 2.67.
fn round_half_even(number: f64, places: f64) -> Observation {
    if !(-300.0..=300.0).contains(&places) {
        return Err(CallError::Undefined("too many decimal places"));
    }
    if places < 0.0 {
        let unit = 10f64.powi(-places as i32);
        return Ok((number / unit).round_ties_even() * unit);
    }
    parse(&format!("{number:.*}", places as usize))
}

fn significant(number: f64, digits: f64) -> Observation {
    if !(1.0..=300.0).contains(&digits) {
        return Err(CallError::Undefined("precision must be 1 to 300 digits"));
    }
    if !number.is_finite() {
        return Err(CallError::Undefined("the result is not a finite number"));
    }
    parse(&format!("{number:.*e}", digits as usize - 1))
}

fn parse(text: &str) -> Observation {
    text.parse().map_err(|_| CallError::Undefined("the result is not a number"))
}
