//! How kernels reach threads: a region of independent tasks, run by whoever implements
//! [`TaskRunner`]. Which thread runs a task never changes a result.

/// Runs the tasks of a region.
///
/// # Safety
/// An implementation calls `task` at most once for each index below `num_tasks` and with no other
/// index, and returns or unwinds only when no call is running any more. When it returns, every
/// index was called. Kernels write to disjoint parts of one slice on the strength of this.
pub unsafe trait TaskRunner {
    /// Calls `task` once for every index below `num_tasks`, in any order, on any threads.
    fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// Runs tasks one after the other on the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

// SAFETY: the loop visits every index once, on this thread.
unsafe impl TaskRunner for Serial {
    fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        for index in 0..num_tasks {
            task(index);
        }
    }
}

/// Calls `f(i, chunk)` for every chunk of `chunk_len` elements (the last may be shorter), each chunk
/// being one task.
///
/// # Panics
/// When `chunk_len` is zero.
pub fn for_each_chunk<T: Send>(
    runner: &dyn TaskRunner,
    data: &mut [T],
    chunk_len: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    assert!(chunk_len > 0, "chunks hold at least one element");
    let len = data.len();
    let start = Shared(data.as_mut_ptr());
    runner.run(len.div_ceil(chunk_len), &|index| {
        let first = index * chunk_len;
        let count = chunk_len.min(len - first);
        // SAFETY: `index` is below the number of chunks, so the range lies inside `data`, which stays
        // borrowed until `run` returns; each index comes once, so no two chunks overlap.
        let chunk = unsafe { std::slice::from_raw_parts_mut(start.get().add(first), count) };
        f(index, chunk);
    });
}

/// A pointer that tasks on several threads may use. The code that creates one answers for every
/// access being disjoint.
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: creators give each task its own part of the memory, and the elements may change threads.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_slice_once() {
        for (len, chunk_len) in [(0, 3), (1, 3), (3, 3), (10, 3), (10, 100)] {
            let mut data = vec![0; len];
            for_each_chunk(&Serial, &mut data, chunk_len, |index, chunk| {
                chunk.iter_mut().for_each(|x| *x += index + 1);
            });
            let expected: Vec<usize> = (0..len).map(|i| i / chunk_len + 1).collect();
            assert_eq!(data, expected);
        }
    }
}
