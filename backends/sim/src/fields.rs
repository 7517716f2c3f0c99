//! Reads the fields of a system file, each exactly once, with errors that name file, line and field.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{Error, units::Dimension};

/// A file's text and name.
#[derive(Clone, Copy)]
pub(crate) struct Source<'s> {
    pub file: &'s str,
    pub text: &'s str,
}

impl Source<'_> {
    /// An error at the line of the field that `key` (such as `link.bandwidth`) names.
    pub fn field_error(&self, key: &str, message: String) -> Error {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        let start = Fields::root(*self).ok().and_then(|mut root| {
            let table = root.table(table).ok()?;
            Some(table.table.get(name)?.span().start)
        });
        self.error(start.unwrap_or(0), message)
    }

    fn error(&self, offset: usize, message: String) -> Error {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        Error::System { file: self.file.to_owned(), line, message }
    }
}

/// `source`'s text with the field at `key` (such as `link.bandwidth`) set to `value`, which stays on
/// the field's line.
pub(crate) fn with_field(source: Source, key: &str, value: &str) -> Result<String, Error> {
    let unknown = || source.error(0, format!("`{key}` is not a field of a system"));
    let mut table = Fields::root(source)?.table;
    let mut parts = key.split('.').peekable();
    loop {
        let name = parts.next().ok_or_else(unknown)?;
        let field = table.remove(name).ok_or_else(unknown)?;
        let span = field.span();
        match (field.into_inner(), parts.peek()) {
            (DeValue::Table(inner), Some(_)) => table = inner,
            (DeValue::Table(_), None) | (_, Some(_)) => return Err(unknown()),
            (old, None) => {
                let is_text = matches!(old, DeValue::String(_));
                let literal = if is_text { format!("{value:?}") } else { value.to_owned() };
                let mut text = source.text.to_owned();
                text.replace_range(span, &literal);
                return Ok(text);
            }
        }
    }
}

/// One table, from which fields are taken; what is left is unknown.
pub(crate) struct Fields<'s> {
    source: Source<'s>,
    path: String,
    start: usize,
    table: DeTable<'s>,
}

impl<'s> Fields<'s> {
    pub fn root(source: Source<'s>) -> Result<Self, Error> {
        let table = DeTable::parse(source.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            source.error(offset, error.message().to_owned())
        })?;
        Ok(Self { source, path: String::new(), start: 0, table: table.into_inner() })
    }

    /// An error about the field `name`, at the table's start.
    pub fn error(&self, name: &str, message: &str) -> Error {
        self.source.error(self.start, format!("`{}`: {message}", self.name(name)))
    }

    fn name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &str) -> Result<(Range<usize>, DeValue<'s>), Error> {
        let field: Option<Spanned<DeValue>> = self.table.remove(name);
        let field = field
            .ok_or_else(|| self.source.error(self.start, format!("`{}` is missing", self.name(name))))?;
        Ok((field.span(), field.into_inner()))
    }

    fn wrong(&self, span: &Range<usize>, name: &str, message: &str) -> Error {
        self.source.error(span.start, format!("`{}` {message}", self.name(name)))
    }

    pub fn table(&mut self, name: &str) -> Result<Fields<'s>, Error> {
        let (span, value) = self.take(name)?;
        match value {
            DeValue::Table(table) => {
                Ok(Fields { source: self.source, path: self.name(name), start: span.start, table })
            }
            other => Err(self.wrong(&span, name, &format!("is {}, expected a table", kind(&other)))),
        }
    }

    pub fn text(&mut self, name: &str) -> Result<String, Error> {
        let (span, value) = self.take(name)?;
        match value {
            DeValue::String(text) => Ok(text.into_owned()),
            other => Err(self.wrong(&span, name, &format!("is {}, expected a string", kind(&other)))),
        }
    }

    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<T, Error> {
        let start = self.table.get(name).map_or(self.start, |value| value.span().start);
        let text = self.text(name)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        let known = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let message = format!("`{}`: `{text}` is not one of {known}", self.name(name));
        Err(self.source.error(start, message))
    }

    /// A positive whole number.
    pub fn count(&mut self, name: &str) -> Result<u64, Error> {
        let (span, value) = self.take(name)?;
        self.whole(&span, name, &value)
    }

    /// Whether the table holds `name`.
    pub fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// From 1 to 100.
    pub fn percent(&mut self, name: &str) -> Result<u64, Error> {
        let (span, value) = self.take(name)?;
        match self.whole(&span, name, &value)? {
            percent @ 1..=100 => Ok(percent),
            _ => Err(self.wrong(&span, name, "is more than 100 percent")),
        }
    }

    /// A whole number that may be zero.
    pub fn index(&mut self, name: &str) -> Result<u64, Error> {
        let is_zero = matches!(self.table.get(name).map(Spanned::get_ref), Some(DeValue::Integer(number)) if number.as_str() == "0");
        if is_zero {
            self.take(name)?;
            return Ok(0);
        }
        self.count(name)
    }

    /// Exactly `N` positive whole numbers.
    pub fn counts<const N: usize>(&mut self, name: &str) -> Result<[u64; N], Error> {
        let (span, value) = self.take(name)?;
        let DeValue::Array(values) = value else {
            return Err(self.wrong(&span, name, &format!("is {}, expected a list", kind(&value))));
        };
        let numbers = values
            .iter()
            .map(|value| self.whole(&value.span(), name, value.get_ref()))
            .collect::<Result<Vec<u64>, Error>>()?;
        numbers.try_into().map_err(|_| self.wrong(&span, name, &format!("must hold {N} whole numbers")))
    }

    fn whole(&self, span: &Range<usize>, name: &str, value: &DeValue) -> Result<u64, Error> {
        let DeValue::Integer(integer) = value else {
            let message = format!("is {}, expected a whole number", kind(value));
            return Err(self.wrong(span, name, &message));
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| self.wrong(span, name, "is too large"))?;
        match number {
            0 => Err(self.wrong(span, name, "is zero: it must be positive")),
            _ if number < 0 => Err(self.wrong(span, name, "is negative")),
            _ if number > 1 << 20 => Err(self.wrong(span, name, "is too large")),
            _ => Ok(number as u64),
        }
    }

    /// A number with its unit.
    pub fn quantity(&mut self, name: &str, dimension: Dimension) -> Result<u64, Error> {
        let (span, value) = self.take(name)?;
        match value {
            DeValue::String(text) => dimension.parse(&text).map_err(|message| {
                self.source.error(span.start, format!("`{}`: {message}", self.name(name)))
            }),
            DeValue::Integer(_) | DeValue::Float(_) => {
                let example = dimension.example();
                let message = format!("is a number without unit, expected one such as \"{example}\"");
                Err(self.wrong(&span, name, &message))
            }
            other => Err(self.wrong(&span, name, &format!("is {}, expected a string", kind(&other)))),
        }
    }

    /// All fields have been taken.
    pub fn finish(self) -> Result<(), Error> {
        match self.table.iter().next() {
            None => Ok(()),
            Some((key, _)) => {
                let name = self.name(key.get_ref());
                Err(self.source.error(key.span().start, format!("`{name}` is not a field of a system")))
            }
        }
    }
}

fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
