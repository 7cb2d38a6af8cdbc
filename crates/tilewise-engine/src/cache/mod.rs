//! The key-value cache, as the scheduler sees it: page numbers.

pub mod pages;

pub use pages::{PageId, PagePool};
