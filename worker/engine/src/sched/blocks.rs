//! The block pool.
//!
//! ```text
//! free (never written or dropped)  ->  used (reference count > 0)  ->  cached (count 0, content known)  ->  free
//! ```
//!
//! A full block is known by a hash chained over all tokens before it, so that equal prompts share blocks. It is tagged
//! with the *rung* (0 is the best quality) of the least precise profile that took part in it or in its parents; a request
//! on rung r reuses only blocks with a tag of at most r: quality never reads what density computed.

use std::collections::{BTreeMap, HashMap};

use modelprofile_kernels::{BLOCK_TOKENS, BlockMove};
use sha2::{Digest, Sha256};

/// Identity of a full block: a hash of its tokens and all before them. 128 bits of SHA-256: a collision would leak one
/// request's context into another's.
pub type BlockHash = u128;

/// The hash of a full block after its parent's.
pub fn chain(parent: Option<BlockHash>, tokens: &[u32]) -> BlockHash {
    let mut hash = Sha256::new();
    hash.update(parent.unwrap_or(0).to_le_bytes());
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(bytes)
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    references: u32,
    /// Set while the content is a known full block; exactly then `by_hash` leads here.
    known: Option<(BlockHash, u8)>,
    /// When it was cached last; key in `lru` while cached.
    stamp: u64,
}

/// All blocks of the cache.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Cached blocks by age.
    lru: BTreeMap<u64, u32>,
    by_hash: HashMap<BlockHash, u32>,
    clock: u64,
}

impl BlockPool {
    /// A pool of `count` free blocks.
    pub fn new(count: usize) -> Self {
        Self {
            blocks: vec![Block::default(); count],
            free: (0..count as u32).rev().collect(),
            lru: BTreeMap::new(),
            by_hash: HashMap::new(),
            clock: 0,
        }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be handed out: free and cached ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.lru.len()
    }

    /// Reusable blocks that nobody uses.
    pub fn cached(&self) -> usize {
        self.lru.len()
    }

    /// Blocks in use.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// A block with one reference and unknown content; evicts the oldest cached one if it must.
    pub fn allocate(&mut self) -> Option<u32> {
        let index = self.free.pop().or_else(|| self.evict())?;
        self.blocks[index as usize].references = 1;
        Some(index)
    }

    /// The block that was cached longest ago, its content forgotten.
    fn evict(&mut self) -> Option<u32> {
        let (_, index) = self.lru.pop_first()?;
        self.forget(index);
        Some(index)
    }

    /// Makes a block's content unknown: nobody finds it any more, whoever uses it now keeps it.
    pub fn forget(&mut self, index: u32) {
        if let Some((hash, _)) = self.blocks[index as usize].known.take() {
            self.by_hash.remove(&hash);
        }
        let block = self.blocks[index as usize];
        if block.references == 0 && self.lru.get(&block.stamp) == Some(&index) {
            self.lru.remove(&block.stamp);
            self.free.push(index);
        }
    }

    /// Whether [`BlockPool::lookup`] would find this content, and then whether nobody uses the block at present: taking
    /// it makes one block less available.
    pub fn peek(&self, hash: BlockHash, rung: u8) -> Option<bool> {
        let block = &self.blocks[*self.by_hash.get(&hash)? as usize];
        block.known.filter(|(_, tag)| *tag <= rung)?;
        Some(block.references == 0)
    }

    /// The cached or shared block with this content, usable by `rung`, with one more reference.
    pub fn lookup(&mut self, hash: BlockHash, rung: u8) -> Option<(u32, u8)> {
        let index = *self.by_hash.get(&hash)?;
        let block = &mut self.blocks[index as usize];
        let (_, tag) = block.known?;
        if tag > rung {
            return None;
        }
        if block.references == 0 {
            self.lru.remove(&block.stamp);
        }
        block.references += 1;
        Some((index, tag))
    }

    /// Makes a full block's content known. A block already known for the hash stays, unless this one is more precise.
    pub fn register(&mut self, index: u32, hash: BlockHash, tag: u8) {
        if let Some(other) = self.by_hash.get(&hash).copied() {
            let better = self.blocks[other as usize].known.is_none_or(|(_, known)| tag < known);
            if !better {
                return;
            }
            self.forget(other);
        }
        self.forget(index);
        self.by_hash.insert(hash, index);
        self.blocks[index as usize].known = Some((hash, tag));
    }

    /// Gives every known block the tag that `tags` has for its own. One that it has none for is lent to nobody from then on.
    pub fn retag(&mut self, tags: &[u8]) {
        for (_, tag) in self.blocks.iter_mut().filter_map(|block| block.known.as_mut()) {
            *tag = retagged(*tag, tags);
        }
    }

    /// Gives one reference back. The last one makes the block cached, if its content is known, else free.
    pub fn release(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        debug_assert!(block.references > 0, "block {index} is released twice");
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        if block.known.is_some() {
            self.clock += 1;
            block.stamp = self.clock;
            self.lru.insert(self.clock, index);
        } else {
            self.free.push(index);
        }
    }

    /// Adds free blocks at the upper end.
    pub fn grow(&mut self, count: usize) {
        let old = self.blocks.len();
        if count > old {
            self.blocks.resize(count, Block::default());
            // Lower blocks are handed out first: they survive the next shrink in place.
            self.free.splice(0..0, (old as u32..count as u32).rev());
        }
    }

    /// Removes the blocks from `count` up: unused ones are forgotten, used ones move down.
    ///
    /// # Errors
    /// The number of blocks that must be released first, when the blocks in use do not fit; nothing is changed.
    pub fn shrink(&mut self, count: usize) -> Result<Vec<BlockMove>, usize> {
        if self.used() > count {
            return Err(self.used() - count);
        }
        for index in count as u32..self.blocks.len() as u32 {
            if self.blocks[index as usize].references == 0 {
                self.forget(index);
            }
        }
        let end = count as u32;
        self.lru.retain(|_, index| *index < end);
        self.free.retain(|index| *index < end);
        let mut moves = Vec::new();
        for from in end..self.blocks.len() as u32 {
            let block = self.blocks[from as usize];
            if block.references == 0 {
                continue;
            }
            // There is one by the check above; were there none, leaving the pool as it is would stay consistent.
            let to = self.free.pop().or_else(|| self.evict()).ok_or(1usize)?;
            self.blocks[to as usize] = block;
            if let Some((hash, _)) = block.known {
                self.by_hash.insert(hash, to);
            }
            moves.push(BlockMove { from, to });
        }
        self.blocks.truncate(count);
        Ok(moves)
    }

    /// Checks the accounting: every block is free, cached or used, in exactly one place, and used as often as
    /// `references` says. For tests.
    #[cfg(test)]
    pub(super) fn check(&self, references: &[u32]) -> Result<(), String> {
        let mut places = vec![0; self.blocks.len()];
        for index in self.free.iter().chain(self.lru.values()) {
            places[*index as usize] += 1;
        }
        for (index, (block, places)) in self.blocks.iter().zip(&places).enumerate() {
            if block.references != references[index] {
                let (counted, held) = (block.references, references[index]);
                return Err(format!("block {index} counts {counted} references, {held} hold it"));
            }
            let expected = i32::from(block.references == 0);
            if *places != expected {
                return Err(format!("block {index} with {} references is in {places} lists", block.references));
            }
        }
        for (hash, index) in &self.by_hash {
            if self.blocks.get(*index as usize).and_then(|b| b.known).map(|(h, _)| h) != Some(*hash) {
                return Err(format!("block {index} is indexed by a hash that is not its own"));
            }
        }
        let known = self.blocks.iter().filter(|b| b.known.is_some()).count();
        if known != self.by_hash.len() {
            return Err(format!("{known} blocks have known content, {} are indexed", self.by_hash.len()));
        }
        if let Some(index) = self.lru.values().find(|index| self.blocks[**index as usize].known.is_none()) {
            return Err(format!("block {index} is cached but its content is unknown"));
        }
        Ok(())
    }
}

/// Tag of a block that no rung reuses: what took part in it is on no ladder any more.
pub const NOBODY: u8 = u8::MAX;

/// The tag that `tags` has for this one.
pub(super) fn retagged(tag: u8, tags: &[u8]) -> u8 {
    tags.get(usize::from(tag)).copied().unwrap_or(NOBODY)
}

/// The tags of another ladder for those of the present one. `places` says where each of its rungs is then; `None`: it has left.
///
/// A block with a tag has parts of that rung or of more precise ones, so it gets the least precise place of all of them. A rung
/// that has left counts as the next denser one that stays, which may use what it computed as before.
pub fn tags(places: &[Option<usize>]) -> Vec<u8> {
    let place = |rung: usize| {
        let stays = places[rung..].iter().flatten().next();
        stays.and_then(|place| u8::try_from(*place).ok()).unwrap_or(NOBODY)
    };
    let mut least = 0;
    (0..places.len())
        .map(|rung| {
            least = place(rung).max(least);
            least
        })
        .collect()
}

/// Blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
