//! One split of one head of one tile as a task, where whole heads of tiles are too few for the threads.
//! Each task writes what its rows have of the split; the task that ends last merges the splits in the
//! fixed order, so that nothing waits and no bit changes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::rows::{SPLIT, part_len};
use super::{AttentionShape, QueryTile};
use crate::runner::{Shared, TaskRunner};
use crate::store_kv::KvGeometry;

/// Tasks for each thread below which the last ones leave threads idle for long.
const TASKS_PER_THREAD: usize = 4;

/// Whether splits are divided: there are several, and few tasks otherwise.
pub(super) fn worth_it(threads: usize, num_kv_heads: usize, tiles: &[QueryTile]) -> bool {
    let few = tiles.len() * num_kv_heads < TASKS_PER_THREAD * threads;
    threads > 1 && few && tiles.iter().any(|tile| num_splits(tile) > 1)
}

/// Splits up to a tile's last position. Those before a window are among them and come out empty.
fn num_splits(tile: &QueryTile) -> usize {
    (tile.first_position + tile.num_tokens).div_ceil(SPLIT)
}

/// One split of a head of a tile. Public inside a private module, as the task is.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Which split.
    split: usize,
    /// Splits of the tile.
    pub(super) num_splits: usize,
    /// `[row][split]`, each of `part_len`: those of this head and tile.
    parts: *mut f32,
    /// Splits that are done.
    done: &'a AtomicUsize,
}

impl Part<'_> {
    /// Position of the split's first key.
    pub(super) fn start(&self) -> usize {
        self.split * SPLIT
    }

    /// Says that this split is written; true for the last one of its head and tile, which then sees
    /// the others.
    pub(super) fn is_last(&self) -> bool {
        self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.num_splits
    }

    /// Where the parts of `R` rows from `first` on lie.
    ///
    /// # Safety
    /// The head and tile have these rows.
    #[inline(always)]
    pub(super) unsafe fn of_rows<const R: usize>(
        &self,
        first: usize,
        head_dim: usize,
    ) -> [*const f32; R] {
        let mut parts = [std::ptr::null(); R];
        for r in 0..R {
            let offset = (first + r) * self.num_splits * part_len(head_dim);
            // SAFETY: the caller's promise.
            parts[r] = unsafe { self.parts.add(offset).cast_const() };
        }
        parts
    }

    /// Where this split's part of each row lies.
    ///
    /// # Safety
    /// As for `of_rows`.
    #[inline(always)]
    pub(super) unsafe fn own_of_rows<const R: usize>(
        &self,
        first: usize,
        head_dim: usize,
    ) -> [*mut f32; R] {
        // SAFETY: the caller's promise.
        let mut parts = unsafe { self.of_rows::<R>(first, head_dim) }.map(<*const f32>::cast_mut);
        for r in 0..R {
            // SAFETY: the split is one of the row's.
            parts[r] = unsafe { parts[r].add(self.split * part_len(head_dim)) };
        }
        parts
    }
}

/// Every split of every head of every tile, and the memory of what they give.
pub(super) struct Parts<'a> {
    tiles: &'a [QueryTile],
    heads: Vec<Head>,
    /// Entry of `heads`, and which split.
    tasks: Vec<(usize, usize)>,
    memory: Vec<f32>,
}

/// One head of one tile.
struct Head {
    tile: usize,
    kv_head: usize,
    /// Where its parts start.
    offset: usize,
    done: AtomicUsize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(
        shape: &AttentionShape,
        geometry: KvGeometry,
        tiles: &'a [QueryTile],
    ) -> Self {
        let heads_per_kv = shape.num_heads / geometry.num_kv_heads;
        let (mut heads, mut tasks, mut len) = (Vec::new(), Vec::new(), 0);
        for (index, tile) in tiles.iter().enumerate() {
            for kv_head in 0..geometry.num_kv_heads {
                tasks.extend((0..num_splits(tile)).map(|split| (heads.len(), split)));
                heads.push(Head {
                    tile: index,
                    kv_head,
                    offset: len,
                    done: AtomicUsize::new(0),
                });
                let rows = tile.num_tokens * heads_per_kv;
                len += rows * num_splits(tile) * part_len(geometry.head_dim);
            }
        }
        Self {
            tiles,
            heads,
            tasks,
            memory: vec![0.0; len],
        }
    }

    /// Calls `attend` with the tile, the head and the split of every task.
    pub(super) fn run(
        &mut self,
        runner: &dyn TaskRunner,
        attend: impl Fn(usize, usize, Part<'_>) + Sync,
    ) {
        let memory = Shared(self.memory.as_mut_ptr());
        runner.run(self.tasks.len(), &|index| {
            let (head, split) = self.tasks[index];
            let head = &self.heads[head];
            let part = Part {
                split,
                num_splits: num_splits(&self.tiles[head.tile]),
                // SAFETY: the parts of every head were counted in `new`.
                parts: unsafe { memory.get().add(head.offset) },
                done: &head.done,
            };
            attend(head.tile, head.kv_head, part);
        });
    }
}
