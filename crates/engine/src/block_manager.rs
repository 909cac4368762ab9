//! Blocks of the paged cache: who holds them, which are free, and which hold a known prefix.
//!
//! A full block of computed tokens is remembered under what it continues and what it holds. A lookup
//! compares the token ids themselves, so a hash collision costs time and never correctness; the map's
//! hash is keyed per process by the standard library.

use std::collections::{BTreeMap, HashMap};

use backend::{BLOCK_SIZE, BlockId, TokenId};

/// Identity of a remembered prefix; the salt stands for the empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// Nothing yet, inside one isolation domain.
    Empty {
        /// Requests share blocks only under equal salts.
        salt: u64,
    },
    /// Everything up to and including one remembered block.
    Block(u64),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    parent: Prefix,
    tokens: [TokenId; BLOCK_SIZE],
}

#[derive(Debug, Default)]
struct Block {
    references: usize,
    /// Identity under which the content is remembered.
    identity: Option<u64>,
    /// When it became free; key of the free list.
    freed_at: u64,
}

/// All blocks of the cache.
#[derive(Debug)]
pub struct BlockManager {
    blocks: Vec<Block>,
    /// Free and without a remembered content.
    empty: Vec<BlockId>,
    /// Free but remembered, the longest unused first.
    reusable: BTreeMap<u64, BlockId>,
    known: HashMap<Content, BlockId>,
    contents: HashMap<BlockId, (Prefix, [TokenId; BLOCK_SIZE])>,
    clock: u64,
    next_identity: u64,
    caching: bool,
}

impl BlockManager {
    /// `num_blocks` free blocks; without `caching` no prefix is ever remembered.
    pub fn new(num_blocks: usize, caching: bool) -> Self {
        let num_blocks = BlockId::try_from(num_blocks).unwrap_or(BlockId::MAX);
        Self {
            blocks: (0..num_blocks).map(|_| Block::default()).collect(),
            empty: (0..num_blocks).rev().collect(),
            reusable: BTreeMap::new(),
            known: HashMap::new(),
            contents: HashMap::new(),
            clock: 0,
            next_identity: 0,
            caching,
        }
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> usize {
        self.empty.len() + self.reusable.len()
    }

    /// Blocks that sequences hold.
    pub fn num_used(&self) -> usize {
        self.blocks.len() - self.num_free()
    }

    /// The longest remembered prefix of `tokens`, in whole blocks, that leaves at least one token to
    /// compute. The blocks are not held yet.
    pub fn lookup(&self, salt: u64, tokens: &[TokenId]) -> Vec<BlockId> {
        let mut found = Vec::new();
        let mut parent = Prefix::Empty { salt };
        let usable = tokens.len().saturating_sub(1) / BLOCK_SIZE;
        for chunk in tokens.chunks_exact(BLOCK_SIZE).take(usable) {
            let content = Content {
                parent,
                tokens: chunk.try_into().expect("chunks are exact"),
            };
            let Some(block) = self.known.get(&content) else {
                break;
            };
            let identity = self.blocks[*block as usize]
                .identity
                .expect("known blocks have an identity");
            parent = Prefix::Block(identity);
            found.push(*block);
        }
        found
    }

    /// The identity of a remembered block.
    pub fn prefix(&self, block: BlockId) -> Option<Prefix> {
        self.blocks[block as usize].identity.map(Prefix::Block)
    }

    /// Remembers what a full block holds, and returns the identity of the prefix that ends there. A
    /// content that is already known keeps its first block.
    pub fn remember(&mut self, parent: Prefix, tokens: &[TokenId], block: BlockId) -> Prefix {
        let tokens: [TokenId; BLOCK_SIZE] = tokens.try_into().expect("a full block");
        let content = Content { parent, tokens };
        if let Some(known) = self.known.get(&content) {
            return self.prefix(*known).expect("known blocks have an identity");
        }
        self.next_identity += 1;
        if self.caching {
            self.blocks[block as usize].identity = Some(self.next_identity);
            self.known.insert(content, block);
            self.contents.insert(block, (parent, tokens));
        }
        Prefix::Block(self.next_identity)
    }

    /// Takes a free block for writing, forgetting the longest unused content if need be.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.empty.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.reusable.pop_first()?;
                self.forget(block);
                block
            }
        };
        self.blocks[block as usize].references = 1;
        Some(block)
    }

    /// One more holder of a block.
    pub fn hold(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        if entry.references == 0 {
            self.reusable.remove(&entry.freed_at);
        }
        entry.references += 1;
    }

    /// One holder less; the last one frees the block, whose content stays known until it is needed.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        entry.references = entry
            .references
            .checked_sub(1)
            .expect("a released block is held");
        if entry.references > 0 {
            return;
        }
        if entry.identity.is_some() {
            self.clock += 1;
            entry.freed_at = self.clock;
            self.reusable.insert(self.clock, block);
        } else {
            self.empty.push(block);
        }
    }

    /// Whether several sequences hold a block, so that it must be copied before it is written.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.blocks[block as usize].references > 1
    }

    /// How many of these blocks are free now and would have to be taken out of the free list.
    pub fn num_free_among(&self, blocks: &[BlockId]) -> usize {
        blocks
            .iter()
            .filter(|block| self.blocks[**block as usize].references == 0)
            .count()
    }

    fn forget(&mut self, block: BlockId) {
        self.blocks[block as usize].identity = None;
        if let Some((parent, tokens)) = self.contents.remove(&block) {
            self.known.remove(&Content { parent, tokens });
        }
    }

    /// Checks the books against the holders' own count.
    ///
    /// # Panics
    /// When a block is lost, held by a different number than recorded, or free and held at once.
    #[cfg(test)]
    pub fn assert_consistent<'a>(&self, held: impl Iterator<Item = &'a BlockId>) {
        let mut references = vec![0usize; self.blocks.len()];
        held.for_each(|block| references[*block as usize] += 1);
        for (block, entry) in self.blocks.iter().enumerate() {
            assert_eq!(
                entry.references, references[block],
                "block {block}: recorded and counted holders"
            );
        }
        let mut free: Vec<BlockId> = self
            .empty
            .iter()
            .chain(self.reusable.values())
            .copied()
            .collect();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), self.num_free(), "a block is free twice");
        assert!(
            free.iter().all(|block| references[*block as usize] == 0),
            "a held block is free"
        );
        let unheld = references.iter().filter(|count| **count == 0).count();
        assert_eq!(free.len(), unheld, "a block is neither free nor held");
        assert_eq!(self.known.len(), self.contents.len());
        for (content, block) in &self.known {
            assert_eq!(self.contents[block], (content.parent, content.tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(manager: &mut BlockManager, salt: u64, tokens: &[TokenId]) -> Vec<BlockId> {
        let mut parent = Prefix::Empty { salt };
        tokens
            .chunks_exact(BLOCK_SIZE)
            .map(|chunk| {
                let block = manager.allocate().expect("a free block");
                parent = manager.remember(parent, chunk, block);
                block
            })
            .collect()
    }

    #[test]
    fn a_prefix_is_found_in_whole_blocks_and_never_covers_the_prompt() {
        let mut manager = BlockManager::new(8, true);
        let tokens: Vec<TokenId> = (0..96).collect();
        let blocks = fill(&mut manager, 0, &tokens);
        assert_eq!(manager.lookup(0, &tokens), blocks[..2]);
        assert_eq!(manager.lookup(0, &tokens[..65]), blocks[..2]);
        assert_eq!(manager.lookup(0, &tokens[..64]), blocks[..1]);
        assert!(
            manager.lookup(1, &tokens).is_empty(),
            "another salt sees nothing"
        );
        let mut other = tokens.clone();
        other[31] = 999;
        assert!(manager.lookup(0, &other).is_empty());
        other = tokens.clone();
        other[63] = 999;
        assert_eq!(manager.lookup(0, &other), blocks[..1]);
    }

    #[test]
    fn equal_blocks_after_different_prefixes_are_different() {
        let mut manager = BlockManager::new(8, true);
        let (a, b): (Vec<TokenId>, Vec<TokenId>) = ((0..32).collect(), (100..132).collect());
        let same: Vec<TokenId> = (200..232).collect();
        fill(&mut manager, 0, &[a.clone(), same.clone()].concat());
        let probe = [b.clone(), same, vec![1]].concat();
        assert!(manager.lookup(0, &probe).is_empty());
        fill(&mut manager, 0, &b);
        assert_eq!(manager.lookup(0, &probe).len(), 1);
    }

    #[test]
    fn the_longest_unused_content_is_forgotten_first() {
        let mut manager = BlockManager::new(2, true);
        let (a, b): (Vec<TokenId>, Vec<TokenId>) = ((0..33).collect(), (100..133).collect());
        let first = fill(&mut manager, 0, &a)[0];
        let second = fill(&mut manager, 0, &b)[0];
        manager.release(first);
        manager.release(second);
        assert_eq!(manager.num_free(), 2);
        assert_eq!(manager.allocate(), Some(first));
        assert!(manager.lookup(0, &a).is_empty());
        assert_eq!(manager.lookup(0, &b), [second]);
        manager.assert_consistent([first].iter());
    }

    #[test]
    fn nothing_is_remembered_without_caching() {
        let mut manager = BlockManager::new(2, false);
        let tokens: Vec<TokenId> = (0..64).collect();
        fill(&mut manager, 0, &tokens);
        assert!(manager.lookup(0, &tokens).is_empty());
    }
}
