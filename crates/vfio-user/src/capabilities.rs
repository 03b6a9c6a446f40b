//! What both sides can do, as JSON in VERSION: ours is never more than the client proposed.

use serde_json::{Map, Value, json};
use vionet_raw::MemoryMap;

use crate::channel::FDS_MAX;
use crate::event::Refusal;
use crate::message::DATA_MAX;

/// Pages that a DMA region is made of, as a sum of sizes; the kernel says what it makes of them.
const PAGE_SIZES: u64 = 4096;

/// The reply's version data, with its terminating NUL. Of capabilities that the client does not
/// name, the specification's defaults hold; the client then has to assume the same of us.
pub(crate) fn answer(proposed: &[u8]) -> Result<Vec<u8>, Refusal> {
    let proposed = match proposed {
        // Version data is optional.
        [] => Value::Null,
        [text @ .., 0] => serde_json::from_slice(text).map_err(|_| Refusal::Version)?,
        [..] => return Err(Refusal::Version),
    };
    let proposed = proposed.get("capabilities").and_then(Value::as_object);
    let ours = [
        ("max_msg_fds", json!(FDS_MAX)),
        ("max_data_xfer_size", json!(DATA_MAX)),
        ("max_dma_maps", json!(MemoryMap::REGIONS_MAX)),
        ("pgsizes", json!(PAGE_SIZES)),
    ];
    let mut all: Map<String, Value> = ours.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    if proposed.and_then(|them| them.get("write_multiple")) == Some(&Value::Bool(true)) {
        all.insert("write_multiple".to_owned(), Value::Bool(true));
    }
    let mut text = json!({ "capabilities": all }).to_string().into_bytes();
    text.push(0);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(proposed: &str) -> Option<String> {
        let answer = answer(proposed.as_bytes()).ok()?;
        let (end, text) = answer.split_last()?;
        assert_eq!(*end, 0);
        Some(String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn writes_come_together_only_from_who_can_send_them_so() {
        let with = |word: &str| answered(&format!("{{\"capabilities\":{word}}}\0")).unwrap();
        assert!(with("{\"write_multiple\":true}").contains("write_multiple"));
        for word in ["{}", "null", "[]", "{\"write_multiple\":false}", "{\"write_multiple\":1}"] {
            assert!(!with(word).contains("write_multiple"), "{word}");
        }
        assert!(answered("").unwrap().contains("\"max_msg_fds\":16"));
    }

    #[test]
    fn what_is_no_json_with_an_end_is_refused() {
        for text in ["{}", "{\0", "\0", "\0\0", "{}\0\0"] {
            assert!(answered(text).is_none(), "{text:?}");
        }
        let deep = format!("{}\0", "[".repeat(4000));
        assert!(answered(&deep).is_none());
    }
}
