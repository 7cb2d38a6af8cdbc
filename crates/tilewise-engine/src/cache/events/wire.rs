//! Events as vLLM encodes them: msgpack maps, each named by its `type` (`vllm/distributed/kv_events.py`).

use serde::Serialize;
use serde_bytes::Bytes;

use super::KvEvent;

#[derive(Serialize)]
struct Batch<'a> {
    /// Seconds since 1970.
    ts: f64,
    events: Vec<Wire<'a>>,
    data_parallel_rank: u32,
}

/// vLLM's names: a block is a page.
#[derive(Serialize)]
#[serde(tag = "type")]
enum Wire<'a> {
    BlockStored {
        block_hashes: Vec<&'a Bytes>,
        parent_block_hash: Option<&'a Bytes>,
        token_ids: &'a [u32],
        block_size: usize,
        lora_id: Option<u32>,
        medium: &'static str,
        lora_name: Option<&'static str>,
    },
    BlockRemoved {
        block_hashes: Vec<&'a Bytes>,
        medium: &'static str,
    },
    AllBlocksCleared {},
}

/// Where vLLM says that a device's own blocks are, whatever the device.
const MEDIUM: &str = "GPU";

impl<'a> Wire<'a> {
    fn of(event: &'a KvEvent) -> Self {
        match event {
            KvEvent::Stored { hashes, parent, tokens, page_size } => Self::BlockStored {
                block_hashes: hashes.iter().map(|hash| Bytes::new(hash.as_bytes())).collect(),
                parent_block_hash: parent.as_ref().map(|hash| Bytes::new(hash.as_bytes())),
                token_ids: tokens,
                block_size: *page_size,
                lora_id: None,
                medium: MEDIUM,
                lora_name: None,
            },
            KvEvent::Removed { hashes } => Self::BlockRemoved {
                block_hashes: hashes.iter().map(|hash| Bytes::new(hash.as_bytes())).collect(),
                medium: MEDIUM,
            },
            KvEvent::Cleared => Self::AllBlocksCleared {},
        }
    }
}

/// The message for some events at a time, in seconds since 1970.
pub(super) fn encode(ts: f64, events: &[KvEvent]) -> Vec<u8> {
    let batch = Batch { ts, events: events.iter().map(Wire::of).collect(), data_parallel_rank: 0 };
    rmp_serde::to_vec_named(&batch).expect("every value has a form in msgpack")
}
