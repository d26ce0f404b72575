//! When a schedule fires. Plain functions of their arguments; the clock is one of them.
//!
//! Owns: the reading of schedules and time zones, and which times were missed.
//! Does not: start anything, or remember what was started.
//!
//! Where a clock is set forward, a time of day that does not exist fires at the first moment that does, and a pattern with
//! wildcards simply has fewer moments. Where it is set back, a time of day that comes twice fires once, the first time, and
//! a pattern with wildcards fires in both.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use stepwell_core::Timestamp;

use crate::journal::triggers::Missed;

/// A time that the host comes to later than this was missed: it did not run. A host that is merely busy is not that late.
pub const MISSED_AFTER_MS: u64 = 5_000;
/// Missed times for which `run_all` starts runs: of a schedule with one a minute, more than an hour and a half.
pub const MISSED_RUNS_MAX: usize = 100;
/// Bytes of a schedule; the longest sensible lists of minutes and hours have fewer.
const SCHEDULE_BYTES_MAX: usize = 512;

/// A schedule in its time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// It cannot be read.
    #[error("the schedule cannot be read: {0}")]
    Form(String),
    /// There is no such time zone.
    #[error("there is no time zone `{0}`")]
    Zone(String),
    /// It has no time in the future.
    #[error("the schedule never fires")]
    Never,
}

impl InvalidSchedule {
    /// A stable identifier.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Form(_) => "invalid_schedule",
            Self::Zone(_) => "unknown_time_zone",
            Self::Never => "schedule_never_fires",
        }
    }
}

/// What a trigger is to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Times to start runs for, oldest first.
    pub fire: Vec<Timestamp>,
    /// The first time after now; `None` when there is none any more.
    pub next: Option<Timestamp>,
}

impl Schedule {
    /// Reads a schedule of five fields (minute, hour, day of the month, month, day of the week), or six with seconds.
    pub fn parse(schedule: &str, time_zone: &str) -> Result<Self, InvalidSchedule> {
        if schedule.len() > SCHEDULE_BYTES_MAX {
            return Err(InvalidSchedule::Form(format!("it has more than {SCHEDULE_BYTES_MAX} bytes")));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(schedule).map_err(|error| InvalidSchedule::Form(error.to_string()))?;
        // From the database that is part of this program: the same on all machines.
        let zone = jiff::tz::db().get(time_zone).map_err(|_| InvalidSchedule::Zone(time_zone.to_owned()))?;
        Ok(Self { cron, zone })
    }

    /// The first time after a moment; `None` when there is none.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_millisecond(i64::try_from(after.as_millis()).ok()?).ok()?;
        let next = self.cron.find_next_occurrence(&after.to_zoned(self.zone.clone()), false).ok()?;
        let next = Timestamp::from_millis(u64::try_from(next.timestamp().as_millisecond()).ok()?);
        // A schedule must move on, whatever the calendar does.
        (next.as_millis() > u64::try_from(after.as_millisecond()).ok()?).then_some(next)
    }

    /// The next times after a moment.
    #[must_use]
    pub fn upcoming(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        std::iter::successors(self.next_after(after), |last| self.next_after(*last)).take(count).collect()
    }

    /// What is to be done now, for a trigger whose first time that it has not fired for is `first`.
    #[must_use]
    pub fn due(&self, first: Timestamp, now: Timestamp, missed: Missed) -> Due {
        let mut fire = self.since(first, now);
        let on_time = fire.partition_point(|at| now.millis_since(*at) > MISSED_AFTER_MS);
        let kept = match missed {
            Missed::Skip => on_time,
            Missed::RunOnce => on_time.saturating_sub(1),
            Missed::RunAll => on_time.saturating_sub(MISSED_RUNS_MAX),
        };
        fire.drain(..kept);
        Due { fire, next: self.next_after(now) }
    }

    /// Times from `first` to now; of very many, the latest.
    fn since(&self, first: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        let mut window_ms = MISSED_AFTER_MS * 2;
        loop {
            // A schedule with a time each second has a million in a fortnight. Those that are far back are not looked at.
            let from = now.as_millis().saturating_sub(window_ms).max(first.as_millis());
            let before = Timestamp::from_millis(from.saturating_sub(1));
            let times = std::iter::successors(self.next_after(before), |last| self.next_after(*last));
            let times: Vec<Timestamp> = times.take_while(|at| *at <= now).collect();
            let missed = times.iter().filter(|at| now.millis_since(**at) > MISSED_AFTER_MS).count();
            if from == first.as_millis() || missed > MISSED_RUNS_MAX {
                return times;
            }
            window_ms = window_ms.saturating_mul(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond().try_into().unwrap())
    }

    fn times(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule, zone).unwrap();
        schedule.upcoming(at(after), count).into_iter().map(crate::clock::rfc3339).collect()
    }

    #[test]
    fn a_schedule_follows_the_clock_on_the_wall_of_its_zone() {
        let friday = "2026-03-27T12:00:00Z"; // Berlin changes to summer time on the Sunday after
        assert_eq!(
            times("0 9 * * 1-5", "Europe/Berlin", friday, 2),
            ["2026-03-30T07:00:00.000Z", "2026-03-31T07:00:00.000Z"]
        );
        assert_eq!(times("0 9 * * 1-5", "Europe/Berlin", "2026-03-26T12:00:00Z", 1), ["2026-03-27T08:00:00.000Z"]);
        assert_eq!(
            times("*/20 * * * * *", "UTC", "2026-01-01T00:00:05.5Z", 2),
            ["2026-01-01T00:00:20.000Z", "2026-01-01T00:00:40.000Z"]
        );
    }

    #[test]
    fn a_time_that_does_not_exist_fires_at_the_first_that_does() {
        // 02:00 to 03:00 is left out on 2026-03-29 in Berlin.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00.000Z", "2026-03-30T00:30:00.000Z"]
        );
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3),
            ["2026-03-29T00:30:00.000Z", "2026-03-29T01:00:00.000Z", "2026-03-29T01:30:00.000Z"]
        );
    }

    #[test]
    fn a_time_that_comes_twice_fires_once_and_a_wildcard_in_both() {
        // 02:00 to 03:00 comes twice on 2026-10-25 in Berlin: first as 00:00 UTC, then as 01:00 UTC.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00.000Z", "2026-10-26T01:30:00.000Z"]
        );
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 4),
            [
                "2026-10-25T00:30:00.000Z",
                "2026-10-25T01:00:00.000Z",
                "2026-10-25T01:30:00.000Z",
                "2026-10-25T02:00:00.000Z"
            ]
        );
    }

    #[test]
    fn a_time_that_does_not_exist_is_left_out_by_a_list_and_a_range_too() {
        // Like a wildcard, and unlike one time of day, which fires at the first moment after the gap.
        assert_eq!(
            times("15,45 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 3),
            ["2026-03-30T00:15:00.000Z", "2026-03-30T00:45:00.000Z", "2026-03-31T00:15:00.000Z"]
        );
        // 02:00 to 02:30 is left out on 2026-10-04 on Lord Howe, where summer is half an hour.
        assert_eq!(
            times("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),
            ["2026-10-03T15:30:00.000Z", "2026-10-04T15:15:00.000Z"]
        );
    }

    #[test]
    fn a_zone_that_changes_for_good_is_followed() {
        // Samoa went over the date line: from 10 hours behind to 14 ahead.
        assert_eq!(
            times("0 12 * * *", "Pacific/Apia", "2011-12-28T00:00:00Z", 2),
            ["2011-12-28T22:00:00.000Z", "2011-12-29T22:00:00.000Z"]
        );
        assert_eq!(times("0 12 * * *", "Pacific/Apia", "2011-12-31T00:00:00Z", 1), ["2011-12-31T22:00:00.000Z"]);
    }

    #[test]
    fn leap_days_and_far_times_are_found_and_told_from_never() {
        let leap = ["2028-02-29T12:00:00.000Z", "2032-02-29T12:00:00.000Z"];
        assert_eq!(times("0 12 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2), leap);
        // 2100 is no leap year.
        assert_eq!(times("0 12 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1), ["2104-02-29T12:00:00.000Z"]);
        assert_eq!(times("0 0 31 12 *", "UTC", "2026-12-31T00:00:00Z", 1), ["2027-12-31T00:00:00.000Z"]);
        for never in ["0 0 30 2 *", "0 0 31 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 */1"] {
            let started = std::time::Instant::now();
            let found = times(never, "Europe/Berlin", "2026-01-01T00:00:00Z", 1);
            eprintln!("{never}: {found:?} after {:?}", started.elapsed());
        }
    }

    #[test]
    fn what_is_no_schedule_or_never_fires_is_told() {
        for text in ["", "x", "61 * * * *", "* * * *", "0 0 0 0 0 0 0", &"1,".repeat(400)] {
            assert!(matches!(Schedule::parse(text, "UTC"), Err(InvalidSchedule::Form(_))), "{text}");
        }
        assert!(matches!(Schedule::parse("* * * * *", "Mars/Olympus"), Err(InvalidSchedule::Zone(_))));
        assert_eq!(times("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", 1), [""; 0]);
        assert_eq!(times("0 0 29 2 *", "UTC", "2026-03-01T00:00:00Z", 1), ["2028-02-29T00:00:00.000Z"]);
    }

    #[test]
    fn what_was_missed_is_made_up_for_as_the_trigger_says() {
        let every_minute = Schedule::parse("* * * * *", "UTC").unwrap();
        let (first, now) = (at("2026-01-01T00:01:00Z"), at("2026-01-01T00:10:02Z"));
        let fired = |missed| every_minute.due(first, now, missed).fire;
        assert_eq!(fired(Missed::Skip), [at("2026-01-01T00:10:00Z")], "the last one is on time");
        assert_eq!(fired(Missed::RunOnce), [at("2026-01-01T00:09:00Z"), at("2026-01-01T00:10:00Z")]);
        assert_eq!(fired(Missed::RunAll).len(), 10);
        assert_eq!(every_minute.due(first, now, Missed::Skip).next, Some(at("2026-01-01T00:11:00Z")));
        let late = at("2026-01-01T00:10:30Z");
        assert_eq!(every_minute.due(first, late, Missed::Skip).fire, []);
        assert_eq!(every_minute.due(first, late, Missed::RunOnce).fire, [at("2026-01-01T00:10:00Z")]);
    }

    #[test]
    fn a_year_of_seconds_is_not_counted_one_by_one() {
        let every_second = Schedule::parse("* * * * * *", "UTC").unwrap();
        let (first, now) = (at("2025-01-01T00:00:00Z"), at("2026-01-01T00:00:00.5Z"));
        let all = every_second.due(first, now, Missed::RunAll).fire;
        assert_eq!(all.len(), MISSED_RUNS_MAX + 5);
        assert_eq!(all.last(), Some(&at("2026-01-01T00:00:00Z")));
    }
}
