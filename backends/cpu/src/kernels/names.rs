//! Which kernels there are, and what their functions are called in object files.

use inkwell::context::Context;
use inkwell::module::Module;

use super::attention::{Heads, check_head_dim};
use super::emit::micro::{Epilogue, Shape, emit_micro_kernel};
use super::emit::pack::{emit_pack_across, emit_pack_along};
use super::emit::{attend, attention};
use super::{Error, Machine, RegisterTile};

/// Heights of the micro-kernels: MR, then every smaller power of two for the last rows.
fn heights(mr: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).rev().map(|bit| 1usize << bit).filter(|&power| power < mr);
    std::iter::once(mr).chain(powers).collect()
}

/// Shapes of the micro-kernels: every height at full width, every narrower width at full height.
pub(super) fn shapes(tile: RegisterTile) -> Vec<Shape> {
    let shape = |rows, vectors| Shape { rows, vectors, panel_vectors: tile.vectors, unroll: tile.unroll };
    let full = heights(tile.rows).into_iter().map(|rows| shape(rows, tile.vectors));
    full.chain((1..tile.vectors).map(|vectors| shape(tile.rows, vectors))).collect()
}

pub(super) fn micro(shape: Shape, epilogue: Epilogue) -> String {
    format!("t3c_gemm_f32_{}_{}x{}", epilogue.name(), shape.rows, shape.vectors)
}

pub(super) fn pack_along(width: usize) -> String {
    format!("t3c_pack_f32_along_{width}")
}

pub(super) fn pack_across(width: usize) -> String {
    format!("t3c_pack_f32_across_{width}")
}

pub(super) fn attend(shape: attend::Shape) -> String {
    let capped = if shape.capped { "_capped" } else { "" };
    format!("t3c_attend_f32{capped}_{}_{}", shape.dim, shape.rows)
}

pub(super) fn attend_keys(head_dim: usize, capped: bool) -> String {
    let capped = if capped { "_capped" } else { "" };
    format!("t3c_attend_keys_f32{capped}_{head_dim}")
}

pub(super) fn attend_backward(head_dim: usize, capped: bool) -> String {
    let capped = if capped { "_capped" } else { "" };
    format!("t3c_attend_backward_f32{capped}_{head_dim}")
}

/// The attention kernels of one head size, from the one of most rows down to one row.
pub(super) fn attend_shapes(machine: &Machine, dim: usize, capped: bool) -> Vec<attend::Shape> {
    let heights = heights(attend::most_rows(machine)).into_iter();
    heights.map(|rows| attend::Shape { dim, rows, capped }).collect()
}

/// Emits forward and backward attention of these heads.
pub(super) fn emit_attention<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
    Heads { dim, capped }: Heads,
) -> Result<(), Error> {
    check_head_dim(dim)?;
    attend::emit_keys(context, module, machine, &attend_keys(dim, capped), dim)?;
    for shape in attend_shapes(machine, dim, capped) {
        attend::emit_attend(context, module, machine, &attend(shape), shape)?;
    }
    attention::emit_backward(context, module, machine, &attend_backward(dim, capped), (dim, capped))
}

/// Emits every kernel of a matrix product.
pub(super) fn emit_gemm<'c>(
    context: &'c Context,
    module: &Module<'c>,
    machine: &Machine,
) -> Result<(), Error> {
    let tile = machine.tile;
    for shape in shapes(tile) {
        for epilogue in Epilogue::ALL {
            emit_micro_kernel(context, module, machine, &micro(shape, epilogue), shape, epilogue)?;
        }
    }
    let (mr, nr) = (tile.rows, machine.tile_columns());
    let widths = if mr == nr { vec![mr] } else { vec![mr, nr] };
    for width in widths {
        emit_pack_along(context, module, machine, &pack_along(width), width)?;
        emit_pack_across(context, module, machine, &pack_across(width), width)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::heights;

    #[test]
    fn heights_go_down_to_one() {
        assert_eq!(heights(8), [8, 4, 2, 1]);
        assert_eq!(heights(6), [6, 4, 2, 1]);
        assert_eq!(heights(14), [14, 8, 4, 2, 1]);
    }
}
