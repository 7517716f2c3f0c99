//! Which loop of a structured operation each grid axis splits.

/// What one operand says about the loops.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The loop of each dimension.
    pub map: &'a [usize],
    /// The grid axis of each dimension.
    pub splits: &'a [Option<usize>],
    /// Whether the operand is a parameter, which stays where it is.
    pub stationary: bool,
}

/// The axis (or none) of each of `loops` loops.
///
/// An axis that splits parameters goes to a loop that they claim, any other to a loop that some operand claims (so
/// that no work is done twice for want of bytes). Among those, the cheapest by `price`; the first claim wins a tie.
pub fn assign<P: PartialOrd>(
    loops: usize,
    axes: usize,
    claims: &[Claim<'_>],
    price: impl Fn(&[Option<usize>]) -> P,
) -> Vec<Option<usize>> {
    let mut partial_choices = vec![vec![None; loops]];
    for axis in 0..axes {
        let choices = candidates(axis, claims);
        let mut next = Vec::new();
        for choice in &partial_choices {
            let fitting: Vec<_> =
                choices.iter().filter(|at| at.is_none_or(|at| choice[at].is_none())).collect();
            for &&at in &fitting {
                let mut extended = choice.clone();
                if let Some(at) = at {
                    extended[at] = Some(axis);
                }
                next.push(extended);
            }
            if fitting.is_empty() {
                next.push(choice.clone());
            }
        }
        partial_choices = next;
    }
    let mut best: Option<(P, Vec<Option<usize>>)> = None;
    for choice in partial_choices {
        let price = price(&choice);
        if best.as_ref().is_none_or(|(least, _)| price < *least) {
            best = Some((price, choice));
        }
    }
    best.map_or_else(|| vec![None; loops], |(_, choice)| choice)
}

fn candidates(axis: usize, claims: &[Claim<'_>]) -> Vec<Option<usize>> {
    let claimed = |stationary: bool| {
        let mut found = Vec::new();
        for claim in claims.iter().filter(|claim| claim.stationary == stationary) {
            for (&at, &split) in claim.map.iter().zip(claim.splits) {
                if split == Some(axis) && !found.contains(&Some(at)) {
                    found.push(Some(at));
                }
            }
        }
        found
    };
    let (parameters, others) = (claimed(true), claimed(false));
    match (parameters.is_empty(), others.is_empty()) {
        (false, _) => parameters,
        (true, false) => others,
        (true, true) => vec![None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_claim_first() {
        // x[t, d] split over t; w[f, d] split over f; loops t, f, d.
        let x = Claim { map: &[0, 2], splits: &[Some(0), None], stationary: false };
        let w = Claim { map: &[1, 2], splits: &[Some(0), None], stationary: true };
        let whatever = assign(3, 1, &[x, w], |choice| u64::from(choice[1].is_some()));
        assert_eq!(whatever, [None, Some(0), None]);
    }

    #[test]
    fn activations_go_where_it_is_cheapest() {
        let rows = Claim { map: &[0, 1], splits: &[Some(0), None], stationary: false };
        let columns = Claim { map: &[0, 1], splits: &[None, Some(0)], stationary: false };
        let cheap = |at: usize| move |choice: &[Option<usize>]| u64::from(choice[at].is_none());
        assert_eq!(assign(2, 1, &[rows, columns], cheap(0)), [Some(0), None]);
        assert_eq!(assign(2, 1, &[rows, columns], cheap(1)), [None, Some(0)]);
        assert_eq!(assign(2, 1, &[rows], |choice| u64::from(choice[0].is_some())), [Some(0), None]);
    }

    #[test]
    fn a_loop_has_one_axis_and_an_axis_one_loop() {
        let a = Claim { map: &[0, 1], splits: &[Some(0), Some(1)], stationary: true };
        let b = Claim { map: &[1, 0], splits: &[Some(0), Some(1)], stationary: true };
        let choice = assign(2, 2, &[a, b], |_| 0);
        assert_eq!(choice, [Some(0), Some(1)]);
    }
}
