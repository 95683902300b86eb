//! Units without result, and the verdicts that keep runs from trying them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use rusqlite::params;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::Result;
use crate::fingerprint::Hash;

/// Why a unit is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Its data is bad: not tried again until its content changes.
    Bad,
    /// Something around it failed: tried again by the next run.
    Transient,
    /// The stage panicked: tried again by the next run.
    Bug,
}

/// A unit without result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quarantined {
    pub unit: String,
    /// The file that the unit goes back to.
    pub path: Option<String>,
    pub stage: String,
    pub class: Class,
    pub reason: String,
    /// The run that first put it here.
    pub run: i64,
    /// The verdicts to which this goes back, sorted: several where a transient stage rejects the unit for several stages, none
    /// where the next run tries again.
    #[serde(skip)]
    pub keys: Vec<Hash>,
}

impl Quarantined {
    /// Sorted by stage and unit; entries that differ in their keys alone become one.
    pub(crate) fn merged(mut list: Vec<Quarantined>) -> Vec<Quarantined> {
        let keyless = |entry: &Quarantined| Quarantined { keys: Vec::new(), ..entry.clone() };
        list.sort_by(|a, b| (&a.stage, &a.unit, a).cmp(&(&b.stage, &b.unit, b)));
        let mut merged: Vec<Quarantined> = Vec::with_capacity(list.len());
        for entry in list {
            match merged.last_mut() {
                Some(last) if keyless(last) == keyless(&entry) => last.keys.extend(entry.keys),
                _ => merged.push(entry),
            }
        }
        for entry in &mut merged {
            entry.keys.sort_unstable();
            entry.keys.dedup();
        }
        merged
    }
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Bad => "bad",
            Class::Transient => "transient",
            Class::Bug => "bug",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Class, String> {
        let all = [Class::Bad, Class::Transient, Class::Bug];
        all.into_iter().find(|c| c.as_str() == text).ok_or_else(|| format!("`{text}` is none of bad, transient, bug"))
    }
}

impl FromSql for Class {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Class> {
        value.as_str()?.parse().map_err(|e: String| FromSqlError::Other(e.into()))
    }
}

impl ToSql for Class {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.as_str()))
    }
}

impl Store {
    /// Units of the pipeline without result, sorted by stage and unit.
    pub fn quarantine(&self, pipeline: &str) -> Result<Vec<Quarantined>> {
        let sql = "SELECT unit, path, stage, class, reason, run, key FROM quarantine WHERE pipeline = ?1";
        let rows = self.list("read the quarantine", sql, params![pipeline], |row| {
            let keys = row.get::<_, Option<Hash>>(6)?.into_iter().collect();
            let [unit, stage, reason] = [row.get(0)?, row.get(2)?, row.get(4)?];
            Ok(Quarantined { unit, path: row.get(1)?, stage, class: row.get(3)?, reason, run: row.get(5)?, keys })
        })?;
        Ok(Quarantined::merged(rows))
    }

    /// Makes `list` the pipeline's quarantine. An entry that was there before keeps the run that first put it there;
    /// others get `run`.
    pub fn set_quarantine(&self, pipeline: &str, run: i64, list: &[Quarantined]) -> Result<()> {
        let before = self.quarantine(pipeline)?;
        let alike = |entry: &Quarantined| Quarantined { run: 0, keys: Vec::new(), ..entry.clone() };
        let since: BTreeMap<Quarantined, i64> = before.iter().map(|entry| (alike(entry), entry.run)).collect();
        let entry = |entry: &Quarantined| {
            let run = since.get(&alike(entry)).copied().unwrap_or(run);
            Quarantined { run, ..entry.clone() }
        };
        let after = Quarantined::merged(list.iter().map(entry).collect());
        if after == before {
            return Ok(());
        }
        self.change("save the quarantine", "quarantine", |manifest| {
            manifest.execute("DELETE FROM quarantine WHERE pipeline = ?1", [pipeline])?;
            let sql = "INSERT INTO quarantine (pipeline, unit, path, stage, class, reason, run, key)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let mut insert = manifest.prepare_cached(sql)?;
            for Quarantined { unit, path, stage, class, reason, run, keys } in &after {
                let mut insert = |key| insert.execute(params![pipeline, unit, path, stage, class, reason, run, key]);
                match keys.as_slice() {
                    [] => _ = insert(None)?,
                    keys => keys.iter().try_for_each(|key| insert(Some(key)).map(drop))?,
                }
            }
            Ok(())
        })
    }

    /// Forgets the verdicts on these units, so that the next run tries them again; gives how many there were. Copies of one
    /// file share one verdict. Units of class transient or bug have none: every run tries them.
    pub fn forget_verdicts(&self, units: &[Quarantined]) -> Result<usize> {
        let keys: BTreeSet<&Hash> = units.iter().flat_map(|unit| &unit.keys).collect();
        let mut count = 0;
        if !keys.is_empty() {
            self.change("forget verdicts", "quarantine.retry", |manifest| {
                let mut forget = manifest.prepare_cached("DELETE FROM memo WHERE key = ?1 AND bad IS NOT NULL")?;
                for key in keys {
                    count += forget.execute([key])?;
                }
                Ok(())
            })?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memo;
    use super::super::tests::{commit, temp};
    use super::*;

    #[test]
    fn the_verdicts_on_these_units_are_forgotten_and_no_others() {
        let (_dir, path) = temp();
        let store = Store::open(path).unwrap();
        // All say the same.
        let keys = ["a", "b", "b of another stage", "c"].map(|name| Hash::of_bytes(name.as_bytes()));
        keys.iter().for_each(|key| commit(&store, *key, Memo::Bad("no frames".to_owned()), Vec::new()));
        let entry = |unit: &str, keys: &[Hash]| {
            let (unit, stage, reason) = (unit.to_owned(), "clips".to_owned(), "no frames".to_owned());
            Quarantined { unit, path: None, stage, class: Class::Bad, reason, run: 1, keys: keys.to_vec() }
        };
        store
            .set_quarantine("p", 1, &[entry("a", &keys[..1]), entry("b", &keys[1..3]), entry("c", &keys[3..])])
            .unwrap();
        let list = store.quarantine("p").unwrap();
        assert_eq!(list.iter().map(|entry| entry.keys.len()).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(store.forget_verdicts(&[entry("d", &[])]).unwrap(), 0);
        assert_eq!(store.forget_verdicts(&list[1..2]).unwrap(), 2);
        assert_eq!(store.forget_verdicts(&list[1..2]).unwrap(), 0, "once is enough");
        let known: Vec<bool> = store.memos(&keys).unwrap().iter().map(Option::is_some).collect();
        assert_eq!(known, [true, false, false, true]);
    }
}
