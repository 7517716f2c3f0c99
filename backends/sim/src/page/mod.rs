//! Reports as one self-contained page: text for readers who have not read the paper, plots as inline SVG.

mod reproduction;
mod simulation;
mod svg;

pub use reproduction::reproduction;
pub use simulation::{Shown, simulation};

use svg::{COLOURS, escape};

const STYLE: &str = "
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:980px;margin:2rem auto;padding:0 20px}
h1{font-size:1.7rem;line-height:1.2;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem}
p.s{color:#555;margin-top:0}
svg{width:100%;height:auto;display:block;margin:.6rem 0}
svg text{font:12px system-ui,sans-serif;fill:#333}svg .m{text-anchor:middle}svg .e{text-anchor:end}svg .t{fill:#666}
svg .g{stroke:#e3e3e3}svg .b{stroke:#555;stroke-dasharray:3 3}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:3px 8px;border-bottom:1px solid #e3e3e3;text-align:right;white-space:nowrap}th{background:#f6f6f6}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
.w{overflow-x:auto}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:600}dd{margin:0}
.near{background:#e6f4ea}.far{background:#fdeeda}
";

/// What every page says first.
const INTRODUCTION: &str = "<p>When a model is spread over several accelerators, each computes a part of a
matrix product and all parts must be added up before anyone goes on. Usually the product runs first and the
exchange (<em>reduce-scatter</em>, then <em>all-gather</em>) after it, so that the links wait for the product and the
product's units for the links. <em>Track-and-trigger</em> (T3, Pati et al., ASPLOS 2024) sends each finished part of
the product at once: a small table beside memory counts what has arrived, and the last arrival triggers the next
transfer. Memory adds the parts itself.</p>";

const POLICIES: [(&str, &str); 7] = [
    ("sequential", "product, then reduce-scatter, then all-gather"),
    ("cu-split-8", "overlap in software: 8 compute units move data while the others compute"),
    ("cu-split-16", "the same with 16"),
    ("t3", "track-and-trigger; both kinds of memory access take turns"),
    ("t3-mca", "track-and-trigger; the product's accesses go first"),
    ("ideal-overlap", "a bound: the longer of product and reduce-scatter, as if they shared nothing"),
    ("ideal-overlap+nmc", "the same with a reduce-scatter that memory adds up"),
];

fn page(title: &str, subtitle: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<p class=\"s\">{}</p>\n{body}</html>\n",
        escape(subtitle)
    )
}

fn policies() -> String {
    let terms: String =
        POLICIES.iter().map(|(name, what)| format!("<dt>{name}</dt><dd>{what}</dd>\n")).collect();
    format!("<dl>\n{terms}</dl>\n")
}

fn table(head: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{}</th>", escape(cell))).collect();
    let rows: String = rows
        .iter()
        .map(|(class, cells)| {
            let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
            format!("<tr class=\"{class}\">{cells}</tr>\n")
        })
        .collect();
    format!("<div class=\"w\"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n")
}

const _: () = assert!(COLOURS.len() >= POLICIES.len());
