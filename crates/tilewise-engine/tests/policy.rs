//! Policy files: what they decide, and what they are refused for.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tilewise::backend::cpu::CpuDevice;
use tilewise::dispatch::{Reason, Regime};
use tilewise::{AttentionParams, DType, Device};
use tilewise_engine::Error;
use tilewise_engine::policy::{FEW, MANY, Measurement, PolicyFile, thresholds};

fn cpu() -> CpuDevice {
    CpuDevice::new(Some(1)).unwrap()
}

/// Both kernels at some rows, of which the first is faster up to `wins`.
fn measured(head_dim: usize, kv_dtype: &str, wins: usize) -> Vec<Measurement> {
    let one = |rows: usize, kv_len: usize, kernel: &str| {
        let faster = (kernel == FEW) == (rows <= wins);
        Measurement {
            head_dim,
            kv_dtype: kv_dtype.to_owned(),
            rows,
            kv_len,
            kernel: kernel.to_owned(),
            median_s: kv_len as f64 * if faster { 1e-6 } else { 2e-6 },
            runs: 5,
        }
    };
    let rows = [1, 2, 8, 32].into_iter();
    rows.flat_map(|rows| [(512, FEW), (512, MANY), (4096, FEW), (4096, MANY)].map(|(k, n)| one(rows, k, n)))
        .collect()
}

fn written(policy: &PolicyFile) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    policy.write(&path).unwrap();
    (folder, path)
}

/// The kernel for so many queries over pages, and the evidence if it was measured.
fn choice(device: &dyn Device, dtype: DType, num_queries: usize) -> (&'static str, Option<String>) {
    let params = AttentionParams::new(4, 2, 64).dtypes(DType::F32, dtype);
    let regime = Regime { num_queries, num_keys: 5000, paged: true };
    let choice = device.policy().choose(&params, &regime, None).unwrap();
    let evidence = match choice.reason {
        Reason::Measured(_, measured) => Some(measured.evidence.clone()),
        _ => None,
    };
    (device.policy().kernels[choice.kernel].name, evidence)
}

#[test]
fn a_threshold_is_the_last_row_before_the_first_loss() {
    let mut all = measured(64, "f32", 8);
    all.extend(measured(128, "bf16", 0));
    all.extend(measured(64, "bf16", 32));
    let found: Vec<_> = thresholds(&all).into_iter().map(|t| (t.head_dim, t.kv_dtype, t.rows)).collect();
    let want = [(64, "bf16", 32), (64, "f32", 8), (128, "bf16", 0)];
    assert_eq!(found, want.map(|(dim, dtype, rows)| (dim, dtype.to_owned(), rows)));
    // Without its rival, a kernel has won nothing.
    all.retain(|m| m.kernel == FEW);
    assert_eq!(thresholds(&all), []);
}

#[test]
fn a_file_survives_writing_and_decides_before_the_rules() {
    let device = cpu();
    let policy = PolicyFile::new(&device, measured(64, "f16", 8));
    let (_folder, path) = written(&policy);
    assert_eq!(PolicyFile::read(&path).unwrap(), policy);
    let before = choice(&device, DType::F32, 4);
    PolicyFile::apply(&path, &device).unwrap();
    let evidence = Some(path.display().to_string());
    // Two query heads share a KV head: four queries are eight rows.
    assert_eq!(choice(&device, DType::F16, 4), (FEW, evidence.clone()));
    assert_eq!(choice(&device, DType::F16, 5), (MANY, evidence));
    assert_eq!(choice(&device, DType::F32, 4), before, "another type keeps its rule");
    assert!(matches!(PolicyFile::apply(&path, &device), Err(Error::Device(_))), "one policy per device");
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let Err(error) = PolicyFile::apply(path, &cpu()) else { panic!("{} was accepted", path.display()) };
    assert!(matches!(error, Error::Policy { .. }), "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn another_schema_and_another_device_are_refused_by_name() {
    let mut policy = PolicyFile::new(&cpu(), measured(64, "f16", 8));
    policy.schema = 2;
    let (_folder, path) = written(&policy);
    refused(&path, &["schema 2", "tilewise tune"]);
    // A later schema may have other fields, and is still refused as one.
    std::fs::write(&path, r#"{"schema": 9, "planet": "Mars"}"#).unwrap();
    refused(&path, &["schema 9"]);

    policy.schema = 1;
    policy.device = "Apple M1 (Metal, 1)".to_owned();
    let (_folder, path) = written(&policy);
    refused(&path, &["Apple M1 (Metal, 1)", &cpu().caps().description]);
}

#[test]
fn what_is_no_policy_is_refused_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    for text in [
        "",
        "{}",
        r#"{"schema": 1}"#,
        r#"{"schema": 1, "device": "cpu", "thresholds": [{}], "measured": []}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        let error = PolicyFile::apply(&path, &cpu()).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{text}: {error:?}");
    }
    assert!(matches!(PolicyFile::read(&folder.path().join("none")), Err(Error::File { .. })));
}
