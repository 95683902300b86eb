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
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        find(&names, name)
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

/// Whether sorted names hold this one. They are spread evenly, as hashes are, so it stands near the place that its size says.
fn find(names: &[RowName], name: RowName) -> bool {
    let guess = (((name >> 64) * names.len() as u128) >> 64) as usize;
    let (mut from, mut to, mut reach) = (guess, guess, 64);
    while from > 0 && names[from] > name {
        (from, reach) = (from.saturating_sub(reach), 2 * reach);
    }
    while to < names.len() && names[to] < name {
        (to, reach) = (names.len().min(to + reach), 2 * reach);
    }
    names[from..names.len().min(to + 1)].binary_search(&name).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        for spread in [1, 1 << 60, u128::MAX / 1000] {
            let names: Vec<RowName> = (0..1000).map(|index| index * spread).collect();
            assert!(names.iter().all(|&name| find(&names, name)), "{spread}");
            assert!([names[999] + 1, u128::MAX].iter().all(|&name| !find(&names, name)), "{spread}");
            assert!(spread == 1 || names.iter().all(|&name| !find(&names, name + 1)), "{spread}");
        }
        assert!(!find(&[], 3));
    }
}
