//! Which parts of the manifest are to go, and letting them go.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, params};

use super::super::manifest::{Files, now_ms};
use super::{Freed, Garbage, LeftFolder, PATIENCE};
use crate::fingerprint::Hash;

/// What only the manifest can tell.
#[derive(Default)]
pub(super) struct Marked {
    pub(super) found: Garbage,
    pub(super) blobs: BTreeSet<Hash>,
    pub(super) seen_files: Vec<Vec<u8>>,
    /// Units with a result: what they left for their next try is of no use.
    pub(super) scratch: Vec<PathBuf>,
}

/// Lists in temporary tables what is to go.
const MARK: &str = "
-- What is there without pipelines that are to be forgotten.
CREATE TEMP VIEW gc_kept_run AS SELECT * FROM main.run WHERE pipeline NOT IN temp.gc_forgotten;
CREATE TEMP VIEW gc_kept_published AS SELECT * FROM main.published WHERE pipeline NOT IN temp.gc_forgotten;
CREATE TEMP VIEW gc_kept_quarantine AS SELECT * FROM main.quarantine WHERE pipeline NOT IN temp.gc_forgotten;
CREATE TEMP VIEW gc_kept_retired AS SELECT * FROM main.retired
    WHERE run >= (SELECT since FROM temp.gc_bounds)
    AND run NOT IN (SELECT id FROM main.run WHERE pipeline IN temp.gc_forgotten);
-- Runs whose results stay. Without a finished one, work of any age would stay: hence the bound.
CREATE TEMP TABLE gc_run (id INTEGER PRIMARY KEY);
INSERT INTO gc_run
    SELECT id FROM gc_kept_run WHERE id >= (SELECT since FROM gc_bounds)
    UNION SELECT id FROM gc_kept_run r WHERE started_ms >= (SELECT patience_ms FROM gc_bounds)
        AND id > coalesce((SELECT max(id) FROM run d WHERE d.pipeline = r.pipeline AND d.outcome = 'done'), 0);
CREATE TEMP TABLE gc_memo (key BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO gc_memo
    SELECT key FROM memo JOIN memo_row USING (key) WHERE run NOT IN gc_run
    EXCEPT SELECT key FROM memo_row WHERE content IN (
        SELECT content FROM gc_kept_published UNION SELECT content FROM gc_kept_retired
    );
INSERT INTO gc_memo
    SELECT key FROM memo WHERE bad IS NOT NULL AND run NOT IN gc_run
    EXCEPT SELECT key FROM gc_kept_quarantine;
CREATE TEMP TABLE gc_payload (content BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO gc_payload
    SELECT content FROM payload
    EXCEPT SELECT content FROM memo_row WHERE key NOT IN gc_memo
    EXCEPT SELECT content FROM gc_kept_published;
-- The records of these stay: for `status`, and for the rows that they published.
INSERT OR IGNORE INTO gc_run
    SELECT max(id) FROM gc_kept_run GROUP BY pipeline
    UNION SELECT max(id) FROM gc_kept_run WHERE outcome = 'done' GROUP BY pipeline
    UNION SELECT run FROM gc_kept_published UNION SELECT run FROM gc_kept_quarantine;
";

const SWEEP: &str = "
DELETE FROM memo_row WHERE key IN gc_memo;
DELETE FROM memo WHERE key IN gc_memo;
DELETE FROM payload WHERE content IN gc_payload;
DELETE FROM retired WHERE content NOT IN (SELECT content FROM gc_kept_retired);
DELETE FROM published WHERE pipeline IN gc_forgotten;
DELETE FROM quarantine WHERE pipeline IN gc_forgotten;
DELETE FROM placed WHERE pipeline IN gc_forgotten;
DELETE FROM run WHERE id NOT IN gc_run;
";

/// The temporary tables of an earlier look.
const CLEAR: &str = "
DROP VIEW IF EXISTS temp.gc_kept_run;
DROP VIEW IF EXISTS temp.gc_kept_published;
DROP VIEW IF EXISTS temp.gc_kept_quarantine;
DROP VIEW IF EXISTS temp.gc_kept_retired;
DROP TABLE IF EXISTS temp.gc_forgotten;
DROP TABLE IF EXISTS temp.gc_bounds;
DROP TABLE IF EXISTS temp.gc_run;
DROP TABLE IF EXISTS temp.gc_memo;
DROP TABLE IF EXISTS temp.gc_payload;
";

/// What is to go, if the results of the last `keep_runs` runs stay. `scratch`: folders of units that were cut short.
pub(super) fn mark(
    manifest: &Connection,
    keep_runs: usize,
    forget: &[String],
    scratch: Vec<(Hash, PathBuf, bool)>,
) -> rusqlite::Result<Marked> {
    manifest.execute_batch(CLEAR)?;
    manifest.execute_batch(
        "CREATE TEMP TABLE gc_bounds (since INTEGER NOT NULL, patience_ms INTEGER NOT NULL);
         CREATE TEMP TABLE gc_forgotten (pipeline TEXT PRIMARY KEY);",
    )?;
    for pipeline in forget {
        manifest.execute("INSERT OR IGNORE INTO gc_forgotten VALUES (?1)", [pipeline])?;
    }
    let sql = "SELECT id FROM run WHERE outcome = 'done' AND pipeline NOT IN gc_forgotten ORDER BY id DESC LIMIT ?1";
    let finished =
        manifest.prepare(sql)?.query_map([keep_runs as i64], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    // Fewer finished runs than asked for: all of them stay.
    let since = match finished.len() < keep_runs {
        true => 0,
        false => finished.last().copied().unwrap_or(i64::MAX),
    };
    manifest
        .execute("INSERT INTO gc_bounds VALUES (?1, ?2)", params![since, now_ms() - PATIENCE.as_millis() as i64])?;
    manifest.execute_batch(MARK)?;
    let count = |sql: &str| manifest.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|count| count as u64);
    let mut marked = Marked { blobs: used_blobs(manifest)?, ..Marked::default() };
    marked.found.results = count("SELECT count(*) FROM gc_memo")?;
    marked.found.rows = Freed {
        count: count("SELECT count(*) FROM gc_payload")?,
        size_bytes: count("SELECT coalesce(sum(length(bytes)), 0) FROM payload WHERE content IN gc_payload")?,
    };
    marked.found.runs = count("SELECT count(*) FROM run WHERE id NOT IN gc_run")?;
    marked.found.published = count("SELECT count(*) FROM published WHERE pipeline IN gc_forgotten")?;
    let sql = "SELECT root, count(*) FROM placed WHERE pipeline IN gc_forgotten GROUP BY root ORDER BY root";
    let left =
        |row: &Row<'_>| Ok(LeftFolder { path: row.get::<_, String>(0)?.into(), files: row.get::<_, i64>(1)? as u64 });
    marked.found.left = manifest.prepare(sql)?.query_map([], left)?.collect::<Result<_, _>>()?;
    let gone = |path: &Vec<u8>| Path::new(std::ffi::OsStr::from_bytes(path)).try_exists().is_ok_and(|exists| !exists);
    let seen = manifest
        .prepare("SELECT path FROM seen_file")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<Vec<u8>>, _>>()?;
    marked.seen_files = seen.into_iter().filter(gone).collect();
    marked.found.seen_files = marked.seen_files.len() as u64;
    let mut known = manifest.prepare("SELECT 1 FROM memo WHERE key = ?1")?;
    for (key, folder, old) in scratch {
        if old || known.exists([key])? {
            marked.scratch.push(folder);
        }
    }
    Ok(marked)
}

/// Blobs that something names which stays.
fn used_blobs(manifest: &Connection) -> rusqlite::Result<BTreeSet<Hash>> {
    let mut used = BTreeSet::new();
    for sql in [
        "SELECT blob FROM payload WHERE blob IS NOT NULL AND content NOT IN gc_payload",
        "SELECT blob FROM placed WHERE pipeline NOT IN gc_forgotten",
    ] {
        for blob in manifest.prepare(sql)?.query_map([], |row| row.get(0))? {
            used.insert(blob?);
        }
    }
    for sql in [
        "SELECT files FROM memo_row WHERE files <> '[]' AND key NOT IN gc_memo",
        "SELECT files FROM gc_kept_published WHERE files <> '[]'",
    ] {
        for files in manifest.prepare(sql)?.query_map([], |row| row.get(0))? {
            let Files(files) = files?;
            used.extend(files.into_iter().map(|(_, blob)| blob));
        }
    }
    Ok(used)
}

/// Forgets what [`mark`] has listed.
pub(super) fn sweep(manifest: &Connection, seen_files: &[Vec<u8>]) -> rusqlite::Result<()> {
    let mut forget = manifest.prepare("DELETE FROM seen_file WHERE path = ?1")?;
    for path in seen_files {
        forget.execute([path])?;
    }
    manifest.execute_batch(SWEEP)?;
    manifest.execute_batch(CLEAR)
}
