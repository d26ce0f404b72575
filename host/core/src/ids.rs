//! Names of things. Each is checked where it enters and cannot be wrong afterwards.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number of an event in its run, starting at 1, without gaps.
pub type Seq = u64;

/// Text that is not a valid name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {reason}")]
pub struct InvalidName {
    kind: &'static str,
    reason: &'static str,
}

/// Who owns a run: `[a-z0-9-]`, 1 to 40 characters, not starting or ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// The longest tenant id, in bytes. Short enough for a label, a folder and a key.
    pub const BYTES_MAX: usize = 40;
}

impl FromStr for TenantId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| Err(InvalidName { kind: "a tenant id", reason });
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            return invalid("has 1 to 40 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return invalid("consists of a-z, 0-9 and -");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return invalid("neither starts nor ends with -");
        }
        Ok(Self(text.into()))
    }
}

/// The name of a workflow within a tenant: `[A-Za-z0-9_.-]`, 1 to 64 characters, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkflowName(Arc<str>);

impl FromStr for WorkflowName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| Err(InvalidName { kind: "a workflow name", reason });
        if !is_word(text) {
            return invalid("consists of 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -");
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return invalid("starts with a letter or a digit");
        }
        Ok(Self(text.into()))
    }
}

/// The id of a node in a graph: `[A-Za-z_][A-Za-z0-9_-]*`, at most 64 characters. `input` is reserved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

impl FromStr for NodeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| Err(InvalidName { kind: "a node id", reason });
        if text.is_empty() || text.len() > 64 {
            return invalid("has 1 to 64 characters");
        }
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return invalid("consists of A-Z, a-z, 0-9, _ and - and starts with a letter or _");
        }
        if text == "input" {
            return invalid("is not `input`, which names the run's input");
        }
        Ok(Self(text.into()))
    }
}

/// Topics, channels and edge labels share one alphabet: `[A-Za-z0-9_.-]`, 1 to 64 characters.
#[must_use]
pub fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

macro_rules! text_id {
    ($type:ident) => {
        impl $type {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}
text_id!(TenantId);
text_id!(WorkflowName);
text_id!(NodeId);

/// The number of a run: a UUID, version 7, so that the order of ids is the order of creation.
/// It does not name a run by itself: see [`RunKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A run id from the 16 bytes of a UUID.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the UUID, most significant first: they sort as the ids do.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl From<Uuid> for RunId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl FromStr for RunId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName { kind: "a run id", reason: "is a UUID" };
        // One spelling only, lower case with hyphens, so that a run has one URL.
        let id = Uuid::try_parse(text).map(Self).map_err(|_| invalid.clone())?;
        if id.to_string() == text { Ok(id) } else { Err(invalid) }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What names a run: nothing can be looked up without its tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// The owner.
    pub tenant: TenantId,
    /// The run among the owner's.
    pub run: RunId,
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.run)
    }
}

/// One execution of a node in a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepId {
    /// The node.
    pub node: NodeId,
    /// The item's path where the node stands inside a fan-out, outermost first; empty elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<u32>,
}

impl From<NodeId> for StepId {
    fn from(node: NodeId) -> Self {
        Self { node, items: Vec::new() }
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node)?;
        self.items.iter().try_for_each(|item| write!(f, "[{item}]"))
    }
}

/// A SHA-256. Names versions (of their component) and stored content; written in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// A digest from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName { kind: "a digest", reason: "has 64 digits out of 0-9 and a-f" };
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(invalid.clone()),
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(invalid) };
        let bytes = pairs.iter().map(|[hi, lo]| Ok(nibble(*hi)? << 4 | nibble(*lo)?));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| invalid)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_another_tenants_separator_are_refused() {
        for text in ["", "a/b", "a\0b", "A", "-a", "a-", "ä", &"x".repeat(41)] {
            assert!(text.parse::<TenantId>().is_err(), "{text:?}");
        }
        assert!("acme-2".parse::<TenantId>().is_ok());
    }

    #[test]
    fn a_digest_reads_back_what_it_writes() {
        let digest = Digest::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
        assert!("ab".parse::<Digest>().is_err());
    }

    #[test]
    fn the_name_of_the_runs_input_is_no_node() {
        assert!("input".parse::<NodeId>().is_err());
        assert!("inputs".parse::<NodeId>().is_ok());
    }
}
