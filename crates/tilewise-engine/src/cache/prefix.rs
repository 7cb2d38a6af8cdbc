//! Which pages hold which prefixes: a radix tree over token ids, at the grain of whole pages.
//!
//! An edge is a run of whole pages; runs split at page boundaries. Every page in the tree is held once by it, and
//! sequences that share a page hold it too. A sequence that holds a page of the tree holds all pages before it, so
//! pages that nobody else holds can be evicted from the leaves. What follows the pages of [`PrefixTree::lookup`] is what a
//! tier is asked for, and what [`PrefixTree::insert`] finds new is what one is given.

use std::collections::{BTreeSet, HashMap};

use super::events::{KvEvent, KvEventLog, PageHash};
use super::{PageId, PagePool};

/// Of all lookups so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Tokens of admitted sequences.
    pub looked_up_tokens: u64,
    /// Those of them that were cached.
    pub hit_tokens: u64,
    /// Pages that gave way to others.
    pub evicted_pages: u64,
}

type NodeId = usize;

#[derive(Debug, Default)]
struct Node {
    /// `None` for the root of a salt.
    parent: Option<NodeId>,
    /// `page_size` for each page.
    tokens: Vec<u32>,
    pages: Vec<PageId>,
    /// Of each page, where events are told.
    hashes: Vec<PageHash>,
    /// By the tokens of their first page.
    children: HashMap<Vec<u32>, NodeId>,
    last_use: u64,
}

/// The cached prefixes. Knows no clock: what was used last is counted in lookups and insertions.
#[derive(Debug)]
pub struct PrefixTree {
    page_size: usize,
    nodes: Vec<Node>,
    /// Places in `nodes` that are not in use.
    vacant: Vec<NodeId>,
    /// Prefixes of different salts share nothing.
    roots: HashMap<Option<String>, NodeId>,
    /// Nodes without children but the roots, the one used longest ago first.
    leaves: BTreeSet<(u64, NodeId)>,
    uses: u64,
    num_pages: usize,
    stats: PrefixStats,
    /// `None` where nobody asks what happens.
    events: Option<KvEventLog>,
}

/// A page that is about to leave the tree, and the prefix that it ends.
#[derive(Debug)]
pub struct Evicted<'a> {
    /// The page, which nobody else holds and which is not free yet.
    pub page: PageId,
    tree: &'a PrefixTree,
    /// Its last page is the one that leaves.
    leaf: NodeId,
}

impl Evicted<'_> {
    /// All tokens up to and with those of the page: what the key of its chunk is computed from.
    pub fn tokens(&self) -> Vec<u32> {
        let mut runs: Vec<&[u32]> = self.path().map(|node| self.tree.nodes[node].tokens.as_slice()).collect();
        runs.reverse();
        runs.concat()
    }

    /// Whose prefix it is.
    pub fn salt(&self) -> Option<&str> {
        let root = self.path().last();
        let own = self.tree.roots.iter().find(|&(_, &node)| Some(node) == root);
        own.and_then(|(salt, _)| salt.as_deref())
    }

    /// From the leaf to the root.
    fn path(&self) -> impl Iterator<Item = NodeId> {
        std::iter::successors(Some(self.leaf), |&node| self.tree.nodes[node].parent)
    }
}

impl PrefixTree {
    /// A tree without prefixes, for pages of `page_size` tokens.
    pub fn new(page_size: usize) -> Self {
        Self {
            page_size,
            nodes: Vec::new(),
            vacant: Vec::new(),
            roots: HashMap::new(),
            leaves: BTreeSet::new(),
            uses: 0,
            num_pages: 0,
            stats: PrefixStats::default(),
            events: None,
        }
    }

    /// Tells from now on what enters and leaves the tree, which is empty. This costs a hash of each page.
    pub fn tell_events(&mut self) {
        self.events.get_or_insert_default();
    }

    /// What entered and left since this was last asked.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.events.as_mut().map(KvEventLog::take).unwrap_or_default()
    }

    /// Evicts all that nobody else holds.
    pub fn clear(&mut self, pool: &mut PagePool) {
        self.evict(usize::MAX, pool, |_| ());
        if let Some(events) = self.events.as_mut().filter(|_| self.num_pages == 0) {
            events.clear();
        }
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The number of pages in the tree.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// What was asked for and found.
    pub fn stats(&self) -> PrefixStats {
        self.stats
    }

    /// Counts a lookup whose pages were used.
    pub(crate) fn count(&mut self, looked_up: usize, hit: usize) {
        self.stats.looked_up_tokens += looked_up as u64;
        self.stats.hit_tokens += hit as u64;
    }

    /// The pages of the longest prefix of `tokens` that is in the tree, each held once more, for the caller.
    pub fn lookup(&mut self, salt: Option<&str>, tokens: &[u32], pool: &mut PagePool) -> Vec<PageId> {
        let mut found = Vec::new();
        let Some(&root) = self.roots.get(&salt.map(str::to_owned)) else { return found };
        self.uses += 1;
        let (mut node, mut rest) = (root, tokens);
        while let Some(child) = self.child(node, rest) {
            self.touch(child);
            let same = self.same_pages(child, rest);
            found.extend_from_slice(&self.nodes[child].pages[..same]);
            if same < self.nodes[child].pages.len() {
                break;
            }
            rest = &rest[same * self.page_size..];
            node = child;
        }
        pool.retain(&found);
        found
    }

    /// Puts whole pages into the tree, which holds them too from now on.
    ///
    /// Where it has a page of the same prefix already, that one takes the place of the caller's in `pages`, and the
    /// caller's hold moves with it. Returns how many those were; the rest is new.
    pub fn insert(
        &mut self,
        salt: Option<&str>,
        tokens: &[u32],
        pages: &mut [PageId],
        pool: &mut PagePool,
    ) -> usize {
        self.uses += 1;
        let mut node = self.root(salt);
        let count = pages.len();
        let (mut rest, mut pages) = (tokens, pages);
        while !pages.is_empty() {
            let Some(child) = self.child(node, rest) else {
                self.add_leaf(salt, node, rest, pages, pool);
                return count - pages.len();
            };
            let same = self.same_pages(child, rest);
            if same < self.nodes[child].pages.len() {
                self.split(child, same);
            }
            self.touch(child);
            let (own, behind) = pages.split_at_mut(same);
            for (own, &kept) in own.iter_mut().zip(&self.nodes[child].pages) {
                if *own != kept {
                    pool.retain(&[kept]);
                    pool.release([std::mem::replace(own, kept)]);
                }
            }
            (rest, pages) = (&rest[same * self.page_size..], behind);
            node = child;
        }
        count
    }

    /// Evicts until `count` pages are free, and says whether they are; if they cannot be, evicts nothing. `leaving` is
    /// shown each page as by [`PrefixTree::evict`].
    #[must_use]
    pub fn make_room(
        &mut self,
        count: usize,
        pool: &mut PagePool,
        leaving: impl FnMut(&Evicted<'_>),
    ) -> bool {
        let lacking = count.saturating_sub(pool.num_free());
        if lacking > pool.num_idle() {
            return false;
        }
        let evicted = self.evict(lacking, pool, leaving);
        self.stats.evicted_pages += evicted as u64;
        evicted == lacking
    }

    /// Takes up to `count` pages that nobody else holds out of the tree and returns how many; they are free then. Ends
    /// of prefixes go first, those used longest ago before others. `leaving` is shown each page before it is free, while
    /// the tree still knows its prefix.
    pub fn evict(
        &mut self,
        count: usize,
        pool: &mut PagePool,
        mut leaving: impl FnMut(&Evicted<'_>),
    ) -> usize {
        let mut evicted = 0;
        while evicted < count {
            let is_idle = |&&(_, leaf): &&(u64, NodeId)| {
                self.nodes[leaf].pages.last().is_some_and(|&page| pool.is_idle(page))
            };
            let Some(&(_, leaf)) = self.leaves.iter().find(is_idle) else { break };
            while evicted < count
                && let Some(&page) = self.nodes[leaf].pages.last()
                && pool.is_idle(page)
            {
                leaving(&Evicted { page, tree: self, leaf });
                self.pop_page(leaf, pool);
                evicted += 1;
            }
            if self.nodes[leaf].pages.is_empty() {
                self.remove_leaf(leaf);
            }
        }
        evicted
    }

    /// Frees the last page of a leaf; of the first one, the tokens stay, which say where the leaf hangs.
    fn pop_page(&mut self, leaf: NodeId, pool: &mut PagePool) {
        let node = &mut self.nodes[leaf];
        let Some(page) = node.pages.pop() else { return };
        if let Some((events, hash)) = self.events.as_mut().zip(node.hashes.pop()) {
            events.push(KvEvent::Removed { hashes: vec![hash] });
        }
        node.tokens.truncate(node.pages.len().max(1) * self.page_size);
        self.num_pages -= 1;
        pool.uncache(page);
    }

    fn root(&mut self, salt: Option<&str>) -> NodeId {
        let salt = salt.map(str::to_owned);
        if let Some(&root) = self.roots.get(&salt) {
            return root;
        }
        let root = self.place(Node::default());
        self.roots.insert(salt, root);
        root
    }

    /// The child that begins with the first page of `tokens`.
    fn child(&self, node: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.nodes[node].children.get(tokens.get(..self.page_size)?).copied()
    }

    /// How many pages of a node hold the first of `tokens`.
    fn same_pages(&self, node: NodeId, tokens: &[u32]) -> usize {
        let own = self.nodes[node].tokens.chunks_exact(self.page_size);
        own.zip(tokens.chunks_exact(self.page_size)).take_while(|(a, b)| a == b).count()
    }

    /// Notes that a node was used now.
    fn touch(&mut self, node: NodeId) {
        let last_use = std::mem::replace(&mut self.nodes[node].last_use, self.uses);
        if self.leaves.remove(&(last_use, node)) {
            self.leaves.insert((self.uses, node));
        }
    }

    fn place(&mut self, node: Node) -> NodeId {
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    fn add_leaf(
        &mut self,
        salt: Option<&str>,
        parent: NodeId,
        tokens: &[u32],
        pages: &[PageId],
        pool: &mut PagePool,
    ) {
        pages.iter().for_each(|&page| pool.cache(page));
        self.num_pages += pages.len();
        let hashes = self.tell_stored(salt, parent, tokens, pages.len());
        let leaf = self.place(Node {
            parent: Some(parent),
            tokens: tokens[..pages.len() * self.page_size].to_vec(),
            pages: pages.to_vec(),
            hashes,
            children: HashMap::new(),
            last_use: self.uses,
        });
        self.nodes[parent].children.insert(tokens[..self.page_size].to_vec(), leaf);
        self.leaves.remove(&(self.nodes[parent].last_use, parent));
        self.leaves.insert((self.uses, leaf));
    }

    /// The hashes of new pages after a node, which are told of; none where nobody asks.
    fn tell_stored(
        &mut self,
        salt: Option<&str>,
        parent: NodeId,
        tokens: &[u32],
        pages: usize,
    ) -> Vec<PageHash> {
        let Some(events) = &mut self.events else { return Vec::new() };
        let parent = self.nodes[parent].hashes.last().copied();
        let before = parent.unwrap_or_else(|| PageHash::root(salt));
        let tokens = &tokens[..pages * self.page_size];
        let next = |hash: &mut PageHash, page: &[u32]| {
            *hash = hash.then(page);
            Some(*hash)
        };
        let hashes: Vec<PageHash> = tokens.chunks_exact(self.page_size).scan(before, next).collect();
        events.push(KvEvent::Stored {
            hashes: hashes.clone(),
            parent,
            tokens: tokens.to_vec(),
            page_size: self.page_size,
        });
        hashes
    }

    /// Moves all pages of a node but the first `kept` into a child of it.
    fn split(&mut self, node: NodeId, kept: usize) {
        let upper = &mut self.nodes[node];
        let lower = Node {
            parent: Some(node),
            tokens: upper.tokens.split_off(kept * self.page_size),
            pages: upper.pages.split_off(kept),
            hashes: upper.hashes.split_off(kept.min(upper.hashes.len())),
            children: std::mem::take(&mut upper.children),
            last_use: upper.last_use,
        };
        let (last_use, first_page) = (lower.last_use, lower.tokens[..self.page_size].to_vec());
        let below: Vec<NodeId> = lower.children.values().copied().collect();
        let lower = self.place(lower);
        below.into_iter().for_each(|child| self.nodes[child].parent = Some(lower));
        self.nodes[node].children.insert(first_page, lower);
        if self.leaves.remove(&(last_use, node)) {
            self.leaves.insert((last_use, lower));
        }
    }

    /// Takes a leaf whose pages are gone out of the tree; its tokens still say where it hung.
    fn remove_leaf(&mut self, leaf: NodeId) {
        let node = std::mem::take(&mut self.nodes[leaf]);
        self.leaves.remove(&(node.last_use, leaf));
        self.vacant.push(leaf);
        let Some(parent) = node.parent else { return };
        self.nodes[parent].children.remove(&node.tokens[..self.page_size]);
        if !self.nodes[parent].children.is_empty() {
            return;
        }
        if self.nodes[parent].parent.is_some() {
            self.leaves.insert((self.nodes[parent].last_use, parent));
        } else {
            self.roots.retain(|_, root| *root != parent);
            self.nodes[parent] = Node::default();
            self.vacant.push(parent);
        }
    }
}
