//! Pages of sequences that gave way, in the host's memory.

use std::collections::HashMap;

use super::Engine;
use crate::config::Preemption;
use crate::scheduler::{BatchPlan, Scheduler};
use crate::{RequestId, Result};

/// What the scheduler had saved, by whose it is.
#[derive(Default)]
pub(super) struct HostPages {
    kept: HashMap<(RequestId, usize), Run>,
}

/// Pages of one sequence, one after the other.
struct Run {
    /// The place of the first page in the sequence.
    first: usize,
    bytes: Vec<u8>,
}

impl HostPages {
    /// What all of it takes.
    pub(super) fn num_bytes(&self) -> usize {
        self.kept.values().map(|run| run.bytes.len()).sum()
    }

    /// Frees what the scheduler has no use for any more.
    pub(super) fn keep(&mut self, scheduler: &Scheduler) {
        if !self.kept.is_empty() {
            let wanted = scheduler.swapped();
            self.kept.retain(|of, _| wanted.contains(of));
        }
    }
}

impl Engine {
    /// Saves and restores the pages that a batch says, before anything of it is written.
    ///
    /// # Errors
    /// What the device returns.
    pub(super) fn swap(&mut self, batch: &BatchPlan) -> Result<()> {
        self.host_pages.keep(&self.scheduler);
        let device = &*self.device;
        for save in &batch.saves {
            let pages: Vec<u32> = save.pages.iter().map(|page| page.0).collect();
            let mut bytes = Vec::new();
            device.download_pages(&self.kv, &pages, &mut bytes)?;
            self.host_pages.kept.insert(save.of, Run { first: save.first, bytes });
        }
        let page_bytes = device.page_layout(&self.kv.config).bytes;
        for restore in &batch.restores {
            let run = self.host_pages.kept.get(&restore.of);
            let run =
                run.expect("what an earlier step saved is kept until a step that restores it is committed");
            let pages = run.bytes.chunks_exact(page_bytes).skip(restore.first - run.first);
            for (page, bytes) in restore.pages.iter().zip(pages) {
                device.upload_page(&mut self.kv, page.0, bytes)?;
            }
            if let Some(speculator) = &mut self.speculator {
                speculator.overwritten(&restore.pages);
            }
        }
        Ok(())
    }
}

/// The pages that may be kept.
pub(super) fn max_pages(preemption: Preemption, page_bytes: usize) -> usize {
    match preemption {
        Preemption::Recompute => 0,
        Preemption::Swap { bytes } => bytes / page_bytes,
    }
}
