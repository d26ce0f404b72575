//! Where time, ids and randomness enter. Everything behind it gets them as arguments.

use std::time::{SystemTime, UNIX_EPOCH};

use stepwell_core::retry::Dice;
use stepwell_core::{RunId, Timestamp};

/// The time of this machine.
#[must_use]
pub fn now() -> Timestamp {
    // A clock before 1970 is a broken clock; 0 keeps everything going until it is set.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Random bytes from the system, good enough for keys.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// Fills a buffer with random bytes from the system.
pub fn fill_random(bytes: &mut [u8]) {
    #[expect(clippy::expect_used, reason = "without randomness no key and no id is safe: there is no way to go on")]
    getrandom::fill(bytes).expect("the system has randomness");
}

/// A random number for one decision.
#[must_use]
pub fn dice() -> Dice {
    Dice(u64::from_le_bytes(random_bytes()))
}

/// An id for a new run, later than all ids made in this process before.
#[must_use]
pub fn run_id() -> RunId {
    uuid::Uuid::now_v7().into()
}

/// A time as RFC 3339 with milliseconds, in UTC.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "9999-12-30T22:00:00.000Z".to_owned(), // later than what the calendar has names for
    }
}
