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
