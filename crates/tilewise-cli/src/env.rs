//! The only reader of the command line and the environment.

use std::ffi::OsString;

/// What the shell gave.
pub(crate) struct Environment {
    /// The command line, program name first.
    pub(crate) args: Vec<OsString>,
}

impl Environment {
    /// Reads it.
    pub(crate) fn read() -> Self {
        Self { args: std::env::args_os().collect() }
    }
}
