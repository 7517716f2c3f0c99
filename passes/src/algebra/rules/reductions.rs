//! Rules around all-reduce and reduce-scatter, of sums and of maxima.

use t3c_ir::{ScalarBody, ScalarOp};

use super::{
    super::{
        MAX, SUM,
        scalar::{binary, is_exact_scaling, is_monotone, linear},
    },
    Exactness::{Exact, Reassociates},
    Match, Rule, always, each,
    elementwise::cut_before_scatter,
    moves::{to_source, to_view},
    one, rule,
};

/// The rules of this table.
pub fn rules() -> Vec<Rule> {
    let mut rules = parts();
    rules.extend(groups());
    rules.extend(views());
    rules.extend(scalings());
    rules.extend(sums());
    rules
}

fn parts() -> Vec<Rule> {
    vec![
        // A sum of which each device keeps its part.
        rule!(
            Exact,
            "reduce-then-slice",
            one("(slice ?g ?d (reduce ?g ?r ?x))", "(scatter ?g ?r ?d ?x)"),
            always,
            |s| {
                s.integers();
                let (g, d, r, x) = (s.group(), s.dimension(), s.reduction(), s.value());
                format!("(slice {g} {d} (reduce {g} {r} {x}))")
            }
        ),
        rule!(
            Exact,
            "scatter-then-gather",
            one("(gather ?g ?d (scatter ?g ?r ?d ?x))", "(reduce ?g ?r ?x)"),
            always,
            |s| {
                s.integers();
                let (g, d, r, x) = (s.group(), s.dimension(), s.reduction(), s.value());
                format!("(gather {g} {d} (scatter {g} {r} {d} {x}))")
            }
        ),
        // What other devices' parts need not be reduced, or only once.
        rule!(
            Exact,
            "slice-before-reduce",
            one("(slice ?h ?d (reduce ?g ?r ?x))", "(reduce ?g ?r (slice ?h ?d ?x))"),
            |m| m.disjoint("?g", "?h"),
            |s| {
                let ((g, h), d, r, x) = (s.groups(), s.dimension(), s.reduction(), s.value());
                format!("(slice {h} {d} (reduce {g} {r} {x}))")
            }
        ),
        rule!(
            Exact,
            "slice-before-scatter",
            one("(slice ?h ?s (scatter ?g ?r ?d ?x))", "(scatter ?g ?r ?d (slice ?h ?s ?x))"),
            |m| m.differ("?s", "?d").and(m.disjoint("?g", "?h")),
            |s| {
                let ((g, h), (d, c), r, x) = (s.groups(), s.dimensions(), s.reduction(), s.value());
                format!("(slice {h} {c} (scatter {g} {r} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "reduce-before-gather",
            one("(reduce ?g ?r (gather ?h ?c ?x))", "(gather ?h ?c (reduce ?g ?r ?x))"),
            |m| m.disjoint("?g", "?h"),
            |s| {
                let ((g, h), d, r, x) = (s.groups(), s.dimension(), s.reduction(), s.value());
                format!("(reduce {g} {r} (gather {h} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "scatter-before-gather",
            one("(scatter ?g ?r ?d (gather ?h ?c ?x))", "(gather ?h ?c (scatter ?g ?r ?d ?x))"),
            |m| m.differ("?d", "?c").and(m.disjoint("?g", "?h")),
            |s| {
                let ((g, h), (d, c), r, x) = (s.groups(), s.dimensions(), s.reduction(), s.value());
                format!("(scatter {g} {r} {d} (gather {h} {c} {x}))")
            }
        ),
        rule!(
            Exact,
            "cut-before-reduce",
            one("(cut ?k (reduce ?g ?r ?x))", "(reduce ?g ?r (cut ?k ?x))"),
            always,
            |s| {
                let (g, r, c, x) = (s.group(), s.reduction(), s.dimension(), s.value());
                let k = s.cut_of(&x, &c);
                format!("(cut {k} (reduce {g} {r} {x}))")
            }
        ),
        rule!(
            Exact,
            "cut-before-scatter",
            one("(cut ?k (scatter ?g ?r ?d ?x))", "(scatter ?g ?r ?d (cut ?l ?x))"),
            cut_before_scatter,
            |s| {
                let (g, (d, c), r, x) = (s.group(), s.dimensions(), s.reduction(), s.value());
                let scatter = format!("(scatter {g} {r} {d} {x})");
                let k = s.cut_of(&scatter, &c);
                format!("(cut {k} {scatter})")
            }
        ),
    ]
}

/// Binds `?k` to both groups' axes, where the reduction is a maximum.
fn join_max(m: &mut Match<'_>) -> Option<()> {
    m.is("?r", MAX)?;
    join(m)
}

fn join_sum(m: &mut Match<'_>) -> Option<()> {
    m.is("?r", SUM)?;
    join(m)
}

fn join(m: &mut Match<'_>) -> Option<()> {
    m.disjoint("?g", "?h")?;
    let axes = [m.axes("?g")?, m.axes("?h")?].concat();
    m.bind_group("?k", &axes)
}

/// Reductions over several axes, at once or in turn: sums change their order.
fn groups() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "max-of-same",
            one("(reduce ?g ?r ?x)", "?x"),
            |m| m.is("?r", MAX).and(m.same("?g", "?x")),
            |s| {
                let g = s.group();
                format!("(reduce {g} 1 {})", s.same(&g))
            }
        ),
        rule!(
            Exact,
            "max-part-of-same",
            one("(scatter ?g ?r ?d ?x)", "(slice ?g ?d ?x)"),
            |m| m.is("?r", MAX).and(m.same("?g", "?x")),
            |s| {
                let (g, d) = (s.group(), s.dimension());
                format!("(scatter {g} 1 {d} {})", s.same(&g))
            }
        ),
        rule!(
            Exact,
            "max-of-max",
            one("(reduce ?g ?r (reduce ?h ?r ?x))", "(reduce ?k ?r ?x)"),
            join_max,
            |s| {
                let ((g, h), x) = (s.groups(), s.value());
                format!("(reduce {g} 1 (reduce {h} 1 {x}))")
            }
        ),
        rule!(
            Exact,
            "max-part-of-part",
            one("(scatter ?h ?r ?d (scatter ?g ?r ?d ?x))", "(scatter ?k ?r ?d ?x)"),
            join_max,
            |s| {
                let ((g, h), d, x) = (s.groups(), s.dimension(), s.value());
                format!("(scatter {h} 1 {d} (scatter {g} 1 {d} {x}))")
            }
        ),
        rule!(
            Reassociates,
            "sum-of-sum",
            one("(reduce ?g ?r (reduce ?h ?r ?x))", "(reduce ?k ?r ?x)"),
            join_sum,
            |s| {
                let ((g, h), x) = (s.groups(), s.value());
                format!("(reduce {g} 0 (reduce {h} 0 {x}))")
            }
        ),
        rule!(
            Reassociates,
            "sum-part-of-part",
            one("(scatter ?h ?r ?d (scatter ?g ?r ?d ?x))", "(scatter ?k ?r ?d ?x)"),
            join_sum,
            |s| {
                let ((g, h), d, x) = (s.groups(), s.dimension(), s.value());
                format!("(scatter {h} 0 {d} (scatter {g} 0 {d} {x}))")
            }
        ),
    ]
}

fn is_permutation(m: &Match<'_>) -> Option<()> {
    m.require(m.layout("?m")?.is_permutation())
}

fn views() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "reduce-before-view",
            one("(reduce ?g ?r (view ?m ?x))", "(view ?m (reduce ?g ?r ?x))"),
            always,
            |s| {
                let (g, r, x, m) = (s.group(), s.reduction(), s.value(), s.broadcast());
                format!("(reduce {g} {r} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "view-before-reduce",
            one("(view ?m (reduce ?g ?r ?x))", "(reduce ?g ?r (view ?m ?x))"),
            |m| is_permutation(m),
            |s| {
                let (g, r, x, m) = (s.group(), s.reduction(), s.value(), s.permutation());
                format!("(view {m} (reduce {g} {r} {x}))")
            }
        ),
        rule!(
            Exact,
            "scatter-before-view",
            one("(scatter ?g ?r ?e (view ?m ?x))", "(view ?m (scatter ?g ?r ?d ?x))"),
            |m| to_source(m, "?e", "?d"),
            |s| {
                let (g, r, x, m) = (s.group(), s.reduction(), s.value(), s.broadcast());
                let e = s.viewed();
                format!("(scatter {g} {r} {e} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "view-before-scatter",
            one("(view ?m (scatter ?g ?r ?d ?x))", "(scatter ?g ?r ?e (view ?m ?x))"),
            |m| is_permutation(m).and_then(|()| to_view(m, "?d", "?e")),
            |s| {
                let (g, r, d, x, m) = (s.group(), s.reduction(), s.dimension(), s.value(), s.permutation());
                format!("(view {m} (scatter {g} {r} {d} {x}))")
            }
        ),
    ]
}

/// Whether the function changes places with the reduction, bit by bit.
fn commutes(m: &mut Match<'_>) -> Option<()> {
    let exact: fn(&ScalarBody) -> bool = if m.number("?r")? == MAX { is_monotone } else { is_exact_scaling };
    m.require(exact(m.function("?f")?))
}

/// Whether a maximum changes places with the function of `?x` and a `?y` that all devices hold.
fn shifts(m: &mut Match<'_>) -> Option<()> {
    let keeps_order = [ScalarOp::AddF, ScalarOp::SubF, ScalarOp::MaxF, ScalarOp::MinF];
    m.is("?r", MAX)?;
    m.same("?g", "?y")?;
    m.require(keeps_order.contains(&binary(m.function("?f")?)?))
}

fn scalings() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "scale-after-reduce",
            one("(reduce ?g ?r (map ?f ?x))", "(map ?f (reduce ?g ?r ?x))"),
            commutes,
            |s| {
                let (g, r, x) = (s.group(), s.reduction(), s.value());
                format!("(reduce {g} {r} (map {} {x}))", s.scaling(&r))
            }
        ),
        rule!(
            Exact,
            "scale-before-reduce",
            one("(map ?f (reduce ?g ?r ?x))", "(reduce ?g ?r (map ?f ?x))"),
            commutes,
            |s| {
                let (g, r, x) = (s.group(), s.reduction(), s.value());
                format!("(map {} (reduce {g} {r} {x}))", s.scaling(&r))
            }
        ),
        rule!(
            Exact,
            "scale-after-scatter",
            one("(scatter ?g ?r ?d (map ?f ?x))", "(map ?f (scatter ?g ?r ?d ?x))"),
            commutes,
            |s| {
                let (g, r, d, x) = (s.group(), s.reduction(), s.dimension(), s.value());
                format!("(scatter {g} {r} {d} (map {} {x}))", s.scaling(&r))
            }
        ),
        rule!(
            Exact,
            "scale-before-scatter",
            one("(map ?f (scatter ?g ?r ?d ?x))", "(scatter ?g ?r ?d (map ?f ?x))"),
            commutes,
            |s| {
                let (g, r, d, x) = (s.group(), s.reduction(), s.dimension(), s.value());
                format!("(map {} (scatter {g} {r} {d} {x}))", s.scaling(&r))
            }
        ),
        rule!(
            Exact,
            "shift-after-max",
            one("(reduce ?g ?r (map ?f ?x ?y))", "(map ?f (reduce ?g ?r ?x) ?y)"),
            shifts,
            |s| {
                let (g, f, x) = (s.group(), s.shift(), s.value());
                format!("(reduce {g} 1 (map {f} {x} {}))", s.same(&g))
            }
        ),
        rule!(
            Exact,
            "shift-after-max-part",
            one("(scatter ?g ?r ?d (map ?f ?x ?y))", "(map ?f (scatter ?g ?r ?d ?x) (slice ?g ?d ?y))"),
            shifts,
            |s| {
                let (g, d, f, x) = (s.group(), s.dimension(), s.shift(), s.value());
                format!("(scatter {g} 1 {d} (map {f} {x} {}))", s.same(&g))
            }
        ),
    ]
}

/// Whether the reduction is a sum and the function linear in all its arguments.
fn is_linear(m: &mut Match<'_>) -> Option<()> {
    m.is("?r", SUM)?;
    m.require(linear(m.function("?f")?).is_some())
}

/// Whether the reduction is a sum and the function scales it by a `?y` that all devices hold.
fn scales(m: &mut Match<'_>) -> Option<()> {
    m.is("?r", SUM)?;
    m.same("?g", "?y")?;
    m.require(matches!(binary(m.function("?f")?)?, ScalarOp::MulF | ScalarOp::DivF))
}

/// Whether the reduction is a sum and the function scales it by a `?y` that all devices hold, which comes first.
fn scales_from_left(m: &mut Match<'_>) -> Option<()> {
    scales(m)?;
    m.require(binary(m.function("?f")?)? == ScalarOp::MulF)
}

fn sums() -> Vec<Rule> {
    vec![
        // One collective instead of several.
        rule!(
            Reassociates,
            "sum-before-reduce",
            each("(map ?f [reduce ?g ?r {x}])", "(reduce ?g ?r (map ?f {x}))"),
            is_linear,
            |s| {
                let (g, count) = (s.group(), s.count());
                let f = s.linear(count);
                let sums: Vec<String> = (0..count).map(|_| format!("(reduce {g} 0 {})", s.value())).collect();
                format!("(map {f} {})", sums.join(" "))
            }
        ),
        rule!(
            Reassociates,
            "sum-after-reduce",
            each("(reduce ?g ?r (map ?f {x}))", "(map ?f [reduce ?g ?r {x}])"),
            is_linear,
            |s| {
                let g = s.group();
                format!("(reduce {g} 0 {})", s.linear_of_values())
            }
        ),
        rule!(
            Reassociates,
            "sum-before-scatter",
            each("(map ?f [scatter ?g ?r ?d {x}])", "(scatter ?g ?r ?d (map ?f {x}))"),
            is_linear,
            |s| {
                let (g, d, count) = (s.group(), s.dimension(), s.count());
                let f = s.linear(count);
                let sums: Vec<String> =
                    (0..count).map(|_| format!("(scatter {g} 0 {d} {})", s.value())).collect();
                format!("(map {f} {})", sums.join(" "))
            }
        ),
        rule!(
            Reassociates,
            "sum-after-scatter",
            each("(scatter ?g ?r ?d (map ?f {x}))", "(map ?f [scatter ?g ?r ?d {x}])"),
            is_linear,
            |s| {
                let (g, d) = (s.group(), s.dimension());
                format!("(scatter {g} 0 {d} {})", s.linear_of_values())
            }
        ),
        rule!(
            Reassociates,
            "factor-after-reduce",
            one("(reduce ?g ?r (map ?f ?x ?y))", "(map ?f (reduce ?g ?r ?x) ?y)"),
            scales,
            |s| {
                let (g, f, x) = (s.group(), s.factor(), s.value());
                format!("(reduce {g} 0 (map {f} {x} {}))", s.same(&g))
            }
        ),
        rule!(
            Reassociates,
            "factor-from-left-after-reduce",
            one("(reduce ?g ?r (map ?f ?y ?x))", "(map ?f ?y (reduce ?g ?r ?x))"),
            scales_from_left,
            |s| {
                let (g, f, x) = (s.group(), s.product(), s.value());
                format!("(reduce {g} 0 (map {f} {} {x}))", s.same(&g))
            }
        ),
        rule!(
            Reassociates,
            "factor-after-scatter",
            one("(scatter ?g ?r ?d (map ?f ?x ?y))", "(map ?f (scatter ?g ?r ?d ?x) (slice ?g ?d ?y))"),
            scales,
            |s| {
                let (g, d, f, x) = (s.group(), s.dimension(), s.factor(), s.value());
                format!("(scatter {g} 0 {d} (map {f} {x} {}))", s.same(&g))
            }
        ),
        rule!(
            Reassociates,
            "factor-from-left-after-scatter",
            one("(scatter ?g ?r ?d (map ?f ?y ?x))", "(map ?f (slice ?g ?d ?y) (scatter ?g ?r ?d ?x))"),
            scales_from_left,
            |s| {
                let (g, d, f, x) = (s.group(), s.dimension(), s.product(), s.value());
                format!("(scatter {g} 0 {d} (map {f} {} {x}))", s.same(&g))
            }
        ),
    ]
}
