//! The one function that maps a weight file into memory.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{ModelError, Result};
use crate::files::{FileBytes, file_name};

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
    Ok(FileBytes::Mapped(map))
}
