//! A value that must not be seen.
//!
//! The invariant: it has no `Display`, its `Debug` says nothing, and it cannot be serialized, so it gets out only where
//! [`Secret::expose`] is written.

use std::fmt;

/// A password, an API key or the like.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<Box<str>>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Text from outside that may repeat the secret, without it.
    pub(crate) fn erase_from(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&*self.0, "[secret]") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_neither_printed_nor_left_in_foreign_text() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(secret.erase_from("no key hunter2, hunter2!"), "no key [secret], [secret]!");
        assert_eq!(Secret::new("").erase_from("as it is"), "as it is");
    }
}
