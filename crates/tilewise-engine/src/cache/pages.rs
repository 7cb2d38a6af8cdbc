//! A pool of fixed pages.

/// A page of every layer's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// Which pages are free and how often the others are held.
#[derive(Debug, Clone)]
pub struct PagePool {
    free: Vec<PageId>,
    holders: Vec<u32>,
}

impl PagePool {
    /// A pool of `num_pages` free pages.
    pub fn new(num_pages: usize) -> Self {
        let free = (0..num_pages as u32).rev().map(PageId).collect();
        Self { free, holders: vec![0; num_pages] }
    }

    /// The number of pages, free or not.
    pub fn num_pages(&self) -> usize {
        self.holders.len()
    }

    /// The number of pages that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
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
