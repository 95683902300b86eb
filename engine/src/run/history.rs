//! What those stages publish whose next result may depend on it: they hold their checkpoint, or train on from it.
//!
//! Everything else that a run computes follows from its sources and parameters alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::derive::Item;
use crate::error::Result;
use crate::fingerprint::{Fingerprint, Hash};
use crate::report::Report;
use crate::run::graph::Graph;
use crate::spec::OnChange;
use crate::store::{Row, Store};

/// By stage index, as the last finished ingest left it; only stages that do not simply retrain.
#[derive(Default)]
pub(crate) struct History(Mutex<BTreeMap<usize, Present>>);

/// What a stage publishes.
#[derive(Clone, Default)]
pub(crate) struct Present {
    /// Sorted by id.
    pub(crate) rows: Arc<[Item]>,
    /// The run since which the rows are no result of the inputs.
    pub(crate) held_since: Option<i64>,
}

impl Present {
    pub(crate) fn contents(&self) -> impl Iterator<Item = Hash> {
        self.rows.iter().map(|row| row.content)
    }

    /// Whether it consists of these rows.
    pub(crate) fn is(&self, contents: impl Iterator<Item = Hash>) -> bool {
        sorted(contents) == sorted(self.contents())
    }
}

/// Names what has to do with a unit's key, as it is without a history, and with these rows.
pub(crate) fn key(word: &str, base: &Hash, contents: impl Iterator<Item = Hash>) -> Hash {
    let mut key = Fingerprint::new();
    key.text(word).hash(base);
    for content in sorted(contents) {
        key.hash(&content);
    }
    key.finish()
}

fn sorted(contents: impl Iterator<Item = Hash>) -> Vec<Hash> {
    let mut contents: Vec<Hash> = contents.collect();
    contents.sort_unstable();
    contents
}

impl History {
    pub(crate) fn load(graph: &Graph, store: &Store, pipeline: &str, published: &[Row]) -> Result<History> {
        let mut stages = BTreeMap::new();
        for (index, stage) in graph.stages.iter().enumerate() {
            if stage.on_change != OnChange::Retrain {
                let rows = published.iter().filter(|row| row.stage == stage.id);
                let rows = rows.map(|row| Item::of_row(row.clone())).collect();
                stages.insert(index, Present { rows, held_since: None });
            }
        }
        if !stages.is_empty() {
            let held = store.held_since(pipeline)?;
            for (index, present) in &mut stages {
                present.held_since = held.get(&graph.stages[*index].id).copied();
            }
        }
        Ok(History(Mutex::new(stages)))
    }

    pub(crate) fn of(&self, stage: usize) -> Present {
        self.stages().get(&stage).cloned().unwrap_or_default()
    }

    /// Notes whether the stage holds its rows in this run, and is stale therefore.
    pub(crate) fn hold(&self, stage: usize, run: Option<i64>) {
        if let Some(present) = self.stages().get_mut(&stage) {
            present.held_since = run.map(|run| present.held_since.unwrap_or(run));
        }
    }

    /// At the end of an ingest: `rows` are those that are published now, by stage and id; of other stages they may be left out.
    pub(crate) fn publish(&self, graph: &Graph, rows: &BTreeMap<(String, String), Row>, report: &mut Report) {
        for (index, present) in self.stages().iter_mut() {
            let id = &graph.stages[*index].id;
            let own = rows.range((id.clone(), String::new())..).take_while(|((stage, _), _)| stage == id);
            present.rows = own.map(|(_, row)| Item::of_row(row.clone())).collect();
            if present.rows.is_empty() {
                present.held_since = None;
            }
            report.stage_mut(id).held_since = present.held_since;
        }
    }

    fn stages(&self) -> MutexGuard<'_, BTreeMap<usize, Present>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
