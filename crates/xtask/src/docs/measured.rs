//! `docs/measured.md`: every record, as a table per file, and the README's few rows.

use std::fmt::Write;

use super::records::Record;
use super::{Wanted, find};

const ZEN3: &str = "2026-11-23-zen3.csv";
const H200: &str = "2026-11-28-h200.csv";

/// What the README shows.
const ROWS: [Wanted; 5] = [
    Wanted {
        file: ZEN3,
        benchmark: "attention",
        shape: "causal Hq16 Hkv8 D128 N512",
        dtype: "f32",
        peer: "torch",
        name: "attention, 512 tokens, causal",
    },
    Wanted {
        file: ZEN3,
        benchmark: "attention",
        shape: "decode Hq16 Hkv8 D128 KV8192 paged 32",
        dtype: "bf16",
        peer: "torch",
        name: "attention, one token over 8192 in pages",
    },
    Wanted {
        file: ZEN3,
        benchmark: "one-batch prefill",
        shape: "Qwen3-0.6B 2048 in",
        dtype: "f16",
        peer: "llama.cpp f16",
        name: "Qwen3-0.6B, prompt of 2048 tokens",
    },
    Wanted {
        file: ZEN3,
        benchmark: "one-batch decode",
        shape: "Qwen3-0.6B 60 in 100 out",
        dtype: "bf16",
        peer: "llama.cpp",
        name: "Qwen3-0.6B, each token after a prompt of 60",
    },
    Wanted {
        file: H200,
        benchmark: "bench-one-batch decode",
        shape: "Qwen3-0.6B B32 60 in 100 out",
        dtype: "bf16",
        peer: "",
        name: "Qwen3-0.6B, a token for each of 32 sequences",
    },
];

const PREFACE: &str = "# Measured

This page is written by `cargo xtask docs` from [bench/records](../bench/records); do not edit it. Each table is a file of
records, each row a measurement, the commit is the one that was measured.

- One process per side, sides in turns, medians. A ratio above 1 says that Tilewise is faster than the peer.
- Rows that stand twice were measured twice. On `zen3-2c` (two cores of an AMD EPYC with AVX2, on a shared host) single
  rows moved by up to a fifth between two sittings, and long ones by more.
- Shares are of what the machine multiplied and added, or read, right after the kernel. Above 100 % of read, keys and
  values came from a cache; 93 % of peak is a moment in which the machine slowed down in between.
- Decode in 16 bits is compared with PyTorch's f32, its fastest there. PyTorch is 2.13, its `scaled_dot_product_attention`
  with `enable_gqa=True`; llama.cpp runs through llama-cpp-python 0.3.36.
- A row whose commit is `experiment` was tried and is not in the code in this form.

Our side of most rows:

```sh
cargo build --release
target/release/tilewise bench attention --q-len 60,512,2048,8192 --causal --threads 2
target/release/tilewise bench attention --q-len 8192 --qo-heads 8 --causal --window 511 --threads 2
target/release/tilewise bench attention --q-len 1 --kv-len 160,2048,8192,32768 --dtype bf16 --layout paged --page-size 32 --threads 2
target/release/tilewise bench-one-batch --model-path DIR --load-format dummy --dtype bf16 --input-len 60 --output-len 100 --threads 2
target/release/tilewise bench attention --device gpu --dtype f16 --causal --batch 2 --qo-heads 16 --kv-heads 16 --head-dim 128 --q-len 8192
target/release/tilewise bench attention --device gpu --dtype bf16 --batch 32 --q-len 1 --kv-len 8192 --layout paged --page-size 32
target/release/tilewise bench-one-batch --device gpu --model-path DIR --load-format dummy --dtype bf16 --batch-size 32 --input-len 60 --output-len 100
```
";

/// The page; `rules` ends it, since these do not come from records.
pub(super) fn page(records: &[Record], rules: &str) -> String {
    let mut page = PREFACE.to_owned();
    for file in records.chunk_by(|a, b| a.file == b.file) {
        let _ = writeln!(page, "\n## {0}\n\n[bench/records/{0}](../bench/records/{0})\n", file[0].file);
        page.push_str(&table(file));
    }
    page.push('\n');
    page.push_str(rules);
    page
}

/// The rows of one file. A column that is the same in all of them still says what it says.
fn table(records: &[Record]) -> String {
    let columns: Vec<&str> = records[0].fields.iter().map(|(name, _)| name.as_str()).collect();
    let titles: Vec<String> = columns.iter().map(|name| title(name)).collect();
    let mut table = format!("| {} |\n|{}\n", titles.join(" | "), "---|".repeat(columns.len()));
    for record in records {
        let cell = |column: &&str| match column.strip_suffix("_s") {
            Some(_) => time(record.number(column)),
            None => record.get(column).replace('|', "\\|"),
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    table
}

fn title(column: &str) -> String {
    match column {
        "tilewise_s" => "Tilewise".to_owned(),
        "measured_s" => "time".to_owned(),
        "peer_s" => "peer's time".to_owned(),
        "unit_note" => "unit, note".to_owned(),
        other => other.replace('_', " "),
    }
}

/// Seconds in the unit that reads best, with three digits; nothing for what is no number.
pub(super) fn time(seconds: f64) -> String {
    if seconds.is_nan() {
        return String::new();
    }
    let (scale, unit) = match seconds {
        s if s < 1e-3 => (1e6, "us"),
        s if s < 1.0 => (1e3, "ms"),
        _ => (1.0, "s"),
    };
    let value = seconds * scale;
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// The README's table.
///
/// # Errors
/// Names a row that the records have not.
pub(super) fn readme_rows(records: &[Record]) -> Result<String, String> {
    let mut table = "| what | on | type | Tilewise | peer | ratio |\n|---|---|---|---|---|---|\n".to_owned();
    for wanted in &ROWS {
        let record = find(records, wanted)?;
        let (own, machine) = match wanted.file {
            H200 => (
                format!(
                    "{} ({} {})",
                    time(record.number("measured_s")),
                    record.get("rate"),
                    record.get("unit_note")
                ),
                "NVIDIA H200, Vulkan",
            ),
            _ => (time(record.number("tilewise_s")), "two Zen 3 cores"),
        };
        let peer = match wanted.peer {
            "" => "none recorded".to_owned(),
            _ => format!("{} {}", peer_name(record), time(record.number("peer_s"))),
        };
        let _ = writeln!(
            table,
            "| {} | {machine} | {} | {own} | {peer} | {} |",
            wanted.name,
            wanted.dtype,
            record.get("ratio")
        );
    }
    Ok(table)
}

/// A record's peer as its makers write it, with its type where that is another one.
pub(super) fn peer_name(record: &Record) -> String {
    let name = match record.get("peer") {
        "torch" => "PyTorch",
        "torch flex_attention" => "PyTorch's flex_attention",
        other => other.trim_end_matches(" f16"),
    };
    let is_f32 = record.get("unit_note").ends_with("SDPA f32") && record.get("dtype") != "f32";
    if is_f32 { format!("{name} in f32") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (seconds, want) in [
            (0.000_001_98, "1.98 us"),
            (0.000_217_166, "217 us"),
            (0.038_928, "38.9 ms"),
            (2.3, "2.30 s"),
            (f64::NAN, ""),
        ] {
            assert_eq!(time(seconds), want);
        }
    }
}
