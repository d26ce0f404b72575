//! Graph documents to components.
