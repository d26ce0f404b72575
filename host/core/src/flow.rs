//! What of a workflow runs at once, and how fast its runs start: the settings, a run's place in them, and the arithmetic
//! of a pace.
//!
//! Owns: plain data and plain functions. Who waits for what is the driver's, and where a pace stands is the journal's.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The longest key, in bytes: an account, a host name, not a document.
pub const KEY_BYTES_MAX: usize = 256;
/// The most that a limit can be. Beyond it there is no use in one.
pub const LIMIT_MAX: u32 = 1_000_000;
/// The longest period of a pace and the longest delay of a debounce: 7 days.
pub const SECONDS_MAX: u32 = 7 * 24 * 60 * 60;
/// How far a priority goes, to either side of 0.
pub const PRIORITY_MAX: i32 = 1_000;

/// What of a workflow runs at once, and how fast its runs start. All of it holds for each key by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowControl {
    /// A jq expression on a run's input; runs with the same value count together. Without one all runs do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A jq expression on a run's input for its priority; without one it is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// Steps that execute at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// How fast runs start; what is faster waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Pace>,
    /// How fast runs are accepted; what is faster is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<Pace>,
    /// How long a run waits for a later one to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debounce: Option<Debounce>,
}

/// So many in a period, and so many at once.
///
/// A bucket that holds `burst` and is refilled at `limit` in `period_seconds`, evenly. So `limit` + `burst` - 1 is the most
/// that any period sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// How many in a period.
    pub limit: u32,
    /// The period.
    pub period_seconds: u32,
    /// How many at once after a pause, at least 1.
    pub burst: u32,
}

/// A run waits for a later one to take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debounce {
    /// How long each run waits.
    pub seconds: u32,
    /// How long it can be put off by later ones, all in all; without it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most_seconds: Option<u32>,
}

/// A run's place in its workflow's flow control. Made when the run is accepted, and never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPlace {
    /// What it counts together with.
    pub key: String,
    /// Higher ones start first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// It does not start before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Where a pace stands: when its bucket is full again, in microseconds since 1970. Milliseconds would be too coarse for
/// thousands in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark(u64);

impl Mark {
    /// Whether a bucket that stands here is full.
    #[must_use]
    pub const fn is_full(self, now: Timestamp) -> bool {
        self.0 <= micros(now)
    }
}

const fn micros(at: Timestamp) -> u64 {
    at.as_millis().saturating_mul(1_000)
}

impl Pace {
    /// Takes one out of the bucket; or says, when it is empty, from when on there is one. In either case the mark is to be kept: it
    /// has been [settled](Self::settle).
    pub fn take(&self, mark: &mut Option<Mark>, now: Timestamp) -> Result<(), Timestamp> {
        self.settle(mark, now);
        let full_at = mark.map_or(0, |mark| mark.0).max(micros(now));
        // Clocks here count milliseconds: each stands for all the moments in it, or there would be one of them at most.
        let from = Timestamp::from_millis(full_at.saturating_sub(self.held()) / 1_000);
        if from > now {
            return Err(from);
        }
        *mark = Some(Mark(full_at.saturating_add(self.interval())));
        Ok(())
    }

    /// No bucket is emptier than empty. A mark that says so is from a slower pace or from a clock that was ahead; what it says
    /// from here on must be kept, or each look would put off the end of the wait.
    pub fn settle(&self, mark: &mut Option<Mark>, now: Timestamp) {
        // An empty bucket is full again so long after the last moment of this millisecond.
        let latest = micros(now).saturating_add(999 + self.held()).saturating_add(self.interval());
        *mark = mark.map(|mark| mark.min(Mark(latest)));
    }

    /// Puts one back that was not used.
    #[must_use]
    pub const fn give_back(&self, mark: Mark) -> Mark {
        Mark(mark.0.saturating_sub(self.interval()))
    }

    /// Microseconds in which all are added that there can be at once, but for one.
    const fn held(&self) -> u64 {
        let further = if self.burst == 0 { 0 } else { self.burst as u64 - 1 };
        self.interval().saturating_mul(further)
    }

    /// Microseconds in which one is added. Rounded up: never faster than the limit.
    const fn interval(&self) -> u64 {
        let limit = if self.limit == 0 { 1 } else { self.limit as u64 };
        (self.period_seconds as u64 * 1_000_000).div_ceil(limit)
    }
}

impl Debounce {
    /// When a run starts that comes now. `since` is when the first one came of those whose place it takes.
    #[must_use]
    pub fn not_before(&self, since: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let after = |at: Timestamp, seconds: u32| at.plus_millis(u64::from(seconds) * 1_000);
        let wanted = after(now, self.seconds);
        match (since, self.at_most_seconds) {
            (Some(since), Some(at_most)) => wanted.min(after(since, at_most)),
            _ => wanted,
        }
    }
}

impl FlowControl {
    /// What is wrong with the numbers: the field and the rule.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |field, value: u32, most: u32| {
            if (1..=most).contains(&value) { Ok(()) } else { Err((field, format!("is a number from 1 to {most}"))) }
        };
        if let Some(concurrency) = self.concurrency {
            within("concurrency", concurrency, LIMIT_MAX)?;
        }
        for (pace, [limit, period, burst]) in [
            (self.throttle, ["throttle.limit", "throttle.period_seconds", "throttle.burst"]),
            (self.rate_limit, ["rate_limit.limit", "rate_limit.period_seconds", "rate_limit.burst"]),
        ] {
            if let Some(pace) = pace {
                within(limit, pace.limit, LIMIT_MAX)?;
                within(period, pace.period_seconds, SECONDS_MAX)?;
                within(burst, pace.burst, LIMIT_MAX)?;
            }
        }
        if let Some(debounce) = self.debounce {
            within("debounce.seconds", debounce.seconds, SECONDS_MAX)?;
            if let Some(at_most) = debounce.at_most_seconds {
                within("debounce.at_most_seconds", at_most, SECONDS_MAX)?;
                if at_most < debounce.seconds {
                    return Err(("debounce.at_most_seconds", "is not less than `seconds`".to_owned()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    /// When each of `count` gets one, when all come at once.
    fn times(pace: Pace, count: usize) -> Vec<u64> {
        let (mut now, mut mark, mut times) = (at(0), None, Vec::new());
        while times.len() < count {
            match pace.take(&mut mark, now) {
                Ok(()) => times.push(now.millis_since(at(0))),
                Err(from) => {
                    assert!(from > now, "there is something to wait for");
                    now = from;
                }
            }
        }
        times
    }

    #[test]
    fn a_pace_is_even_after_its_burst() {
        assert_eq!(times(Pace { limit: 2, period_seconds: 1, burst: 1 }, 4), [0, 500, 1_000, 1_500]);
        assert_eq!(times(Pace { limit: 2, period_seconds: 1, burst: 3 }, 5), [0, 0, 0, 500, 1_000]);
        assert_eq!(times(Pace { limit: 3, period_seconds: 1, burst: 1 }, 4), [0, 333, 666, 1_000]);
        let fast = times(Pace { limit: 10_000, period_seconds: 1, burst: 1 }, 20_001);
        assert_eq!(*fast.last().unwrap(), 2_000, "many in a millisecond are no faster than the limit");
    }

    #[test]
    fn a_pause_fills_the_bucket_and_no_more() {
        let pace = Pace { limit: 1, period_seconds: 1, burst: 2 };
        let mut mark = None;
        pace.take(&mut mark, at(0)).unwrap();
        assert!(mark.is_some_and(|mark| !mark.is_full(at(999)) && mark.is_full(at(1_000))));
        let later = at(3_600_000);
        assert_eq!([(); 2].map(|()| pace.take(&mut mark, later)), [Ok(()); 2]);
        assert_eq!(pace.take(&mut mark, later), Err(at(3_601_000)));
        mark = mark.map(|mark| pace.give_back(mark));
        assert_eq!(pace.take(&mut mark, later), Ok(()), "what was put back is there");
    }

    #[test]
    fn a_mark_of_a_slower_pace_or_of_a_clock_that_was_ahead_costs_one_wait() {
        let hourly = Pace { limit: 1, period_seconds: 3_600, burst: 1 };
        let mut mark = None;
        assert_eq!(hourly.take(&mut mark, at(0)), Ok(()));
        let fast = Pace { limit: 10, period_seconds: 1, burst: 2 };
        assert_eq!(fast.take(&mut mark, at(5)), Err(at(105)));
        assert_eq!(fast.take(&mut mark, at(55)), Err(at(105)), "a further look puts nothing off");
        assert_eq!(fast.take(&mut mark, at(105)), Ok(()));
        assert_eq!(fast.take(&mut mark, at(105)), Err(at(205)), "the bucket was empty");

        assert_eq!(hourly.take(&mut mark, at(7_200_000)), Ok(()));
        assert_eq!(hourly.take(&mut mark, at(0)), Err(at(3_600_000)), "an hour's clock is set back by two");
        assert_eq!(hourly.take(&mut mark, at(1_800_000)), Err(at(3_600_000)));
        assert_eq!(hourly.take(&mut mark, at(3_600_000)), Ok(()));
    }

    #[test]
    fn a_debounce_is_put_off_up_to_its_limit() {
        let debounce = Debounce { seconds: 10, at_most_seconds: Some(25) };
        assert_eq!(debounce.not_before(None, at(0)), at(10_000));
        assert_eq!(debounce.not_before(Some(at(0)), at(9_000)), at(19_000));
        assert_eq!(debounce.not_before(Some(at(0)), at(18_000)), at(25_000));
        let forever = Debounce { seconds: 10, at_most_seconds: None };
        assert_eq!(forever.not_before(Some(at(0)), at(90_000)), at(100_000));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let pace = Pace { limit: 1, period_seconds: 1, burst: 1 };
        let control = |change: fn(&mut FlowControl)| {
            let mut control = FlowControl {
                concurrency: Some(1),
                throttle: Some(Pace { limit: 1, period_seconds: 1, burst: 1 }),
                rate_limit: None,
                debounce: Some(Debounce { seconds: 1, at_most_seconds: Some(1) }),
                ..FlowControl::default()
            };
            change(&mut control);
            control.check().err().map(|(field, _)| field)
        };
        assert_eq!((control(|_| ()), FlowControl::default().check()), (None, Ok(())));
        assert_eq!(control(|c| c.concurrency = Some(0)), Some("concurrency"));
        assert_eq!(control(|c| c.throttle.as_mut().unwrap().limit = 0), Some("throttle.limit"));
        assert_eq!(control(|c| c.throttle.as_mut().unwrap().burst = 0), Some("throttle.burst"));
        assert_eq!(
            control(|c| c.throttle.as_mut().unwrap().period_seconds = SECONDS_MAX + 1),
            Some("throttle.period_seconds")
        );
        assert_eq!(
            control(|c| c.rate_limit = Some(Pace { limit: LIMIT_MAX + 1, period_seconds: 1, burst: 1 })),
            Some("rate_limit.limit")
        );
        assert_eq!(control(|c| c.debounce.as_mut().unwrap().seconds = 2), Some("debounce.at_most_seconds"));
        assert_eq!(pace.take(&mut Some(Mark(u64::MAX)), at(0)), Err(at(1_000)));
    }
}
