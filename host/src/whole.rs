//! What is done whole, or not at all.

use crate::journal::JournalError;

/// Does something to its end, even when whoever asked for it goes away. A handler is dropped in the middle when its client
/// hangs up; what is then on disk and not in memory would stay so until the next start.
pub(crate) async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, JournalError>> + Send + 'static,
) -> Result<T, JournalError> {
    // It is cut off only when the process ends, and the memory with it.
    tokio::spawn(work).await.unwrap_or(Err(JournalError::Closed))
}
