//! A pool of fixed pages.

/// A page of every layer's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// Which pages are free and how often the others are held.
#[derive(Debug, Clone)]
pub struct PagePool {
    free: Vec<PageId>,
    holders: Vec<u32>,
    /// Whether the prefix tree is one of the holders.
    cached: Vec<bool>,
    idle: usize,
}

impl PagePool {
    /// A pool of `num_pages` free pages.
    pub fn new(num_pages: usize) -> Self {
        let free = (0..num_pages as u32).rev().map(PageId).collect();
        Self { free, holders: vec![0; num_pages], cached: vec![false; num_pages], idle: 0 }
    }

    /// The number of pages, free or not.
    pub fn num_pages(&self) -> usize {
        self.holders.len()
    }

    /// The number of pages that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// The number of pages that only the prefix tree holds: they are free as soon as they are evicted.
    pub fn num_idle(&self) -> usize {
        self.idle
    }

    /// How often a page is held.
    pub fn holders(&self, page: PageId) -> u32 {
        self.holders[page.0 as usize]
    }

    /// Whether more than one holds a page besides the prefix tree.
    pub(crate) fn is_shared(&self, page: PageId) -> bool {
        self.holders(page) > 1 + u32::from(self.cached[page.0 as usize])
    }

    /// Holds pages once more that somebody holds already.
    ///
    /// # Panics
    /// If a page is free, which would be a bug of the caller.
    pub fn retain(&mut self, pages: &[PageId]) {
        for &page in pages {
            assert!(self.holders(page) > 0, "page {} is shared but free", page.0);
            self.idle -= usize::from(self.is_idle(page));
            self.holders[page.0 as usize] += 1;
        }
    }

    /// Holds a page once more, for the prefix tree.
    pub(super) fn cache(&mut self, page: PageId) {
        self.retain(&[page]);
        self.cached[page.0 as usize] = true;
    }

    /// Gives up the prefix tree's hold on a page.
    pub(super) fn uncache(&mut self, page: PageId) {
        self.idle -= usize::from(self.is_idle(page));
        self.cached[page.0 as usize] = false;
        self.release([page]);
    }

    /// Whether only the prefix tree holds a page.
    pub(super) fn is_idle(&self, page: PageId) -> bool {
        self.cached[page.0 as usize] && self.holders(page) == 1
    }

    /// Appends `count` pages to `pages`, held once each, and returns true; or, if there are too few, changes
    /// nothing and returns false.
    #[must_use]
    pub fn allocate(&mut self, count: usize, pages: &mut Vec<PageId>) -> bool {
        if count > self.free.len() {
            return false;
        }
        for page in self.free.drain(self.free.len() - count..).rev() {
            self.holders[page.0 as usize] = 1;
            pages.push(page);
        }
        true
    }

    /// Gives up one hold on each of `pages`; those that nobody else holds are free again.
    ///
    /// # Panics
    /// If a page is not held, which would be a bug of the holder.
    pub fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            let holders = &mut self.holders[page.0 as usize];
            assert!(*holders > 0, "page {} is released twice", page.0);
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
            self.idle += usize::from(self.is_idle(page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_all_or_nothing() {
        let mut pool = PagePool::new(3);
        let mut pages = Vec::new();
        assert!(pool.allocate(2, &mut pages));
        assert!(!pool.allocate(2, &mut pages));
        assert_eq!((pages.len(), pool.num_free()), (2, 1));
        pool.release(pages.drain(..));
        assert_eq!(pool.num_free(), 3);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_double_release_is_caught() {
        let mut pool = PagePool::new(1);
        let mut pages = Vec::new();
        assert!(pool.allocate(1, &mut pages));
        pool.release([pages[0], pages[0]]);
    }
}
