//! Writes named structured operations (`linalg.matmul`, `linalg.transpose`, …) as `linalg.generic`.
//!
//! Why: every pass reasons about loops, maps and scalar bodies, and so sees an imported program's named operations
//! as what they are.
//!
//! ```text
//! before  %p = linalg.matmul ins(%x, %w) outs(%zero)
//! after   %p = linalg.generic {(t, d), (d, f) -> (t, f)} ins(%x, %w) outs(%zero) { multiply and add }
//! ```
//!
//! Needs: nothing. Guarantees: the same results bit for bit; fills stay fills, since a zero start is known by them
//! (upstream's `linalg-generalize-named-ops` changes them too). An operation that the table of names lacks stays as
//! it is; `t3-find-pairs` declines it by `named-operation`.

use melior::ir::operation::OperationLike;
use t3c_ir::{Builder, Op, ffi, named, walk::walk};

use crate::{
    options,
    pass::{Pass, PassContext, PassError},
};

/// The pass.
#[derive(Clone, Debug)]
pub struct Generalize;

impl Pass for Generalize {
    const NAME: &'static str = "t3-generalize";
    const SUMMARY: &'static str = "Write named structured operations as linalg.generic";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, _cx: &PassContext) -> Result<(), PassError> {
        let mut found = Vec::new();
        for op in walk(module) {
            // What a table of upstream operations cannot say in generic form is no error: it stays named.
            if let Ok(Some(generic)) = named::read(op) {
                found.push((op, generic));
            }
        }
        for (op, _) in found {
            // Read again: an operand may have been a named operation's result.
            let Some(generic) = named::read(op)? else { continue };
            let made = Builder::before(op)?.at(op.location()).generic(&generic)?;
            ffi::replace_all_uses(op.result(0)?.into(), made);
            ffi::erase(op);
        }
        Ok(())
    }
}
