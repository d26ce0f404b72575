//! Where in a run's history the events of its attempts are, for when they are taken up again.
//!
//! Owns: a few spans for each attempt under way. They cover all of its events, and some of others.
//! Does not: read anything, or survive its loop: what a loop has not seen go by counts as one span.
//! Keeps: a step that is taken up often does not read what its siblings did in between; and what is remembered of an
//! attempt has a limit, however many events it has.

use std::collections::HashMap;

use stepwell_core::{Event, Run, Seq, StepId};

/// Spans of an attempt. With more, the nearest become one.
const SPANS_MAX: usize = 128;
/// Events of others between two of an attempt that are rather read than left out: appends hold several.
const GAP_MIN: Seq = 16;

/// Events from the first number to the last.
pub(super) type Span = (Seq, Seq);

/// The spans of one attempt, in order.
#[derive(Debug)]
struct Trail {
    spans: Vec<Span>,
    gap: Seq,
}

impl Trail {
    fn new(first: Seq, last: Seq) -> Self {
        Self { spans: vec![(first, last)], gap: GAP_MIN }
    }

    fn see(&mut self, seq: Seq) {
        self.put((seq, seq));
        while self.spans.len() > SPANS_MAX {
            self.gap *= 2;
            for span in std::mem::take(&mut self.spans) {
                self.put(span);
            }
        }
    }

    fn put(&mut self, span: Span) {
        match self.spans.last_mut() {
            Some((_, last)) if span.0 <= last.saturating_add(self.gap) => *last = span.1.max(*last),
            _ => self.spans.push(span),
        }
    }
}

/// The trails of all attempts under way in a run.
#[derive(Debug, Default)]
pub(super) struct Trails(HashMap<StepId, Trail>);

impl Trails {
    /// Takes note of an event that has been folded.
    pub(super) fn see(&mut self, run: &Run, seq: Seq, event: &Event) {
        match event {
            Event::StepStarted { step, .. } => drop(self.0.insert(step.clone(), Trail::new(seq, seq))),
            Event::StepCompleted { step, .. } | Event::StepFailed { step, .. } | Event::StepCancelled { step } => {
                self.0.remove(step);
            }
            Event::StepUpdate { step, .. }
            | Event::StepCall { step, .. }
            | Event::StepLog { step, .. }
            | Event::StepArtifact { step, .. }
            | Event::StepSuspended { step, .. }
            | Event::StepResumed { step, .. } => match self.0.get_mut(step) {
                Some(trail) => trail.see(seq),
                // Its attempt began before the state that this loop has read.
                None => {
                    if let Some(started) = run.attempt_started(step) {
                        self.0.insert(step.clone(), Trail::new(started.min(seq), seq));
                    }
                }
            },
            _ => {}
        }
    }

    /// Where an attempt's events are that began with this one, up to the last that is on disk.
    pub(super) fn of(&self, step: &StepId, started: Seq, durable: Seq) -> Vec<Span> {
        let Some(trail) = self.0.get(step) else { return vec![(started, durable)] };
        let within = |&(first, last): &Span| (first.max(started), last.min(durable));
        trail.spans.iter().map(within).filter(|(first, last)| first <= last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(trail: &Trail, seq: Seq) -> bool {
        trail.spans.iter().any(|(first, last)| (*first..=*last).contains(&seq))
    }

    #[test]
    fn what_is_near_is_one_span_and_what_is_far_is_left_out() {
        let mut trail = Trail::new(10, 10);
        for seq in [12, 20, 1_000, 1_001, 5_000] {
            trail.see(seq);
        }
        assert_eq!(trail.spans, [(10, 20), (1_000, 1_001), (5_000, 5_000)]);
    }

    #[test]
    fn however_many_events_there_are_all_are_covered_by_few_spans_in_order() {
        let mut trail = Trail::new(1, 1);
        let seqs: Vec<Seq> = (1..5_000).map(|n| n * 37 + n * n).collect();
        for seq in &seqs {
            trail.see(*seq);
        }
        assert!(trail.spans.len() <= SPANS_MAX);
        assert!(seqs.iter().all(|seq| covers(&trail, *seq)));
        assert!(trail.spans.is_sorted_by(|a, b| a.1 < b.0));
    }
}
