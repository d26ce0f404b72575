//! How long an attempt has.
//!
//! Owns: the moment at which an attempt is cut off, and what puts it off.
//! Does not: measure what a guest computes; that is fuel.
//! Keeps: what the host has an attempt wait for, for reasons of its own, is not the attempt's time; and no attempt holds
//! its slot for ever, because no more than [`HELD_MAX`] is put off.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most by which an attempt is put off. Somewhat more than it takes until every attempt of a tenant with all slots
/// has published as much as it may, at the rate at which a tenant publishes unless the operator says otherwise.
pub const HELD_MAX: Duration = Duration::from_secs(600);

/// How long an attempt has.
#[derive(Debug)]
pub struct AttemptTime(Mutex<Left>);

#[derive(Debug)]
struct Left {
    /// When it is over, but for a hold that is under way.
    until: Instant,
    held_since: Option<Instant>,
    /// By how much more it can be put off.
    spare: Duration,
}

impl Left {
    fn held(&self, now: Instant) -> Duration {
        self.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since).min(self.spare))
    }

    /// How long it is until the attempt is over, if it goes on as it does at this moment.
    fn left(&self, now: Instant) -> Duration {
        (self.until + self.held(now)).saturating_duration_since(now)
    }

    fn let_go(&mut self, now: Instant) {
        let held = self.held(now);
        self.until += held;
        self.spare -= held;
        self.held_since = None;
    }
}

impl Default for AttemptTime {
    fn default() -> Self {
        Self(Mutex::new(Left { until: Instant::now(), held_since: None, spare: HELD_MAX }))
    }
}

impl AttemptTime {
    fn lock(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt begins, and is over after so long.
    pub(super) fn begin(&self, limit: Duration) {
        self.lock().until = Instant::now() + limit;
    }

    /// Waits until it is over.
    pub(super) async fn over(&self) {
        loop {
            let left = self.lock().left(Instant::now());
            if left.is_zero() {
                return;
            }
            // While it is held this comes back too early, and looks again.
            tokio::time::sleep(left).await;
        }
    }

    /// From here on until the guard is dropped, the attempt waits for the host and its time stands still. One hold within
    /// another changes nothing.
    pub fn hold(&self) -> Held<'_> {
        let mut left = self.lock();
        let is_first = left.held_since.is_none();
        if is_first {
            left.held_since = Some(Instant::now());
        }
        Held { time: self, is_first }
    }
}

/// An attempt waits for the host.
#[derive(Debug)]
pub struct Held<'a> {
    time: &'a AttemptTime,
    is_first: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.is_first {
            self.time.lock().let_go(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn time_stands_still_while_it_is_held_and_goes_on_after() {
        let start = Instant::now();
        let mut time = Left { until: start + 30 * S, held_since: None, spare: 100 * S };
        assert_eq!(time.left(start + 10 * S), 20 * S);
        time.held_since = Some(start + 10 * S);
        assert_eq!(time.left(start + 60 * S), 20 * S);
        time.let_go(start + 60 * S);
        assert_eq!((time.left(start + 60 * S), time.left(start + 79 * S)), (20 * S, S));
        assert_eq!(time.left(start + 80 * S), Duration::ZERO);
    }

    #[test]
    fn no_attempt_is_put_off_for_ever() {
        let start = Instant::now();
        let mut time = Left { until: start + 30 * S, held_since: Some(start), spare: 100 * S };
        assert_eq!(time.left(start + 129 * S), S);
        assert_eq!(time.left(start + 130 * S), Duration::ZERO);
        time.let_go(start + 500 * S);
        time.held_since = Some(start + 500 * S);
        assert_eq!((time.spare, time.left(start + 501 * S)), (Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test]
    async fn an_attempt_is_over_when_its_time_is_and_not_while_the_host_holds_it() {
        let time = AttemptTime::default();
        time.begin(Duration::from_millis(20));
        let held = time.hold();
        drop(time.hold());
        let over = time.over();
        tokio::pin!(over);
        assert!(tokio::time::timeout(Duration::from_millis(60), over.as_mut()).await.is_err());
        drop(held);
        tokio::time::timeout(30 * S, over).await.unwrap();
    }
}
