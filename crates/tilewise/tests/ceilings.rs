//! What devices say that they do at best.
#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::Tested;

#[test]
fn every_device_multiplies_and_reads_at_a_rate_that_is_possible() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let ceilings = device.ceilings().unwrap();
        println!("{name}: {:.1} GFLOP/s, {:.1} GB/s read", ceilings.flops / 1e9, ceilings.read_bytes / 1e9);
        // From an emulated core to a rack of accelerators.
        assert!((1e6..1e17).contains(&ceilings.flops), "{name}: {ceilings:?}");
        assert!((1e6..1e15).contains(&ceilings.read_bytes), "{name}: {ceilings:?}");
    }
}
