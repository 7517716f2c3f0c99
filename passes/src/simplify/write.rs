//! Writes chosen terms back as operations.

use std::collections::{BTreeMap, HashMap};

use egg::{Id, Language};
use melior::ir::operation::OperationLike;
use t3c_ir::{
    Builder, Generic, Iterator, Op, ScalarBody, TensorType, Val,
    attributes::{integers_attr, named},
    ffi,
};

use crate::{
    algebra::{Cut, Graph, Layout, MAX, Term, extract::Choice, number, type_of},
    pass::PassError,
};

/// An operation that stands in the function already.
pub struct Standing<'c, 'a> {
    /// The operation.
    pub op: Op<'c, 'a>,
    /// Where it stands in its block.
    pub position: usize,
    /// What it is.
    pub term: Term,
    /// What it reads, with the layout in which elementwise work reads it.
    pub reads: Vec<(Val<'c, 'a>, Layout)>,
    /// Its result.
    pub result: Val<'c, 'a>,
}

/// Where operations are needed.
#[derive(Clone, Copy)]
pub struct Place<'c, 'a> {
    /// Builds there.
    pub builder: Builder<'c, 'a>,
    /// The operation before which that is, and its position in the block, where there is one.
    pub before: Option<(Op<'c, 'a>, usize)>,
}

/// Writes the chosen terms of one e-graph. All forms of a class read the same values, so that whatever is built
/// before the first user is defined there.
pub struct Writer<'w, 'c, 'a> {
    /// The e-graph.
    pub graph: &'w Graph,
    /// The chosen terms.
    pub choice: &'w Choice,
    /// The grid's symbol.
    pub grid: &'w str,
    /// The values that the algebra does not look into, by number.
    pub values: &'w [Val<'c, 'a>],
    /// What stands in the function, by class.
    pub standing: &'w BTreeMap<Id, Vec<Standing<'c, 'a>>>,
    /// Values by key that others took the place of.
    pub replaced: &'w HashMap<usize, Val<'c, 'a>>,
    /// The values that are written.
    pub made: HashMap<Id, Val<'c, 'a>>,
}

impl<'c, 'a> Writer<'_, 'c, 'a> {
    /// The value of a class, built at `place` unless it exists.
    ///
    /// # Errors
    /// When MLIR refuses an operation.
    pub fn value(&mut self, class: Id, place: Place<'c, 'a>) -> Result<Val<'c, 'a>, PassError> {
        let class = self.graph.find(class);
        if let Some(value) = self.made.get(&class) {
            return Ok(*value);
        }
        let choice = self.choice;
        let term = choice.get(&class).ok_or_else(|| t3c_ir::Error::Mlir("a term has no form".into()))?;
        let value = match term {
            Term::Value([value]) => self.current(self.values[self.number(*value) as usize]),
            term => {
                let at = self.standing.get(&class).and_then(|all| all.first()).map(|one| one.op.location());
                let builder = at.map_or(place.builder, |location| place.builder.at(location));
                let place = Place { builder, ..place };
                let reads = self.reads(term, place)?;
                match self.standing(class, term, &reads, place) {
                    Some(value) => value,
                    None => self.build(class, term, &reads, place)?,
                }
            }
        };
        self.made.insert(class, value);
        Ok(value)
    }

    fn number(&self, id: Id) -> u32 {
        number(self.graph, id)
    }

    fn current(&self, value: Val<'c, 'a>) -> Val<'c, 'a> {
        self.replaced.get(&ffi::value_key(value)).copied().unwrap_or(value)
    }

    /// What a term reads. Elementwise work reads through views.
    fn reads(&mut self, term: &Term, place: Place<'c, 'a>) -> Result<Vec<(Val<'c, 'a>, Layout)>, PassError> {
        let operands: Vec<Id> = match term {
            Term::Map(operands) => operands[1..].to_vec(),
            term => term.children().last().copied().into_iter().collect(),
        };
        let folds = matches!(term, Term::Map(_));
        operands
            .into_iter()
            .map(|operand| match self.choice.get(&self.graph.find(operand)) {
                Some(Term::View([m, x])) if folds => {
                    let layout = self.graph.analysis.layouts[self.number(*m) as usize].clone();
                    Ok((self.value(*x, place)?, layout))
                }
                _ => {
                    let rank = type_of(self.graph, operand).shape.len();
                    Ok((self.value(operand, place)?, whole(rank)))
                }
            })
            .collect()
    }

    /// The operation that stands in the function and computes just this, moved to `place` if that comes first.
    fn standing(
        &self,
        class: Id,
        term: &Term,
        reads: &[(Val<'c, 'a>, Layout)],
        place: Place<'c, 'a>,
    ) -> Option<Val<'c, 'a>> {
        let canonical = |term: &Term| term.clone().map_children(|child| self.graph.find(child));
        let equal = |standing: &&Standing<'c, 'a>| {
            let same_reads = standing.reads.len() == reads.len()
                && standing.reads.iter().zip(reads).all(|((x, m), (y, n))| self.current(*x) == *y && m == n);
            same_reads && canonical(&standing.term) == canonical(term)
        };
        let standing = self.standing.get(&class)?.iter().find(equal)?;
        if let Some((op, position)) = place.before
            && standing.position > position
        {
            ffi::move_before(standing.op, op);
        }
        Some(standing.result)
    }

    fn build(
        &self,
        class: Id,
        term: &Term,
        reads: &[(Val<'c, 'a>, Layout)],
        place: Place<'c, 'a>,
    ) -> Result<Val<'c, 'a>, PassError> {
        let builder = place.builder;
        let r#type = type_of(self.graph, class);
        let Some((x, _)) = reads.first().cloned() else {
            return Err(t3c_ir::Error::Mlir("a term reads nothing".into()).into());
        };
        let axes = |g: Id| self.graph.analysis.groups[self.number(g) as usize].clone();
        let number = |id: Id| self.number(id) as usize;
        let collective = |name: &str, g: Id, attribute: Option<(&str, usize)>, r: Option<Id>| {
            let reduction = r.filter(|r| self.number(*r) == MAX).map(|_| "max");
            builder.collective(name, x, (self.grid, &axes(g)), attribute, reduction, &r#type)
        };
        Ok(match term {
            Term::Gather([g, d, _]) => {
                collective("shard.all_gather", *g, Some(("gather_axis", number(*d))), None)?
            }
            Term::Slice([g, d, _]) => {
                collective("shard.all_slice", *g, Some(("slice_axis", number(*d))), None)?
            }
            Term::Scatter([g, r, d, _]) => {
                collective("shard.reduce_scatter", *g, Some(("scatter_axis", number(*d))), Some(*r))?
            }
            Term::Reduce([g, r, _]) => collective("shard.all_reduce", *g, None, Some(*r))?,
            Term::Exchange([g, s, c, _]) => {
                let value = collective("shard.all_to_all", *g, Some(("split_axis", number(*s))), None)?;
                if let Some(op) = ffi::value_owner(value) {
                    let axis = t3c_ir::attributes::index_attr(builder.context(), number(*c) as i64);
                    ffi::set_attribute(op, "concat_axis", axis);
                }
                value
            }
            Term::View([m, _]) => {
                let layout = self.graph.analysis.layouts[number(*m)].clone();
                let mut copy = ScalarBody::new([r#type.element; 2]);
                copy.yields = vec![t3c_ir::Ref::Arg(0)];
                elementwise(builder, &[(x, layout)], copy, &r#type)?
            }
            Term::Cut([k, _]) => cut(builder, x, &self.graph.analysis.cuts[number(*k)], &r#type)?,
            Term::Map(operands) => {
                let body = self.graph.analysis.functions[number(operands[0])].clone();
                elementwise(builder, reads, body, &r#type)?
            }
            Term::Num(_) | Term::Value(_) => {
                return Err(t3c_ir::Error::Mlir("a number is no tensor".into()).into());
            }
        })
    }
}

/// The layout of a tensor of this rank in itself.
pub fn whole(rank: usize) -> Layout {
    Layout { map: (0..rank).collect(), extents: vec![0; rank] }
}

fn elementwise<'c, 'a>(
    builder: Builder<'c, 'a>,
    reads: &[(Val<'c, 'a>, Layout)],
    body: ScalarBody,
    result: &TensorType,
) -> Result<Val<'c, 'a>, PassError> {
    let rank = result.shape.len();
    let maps = reads.iter().map(|(_, layout)| layout.map.clone()).chain([(0..rank).collect()]);
    let generic = Generic {
        init: builder.empty(result)?,
        maps: maps.collect(),
        iterators: vec![Iterator::Parallel; rank],
        extents: result.shape.clone(),
        body,
        captures: vec![],
        result: result.clone(),
        inputs: reads.iter().map(|(value, _)| *value).collect(),
    };
    Ok(builder.generic(&generic)?)
}

fn cut<'c, 'a>(
    builder: Builder<'c, 'a>,
    x: Val<'c, 'a>,
    cut: &Cut,
    result: &TensorType,
) -> Result<Val<'c, 'a>, PassError> {
    let context = builder.context();
    let integers = |all: &[u64]| {
        let all: Vec<i64> = all.iter().map(|&x| x as i64).collect();
        integers_attr(context, &all)
    };
    let segments = melior::ir::Attribute::parse(context, "array<i32: 1, 0, 0, 0>")
        .ok_or_else(|| t3c_ir::Error::Mlir("cannot make operand segments".into()))?;
    let attributes = [
        named(context, "operandSegmentSizes", segments),
        named(context, "static_offsets", integers(&cut.offsets)),
        named(context, "static_sizes", integers(&cut.sizes)),
        named(context, "static_strides", integers(&cut.strides)),
    ];
    let op = builder.op("tensor.extract_slice", &[x], &[result.to_mlir(context)], &attributes, vec![])?;
    Ok(op.result(0)?.into())
}
