//! Functions, calls and the device grid of a module.

use melior::ir::{
    Attribute, Block, BlockLike, Identifier, Location, Region, RegionLike, Type,
    attribute::{ArrayAttribute, DictionaryAttribute, StringAttribute, TypeAttribute},
    operation::{OperationBuilder, OperationLike},
    r#type::FunctionType,
};
use t3c_schedule::{Axis, Grid};

use crate::{
    Blk, Builder, Error, Module, Op, Splits, TensorType, Val,
    attributes::{self, Named, integers, named, string},
    ffi, splits, walk,
};

/// The name of a function's argument or result (`tokens`, `param/…`, `loss`), as an argument attribute.
pub const NAME: &str = "t3.name";
/// Marks a function as a unit of the design: attention, lookup, ….
pub const UNIT: &str = "t3.unit";
/// On an argument or result of a partitioned function: the grid axes that split each dimension, outermost first, as
/// an array of `i64` arrays ([`crate::splits`]).
pub const SPLIT: &str = "t3.split";
/// The names of the grid's axes, on the module.
pub const AXES: &str = "t3.axes";

/// An argument or a result of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name, or empty.
    pub name: String,
    /// Its type.
    pub r#type: TensorType,
    /// Other attributes, as MLIR text (`t3.split = [array<i64: 0>]`), sorted by name.
    pub attributes: Vec<(String, String)>,
}

impl Port {
    /// A named port.
    pub fn new(name: impl Into<String>, r#type: TensorType) -> Self {
        Self { name: name.into(), r#type, attributes: Vec::new() }
    }

    /// How it is divided over the grid; whole where [`SPLIT`] does not say.
    pub fn splits(&self) -> Splits {
        let text = self.attributes.iter().find(|(name, _)| name == SPLIT).map_or("", |(_, text)| text);
        splits::parse(text, self.r#type.shape.len())
    }

    /// The port that says with [`SPLIT`] how it is divided.
    pub fn with_splits(mut self, splits: &[Vec<usize>]) -> Self {
        self.attributes.retain(|(name, _)| name != SPLIT);
        self.attributes.push((SPLIT.to_owned(), splits::render(splits)));
        self.attributes.sort();
        self
    }
}

/// What a new function looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// Its symbol.
    pub name: String,
    /// Arguments.
    pub arguments: Vec<Port>,
    /// Results.
    pub results: Vec<Port>,
    /// `private` unless it is an entry.
    pub public: bool,
    /// The value of [`UNIT`], for units.
    pub unit: Option<String>,
}

/// Adds an empty function to the end of the module and returns it with its entry block.
///
/// # Errors
/// When MLIR refuses the signature.
pub fn add_function<'c, 'a>(
    module: &'a Module<'c>,
    signature: &Signature,
    location: Location<'c>,
) -> Result<(Op<'c, 'a>, Blk<'c, 'a>), Error> {
    let context = module.context().mlir();
    let function = build_function(context, signature, location)?;
    let function = module.body().append_operation(function);
    let block = walk::body(function).ok_or_else(|| Error::at(function, "has no body"))?;
    Ok((function, block))
}

/// As [`add_function`], for passes, which hold the module as an operation.
///
/// # Errors
/// When MLIR refuses the signature.
pub fn add_function_to<'c, 'a>(
    module: Op<'c, 'a>,
    signature: &Signature,
    location: Location<'c>,
) -> Result<(Op<'c, 'a>, Blk<'c, 'a>), Error> {
    let body = walk::body(module).ok_or_else(|| Error::at(module, "is no module"))?;
    let function = body.append_operation(build_function(ffi::context_of(module), signature, location)?);
    let block = walk::body(function).ok_or_else(|| Error::at(function, "has no body"))?;
    Ok((function, block))
}

fn build_function<'c>(
    context: &'c melior::Context,
    signature: &Signature,
    location: Location<'c>,
) -> Result<melior::ir::Operation<'c>, Error> {
    let types =
        |ports: &[Port]| ports.iter().map(|port| port.r#type.to_mlir(context)).collect::<Vec<Type<'c>>>();
    let (arguments, results) = (types(&signature.arguments), types(&signature.results));
    let block = Block::new(&arguments.iter().map(|r#type| (*r#type, location)).collect::<Vec<_>>());
    let region = Region::new();
    region.append_block(block);
    let mut attributes = vec![
        named(context, "sym_name", StringAttribute::new(context, &signature.name)),
        named(
            context,
            "function_type",
            TypeAttribute::new(FunctionType::new(context, &arguments, &results).into()),
        ),
    ];
    if !signature.public {
        attributes.push(named(context, "sym_visibility", StringAttribute::new(context, "private")));
    }
    if let Some(unit) = &signature.unit {
        attributes.push(named(context, UNIT, StringAttribute::new(context, unit)));
    }
    for (name, ports) in [("arg_attrs", &signature.arguments), ("res_attrs", &signature.results)] {
        if ports.iter().any(|port| !port.name.is_empty() || !port.attributes.is_empty()) {
            attributes.push(named(context, name, port_attributes(context, ports)?));
        }
    }
    Ok(OperationBuilder::new("func.func", location)
        .add_attributes(&attributes)
        .add_regions([region])
        .build()?)
}

fn port_attributes<'c>(context: &'c melior::Context, ports: &[Port]) -> Result<Attribute<'c>, Error> {
    let dictionaries = ports
        .iter()
        .map(|port| {
            let mut entries: Vec<Named<'c>> = Vec::new();
            if !port.name.is_empty() {
                entries
                    .push((Identifier::new(context, NAME), StringAttribute::new(context, &port.name).into()));
            }
            for (name, text) in &port.attributes {
                let value = Attribute::parse(context, text)
                    .ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))?;
                entries.push((Identifier::new(context, name), value));
            }
            Ok(DictionaryAttribute::new(context, &entries).into())
        })
        .collect::<Result<Vec<Attribute<'c>>, Error>>()?;
    Ok(ArrayAttribute::new(context, &dictionaries).into())
}

/// A function that sits in a module.
#[derive(Clone, Copy)]
pub struct Function<'c, 'a>(pub Op<'c, 'a>);

impl<'c, 'a> Function<'c, 'a> {
    /// The view of a `func.func`.
    pub fn cast(operation: Op<'c, 'a>) -> Option<Self> {
        walk::is(operation, "func.func").then_some(Self(operation))
    }

    /// Its symbol.
    pub fn name(self) -> String {
        string(self.0, "sym_name").unwrap_or_default()
    }

    /// Its entry block; `None` for a declaration.
    pub fn body(self) -> Option<Blk<'c, 'a>> {
        walk::body(self.0)
    }

    /// Whether callers outside the module may call it.
    pub fn is_public(self) -> bool {
        string(self.0, "sym_visibility").is_none_or(|visibility| visibility == "public")
    }

    /// The unit it implements, if any.
    pub fn unit(self) -> Option<String> {
        string(self.0, UNIT)
    }

    /// The entry block's arguments.
    pub fn arguments(self) -> Vec<Val<'c, 'a>> {
        let Some(block) = self.body() else { return Vec::new() };
        (0..block.argument_count()).filter_map(|index| block.argument(index).ok().map(Into::into)).collect()
    }

    /// Its `func.return`.
    pub fn terminator(self) -> Option<Op<'c, 'a>> {
        walk::operations(self.body()?).into_iter().next_back()
    }

    /// What it returns.
    pub fn results(self) -> Vec<Val<'c, 'a>> {
        self.terminator().map(|terminator| terminator.operands().collect()).unwrap_or_default()
    }

    /// Names, types and attributes of the arguments.
    ///
    /// # Errors
    /// When a type is no static tensor.
    pub fn argument_ports(self) -> Result<Vec<Port>, Error> {
        self.ports("arg_attrs", self.arguments())
    }

    /// Names, types and attributes of the results.
    ///
    /// # Errors
    /// When a type is no static tensor.
    pub fn result_ports(self) -> Result<Vec<Port>, Error> {
        self.ports("res_attrs", self.results())
    }

    fn ports(self, attribute: &str, values: Vec<Val<'c, 'a>>) -> Result<Vec<Port>, Error> {
        let dictionaries = attributes::array(self.0, attribute).unwrap_or_default();
        values
            .into_iter()
            .enumerate()
            .map(|(index, value)| {
                let mut port = Port::new("", TensorType::of(value)?);
                if let Some(Ok(entries)) =
                    dictionaries.get(index).map(|entries| DictionaryAttribute::try_from(*entries))
                {
                    read_port(&mut port, entries);
                }
                Ok(port)
            })
            .collect()
    }

    /// Renews `function_type` and the ports' attributes after arguments or results changed.
    ///
    /// # Errors
    /// When MLIR refuses them.
    pub fn set_signature(self, arguments: &[Port], results: &[Port]) -> Result<(), Error> {
        let context = ffi::context_of(self.0);
        let types =
            |ports: &[Port]| ports.iter().map(|port| port.r#type.to_mlir(context)).collect::<Vec<Type<'c>>>();
        let r#type = FunctionType::new(context, &types(arguments), &types(results));
        ffi::set_attribute(self.0, "function_type", TypeAttribute::new(r#type.into()).into());
        for (name, ports) in [("arg_attrs", arguments), ("res_attrs", results)] {
            if ports.is_empty() {
                ffi::remove_attribute(self.0, name);
            } else {
                ffi::set_attribute(self.0, name, port_attributes(context, ports)?);
            }
        }
        Ok(())
    }

    /// A builder at the end of the body.
    ///
    /// # Errors
    /// When it is a declaration.
    pub fn builder(self) -> Result<Builder<'c, 'a>, Error> {
        let block = self.body().ok_or_else(|| Error::at(self.0, "has no body"))?;
        Ok(Builder::at_end(ffi::context_of(self.0), block, self.0.location()))
    }
}

fn read_port(port: &mut Port, entries: DictionaryAttribute<'_>) {
    for index in 0..entries.len() {
        let Ok((name, value)) = entries.element(index) else { continue };
        let name = name.as_string_ref().as_str().unwrap_or_default().to_owned();
        if name == NAME {
            port.name =
                StringAttribute::try_from(value).map(|value| value.value().to_owned()).unwrap_or_default();
        } else {
            port.attributes.push((name, value.to_string()));
        }
    }
}

/// The functions of a module, in order.
pub fn functions<'c, 'a>(module: Op<'c, 'a>) -> Vec<Function<'c, 'a>> {
    walk::body(module)
        .map(|body| walk::operations(body).into_iter().filter_map(Function::cast).collect())
        .unwrap_or_default()
}

/// A function by its symbol.
pub fn function<'c, 'a>(module: Op<'c, 'a>, name: &str) -> Option<Function<'c, 'a>> {
    functions(module).into_iter().find(|function| function.name() == name)
}

/// The only public function: where execution starts.
///
/// # Errors
/// When there is none, or more than one.
pub fn entry<'c, 'a>(module: Op<'c, 'a>) -> Result<Function<'c, 'a>, Error> {
    let public: Vec<_> = functions(module).into_iter().filter(|function| function.is_public()).collect();
    match public.as_slice() {
        [entry] => Ok(*entry),
        [] => Err(Error::at(module, "expected a public function, found none")),
        more => {
            let names: Vec<String> = more.iter().map(|function| function.name()).collect();
            Err(Error::at(
                module,
                format!("expected one public function, found {}: make all but one private", names.join(", ")),
            ))
        }
    }
}

/// The function that a `func.call` calls.
pub fn callee<'c, 'a>(module: Op<'c, 'a>, call: Op<'c, 'a>) -> Option<Function<'c, 'a>> {
    if !walk::is(call, "func.call") {
        return None;
    }
    function(module, &string(call, "callee")?)
}

/// The module's `shard.grid` with its symbol, if it has one. Axes without a name are called `axis0`, ….
pub fn grid(module: Op<'_, '_>) -> Option<(String, Grid)> {
    let operation = walk::operations(walk::body(module)?)
        .into_iter()
        .find(|operation| walk::is(*operation, "shard.grid"))?;
    let sizes = integers(operation, "shape")?;
    let names: Vec<String> = attributes::array(module, AXES)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|name| StringAttribute::try_from(name).ok().map(|name| name.value().to_owned()))
        .collect();
    let axes = sizes
        .iter()
        .enumerate()
        .map(|(index, &size)| Axis {
            name: names.get(index).cloned().unwrap_or_else(|| format!("axis{index}")),
            size: size.max(0) as u32,
        })
        .collect();
    Some((string(operation, "sym_name")?, Grid { axes }))
}

/// Adds a `shard.grid` and the names of its axes to a module.
///
/// # Errors
/// When MLIR refuses it.
pub fn add_grid<'c>(module: &Module<'c>, name: &str, grid: &Grid) -> Result<(), Error> {
    let context = module.context().mlir();
    let sizes: Vec<i64> = grid.axes.iter().map(|axis| i64::from(axis.size)).collect();
    let operation = OperationBuilder::new("shard.grid", Location::unknown(context))
        .add_attributes(&[
            named(context, "sym_name", StringAttribute::new(context, name)),
            named(context, "shape", attributes::integers_attr(context, &sizes)),
        ])
        .build()?;
    module.body().append_operation(operation);
    let names: Vec<Attribute<'c>> =
        grid.axes.iter().map(|axis| attributes::string_attr(context, &axis.name)).collect();
    ffi::set_attribute(module.op(), AXES, ArrayAttribute::new(context, &names).into());
    Ok(())
}
