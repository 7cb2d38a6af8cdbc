//! The routing table as a snapshot: which kernel a shape gets, and by which rule.
#![allow(missing_docs)]

use std::path::Path;

use tilewise::backend::cpu::CpuDevice;
use tilewise::dispatch::{Regime, Rule};
use tilewise::{AttentionParams, Device, Mask};

/// The rules, then one line per shape.
fn table(device: &dyn Device) -> String {
    let policy = device.policy();
    let mut text = String::new();
    for (number, rule) in policy.rules.iter().enumerate() {
        text += &format!("rule {number}: {} where {} ({})\n", rule.kernel, rule.when, rule.evidence);
    }
    let window = Mask::Window { left: Some(512), right: None, causal: true };
    for (qo_heads, kv_heads, head_dim) in [(1, 1, 64), (8, 8, 64), (16, 8, 128), (32, 4, 256), (13, 1, 512)] {
        for (mask, name) in [(Mask::Full, "full"), (Mask::Causal, "causal"), (window, "window 512")] {
            let params = AttentionParams::new(qo_heads, kv_heads, head_dim).mask(mask);
            text += &format!("\n{qo_heads} query heads over {kv_heads} of {head_dim}, {name}\n");
            for num_queries in [1, 2, 3, 4, 6, 7, 16, 17, 512, 8192] {
                for (num_keys, paged) in [(1, false), (160, false), (160, true), (32768, true)] {
                    let regime = Regime { num_queries, num_keys: num_queries.max(num_keys), paged };
                    let choice = policy.choose(&params, &regime, None).unwrap();
                    let is_chosen =
                        |rule: &Rule| choice.rule().is_some_and(|chosen| std::ptr::eq(chosen, rule));
                    let rule = policy.rules.iter().position(is_chosen).unwrap();
                    let kernel = policy.kernels[choice.kernel].name;
                    let (num_keys, pages) = (regime.num_keys, if paged { " in pages" } else { "" });
                    text +=
                        &format!("{num_queries} queries, {num_keys} keys{pages}: {kernel} by rule {rule}\n");
                }
            }
        }
    }
    text
}

#[test]
fn every_shape_keeps_its_kernel_and_rule() {
    let got = table(&CpuDevice::new(Some(1)).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dispatch_golden.txt");
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    let change = got.lines().zip(want.lines()).find(|(got, want)| got != want);
    assert!(
        got == want,
        "routing changed, first at {change:?}. If that is meant, this is the new {}:\n{got}",
        path.display()
    );
}

#[test]
fn every_rule_cites_a_record_that_exists() {
    let device = CpuDevice::new(Some(1)).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for rule in device.policy().rules {
        assert!(root.join(rule.evidence).is_file(), "{}: {} is missing", rule.kernel, rule.evidence);
        let known = device.policy().kernels.iter().any(|kernel| kernel.name == rule.kernel);
        assert!(known, "a rule names {}, which is no kernel", rule.kernel);
    }
}
