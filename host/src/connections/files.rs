//! How many files the process may have open: every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the process asks for. More than it gives out as streams, and few enough for programs it starts, some of
/// which close every number there could be.
const FILES_MAX: u64 = 64 << 10;

/// Has the system allow this process as many open files as it may have, and says how many that is. What a process is
/// given at first is often 1,024, and only because old programs would stumble over more.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (current, wanted) = (current.unwrap_or(FILES_MAX), maximum.unwrap_or(FILES_MAX).min(FILES_MAX));
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, current, wanted, "the limit of open files could not be raised");
            current
        }
    }
}
