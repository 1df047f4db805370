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
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_tag_of_another_ladder_hides_a_rung_that_took_part(
            places in Just((0..5).map(Some).collect::<Vec<_>>()).prop_shuffle(),
            left in proptest::collection::vec(any::<bool>(), 5),
            part in proptest::collection::vec(any::<bool>(), 5),
        ) {
            let places: Vec<_> = places.into_iter().zip(left).map(|(place, left)| place.filter(|_| !left)).collect();
            let rungs = || (0..5).filter(|rung| part[*rung]);
            if let Some(densest) = rungs().max() {
                let least = rungs().filter_map(|rung| places[rung]).max().unwrap_or(0);
                prop_assert!(usize::from(tags(&places)[densest]) >= least, "{places:?}");
            }
        }

        #[test]
        fn no_block_is_lost_or_shared_wrongly(operations in proptest::collection::vec((0u8..6, 0usize..64), 1..300)) {
            let mut pool = BlockPool::new(24);
            let mut held: Vec<u32> = Vec::new();
            for (operation, value) in operations {
                match operation {
                    0 | 1 => {
                        if let Some(index) = pool.allocate() {
                            prop_assert!(!held.contains(&index), "block {index} was handed out twice");
                            held.push(index);
                        }
                    }
                    2 if !held.is_empty() => {
                        let index = held.swap_remove(value % held.len());
                        pool.release(index);
                    }
                    3 if !held.is_empty() => {
                        let index = held[value % held.len()];
                        if pool.blocks[index as usize].references == 1 {
                            pool.register(index, (value % 8) as u128, (value % 2) as u8);
                        }
                    }
                    4 => {
                        let rung = (value % 2) as u8;
                        if let Some((index, tag)) = pool.lookup((value % 8) as u128, rung) {
                            prop_assert!(tag <= rung, "quality was given what density computed");
                            held.push(index);
                        }
                    }
                    _ if value % 2 == 0 => pool.grow(16 + value % 32),
                    _ => {
                        let target = 8 + value % 16;
                        if target < pool.total() && let Ok(moves) = pool.shrink(target) {
                            for index in &mut held {
                                if let Some(m) = moves.iter().find(|m| m.from == *index) {
                                    *index = m.to;
                                }
                                prop_assert!((*index as usize) < target);
                            }
                        }
                    }
                }
                let mut references = vec![0; pool.total()];
                for index in &held {
                    references[*index as usize] += 1;
                }
                pool.check(&references).map_err(TestCaseError::fail)?;
                prop_assert_eq!(pool.used(), references.iter().filter(|r| **r > 0).count());
            }
        }
    }

    #[test]
    fn quality_never_reuses_a_density_block_but_density_reuses_quality() {
        let mut pool = BlockPool::new(4);
        let (quality, density) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(quality, 1, 0);
        pool.register(density, 2, 1);
        assert_eq!(pool.lookup(2, 0), None);
        assert_eq!(pool.lookup(1, 1), Some((quality, 0)));
        assert_eq!(pool.lookup(2, 1), Some((density, 1)));
    }

    #[test]
    fn a_tag_follows_its_rungs_to_another_ladder() {
        assert_eq!(tags(&[Some(0), Some(1)]), [0, 1], "one is added at the end");
        assert_eq!(tags(&[Some(1), Some(2)]), [1, 2], "one is added in front: it reuses nothing");
        assert_eq!(tags(&[Some(0), Some(2)]), [0, 2], "one is added in between");
        assert_eq!(tags(&[Some(0), None, Some(1)]), [0, 1, 1], "what the middle one computed is for the denser one");
        assert_eq!(tags(&[None, Some(0)]), [0, 0]);
        assert_eq!(tags(&[Some(0), None]), [0, NOBODY], "what the densest one computed is for nobody");
        assert_eq!(tags(&[Some(1), Some(0)]), [1, 1], "a block of the second may have parts of the first");
    }

    #[test]
    fn blocks_get_their_tags_of_another_ladder() {
        let mut pool = BlockPool::new(2);
        let (quality, density) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(quality, 1, 0);
        pool.register(density, 2, 1);
        pool.retag(&tags(&[Some(1), None]));
        assert_eq!((pool.peek(1, 0), pool.peek(1, 1)), (None, Some(false)));
        assert_eq!(pool.peek(2, NOBODY - 1), None);
        pool.register(quality, 1, 0);
        assert_eq!(pool.peek(1, 0), Some(false), "computed again, it is for all");
    }

    #[test]
    fn the_oldest_cached_block_is_evicted_first() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(a, 1, 0);
        pool.register(b, 2, 0);
        pool.release(b);
        pool.release(a);
        assert_eq!(pool.allocate(), Some(b));
        assert_eq!(pool.lookup(2, 0), None);
        assert_eq!(pool.lookup(1, 0), Some((a, 0)));
    }

    #[test]
    fn a_more_precise_copy_takes_the_place_of_a_cached_one() {
        let mut pool = BlockPool::new(2);
        let (density, quality) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(density, 1, 1);
        pool.release(density);
        pool.register(quality, 1, 0);
        assert_eq!((pool.cached(), pool.available()), (0, 1));
        assert_eq!(pool.lookup(1, 0), Some((quality, 0)));
        let mut references = [0; 2];
        references[quality as usize] = 2;
        pool.check(&references).unwrap();
    }

    #[test]
    fn forgotten_content_is_not_found_and_its_block_is_free_at_once() {
        let mut pool = BlockPool::new(2);
        let (idle, used) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(idle, 1, 0);
        pool.register(used, 2, 0);
        pool.release(idle);
        pool.forget(idle);
        pool.forget(used);
        assert_eq!((pool.peek(1, 0), pool.peek(2, 0)), (None, None));
        assert_eq!((pool.cached(), pool.used()), (0, 1));
        pool.release(used);
        assert_eq!((pool.cached(), pool.used()), (0, 0));
        pool.check(&[0; 2]).unwrap();
    }

    #[test]
    fn shrinking_says_how_many_blocks_are_too_many() {
        let mut pool = BlockPool::new(8);
        let held: Vec<u32> = (0..6).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(pool.shrink(4), Err(2));
        pool.release(held[0]);
        pool.release(held[1]);
        assert!(pool.shrink(4).is_ok());
        assert_eq!((pool.total(), pool.used()), (4, 4));
    }
}
