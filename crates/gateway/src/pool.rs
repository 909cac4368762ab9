//! Bounded workers for parsing, rendering and tokenising. At most so many run at once; the rest wait
//! as futures, which a client that leaves takes with it.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::ApiError;

/// A bound on blocking work.
pub(crate) struct Pool {
    permits: Arc<Semaphore>,
}

impl Pool {
    /// A pool of `threads` workers.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(threads.max(1))),
        }
    }

    /// Runs `work` on a worker.
    ///
    /// # Errors
    /// What `work` returns; a panic in it becomes an internal error.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| ApiError::Draining)?;
        let work = move || {
            // Held by the work and not by the waiting future: a client that leaves does not make
            // room before the worker is free.
            let _permit = permit;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(ApiError::internal(&format!("text worker: {error}"))),
        }
    }
}
