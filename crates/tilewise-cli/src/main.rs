//! The command `tilewise`.
#![forbid(unsafe_code)]

fn main() {}
