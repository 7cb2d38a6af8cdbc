//! Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::CliError;

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const ASKED: u8 = 2;

/// The exit code of a program that Ctrl-C ended: 128 and the signal's number.
const EXIT_CODE: i32 = 130;

/// Lets Ctrl-C stop answers, instead of the program.
pub(super) struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    /// Listens from now on. While nothing is answered, Ctrl-C ends the program where no line editor takes it.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the system refuses it.
    pub(super) fn listen(has_editor: bool) -> Result<Self, CliError> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let (seen, runtime) =
            (state.clone(), tokio::runtime::Builder::new_current_thread().enable_io().build()?);
        // Before anything else: a line editor puts back, after each line, the handler that it found.
        let mut interrupts = {
            let _context = runtime.enter();
            interrupts()?
        };
        let listen = async move {
            while interrupts.recv().await.is_some() {
                let stopped = seen.compare_exchange(ANSWERING, ASKED, Ordering::Relaxed, Ordering::Relaxed);
                if stopped == Err(IDLE) && !has_editor {
                    std::process::exit(EXIT_CODE);
                }
            }
        };
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || runtime.block_on(listen))?;
        Ok(Self(state))
    }

    /// An answer that may be stopped, until this is dropped.
    pub(super) fn answering(&self) -> Answering<'_> {
        self.0.store(ANSWERING, Ordering::Relaxed);
        Answering(&self.0)
    }
}

#[cfg(unix)]
fn interrupts() -> std::io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn interrupts() -> std::io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}

/// An answer that may be stopped.
pub(super) struct Answering<'a>(&'a AtomicU8);

impl Answering<'_> {
    /// Whether it shall be.
    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ASKED
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}
