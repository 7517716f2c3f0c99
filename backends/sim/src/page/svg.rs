//! Plots as inline SVG: few kinds, one look, no script.

use std::fmt::Write;

/// Colours that people with colour-blindness tell apart (Okabe and Ito).
pub(crate) const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#666666"];

const WIDTH: f64 = 940.0;
const LABELS: f64 = 270.0;
const RIGHT: f64 = 24.0;

/// Text for markup.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The end of a long label says more than its start: which product of a layer.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return escape(text);
    }
    escape(&format!("…{}", text.chars().skip(count - most + 1).collect::<String>()))
}

/// A linear scale from values to positions, with round steps.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Scale {
    fn new(low: f64, high: f64, from: f64, to: f64) -> Self {
        let span = (high - low).max(1e-9);
        let rough = span / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|s| s * power).find(|s| *s >= rough).unwrap_or(rough);
        // A sum of shares may be a hair over its whole.
        let (low, high) = ((low / step + 1e-6).floor() * step, (high / step - 1e-6).ceil() * step);
        Self { low, high: if high > low { high } else { low + step }, from, to, step }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// A tick with the digits that tell it from its neighbours.
    fn label(&self, tick: f64) -> String {
        let digits = (0..9).find(|&digits| {
            let scaled = self.step * 10f64.powi(digits);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0) && scaled.round() >= 1.0
        });
        format!("{tick:.0$}", digits.unwrap_or(2) as usize)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|index| self.low + index as f64 * self.step)
    }
}

/// A number with as many digits as its size needs.
pub(crate) fn number(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {height:.0}\">\n<title>{title}</title>\n"
    )
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{content}</text>");
}

/// The names of series with their colours, in as many lines as they need; the height of those lines.
fn legend(svg: &mut String, series: &[&str]) -> f64 {
    let (mut x, mut y) = (LABELS, 14.0);
    for (index, name) in series.iter().enumerate() {
        let width = 34.0 + 7.6 * name.chars().count() as f64;
        if x + width > WIDTH && x > LABELS {
            (x, y) = (LABELS, y + 18.0);
        }
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            y - 9.0
        );
        text(svg, x + 15.0, y, "l", &escape(name));
        x += width;
    }
    y
}

/// Vertical lines with their values below, and the axis's name.
fn x_axis(svg: &mut String, scale: &Scale, top: f64, bottom: f64, name: &str) {
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" class=\"g\"/>"
        );
        text(svg, x, bottom + 15.0, "t m", &scale.label(tick));
    }
    text(svg, (scale.from + scale.to) / 2.0, bottom + 32.0, "t m", &escape(name));
}

/// A row of dots for each label: values of several series on one axis.
pub(crate) fn dots(
    title: &str,
    axis: &str,
    series: &[&str],
    rows: &[(String, Vec<f64>)],
    mark: f64,
) -> String {
    const ROW: f64 = 19.0;
    let mut names = String::new();
    let top = legend(&mut names, series) + 16.0;
    let bottom = top + ROW * rows.len() as f64 + 6.0;
    let values = rows.iter().flat_map(|(_, values)| values.iter().copied());
    let low = values.clone().fold(mark, f64::min);
    let high = values.fold(mark, f64::max);
    let scale = Scale::new(low, high, LABELS, WIDTH - RIGHT);
    let mut svg = open(title, bottom + 42.0) + &names;
    x_axis(&mut svg, &scale, top, bottom, axis);
    let at = scale.at(mark);
    let _ =
        writeln!(svg, "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" class=\"b\"/>");
    for (row, (label, values)) in rows.iter().enumerate() {
        let y = top + ROW * (row as f64 + 0.5) + 3.0;
        text(&mut svg, LABELS - 10.0, y + 4.0, "l e", &shortened(label, 40));
        let _ = writeln!(
            svg,
            "<line x1=\"{LABELS}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"g\"/>",
            WIDTH - RIGHT
        );
        for (index, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let (x, colour) = (scale.at(*value), COLOURS[index % COLOURS.len()]);
            let name = escape(series.get(index).unwrap_or(&""));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\" fill-opacity=\".85\"><title>{}: {name} {}</title></circle>",
                escape(label),
                number(*value)
            );
        }
    }
    svg + "</svg>\n"
}

/// A bar for each label, of parts one after the other.
pub(crate) fn stacked(title: &str, axis: &str, series: &[&str], rows: &[(String, Vec<f64>)]) -> String {
    const ROW: f64 = 22.0;
    let mut names = String::new();
    let top = legend(&mut names, series) + 16.0;
    let bottom = top + ROW * rows.len() as f64 + 6.0;
    let high = rows.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(0.0, f64::max);
    let scale = Scale::new(0.0, high, LABELS, WIDTH - RIGHT);
    let mut svg = open(title, bottom + 42.0) + &names;
    x_axis(&mut svg, &scale, top, bottom, axis);
    for (row, (label, values)) in rows.iter().enumerate() {
        let y = top + ROW * row as f64 + 5.0;
        text(&mut svg, LABELS - 10.0, y + 12.0, "l e", &shortened(label, 40));
        let mut start = 0.0;
        for (index, value) in values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
            let (x, end, colour) = (scale.at(start), scale.at(start + value), COLOURS[index % COLOURS.len()]);
            let name = escape(series.get(index).unwrap_or(&""));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"16\" fill=\"{colour}\"><title>{}: {name} {}</title></rect>",
                (end - x).max(0.3),
                escape(label),
                number(*value)
            );
            start += value;
        }
    }
    svg + "</svg>\n"
}

/// Values over time, as steps.
pub(crate) fn over_time(
    title: &str,
    x_name: &str,
    y_name: &str,
    series: &[(&str, Vec<(f64, f64)>)],
) -> String {
    const HEIGHT: f64 = 250.0;
    let (left, top) = (70.0, 30.0);
    let points = || series.iter().flat_map(|(_, points)| points.iter());
    let x = Scale::new(0.0, points().map(|point| point.0).fold(0.0, f64::max), left, WIDTH - RIGHT);
    let y = Scale::new(0.0, points().map(|point| point.1).fold(0.0, f64::max), HEIGHT, top);
    let mut svg = open(title, HEIGHT + 42.0);
    let names: Vec<&str> = series.iter().map(|(name, _)| *name).collect();
    legend(&mut svg, &names);
    x_axis(&mut svg, &x, top, HEIGHT, x_name);
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"g\"/>",
            WIDTH - RIGHT
        );
        text(&mut svg, left - 8.0, at + 4.0, "t e", &y.label(tick));
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(16 {:.0}) rotate(-90)\" class=\"t m\">{}</text>",
        (top + HEIGHT) / 2.0,
        escape(y_name)
    );
    for (index, (_, points)) in series.iter().enumerate() {
        let mut path = String::new();
        let mut level = 0.0;
        for (at, value) in points {
            let _ = write!(
                path,
                "{}{:.1} {:.1}L{:.1} {:.1}",
                if path.is_empty() { "M" } else { "L" },
                x.at(*at),
                y.at(level),
                x.at(*at),
                y.at(*value)
            );
            level = *value;
        }
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"/>");
    }
    svg + "</svg>\n"
}

/// From the lowest to the highest value of each label, with the value that is usual.
pub(crate) fn ranges(title: &str, axis: &str, usual: f64, rows: &[(String, f64, f64)]) -> String {
    const ROW: f64 = 19.0;
    let top = 14.0;
    let bottom = top + ROW * rows.len() as f64 + 6.0;
    let low = rows.iter().map(|row| row.1).fold(usual, f64::min);
    let high = rows.iter().map(|row| row.2).fold(usual, f64::max);
    let scale = Scale::new(low, high, LABELS, WIDTH - RIGHT);
    let mut svg = open(title, bottom + 42.0);
    x_axis(&mut svg, &scale, top, bottom, axis);
    let at = scale.at(usual);
    let _ =
        writeln!(svg, "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" class=\"b\"/>");
    for (row, (label, low, high)) in rows.iter().enumerate() {
        let y = top + ROW * (row as f64 + 0.5) + 3.0;
        text(&mut svg, LABELS - 10.0, y + 4.0, "l e", &shortened(label, 40));
        let (x, end) = (scale.at(low.min(usual)), scale.at(high.max(usual)));
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{}\" fill-opacity=\".75\"><title>{}: {} to {}</title></rect>",
            y - 6.0,
            (end - x).max(1.5),
            COLOURS[0],
            escape(label),
            number(*low),
            number(*high)
        );
    }
    svg + "</svg>\n"
}

/// A point of a trade between two costs.
pub(crate) struct Trade {
    pub label: String,
    pub x: f64,
    pub y: f64,
}

/// Points by two costs; those that no other beats in both are marked and joined.
pub(crate) fn pareto(title: &str, x_name: &str, y_name: &str, trades: &[Trade]) -> String {
    const HEIGHT: f64 = 340.0;
    let (left, top) = (80.0, 16.0);
    let range = |of: fn(&Trade) -> f64| {
        let (low, high) = trades.iter().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        // Differences of a few percent are not to fill the plot.
        let margin = (0.08 * (high - low)).max(0.05 * high.abs() - 0.5 * (high - low));
        (low - margin, high + margin)
    };
    let ((x0, x1), (y0, y1)) = (range(|t| t.x), range(|t| t.y));
    let x = Scale::new(x0, x1, left, WIDTH - RIGHT - 60.0);
    let y = Scale::new(y0, y1, HEIGHT, top);
    let mut svg = open(title, HEIGHT + 42.0);
    x_axis(&mut svg, &x, top, HEIGHT, x_name);
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"g\"/>",
            WIDTH - RIGHT - 60.0
        );
        text(&mut svg, left - 8.0, at + 4.0, "t e", &y.label(tick));
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(16 {:.0}) rotate(-90)\" class=\"t m\">{}</text>",
        (top + HEIGHT) / 2.0,
        escape(y_name)
    );
    let is_best = |trade: &Trade| {
        !trades.iter().any(|o| o.x <= trade.x && o.y <= trade.y && (o.x < trade.x || o.y < trade.y))
    };
    let mut best: Vec<&Trade> = trades.iter().filter(|trade| is_best(trade)).collect();
    best.sort_by(|a, b| a.x.total_cmp(&b.x));
    let front: Vec<String> = best.iter().map(|t| format!("{:.1},{:.1}", x.at(t.x), y.at(t.y))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-dasharray=\"4 3\"/>",
        front.join(" "),
        COLOURS[3]
    );
    let mut taken: Vec<(f64, f64, f64)> =
        trades.iter().map(|trade| (x.at(trade.x) - 5.0, y.at(trade.y), 10.0)).collect();
    for trade in trades {
        let (cx, cy) = (x.at(trade.x), y.at(trade.y));
        let colour = if is_best(trade) { COLOURS[3] } else { COLOURS[0] };
        let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{colour}\"/>");
        let width = 7.0 * trade.label.chars().count().min(30) as f64;
        // Beside the point, else above or below, farther each time: the first place that nothing holds.
        let places = [(9.0, 0.0), (-width / 2.0, -15.0), (-width / 2.0, 15.0), (-width - 9.0, 0.0)]
            .into_iter()
            .chain((2..8).flat_map(|far| [-15.0, 15.0].map(|step| (-width / 2.0, step * f64::from(far)))));
        let is_free = |&(dx, dy): &(f64, f64)| {
            let (left, middle) = (cx + dx, cy + dy);
            taken.iter().all(|&(other, at, wide)| {
                (middle - at).abs() >= 13.0 || left + width < other || other + wide < left
            })
        };
        let (dx, dy) = places.into_iter().find(is_free).unwrap_or((9.0, 0.0));
        taken.push((cx + dx, cy + dy, width));
        text(&mut svg, cx + dx, cy + dy + 4.0, "l", &shortened(&trade.label, 30));
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_steps_and_hold_their_values() {
        let scale = Scale::new(0.83, 1.52, 0.0, 100.0);
        assert!(scale.low <= 0.83 && scale.high >= 1.52);
        assert!(scale.ticks().count() < 12);
        assert_eq!(Scale::new(0.0, 1.2, 0.0, 1.0).label(0.25), "0.2");
        assert_eq!(Scale::new(0.591, 0.5925, 0.0, 1.0).label(0.592), "0.5920");
        assert_eq!(scale.at(scale.low), 0.0);
        assert_eq!(Scale::new(0.0, 0.0, 0.0, 1.0).at(0.0), 0.0);
    }

    #[test]
    fn labels_are_escaped_and_shortened_at_the_front() {
        assert_eq!(shortened("a<b", 10), "a&lt;b");
        assert_eq!(shortened("layers.0.mlp.down", 9), "…mlp.down");
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let trade = |label: &str, x, y| Trade { label: label.to_owned(), x, y };
        let svg = pareto("t", "x", "y", &[trade("a", 1.0, 3.0), trade("b", 2.0, 2.0), trade("c", 3.0, 2.5)]);
        assert_eq!(svg.matches(COLOURS[3]).count(), 3, "the line and two points");
    }
}
