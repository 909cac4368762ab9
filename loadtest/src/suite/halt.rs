//! What ends a suite between two steps: the user, or results that must not stand beside each other.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::serve::end_left_over;

/// Exit status of a program that ended at an interrupt, by the shell's convention.
const INTERRUPTED: i32 = 130;

/// Why no further step is made. It passes through a cell, which other errors end as failed.
#[derive(Debug)]
pub enum Halt {
    /// The user asked for it.
    Stopped,
    /// Versions differ, in words.
    Mixed(String),
}

impl Display for Halt {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped; the same command goes on from here"),
            Self::Mixed(words) => f.write_str(words),
        }
    }
}

impl std::error::Error for Halt {}

/// Whether the user wants the suite to end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The first interrupt lets the step that is being made come to its end, the second one does not: then the servers
    /// that `lock` names are ended and so is this program.
    pub fn at_interrupt(lock: &File) -> Result<Self> {
        let stop = Self::default();
        let asked = stop.clone();
        let mut lock = lock.try_clone()?;
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            asked.0.store(true, Ordering::Relaxed);
            if tokio::signal::ctrl_c().await.is_ok() {
                // Nothing is left to do about a server that cannot be ended.
                let _ = end_left_over(&mut lock);
                std::process::exit(INTERRUPTED);
            }
        });
        Ok(stop)
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once it was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_asked() {
            return Err(Halt::Stopped.into());
        }
        Ok(())
    }
}
