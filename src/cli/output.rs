//! What every command does with its output: where it goes, and how numbers read.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::Serialize;

use super::Outcome;
use crate::{Error, files};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; nothing else goes to standard output.
    Json,
}

/// Writes to standard output.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a value as JSON, followed by a line feed.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&json(value)?)
}

/// A value as indented JSON, followed by a line feed.
pub fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Writes one line to standard error. That nobody reads it is no error.
pub fn message(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes `contents` to the file, or to standard output where there is none.
pub fn write(path: Option<&PathBuf>, contents: &[u8]) -> Outcome {
    match path {
        Some(path) => files::write(path, contents)?,
        None => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(contents)?;
            stdout.flush()?;
        }
    }
    Ok(())
}

/// Text on one line: what an error message promises.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The folder that a file would be written to exists, and the file itself is no folder. Called before work
/// that takes long.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Error::contents(path, "is a folder; expected the name of a file to write"));
    }
    if !folder.is_dir() {
        return Err(Error::contents(path, format!("there is no folder `{}`", folder.display())));
    }
    Ok(())
}

/// A time in the unit that leaves one to three digits before the point.
pub fn microseconds(value: f64) -> String {
    scaled(value * 1e-6, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")])
}

/// Bytes, by powers of 1000.
pub fn bytes(value: u64) -> String {
    match value {
        0..1000 => format!("{value} B"),
        _ => scaled(value as f64, &[(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")]),
    }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(size, _)| value.abs() >= *size).or(units.last());
    let (size, unit) = fits.copied().unwrap_or((1.0, ""));
    let value = value / size;
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(microseconds(1_234.0), "1.23 ms");
        assert_eq!(microseconds(0.5), "500 ns");
        assert_eq!(microseconds(0.0), "0.00 ns");
        assert_eq!(microseconds(12_345_678.0), "12.3 s");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(69_730_304), "69.7 MB");
        assert_eq!(bytes(123_456_789_000), "123 GB");
    }

    #[test]
    fn messages_are_one_line() {
        assert_eq!(one_line("a\n  b\tc "), "a b c");
    }
}
