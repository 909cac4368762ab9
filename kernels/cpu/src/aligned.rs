//! Zeroed memory that starts on a cache line.
//!
//! Large buffers come from the allocator's zero pages, so that a cache costs memory only where it is
//! written.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use half::bf16;
use memmap2::MmapMut;

use crate::large_pages;

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE: usize = 64;

/// Plain numbers that are valid, and zero, when all their bytes are zero.
///
/// # Safety
/// Implement only for types without padding, without a destructor, for which every bit pattern is a
/// value, and whose alignment is at most 64.
pub unsafe trait Element: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers; every bit pattern is a value, and zero bytes are the number zero.
unsafe impl Element for f32 {}
// SAFETY: as above.
unsafe impl Element for u8 {}
// SAFETY: as above.
unsafe impl Element for u32 {}
// SAFETY: as above; `bf16` is a transparent `u16`.
unsafe impl Element for bf16 {}

/// A fixed number of elements, zeroed at first, aligned to 64 bytes.
#[derive(Debug)]
pub struct AlignedBuf<T: Element> {
    /// Where the first element lies, inside `memory`.
    start: NonNull<T>,
    len: usize,
    memory: Memory,
}

/// Where elements lie.
#[derive(Debug)]
enum Memory {
    /// From the allocator.
    Heap(NonNull<u8>, Layout),
    /// A piece of pages of our own, which go with the last buffer in them.
    Pages { _map: Arc<MmapMut> },
}

// SAFETY: the buffer owns its memory, and its elements are `Send`.
unsafe impl<T: Element> Send for AlignedBuf<T> {}
// SAFETY: shared access only reads elements, which are `Sync`.
unsafe impl<T: Element> Sync for AlignedBuf<T> {}

impl<T: Element> AlignedBuf<T> {
    /// `len` zeros, or none when the memory cannot be had.
    pub fn zeroed(len: usize) -> Option<Self> {
        // The allocator is asked for its own alignment and the rest is done here: a stricter layout
        // would make it write the zeros instead of taking fresh pages.
        let bytes = len.checked_mul(size_of::<T>())?.checked_add(LINE)?;
        let layout = Layout::from_size_align(bytes, 16).ok()?;
        // SAFETY: `bytes` is at least `LINE`, so the layout is not empty.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = allocation.as_ptr().align_offset(LINE);
        // SAFETY: `skip < LINE`, and `LINE` bytes more than the elements need were allocated.
        let start = unsafe { allocation.add(skip) }.cast();
        Some(Self {
            start,
            len,
            memory: Memory::Heap(allocation, layout),
        })
    }

    /// As [`Self::zeroed`], for weights: memory that is filled at once and read over and over for as long
    /// as a model is there. It lies in large pages if the system has them, whose addresses are found in a
    /// few entries of the processor's tables.
    pub fn zeroed_for_streaming(len: usize) -> Option<Self> {
        let (start, map) = large_pages::zeroed(len.checked_mul(size_of::<T>())?)?;
        Some(Self {
            start: start.cast(),
            len,
            memory: Memory::Pages { _map: map },
        })
    }
}

impl<T: Element> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if let Memory::Heap(allocation, layout) = self.memory {
            // SAFETY: allocated in `zeroed` with this layout; elements have no destructor.
            unsafe { dealloc(allocation.as_ptr(), layout) }
        }
    }
}

impl<T: Element> Deref for AlignedBuf<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is aligned and points to `len` elements, zeroed in `zeroed`, owned by us.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for AlignedBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_refused_when_too_large() {
        for len in [0, 1, 15, 1000] {
            let mut buffer = AlignedBuf::<f32>::zeroed(len).expect("a small buffer");
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().align_offset(LINE) == 0);
            assert!(buffer.iter().all(|x| x.to_bits() == 0));
            buffer.fill(1.0);
        }
        for len in [10, 1 << 19, 1 << 21] {
            let mut buffer = AlignedBuf::<f32>::zeroed_for_streaming(len).expect("memory");
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().align_offset(LINE) == 0);
            assert!(buffer.iter().all(|x| x.to_bits() == 0));
            buffer.fill(1.0);
        }
        assert!(AlignedBuf::<u32>::zeroed_for_streaming(usize::MAX / 8).is_none());
        assert!(AlignedBuf::<u32>::zeroed(usize::MAX / 4).is_none());
        assert!(AlignedBuf::<u32>::zeroed(usize::MAX / 8).is_none());
    }
}
