//! The HTML report: one file with its plots, that needs nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Row;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #667; --line: #d5d8de; --paper: #fff;
  --mark: #0a7d55; --s0: #2563c9; --s1: #c2571a; --s2: #0a7d55; --s3: #9437ae; --s4: #a88a00; --s5: #c02a4f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --dim: #9aa1ad; --line: #3a3f48; --paper: #16181c; --mark: #4fd1a1;
    --s0: #7fb0ff; --s1: #ffa366; --s2: #4fd1a1; --s3: #d79bea; --s4: #e5cf5a; --s5: #ff8ba3 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin-top: 2rem } p { color: var(--dim) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
th:first-child, td:first-child { white-space: normal; min-width: 20rem } .selected td { color: var(--mark); font-weight: 600 }
svg { width: 100%; max-width: 44rem; height: auto; font-size: 12px } svg text { fill: var(--ink) }
svg .dim { fill: var(--dim) } svg .grid { stroke: var(--line) }
";

/// A page of plots and a table of all rows.
pub(super) fn html(device: &str, rows: &[Row]) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = writeln!(page, "<title>tilewise bench attention</title>\n<style>{STYLE}</style>");
    let _ = writeln!(page, "<h1>Attention on {}</h1>", escape(device));
    let (version, machine) = (env!("CARGO_PKG_VERSION"), escape(&crate::env::machine()));
    let _ = writeln!(
        page,
        "<p>tilewise {version}, {machine}. Every answer was checked against an f64 oracle before \
         timing; kernels took turns; times are medians. The marked kernel is the one that dispatch \
         chooses. Shares are of what the machine itself multiplied, added and read right afterwards.</p>"
    );
    for sweep in sweeps(rows) {
        page.push_str(&plot(&sweep));
    }
    for shape in by_title(rows) {
        page.push_str(&bars(&shape));
    }
    page.push_str(&table(rows));
    page.push_str("</html>\n");
    page
}

/// Rows that differ in their lengths only, where there are at least two lengths.
fn sweeps(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups = BTreeMap::<String, Vec<&Row>>::new();
    for row in rows {
        groups.entry(row.shape.sweep_title()).or_default().push(row);
    }
    let several = |group: &Vec<&Row>| group.iter().any(|row| row.shape.lengths() != group[0].shape.lengths());
    groups.into_values().filter(several).collect()
}

fn by_title(rows: &[Row]) -> Vec<Vec<&Row>> {
    rows.chunk_by(|a, b| a.title == b.title).map(|group| group.iter().collect()).collect()
}

const WIDTH: f64 = 700.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 680.0;
const BOTTOM: f64 = 260.0;
const TOP: f64 = 20.0;

/// Where a plot puts numbers of keys, by their logarithm, and GFLOP/s.
struct Axes {
    shortest: f64,
    longest: f64,
    fastest: f64,
}

impl Axes {
    fn new(rows: &[&Row]) -> Self {
        let lengths = || rows.iter().map(|row| row.shape.lengths().1 as f64);
        Self {
            shortest: lengths().fold(f64::INFINITY, f64::min),
            longest: lengths().fold(1.0, f64::max),
            fastest: nice(rows.iter().map(|row| row.gflops).fold(1.0, f64::max)),
        }
    }

    fn x(&self, keys: usize) -> f64 {
        let share = (keys as f64 / self.shortest).ln() / (self.longest / self.shortest).ln().max(1e-9);
        LEFT + share * (RIGHT - LEFT)
    }

    fn y(&self, gflops: f64) -> f64 {
        BOTTOM - gflops / self.fastest * (BOTTOM - TOP)
    }
}

/// Speed over length: a line for each kernel.
fn plot(rows: &[&Row]) -> String {
    let axes = Axes::new(rows);
    let mut svg = format!(
        "<h2>{}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"GFLOP/s by number of keys\">\n<text x=\"4\" y=\"12\" class=\"dim\">GFLOP/s</text>\n\
         <text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\" class=\"dim\">keys</text>\n",
        escape(&rows[0].shape.sweep_title()),
        HEIGHT - 4.0
    );
    for step in 0..=4 {
        let value = axes.fastest * f64::from(step) / 4.0;
        let (y, right) = (axes.y(value), LEFT - 8.0);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" class=\"dim\">{value:.0}</text>",
            y + 4.0
        );
    }
    let mut series = BTreeMap::<&str, Vec<&Row>>::new();
    let mut lengths = BTreeSet::new();
    for row in rows {
        series.entry(row.kernel).or_default().push(row);
        lengths.insert(row.shape.lengths().1);
    }
    for keys in lengths {
        let (x, y) = (axes.x(keys), BOTTOM + 18.0);
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" class=\"dim\">{keys}</text>");
    }
    for (index, (kernel, points)) in series.into_iter().enumerate() {
        svg.push_str(&line(&axes, kernel, &points, index));
    }
    svg.push_str("</svg>\n");
    svg
}

/// One kernel's line with its points, and its name in the corner.
fn line(axes: &Axes, kernel: &str, rows: &[&Row], index: usize) -> String {
    let color = format!("var(--s{})", index % 6);
    let places: Vec<_> = rows.iter().map(|row| (axes.x(row.shape.lengths().1), axes.y(row.gflops))).collect();
    let joined: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut svg = format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n",
        joined.join(" ")
    );
    for (x, y) in places {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
    }
    let (top, name) = (TOP + 16.0 * index as f64, escape(kernel));
    let _ = writeln!(
        svg,
        "<rect x=\"{}\" y=\"{top}\" width=\"10\" height=\"10\" fill=\"{color}\"/>\
         <text x=\"{}\" y=\"{}\">{name}</text>",
        LEFT + 8.0,
        LEFT + 24.0,
        top + 9.0
    );
    svg
}

/// The speed of each kernel on one shape.
fn bars(rows: &[&Row]) -> String {
    let height = 26.0 * rows.len() as f64 + 4.0;
    let top = rows.iter().map(|row| row.gflops).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<h2>{}</h2>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"GFLOP/s by kernel\">\n",
        escape(&rows[0].title)
    );
    for (index, row) in rows.iter().enumerate() {
        let y = 26.0 * index as f64 + 4.0;
        let width = row.gflops / top * (WIDTH - 420.0);
        let color = if row.selected { "var(--mark)" } else { "var(--s0)" };
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{0}\">{1}</text><rect x=\"150\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" \
             fill=\"{color}\"/><text x=\"{2:.1}\" y=\"{0}\">{3:.1} GFLOP/s, {4:.3} ms, KV {5:.2} GB/s</text>",
            y + 14.0,
            escape(row.kernel),
            158.0 + width,
            row.gflops,
            row.median_s * 1e3,
            row.kv_gb_s
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "<h2>All rows</h2>\n<div class=\"wide\"><table>\n<tr><th>shape<th>kernel<th>median ms<th>min ms\
         <th>runs<th>GFLOP/s<th>of peak<th>KV GB/s<th>of read<th>max error<th>threads</tr>\n",
    );
    for row in rows {
        let class = if row.selected { " class=\"selected\"" } else { "" };
        let _ = writeln!(
            table,
            "<tr{class}><td>{}<td>{}<td>{:.3}<td>{:.3}<td>{}<td>{:.1}<td>{:.0} %<td>{:.2}<td>{:.0} %<td>{:.1e}<td>{}</tr>",
            escape(&row.title),
            escape(row.kernel),
            row.median_s * 1e3,
            row.min_s * 1e3,
            row.runs,
            row.gflops,
            100.0 * row.gflops / row.peak_gflops,
            row.kv_gb_s,
            100.0 * row.kv_gb_s / row.read_gb_s,
            row.max_abs_err,
            row.threads
        );
    }
    table.push_str("</table></div>\n");
    table
}

/// The next of 1, 2, 4, 5, 8 or 10 times a power of ten.
fn nice(value: f64) -> f64 {
    let scale = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    scale * steps.into_iter().find(|step| step * scale >= value).unwrap_or(10.0)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
