//! Rules in which data only moves: gathers, slices, all-to-alls, views and cuts.

use super::{
    super::tables::{Cut, Layout},
    Exactness::Exact,
    Match, Rule, always, one, rule,
};

/// The rules of this table.
pub fn rules() -> Vec<Rule> {
    let mut rules = gathers();
    rules.extend(exchanges());
    rules.extend(views());
    rules.extend(cuts());
    rules
}

fn gathers() -> Vec<Rule> {
    vec![
        // A group of one device.
        rule!(Exact, "alone", alone(), |m| m.require(m.devices("?g")? == 1), |s| {
            let (g, (d, c), r, x) = (s.alone(), s.dimensions(), s.reduction(), s.value());
            match s.below(5) {
                0 => format!("(gather {g} {d} {x})"),
                1 => format!("(slice {g} {d} {x})"),
                2 => format!("(scatter {g} {r} {d} {x})"),
                3 => format!("(reduce {g} {r} {x})"),
                _ => format!("(exchange {g} {d} {c} {x})"),
            }
        }),
        // Each device gets back the part that it gave.
        rule!(Exact, "gather-then-slice", one("(slice ?g ?d (gather ?g ?d ?x))", "?x"), always, |s| {
            let (g, d, x) = (s.group(), s.dimension(), s.value());
            format!("(slice {g} {d} (gather {g} {d} {x}))")
        }),
        // Only where all devices hold the same: else the parts belong to different wholes.
        rule!(
            Exact,
            "slice-then-gather",
            one("(gather ?g ?d (slice ?g ?d ?x))", "?x"),
            |m| m.same("?g", "?x"),
            |s| {
                let (g, d) = (s.group(), s.dimension());
                let x = s.same(&g);
                format!("(gather {g} {d} (slice {g} {d} {x}))")
            }
        ),
        // Of the whole of one dimension, each device keeps a part of another: an all-to-all.
        rule!(
            Exact,
            "gather-then-slice-elsewhere",
            one("(slice ?g ?s (gather ?g ?c ?x))", "(exchange ?g ?s ?c ?x)"),
            |m| m.differ("?s", "?c"),
            |s| {
                let (g, (d, c), x) = (s.group(), s.dimensions(), s.value());
                format!("(slice {g} {d} (gather {g} {c} {x}))")
            }
        ),
        // Other devices, another dimension: less to gather.
        rule!(
            Exact,
            "slice-before-gather",
            one("(slice ?h ?s (gather ?g ?c ?x))", "(gather ?g ?c (slice ?h ?s ?x))"),
            |m| m.differ("?s", "?c").and(m.disjoint("?g", "?h")),
            |s| {
                let ((g, h), (d, c), x) = (s.groups(), s.dimensions(), s.value());
                format!("(slice {h} {d} (gather {g} {c} {x}))")
            }
        ),
        // Two gathers of one dimension are one over both groups' axes, and back.
        rule!(
            Exact,
            "gather-of-gather",
            one("(gather ?g ?d (gather ?h ?d ?x))", "(gather ?k ?d ?x)"),
            join,
            |s| {
                let ((g, h), d, x) = (s.groups(), s.dimension(), s.value());
                format!("(gather {g} {d} (gather {h} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "gather-in-two",
            one("(gather ?k ?d ?x)", "(gather ?g ?d (gather ?h ?d ?x))"),
            separate,
            |s| {
                let (k, d, x) = (s.joint(), s.dimension(), s.value());
                format!("(gather {k} {d} {x})")
            }
        ),
        rule!(
            Exact,
            "slice-of-slice",
            one("(slice ?h ?d (slice ?g ?d ?x))", "(slice ?k ?d ?x)"),
            join,
            |s| {
                let ((g, h), d, x) = (s.groups(), s.dimension(), s.value());
                format!("(slice {h} {d} (slice {g} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "slice-in-two",
            one("(slice ?k ?d ?x)", "(slice ?h ?d (slice ?g ?d ?x))"),
            separate,
            |s| {
                let (k, d, x) = (s.joint(), s.dimension(), s.value());
                format!("(slice {k} {d} {x})")
            }
        ),
        // Gathers of different dimensions over different axes change places.
        rule!(
            Exact,
            "gather-past-gather",
            one("(gather ?g ?s (gather ?h ?c ?x))", "(gather ?h ?c (gather ?g ?s ?x))"),
            |m| m.differ("?s", "?c").and(m.disjoint("?g", "?h")),
            |s| {
                let ((g, h), (d, c), x) = (s.groups(), s.dimensions(), s.value());
                format!("(gather {g} {d} (gather {h} {c} {x}))")
            }
        ),
    ]
}

fn alone() -> Vec<(String, String)> {
    let all = [
        "(gather ?g ?d ?x)",
        "(slice ?g ?d ?x)",
        "(scatter ?g ?r ?d ?x)",
        "(reduce ?g ?r ?x)",
        "(exchange ?g ?s ?c ?x)",
    ];
    all.into_iter().map(|left| (left.to_owned(), "?x".to_owned())).collect()
}

/// `?k` is the group along the axes of `?g`, then of `?h`.
fn join(m: &mut Match<'_>) -> Option<()> {
    m.disjoint("?g", "?h")?;
    let axes = [m.axes("?g")?, m.axes("?h")?].concat();
    m.bind_group("?k", &axes)
}

/// `?g` is the first axis of `?k`, `?h` the others.
fn separate(m: &mut Match<'_>) -> Option<()> {
    let axes = m.axes("?k")?;
    let (first, others) = axes.split_at_checked(1)?;
    m.require(!others.is_empty())?;
    m.bind_group("?g", first)?;
    m.bind_group("?h", others)
}

fn exchanges() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "exchange-and-back",
            one("(exchange ?g ?s ?c (exchange ?g ?c ?s ?x))", "?x"),
            always,
            |s| {
                let (g, (d, c), x) = (s.group(), s.dimensions(), s.value());
                format!("(exchange {g} {d} {c} (exchange {g} {c} {d} {x}))")
            }
        ),
        // What was spread along `s` is spread along `t`.
        rule!(
            Exact,
            "exchange-twice",
            one("(exchange ?g ?t ?s (exchange ?g ?s ?c ?x))", "(exchange ?g ?t ?c ?x)"),
            |m| m.differ("?s", "?c").and(m.differ("?t", "?s")).and(m.differ("?t", "?c")),
            |s| {
                s.rank(3);
                let (g, x) = (s.group(), s.value());
                format!("(exchange {g} 2 0 (exchange {g} 0 1 {x}))")
            }
        ),
        rule!(
            Exact,
            "exchange-then-gather",
            one("(gather ?g ?s (exchange ?g ?s ?c ?x))", "(gather ?g ?c ?x)"),
            |m| m.differ("?s", "?c"),
            |s| {
                let (g, (d, c), x) = (s.group(), s.dimensions(), s.value());
                format!("(gather {g} {d} (exchange {g} {d} {c} {x}))")
            }
        ),
        rule!(
            Exact,
            "slice-then-exchange",
            one("(exchange ?g ?s ?c (slice ?g ?c ?x))", "(slice ?g ?s ?x)"),
            |m| m.differ("?s", "?c").and(m.same("?g", "?x")),
            |s| {
                let (g, (d, c)) = (s.group(), s.dimensions());
                let x = s.same(&g);
                format!("(exchange {g} {d} {c} (slice {g} {c} {x}))")
            }
        ),
    ]
}

fn views() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "view-of-view",
            one("(view ?m (view ?n ?x))", "(view ?k ?x)"),
            |m| {
                let layout = m.layout("?m")?.of_view(&m.layout("?n")?);
                m.bind_layout("?k", layout)
            },
            |s| {
                let (x, n) = (s.value(), s.broadcast());
                let m = s.permutation_of(s.viewed_rank());
                format!("(view {m} (view {n} {x}))")
            }
        ),
        rule!(
            Exact,
            "view-of-all",
            one("(view ?m ?x)", "?x"),
            |m| m.require(m.layout("?m")?.is_identity()),
            |s| {
                let (x, m) = (s.value(), s.identity());
                format!("(view {m} {x})")
            }
        ),
        rule!(
            Exact,
            "gather-before-view",
            one("(view ?m (gather ?g ?d ?x))", "(gather ?g ?e (view ?m ?x))"),
            |m| to_view(m, "?d", "?e"),
            |s| {
                let (g, d, x, m) = (s.group(), s.dimension(), s.value(), s.broadcast());
                format!("(view {m} (gather {g} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "view-before-gather",
            one("(gather ?g ?e (view ?m ?x))", "(view ?m (gather ?g ?d ?x))"),
            |m| to_source(m, "?e", "?d"),
            |s| {
                let (g, x, m) = (s.group(), s.value(), s.broadcast());
                let e = s.viewed();
                format!("(gather {g} {e} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "slice-before-view",
            one("(slice ?g ?e (view ?m ?x))", "(view ?m (slice ?g ?d ?x))"),
            |m| to_source(m, "?e", "?d"),
            |s| {
                let (g, x, m) = (s.group(), s.value(), s.broadcast());
                let e = s.viewed();
                format!("(slice {g} {e} (view {m} {x}))")
            }
        ),
        // A part of what repeats is fewer repetitions; the parts of what repeats everywhere are more of them.
        rule!(
            Exact,
            "slice-of-repeated",
            one("(slice ?g ?e (view ?m ?x))", "(view ?n ?x)"),
            |m| {
                let devices = m.devices("?g")?;
                repeat(m, "?e", |extent| extent / devices)
            },
            |s| {
                let (g, x, m) = (s.group(), s.value(), s.broadcast());
                let e = s.repeated();
                format!("(slice {g} {e} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "gather-of-repeated",
            one("(gather ?g ?e (view ?m ?x))", "(view ?n ?x)"),
            |m| {
                m.same("?g", "?x")?;
                let devices = m.devices("?g")?;
                repeat(m, "?e", |extent| extent * devices)
            },
            |s| {
                let g = s.group();
                let (x, m) = (s.same(&g), s.broadcast());
                let e = s.repeated();
                format!("(gather {g} {e} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "exchange-before-view",
            one("(view ?m (exchange ?g ?s ?c ?x))", "(exchange ?g ?t ?e (view ?m ?x))"),
            |m| to_view(m, "?s", "?t").and_then(|()| to_view(m, "?c", "?e")),
            |s| {
                let (g, (d, c), x, m) = (s.group(), s.dimensions(), s.value(), s.permutation());
                format!("(view {m} (exchange {g} {d} {c} {x}))")
            }
        ),
        rule!(
            Exact,
            "view-before-exchange",
            one("(exchange ?g ?t ?e (view ?m ?x))", "(view ?m (exchange ?g ?s ?c ?x))"),
            |m| to_source(m, "?t", "?s").and_then(|()| to_source(m, "?e", "?c")),
            |s| {
                let (g, (t, e), x, m) = (s.group(), s.dimensions(), s.value(), s.permutation());
                format!("(exchange {g} {t} {e} (view {m} {x}))")
            }
        ),
    ]
}

/// Binds the view's dimension of the tensor's.
pub(super) fn to_view(m: &mut Match<'_>, from: &str, to: &str) -> Option<()> {
    let dimension = *m.layout("?m")?.map.get(m.dimension(from)?)?;
    m.bind_dimension(to, dimension)
}

/// Binds the tensor's dimension of the view's, unless that repeats.
pub(super) fn to_source(m: &mut Match<'_>, from: &str, to: &str) -> Option<()> {
    let dimension = m.layout("?m")?.source(m.dimension(from)?)?;
    m.bind_dimension(to, dimension)
}

/// Binds `?n` to the layout `?m` with another extent of a dimension that repeats.
fn repeat(m: &mut Match<'_>, dimension: &str, change: impl Fn(u64) -> u64) -> Option<()> {
    let (layout, dimension): (Layout, usize) = (m.layout("?m")?, m.dimension(dimension)?);
    m.require(layout.source(dimension).is_none())?;
    let extent = change(layout.extents[dimension]);
    m.bind_layout("?n", layout.with_extent(dimension, extent))
}

fn cuts() -> Vec<Rule> {
    vec![
        rule!(
            Exact,
            "cut-before-gather",
            one("(cut ?k (gather ?g ?d ?x))", "(gather ?g ?d (cut ?l ?x))"),
            |m| {
                let (d, devices) = (m.dimension("?d")?, m.devices("?g")?);
                let part = m.extent("?x", d)?;
                whole(m, d, part * devices, part)
            },
            |s| {
                let (g, (d, c), x) = (s.group(), s.dimensions(), s.value());
                let k = s.cut_of(&format!("(gather {g} {d} {x})"), &c);
                format!("(cut {k} (gather {g} {d} {x}))")
            }
        ),
        rule!(
            Exact,
            "cut-before-slice",
            one("(slice ?g ?d (cut ?k ?x))", "(cut ?l (slice ?g ?d ?x))"),
            |m| {
                let (d, devices) = (m.dimension("?d")?, m.devices("?g")?);
                let whole_extent = m.extent("?x", d)?;
                whole(m, d, whole_extent, whole_extent / devices)
            },
            |s| {
                let (g, (d, c), x) = (s.group(), s.dimensions(), s.value());
                let k = s.cut_of(&x, &c);
                format!("(slice {g} {d} (cut {k} {x}))")
            }
        ),
        rule!(
            Exact,
            "cut-before-view",
            one("(cut ?k (view ?m ?x))", "(view ?n (cut ?l ?x))"),
            |m| {
                let (cut, layout): (Cut, Layout) = (m.cut("?k")?, m.layout("?m")?);
                m.bind_layout("?n", Layout::new(&layout.map, &cut.sizes))?;
                m.bind_cut("?l", cut.through(&layout))
            },
            |s| {
                let (x, m) = (s.value(), s.broadcast());
                let c = s.viewed();
                let k = s.cut_of(&format!("(view {m} {x})"), &c);
                format!("(cut {k} (view {m} {x}))")
            }
        ),
        rule!(
            Exact,
            "cut-before-exchange",
            one("(cut ?k (exchange ?g ?s ?c ?x))", "(exchange ?g ?s ?c (cut ?l ?x))"),
            |m| {
                m.differ("?s", "?c")?;
                let (s, c, devices) = (m.dimension("?s")?, m.dimension("?c")?, m.devices("?g")?);
                let (split, part) = (m.extent("?x", s)?, m.extent("?x", c)?);
                let cut = m.cut("?k")?;
                m.require(cut.is_whole(s, split / devices) && cut.is_whole(c, part * devices))?;
                m.bind_cut("?l", cut.with_whole(s, split).with_whole(c, part))
            },
            |s| {
                s.rank(3);
                let (g, x) = (s.group(), s.value());
                let k = s.cut_of(&format!("(exchange {g} 0 2 {x})"), "1");
                format!("(cut {k} (exchange {g} 0 2 {x}))")
            }
        ),
    ]
}

/// Binds `?l` to the cut `?k`, which must take all of a dimension, for another extent of that dimension.
pub(super) fn whole(m: &mut Match<'_>, dimension: usize, from: u64, to: u64) -> Option<()> {
    let cut = m.cut("?k")?;
    m.require(cut.is_whole(dimension, from))?;
    m.bind_cut("?l", cut.with_whole(dimension, to))
}
