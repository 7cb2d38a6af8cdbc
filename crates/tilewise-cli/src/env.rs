//! The only reader of the command line and of what surrounds the program.

use std::ffi::OsString;

/// What the shell gave.
pub(crate) struct Environment {
    /// The command line, program name first.
    pub(crate) args: Vec<OsString>,
    /// What clients of a server have to present: other processes see a command line, but not this.
    pub(crate) api_key: Option<String>,
}

impl Environment {
    /// Reads it.
    pub(crate) fn read() -> Self {
        Self { args: std::env::args_os().collect(), api_key: std::env::var("TILEWISE_API_KEY").ok() }
    }
}

/// The system, and the processor's name where the system tells it.
pub(crate) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map(|(_, name)| format!(", {}", name.trim())).unwrap_or_default();
    format!("{} on {}{name}", std::env::consts::OS, std::env::consts::ARCH)
}
