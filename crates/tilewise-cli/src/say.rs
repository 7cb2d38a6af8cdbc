//! What is said beside the output.

/// Writes a line on stderr, as `eprintln!` does. A full disk or a closed pipe behind it is no reason to end.
macro_rules! say {
    ($($said:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($said)*);
    }};
}
