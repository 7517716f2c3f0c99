//! Rules in which elementwise work, of any number of operands, changes places with what moves data.

use super::{Exactness::Exact, Match, OPERANDS, Rule, always, each, moves::whole, rule};

/// The rules of this table.
pub fn rules() -> Vec<Rule> {
    let mut rules = across_gathers();
    rules.extend(across_exchanges());
    rules.extend(across_views());
    rules
}

fn across_gathers() -> Vec<Rule> {
    vec![
        // Work on a part costs less than on the whole. Operands that all devices hold are sliced, so that gathers
        // among them vanish.
        rule!(Exact, "map-before-gather", around_one_gather(), others_are_same, |s| {
            let (g, d, count) = (s.group(), s.dimension(), s.count());
            let f = s.map(count);
            let at = s.below(count);
            let y = s.value();
            let operand = |index: usize, s: &mut super::super::soundness::Sampler| match index == at {
                true => format!("(gather {g} {d} {y})"),
                false => s.same_whole(&g, &d),
            };
            let operands: Vec<String> = (0..count).map(|index| operand(index, s)).collect();
            format!("(map {f} {})", operands.join(" "))
        }),
        // A cast moves to the side of the narrower type.
        rule!(
            Exact,
            "map-after-gather",
            each("(gather ?g ?d (map ?f {x}))", "(map ?f [gather ?g ?d {x}])"),
            always,
            |s| {
                let (g, d, map) = (s.group(), s.dimension(), s.map_of_values());
                format!("(gather {g} {d} {map})")
            }
        ),
        rule!(
            Exact,
            "slice-before-map",
            each("(slice ?g ?d (map ?f {x}))", "(map ?f [slice ?g ?d {x}])"),
            always,
            |s| {
                let (g, d, map) = (s.group(), s.dimension(), s.map_of_values());
                format!("(slice {g} {d} {map})")
            }
        ),
    ]
}

/// For each number of operands and each place among them, that operand gathered.
fn around_one_gather() -> Vec<(String, String)> {
    let places = (1..=OPERANDS).flat_map(|count| (0..count).map(move |at| (count, at)));
    let list = |count: usize, make: &dyn Fn(usize) -> String| -> String {
        (0..count).map(make).collect::<Vec<_>>().join(" ")
    };
    places
        .map(|(count, at)| {
            let left = list(count, &|index| match index == at {
                true => "(gather ?g ?d ?y)".to_owned(),
                false => format!("?x{index}"),
            });
            let right = list(count, &|index| match index == at {
                true => "?y".to_owned(),
                false => format!("(slice ?g ?d ?x{index})"),
            });
            (format!("(map ?f {left})"), format!("(gather ?g ?d (map ?f {right}))"))
        })
        .collect()
}

fn others_are_same(m: &mut Match<'_>) -> Option<()> {
    (0..OPERANDS)
        .map(|index| format!("?x{index}"))
        .filter(|name| m.number(name).is_some())
        .try_for_each(|name| m.same("?g", &name))
}

fn across_exchanges() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "map-before-exchange",
            each("(map ?f [exchange ?g ?s ?c {x}])", "(exchange ?g ?s ?c (map ?f {x}))"),
            always,
            |s| {
                let (g, (d, c), count) = (s.group(), s.dimensions(), s.count());
                let f = s.map(count);
                let operands: Vec<String> =
                    (0..count).map(|_| format!("(exchange {g} {d} {c} {})", s.value())).collect();
                format!("(map {f} {})", operands.join(" "))
            }
        ),
        rule!(
            Exact,
            "map-after-exchange",
            each("(exchange ?g ?s ?c (map ?f {x}))", "(map ?f [exchange ?g ?s ?c {x}])"),
            always,
            |s| {
                let (g, (d, c), map) = (s.group(), s.dimensions(), s.map_of_values());
                format!("(exchange {g} {d} {c} {map})")
            }
        ),
    ]
}

fn across_views() -> Vec<Rule> {
    vec![
        // Elementwise work reads its operands through views, so that none need be stored.
        rule!(
            Exact,
            "view-before-map",
            each("(view ?m (map ?f {x}))", "(map ?f [view ?m {x}])"),
            always,
            |s| {
                let (map, m) = (s.map_of_values(), s.broadcast());
                format!("(view {m} {map})")
            }
        ),
        // Nor is the same computed at every repetition.
        rule!(
            Exact,
            "map-before-view",
            each("(map ?f [view ?m {x}])", "(view ?m (map ?f {x}))"),
            always,
            |s| {
                let (count, m) = (s.count(), s.broadcast());
                let f = s.map(count);
                let operands: Vec<String> = (0..count).map(|_| format!("(view {m} {})", s.value())).collect();
                format!("(map {f} {})", operands.join(" "))
            }
        ),
        rule!(Exact, "cut-before-map", each("(cut ?k (map ?f {x}))", "(map ?f [cut ?k {x}])"), always, |s| {
            let (map, c) = (s.map_of_values(), s.dimension());
            let k = s.cut_of(&map, &c);
            format!("(cut {k} {map})")
        }),
    ]
}

/// Requires the cut to take all of the scattered dimension, and binds it for the whole.
pub(super) fn cut_before_scatter(m: &mut Match<'_>) -> Option<()> {
    let (d, devices) = (m.dimension("?d")?, m.devices("?g")?);
    let extent = m.extent("?x", d)?;
    whole(m, d, extent / devices, extent)
}
