//! Tensor types as plain data.

use melior::ir::{
    Type, TypeLike,
    r#type::{DimSize, IntegerType, RankedTensorType},
};
use t3c_schedule::Element;

use crate::{Error, Val, ffi};

/// A ranked tensor of static shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Element type.
    pub element: Element,
}

impl TensorType {
    /// A tensor type.
    pub fn new(shape: impl Into<Vec<u64>>, element: Element) -> Self {
        Self { shape: shape.into(), element }
    }

    /// The type of a value.
    ///
    /// # Errors
    /// When it is not a ranked tensor of static shape and known element type.
    pub fn of(value: Val<'_, '_>) -> Result<Self, Error> {
        use melior::ir::ValueLike;
        Self::from_mlir(value.r#type()).map_err(|error| match (error, ffi::value_home(value)) {
            (Error::Mlir(message), Some(home)) => Error::at(home, message),
            (error, _) => error,
        })
    }

    /// A type from MLIR. A scalar counts as a tensor of rank 0.
    ///
    /// # Errors
    /// When it is not a ranked tensor of static shape and known element type, nor a scalar.
    pub fn from_mlir(r#type: Type<'_>) -> Result<Self, Error> {
        let Ok(tensor) = RankedTensorType::try_from(r#type) else {
            return element_of(r#type)
                .map(|element| TensorType::new([], element))
                .ok_or_else(|| Error::Mlir(format!("expected a ranked tensor, found {type}")));
        };
        use melior::ir::r#type::ShapedTypeLike;
        let shape = (0..tensor.rank())
            .map(|dimension| match tensor.dim_size(dimension)? {
                DimSize::Static(extent) => Ok(extent),
                DimSize::Dynamic => {
                    Err(Error::Mlir(format!("{type} has a dynamic dimension; give it a size")))
                }
            })
            .collect::<Result<_, _>>()?;
        let element = element_of(tensor.element())
            .ok_or_else(|| Error::Mlir(format!("unsupported element type {}", tensor.element())))?;
        Ok(Self { shape, element })
    }

    /// The MLIR type.
    pub fn to_mlir<'c>(&self, context: &'c melior::Context) -> Type<'c> {
        tensor_type(context, &self.shape, self.element)
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |all, &extent| all.saturating_mul(extent))
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tensor<")?;
        for extent in &self.shape {
            write!(f, "{extent}x")?;
        }
        write!(f, "{}>", element_name(self.element))
    }
}

/// The name of an element type in MLIR.
pub fn element_name(element: Element) -> &'static str {
    match element {
        Element::F64 => "f64",
        Element::F32 => "f32",
        Element::F16 => "f16",
        Element::Bf16 => "bf16",
        Element::I64 => "i64",
        Element::I32 => "i32",
        Element::I1 => "i1",
    }
}

/// The element type of an MLIR scalar type; `index` counts as `i64`.
pub fn element_of(r#type: Type<'_>) -> Option<Element> {
    if r#type.is_index() {
        return Some(Element::I64);
    }
    if !r#type.is_integer() {
        return ffi::float_of(r#type);
    }
    let integer = IntegerType::try_from(r#type).ok().filter(IntegerType::is_signless)?;
    match integer.width() {
        64 => Some(Element::I64),
        32 => Some(Element::I32),
        1 => Some(Element::I1),
        _ => None,
    }
}

/// The MLIR type of an element.
pub fn element_type(context: &melior::Context, element: Element) -> Type<'_> {
    match element {
        Element::F64 => Type::float64(context),
        Element::F32 => Type::float32(context),
        Element::F16 => Type::float16(context),
        Element::Bf16 => Type::bfloat16(context),
        Element::I64 => IntegerType::new(context, 64).into(),
        Element::I32 => IntegerType::new(context, 32).into(),
        Element::I1 => IntegerType::new(context, 1).into(),
    }
}

/// The MLIR type of a tensor.
pub fn tensor_type<'c>(context: &'c melior::Context, shape: &[u64], element: Element) -> Type<'c> {
    RankedTensorType::new(shape, element_type(context, element), None).into()
}
