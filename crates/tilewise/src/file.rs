//! Read-only mappings of files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// A file in memory, whose pages can be given back as they are used up.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a whole file.
    ///
    /// The file must not be truncated or rewritten while it is mapped: on most systems a process that reads a
    /// page that no longer exists is killed.
    ///
    /// # Errors
    /// The system's error, if it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only; that nothing shortens the file meanwhile is the
        // documented condition of this constructor, as for any memory-mapped weights.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        // Weights are used about in the order in which they are stored. Advice only.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Self { map })
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that a range has been read and need not stay in memory. Reading it again is correct.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end && end <= self.map.len() {
                // SAFETY: dropping pages of a read-only file mapping changes no contents: they are read again.
                // A refusal only means that they stay resident.
                let _ = unsafe {
                    self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
