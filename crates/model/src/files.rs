//! Where a checkpoint's bytes come from: a folder that is never left, or memory.

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::error::{ModelError, Result};
use crate::mapped::{Mapped, map};

/// The largest text file that is read: a tokenizer of a quarter million tokens takes 35 MB.
const MAX_TEXT_FILE: u64 = 256 << 20;

/// The bytes of one weight file.
pub(crate) enum FileBytes {
    Mapped(Mapped),
    Memory(Cow<'static, [u8]>),
}

/// Bytes of a weight file that are in memory at once while a tensor is read.
const RUN: usize = 8 << 20;

impl FileBytes {
    /// Hands out a stretch in runs of whole units of so many bytes. What was handed out leaves memory
    /// again, so that a file never is in memory beside what is made of it.
    pub fn in_runs<E>(
        &self,
        stretch: Range<usize>,
        unit: usize,
        mut each: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let run = (RUN / unit.max(1)).max(1) * unit.max(1);
        for start in stretch.clone().step_by(run) {
            let run = start..stretch.end.min(start + run);
            each(&self[run.clone()])?;
            self.release(run);
        }
        Ok(())
    }

    /// Takes a stretch out of memory until it is read again.
    pub fn release(&self, stretch: Range<usize>) {
        match self {
            Self::Mapped(map) => map.release(stretch),
            Self::Memory(_) => {}
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// The files of one checkpoint, by plain name.
pub(crate) enum Files {
    Directory(PathBuf),
    Memory(Vec<(String, Cow<'static, [u8]>)>),
}

impl Files {
    pub fn exists(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).exists(),
            Self::Memory(files) => files.iter().any(|(known, _)| known == name),
        }
    }

    /// A text file, or nothing where there is none.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        if !self.exists(name) {
            return Ok(None);
        }
        match self {
            Self::Directory(dir) => {
                let path = inside(dir, name)?;
                let io = |source| ModelError::io(name, source);
                let len = path.metadata().map_err(io)?.len();
                if len > MAX_TEXT_FILE {
                    return Err(ModelError::malformed(
                        name,
                        format!("is {len} bytes long, more than {MAX_TEXT_FILE}"),
                    ));
                }
                Ok(Some(Cow::Owned(std::fs::read(path).map_err(io)?)))
            }
            Self::Memory(files) => Ok(files
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, bytes)| bytes.clone())),
        }
    }

    /// A weight file.
    pub fn weights(&self, name: &str) -> Result<FileBytes> {
        match self {
            Self::Directory(dir) => map(&inside(dir, name)?),
            Self::Memory(_) => self
                .text(name)?
                .map(FileBytes::Memory)
                .ok_or_else(|| ModelError::malformed(name, "is missing")),
        }
    }

    /// Whether the folder holds weights in formats that can run code.
    pub fn has_pickles(&self) -> bool {
        let Self::Directory(dir) = self else {
            return false;
        };
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                [".bin", ".pt", ".pth"]
                    .iter()
                    .any(|end| name.ends_with(end))
            })
        })
    }
}

/// The real path of a plain file name in a folder. Names with separators and links that lead out of the
/// folder are refused; the hub's cache, whose snapshots link into the `blobs` beside them, is no way out.
fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
        return Err(ModelError::malformed(
            name,
            "is not the name of a file in the model's folder",
        ));
    }
    let dir = dir
        .canonicalize()
        .map_err(|source| ModelError::io(name, source))?;
    let path = dir
        .join(name)
        .canonicalize()
        .map_err(|source| ModelError::io(name, source))?;
    // A file of a model may lie one folder deeper, as the settings of pooling do.
    let blobs = dir
        .ancestors()
        .skip(1)
        .take(2)
        .find(|parent| parent.ends_with("snapshots"))
        .and_then(Path::parent)
        .map(|cache| cache.join("blobs"));
    if path.starts_with(&dir) || blobs.is_some_and(|blobs| path.starts_with(blobs)) {
        return Ok(path);
    }
    Err(ModelError::malformed(
        name,
        "is a link that leads out of the model's folder",
    ))
}

/// The last part of a path: errors name files, not places.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
