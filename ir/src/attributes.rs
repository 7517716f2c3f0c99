//! Reading and making attributes without ceremony.

use melior::ir::{
    Attribute, Identifier,
    attribute::{
        ArrayAttribute, BoolAttribute, DenseI64ArrayAttribute, FlatSymbolRefAttribute, IntegerAttribute,
        StringAttribute,
    },
    operation::OperationLike,
    r#type::IntegerType,
};

use crate::Op;

/// A named attribute.
pub type Named<'c> = (Identifier<'c>, Attribute<'c>);

/// `name = value`.
pub fn named<'c>(context: &'c melior::Context, name: &str, value: impl Into<Attribute<'c>>) -> Named<'c> {
    (Identifier::new(context, name), value.into())
}

/// A string attribute's value.
pub fn string(operation: Op<'_, '_>, name: &str) -> Option<String> {
    let attribute = operation.attribute(name).ok()?;
    StringAttribute::try_from(attribute)
        .map(|attribute| attribute.value().to_owned())
        .or_else(|_| FlatSymbolRefAttribute::try_from(attribute).map(|symbol| symbol.value().to_owned()))
        .ok()
}

/// An integer attribute's value.
pub fn integer(operation: Op<'_, '_>, name: &str) -> Option<i64> {
    IntegerAttribute::try_from(operation.attribute(name).ok()?).ok().map(|attribute| attribute.value())
}

/// The values of an integer array attribute (`array<i64: …>` or `array<i16: …>`).
pub fn integers(operation: Op<'_, '_>, name: &str) -> Option<Vec<i64>> {
    integers_of(operation.attribute(name).ok()?)
}

/// The values of an integer array attribute (`array<i64: …>` or `array<i16: …>`).
pub fn integers_of(attribute: Attribute<'_>) -> Option<Vec<i64>> {
    if let Some(values) = crate::ffi::i16_array_values(attribute) {
        return Some(values.into_iter().map(i64::from).collect());
    }
    let array = DenseI64ArrayAttribute::try_from(attribute).ok()?;
    (0..array.len()).map(|index| array.element(index).ok()).collect()
}

/// The elements of an array attribute.
pub fn array<'c>(operation: Op<'c, '_>, name: &str) -> Option<Vec<Attribute<'c>>> {
    array_of(operation.attribute(name).ok()?)
}

/// The elements of an array attribute.
pub fn array_of<'c>(attribute: Attribute<'c>) -> Option<Vec<Attribute<'c>>> {
    let array = ArrayAttribute::try_from(attribute).ok()?;
    (0..array.len()).map(|index| array.element(index).ok()).collect()
}

/// A string attribute.
pub fn string_attr<'c>(context: &'c melior::Context, value: &str) -> Attribute<'c> {
    StringAttribute::new(context, value).into()
}

/// A 64-bit integer attribute.
pub fn integer_attr<'c>(context: &'c melior::Context, value: i64) -> Attribute<'c> {
    IntegerAttribute::new(IntegerType::new(context, 64).into(), value).into()
}

/// An `index` attribute.
pub fn index_attr<'c>(context: &'c melior::Context, value: i64) -> Attribute<'c> {
    IntegerAttribute::new(melior::ir::Type::index(context), value).into()
}

/// A 64-bit integer array attribute.
pub fn integers_attr<'c>(context: &'c melior::Context, values: &[i64]) -> Attribute<'c> {
    DenseI64ArrayAttribute::new(context, values).into()
}

/// A symbol reference.
pub fn symbol_attr<'c>(context: &'c melior::Context, name: &str) -> Attribute<'c> {
    FlatSymbolRefAttribute::new(context, name).into()
}

/// A boolean attribute.
pub fn bool_attr(context: &melior::Context, value: bool) -> Attribute<'_> {
    BoolAttribute::new(context, value).into()
}
