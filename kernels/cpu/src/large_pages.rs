//! Memory for weights in large pages.
//!
//! Decoding reads every weight once per step, and reading waits where the address of a page has to be looked
//! up: `results/pages.md` has what pages of 2 MiB gain over those of 4 KiB. Most matrices of small models are
//! smaller than such a page, so matrices lie one after the other in chunks of many.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::aligned::LINE;

/// Bytes of a large page on x86-64.
const LARGE_PAGE: usize = 2 << 20;
/// Bytes that are asked of the system at once. What is not used costs addresses and no memory.
const CHUNK: usize = 64 * LARGE_PAGE;

/// The chunk that still has room. One for all models: a page may hold matrices of two.
static CURRENT: Mutex<Option<Chunk>> = Mutex::new(None);

/// Pages and how much of them is given out, which is never taken back: the pages go with the last buffer
/// that lies in them.
#[derive(Debug)]
struct Chunk {
    map: Arc<MmapMut>,
    /// The first byte that is free.
    free: NonNull<u8>,
    room: usize,
}

// SAFETY: the pointer goes into `map`, which the chunk owns together with the buffers it gave out.
unsafe impl Send for Chunk {}

/// `bytes` zeros on a cache line of their own, and what keeps them; none when the memory cannot be had.
pub(crate) fn zeroed(bytes: usize) -> Option<(NonNull<u8>, Arc<MmapMut>)> {
    let bytes = bytes.checked_next_multiple_of(LINE)?;
    if bytes > CHUNK {
        return Some(Chunk::new(bytes)?.give(bytes));
    }
    // A chunk is whole whenever the lock is free.
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_none_or(|chunk| chunk.room < bytes) {
        *current = Some(Chunk::new(CHUNK)?);
    }
    Some(current.as_mut()?.give(bytes))
}

impl Chunk {
    /// Fresh pages with room for `bytes`, starting on a large one.
    fn new(bytes: usize) -> Option<Self> {
        let mut map = MmapMut::map_anon(bytes.checked_add(LARGE_PAGE)?).ok()?;
        #[cfg(target_os = "linux")]
        // A hint: a system without large pages refuses it, and nothing else changes.
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = NonNull::new(map.as_mut_ptr())?;
        let skip = start.as_ptr().align_offset(LARGE_PAGE);
        Some(Self {
            // SAFETY: `skip < LARGE_PAGE`, and so many bytes more than `bytes` were mapped.
            free: unsafe { start.add(skip) },
            room: bytes,
            map: Arc::new(map),
        })
    }

    /// The next `bytes`, a multiple of a cache line for which there is room.
    fn give(&mut self, bytes: usize) -> (NonNull<u8>, Arc<MmapMut>) {
        assert!(bytes <= self.room, "{bytes} bytes of {}", self.room);
        let start = self.free;
        // SAFETY: `bytes` are free from here on in the same map, so this is at most its end.
        self.free = unsafe { start.add(bytes) };
        self.room -= bytes;
        (start, Arc::clone(&self.map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeroed_apart_from_each_other_and_outlive_their_chunk() {
        let sizes = [1, LINE, 100, LARGE_PAGE, CHUNK - 7, CHUNK + 1, 3 * LINE];
        let pieces = sizes.map(|bytes| (zeroed(bytes).expect("memory"), bytes));
        for (i, ((start, _map), bytes)) in pieces.iter().enumerate() {
            assert_eq!(start.as_ptr().align_offset(LINE), 0);
            // SAFETY: the bytes are ours, mapped and zeroed, and nobody else looks at them.
            let piece = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *bytes) };
            assert!(piece.iter().all(|&byte| byte == 0), "piece {i}");
            piece.fill(0xff);
        }
    }

    #[test]
    fn small_pieces_share_a_chunk_that_begins_on_a_large_page() {
        let mut chunk = Chunk::new(CHUNK).expect("memory");
        let (first, map) = chunk.give(3 * LINE);
        let (second, other) = chunk.give(LINE);
        assert_eq!(first.as_ptr().align_offset(LARGE_PAGE), 0);
        assert_eq!(second.as_ptr().addr(), first.as_ptr().addr() + 3 * LINE);
        assert!(Arc::ptr_eq(&map, &other));
        assert_eq!(chunk.room, CHUNK - 4 * LINE);
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(zeroed(usize::MAX).is_none());
        assert!(zeroed(usize::MAX - LARGE_PAGE).is_none());
        assert!(zeroed(1 << 60).is_none());
    }
}
