//! Walking a module: collect first, mutate afterwards.

use melior::ir::{BlockLike, RegionLike, operation::OperationLike};

use crate::{Blk, Op};

/// The name of an operation, such as `linalg.generic`.
pub fn name(operation: Op<'_, '_>) -> String {
    operation.name().as_string_ref().as_str().unwrap_or_default().to_owned()
}

/// Whether an operation has this name.
pub fn is(operation: Op<'_, '_>, expected: &str) -> bool {
    operation.name().as_string_ref().as_str() == Ok(expected)
}

/// `operation` and everything inside it, in pre-order.
pub fn walk<'c, 'a>(operation: Op<'c, 'a>) -> Vec<Op<'c, 'a>> {
    fn visit<'c, 'a>(operation: Op<'c, 'a>, found: &mut Vec<Op<'c, 'a>>) {
        found.push(operation);
        for region in operation.regions() {
            let mut block = region.first_block();
            while let Some(current) = block {
                for inner in operations(current) {
                    visit(inner, found);
                }
                block = current.next_in_region();
            }
        }
    }
    let mut found = Vec::new();
    visit(operation, &mut found);
    found
}

/// The operations of one block, in order.
pub fn operations<'c, 'a>(block: Blk<'c, 'a>) -> Vec<Op<'c, 'a>> {
    let mut found = Vec::new();
    let mut next = block.first_operation();
    while let Some(operation) = next {
        next = operation.next_in_block();
        found.push(operation);
    }
    found
}

/// The first block of an operation's first region.
pub fn body<'c, 'a>(operation: Op<'c, 'a>) -> Option<Blk<'c, 'a>> {
    operation.regions().next().and_then(|region| region.first_block())
}
