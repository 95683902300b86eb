//! The key of a unit whose result depends on what its stage publishes now.
//!
//! Let `base` be the key that it has otherwise. A training that goes on from a published checkpoint has the key
//! H(base, that checkpoint), and once it is done, its rows are remembered a second time, under H(base, these rows). So
//! where the checkpoint that is published was made of today's inputs, this is seen, and it does not train from itself.

use std::collections::hash_map::Entry;

use super::{GroupState, Known, Settled};
use crate::fingerprint::Hash;
use crate::run::history;
use crate::spec::OnChange;

/// Where a warm training starts.
#[derive(Clone, Copy)]
pub(crate) struct Warm {
    /// The unit's key without regard to it.
    pub(crate) base: Hash,
    /// The row to start from.
    pub(crate) parent: Hash,
}

/// Under which key a unit that is there got its result, and how often it is there.
pub(super) struct Resolved {
    key: Hash,
    warm: Option<Warm>,
    count: isize,
}

/// The key under which rows `contents` are remembered as one of the results of `base`.
pub(crate) fn result_key(base: &Hash, contents: impl Iterator<Item = Hash>) -> Hash {
    history::key("result", base, contents)
}

impl GroupState {
    /// Replaces the key where the stage has a history. What is taken back is what was said before, whatever is published
    /// meanwhile.
    pub(super) fn resolve(&mut self, stage: usize, key: &mut Hash, sign: isize) -> Option<Warm> {
        let on_change = self.shared.graph.stages[stage].on_change;
        if on_change == OnChange::Retrain {
            return None;
        }
        let base = *key;
        let mut entry = match self.resolved.remove(&base) {
            Some(resolved) => resolved,
            // It yielded nothing in this process.
            None if sign < 0 => return None,
            None => self.resolve_anew(stage, base, on_change),
        };
        (*key, entry.count) = (entry.key, entry.count + sign);
        let warm = entry.warm;
        if entry.count > 0 {
            self.resolved.insert(base, entry);
        }
        warm
    }

    fn resolve_anew(&mut self, stage: usize, base: Hash, on_change: OnChange) -> Resolved {
        let present = self.shared.history.of(stage);
        let result = result_key(&base, present.contents());
        self.look_up([&base, &result].into_iter());
        let published = match self.known.get(&base) {
            Some(Known::Settled { settled: Settled::Rows(rows), .. }) => present.is(rows.iter().map(|row| row.content)),
            _ => false,
        };
        let settled = |key| Resolved { key, warm: None, count: 0 };
        let known = self.known.contains_key(&base);
        let resolved = if !published && self.known.contains_key(&result) {
            settled(result)
        } else if published || present.rows.is_empty() || (known && on_change == OnChange::Hold) {
            settled(base)
        } else if on_change == OnChange::Hold {
            let key = history::key("hold", &base, present.contents());
            if let Entry::Vacant(unknown) = self.known.entry(key) {
                unknown.insert(Known::Settled { settled: Settled::Held(present.rows.clone()), live: 0 });
            }
            self.shared.history.hold(stage, Some(self.shared.run));
            return settled(key);
        } else {
            let key = history::key("warm", &base, present.contents());
            self.look_up([&key].into_iter());
            Resolved { key, warm: Some(Warm { base, parent: present.rows[0].content }), count: 0 }
        };
        self.shared.history.hold(stage, None);
        resolved
    }
}
