//! Every kernel again, as plain loops: what the generated code is compared with.

use super::Contraction;
use super::contraction::Offsets;
use super::{Dim, Error};

/// `c = Σ a · b`, or `c += Σ a · b`, summed in f64; slices begin at the operands' lowest address.
///
/// # Errors
/// Where the contraction's offsets overflow.
pub fn contract(
    contraction: &Contraction,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) -> Result<(), Error> {
    type Stride = fn(&Dim) -> isize;
    let (of_a, of_b, of_c): (Stride, Stride, Stride) = (|d| d.a, |d| d.b, |d| d.c);
    let Contraction { batch, m, n, k } = contraction;
    let table = |dims: &[Dim], stride: Stride| Offsets::new(dims, "reference", stride);
    let (batch_a, batch_b, batch_c) = (
        table(batch, of_a)?,
        table(batch, of_b)?,
        table(batch, of_c)?,
    );
    let (a_m, a_k, b_k) = (table(m, of_a)?, table(k, of_a)?, table(k, of_b)?);
    let (b_n, c_m, c_n) = (table(n, of_b)?, table(m, of_c)?, table(n, of_c)?);
    for entry in 0..batch_a.len() {
        for row in 0..a_m.len() {
            for col in 0..b_n.len() {
                let sum: f64 = (0..a_k.len())
                    .map(|p| {
                        let a = a[(batch_a.at(entry) + a_m.at(row) + a_k.at(p)) as usize];
                        let b = b[(batch_b.at(entry) + b_k.at(p) + b_n.at(col)) as usize];
                        f64::from(a) * f64::from(b)
                    })
                    .sum();
                let at = (batch_c.at(entry) + c_m.at(row) + c_n.at(col)) as usize;
                c[at] = if accumulate {
                    c[at] + sum as f32
                } else {
                    sum as f32
                };
            }
        }
    }
    Ok(())
}
