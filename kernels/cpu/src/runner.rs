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

    /// Threads that may run tasks at a time: a hint for how finely to divide work.
    fn threads(&self) -> usize {
        1
    }
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

/// Calls `f(i, a, b)` for every pair of chunks of `a_len` and `b_len` elements (the last may be
/// shorter), each pair being one task.
///
/// # Panics
/// When a length is zero, or the slices are not cut into equally many chunks.
pub fn for_each_chunk_pair<A: Send, B: Send>(
    runner: &dyn TaskRunner,
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    assert!(a_len > 0 && b_len > 0, "chunks hold at least one element");
    assert_eq!(a.len().div_ceil(a_len), b.len().div_ceil(b_len));
    let b_total = b.len();
    let b_start = Shared(b.as_mut_ptr());
    for_each_chunk(runner, a, a_len, |index, a| {
        let first = index * b_len;
        let count = b_len.min(b_total - first);
        // SAFETY: `b` has as many chunks as `a`, so the range lies inside it; it stays borrowed until
        // `for_each_chunk` returns, and each index comes once, so no two chunks overlap.
        let b = unsafe { std::slice::from_raw_parts_mut(b_start.get().add(first), count) };
        f(index, a, b);
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

    #[test]
    fn pairs_of_chunks_go_together() {
        let (mut a, mut b) = (vec![0; 10], vec![0; 7]);
        for_each_chunk_pair(&Serial, (&mut a, 3), (&mut b, 2), |index, a, b| {
            a.fill(index + 1);
            b.fill(index + 1);
        });
        assert_eq!(a, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]);
        assert_eq!(b, [1, 1, 2, 2, 3, 3, 4]);
    }
}
