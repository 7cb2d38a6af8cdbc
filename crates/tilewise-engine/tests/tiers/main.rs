//! Tiers of the cache: what comes out is what went in under the same key, or a miss, whatever happens.
#![allow(clippy::print_stdout, reason = "tests say what they skipped and counted")]

#[path = "../common/mod.rs"]
mod common;

mod device;
mod disk;
mod fakes;
mod faults;
mod faulty;
mod process;
mod servers;
mod stack;
mod support;
mod values;
