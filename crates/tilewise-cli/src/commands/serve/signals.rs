//! When the program is told to end.

use crate::error::CliError;

/// Exit codes of programs that a signal ended are above this.
#[cfg(unix)]
const SIGNALLED: i32 = 128;

/// Waits until the program is told to end. Whoever says so twice ends it at once.
///
/// # Errors
/// [`CliError::Failed`] where the system refuses it.
#[cfg(unix)]
pub(super) fn first() -> Result<impl Future<Output = ()>, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // nohup has it ignored.
    let mut hangup = if ignores(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) };
    Ok(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
        tokio::spawn(async move {
            // A terminal that closes is told of more than once, and means no hurry.
            let kind = tokio::select! {
                _ = terminate.recv() => SignalKind::terminate(),
                _ = interrupt.recv() => SignalKind::interrupt(),
            };
            std::process::exit(SIGNALLED + kind.as_raw_value())
        });
    })
}

/// Whether this process was started with a signal ignored, where the system tells it.
#[cfg(unix)]
fn ignores(kind: tokio::signal::unix::SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

/// Waits until the program is told to end.
///
/// # Errors
/// None here.
#[cfg(not(unix))]
pub(super) fn first() -> Result<impl Future<Output = ()>, CliError> {
    Ok(async {
        // Where there is no such signal, the server is ended by force.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    })
}
