//! Preparation in bounds: bodies take memory, templates and tokenizers a core for as long as they run.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::state::{App, blocking};

/// Requests that wait for their text to be cut into tokens and nothing else; more are answered with 429.
const WAITING: usize = 64;

/// Bytes of all bodies that are being read: at least this much, and some bodies of the largest size.
const BODIES: usize = 256 << 20;
const LARGEST_BODIES: usize = 8;

/// What a permit stands for.
const UNIT: usize = 1 << 10;

/// Turns and places of what is being prepared.
#[derive(Debug)]
pub(crate) struct Preparing {
    /// As many as there are cores, but for the engine's.
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

/// What has been read of a body, as a part of all.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl Preparing {
    /// For bodies of up to `body_bytes`.
    pub(crate) fn new(body_bytes: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let bodies = BODIES.max(body_bytes.saturating_mul(LARGEST_BODIES)) / UNIT;
        Self {
            turns: Arc::new(Semaphore::new(cores.saturating_sub(1).max(1))),
            places: Arc::new(Semaphore::new(WAITING)),
            bodies: Arc::new(Semaphore::new(bodies.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Takes room for more bytes of a body.
    ///
    /// # Errors
    /// 429 if all bodies together have too many.
    pub(crate) fn hold(&self, held: &mut Held, more: usize) -> Result<(), ApiError> {
        let (before, after) = (held.bytes.div_ceil(UNIT), (held.bytes + more).div_ceil(UNIT));
        held.bytes += more;
        let Ok(permits) = u32::try_from(after - before) else { return Err(full()) };
        let taken = self.bodies.clone().try_acquire_many_owned(permits).map_err(|_| full())?;
        match &mut held.permits {
            Some(all) => all.merge(taken),
            none => *none = Some(taken),
        }
        Ok(())
    }
}

fn full() -> ApiError {
    ApiError::busy("the bodies that are being read are too large together; try again").closing()
}

impl App {
    /// Prepares a request that has been admitted, when it is its turn.
    ///
    /// # Errors
    /// Those of the work, and 500 if it panics.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.preparing.turns.clone().acquire_owned().await;
        blocking(move || {
            let done = work();
            // Kept as long as the work takes, also where nobody waits for it any more.
            drop(turn);
            done
        })
        .await
    }

    /// The same for a request that nobody has admitted, since it generates nothing.
    ///
    /// # Errors
    /// Likewise, and 429 if too many wait.
    pub(crate) async fn prepare_alone<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.preparing.places.clone().try_acquire_owned();
        let place = place.map_err(|_| ApiError::busy("the server has too many texts to read; try again"))?;
        let done = self.prepare(work).await;
        drop(place);
        done
    }
}
