//! Graph documents, from upload to output: a test for each kind of node, and for what bad documents get.
