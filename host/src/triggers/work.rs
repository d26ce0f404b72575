//! Doing what a list says is due: each entry by one task at a time, few at once, and no tenant in the way of another.
//!
//! Owns: who is next, and how much of whose is under way.
//! Does not: know what is to be done. That is [`Owed`]'s, and what is due is in the journal.
//! Keeps: of what is under way a tenant has a part at most. When there is no room for all, tenants take turns, one entry a
//! turn, and so do the lanes of each: whoever has waited longest is next, however much the others have to do. An entry that
//! is under way is not taken again; one that a crash cuts off is still on the list.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use stepwell_core::{TenantId, Timestamp};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::due::Lane;
use crate::journal::{JournalError, error_chain};

/// How often the list is looked at when nothing else happens. Looking at an empty one takes microseconds.
const LOOK: Duration = Duration::from_millis(100);
/// After a task that has panicked.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// How much is done at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Width {
    pub(super) all: usize,
    pub(super) per_tenant: usize,
}

/// Something that is owed at times.
pub(super) trait Owed: Clone + Send + Sync + 'static {
    /// What names one of it in its lane.
    type Key: Clone + Eq + Hash + Send + 'static;
    /// How much is done at once.
    const WIDTH: Width;

    /// The lanes that have something due, each once.
    fn lanes(&self, now: Timestamp) -> Result<Vec<Lane>, JournalError>;

    /// What is due in a lane, oldest first, at most `limit`.
    fn due(&self, lane: &Lane, now: Timestamp, limit: usize) -> Result<Vec<(Timestamp, Self::Key)>, JournalError>;

    /// Does one, and sees to it that the list changes. What is still due after it is done again.
    fn carry_out(&self, lane: Lane, at: Timestamp, key: Self::Key) -> impl Future<Output = ()> + Send;
}

/// Does what is due until the host stops.
pub(super) async fn drive<O: Owed>(owed: O, stopping: &CancellationToken) {
    let mut work = Work::new(owed);
    loop {
        if let Err(error) = work.fill(clock::now()) {
            tracing::error!(error = error_chain(&error), "what is due could not be read");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = work.one_ends() => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// What is under way, and who is next.
struct Work<O: Owed> {
    owed: O,
    tasks: JoinSet<()>,
    by_task: HashMap<tokio::task::Id, (Lane, O::Key)>,
    under_way: HashSet<(Lane, O::Key)>,
    of_tenant: HashMap<TenantId, usize>,
    tenants: Turns<TenantId>,
    lanes: Turns<Lane>,
}

impl<O: Owed> Work<O> {
    fn new(owed: O) -> Self {
        Self {
            owed,
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            under_way: HashSet::new(),
            of_tenant: HashMap::new(),
            tenants: Turns::default(),
            lanes: Turns::default(),
        }
    }

    /// Begins what is due and has room. It looks at as many lanes as have something due, and into few more of them than it
    /// finds something to begin in.
    fn fill(&mut self, now: Timestamp) -> Result<(), JournalError> {
        let mut lanes = self.owed.lanes(now)?;
        self.lanes.order(&mut lanes);
        let mut of_tenants: HashMap<TenantId, VecDeque<Waiting<O::Key>>> = HashMap::new();
        for lane in lanes {
            of_tenants.entry(lane.tenant.clone()).or_default().push_back(Waiting { lane, due: None });
        }
        let mut tenants: Vec<TenantId> = of_tenants.keys().cloned().collect();
        self.tenants.order(&mut tenants);
        let mut begun = true;
        while begun {
            begun = false;
            for tenant in &tenants {
                if self.tasks.len() >= O::WIDTH.all {
                    return Ok(());
                }
                let room = self.of_tenant.get(tenant).is_none_or(|count| *count < O::WIDTH.per_tenant);
                let Some(waiting) = of_tenants.get_mut(tenant).filter(|_| room) else { continue };
                if let Some((lane, at, key)) = self.next_of(waiting, now)? {
                    self.tenants.served(tenant);
                    self.lanes.served(&lane);
                    self.begin(lane, at, key);
                    begun = true;
                }
            }
        }
        Ok(())
    }

    /// The next of a tenant that is not under way. Its lane goes behind the others; lanes with nothing more go.
    fn next_of(
        &self,
        waiting: &mut VecDeque<Waiting<O::Key>>,
        now: Timestamp,
    ) -> Result<Option<(Lane, Timestamp, O::Key)>, JournalError> {
        while let Some(Waiting { lane, due }) = waiting.pop_front() {
            let mut due = match due {
                Some(due) => due,
                // So many of them may be under way, and so many more may begin.
                None => self.owed.due(&lane, now, O::WIDTH.per_tenant * 2)?.into(),
            };
            while let Some((at, key)) = due.pop_front() {
                if !self.under_way.contains(&(lane.clone(), key.clone())) {
                    waiting.push_back(Waiting { lane: lane.clone(), due: Some(due) });
                    return Ok(Some((lane, at, key)));
                }
            }
        }
        Ok(None)
    }

    fn begin(&mut self, lane: Lane, at: Timestamp, key: O::Key) {
        *self.of_tenant.entry(lane.tenant.clone()).or_default() += 1;
        self.under_way.insert((lane.clone(), key.clone()));
        let (owed, entry) = (self.owed.clone(), (lane.clone(), key.clone()));
        let task = self.tasks.spawn(async move {
            if AssertUnwindSafe(owed.carry_out(lane, at, key)).catch_unwind().await.is_err() {
                tracing::error!("a task of the triggers has panicked"); // a defect of ours; it is still on the list
                tokio::time::sleep(PANIC_PAUSE).await;
            }
        });
        self.by_task.insert(task.id(), entry);
    }

    /// Waits for the end of one of them, and clears away all that have ended; for ever when there is none.
    async fn one_ends(&mut self) {
        let Some(mut ended) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        loop {
            let id = match &ended {
                Ok((id, ())) => *id,
                Err(error) => error.id(),
            };
            if let Some((lane, key)) = self.by_task.remove(&id) {
                let left = self.of_tenant.get(&lane.tenant).map_or(0, |count| count.saturating_sub(1));
                if left == 0 {
                    self.of_tenant.remove(&lane.tenant);
                } else {
                    self.of_tenant.insert(lane.tenant.clone(), left);
                }
                self.under_way.remove(&(lane, key));
            }
            match self.tasks.try_join_next_with_id() {
                Some(next) => ended = next,
                None => return,
            }
        }
    }
}

/// A lane that waits, and what is due in it, once that was looked at.
struct Waiting<K> {
    lane: Lane,
    due: Option<VecDeque<(Timestamp, K)>>,
}

/// Whose turn it is: of those who wait, whoever has waited longest since it began to, or since its last turn.
struct Turns<K> {
    since: HashMap<K, u64>,
    now: u64,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { since: HashMap::new(), now: 0 }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Brings all who wait in the order of their turns. Forgets who does not wait.
    fn order(&mut self, waiting: &mut [K]) {
        let known = std::mem::take(&mut self.since);
        for key in waiting.iter() {
            let since = known.get(key).copied().unwrap_or_else(|| {
                self.now += 1;
                self.now
            });
            self.since.insert(key.clone(), since);
        }
        waiting.sort_by_key(|key| self.since.get(key).copied());
    }

    fn served(&mut self, key: &K) {
        self.now += 1;
        if let Some(since) = self.since.get_mut(key) {
            *since = self.now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Left = Vec<(Lane, Vec<u32>)>;

    /// So many entries of each lane, in its order; those that are done are noted. What stalls is never done.
    #[derive(Clone)]
    struct Lists {
        left: Arc<Mutex<Left>>,
        stalls: &'static [&'static str],
        begun: Arc<Mutex<Vec<String>>>,
    }

    fn lane(text: &str) -> Lane {
        let (tenant, name) = text.split_once('/').unwrap();
        Lane { tenant: tenant.parse().unwrap(), name: name.to_owned() }
    }

    fn name_of(lane: &Lane) -> String {
        format!("{}/{}", lane.tenant, lane.name)
    }

    impl Lists {
        fn new(lists: &[(&str, u32)], stalls: &'static [&'static str]) -> Self {
            let left = lists.iter().map(|(name, count)| (lane(name), (0..*count).collect())).collect();
            Self { left: Arc::new(Mutex::new(left)), stalls, begun: Arc::default() }
        }

        fn begun(&self) -> Vec<String> {
            self.begun.lock().unwrap().clone()
        }

        fn count(&self, name: &str) -> usize {
            self.begun().iter().filter(|begun| *begun == name).count()
        }
    }

    impl Owed for Lists {
        type Key = u32;
        const WIDTH: Width = Width { all: 4, per_tenant: 3 };

        fn lanes(&self, _: Timestamp) -> Result<Vec<Lane>, JournalError> {
            Ok(self
                .left
                .lock()
                .unwrap()
                .iter()
                .filter(|(_, left)| !left.is_empty())
                .map(|(lane, _)| lane.clone())
                .collect())
        }

        fn due(&self, lane: &Lane, _: Timestamp, limit: usize) -> Result<Vec<(Timestamp, u32)>, JournalError> {
            let left = self.left.lock().unwrap();
            let entries = &left.iter().find(|(of, _)| of == lane).unwrap().1;
            Ok(entries.iter().take(limit).map(|entry| (Timestamp::from_millis(1), *entry)).collect())
        }

        async fn carry_out(&self, lane: Lane, _: Timestamp, key: u32) {
            self.begun.lock().unwrap().push(name_of(&lane));
            assert!(name_of(&lane) != "panics/w" || key > 0, "as it should");
            if self.stalls.contains(&name_of(&lane).as_str()) {
                std::future::pending::<()>().await;
            }
            let mut left = self.left.lock().unwrap();
            left.iter_mut().find(|(of, _)| *of == lane).unwrap().1.retain(|entry| *entry != key);
        }
    }

    /// Drives until a condition holds.
    async fn drive_until(lists: &Lists, holds: impl Fn(&Lists) -> bool) {
        let stopping = CancellationToken::new();
        tokio::select! {
            () = drive(lists.clone(), &stopping) => {}
            () = async { while !holds(lists) { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("{:?}", lists.begun()),
        }
    }

    #[tokio::test]
    async fn a_tenant_whose_work_stalls_delays_nobody_else() {
        let lists = Lists::new(&[("a/w", 20_000), ("b/w", 1), ("c/w", 100)], &["a/w"]);
        drive_until(&lists, |lists| lists.count("c/w") == 100).await;
        assert_eq!((lists.count("a/w"), lists.count("b/w")), (3, 1));
    }

    #[tokio::test]
    async fn when_there_is_no_room_for_all_tenants_take_turns() {
        let lists = Lists::new(&[("a/w", 1_000), ("b/w", 1_000), ("c/w", 9), ("d/w", 9), ("e/w", 9), ("f/w", 9)], &[]);
        drive_until(&lists, |lists| "cdef".chars().all(|tenant| lists.count(&format!("{tenant}/w")) == 9)).await;
        let begun = lists.begun();
        let last = begun.iter().rposition(|name| "cdef".contains(&name[..1])).unwrap();
        let greedy = begun[..last].iter().filter(|name| "ab".contains(&name[..1])).count();
        assert!(greedy <= 2 * 9 + 4, "{greedy} of those with much before the last of those with little: {begun:?}");
    }

    #[tokio::test]
    async fn the_lanes_of_a_tenant_take_turns_too() {
        let lists = Lists::new(&[("a/slow", 2_000), ("a/quick", 5)], &[]);
        drive_until(&lists, |lists| lists.count("a/quick") == 5).await;
        let begun = lists.begun();
        let last = begun.iter().rposition(|name| name == "a/quick").unwrap();
        assert!(last <= 5 + 9, "{:?}", &begun[..=last]);
    }

    #[tokio::test]
    async fn what_panics_is_done_again_and_delays_nobody() {
        let lists = Lists::new(&[("panics/w", 2), ("b/w", 3)], &[]);
        drive_until(&lists, |lists| lists.count("panics/w") > 2).await;
        assert_eq!(lists.count("b/w"), 3);
    }

    #[test]
    fn whoever_has_waited_longest_is_next() {
        let mut turns = Turns::default();
        let ordered = |turns: &mut Turns<char>, waiting: &str| {
            let mut waiting: Vec<char> = waiting.chars().collect();
            turns.order(&mut waiting);
            waiting.into_iter().collect::<String>()
        };
        assert_eq!(ordered(&mut turns, "abc"), "abc");
        turns.served(&'a');
        assert_eq!(ordered(&mut turns, "abcd"), "bcad", "who comes anew is behind those who wait");
        turns.served(&'b');
        assert_eq!(ordered(&mut turns, "bd"), "db");
        assert_eq!(ordered(&mut turns, "abd"), "dba", "who has not waited is forgotten");
    }
}
