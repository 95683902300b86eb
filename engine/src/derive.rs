//! The memoised operator: units in, rows out, computed only where the store does not know them.
//!
//! Differential carries ids and hashes, never a pixel. For each change `(unit, round, ±1)` the operator looks the unit's
//! key up. A hit yields the remembered rows with the same sign. A miss keeps the right to speak at its round, sends a
//! job to the pool, and yields the rows when the committer says that they are durable. A key that is being computed is
//! joined, by copies of the same content as well as by a retraction that arrives meanwhile.
//!
//! Differs from the textbook: no waiting for a round's end before the lookup. Equal changes cancel as far as they arrive
//! together, and the rest cancels behind the operator; a wait would make each stage a barrier for its round.

mod item;
mod resolve;
mod whole;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::scheduling::SyncActivator;

pub(crate) use item::{Fault, Item, Settled, Whole, Work, Yield};
use resolve::Resolved;
pub(crate) use resolve::{Warm, result_key};
pub(crate) use whole::{begin_of_ingest, end_of_ingest, root, shard, shard_id, whole_table};

use crate::fingerprint::Hash;
use crate::pool::{Job, Reply, StageCounters};
use crate::run::graph::GroupInput;
use crate::run::shared::Shared;
use crate::store::Class;

/// Engine time: rounds, counted within ingests; see [`end_of_ingest`].
pub(crate) type Time = u64;

/// One group's operator; see the module's documentation.
pub(crate) fn derive<'s>(
    units: VecCollection<'s, Time, Work>,
    shared: &Arc<Shared>,
    group: usize,
) -> VecCollection<'s, Time, Yield> {
    let shared = shared.clone();
    let is_whole = matches!(shared.graph.groups[group].input, GroupInput::Shards(_));
    // A table that changed together with another one passes through a state that never was: nothing is trained on that.
    let units = if is_whole { units.consolidate() } else { units.consolidate_stream() }.inner;
    let activations = units.scope().activations();
    let has_history = shared.graph.groups[group].members.iter().any(|member| shared.graph.has_history(member.stage));
    // One worker has to know all that a stage with a history has said.
    let route = move |work: &Work| if has_history { group as u64 } else { work.route() };
    let by_content = Exchange::new(move |(work, _, _): &(Work, Time, isize)| route(work));
    let name = format!("Derive {}", shared.graph.stages[shared.graph.groups[group].members[0].stage].id);
    units
        .unary::<CapacityContainerBuilder<Vec<(Yield, Time, isize)>>, _, _, _>(by_content, &name, move |_, info| {
            let (sender, replies) = crossbeam_channel::unbounded();
            let activator = SyncActivator::new(info.address.to_vec(), activations.borrow().sync());
            let reply = Arc::new(Reply::new(sender, activator));
            let remembers = match (has_history, shared.watches) {
                (true, _) => Remembers::All,
                (false, true) => Remembers::Live,
                (false, false) => Remembers::None,
            };
            let known = HashMap::new();
            let mut group = GroupState { shared, group, reply, known, remembers, resolved: HashMap::new() };
            move |input, output| {
                let mut changes = Vec::new();
                input.for_each(|stamp, data| {
                    changes.extend(data.drain(..).map(|(work, time, sign)| Change {
                        capability: stamp.delayed(&time, 0),
                        work,
                        sign,
                    }));
                });
                let mut yields = Yields::new();
                group.take_changes(changes, &mut yields);
                group.take_replies(replies.try_iter(), &mut yields);
                for (time, (capability, rows)) in yields {
                    output.session(&capability).give_iterator(rows.into_iter().map(|(row, sign)| (row, time, sign)));
                }
            }
        })
        .as_collection()
}

/// A unit that came or went.
struct Change {
    capability: Capability<Time>,
    work: Work,
    sign: isize,
}

/// What to say, by time.
type Yields = BTreeMap<Time, (Capability<Time>, Vec<(Yield, isize)>)>;

struct GroupState {
    shared: Arc<Shared>,
    group: usize,
    reply: Arc<Reply>,
    known: HashMap<Hash, Known>,
    remembers: Remembers,
    /// Of stages with a history: what is there now, by the key that it has without one.
    resolved: HashMap<Hash, Resolved>,
}

/// Which settled keys a worker keeps. It asks the store again for the others.
#[derive(Clone, Copy)]
enum Remembers {
    /// Those that its stages' history may name.
    All,
    /// Those of units that are there, to take back what was said.
    Live,
    None,
}

/// What this worker knows of a key.
enum Known {
    Settled {
        settled: Settled,
        /// How many units are there that it was said to.
        live: isize,
    },
    /// It failed for a reason that may pass. A later ingest tries again, and then for all of these.
    Passing { fault: Settled, live: Vec<(Item, isize)>, until: Time },
    /// It is being computed, for these.
    Awaited(Vec<Waiter>),
}

#[derive(Clone)]
struct Waiter {
    capability: Capability<Time>,
    item: Item,
    member: usize,
    sign: isize,
    /// The key under which the next run finds the verdict, if it is one.
    verdict: Hash,
}

/// Adds the waiter to those for whom a unit's result is there.
fn count_live(live: &mut Vec<(Item, isize)>, waiter: &Waiter) {
    match live.iter().position(|(item, _)| *item == waiter.item) {
        Some(at) => {
            live[at].1 += waiter.sign;
            if live[at].1 == 0 {
                live.swap_remove(at);
            }
        }
        None => live.push((waiter.item.clone(), waiter.sign)),
    }
}

impl GroupState {
    fn take_changes(&mut self, changes: Vec<Change>, yields: &mut Yields) {
        let changes: Vec<_> = changes.into_iter().map(|change| (self.keys(&change.work), change)).collect();
        let touched: Vec<Hash> = changes.iter().flat_map(|(keys, _)| keys).copied().collect();
        self.look_up(touched.iter());
        for (mut keys, change) in changes {
            let Change { capability, work, sign } = change;
            let warm = match keys.as_mut_slice() {
                [key] => self.resolve(self.shared.graph.groups[self.group].members[0].stage, key, sign),
                _ => None,
            };
            let mut wanted = Vec::new();
            for (member, key) in keys.into_iter().enumerate() {
                // Where a warm training ends in a verdict, nothing is published any more.
                let verdict = warm.map_or(key, |warm| result_key(&warm.base, std::iter::empty()));
                let waiter = Waiter { capability: capability.clone(), item: work.item.clone(), member, sign, verdict };
                self.count(member, |counters| {
                    counters.total.fetch_add(sign.max(0) as u64, Relaxed);
                });
                match self.known.entry(key) {
                    Entry::Occupied(mut known) => match known.get_mut() {
                        Known::Awaited(waiters) => waiters.push(waiter),
                        Known::Settled { settled, live } => {
                            *live += sign;
                            let settled = settled.clone();
                            self.settle(&settled, waiter, true, yields);
                        }
                        Known::Passing { fault, live, until } => {
                            let fault = fault.clone();
                            if sign < 0 || waiter.capability.time() <= until {
                                count_live(live, &waiter);
                                self.settle(&fault, waiter, true, yields);
                                continue;
                            }
                            let live = std::mem::take(live);
                            let again = live.into_iter().map(|(item, sign)| Waiter { item, sign, ..waiter.clone() });
                            let mut waiters: Vec<Waiter> = again.collect();
                            for waiter in &waiters {
                                let before = Waiter { sign: -waiter.sign, ..waiter.clone() };
                                self.settle(&fault, before, true, yields);
                            }
                            waiters.push(waiter);
                            self.known.insert(key, Known::Awaited(waiters));
                            wanted.push((member, key));
                        }
                    },
                    Entry::Vacant(unknown) if sign > 0 => {
                        unknown.insert(Known::Awaited(vec![waiter]));
                        wanted.push((member, key));
                    }
                    // It yielded nothing in this process, so there is nothing to take back.
                    Entry::Vacant(_) => {}
                }
            }
            if !wanted.is_empty() {
                self.shared.jobs.push_job(Job { group: self.group, work, wanted, warm, reply: self.reply.clone() });
            }
        }
        for key in touched {
            self.forget(&key);
        }
    }

    fn take_replies(&mut self, replies: impl Iterator<Item = (Hash, Settled)>, yields: &mut Yields) {
        for (key, settled) in replies {
            let Some(Known::Awaited(waiters)) = self.known.remove(&key) else { continue };
            let known = if settled.may_pass() {
                let mut live = Vec::new();
                waiters.iter().for_each(|waiter| count_live(&mut live, waiter));
                let origins = live.iter().filter_map(|(item, _)| item.origin.clone());
                self.shared.passing.lock().unwrap_or_else(PoisonError::into_inner).extend(origins);
                let last = waiters.iter().map(|waiter| *waiter.capability.time()).max().unwrap_or_default();
                Known::Passing { fault: settled.clone(), live, until: end_of_ingest(&last) }
            } else {
                Known::Settled { settled: settled.clone(), live: waiters.iter().map(|waiter| waiter.sign).sum() }
            };
            self.known.insert(key, known);
            self.forget(&key);
            for (index, waiter) in waiters.into_iter().enumerate() {
                // The first one is who it was computed for.
                self.settle(&settled, waiter, index > 0, yields);
            }
        }
    }

    /// Lets go of a settled key that nothing here needs any more, so that memory grows neither with the number of units
    /// nor with the length of a watch. The store still knows it.
    fn forget(&mut self, key: &Hash) {
        let needed = |live: isize| match self.remembers {
            Remembers::All => true,
            Remembers::Live => live != 0,
            Remembers::None => false,
        };
        if matches!(self.known.get(key), Some(Known::Settled { live, .. }) if !needed(*live)) {
            self.known.remove(key);
        }
    }

    /// Asks the store for the keys that this worker does not know yet.
    fn look_up<'a>(&mut self, keys: impl Iterator<Item = &'a Hash>) {
        let mut unknown: Vec<Hash> = keys.filter(|key| !self.known.contains_key(key)).copied().collect();
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return;
        }
        match self.shared.store.memos(&unknown) {
            Ok(memos) => {
                let hits = unknown.into_iter().zip(memos).filter_map(|(key, memo)| Some((key, memo?)));
                let known = |memo| Known::Settled { settled: Settled::from_memo(memo), live: 0 };
                self.known.extend(hits.map(|(key, memo)| (key, known(memo))));
            }
            // All is computed as if nothing were known, until the workers see that the run has failed.
            Err(error) => self.shared.fail(error),
        }
    }

    fn settle(&self, settled: &Settled, waiter: Waiter, reused: bool, yields: &mut Yields) {
        let Waiter { capability, item, member, sign, verdict } = waiter;
        self.count(member, |counters| counters.settled(sign.max(0) as u64));
        let graph = &self.shared.graph;
        let member = &graph.groups[self.group].members[member];
        let stage = &graph.stages[member.stage];
        if reused {
            stage.counters.reused.fetch_add(sign.max(0) as u64, Relaxed);
        }
        let (_, rows) = yields.entry(*capability.time()).or_insert_with(|| (capability, Vec::new()));
        match settled {
            Settled::Rows(memo) => {
                let own = member.stage as u32;
                let row = |row| (Yield::Row { stage: own, item: graph.row_of(member, &item, row) }, sign);
                rows.extend(memo.iter().map(row));
            }
            Settled::Held(held) => {
                rows.extend(
                    held.iter().map(|item| (Yield::Row { stage: member.stage as u32, item: item.clone() }, sign)),
                );
            }
            Settled::Fault { depth, class, reason } => {
                // A fault of a transient stage stands under that stage's name, once for all that it serves.
                let depth = depth.filter(|depth| *depth < member.chain.len());
                let at = depth.map_or(member.stage, |depth| member.chain[depth]);
                let unit = graph.id_after(&member.chain[..depth.unwrap_or(member.chain.len())], &item.id);
                let quarantined = &graph.stages[at].counters.quarantined;
                quarantined.fetch_add(u64::from(sign > 0), Relaxed);
                let key = (*class == Class::Bad).then_some(verdict);
                let fault = Fault { unit, path: item.origin.clone(), class: *class, reason: reason.clone(), key };
                rows.push((Yield::Fault { stage: at as u32, fault }, sign));
            }
        }
    }

    /// The unit's key for each member of the group.
    fn keys(&self, work: &Work) -> Vec<Hash> {
        let roots: Vec<Hash> = work.tables.iter().map(|whole| whole.root).collect();
        self.shared.graph.keys(self.group, &work.item, &roots)
    }

    /// For the member's stage, and for the transient ones whose units it counts.
    fn count(&self, member: usize, change: impl Fn(&StageCounters)) {
        let graph = &self.shared.graph;
        let member = &graph.groups[self.group].members[member];
        for stage in member.counted.iter().chain([&member.stage]) {
            change(&graph.stages[*stage].counters);
        }
    }
}
