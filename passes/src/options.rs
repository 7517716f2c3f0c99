//! Options of a pass, as a pipeline writes them: `t3-fuse{policy=always system=t3-80cu}`.

use crate::pass::PassError;

/// The `key=value` pairs of `text`.
///
/// # Errors
/// A word without `=`, or a key that is not in `known`.
pub fn parse<'t>(
    pass: &'static str,
    text: &'t str,
    known: &[&str],
) -> Result<Vec<(&'t str, &'t str)>, PassError> {
    text.split_whitespace()
        .map(|word| {
            word.split_once('=').filter(|(key, _)| known.contains(key)).ok_or_else(|| PassError::Option {
                pass,
                option: word.to_owned(),
                expected: match known {
                    [] => "no options".to_owned(),
                    known => format!("one of {}, as key=value", known.join(", ")),
                },
            })
        })
        .collect()
}

/// Checks that a pass without options got none.
///
/// # Errors
/// When there is any.
pub fn none(pass: &'static str, text: &str) -> Result<(), PassError> {
    parse(pass, text, &[]).map(drop)
}

/// The number that an option holds.
///
/// # Errors
/// When `value` is no positive number.
pub fn positive<T>(pass: &'static str, key: &str, value: &str) -> Result<T, PassError>
where
    T: std::str::FromStr + PartialOrd + Default,
{
    let number = value.parse().ok().filter(|number| *number > T::default());
    number.ok_or_else(|| PassError::Option {
        pass,
        option: format!("{key}={value}"),
        expected: "a positive number".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_bad_numbers_are_named() {
        assert_eq!(parse("t3-fuse", "policy=always", &["policy"]).unwrap(), [("policy", "always")]);
        let error = parse("t3-fuse", "polcy=always", &["policy", "system"]).unwrap_err().to_string();
        assert_eq!(error, "t3-fuse: option `polcy=always`: expected one of policy, system, as key=value");
        assert!(none("t3-outline", "x").is_err() && none("t3-outline", " ").is_ok());
        assert_eq!(positive::<u64>("p", "blocks", "8").unwrap(), 8);
        assert!(positive::<u64>("p", "blocks", "0").is_err() && positive::<f64>("p", "b", "-1").is_err());
    }
}
