//! Weights packed once: the right-hand operands of products that are arguments and that no run replaces.
//!
//! A packed copy belongs to the tensor in the [`State`], not to the executable, so that a prefill and a decode
//! step share it. It is made again when the tensor was written since.

use std::sync::Arc;

use super::{
    Plan, Port, State,
    plan::{Home, Instance, ValueId},
    prepare::{Gemm, Prepared},
    state::PackedTensor,
};
use crate::{kernels::PackedLayout, unsafe_memory::Aligned};

/// A weight to pack: an argument, and the product whose layout it gets.
#[derive(Clone, Debug)]
pub(crate) struct Pack {
    /// Index of the argument.
    pub(crate) argument: usize,
    /// The product: program, step, reader of a gather (or 0; for fused steps 1 + what comes before), and number.
    pub(crate) product: [usize; 4],
    layout: Arc<PackedLayout>,
    floats: usize,
}

/// The products of a step.
pub(crate) fn products(prepared: Option<&Prepared>) -> &[Gemm] {
    match prepared {
        Some(Prepared::Gemm(gemm) | Prepared::Add(gemm)) => std::slice::from_ref(gemm),
        Some(Prepared::Fused(fused)) => &fused.products,
        Some(Prepared::Grouped(grouped)) => std::slice::from_ref(&grouped.gemm),
        _ => &[],
    }
}

/// The product that a pack is for.
pub(crate) fn product(prepared: &[Vec<Option<Prepared>>], at: [usize; 4]) -> Option<&Gemm> {
    let step = prepared[at[0]][at[1]].as_ref();
    let step = match step {
        Some(Prepared::Consume(_, readers)) => readers.get(at[2])?.as_ref(),
        Some(Prepared::Fused(fused)) if at[2] > 0 => fused.before.get(at[2] - 1)?.as_ref(),
        other => other,
    };
    products(step).get(at[3])
}

/// Finds all weights to pack, and tells each instance which of them its products read.
pub(crate) fn find_packs(
    plan: &mut Plan,
    prepared: &[Vec<Option<Prepared>>],
    (arguments, results): (&[Port], &[Port]),
) -> Vec<Pack> {
    let is_constant = |argument: usize| results.iter().all(|result| result.name != arguments[argument].name);
    let values = &plan.values;
    let argument = |value: ValueId| match values[value].home {
        Home::Argument(index) if is_constant(index) => Some(index),
        _ => None,
    };
    let mut packs: Vec<Pack> = Vec::new();
    let mut find = |instance: &mut Instance, prepared: Option<&Prepared>, step: usize, reader: usize| {
        for (number, gemm) in products(prepared).iter().enumerate() {
            let weight = instance.reads[2 * number + usize::from(!gemm.swapped)];
            instance.packed.push(argument(weight).map(|argument| {
                let product = [instance.program, step, reader, number];
                let known = |pack: &Pack| (pack.argument, pack.product) == (argument, product);
                packs.iter().position(known).unwrap_or_else(|| {
                    let layout = Arc::new(gemm.plan.packed_layout());
                    packs.push(Pack { argument, product, layout, floats: gemm.plan.packed_b_len() });
                    packs.len() - 1
                })
            }));
        }
    };
    for instance in &mut plan.instances {
        let Some(step) = instance.step else { continue };
        match prepared[instance.program][step].as_ref() {
            Some(Prepared::Consume(_, readers)) => {
                for (number, (reader, prepared)) in instance.readers.iter_mut().zip(readers).enumerate() {
                    find(reader, prepared.as_ref(), step, number);
                }
            }
            Some(Prepared::Fused(fused)) => {
                for (number, (reader, prepared)) in instance.readers.iter_mut().zip(&fused.before).enumerate()
                {
                    find(reader, prepared.as_ref(), step, number + 1);
                }
                find(instance, prepared[instance.program][step].as_ref(), step, 0);
            }
            prepared => find(instance, prepared, step, 0),
        }
    }
    packs
}

/// Where a packed weight lies in the state, and whether it has to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Index among the packed copies of the argument's tensor.
    pub(crate) copy: usize,
    /// Whether the tensor was written since.
    pub(crate) stale: bool,
}

/// The packed copies in `state`, made with room where there is none.
pub(crate) fn places(packs: &mut [Pack], arguments: &[Port], state: &mut State) -> Vec<Place> {
    let devices = state.grid.devices();
    packs
        .iter_mut()
        .map(|pack| {
            let Some(entry) = state.entries.get_mut(&arguments[pack.argument].name) else {
                return Place { copy: 0, stale: false };
            };
            let same = |copy: &PackedTensor| Arc::ptr_eq(&copy.layout, &pack.layout);
            let equal = |copy: &PackedTensor| copy.layout == pack.layout;
            let known = entry.packed.iter().position(same).or_else(|| entry.packed.iter().position(equal));
            let copy = known.unwrap_or_else(|| {
                let parts = (0..devices).map(|_| Aligned::zeroed(pack.floats * 4)).collect();
                entry.packed.push(PackedTensor { layout: Arc::clone(&pack.layout), version: 0, parts });
                entry.packed.len() - 1
            });
            let found = &mut entry.packed[copy];
            pack.layout = Arc::clone(&found.layout);
            Place { copy, stale: found.version != entry.version }
        })
        .collect()
}

/// Notes that a run has packed what was stale.
pub(crate) fn packed(packs: &[Pack], places: &[Place], arguments: &[Port], state: &mut State) {
    for (pack, place) in packs.iter().zip(places).filter(|(_, place)| place.stale) {
        if let Some(entry) = state.entries.get_mut(&arguments[pack.argument].name) {
            let version = entry.version;
            entry.packed[place.copy].version = version;
        }
    }
}
