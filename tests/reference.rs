//! Random graphs against a tiny reference interpreter.
