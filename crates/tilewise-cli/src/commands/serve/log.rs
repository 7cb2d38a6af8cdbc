//! The log: a thread of its own writes it, so that a full disk, a closed pipe or one that nobody reads costs lines and no
//! requests.

use std::io::{Stderr, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use crate::args::LogFormat;

/// Lines that wait to be written; more are lost.
const WAITING: usize = 8192;

/// Starts it. Returns how many lines were lost so far, and what writes the rest when it is dropped.
pub(super) fn start(format: LogFormat) -> (impl Fn() -> u64 + Send + Sync + 'static, WorkerGuard) {
    let refused = Arc::new(AtomicUsize::new(0));
    let out = Counted { out: std::io::stderr(), refused: refused.clone() };
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING).thread_name("log");
    let (writer, guard) = builder.finish(out);
    let dropped = writer.error_counter();
    let logs = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    (move || (dropped.dropped_lines() + refused.load(Ordering::Relaxed)) as u64, guard)
}

/// Counts what could not be written, and goes on.
struct Counted {
    out: Stderr,
    refused: Arc<AtomicUsize>,
}

impl Write for Counted {
    /// A line, which comes whole.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.out.write_all(line).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = self.out.flush();
        Ok(())
    }
}
