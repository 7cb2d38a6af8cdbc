//! Items of answers, which clients that believe in storage refer to by their names.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Bytes of items that are kept: the oldest are forgotten first.
const MOST: usize = 16 << 20;

/// The items of the last answers, in memory. A name is as good as a key: nobody can guess it.
#[derive(Default)]
pub(crate) struct KeptItems {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    items: HashMap<String, Value>,
    /// Names and sizes, oldest first.
    order: VecDeque<(String, usize)>,
    bytes: usize,
}

impl KeptItems {
    /// Keeps an item, which has its name in `id`.
    pub(super) fn keep(&self, item: Value) {
        let Some(id) = item.get("id").and_then(Value::as_str).map(str::to_owned) else { return };
        let size = item.to_string().len() + 2 * id.len();
        if size > MOST {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += size;
        kept.order.push_back((id.clone(), size));
        kept.items.insert(id, item);
        while kept.bytes > MOST {
            let Some((oldest, size)) = kept.order.pop_front() else { return };
            kept.items.remove(&oldest);
            kept.bytes -= size;
        }
    }

    /// The item of a name, if it is still there.
    pub(super) fn find(&self, id: &str) -> Option<Value> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).items.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_oldest_items_are_forgotten_once_there_are_too_many_bytes() {
        let kept = KeptItems::default();
        let text = "x".repeat(MOST / 4);
        for index in 0..6 {
            kept.keep(json!({ "id": format!("msg_{index}"), "text": text }));
        }
        assert!(kept.find("msg_0").is_none() && kept.find("msg_5").is_some());
        assert!(kept.kept.lock().unwrap().bytes <= MOST);
    }
}
