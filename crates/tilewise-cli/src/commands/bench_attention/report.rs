//! The HTML report: one file with its plots, that needs nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Row;

const STYLE: &str = include_str!("report.css");

/// Colours that the style has for kernels.
const COLORS: usize = 6;

/// What the words and numbers mean.
const READING: &str = "<h2>How to read this</h2>\n<dl>\n\
<dt>Colours</dt><dd>A colour is a kernel, in all plots and in the table. Nothing else is told by colour.</dd>\n\
<dt>\u{2713} and bold</dt><dd>The kernel that Tilewise chooses for the shape when nobody asks for another.</dd>\n\
<dt>Median, min</dt><dd>Of one call's time. Kernels took turns, after the answer of each was checked against an oracle \
in f64; the largest difference is under max error.</dd>\n\
<dt>GFLOP/s</dt><dd>Multiplications and additions for pairs of a query and a key that it sees, by the median time. A \
causal square counts as half.</dd>\n\
<dt>KV GB/s</dt><dd>Bytes of the keys and values that the sequences see, by the median time. Each sequence counts its \
own, even where several share pages.</dd>\n\
<dt>Of peak, of read</dt><dd>Shares of what this machine did right after the kernels: a loop of f32 multiply-adds in \
registers, and a read of more memory than its caches hold.</dd>\n\
<dt>Shares above 100 %, marked \u{2020}</dt><dd>The loop and the read are yardsticks, not limits of every kernel. Of \
read: the keys and values came from a cache, which is faster than memory, or sequences share pages that were read once. \
Of peak: 16-bit products ran on a GPU's matrix units, which are faster than f32 multiply-adds. Otherwise the processor's \
clock, or a neighbour on the same host, changed between the kernel and the yardstick: run the benchmark again on a \
quiet machine.</dd>\n</dl>\n";

/// A page of plots and a table of all rows.
pub(super) fn html(device: &str, rows: &[Row]) -> String {
    let colors = Colors::new(rows);
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = writeln!(page, "<title>tilewise bench attention</title>\n<style>\n{STYLE}</style>");
    let _ = writeln!(page, "<h1>Attention on {}</h1>", escape(device));
    let (version, machine) = (env!("CARGO_PKG_VERSION"), escape(&crate::env::machine()));
    let _ = writeln!(page, "<p class=\"dim\">tilewise {version}, {machine}</p>");
    if let Some(Row { peak_gflops, read_gb_s, .. }) = rows.first() {
        let _ = writeln!(
            page,
            "<p>The machine itself multiplies and adds {peak_gflops:.0} GFLOP/s and reads {read_gb_s:.1} GB/s.</p>"
        );
    }
    page.push_str(&colors.legend());
    let sweeps = sweeps(rows);
    if !sweeps.is_empty() {
        page.push_str("<h2>Speed over length</h2>\n");
    }
    for sweep in &sweeps {
        page.push_str(&plot(sweep, &colors));
    }
    page.push_str("<h2>Speed by shape</h2>\n");
    for shape in by_title(rows) {
        page.push_str(&bars(&shape, &colors));
    }
    page.push_str(&table(rows, &colors));
    page.push_str(READING);
    page.push_str("</html>\n");
    page
}

/// The colour of each kernel, the same everywhere in a report.
struct Colors(Vec<&'static str>);

impl Colors {
    fn new(rows: &[Row]) -> Self {
        let kernels: BTreeSet<_> = rows.iter().map(|row| row.kernel).collect();
        Self(kernels.into_iter().collect())
    }

    /// The class that sets it.
    fn class(&self, kernel: &str) -> String {
        let index = self.0.iter().position(|name| *name == kernel).unwrap_or_default();
        format!("k{}", index % COLORS)
    }

    /// A kernel's name behind its colour.
    fn name(&self, kernel: &str) -> String {
        format!("<span class=\"swatch {}\"></span>{}", self.class(kernel), escape(kernel))
    }

    fn legend(&self) -> String {
        let items: String = self.0.iter().map(|kernel| format!("<li>{}</li>", self.name(kernel))).collect();
        format!("<ul class=\"legend\">{items}</ul>\n")
    }
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

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 540.0;
const BOTTOM: f64 = 236.0;
const TOP: f64 = 32.0;
/// Between the middles of two labels, for the larger text of phones.
const LABEL: f64 = 60.0;

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
fn plot(rows: &[&Row], colors: &Colors) -> String {
    let axes = Axes::new(rows);
    let mut svg = format!(
        "<h3>{}</h3>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"GFLOP/s by number of keys\">\n<text x=\"2\" y=\"16\">GFLOP/s</text>\n\
         <text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\">keys, on a logarithmic scale</text>\n",
        escape(&rows[0].shape.sweep_title()),
        HEIGHT - 4.0
    );
    for step in 0..=4 {
        let value = axes.fastest * f64::from(step) / 4.0;
        let (y, right) = (axes.y(value), LEFT - 8.0);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            y + 4.0,
            (value * 100.0).round() / 100.0
        );
    }
    svg.push_str(&lengths(rows, &axes));
    let mut series = BTreeMap::<&str, Vec<&Row>>::new();
    for row in rows {
        series.entry(row.kernel).or_default().push(row);
    }
    for (kernel, points) in series {
        svg.push_str(&line(&axes, &colors.class(kernel), &points));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Labels of the axis of keys, as many as there is room for.
fn lengths(rows: &[&Row], axes: &Axes) -> String {
    let lengths: BTreeSet<_> = rows.iter().map(|row| row.shape.lengths().1).collect();
    let mut labels = String::new();
    let mut last = f64::NEG_INFINITY;
    for keys in lengths {
        let (x, y) = (axes.x(keys), BOTTOM + 20.0);
        if x - last < LABEL {
            continue;
        }
        last = x;
        let _ = writeln!(labels, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{keys}</text>");
    }
    labels
}

/// One kernel's line with its points.
fn line(axes: &Axes, class: &str, rows: &[&Row]) -> String {
    let places: Vec<_> = rows.iter().map(|row| (axes.x(row.shape.lengths().1), axes.y(row.gflops))).collect();
    let joined: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut svg = format!("<g class=\"{class}\"><polyline points=\"{}\"/>", joined.join(" "));
    for (x, y) in places {
        let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
    }
    svg.push_str("</g>\n");
    svg
}

/// The speed of each kernel on one shape.
fn bars(rows: &[&Row], colors: &Colors) -> String {
    let top = rows.iter().map(|row| row.gflops).fold(f64::MIN_POSITIVE, f64::max);
    let mut html = format!("<h3>{}</h3>\n", escape(&rows[0].title));
    for row in rows {
        let (chosen, mark) = if row.selected { (" chosen", " \u{2713}") } else { ("", "") };
        let _ = writeln!(
            html,
            "<div class=\"bar{chosen}\"><span>{}{mark}</span><svg class=\"track {}\" viewBox=\"0 0 100 1\" \
             preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"fill\" width=\"{:.2}\" height=\"1\"/></svg>\
             <span class=\"value\">{:.1} GFLOP/s, {:.3} ms</span></div>",
            colors.name(row.kernel),
            colors.class(row.kernel),
            100.0 * row.gflops / top,
            row.gflops,
            row.median_s * 1e3
        );
    }
    html
}

fn table(rows: &[Row], colors: &Colors) -> String {
    let mut table = String::from(
        "<h2>All rows</h2>\n<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th>kernel<th>median ms<th>min ms\
         <th>runs<th>GFLOP/s<th>of peak<th>KV GB/s<th>of read<th>max error<th>threads</tr></thead>\n<tbody>\n",
    );
    for shape in by_title(rows) {
        let title = escape(&shape[0].title);
        let _ = writeln!(table, "<tr class=\"shape\"><th colspan=\"10\"><span>{title}</span></tr>");
        for row in shape {
            let (class, mark) = if row.selected { (" class=\"chosen\"", " \u{2713}") } else { ("", "") };
            let _ = writeln!(
                table,
                "<tr{class}><td>{}{mark}<td>{:.3}<td>{:.3}<td>{}<td>{:.1}<td>{}<td>{:.2}<td>{}<td>{:.1e}<td>{}</tr>",
                colors.name(row.kernel),
                row.median_s * 1e3,
                row.min_s * 1e3,
                row.runs,
                row.gflops,
                share(row.gflops, row.peak_gflops),
                row.kv_gb_s,
                share(row.kv_gb_s, row.read_gb_s),
                row.max_abs_err,
                row.threads
            );
        }
    }
    table.push_str("</tbody></table></div>\n");
    table
}

/// A share in percent, marked where it is above 100.
fn share(value: f64, most: f64) -> String {
    let percent = (100.0 * value / most).round();
    let mark = if percent > 100.0 { " \u{2020}" } else { "" };
    format!("{percent:.0} %{mark}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_above_the_yardstick_is_marked() {
        assert_eq!([share(1.0, 2.0), share(2.0, 2.0), share(3.0, 2.0)], ["50 %", "100 %", "150 % \u{2020}"]);
        assert!(READING.contains("Shares above 100 %, marked \u{2020}"));
    }
}
