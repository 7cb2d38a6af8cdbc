//! The key-value cache, as the scheduler sees it: page numbers.

pub mod pages;
pub mod prefix;

pub use pages::{PageId, PagePool};
pub use prefix::PrefixTree;
