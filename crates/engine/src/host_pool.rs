//! Blocks in host memory, which keep what preempted sequences have computed.

use backend::BlockId;

/// The host blocks of the cache.
#[derive(Debug)]
pub struct HostPool {
    free: Vec<BlockId>,
    #[cfg(test)]
    all: std::ops::Range<BlockId>,
}

impl HostPool {
    /// `num_host_blocks` free blocks, whose ids follow those of the other `num_blocks`.
    pub fn new(num_blocks: usize, num_host_blocks: usize) -> Self {
        let id = |block| BlockId::try_from(block).unwrap_or(BlockId::MAX);
        let all = id(num_blocks)..id(num_blocks.saturating_add(num_host_blocks));
        Self {
            free: all.clone().rev().collect(),
            #[cfg(test)]
            all,
        }
    }

    /// Takes this many blocks, or none when there are too few.
    pub fn take(&mut self, num_blocks: usize) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(num_blocks)?;
        Some(self.free.split_off(rest))
    }

    /// Gives blocks back.
    pub fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks);
    }

    /// Checks that every block is either free or held, once.
    ///
    /// # Panics
    /// When one is lost or has two owners.
    #[cfg(test)]
    pub fn assert_consistent(&self, held: impl Iterator<Item = BlockId>) {
        let mut blocks: Vec<_> = self.free.iter().copied().chain(held).collect();
        blocks.sort_unstable();
        assert!(blocks.into_iter().eq(self.all.clone()), "{self:?}");
    }
}
