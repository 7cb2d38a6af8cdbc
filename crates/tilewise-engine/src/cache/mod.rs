//! The key-value cache, as the scheduler sees it: page numbers; and what is kept of it behind the device.

pub mod events;
pub mod keys;
pub mod pages;
pub mod prefix;
pub mod tiers;

pub use pages::{PageId, PagePool};
pub use prefix::{Evicted, PrefixTree};
