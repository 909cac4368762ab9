//! What sequences hold of the cache: blocks while they run, host blocks while they wait, and the copies
//! that the next step makes first.

use backend::{BLOCK_SIZE, BlockCopy};

use crate::block_manager::BlockManager;
use crate::host_pool::HostPool;
use crate::sequence::Sequence;

/// Both kinds of blocks.
#[derive(Debug)]
pub struct KvCacheManager {
    blocks: BlockManager,
    host: HostPool,
    /// In the order in which they are made.
    copies: Vec<BlockCopy>,
}

impl KvCacheManager {
    /// The model's blocks, all free.
    pub fn new(info: &model::ModelInfo, caching: bool) -> Self {
        Self {
            blocks: BlockManager::new(info.num_blocks, caching),
            host: HostPool::new(info.num_blocks, info.num_host_blocks),
            copies: Vec::new(),
        }
    }

    /// The blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// The host blocks.
    #[cfg(test)]
    pub fn host(&self) -> &HostPool {
        &self.host
    }

    /// The copies that must be made before anything is computed. They stay here until then.
    pub fn take_copies(&mut self) -> Vec<BlockCopy> {
        std::mem::take(&mut self.copies)
    }

    /// Takes the blocks for the next `num_tokens`, copying a shared block that would be written. Takes
    /// nothing when there are too few.
    pub fn reserve(&mut self, sequence: &mut Sequence, num_tokens: usize) -> bool {
        let first = sequence.num_computed_tokens / BLOCK_SIZE;
        let needed = (sequence.num_computed_tokens + num_tokens).div_ceil(BLOCK_SIZE);
        let copied = sequence
            .blocks
            .get(first)
            .copied()
            .filter(|block| self.blocks.is_shared(*block));
        let missing = needed.saturating_sub(sequence.blocks.len());
        if missing + usize::from(copied.is_some()) > self.blocks.num_free() {
            return false;
        }
        let mut take = || self.blocks.allocate().expect("counted above");
        sequence.blocks.extend((0..missing).map(|_| take()));
        if let Some(from) = copied {
            let to = take();
            self.copies.push(BlockCopy { from, to });
            sequence.blocks[first] = to;
            self.blocks.release(from);
        }
        true
    }

    /// Frees what a sequence holds. The tail goes first, so that the head of a prefix stays known the
    /// longest.
    pub fn free(&mut self, sequence: &mut Sequence) {
        let blocks = std::mem::take(&mut sequence.blocks);
        blocks
            .into_iter()
            .rev()
            .for_each(|block| self.blocks.release(block));
        self.host.give_back(std::mem::take(&mut sequence.swapped));
    }

    /// Moves what a sequence has computed to the host; where there is no room it is forgotten.
    pub fn swap_out(&mut self, sequence: &mut Sequence) {
        let num_computed = sequence.num_computed_tokens.div_ceil(BLOCK_SIZE);
        let Some(host) = self.host.take(num_computed) else {
            self.free(sequence);
            sequence.restart();
            return;
        };
        let pairs = sequence.blocks.iter().zip(&host);
        self.copies.extend(pairs.map(|(from, to)| BlockCopy {
            from: *from,
            to: *to,
        }));
        self.free(sequence);
        sequence.swapped = host;
    }

    /// Gives a sequence that starts the blocks of what is computed already: those that the prefix cache
    /// knows, and new ones for what else was moved to the host. Returns how many tokens the prefix cache
    /// knew; none, and gives nothing, where the whole sequence does not fit.
    pub fn restore(&mut self, sequence: &mut Sequence) -> Option<usize> {
        let cached = if sequence.owes_scores() {
            Vec::new()
        } else {
            self.blocks
                .lookup(sequence.rules.cache_salt, &sequence.tokens)
        };
        let needed = sequence.tokens.len().div_ceil(BLOCK_SIZE) - cached.len();
        if needed + self.blocks.num_free_among(&cached) > self.blocks.num_free() {
            return None;
        }
        cached.iter().for_each(|block| self.blocks.hold(*block));
        let num_cached = cached.len() * BLOCK_SIZE;
        let last = cached.last().and_then(|block| self.blocks.prefix(*block));
        if let Some(prefix) = last
            && num_cached >= sequence.num_computed_tokens
        {
            sequence.prefix = prefix;
            sequence.num_computed_tokens = num_cached;
        }
        sequence.blocks = cached;
        let host = std::mem::take(&mut sequence.swapped);
        for from in host.iter().skip(sequence.blocks.len()) {
            let to = self.blocks.allocate().expect("the whole sequence fits");
            self.copies.push(BlockCopy { from: *from, to });
            sequence.blocks.push(to);
        }
        self.host.give_back(host);
        Some(num_cached)
    }

    /// Counts tokens as computed and remembers the blocks that they fill.
    pub fn advance(&mut self, sequence: &mut Sequence, num_tokens: usize) {
        let before = sequence.num_computed_tokens / BLOCK_SIZE;
        sequence.num_computed_tokens += num_tokens;
        for block in before..sequence.num_computed_tokens / BLOCK_SIZE {
            let tokens = &sequence.tokens[block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE];
            sequence.prefix = self
                .blocks
                .remember(sequence.prefix, tokens, sequence.blocks[block]);
        }
    }

    /// Another choice, which shares all blocks.
    pub fn fork(&mut self, sequence: &Sequence, choice: usize) -> Sequence {
        let fork = sequence.fork(choice);
        fork.blocks
            .iter()
            .for_each(|block| self.blocks.hold(*block));
        fork
    }
}
