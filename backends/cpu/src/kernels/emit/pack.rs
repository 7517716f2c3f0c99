//! Packing: copies `width` lines of a matrix, `k` elements each, into a panel that the
//! micro-kernel reads in order.
//!
//! ```text
//!   panel: k × width floats; element (p, i) at p × width + i
//!
//!   pack_along(i64 k, f32 *src, i64 *steps, f32 *panel)     (p, i) from src + steps[p] + i
//!   pack_across(i64 k, f32 *src, i64 *lines, f32 *panel)    (p, i) from src + lines[i] + p
//! ```
//!
//! The first is a copy, the second a transposition in registers, a square block at a time.

use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{IntValue, PointerValue, VectorValue};

use super::{Emitter, Param};
use crate::kernels::{Error, Machine};

const PARAMS: [Param; 4] = [Param::Int, Param::Pointer, Param::Pointer, Param::Pointer];

/// Emits the copy for lines that lie side by side.
pub fn emit_pack_along<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    width: usize,
) -> Result<(), Error> {
    let f = Emitter::function(context, module, machine, name, &PARAMS);
    let (k, source, steps, panel) =
        (f.int_param(0)?, f.pointer_param(1)?, f.pointer_param(2)?, f.pointer_param(3)?);
    f.for_loop((f.int(0), k, 1), &[panel.into()], |p, carried| {
        let panel = super::pointer(carried[0])?;
        let line = f.float_address(source, f.load_int(steps, p)?)?;
        for (first, lanes) in pieces(width, machine.lanes) {
            let piece = f.load(lanes, f.float_address(line, f.int(first))?)?;
            f.store(f.float_address(panel, f.int(first))?, piece)?;
        }
        Ok(vec![f.float_address(panel, f.int(width))?.into()])
    })?;
    f.finish()?;
    Ok(())
}

/// Emits the transposition for lines whose elements are consecutive.
pub fn emit_pack_across<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    name: &str,
    width: usize,
) -> Result<(), Error> {
    // Blocks of 8 × 8 need 8 registers and 8 more to exchange; wider ones would spill.
    const LARGEST_BLOCK: usize = 8;
    let f = Emitter::function(context, module, machine, name, &PARAMS);
    let cut = pieces(width, machine.lanes.min(LARGEST_BLOCK));
    for equal in cut.chunk_by(|one, other| one.1 == other.1) {
        let (start, block) = equal[0];
        let end = start + equal.len() * block;
        f.for_loop((f.int(start), f.int(end), block), &[], |first, _| {
            emit_transposed_lines(&f, width, first, block)?;
            Ok(Vec::new())
        })?;
    }
    f.finish()?;
    Ok(())
}

/// Packs lines `first .. first + block`, all of `k`.
fn emit_transposed_lines<'c>(
    f: &Emitter<'c, '_>,
    width: usize,
    first: IntValue<'c>,
    block: usize,
) -> Result<(), Error> {
    let (k, source, lines, panel) =
        (f.int_param(0)?, f.pointer_param(1)?, f.pointer_param(2)?, f.pointer_param(3)?);
    let line = (0..block)
        .map(|i| {
            let i = f.builder().build_int_nsw_add(first, f.int(i), "")?;
            f.float_address(source, f.load_int(lines, i)?)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let panel = f.float_address(panel, first)?;
    let remainder = f.builder().build_int_unsigned_rem(k, f.int(block), "")?;
    let whole = f.builder().build_int_nsw_sub(k, remainder, "")?;
    f.for_loop((f.int(0), whole, block), &[], |p, _| {
        let rows = line
            .iter()
            .map(|&line| f.load(block, f.float_address(line, p)?))
            .collect::<Result<Vec<_>, _>>()?;
        let to = emit_panel_address(f, panel, p, width)?;
        for (step, column) in emit_transpose(f, rows)?.into_iter().enumerate() {
            f.store(f.float_address(to, f.int(step * width))?, column)?;
        }
        Ok(Vec::new())
    })?;
    f.for_loop((whole, k, 1), &[], |p, _| {
        let to = emit_panel_address(f, panel, p, width)?;
        for (i, &line) in line.iter().enumerate() {
            let element = f.load_float(f.float_address(line, p)?)?;
            f.store(f.float_address(to, f.int(i))?, element)?;
        }
        Ok(Vec::new())
    })?;
    Ok(())
}

fn emit_panel_address<'c>(
    f: &Emitter<'c, '_>,
    panel: PointerValue<'c>,
    p: IntValue<'c>,
    width: usize,
) -> Result<PointerValue<'c>, Error> {
    f.float_address(panel, f.builder().build_int_nsw_mul(p, f.int(width), "")?)
}

/// Transposes a square of a power of two by exchanging ever larger blocks off the diagonal.
pub(super) fn emit_transpose<'c>(
    f: &Emitter<'c, '_>,
    mut rows: Vec<VectorValue<'c>>,
) -> Result<Vec<VectorValue<'c>>, Error> {
    let n = rows.len();
    let mut size = 1;
    while size < n {
        let keep = |lane: usize| lane & size == 0;
        let upper: Vec<_> = (0..n).map(|l| if keep(l) { l } else { n + l - size }).collect();
        let lower: Vec<_> = (0..n).map(|l| if keep(l) { l + size } else { n + l }).collect();
        for i in (0..n).filter(|&i| keep(i)) {
            let (a, b) = (rows[i], rows[i + size]);
            rows[i] = f.shuffle(a, b, &upper)?;
            rows[i + size] = f.shuffle(a, b, &lower)?;
        }
        size *= 2;
    }
    Ok(rows)
}

/// Cuts `width` into powers of two, `largest` first: (first element, length).
fn pieces(width: usize, largest: usize) -> Vec<(usize, usize)> {
    let mut cut = Vec::new();
    let (mut first, mut size) = (0, largest);
    while first < width {
        while size > width - first {
            size /= 2;
        }
        cut.push((first, size));
        first += size;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_cover_the_width() {
        assert_eq!(pieces(14, 16), [(0, 8), (8, 4), (12, 2)]);
        assert_eq!(pieces(48, 16), [(0, 16), (16, 16), (32, 16)]);
        assert_eq!(pieces(6, 4), [(0, 4), (4, 2)]);
    }
}
