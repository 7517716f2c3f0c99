//! Index operands of units on a device that has only a block of what they point to.

use t3c_ir::{Builder, Element, Predicate, Ref, ScalarBody, ScalarOp, TensorType, Val};

use super::{Error, emit::Emitter};

/// Every loop name of a tensor.
fn loops(r#type: &TensorType) -> String {
    ('a'..='z').take(r#type.shape.len()).collect()
}

/// The row of the device's block that an index names, and whether the block has it.
fn own_row(body: &mut ScalarBody, id: usize, offset: usize, rows: u64) -> (Ref, Ref) {
    let id = body.to_i64(Ref::Arg(id));
    let id = body.binary(ScalarOp::SubI, id, Ref::Arg(offset));
    let (zero, rows) = (body.int(0), body.int(rows as i64));
    let above = body.cmp_i(Predicate::Ge, id, zero);
    let below = body.cmp_i(Predicate::Lt, id, rows);
    (id, body.binary(ScalarOp::And, above, below))
}

fn narrowed(body: &mut ScalarBody, id: Ref, element: Element) -> Ref {
    if element == Element::I64 { id } else { body.push(ScalarOp::IntCast, &[id], element) }
}

impl<'c, 'a> Emitter<'_, 'c, 'a> {
    /// Indices into the device's own block of `rows` rows, from indices into the whole.
    pub fn rebased(
        &mut self,
        ids: Val<'c, 'a>,
        axes: &[usize],
        rows: u64,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        self.moved(ids, (axes, rows), ScalarOp::SubI, b)
    }

    /// Indices into the whole, from indices into the device's own block of `rows` rows.
    pub fn unbased(
        &mut self,
        ids: Val<'c, 'a>,
        axes: &[usize],
        rows: u64,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        self.moved(ids, (axes, rows), ScalarOp::AddI, b)
    }

    fn moved(
        &mut self,
        ids: Val<'c, 'a>,
        (axes, rows): (&[usize], u64),
        by: ScalarOp,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let offset = self.offset(axes, rows, b)?;
        let r#type = TensorType::of(ids)?;
        let all = loops(&r#type);
        Ok(b.structured(&format!("{all},->{all}"), &[ids, offset], r#type.element, 0.0, |body| {
            let id = body.to_i64(Ref::Arg(0));
            let id = body.binary(by, id, Ref::Arg(1));
            narrowed(body, id, r#type.element)
        })?)
    }

    /// As [`Self::rebased`], where other devices' rows become row 0.
    fn clamped(
        &mut self,
        ids: Val<'c, 'a>,
        offset: Val<'c, 'a>,
        rows: u64,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let r#type = TensorType::of(ids)?;
        let all = loops(&r#type);
        Ok(b.structured(&format!("{all},->{all}"), &[ids, offset], r#type.element, 0.0, |body| {
            let (id, own) = own_row(body, 0, 1, rows);
            let zero = body.int(0);
            let id = body.select(own, id, zero);
            narrowed(body, id, r#type.element)
        })?)
    }

    /// `values`, one for each of `ids` in its leading dimensions, with zeros where the device has not the row.
    fn masked(
        &self,
        values: Val<'c, 'a>,
        ids: Val<'c, 'a>,
        offset: Val<'c, 'a>,
        rows: u64,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let (r#type, leading) = (TensorType::of(values)?, loops(&TensorType::of(ids)?));
        let all = loops(&r#type);
        let operands = [values, ids, offset];
        Ok(b.structured(&format!("{all},{leading},->{all}"), &operands, r#type.element, 0.0, |body| {
            let (_, own) = own_row(body, 1, 2, rows);
            let zero = body.constant(0.0, r#type.element);
            body.select(own, Ref::Arg(0), zero)
        })?)
    }

    /// Rows of a table of which every device has some: other devices' rows are zero.
    pub fn masked_lookup(
        &mut self,
        symbol: &str,
        axes: &[usize],
        (table, ids): (Val<'c, 'a>, Val<'c, 'a>),
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let rows = TensorType::of(table)?.shape[0];
        let offset = self.offset(axes, rows, b)?;
        let local = self.clamped(ids, offset, rows, b)?;
        let found = b.call(symbol, &[table, local], std::slice::from_ref(result))?[0];
        self.masked(found, ids, offset, rows, b)
    }

    /// The gradient of a table of which every device has some rows.
    pub fn masked_lookup_grad(
        &mut self,
        symbol: &str,
        axes: &[usize],
        (ids, gradient): (Val<'c, 'a>, Val<'c, 'a>),
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let rows = result.shape[0];
        let offset = self.offset(axes, rows, b)?;
        let local = self.clamped(ids, offset, rows, b)?;
        let gradient = self.masked(gradient, ids, offset, rows, b)?;
        Ok(b.call(symbol, &[local, gradient], std::slice::from_ref(result))?[0])
    }
}
