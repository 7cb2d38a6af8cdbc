//! What every backend is tested with: cases as data, one f64 oracle, one table of tolerances.
//!
//! Depends on none of the crates it tests.

pub mod cases;
pub mod oracle;
pub mod random;
pub mod tolerance;
