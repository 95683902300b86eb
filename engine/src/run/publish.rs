//! The end of an ingest: rows, quarantine, then the folders outside the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::derive::Fault;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::report::Report;
use crate::run::dataflow::Found;
use crate::run::published::is_kept;
use crate::run::shared::Shared;
use crate::spec::MaxQuarantined;
use crate::store::{Quarantined, Row, RowName, Store, place, take_back};

/// What is published, as this run leaves it after each ingest.
pub(crate) struct Publisher<'a> {
    plan: &'a Plan,
    store: &'a Store,
    shared: &'a Shared,
    /// Those of stages that publish files or have a history, by stage and id.
    rows: BTreeMap<(String, String), Row>,
    faults: BTreeSet<(u32, Fault)>,
}

impl<'a> Publisher<'a> {
    /// `kept` is what was published before of the stages that [`is_kept`] names.
    pub(crate) fn new(plan: &'a Plan, store: &'a Store, shared: &'a Shared, kept: Vec<Row>) -> Publisher<'a> {
        let mut publisher = Publisher { plan, store, shared, rows: BTreeMap::new(), faults: BTreeSet::new() };
        publisher.keep(kept.into_iter());
        publisher
    }

    /// Remembers the rows whose files have to be placed, and those that the next result may depend on.
    fn keep(&mut self, rows: impl Iterator<Item = Row>) {
        let kept = |row: &Row| self.plan.stages.iter().any(|stage| stage.id == row.stage && is_kept(stage));
        self.rows.extend(rows.filter(kept).map(|row| ((row.stage.clone(), row.id.clone()), row)));
    }

    /// Publishes what an ingest has found, and says so in the report.
    pub(crate) fn publish(&mut self, found: Found, report: &mut Report) -> Result<()> {
        let Publisher { plan, store, shared, .. } = *self;
        let gone = found.changes.iter().filter(|(_, sign)| *sign < 0).map(|(name, _)| *name).collect();
        let (add, remove) = self.spell_out(found.changes, found.news)?;
        if !add.is_empty() || !remove.is_empty() {
            store.publish(&plan.name, shared.run, &add, &remove)?;
            shared.published.remove(&gone);
        }
        count(&add, &remove, report);
        for row in remove {
            self.rows.remove(&(row.stage, row.id));
        }
        self.keep(add.into_iter());
        shared.history.publish(&shared.graph, &self.rows, report);

        for (fault, sign) in found.faults {
            if sign > 0 {
                self.faults.insert(fault)
            } else {
                self.faults.remove(&fault)
            };
        }
        self.quarantine(report)?;
        self.place(report)
    }

    /// Rows to add and to remove, each sorted. Of rows that come and go the dataflow has said what they are; of others to
    /// remove, which nothing yields any more, the store knows it.
    fn spell_out(&self, changes: Vec<(RowName, isize)>, news: Vec<(RowName, Row)>) -> Result<(Vec<Row>, Vec<Row>)> {
        let mut news: HashMap<RowName, Row> = news.into_iter().collect();
        let (mut add, mut remove, mut unknown) = (Vec::new(), Vec::new(), HashSet::new());
        for (name, sign) in changes {
            match (news.remove(&name), sign > 0) {
                (Some(row), true) => add.push(row),
                (Some(row), false) => remove.push(row),
                (None, false) => _ = unknown.insert(name),
                (None, true) => {
                    let reason = "a row is to be published that nobody has spelt out, which is a bug of the engine";
                    return Err(Error::Failed(reason.to_owned()));
                }
            }
        }
        if !unknown.is_empty() {
            self.store.each_published(&self.plan.name, |row| {
                if unknown.remove(&row.name()) {
                    remove.push(row.to_row()?);
                }
                Ok(())
            })?;
        }
        add.sort();
        remove.sort();
        Ok((add, remove))
    }

    fn quarantine(&self, report: &mut Report) -> Result<()> {
        let Publisher { plan, store, shared, .. } = *self;
        let entry = |(stage, fault): &(u32, Fault)| Quarantined {
            unit: fault.unit.to_string(),
            path: fault.path.as_ref().map(|path| path.to_string()),
            stage: shared.graph.stages[*stage as usize].id.clone(),
            class: fault.class,
            reason: fault.reason.clone(),
            run: shared.run,
            keys: fault.key.into_iter().collect(),
        };
        let list = self.faults.iter().map(entry).collect();
        let mut list = Quarantined::merged(list);
        list.sort();
        report.quarantined.clone_from(&list);
        if plan.partial {
            let others = store.quarantine(&plan.name)?;
            list.extend(others.into_iter().filter(|entry| plan.index_of(&entry.stage).is_none()));
        }
        store.set_quarantine(&plan.name, shared.run, &list)?;
        for entry in report.quarantined.clone() {
            report.stage_mut(&entry.stage).quarantined += 1;
        }
        report.too_many_quarantined = too_many(plan.runtime.max_quarantined, shared, report);
        Ok(())
    }

    /// Makes the folders outside the store hold what is published.
    fn place(&self, report: &mut Report) -> Result<()> {
        for stage in &self.plan.stages {
            let Some(placement) = &stage.placement else { continue };
            let rows = self.rows.values().filter(|row| row.stage == stage.id);
            let placed = place(self.store, &self.plan.name, &stage.id, placement, &files(&stage.id, rows)?)?;
            report.outputs.insert(stage.id.clone(), placed.path);
        }
        if self.plan.partial {
            return Ok(());
        }
        let places = |id: &str| self.plan.stages.iter().any(|stage| stage.id == id && stage.placement.is_some());
        take_back(self.store, &self.plan.name, places)
    }
}

/// A row whose origin alone changed is neither new nor gone.
fn count(add: &[Row], remove: &[Row], report: &mut Report) {
    let same = |a: &Row, b: &Row| (&a.stage, &a.id, &a.content) == (&b.stage, &b.id, &b.content);
    // Both lists are sorted by stage, id and content.
    let holds = |list: &[Row], row: &Row| {
        let key = |row: &Row| (row.stage.clone(), row.id.clone(), row.content);
        list.binary_search_by_key(&key(row), key).is_ok_and(|at| same(&list[at], row))
    };
    for row in add.iter().filter(|row| !holds(remove, row)) {
        report.stage_mut(&row.stage).added += 1;
    }
    for row in remove.iter().filter(|row| !holds(add, row)) {
        report.stage_mut(&row.stage).retracted += 1;
    }
}

/// A share counts within each stage, so that many stages do not hide one that loses all its units.
fn too_many(limit: MaxQuarantined, shared: &Shared, report: &Report) -> bool {
    use std::sync::atomic::Ordering::Relaxed;
    let units = shared.graph.stages.iter().map(|stage| (&stage.id, stage.counters.total.load(Relaxed)));
    match limit {
        MaxQuarantined::None => false,
        MaxQuarantined::Count(_) => limit.is_exceeded(report.quarantined.len() as u64, 0),
        MaxQuarantined::Percent(_) => units.into_iter().any(|(id, units)| {
            let quarantined = report.stages.iter().find(|stage| stage.id == *id).map_or(0, |stage| stage.quarantined);
            limit.is_exceeded(quarantined, units)
        }),
    }
}

/// All files that a stage's rows publish. `Err`: two rows want different content at one place.
fn files<'a>(stage: &str, rows: impl Iterator<Item = &'a Row>) -> Result<BTreeMap<String, crate::Hash>> {
    let mut files = BTreeMap::new();
    for row in rows {
        for (path, content) in &row.files {
            let path = path.replace("{id}", &safe_name(&row.id));
            if files.insert(path.clone(), *content).is_some_and(|other| other != *content) {
                return Err(Error::Failed(format!(
                    "stage `{stage}`: row `{}` and another one publish different files as `{path}`",
                    row.id
                )));
            }
        }
    }
    Ok(files)
}

/// A row's id as one plain file name without its extension's special meaning: separators and characters that some file
/// system or shell minds become `_`. Where that changes anything, a short hash keeps different ids apart.
pub(crate) fn safe_name(id: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '=' | ' ');
    let mut name: String = id.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    // A file name has at most 255 bytes, and the stage's own part of it follows.
    let mut end = name.len().min(120);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    if name == id && !name.is_empty() {
        name
    } else {
        format!("{name}-{}", &crate::Hash::of_bytes(id.as_bytes()).short()[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_file_names_that_differ() {
        let long = "x".repeat(300);
        let ids = ["a", "a.mp4", "a/b.mp4", "a_b.mp4", "a#3", "..", "../a", ".hidden", "", "ä/ö", "a\0b", &long, "x:y"];
        let names: Vec<String> = ids.iter().map(|id| safe_name(id)).collect();
        assert_eq!(&names[..2], ["a", "a.mp4"]);
        for name in &names {
            assert!(!name.is_empty() && name.len() <= 130 && !name.starts_with('.'), "{name}");
            assert!(
                std::path::Path::new(name).components().count() == 1 && !name.contains(['/', '\0', ':', '#']),
                "{name}"
            );
        }
        let different: BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), ids.len());
    }
}
