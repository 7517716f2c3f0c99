//! Which loop of a structured operation each grid axis splits.

use t3c_ir::Splits;
use t3c_schedule::{Grid, chunks::divides};

/// What one operand says about the loops.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The loop of each dimension.
    pub map: &'a [usize],
    /// The grid axes of each dimension.
    pub splits: &'a [Vec<usize>],
    /// Whether the operand is a parameter, which stays where it is.
    pub stationary: bool,
}

impl Claim<'_> {
    fn claims(&self, axis: usize, at: usize) -> bool {
        self.map.iter().zip(self.splits).any(|(&other, axes)| other == at && axes.contains(&axis))
    }
}

/// The axes of each of the loops of these extents, outermost first.
///
/// An axis that splits parameters goes to a loop that they claim, any other to a loop that some operand claims (so
/// that no work is done twice for want of bytes), where the devices divide it. Among those, the cheapest by
/// `price`; the first claim wins a tie.
pub fn assign<P: PartialOrd>(
    extents: &[u64],
    grid: &Grid,
    claims: &[Claim<'_>],
    price: impl Fn(&Splits) -> P,
) -> Splits {
    let mut choices = vec![t3c_ir::splits::whole(extents.len())];
    for axis in 0..grid.axes.len() {
        let candidates = candidates(axis, claims);
        choices =
            choices.iter().flat_map(|choice| extended(choice, axis, &candidates, extents, grid)).collect();
    }
    choices.iter_mut().for_each(|choice| order(choice, claims));
    let mut best: Option<(P, Splits)> = None;
    for choice in choices {
        let price = price(&choice);
        if best.as_ref().is_none_or(|(least, _)| price < *least) {
            best = Some((price, choice));
        }
    }
    best.map(|(_, choice)| choice).unwrap_or_default()
}

/// `choice` with `axis` on each of the loops that it can split; as it is where there is none.
fn extended(choice: &Splits, axis: usize, loops: &[usize], extents: &[u64], grid: &Grid) -> Vec<Splits> {
    let on = |&at: &usize| {
        let mut choice = choice.clone();
        choice[at].push(axis);
        divides(extents[at], grid.group_size(&choice[at])).then_some(choice)
    };
    let found: Vec<Splits> = loops.iter().filter_map(on).collect();
    if found.is_empty() { vec![choice.clone()] } else { found }
}

/// Puts the axes of each loop in the order of the operand that claims most of them.
fn order(choice: &mut Splits, claims: &[Claim<'_>]) {
    for (at, axes) in choice.iter_mut().enumerate().filter(|(_, axes)| axes.len() > 1) {
        let lists = claims.iter().flat_map(|claim| claim.map.iter().zip(claim.splits));
        let longest = lists
            .filter(|(other, _)| **other == at)
            .map(|(_, list)| list.iter().copied().filter(|axis| axes.contains(axis)).collect::<Vec<_>>())
            .reduce(|best, list| if list.len() > best.len() { list } else { best })
            .unwrap_or_default();
        axes.sort_by_key(|axis| longest.iter().position(|other| other == axis).unwrap_or(usize::MAX));
    }
}

/// The loops that `axis` may split.
fn candidates(axis: usize, claims: &[Claim<'_>]) -> Vec<usize> {
    let claimed = |stationary: bool| {
        let mut found = Vec::new();
        for claim in claims.iter().filter(|claim| claim.stationary == stationary) {
            for &at in claim.map {
                if claim.claims(axis, at) && !found.contains(&at) {
                    found.push(at);
                }
            }
        }
        found
    };
    let parameters = claimed(true);
    if parameters.is_empty() { claimed(false) } else { parameters }
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Axis;

    use super::*;

    fn grid(sizes: &[u32]) -> Grid {
        Grid { axes: sizes.iter().map(|&size| Axis { name: String::new(), size }).collect() }
    }

    fn claim<'a>(map: &'a [usize], splits: &'a [Vec<usize>], stationary: bool) -> Claim<'a> {
        Claim { map, splits, stationary }
    }

    #[test]
    fn parameters_claim_first() {
        // x[t, d] split over t; w[f, d] split over f; loops t, f, d.
        let rows = [vec![0], vec![]];
        let claims = [claim(&[0, 2], &rows, false), claim(&[1, 2], &rows, true)];
        let whatever = assign(&[4, 4, 4], &grid(&[2]), &claims, |choice| choice[1].len());
        assert_eq!(whatever, [vec![], vec![0], vec![]]);
    }

    #[test]
    fn activations_go_where_it_is_cheapest() {
        let (rows, columns) = ([vec![0], vec![]], [vec![], vec![0]]);
        let claims = [claim(&[0, 1], &rows, false), claim(&[0, 1], &columns, false)];
        let cheap = |at: usize| move |choice: &Splits| usize::from(choice[at].is_empty());
        assert_eq!(assign(&[4, 4], &grid(&[2]), &claims, cheap(0)), rows);
        assert_eq!(assign(&[4, 4], &grid(&[2]), &claims, cheap(1)), columns);
        assert_eq!(assign(&[4, 4], &grid(&[2]), &claims[..1], |choice| choice[0].len()), rows);
    }

    #[test]
    fn an_axis_splits_one_loop_and_a_loop_has_the_axes_that_divide_it() {
        let (a, b) = ([vec![1], vec![0]], [vec![1, 0], vec![]]);
        let claims = [claim(&[0, 1], &a, false), claim(&[0, 1], &b, false)];
        let rows = |choice: &Splits| usize::from(choice[0].len() < 2);
        assert_eq!(assign(&[12, 4], &grid(&[2, 3]), &claims, rows), [vec![1, 0], vec![]]);
        assert_eq!(
            assign(&[9, 4], &grid(&[2, 3]), &claims, rows),
            [vec![1], vec![0]],
            "six do not divide nine"
        );
    }
}
