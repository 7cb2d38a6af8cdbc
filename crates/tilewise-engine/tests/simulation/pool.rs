//! The pool and the prefix tree against naive models of them, by seed.

use std::collections::HashMap;

use tilewise_engine::cache::{PageId, PagePool, PrefixTree};

use crate::machine::{PAGE, Random};

#[test]
fn a_pool_holds_what_a_naive_count_says() {
    let (mut random, mut pool, mut held) = (Random(5), PagePool::new(40), Vec::<PageId>::new());
    for operation in 0..100_000 {
        match random.below(3) {
            0 => {
                let count = random.below(12) as usize;
                let (before, free) = (held.len(), pool.num_free());
                assert_eq!(pool.allocate(count, &mut held), count <= free, "operation {operation}");
                assert_eq!(held.len() - before, if count <= free { count } else { 0 });
            }
            1 if !held.is_empty() => {
                let page = held[random.below(held.len() as u64) as usize];
                pool.retain(&[page]);
                held.push(page);
            }
            _ => {
                let count = random.below(6).min(held.len() as u64);
                for _ in 0..count {
                    pool.release([held.swap_remove(random.below(held.len() as u64) as usize)]);
                }
            }
        }
        let mut holders = [0; 40];
        held.iter().for_each(|page| holders[page.0 as usize] += 1);
        assert!((0..40).all(|page| pool.holders(PageId(page)) == holders[page as usize]), "{operation}");
        assert_eq!(pool.num_free(), holders.iter().filter(|&&n| n == 0).count(), "operation {operation}");
    }
}

#[test]
fn the_tree_finds_what_a_map_of_prefixes_finds() {
    for seed in 0..40 {
        let (mut random, mut pool, mut tree) = (Random(seed), PagePool::new(30), PrefixTree::new(PAGE));
        let mut model = HashMap::<(Option<&str>, Vec<u32>), PageId>::new();
        for operation in 0..500 {
            let salt = [None, Some("a")][random.below(2) as usize];
            let blocks: Vec<u32> = (0..random.below(6)).map(|_| random.below(2) as u32).collect();
            let tokens: Vec<u32> = blocks.iter().flat_map(|&block| [block; PAGE]).collect();
            let prefix = |pages: usize| (salt, tokens[..pages * PAGE].to_vec());
            let what = format!("seed {seed}, operation {operation}");
            if random.below(4) == 0 {
                let (before, count) = (pool.num_free(), random.below(5) as usize);
                let mut told = 0;
                let evicted = tree.evict(count, &mut pool, |leaving| {
                    told += 1;
                    let prefix = (leaving.salt().map(|_| "a"), leaving.tokens());
                    assert_eq!(model.remove(&prefix), Some(leaving.page), "{what}");
                });
                assert_eq!((evicted, pool.num_free() - before), (told, told), "{what}");
                assert!(told == count || model.is_empty(), "{what}");
            } else if random.below(2) == 0 {
                let found = tree.lookup(salt, &tokens, &mut pool);
                let want = (1..=blocks.len()).map_while(|n| model.get(&prefix(n)).copied());
                assert_eq!(found, want.collect::<Vec<_>>(), "{what}");
                pool.release(found);
            } else if tree.make_room(blocks.len(), &mut pool, |leaving| {
                model.remove(&(leaving.salt().map(|_| "a"), leaving.tokens()));
            }) {
                let mut pages = Vec::new();
                assert!(pool.allocate(blocks.len(), &mut pages), "{what}");
                tree.insert(salt, &tokens, &mut pages, &mut pool);
                for (n, &page) in pages.iter().enumerate() {
                    assert_eq!(*model.entry(prefix(n + 1)).or_insert(page), page, "{what}");
                }
                pool.release(pages);
            }
            assert_eq!((tree.num_pages(), pool.num_idle()), (model.len(), model.len()), "{what}");
            assert_eq!(pool.num_free() + model.len(), 30, "{what}");
        }
    }
}
