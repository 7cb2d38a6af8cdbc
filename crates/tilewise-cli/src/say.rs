//! What is said beside the output.

/// Writes a line on stderr, as `eprintln!` does. A full disk or a closed pipe behind it is no reason to end.
macro_rules! say {
    ($($said:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($said)*);
    }};
}

/// Says the last thing. Where nobody takes it, the program ends all the same.
pub(crate) fn last(line: String) {
    let (said, done) = std::sync::mpsc::channel();
    let say = move || {
        say!("{line}");
        let _ = said.send(());
    };
    if std::thread::Builder::new().spawn(say).is_ok() {
        let _ = done.recv_timeout(std::time::Duration::from_secs(2));
    }
}
