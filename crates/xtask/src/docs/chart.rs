//! `docs/speed.svg`: how many times as fast as a peer, from the records.

use std::fmt::Write;

use super::measured::{peer_name, time};
use super::records::Record;
use super::{Wanted, find};

const ZEN3: &str = "2026-11-23-zen3.csv";

const fn row(
    benchmark: &'static str,
    shape: &'static str,
    dtype: &'static str,
    peer: &'static str,
    name: &'static str,
) -> Wanted {
    Wanted { file: ZEN3, benchmark, shape, dtype, peer, name }
}

/// From the prompt to the token, short and long: also where little is won.
const ROWS: [Wanted; 8] = [
    row("attention", "causal Hq16 Hkv8 D128 N512", "f32", "torch", "attention, 512 tokens"),
    row("attention", "causal Hq16 Hkv8 D128 N8192", "f32", "torch", "attention, 8192 tokens"),
    row(
        "attention",
        "causal window 512 8 heads D128 N8192",
        "f32",
        "torch flex_attention",
        "attention, 8192 tokens, window of 512",
    ),
    row(
        "attention",
        "decode Hq16 Hkv8 D128 KV8192 paged 32",
        "bf16",
        "torch",
        "attention, one token over 8192",
    ),
    row(
        "attention",
        "decode batch 8 Hq16 Hkv8 D128 KV8192 paged 32",
        "bf16",
        "torch",
        "attention, 8 sequences over 8192 each",
    ),
    row("one-batch prefill", "Qwen3-0.6B 2048 in", "f16", "llama.cpp f16", "Qwen3-0.6B, prompt of 2048"),
    row("one-batch decode", "Qwen3-0.6B 60 in 100 out", "bf16", "llama.cpp", "Qwen3-0.6B, each token"),
    row(
        "one-batch decode",
        "Qwen3-0.6B batch 8 60 in 40 out",
        "f16",
        "llama.cpp",
        "Qwen3-0.6B, 8 sequences, each step",
    ),
];

const WIDTH: f64 = 880.0;
const LEFT: f64 = 300.0;
/// Where the longest bar ends.
const RIGHT: f64 = 590.0;
const TOP: f64 = 64.0;
const ROW: f64 = 34.0;

// A ground of its own: the page that shows the chart may be light or dark.
const STYLE: &str = "text { font: 14px system-ui, sans-serif; fill: #1c2422 } .faint { fill: #586662; font-size: 12.5px } \
                     .title { font-weight: 600; font-size: 15px } .bar { fill: #2f6f5e } .one { stroke: #a3312a; stroke-dasharray: 4 3 }";

/// The chart.
///
/// # Errors
/// Names a row that the records have not.
pub(super) fn svg(records: &[Record]) -> Result<String, String> {
    let rows =
        ROWS.iter().map(|wanted| Ok((wanted, find(records, wanted)?))).collect::<Result<Vec<_>, String>>()?;
    let most = rows.iter().map(|(_, record)| record.number("ratio")).fold(1.0, f64::max);
    let x = |ratio: f64| LEFT + ratio / most * (RIGHT - LEFT);
    let bottom = TOP + ROW * rows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>How many times as fast as a peer</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"10\" fill=\"#fbfcfb\"/>\n\
         <text x=\"16\" y=\"28\" class=\"title\">Times as fast as the peer, on two Zen 3 cores (longer is faster)</text>\n\
         <text x=\"{one:.1}\" y=\"52\" text-anchor=\"middle\" class=\"faint\">as fast</text>\n",
        height = bottom + 40.0,
        one = x(1.0),
    );
    for (index, (wanted, record)) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let (ratio, baseline) = (record.number("ratio"), y + 20.0);
        let note = format!(
            "{}, {}; {} {}",
            wanted.dtype,
            time(record.number("tilewise_s")),
            peer_name(record),
            time(record.number("peer_s"))
        );
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"18\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{ratio:.2}<tspan class=\"faint\" dx=\"8\">{note}</tspan></text>",
            LEFT - 12.0,
            wanted.name,
            y + 6.0,
            x(ratio) - LEFT,
            x(ratio) + 8.0,
        );
    }
    let _ = writeln!(
        svg,
        "<path class=\"one\" d=\"M{0:.1} 58V{bottom}\"/>\n<text x=\"16\" y=\"{1}\" class=\"faint\">Written by cargo xtask \
         docs from bench/records/{ZEN3}; of what was measured more than once, the lowest ratio.</text>\n</svg>",
        x(1.0),
        bottom + 24.0
    );
    Ok(svg)
}
