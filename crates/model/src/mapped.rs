//! Weight files mapped into memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{ModelError, Result};
use crate::files::{FileBytes, file_name};

/// A file mapped read-only.
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// Takes a stretch out of this process's memory; whoever reads it again reads the file again. Pages
    /// of a mapped file count as memory of the process that has touched them, and a loader touches
    /// every one.
    #[allow(unsafe_code)]
    pub fn release(&self, stretch: Range<usize>) {
        // SAFETY: the mapping is read-only and nothing was ever written to its pages, so dropping them
        // loses nothing: the next access brings the same bytes of the file. The condition on the file
        // is that of `map`.
        let released = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, stretch.start, stretch.len())
        };
        // A system that keeps the pages uses more memory; nothing else changes.
        let _ = released;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file read-only.
///
/// # Errors
/// When it cannot be opened, is empty, changes its size meanwhile or cannot be mapped.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<FileBytes> {
    let name = file_name(path);
    let io = |source| ModelError::io(&name, source);
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(ModelError::malformed(&name, "the file is empty"));
    }
    // SAFETY: the mapping is private and read-only, and every read goes through a slice that was
    // bounds-checked against the mapping's own length. The one condition left is that nobody
    // truncates the file while it is mapped; a server cannot check that, and the system then ends
    // the process, which the supervisor restarts.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    if file.metadata().map_err(io)?.len() != map.len() as u64 {
        return Err(ModelError::malformed(&name, "changes while it is opened"));
    }
    Ok(FileBytes::Mapped(Mapped(map)))
}
