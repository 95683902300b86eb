//! What is published, beside which a run holds what it wants.

use std::collections::{BTreeSet, HashSet};
use std::sync::{PoisonError, RwLock};

use crate::error::Result;
use crate::plan::{Plan, PlannedStage};
use crate::spec::OnChange;
use crate::store::{Row, RowName, Store};

/// The names of published rows as the run found them, without those that it took back since. Rows that it added are not
/// among them.
#[derive(Default)]
pub(crate) struct PublishedNames(RwLock<Vec<RowName>>);

impl PublishedNames {
    pub(crate) fn contains(&self, name: RowName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).binary_search(&name).is_ok()
    }

    pub(crate) fn to_vec(&self) -> Vec<RowName> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn remove(&self, gone: &HashSet<RowName>) {
        if !gone.is_empty() {
            self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|name| !gone.contains(name));
        }
    }
}

/// What the pipeline publishes now, as far as this plan decides about it: all names, and the rows that a run keeps at hand.
pub(crate) fn published_before(plan: &Plan, store: &Store) -> Result<(PublishedNames, Vec<Row>)> {
    let stages: BTreeSet<&str> = plan.stages.iter().map(|stage| stage.id.as_str()).collect();
    let kept: BTreeSet<&str> =
        plan.stages.iter().filter(|stage| is_kept(stage)).map(|stage| stage.id.as_str()).collect();
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    store.each_published(&plan.name, |row| {
        if !plan.partial || stages.contains(row.stage) {
            names.push(row.name());
        }
        if kept.contains(row.stage) {
            rows.push(row.to_row()?);
        }
        Ok(())
    })?;
    names.sort_unstable();
    Ok((PublishedNames(RwLock::new(names)), rows))
}

/// Of rows of this stage, the files have to be placed, or the next result may depend on them.
pub(crate) fn is_kept(stage: &PlannedStage) -> bool {
    stage.placement.is_some() || stage.on_change != OnChange::Retrain
}
