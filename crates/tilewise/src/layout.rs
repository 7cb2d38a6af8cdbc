//! Which tokens a step computes, and where the keys of its sequences are.

use crate::{Error, Result};

/// Pages of each sequence, in compressed sparse rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageTable {
    /// Tokens per page.
    pub page_size: usize,
    /// `[sequences + 1]`: sequence `b` owns `pages[indptr[b]..indptr[b + 1]]`.
    pub indptr: Vec<u32>,
    /// Page numbers; token `t` of a sequence is in slot `t % page_size` of its page `t / page_size`.
    pub pages: Vec<u32>,
}

/// A ragged batch: some new tokens of each sequence, after the keys it already has.
///
/// Built once per step and checked then, so that kernels need not check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLayout {
    qo_indptr: Vec<u32>,
    kv_len: Vec<u32>,
    kv_indptr: Vec<u32>,
    page_table: Option<PageTable>,
    max_page: Option<u32>,
}

impl BatchLayout {
    /// A batch whose keys are contiguous: queries `qo_indptr[b]..qo_indptr[b + 1]` of sequence `b` attend to its
    /// own `kv_len[b]` keys.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths contradict each other.
    pub fn ragged(qo_indptr: Vec<u32>, kv_len: Vec<u32>) -> Result<Self> {
        check_indptr("qo_indptr", &qo_indptr, kv_len.len())?;
        let mut kv_indptr = Vec::with_capacity(kv_len.len() + 1);
        let mut total = 0u32;
        kv_indptr.push(0);
        for &len in &kv_len {
            let sum = total.checked_add(len);
            total = sum.ok_or_else(|| Error::shape("layout", "more than 2^32 keys in a batch"))?;
            kv_indptr.push(total);
        }
        Ok(Self { qo_indptr, kv_len, kv_indptr, page_table: None, max_page: None })
    }

    /// `batch` sequences of `num_queries` queries and `num_keys` contiguous keys each.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch has more than 2^32 tokens.
    pub fn dense(batch: usize, num_queries: usize, num_keys: usize) -> Result<Self> {
        let to_u32 = |n: usize| u32::try_from(n).map_err(|_| Error::shape("layout", "more than 2^32 tokens"));
        let indptr = (0..=batch).map(|b| to_u32(b * num_queries)).collect::<Result<_>>()?;
        Self::ragged(indptr, vec![to_u32(num_keys)?; batch])
    }

    /// A batch whose keys are in pages. `kv_len` counts the new tokens too: they are the last
    /// `qo_indptr[b + 1] - qo_indptr[b]` of each sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths contradict each other or a sequence has too few pages.
    pub fn paged(qo_indptr: Vec<u32>, kv_len: Vec<u32>, page_table: PageTable) -> Result<Self> {
        let mut layout = Self::ragged(qo_indptr, kv_len)?;
        check_indptr("page indptr", &page_table.indptr, layout.kv_len.len())?;
        if ![16, 32, 64, 128].contains(&page_table.page_size) {
            let got = page_table.page_size.to_string();
            return Err(Error::Value { name: "page_size", expected: "16, 32, 64 or 128", got });
        }
        if page_table.indptr.last().copied().unwrap_or(0) as usize != page_table.pages.len() {
            return Err(Error::shape("layout", "page indptr does not end at the number of pages"));
        }
        for sequence in 0..layout.kv_len.len() {
            let pages = (page_table.indptr[sequence + 1] - page_table.indptr[sequence]) as usize;
            let (queries, keys) = (layout.num_queries(sequence), layout.num_keys(sequence));
            if pages * page_table.page_size < keys {
                let why = format!("sequence {sequence} has {keys} keys in {pages} pages");
                return Err(Error::shape("layout", why));
            }
            if queries > keys {
                let why = format!("sequence {sequence} has {queries} new tokens but {keys} keys");
                return Err(Error::shape("layout", why));
            }
        }
        check_written_pages(&layout, &page_table)?;
        layout.max_page = page_table.pages.iter().copied().max();
        layout.page_table = Some(page_table);
        Ok(layout)
    }

    /// The number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.kv_len.len()
    }

    /// The number of queries of all sequences.
    pub fn total_queries(&self) -> usize {
        self.qo_indptr.last().copied().unwrap_or(0) as usize
    }

    /// `[sequences + 1]`: where each sequence's queries start.
    pub fn qo_indptr(&self) -> &[u32] {
        &self.qo_indptr
    }

    /// `[sequences + 1]`: where each sequence's keys start when they are contiguous.
    pub fn kv_indptr(&self) -> &[u32] {
        &self.kv_indptr
    }

    /// The queries of one sequence.
    pub fn num_queries(&self, sequence: usize) -> usize {
        (self.qo_indptr[sequence + 1] - self.qo_indptr[sequence]) as usize
    }

    /// The keys of one sequence.
    pub fn num_keys(&self, sequence: usize) -> usize {
        self.kv_len[sequence] as usize
    }

    /// The pages, where the keys are in pages.
    pub fn page_table(&self) -> Option<&PageTable> {
        self.page_table.as_ref()
    }

    /// The largest page number used.
    pub(crate) fn max_page(&self) -> Option<u32> {
        self.max_page
    }

    /// The pages of one sequence; empty where the keys are contiguous.
    pub fn pages(&self, sequence: usize) -> &[u32] {
        self.page_table.as_ref().map_or(&[], |table| {
            &table.pages[table.indptr[sequence] as usize..table.indptr[sequence + 1] as usize]
        })
    }

    /// The position of each new token in its sequence, in batch order.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.num_sequences()).flat_map(|sequence| {
            let queries = self.num_queries(sequence) as u32;
            let first = self.kv_len[sequence].saturating_sub(queries);
            first..first + queries
        })
    }
}

/// Checks that no two sequences write to the same page: shared pages are for reading.
fn check_written_pages(layout: &BatchLayout, table: &PageTable) -> Result<()> {
    let mut written = Vec::new();
    for sequence in 0..layout.num_sequences() {
        let (queries, keys) = (layout.num_queries(sequence), layout.num_keys(sequence));
        if queries > 0 {
            let first = table.indptr[sequence] as usize;
            let pages = (keys - queries) / table.page_size..keys.div_ceil(table.page_size);
            written.extend_from_slice(&table.pages[first + pages.start..first + pages.end]);
        }
    }
    written.sort_unstable();
    match written.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::shape("layout", format!("page {} would be written twice", pair[0]))),
        None => Ok(()),
    }
}

fn check_indptr(name: &str, indptr: &[u32], rows: usize) -> Result<()> {
    if indptr.len() != rows + 1 || indptr[0] != 0 || indptr.windows(2).any(|w| w[0] > w[1]) {
        let why = format!("{name} must be {} ascending values from 0", rows + 1);
        return Err(Error::shape("layout", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradicting_lengths_are_refused() {
        assert!(BatchLayout::ragged(vec![0, 2, 1], vec![3, 3]).is_err());
        assert!(BatchLayout::ragged(vec![1, 2], vec![3]).is_err());
        assert!(BatchLayout::ragged(vec![0], vec![3]).is_err());
        let table =
            |page_size, pages: Vec<u32>| PageTable { page_size, indptr: vec![0, pages.len() as u32], pages };
        assert!(BatchLayout::paged(vec![0, 1], vec![17], table(16, vec![4])).is_err());
        assert!(BatchLayout::paged(vec![0, 1], vec![1], table(12, vec![4])).is_err());
        assert!(BatchLayout::paged(vec![0, 5], vec![4], table(16, vec![4])).is_err());
        assert!(BatchLayout::paged(vec![0, 1], vec![17], table(16, vec![4, 2])).is_ok());
    }

    #[test]
    fn positions_count_from_the_cached_prefix() {
        let table = PageTable { page_size: 16, indptr: vec![0, 1, 2], pages: vec![0, 1] };
        let layout = BatchLayout::paged(vec![0, 2, 3], vec![5, 1], table).unwrap();
        assert_eq!(layout.positions().collect::<Vec<_>>(), [3, 4, 0]);
    }
}
