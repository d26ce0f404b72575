//! The items of large fan-outs, taken apart once.
//!
//! Each item's steps are handed one element of an array that may have megabytes. Without this, ten thousand items would
//! read and parse it ten thousand times.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use serde_json::value::RawValue;
use stepwell_core::{Digest, Json, Payload, RunKey, TenantId};

use super::run_loop::read_payload;
use crate::journal::Journal;

/// Arrays that are kept taken apart, of at most 4 MiB each and with some overhead for each item.
const ARRAYS_MAX: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Arrays by their content.
#[derive(Debug)]
pub(super) struct Elements(Mutex<Arrays>);

type Arrays = LruCache<(TenantId, Digest), Arc<[Json]>>;

impl Default for Elements {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(ARRAYS_MAX)))
    }
}

impl Elements {
    /// One element of an array.
    pub(super) fn get(&self, journal: &impl Journal, key: &RunKey, array: Payload, index: u32) -> Result<Json, String> {
        let missing = || format!("there is no item {index}");
        let Payload::Stored(content) = &array else {
            // A small one is read faster than it is looked up.
            let array = read_payload(journal, key, array)?;
            let element = raw_elements(&array)?.get(index as usize).map(|raw| raw.get().to_owned());
            return Json::stored(element.ok_or_else(missing)?).map_err(|error| error.to_string());
        };
        let name = (key.tenant.clone(), content.sha256);
        let arrays = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = arrays().get(&name).cloned();
        let elements = match known {
            Some(elements) => elements,
            None => {
                // Read without the lock. Attempts that begin together may each do so; one of them is kept.
                let array = read_payload(journal, key, array)?;
                let element = |raw: &&RawValue| Json::stored(raw.get().to_owned()).map_err(|error| error.to_string());
                let elements: Arc<[Json]> = raw_elements(&array)?.iter().map(element).collect::<Result<_, _>>()?;
                arrays().put(name, Arc::clone(&elements));
                elements
            }
        };
        elements.get(index as usize).cloned().ok_or_else(missing)
    }
}

fn raw_elements(array: &Json) -> Result<Vec<&RawValue>, String> {
    serde_json::from_str(array.as_str()).map_err(|error| error.to_string())
}
