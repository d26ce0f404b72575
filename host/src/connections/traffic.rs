//! What is under way on a connection.
//!
//! Owns: counting requests from their head to the last of their answer, and noting which answers wait to be taken.
//! Does not: wait, or close anything: whoever reads the connection asks for a [`Verdict`] and acts on it.
//! Keeps: every answer that is begun is counted off again, however it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much more time there is between two requests than before the first one. Proxies and clients keep a connection for
/// a minute or so to use it again; one that closes first on our side would now and then cost them a request.
const BETWEEN_REQUESTS: u32 = 4;
/// How often there is a look at a connection at least: a number that is changed meanwhile is seen by then.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// How long a client may do nothing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// With what is sent to it.
    pub stall: Duration,
    /// Before its first request; four times that between requests.
    pub request: Duration,
}

/// What is under way on one connection. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Traffic(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests that came and whose answers are not done.
    under_way: usize,
    /// Whether there ever was one.
    served: bool,
    /// When the last of them was done, or the connection made.
    idle_since: Instant,
    /// Answers of which a part was handed out and not gone by, and since when.
    held: HashMap<u64, Instant>,
    /// The last number that an answer was given.
    last: u64,
}

/// What is to be done about a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; look again then.
    LookAt(Instant),
    /// It has asked for nothing in all this time.
    Silent,
    /// It takes nothing of an answer.
    Stuck,
}

/// A request whose answer is not done. Counted off on drop.
#[derive(Debug)]
pub(super) struct UnderWay {
    traffic: Traffic,
    answer: u64,
    is_held: bool,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        let state = State { under_way: 0, served: false, idle_since: now, held: HashMap::new(), last: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A request has come.
    pub(super) fn begin(&self) -> UnderWay {
        let mut state = self.state();
        state.under_way += 1;
        state.served = true;
        state.last += 1;
        UnderWay { traffic: self.clone(), answer: state.last, is_held: false }
    }

    pub(super) fn verdict(&self, now: Instant, patience: Patience) -> Verdict {
        let state = self.state();
        if state.under_way == 0 {
            let allowed = patience.request * if state.served { BETWEEN_REQUESTS } else { 1 };
            let until = state.idle_since + allowed;
            return if until <= now { Verdict::Silent } else { Verdict::LookAt(until) };
        }
        // Whatever begins to wait after this has waited for less by the next look.
        let next = now + patience.stall.min(LOOK_MAX);
        match state.held.values().min() {
            Some(since) if *since + patience.stall <= now => Verdict::Stuck,
            Some(since) => Verdict::LookAt(next.min(*since + patience.stall)),
            None => Verdict::LookAt(next),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// A part of the answer was handed out.
    pub(super) fn hand_out(&mut self, now: Instant) {
        self.is_held = true;
        self.traffic.state().held.insert(self.answer, now);
    }

    /// The next part is asked for, so there was room for the one before.
    pub(super) fn has_gone(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.traffic.state().held.remove(&self.answer);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.traffic.state();
        state.held.remove(&self.answer);
        state.under_way -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience { stall: Duration::from_secs(10), request: Duration::from_secs(30) };

    #[test]
    fn a_connection_that_asks_for_nothing_is_silent_and_one_that_did_has_more_time() {
        let now = Instant::now();
        let traffic = Traffic::new(now);
        let verdict = |after: u32| traffic.verdict(now + SECOND * after, PATIENCE);
        assert_eq!((verdict(29), verdict(30)), (Verdict::LookAt(now + 30 * SECOND), Verdict::Silent));
        // Under way for as long as it takes: a page that waits says nothing for a minute.
        let request = traffic.begin();
        assert_eq!(verdict(300), Verdict::LookAt(now + 310 * SECOND));
        drop(request);
        assert!(matches!(verdict(119), Verdict::LookAt(_)));
        assert_eq!(verdict(121), Verdict::Silent);
    }

    #[test]
    fn an_answer_that_is_not_taken_is_told_from_one_that_has_nothing_to_say_and_from_a_slow_one() {
        let now = Instant::now();
        let traffic = Traffic::new(now);
        let verdict = |after: u32| traffic.verdict(now + SECOND * after, PATIENCE);
        let (mut stuck, mut slow, _silent) = (traffic.begin(), traffic.begin(), traffic.begin());
        for second in 0..10 {
            slow.has_gone();
            slow.hand_out(now + SECOND * second);
        }
        stuck.hand_out(now + SECOND);
        assert_eq!((verdict(10), verdict(11)), (Verdict::LookAt(now + 11 * SECOND), Verdict::Stuck));
        stuck.has_gone();
        assert_eq!(verdict(11), Verdict::LookAt(now + 19 * SECOND), "the slow one has taken something since");
        drop(slow);
        assert!(matches!(verdict(1_000), Verdict::LookAt(_)), "what has nothing to say is not stuck");
        stuck.hand_out(now);
        drop(stuck);
        assert!(matches!(verdict(1_000), Verdict::LookAt(_)), "nor is what was given up");
    }
}
