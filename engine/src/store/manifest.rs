//! The SQLite file: what was computed, what is published, what failed, which runs there were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;

use super::fail::fail_point;
use super::rows;
use super::{Payload, Store};
use crate::error::{Error, Result};
use crate::fingerprint::Hash;

/// Step `n` brings a manifest of format `n` to format `n + 1`. Released steps never change; new ones are appended.
const MIGRATIONS: &[&str] = &[include_str!("format_1.sql"), include_str!("format_2.sql"), include_str!("format_3.sql")];

/// One output row of a memoised unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoRow {
    /// The name that the operator gave it within its unit.
    pub name: String,
    pub content: Hash,
    /// Files that go with it: relative path and blob. All blobs that a row names belong here; a memo is used only while
    /// they exist.
    pub files: Vec<(String, Hash)>,
    /// Length as Arrow IPC, in bytes.
    pub len: u64,
}

/// What is remembered of a computed unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memo {
    Rows(Vec<MemoRow>),
    /// The unit's data is bad, for this reason.
    Bad(String),
}

impl Memo {
    /// What its rows hold.
    pub fn contents(&self) -> impl Iterator<Item = Hash> {
        let rows: &[MemoRow] = match self {
            Memo::Rows(rows) => rows,
            Memo::Bad(_) => &[],
        };
        rows.iter().map(|row| row.content)
    }
}

/// A unit that was computed, ready to be remembered.
#[derive(Clone, Debug)]
pub struct Finished {
    pub key: Hash,
    pub stage_id: String,
    pub kind: String,
    pub memo: Memo,
    /// The bytes of each distinct row of the memo.
    pub payloads: Vec<(Hash, Payload)>,
    pub seconds: f64,
    pub run: i64,
}

/// A run, as the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunRecord {
    pub id: i64,
    pub pipeline: String,
    pub settings: String,
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// `None`: it still runs, or was killed.
    pub finished_ms: Option<i64>,
    pub outcome: Option<String>,
    pub report: Option<String>,
}

impl FromSql for Hash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Hash> {
        <[u8; 32]>::column_result(value).map(Hash)
    }
}

impl ToSql for Hash {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_slice()))
    }
}

/// `[["path", "hash"], …]` in one column.
pub(super) struct Files(pub(super) Vec<(String, Hash)>);

impl FromSql for Files {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Files> {
        match value.as_str()? {
            "[]" => Ok(Files(Vec::new())), // nearly all rows
            text => serde_json::from_str(text).map(Files).map_err(|e| FromSqlError::Other(e.into())),
        }
    }
}

pub(super) fn files_text(files: &[(String, Hash)]) -> String {
    serde_json::to_string(files).expect("paths and hashes are plain text, which JSON can hold")
}

pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64)
}

/// Opens the manifest for writing, and makes it or brings it to today's format.
pub(super) fn open(dir: &Path) -> Result<Connection> {
    let fail = || Error::manifest("open tables");
    let mut manifest = Connection::open(dir.join("manifest.sqlite")).map_err(fail())?;
    manifest.busy_timeout(Duration::from_secs(10)).map_err(fail())?;
    let format = format_of(&manifest, dir)?;
    manifest.pragma_update(None, "journal_mode", "WAL").map_err(fail())?;
    manifest.pragma_update(None, "synchronous", "FULL").map_err(fail())?;
    tune(&manifest).map_err(fail())?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(format as usize) {
        let change = manifest.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail())?;
        change.execute_batch(sql).map_err(fail())?;
        change.pragma_update(None, "user_version", step as i64 + 1).map_err(fail())?;
        fail_point("manifest.format");
        change.commit().map_err(fail())?;
    }
    Ok(manifest)
}

/// The manifest's path. `Err`: there is none.
pub(super) fn find(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("manifest.sqlite");
    if path.is_file() { Ok(path) } else { Err(Error::NoStore { dir: dir.to_owned() }) }
}

/// Opens a manifest that exists, for reading.
pub(super) fn open_read(dir: &Path) -> Result<Connection> {
    let path = find(dir)?;
    let fail = || Error::manifest("open tables");
    let manifest = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fail())?;
    manifest.busy_timeout(Duration::from_secs(10)).map_err(fail())?;
    match format_of(&manifest, dir)? {
        0 => Err(Error::NoStore { dir: dir.to_owned() }),
        found if found < MIGRATIONS.len() as i64 => {
            Err(Error::OlderStore { dir: dir.to_owned(), found, known: MIGRATIONS.len() as i64 })
        }
        _ => {
            tune(&manifest).map_err(fail())?;
            Ok(manifest)
        }
    }
}

/// A run looks up hundreds of thousands of keys in random order, so pages are kept.
fn tune(manifest: &Connection) -> rusqlite::Result<()> {
    manifest.pragma_update(None, "cache_size", -65_536) // KiB
}

/// 0 for a new file.
fn format_of(manifest: &Connection, dir: &Path) -> Result<i64> {
    let found = manifest.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let (found, known) = (found.map_err(Error::manifest("read the format"))?, MIGRATIONS.len() as i64);
    if found > known { Err(Error::NewerStore { dir: dir.to_owned(), found, known }) } else { Ok(found) }
}

impl Store {
    /// What is remembered under each key, in order. A memo whose rows or files are gone from the disk counts as none.
    pub fn memos(&self, keys: &[Hash]) -> Result<Vec<Option<Memo>>> {
        let fail = || Error::manifest("look up results");
        let mut found = Vec::with_capacity(keys.len());
        {
            let mut manifest = self.reader();
            // One transaction takes the file's lock once, not for each key.
            let manifest = manifest.transaction().map_err(fail())?;
            // Rows first: most units have some, and rows stand there only with their memo. The payload of a short row is
            // not touched, only its index.
            let sql = format!(
                "SELECT name, content, files, len, EXISTS (SELECT 1 FROM payload p WHERE p.content = m.content),
                        CASE WHEN len >= {} THEN (SELECT blob FROM payload p WHERE p.content = m.content) END
                 FROM memo_row m WHERE key = ?1 ORDER BY position",
                rows::INLINE_BYTES
            );
            let mut rows = manifest.prepare_cached(&sql).map_err(fail())?;
            let mut memo = manifest.prepare_cached("SELECT bad FROM memo WHERE key = ?1").map_err(fail())?;
            for key in keys {
                let mut blobs = Vec::new();
                let mut whole = true;
                let found_rows = rows.query_map([key], |row| {
                    let Files(files) = row.get(2)?;
                    whole &= row.get::<_, bool>(4)?;
                    blobs.extend(row.get::<_, Option<Hash>>(5)?);
                    blobs.extend(files.iter().map(|(_, blob)| *blob));
                    let len = row.get::<_, i64>(3)? as u64;
                    Ok(MemoRow { name: row.get(0)?, content: row.get(1)?, files, len })
                });
                let found_rows =
                    found_rows.and_then(|rows| rows.collect::<rusqlite::Result<Vec<_>>>()).map_err(fail())?;
                if !found_rows.is_empty() {
                    found.push(whole.then_some((Memo::Rows(found_rows), blobs)));
                    continue;
                }
                let bad = memo.query_row([key], |row| row.get::<_, Option<String>>(0)).optional().map_err(fail())?;
                found.push(bad.map(|bad| (bad.map_or(Memo::Rows(Vec::new()), Memo::Bad), Vec::new())));
            }
        }
        let blobs = self.blobs();
        let whole = |(_, needed): &(Memo, Vec<Hash>)| needed.iter().all(|blob| blobs.contains(blob));
        Ok(found.into_iter().map(|memo| memo.filter(whole).map(|(memo, _)| memo)).collect())
    }

    /// Remembers a group of computed units in one transaction, rows first. Their blobs must be in the store already.
    pub fn commit(&self, group: &[Finished]) -> Result<()> {
        self.change("save results", "commit", |manifest| {
            let put = "INSERT OR REPLACE INTO payload (content, bytes, blob) VALUES (?1, ?2, ?3)";
            let mut put = manifest.prepare_cached(put)?;
            for (content, payload) in group.iter().flat_map(|unit| &unit.payloads) {
                match payload {
                    Payload::Inline(bytes) => put.execute(params![content, bytes, None::<Hash>])?,
                    Payload::Blob(blob) => put.execute(params![content, None::<Vec<u8>>, blob])?,
                };
            }
            let memo =
                "INSERT OR REPLACE INTO memo (key, stage, kind, bad, seconds, run) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let mut memo = manifest.prepare_cached(memo)?;
            let mut clear = manifest.prepare_cached("DELETE FROM memo_row WHERE key = ?1")?;
            let row = "INSERT INTO memo_row (key, position, name, content, files, len) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let mut row = manifest.prepare_cached(row)?;
            for unit in group {
                let (rows, bad) = match &unit.memo {
                    Memo::Rows(rows) => (rows.as_slice(), None),
                    Memo::Bad(reason) => (&[] as &[MemoRow], Some(reason)),
                };
                memo.execute(params![unit.key, unit.stage_id, unit.kind, bad, unit.seconds, unit.run])?;
                clear.execute([unit.key])?;
                for (position, MemoRow { name, content, files, len }) in rows.iter().enumerate() {
                    row.execute(params![unit.key, position as i64, name, content, files_text(files), *len as i64])?;
                }
            }
            Ok(())
        })
    }

    /// Where the bytes of a committed row are.
    pub(crate) fn payload(&self, content: &Hash) -> Result<Payload> {
        let manifest = self.reader();
        let found =
            manifest.prepare_cached("SELECT bytes, blob FROM payload WHERE content = ?1").and_then(|mut find| {
                find.query_row([content], |row| match row.get(1)? {
                    Some(blob) => Ok(Payload::Blob(blob)),
                    None => row.get(0).map(Payload::Inline),
                })
                .optional()
            });
        found.map_err(Error::manifest("read a row"))?.ok_or_else(|| Error::Corrupt {
            what: format!("row {}", content.short()),
            reason: "its bytes were never committed".to_owned(),
        })
    }

    /// Notes that a run starts; `settings` is JSON for people. Gives the run's number.
    pub fn begin_run(&self, pipeline: &str, settings: &str) -> Result<i64> {
        let mut id = 0;
        self.change("note the run", "run.begin", |manifest| {
            let sql = "INSERT INTO run (pipeline, settings, started_ms) VALUES (?1, ?2, ?3)";
            manifest.execute(sql, params![pipeline, settings, now_ms()])?;
            id = manifest.last_insert_rowid();
            Ok(())
        })?;
        Ok(id)
    }

    /// Notes how a run ended; `report` is its JSON.
    pub fn finish_run(&self, run: i64, outcome: &str, report: &str) -> Result<()> {
        self.flush_seen()?;
        self.change("note the run's end", "run.finish", |manifest| {
            let sql = "UPDATE run SET finished_ms = ?2, outcome = ?3, report = ?4 WHERE id = ?1";
            manifest.execute(sql, params![run, now_ms(), outcome, report]).map(|_| ())
        })
    }

    /// The pipeline's newest run.
    pub fn last_run(&self, pipeline: &str) -> Result<Option<RunRecord>> {
        let sql = format!("SELECT {RUN_COLUMNS} FROM run WHERE pipeline = ?1 ORDER BY id DESC LIMIT 1");
        Ok(self.list("read runs", &sql, params![pipeline], run_record)?.pop())
    }

    /// The newest runs of all pipelines, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<RunRecord>> {
        let sql = format!("SELECT {RUN_COLUMNS} FROM run ORDER BY id DESC LIMIT ?1");
        self.list("read runs", &sql, params![limit as i64], run_record)
    }

    /// A run by its number; `None` where it never was, or its record was cleared away.
    pub fn run(&self, id: i64) -> Result<Option<RunRecord>> {
        let sql = format!("SELECT {RUN_COLUMNS} FROM run WHERE id = ?1");
        Ok(self.list("read runs", &sql, params![id], run_record)?.pop())
    }

    /// Names of all pipelines that ever ran here, sorted.
    pub fn pipelines(&self) -> Result<Vec<String>> {
        self.list("list pipelines", "SELECT DISTINCT pipeline FROM run ORDER BY pipeline", [], |row| row.get(0))
    }

    /// Stages whose rows the pipeline's newest finished run left as they were though their inputs had changed, with the run
    /// that did so first.
    pub fn held_since(&self, pipeline: &str) -> Result<BTreeMap<String, i64>> {
        // Beside max(), SQLite gives the other columns of the row that has it.
        let sql = "SELECT stage.key, json_extract(stage.value, '$.held_since'), max(run.id)
                   FROM run, json_each(run.report, '$.stages') stage
                   WHERE pipeline = ?1 AND outcome = 'done' GROUP BY stage.key";
        let stages = self.list("read runs", sql, [pipeline], |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?)))?;
        Ok(stages.into_iter().filter_map(|(stage, run)| Some((stage, run?))).collect())
    }

    /// One transaction; `point` is passed just before it becomes durable.
    pub(super) fn change(
        &self,
        what: &'static str,
        point: &str,
        make: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let mut manifest = self.manifest();
        let write = || {
            let change = manifest.transaction_with_behavior(TransactionBehavior::Immediate)?;
            make(&change)?;
            fail_point(point);
            change.commit()
        };
        write().map_err(Error::manifest(what))
    }

    pub(super) fn list<T>(
        &self,
        what: &'static str,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let manifest = self.manifest();
        let list = || manifest.prepare_cached(sql)?.query_map(values, read)?.collect::<rusqlite::Result<Vec<T>>>();
        list().map_err(Error::manifest(what))
    }
}

const RUN_COLUMNS: &str = "id, pipeline, settings, started_ms, finished_ms, outcome, report";

fn run_record(row: &rusqlite::Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        id: row.get(0)?,
        pipeline: row.get(1)?,
        settings: row.get(2)?,
        started_ms: row.get(3)?,
        finished_ms: row.get(4)?,
        outcome: row.get(5)?,
        report: row.get(6)?,
    })
}
