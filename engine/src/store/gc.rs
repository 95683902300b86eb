//! Clears away what nothing needs.
//!
//! A result stays while one of these holds; with it stay its rows' bytes and its files:
//! * a pipeline publishes a row of it, or the last `keep_runs` finished runs (of all pipelines) took such a row back;
//! * one of these runs computed it, or a later one that has not finished;
//! * a run computed it in the last 30 days whose pipeline has finished no run since: the next one goes on from there;
//! * it is a verdict, and a unit in quarantine has this reason;
//! * it has no rows at all: it takes a few bytes, and no row could tell that it is in use.
//!
//! So a run over inputs that were published, or were so within `keep_runs` runs, executes nothing after [`Store::gc`] that
//! it would not have executed before. Folders outside the store, with older versions of an export, are never touched.
//!
//! One transaction forgets, then files go: a death in between leaves files that the next `gc` finds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};
use serde::Serialize;

use super::Store;
use super::blobs::entries;
use super::fail::fail_point;
use super::manifest::{Files, now_ms};
use crate::error::{Error, Result};
use crate::fingerprint::Hash;

/// How long unfinished work is kept for a run that goes on with it.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A number of things and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    pub count: u64,
    pub size_bytes: u64,
}

/// What a store holds in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// Results of units.
    pub results: u64,
    /// Rows of such results that no other one has; the size is that of those in the manifest, others are blobs.
    pub rows: Freed,
    pub blobs: Freed,
    /// What units left for their next try, which are finished, or were not tried again for 30 days.
    pub scratch: Freed,
    /// Files that a killed run was writing, and blobs that [`Store::verify`] moved aside.
    pub stale: Freed,
    /// Remembered hashes of files that are gone.
    pub seen_files: u64,
    /// Records of runs.
    pub runs: u64,
}

impl Garbage {
    pub fn size_bytes(&self) -> u64 {
        [self.rows, self.blobs, self.scratch, self.stale].iter().map(|freed| freed.size_bytes).sum()
    }

    pub fn is_empty(&self) -> bool {
        *self == Garbage::default()
    }
}

impl Freed {
    pub(super) fn add(&mut self, size_bytes: u64) {
        self.count += 1;
        self.size_bytes += size_bytes;
    }
}

/// What only the manifest can tell.
#[derive(Default)]
struct Marked {
    found: Garbage,
    blobs: BTreeSet<Hash>,
    seen_files: Vec<Vec<u8>>,
    /// Units with a result: what they left for their next try is of no use.
    scratch: Vec<PathBuf>,
}

impl Store {
    /// What [`Store::gc`] would clear away. Changes nothing.
    pub fn garbage(&self, keep_runs: usize) -> Result<Garbage> {
        let scratch = self.scratch_folders()?;
        let marked = {
            let fail = || Error::manifest("look for unused results");
            let mut manifest = self.manifest();
            // Temporary tables need no right to write, and go with the transaction.
            let look = manifest.transaction().map_err(fail())?;
            mark(&look, keep_runs, scratch).map_err(fail())?
        };
        let mut found = marked.found;
        self.each_unused_file(&marked.blobs, |kind, _, size| {
            kind.of(&mut found).add(size);
            Ok(())
        })?;
        for folder in &marked.scratch {
            found.scratch.add(size_of(folder));
        }
        Ok(found)
    }

    /// Clears away what nothing needs, and tells what it was.
    pub fn gc(&self, keep_runs: usize) -> Result<Garbage> {
        let scratch = self.scratch_folders()?;
        let mut marked = Marked::default();
        self.change("forget unused results", "gc.manifest", |manifest| {
            marked = mark(manifest, keep_runs, scratch)?;
            sweep(manifest, &marked.seen_files)
        })?;
        let mut found = marked.found;
        self.each_unused_file(&marked.blobs, |kind, path, size| {
            fail_point("gc.file");
            fs::remove_file(path).map_err(Error::io("remove", path))?;
            kind.of(&mut found).add(size);
            Ok(())
        })?;
        for folder in &marked.scratch {
            let size = size_of(folder);
            fail_point("gc.scratch");
            fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
            found.scratch.add(size);
        }
        if let Err(error) = self.compact() {
            // All is done that was promised, and later results use the free pages.
            tracing::warn!("the manifest keeps its size: {error}");
        }
        Ok(found)
    }

    /// Files of the store that are no blob in `used`.
    fn each_unused_file(
        &self,
        used: &BTreeSet<Hash>,
        mut take: impl FnMut(Loose, &Path, u64) -> Result<()>,
    ) -> Result<()> {
        for (hash, path, size) in self.blobs.list()? {
            if !used.contains(&hash) {
                take(Loose::Blob, &path, size)?;
            }
        }
        for folder in [self.blobs.temp_dir(), self.damaged_dir()] {
            for path in entries(&folder)? {
                take(Loose::Stale, &path, size_of(&path))?;
            }
        }
        Ok(())
    }

    /// Folders of units that were cut short, with their keys and whether it is long ago.
    fn scratch_folders(&self) -> Result<Vec<(Hash, PathBuf, bool)>> {
        let now = SystemTime::now();
        let old = |path: &Path| now.duration_since(newest(path)).is_ok_and(|age| age > PATIENCE);
        let folders = entries(&self.dir.join("scratch"))?.into_iter();
        // What has another name is not the store's.
        Ok(folders
            .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, old(&path), path)))
            .map(|(key, old, path)| (key, path, old))
            .collect())
    }

    /// Gives the manifest's free pages back, where they are many.
    fn compact(&self) -> Result<()> {
        let manifest = self.manifest();
        let count = |name: &str| manifest.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let compact = || {
            if count("freelist_count")? * 4 > count("page_count")? {
                fail_point("gc.compact");
                manifest.execute_batch("VACUUM")?;
            }
            manifest.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        compact().map_err(Error::manifest("give room back"))
    }
}

/// Files of the store that nothing names.
#[derive(Clone, Copy)]
enum Loose {
    Blob,
    Stale,
}

impl Loose {
    fn of(self, found: &mut Garbage) -> &mut Freed {
        match self {
            Loose::Blob => &mut found.blobs,
            Loose::Stale => &mut found.stale,
        }
    }
}

/// Lists in temporary tables what is to go.
const MARK: &str = "
DROP TABLE IF EXISTS temp.gc_run;
DROP TABLE IF EXISTS temp.gc_memo;
DROP TABLE IF EXISTS temp.gc_payload;
-- Runs whose results stay. Without a finished one, work of any age would stay: hence the bound.
CREATE TEMP TABLE gc_run (id INTEGER PRIMARY KEY);
INSERT INTO gc_run
    SELECT id FROM run WHERE id >= (SELECT since FROM gc_bounds)
    UNION SELECT id FROM run WHERE started_ms >= (SELECT patience_ms FROM gc_bounds)
        AND id > coalesce((SELECT max(id) FROM run d WHERE d.pipeline = run.pipeline AND d.outcome = 'done'), 0);
CREATE TEMP TABLE gc_memo (key BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO gc_memo
    SELECT key FROM memo JOIN memo_row USING (key) WHERE run NOT IN gc_run
    EXCEPT SELECT key FROM memo_row WHERE content IN (
        SELECT content FROM published UNION SELECT content FROM retired WHERE run >= (SELECT since FROM gc_bounds)
    );
INSERT INTO gc_memo
    SELECT key FROM memo WHERE bad IS NOT NULL AND run NOT IN gc_run AND bad NOT IN (SELECT reason FROM quarantine)
    -- A transient stage's verdict stands with the stage that takes from it, under a prefix.
    AND NOT (bad GLOB 'transient stage [0-9]*: *'
             AND substr(bad, instr(bad, ': ') + 2) IN (SELECT reason FROM quarantine));
CREATE TEMP TABLE gc_payload (content BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO gc_payload
    SELECT content FROM payload
    EXCEPT SELECT content FROM memo_row WHERE key NOT IN gc_memo
    EXCEPT SELECT content FROM published;
-- The records of these stay: for `status`, and for the rows that they published.
INSERT OR IGNORE INTO gc_run
    SELECT max(id) FROM run GROUP BY pipeline
    UNION SELECT max(id) FROM run WHERE outcome = 'done' GROUP BY pipeline
    UNION SELECT run FROM published UNION SELECT run FROM quarantine;
";

const SWEEP: &str = "
DELETE FROM memo_row WHERE key IN gc_memo;
DELETE FROM memo WHERE key IN gc_memo;
DELETE FROM payload WHERE content IN gc_payload;
DELETE FROM retired WHERE run < (SELECT since FROM gc_bounds);
DELETE FROM run WHERE id NOT IN gc_run;
DROP TABLE gc_bounds;
DROP TABLE gc_run;
DROP TABLE gc_memo;
DROP TABLE gc_payload;
";

fn mark(manifest: &Connection, keep_runs: usize, scratch: Vec<(Hash, PathBuf, bool)>) -> rusqlite::Result<Marked> {
    manifest.execute_batch(
        "DROP TABLE IF EXISTS temp.gc_bounds;
         CREATE TEMP TABLE gc_bounds (since INTEGER NOT NULL, patience_ms INTEGER NOT NULL);",
    )?;
    let sql = "SELECT id FROM run WHERE outcome = 'done' ORDER BY id DESC LIMIT ?1";
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
    for sql in
        ["SELECT blob FROM payload WHERE blob IS NOT NULL AND content NOT IN gc_payload", "SELECT blob FROM placed"]
    {
        for blob in manifest.prepare(sql)?.query_map([], |row| row.get(0))? {
            used.insert(blob?);
        }
    }
    for sql in [
        "SELECT files FROM memo_row WHERE files <> '[]' AND key NOT IN gc_memo",
        "SELECT files FROM published WHERE files <> '[]'",
    ] {
        for files in manifest.prepare(sql)?.query_map([], |row| row.get(0))? {
            let Files(files) = files?;
            used.extend(files.into_iter().map(|(_, blob)| blob));
        }
    }
    Ok(used)
}

fn sweep(manifest: &Connection, seen_files: &[Vec<u8>]) -> rusqlite::Result<()> {
    let mut forget = manifest.prepare("DELETE FROM seen_file WHERE path = ?1")?;
    for path in seen_files {
        forget.execute([path])?;
    }
    manifest.execute_batch(SWEEP)
}

/// Of a file, or of the files directly in a folder.
pub(super) fn size_of(path: &Path) -> u64 {
    let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    if path.is_dir() { entries(path).unwrap_or_default().iter().map(|path| size(path)).sum() } else { size(path) }
}

/// When the folder or a file in it changed last.
fn newest(folder: &Path) -> SystemTime {
    let changed = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok();
    let files = entries(folder).unwrap_or_default();
    let times = files.iter().map(PathBuf::as_path).chain([folder]).filter_map(changed);
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::tests::{published, row, temp};
    use super::super::{Class, Finished, Memo, MemoRow, Quarantined, Row, StoredRow, rows, scratch};
    use super::*;

    /// Results and files by name, in a store with runs.
    struct Case {
        _dir: tempfile::TempDir,
        store: Store,
    }

    impl Case {
        fn new() -> Case {
            let (dir, path) = temp();
            Case { store: Store::open(path).unwrap(), _dir: dir }
        }

        fn run(&self, pipeline: &str, outcome: Option<&str>) -> i64 {
            let run = self.store.begin_run(pipeline, "{}").unwrap();
            if let Some(outcome) = outcome {
                self.store.finish_run(run, outcome, "{}").unwrap();
            }
            run
        }

        fn commit(&self, run: i64, name: &str, memo: Memo, payloads: Vec<(Hash, super::super::Payload)>) {
            let (key, stage_id, kind) = (Hash::of_bytes(name.as_bytes()), "codes".to_owned(), "extract".to_owned());
            self.store.commit(&[Finished { key, stage_id, kind, memo, payloads, seconds: 0.5, run }]).unwrap();
        }

        /// A result of one row that says its name. Long: its bytes are a blob.
        fn result(&self, run: i64, name: &str, long: bool, files: &[(String, Hash)]) -> Hash {
            let size = if long { rows::INLINE_BYTES } else { 10 };
            let StoredRow { content, bytes, len } = self.store.put_row(&row(name, size), files).unwrap();
            let memo = Memo::Rows(vec![MemoRow { name: String::new(), content, files: files.to_vec(), len }]);
            self.commit(run, name, memo, vec![(content, bytes)]);
            content
        }

        fn blob(&self, text: &str) -> Hash {
            self.store.blobs().put(text.as_bytes()).unwrap()
        }

        /// Of these results, those that are still known.
        fn known<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
            let keys: Vec<Hash> = names.iter().map(|name| Hash::of_bytes(name.as_bytes())).collect();
            let memos = self.store.memos(&keys).unwrap();
            names.iter().zip(memos).filter_map(|(name, memo)| memo.map(|_| *name)).collect()
        }

        /// Clears away, and says the same before.
        fn gc(&self, keep_runs: usize) -> Garbage {
            let said = self.store.garbage(keep_runs).unwrap();
            assert_eq!(self.store.garbage(keep_runs).unwrap(), said, "looking changes nothing");
            assert_eq!(self.store.gc(keep_runs).unwrap(), said);
            assert_eq!(self.store.garbage(keep_runs).unwrap(), Garbage::default(), "nothing is left to do");
            assert_eq!(self.store.verify(None, 0, &mut |_, _| {}).unwrap().damages, []);
            said
        }
    }

    fn row_of(id: &str, content: Hash, files: &[(String, Hash)]) -> Row {
        Row { content, files: files.to_vec(), ..published("codes", id, b"") }
    }

    #[test]
    fn results_stay_as_long_as_runs_use_them() {
        let case = Case::new();
        let first = case.run("p", Some("done"));
        let rows: Vec<Row> = ["published", "retired early", "retired late"]
            .iter()
            .map(|name| row_of(name, case.result(first, name, false, &[]), &[]))
            .collect();
        case.result(first, "never published", true, &[]);
        case.store.publish("p", first, &rows, &[]).unwrap();
        let early = case.run("p", Some("done"));
        case.store.publish("p", early, &[], &rows[1..2]).unwrap();
        let late = case.run("other", Some("done"));
        case.result(late, "computed late", false, &[]);
        case.store.publish("p", late, &[], &rows[2..]).unwrap();
        let names = ["published", "retired early", "retired late", "never published", "computed late"];
        assert_eq!(case.gc(3), Garbage::default(), "three runs, and all are to stay");

        let found = case.gc(1);
        assert_eq!(case.known(&names), ["published", "retired late", "computed late"]);
        assert_eq!((found.results, found.rows.count, found.blobs.count, found.runs), (2, 2, 1, 0));
        assert!(found.rows.size_bytes > 10 && found.blobs.size_bytes > 60_000, "{found:?}");
        assert_eq!(found.size_bytes(), found.rows.size_bytes + found.blobs.size_bytes);

        assert_eq!(case.gc(0).results, 2);
        assert_eq!(case.known(&names), ["published"]);
        assert_eq!(case.store.row(&rows[0].content, &super::super::tests::schema()).unwrap(), row("published", 10));
    }

    #[test]
    fn a_result_that_publishes_one_of_its_rows_keeps_them_all() {
        let case = Case::new();
        let run = case.run("p", Some("done"));
        let both = ["a", "b"].map(|name| case.store.put_row(&row(name, 1), &[]).unwrap());
        let memo =
            both.iter().map(|row| MemoRow { name: row.content.short(), content: row.content, files: vec![], len: 1 });
        let payloads = both.iter().map(|row| (row.content, row.bytes.clone())).collect();
        case.commit(run, "both", Memo::Rows(memo.collect()), payloads);
        case.store.publish("p", run, &[row_of("a", both[0].content, &[])], &[]).unwrap();
        assert_eq!((case.gc(0).results, case.known(&["both"]).len()), (0, 1));
    }

    #[test]
    fn unfinished_work_waits_for_the_next_run() {
        let case = Case::new();
        let done = case.run("p", Some("done"));
        case.result(done, "of a finished run", false, &[]);
        let unfinished = [("p", Some("interrupted")), ("p", None), ("new", Some("failed"))];
        let names: Vec<String> = unfinished
            .iter()
            .map(|(pipeline, outcome)| {
                let run = case.run(pipeline, *outcome);
                case.result(run, &format!("{pipeline} {outcome:?}"), false, &[]);
                format!("{pipeline} {outcome:?}")
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (0..3).for_each(|_| _ = case.run("other", Some("done")));
        assert_eq!(case.gc(1).results, 1, "that of the finished run");
        assert_eq!(case.known(&names), names);

        case.run("p", Some("done"));
        case.run("other", Some("done"));
        assert_eq!((case.gc(1).results, case.known(&names)), (2, vec![names[2]]), "p has gone on without it");
        let long_ago = |manifest: &Connection| manifest.execute("UPDATE run SET started_ms = 0", []).map(drop);
        case.store.change("make it old", "commit", long_ago).unwrap();
        assert_eq!((case.gc(1).results, case.known(&names)), (1, vec![]), "nobody will");
    }

    #[test]
    fn verdicts_stay_with_the_units_in_quarantine() {
        let case = Case::new();
        let run = case.run("p", Some("done"));
        let verdicts = ["empty", "transient stage 0: no: frames", "transient stage 0: other", "other"];
        verdicts.iter().for_each(|reason| case.commit(run, reason, Memo::Bad(reason.to_string()), Vec::new()));
        case.commit(run, "no rows", Memo::Rows(Vec::new()), Vec::new());
        let entry = |reason: &str| {
            let (unit, stage, reason) = (reason.to_owned(), "clips".to_owned(), reason.to_owned());
            Quarantined { unit, path: None, stage, class: Class::Bad, reason, run }
        };
        case.store.set_quarantine("p", run, &[entry("empty"), entry("no: frames")]).unwrap();
        assert_eq!(case.gc(0).results, 2);
        let names = [&verdicts[..], &["no rows"]].concat();
        assert_eq!(case.known(&names), ["empty", "transient stage 0: no: frames", "no rows"]);
    }

    #[test]
    fn files_that_nothing_names_go() {
        let case = Case::new();
        let (store, run) = (&case.store, case.run("p", Some("done")));
        let files = [("a.mp4".to_owned(), case.blob("film"))];
        let kept = case.result(run, "kept", true, &files);
        store.publish("p", run, &[row_of("a", kept, &files)], &[]).unwrap();
        let out = store.dir().with_file_name("out");
        let placement = crate::stage::Placement { path: out.clone(), versioned: true };
        for film in ["one", "two"] {
            let placed = [("film".to_owned(), case.blob(film))].into();
            super::super::place(store, "p", "films", &placement, &placed).unwrap();
        }
        case.result(run, "gone", true, &[("b.mp4".to_owned(), case.blob("other film"))]);
        case.blob("orphan");
        assert_eq!(case.gc(0).blobs.count, 4, "the bytes and the film of a result, the placed film before, the orphan");
        assert!(["film", "two"].iter().all(|text| store.blobs().contains(&Hash::of_bytes(text.as_bytes()))));
        assert!(out.join("v000001/film").exists(), "files outside stay");

        let units = ["kept", "tried now", "tried long ago"].map(scratch::tests::unit);
        units.iter().for_each(|unit| store.scratch().write(unit, "state", b"half").unwrap());
        let folder = |index: usize| store.dir().join("scratch").join(units[index].key.to_string());
        for path in [folder(2).join("state"), folder(2)] {
            File::open(path).unwrap().set_modified(SystemTime::now() - PATIENCE * 2).unwrap();
        }
        fs::create_dir(store.dir().join("scratch/mine")).unwrap();
        fs::create_dir_all(store.damaged_dir()).unwrap();
        for (path, text) in [(store.damaged_dir().join("blob"), "12"), (store.blobs.temp_dir().join(".tmp1"), "345")] {
            fs::write(path, text).unwrap();
        }
        let found = case.gc(0);
        assert_eq!(
            (found.scratch, found.stale),
            (Freed { count: 2, size_bytes: 72 }, Freed { count: 2, size_bytes: 5 })
        );
        assert!(folder(1).exists() && store.dir().join("scratch/mine").exists());
    }

    #[test]
    fn records_of_what_is_gone_go() {
        let case = Case::new();
        let names = |sql: &str| case.store.list("look", sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let runs: Vec<i64> = (0..4).map(|_| case.run("p", Some("done"))).collect();
        let other = case.run("other", Some("failed"));
        case.store.publish("p", runs[1], &[row_of("a", case.result(runs[1], "a", false, &[]), &[])], &[]).unwrap();
        let here = case.store.dir().to_str().unwrap().to_owned();
        for path in [here.as_str(), "/no/such/file"] {
            let sql = "INSERT INTO seen_file VALUES (?1, 0, 0, 0, 0, 0, ?2)";
            let insert =
                |manifest: &Connection| manifest.execute(sql, params![path.as_bytes(), Hash::default()]).map(drop);
            case.store.change("see a file", "commit", insert).unwrap();
        }
        let found = case.gc(1);
        assert_eq!((found.runs, found.seen_files), (2, 1));
        // Who published a row, the last finished run, and each pipeline's last one.
        assert_eq!(names("SELECT id FROM run ORDER BY id"), [runs[1], runs[3], other]);
        assert_eq!(case.store.pipelines().unwrap(), ["other", "p"]);
    }
}
