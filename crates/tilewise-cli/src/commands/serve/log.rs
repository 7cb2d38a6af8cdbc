//! The log: a thread of its own writes it, so that a full disk, a closed pipe or one that nobody reads costs lines and no
//! requests.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::args::LogFormat;

/// Lines that wait to be written; more are lost.
const WAITING: usize = 8192;

/// How long the last lines may take.
const FAREWELL: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// All lines before this are written.
    Flush(SyncSender<()>),
}

/// Gives lines to the thread.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

impl Write for Lines {
    /// A line, which comes whole.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits a little for the last lines when it is dropped.
pub(super) struct Log(Lines);

impl Log {
    /// Lines that were lost so far.
    pub(super) fn lost(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let lost = self.0.lost.clone();
        move || lost.load(Ordering::Relaxed)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        if self.0.queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FAREWELL);
        }
    }
}

/// Starts it.
///
/// # Errors
/// Where the system starts no thread.
pub(super) fn start(format: LogFormat) -> std::io::Result<Log> {
    let (queue, queued) = sync_channel(WAITING);
    let lines = Lines { queue, lost: Arc::default() };
    let lost = lines.lost.clone();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&queued, &lost))?;
    let writer = lines.clone();
    let logs = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(Log(lines))
}

fn write_all(queued: &Receiver<Entry>, lost: &AtomicU64) {
    for entry in queued {
        match entry {
            Entry::Line(line) => {
                if std::io::stderr().write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            Entry::Flush(done) => {
                // Whoever waited may have gone.
                let _ = done.send(());
            }
        }
    }
}
