//! The state of a run as bytes, so that a long run need not be folded from its first event whenever it is taken up.
//!
//! A snapshot is a copy of what the fold has made, and never more than that: it can be thrown away at any time. One that was
//! made by another fold than this one is not taken.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, GraphSpec, Limits, NodeSpec};
use crate::run::Run;
use crate::time::Timestamp;

/// The form of a snapshot, and the meaning of the fold. Whoever changes what [`Run`] is made of, or what an event does to it,
/// gives this another number: then runs are folded from their first event, once.
pub(crate) const VERSION: u32 = 3;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    at: Timestamp,
    run: &'a Run,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    at: Timestamp,
    run: Run,
}

impl Run {
    /// The state as bytes, with the time of its last event. `None` when it cannot be written, which costs time and nothing
    /// else.
    #[must_use]
    pub fn snapshot(&self, at: Timestamp) -> Option<Vec<u8>> {
        serde_json::to_vec(&Written { version: VERSION, at, run: self }).ok()
    }

    /// The state that a snapshot holds, and the time of its last event. `None` when it was made by another fold, or cannot be
    /// read: the events still can.
    #[must_use]
    pub fn restore(graph: Arc<Graph>, bytes: &[u8]) -> Option<(Self, Timestamp)> {
        let Version { version } = serde_json::from_slice(bytes).ok()?;
        if version != VERSION {
            return None;
        }
        let Read { at, mut run } = serde_json::from_slice(bytes).ok()?;
        run.graph = graph;
        Some((run, at))
    }
}

/// Stands for the graph while a snapshot is read: the graph belongs to the version, and is not in it.
pub(crate) fn any_graph() -> Arc<Graph> {
    static GRAPH: OnceLock<Arc<Graph>> = OnceLock::new();
    let make = || {
        let limits = Limits { fuel: 1, timeout_ms: 1, memory_bytes: 1 << 20 };
        let spec = GraphSpec { nodes: vec![NodeSpec::new("none", limits)], ..GraphSpec::default() };
        #[expect(clippy::expect_used, reason = "a graph of one node with limits in range is valid; a test makes it")]
        Arc::new(Graph::check(spec).expect("a graph of one node is valid"))
    };
    Arc::clone(GRAPH.get_or_init(make))
}

/// Maps whose keys are no texts, as lists of pairs.
pub(crate) mod pairs {
    use std::collections::HashMap;
    use std::hash::Hash;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &HashMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<HashMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
