//! Whether the machine has room for a cell: for its weights in memory and for its results on the disk.

use std::path::Path;

use anyhow::{Context, Result};

use super::Side;

/// Free space that a cell's logs, requests and scrapes take at most.
const DISK: u64 = 1 << 30;
/// Memory beside the weights.
const MEMORY: u64 = 512 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// What is missing for servers of these sides that run together, in words.
///
/// # Errors
/// A disk that cannot be asked.
pub fn lack(out: &Path, sides: &[Side<'_>]) -> Result<Option<String>> {
    let free = rustix::fs::statvfs(out).with_context(|| out.display().to_string())?;
    let files = sides.iter().map(|side| size(Path::new(&side.model.source)));
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Ok(missing(
        free.f_bavail.saturating_mul(free.f_frsize),
        available(&text),
        files.sum(),
    ))
}

fn missing(disk: u64, memory: Option<u64>, weights: u64) -> Option<String> {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / GIB);
    let needed = weights.saturating_add(MEMORY);
    match memory {
        _ if disk < DISK => Some(format!(
            "{} of disk are free, {} are needed",
            gib(disk),
            gib(DISK)
        )),
        Some(memory) if memory < needed => Some(format!(
            "{} of memory are free, {} are needed",
            gib(memory),
            gib(needed)
        )),
        _ => None,
    }
}

/// `MemAvailable`; none where the kernel does not tell.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024)
}

/// Size of a file or of the files of a folder; nothing of what is not there, as the name of a model on a hub.
fn size(place: &Path) -> u64 {
    if let Ok(entries) = std::fs::read_dir(place) {
        return entries
            .flatten()
            .filter_map(|e| e.path().metadata().ok())
            .map(|m| m.len())
            .sum();
    }
    place.metadata().map_or(0, |file| file.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_figures() {
        let weights = 7 << 30;
        assert_eq!(missing(DISK, Some(weights + MEMORY), weights), None);
        assert_eq!(
            missing(DISK, None, weights),
            None,
            "a kernel that does not tell"
        );
        assert_eq!(
            missing(DISK, Some(weights), weights).unwrap(),
            "7.0 GiB of memory are free, 7.5 GiB are needed"
        );
        assert_eq!(
            missing(DISK / 2, Some(0), weights).unwrap(),
            "0.5 GiB of disk are free, 1.0 GiB are needed"
        );
    }

    #[test]
    fn files_and_folders_have_sizes_and_names_of_a_hub_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), [0; 30]).unwrap();
        std::fs::write(folder.path().join("b"), [0; 12]).unwrap();
        assert_eq!(size(folder.path()), 42);
        assert_eq!(size(&folder.path().join("a")), 30);
        assert_eq!(
            (size(Path::new("nobody/nothing")), size(Path::new(""))),
            (0, 0)
        );
        assert_eq!(
            available("MemTotal:  9 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(available(""), None);
    }
}
