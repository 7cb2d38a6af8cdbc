//! Requests to tokens.
#![forbid(unsafe_code)]
