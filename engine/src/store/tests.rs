use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arrow::array::{BinaryArray, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use insta::assert_snapshot;

use super::*;

pub(super) fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    (dir, path)
}

pub(super) fn schema() -> SchemaRef {
    let metadata = HashMap::from([("table", "rows"), ("unit", "frames")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let fields = vec![Field::new("id", DataType::Utf8, false), Field::new("bytes", DataType::Binary, false)];
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

pub(super) fn row(id: &str, size: usize) -> RecordBatch {
    let bytes = vec![7u8; size];
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(StringArray::from(vec![id])), Arc::new(BinaryArray::from_vec(vec![&bytes]))];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// Name within the unit, row, files.
pub(super) type Put<'a> = (&'a str, RecordBatch, &'a [(String, Hash)]);

/// Puts rows and remembers them under the hash of `key`.
pub(super) fn remember(store: &Store, key: &str, rows: &[Put<'_>]) -> (Hash, Vec<MemoRow>) {
    let key = Hash::of_bytes(key.as_bytes());
    let mut payloads = Vec::new();
    let mut memo = Vec::new();
    for (name, batch, files) in rows {
        let StoredRow { content, bytes, len } = store.put_row(batch, files).unwrap();
        payloads.push((content, bytes));
        memo.push(MemoRow { name: name.to_string(), content, files: files.to_vec(), len });
    }
    commit(store, key, Memo::Rows(memo.clone()), payloads);
    (key, memo)
}

pub(super) fn commit(store: &Store, key: Hash, memo: Memo, payloads: Vec<(Hash, Payload)>) {
    let (stage_id, kind) = ("codes".to_owned(), "extract".to_owned());
    store.commit(&[Finished { key, stage_id, kind, memo, payloads, seconds: 0.5, run: 1 }]).unwrap();
}

pub(super) fn published(stage: &str, id: &str, content: &[u8]) -> Row {
    let files = vec![("{id}.mp4".to_owned(), Hash::of_bytes(content))];
    let origin = Some(format!("data/{id}"));
    Row { stage: stage.to_owned(), id: id.to_owned(), content: Hash::of_bytes(content), origin, files }
}

#[test]
fn rows_and_memos_outlive_the_store() {
    let (_dir, path) = temp();
    let (short, long) = (row("a", 10), row("b", rows::INLINE_BYTES));
    let bad = Hash::of_bytes(b"bad");
    let (key, memo) = {
        let store = Store::open(&path).unwrap();
        let (key, memo) = remember(&store, "unit", &[("", short.clone(), &[]), ("second", long.clone(), &[])]);
        commit(&store, bad, Memo::Bad("the file is empty".to_owned()), Vec::new());
        (key, memo)
    };
    let store = Store::open(&path).unwrap();
    let found = store.memos(&[bad, Hash::default(), key]).unwrap();
    assert_eq!(found, [Some(Memo::Bad("the file is empty".to_owned())), None, Some(Memo::Rows(memo.clone()))]);
    assert_eq!(store.row(&memo[0].content, &schema()).unwrap(), short);
    assert_eq!(store.row(&memo[1].content, &schema()).unwrap(), long);
    assert!(matches!(store.payload(&memo[0].content).unwrap(), Payload::Inline(_)));
    assert!(matches!(store.payload(&memo[1].content).unwrap(), Payload::Blob(_)));
    let lost = store.row(&Hash::default(), &schema()).unwrap_err().to_string();
    assert_eq!(lost, "the store holds row 000000000000 that cannot be used: its bytes were never committed");
}

#[test]
fn a_memo_can_be_replaced_and_may_have_no_rows() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    let (key, _) = remember(&store, "unit", &[("a", row("a", 1), &[]), ("b", row("b", 1), &[])]);
    let (same, memo) = remember(&store, "unit", &[("c", row("c", 1), &[])]);
    assert_eq!(store.memos(&[key, same]).unwrap(), [Some(Memo::Rows(memo.clone())), Some(Memo::Rows(memo))]);
    let (empty, _) = remember(&store, "nothing", &[]);
    assert_eq!(store.memos(&[empty]).unwrap(), [Some(Memo::Rows(Vec::new()))]);
}

#[test]
fn a_memo_without_its_blobs_is_a_miss() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    let video = store.blobs().put(b"video").unwrap();
    let files = [("a.mp4".to_owned(), video)];
    let (with_file, _) = remember(&store, "file", &[("", row("a", 1), &files)]);
    let (long, memo) = remember(&store, "long", &[("", row("a", rows::INLINE_BYTES), &[])]);
    assert!(store.memos(&[with_file, long]).unwrap().iter().all(Option::is_some));
    fs::remove_file(store.blobs().path(&video)).unwrap();
    let Payload::Blob(blob) = store.payload(&memo[0].content).unwrap() else { panic!("a long row is a blob") };
    fs::remove_file(store.blobs().path(&blob)).unwrap();
    assert_eq!(store.memos(&[with_file, long]).unwrap(), [None, None]);
}

#[test]
fn content_covers_values_and_files() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    let content = |id: &str, files: &[(&str, &str)]| {
        let files: Vec<_> = files.iter().map(|(p, b)| (p.to_string(), Hash::of_bytes(b.as_bytes()))).collect();
        store.put_row(&row(id, 1), &files).unwrap().content
    };
    let all = [
        content("a", &[]),
        content("b", &[]),
        content("a", &[("f", "x")]),
        content("a", &[("f", "y")]),
        content("a", &[("g", "x")]),
    ];
    for (index, one) in all.iter().enumerate() {
        assert!(all[..index].iter().all(|other| other != one), "content {index}");
    }
    assert_eq!(all[0], content("a", &[]));
}

#[test]
fn published_rows_change_in_one_step() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    let run = store.begin_run("p", "{}").unwrap();
    let (a, b, c) = (published("codes", "a", b"1"), published("codes", "b", b"2"), published("clips", "c", b"3"));
    store.publish("p", run, &[a.clone(), b.clone(), c.clone()], &[]).unwrap();
    assert_eq!(store.published("p").unwrap(), [c.clone(), a.clone(), b.clone()]);
    assert_eq!(store.published("other").unwrap(), []);
    assert_eq!(store.counts("p").unwrap(), [("clips".to_owned(), 1), ("codes".to_owned(), 2)]);

    let moved = Row { origin: None, ..a.clone() };
    store.publish("p", run, std::slice::from_ref(&moved), &[a.clone(), c.clone()]).unwrap();
    assert_eq!(store.published("p").unwrap(), [moved.clone(), b.clone()]);

    // Neither half of a wrong change is kept.
    let twice =
        store.publish("p", run, &[c.clone(), published("codes", "b", b"9")], std::slice::from_ref(&moved)).unwrap_err();
    assert_snapshot!(twice, @"stage `codes` yields two rows named `b`; ids must differ");
    let gone = store.publish("p", run, &[], &[b.clone(), published("codes", "a", b"9")]).unwrap_err();
    assert_snapshot!(gone, @"stage `codes`: row `a` is to be removed and is not there");
    assert_eq!(store.published("p").unwrap(), [moved, b]);
}

#[test]
fn quarantine_is_a_list_per_pipeline() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    let entry = |unit: &str, class: Class| Quarantined {
        unit: unit.to_owned(),
        path: Some(format!("data/{unit}")),
        stage: "clips".to_owned(),
        class,
        reason: "the file is empty".to_owned(),
        run: 0,
        keys: vec![],
    };
    let in_run = |run: i64, entry: Quarantined| Quarantined { run, ..entry };
    store.set_quarantine("p", 1, &[entry("b", Class::Bad), entry("a", Class::Bug)]).unwrap();
    store.set_quarantine("q", 1, &[entry("z", Class::Transient)]).unwrap();
    store.set_quarantine("p", 2, &[entry("c", Class::Bad), entry("b", Class::Bad)]).unwrap();
    let after = [in_run(1, entry("b", Class::Bad)), in_run(2, entry("c", Class::Bad))];
    assert_eq!(store.quarantine("p").unwrap(), after, "a known entry keeps its first run");
    assert_eq!(store.quarantine("q").unwrap(), [in_run(1, entry("z", Class::Transient))]);
    store.set_quarantine("p", 3, &[]).unwrap();
    assert_eq!(store.quarantine("p").unwrap(), []);
}

#[test]
fn runs_are_remembered() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.last_run("p").unwrap(), None);
    let first = store.begin_run("p", "{\"threads\":2}").unwrap();
    let second = store.begin_run("q", "{}").unwrap();
    assert!(second > first);
    store.finish_run(first, "done", "{\"seconds\":1}").unwrap();
    let run = store.last_run("p").unwrap().unwrap();
    assert_eq!((run.id, run.outcome.as_deref(), run.report.as_deref()), (first, Some("done"), Some("{\"seconds\":1}")));
    assert!(run.finished_ms.unwrap() >= run.started_ms && run.settings == "{\"threads\":2}");
    assert_eq!(store.runs(5).unwrap().iter().map(|run| run.id).collect::<Vec<_>>(), [second, first]);
    assert_eq!(store.runs(1).unwrap()[0].outcome, None);
    assert_eq!(store.pipelines().unwrap(), ["p", "q"]);
}

#[test]
fn one_run_at_a_time() {
    let (_dir, path) = temp();
    let missing = Store::open_read(&path).err().unwrap().to_string();
    assert!(missing.contains("there is no store at `") && missing.ends_with("`vw2-pipe run` makes one"), "{missing}");
    assert!(!path.exists(), "looking makes nothing");
    let store = Store::open(&path).unwrap();
    let run = store.begin_run("p", "{}").unwrap();
    let refused = Store::open(&path).err().unwrap().to_string();
    let process = format!("is in use by another run (process {})", std::process::id());
    assert!(refused.contains(&process) && refused.contains(path.to_str().unwrap()), "{refused}");
    let reader = Store::open_read(&path).unwrap();
    assert_eq!(reader.last_run("p").unwrap().unwrap().id, run, "status works beside a run");
    assert!(reader.begin_run("p", "{}").is_err(), "a reader writes nothing");
    drop(store);
    assert_eq!(Store::open_read(&path).unwrap().pipelines().unwrap(), ["p"], "and after it");
    Store::open(&path).unwrap();
}

#[test]
fn a_newer_format_is_refused_and_stale_files_go() {
    let (_dir, path) = temp();
    {
        let store = Store::open(&path).unwrap();
        store.manifest().pragma_update(None, "user_version", 99).unwrap();
        fs::write(path.join("blobs/tmp/stale"), "x").unwrap();
    }
    for error in [Store::open(&path).err().unwrap(), Store::open_read(&path).err().unwrap()] {
        assert!(matches!(error, Error::NewerStore { found: 99, known: 3, .. }), "{error}");
    }
    let manifest = Connection::open(path.join("manifest.sqlite")).unwrap();
    manifest.pragma_update(None, "user_version", 3).unwrap();
    drop(manifest);
    Store::open(&path).unwrap();
    assert!(!path.join("blobs/tmp/stale").exists());
}

#[test]
fn an_unchanged_file_is_read_once() {
    let (dir, path) = temp();
    let file = dir.path().join("clip.mp4");
    fs::write(&file, "frames").unwrap();
    let saved = |store: &Store| {
        store.flush_seen().unwrap();
        store.manifest().query_row("SELECT count(*) FROM seen_file", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let store = Store::open(&path).unwrap();
    assert_eq!(store.file_hash(&file).unwrap(), Hash::of_bytes(b"frames"));
    assert_eq!(saved(&store), 0, "a file this fresh may change again without a new mtime");

    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(store.file_hash(&file).unwrap(), Hash::of_bytes(b"frames"));
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(saved(&store), 1, "saved when the store was closed");
    // What is remembered is used: with another hash in the manifest, that one comes back.
    let other = Hash::of_bytes(b"other");
    store.manifest().execute("UPDATE seen_file SET hash = ?1", [other]).unwrap();
    assert_eq!(store.file_hash(&file).unwrap(), other);

    let touched = File::options().append(true).open(&file).unwrap();
    touched.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    assert_eq!(store.file_hash(&file).unwrap(), Hash::of_bytes(b"frames"), "touched: read again, same content");
    let missing = store.file_hash(&dir.path().join("gone")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read `") && missing.contains("gone"), "{missing}");
}

#[test]
fn many_threads_put_rows() {
    let (_dir, path) = temp();
    let store = Store::open(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for index in 0..20 {
                    // Two threads each make the same rows.
                    let id = format!("{} {index}", thread / 2);
                    let (_, memo) = remember(store, &id, &[("", row(&id, index * 8_000), &[])]);
                    assert_eq!(store.row(&memo[0].content, &schema()).unwrap(), row(&id, index * 8_000));
                }
            });
        }
    });
    let count = |sql: &str| store.manifest().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM memo"), 40);
    assert_eq!(count("SELECT count(*) FROM payload"), 40);
}

/// Runs in a child process, which dies at the fail point that `VW2_TEST_ABORT` counts to.
#[test]
fn writes_for_a_process_that_dies() {
    let (Ok(path), Ok(nth)) = (std::env::var("VW2_TEST_STORE"), std::env::var("VW2_TEST_ABORT")) else { return };
    let path = PathBuf::from(path);
    abort_at(nth.parse().unwrap());
    all_writes(&path);
}

/// Every kind of durable write, so that every fail point is passed.
fn all_writes(path: &Path) {
    let store = Store::open(path).unwrap();
    let run = store.begin_run("p", "{}").unwrap();
    for round in ["one", "two"] {
        let (_, memo) = remember(&store, round, &[("", row(round, rows::INLINE_BYTES), &[])]);
        let add = Row { content: memo[0].content, ..published("codes", "a", b"") };
        let remove: Vec<Row> = store.published("p").unwrap().into_iter().filter(|row| *row != add).collect();
        let add: &[Row] = if store.published("p").unwrap().contains(&add) { &[] } else { &[add] };
        store.publish("p", run, add, &remove).unwrap();
        let blob = store.blobs().put(round.as_bytes()).unwrap();
        for versioned in [false, true] {
            let place_at = path.with_file_name(if versioned { "versions" } else { "flat" });
            let files = [(format!("{round}.txt"), blob), ("same.txt".to_owned(), memo_file(&store))].into();
            place(&store, "p", "codes", &crate::stage::Placement { path: place_at, versioned }, &files).unwrap();
        }
        let reason = format!("round {round}");
        let (unit, stage) = ("u".to_owned(), "codes".to_owned());
        store
            .set_quarantine(
                "p",
                run,
                &[Quarantined { unit, path: None, stage, class: Class::Bad, reason, run, keys: vec![] }],
            )
            .unwrap();
    }
    // Old enough to be remembered.
    store.file_hash(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).unwrap();
    store.finish_run(run, "done", "{}").unwrap();
    upkeep(&store);
    let unit = scratch::tests::unit("done");
    store.scratch().write(&unit, "state", b"half").unwrap();
    store.scratch().clear([&unit.key].into_iter());
    drop(store);
    fs::write(path.join("blobs/tmp/stale"), "half a blob").unwrap();
    Store::open(path).unwrap();
}

/// Every kind of durable write that is not a run's. What is published stays as it is.
fn upkeep(store: &Store) {
    let reject = |unit: &str| commit(store, Hash::of_bytes(unit.as_bytes()), Memo::Bad("spoilt".into()), Vec::new());
    reject("u");
    let (unit, stage, reason) = ("u".to_owned(), "codes".to_owned(), "spoilt".to_owned());
    let keys = vec![Hash::of_bytes(unit.as_bytes())];
    store.forget_verdicts(&[Quarantined { unit, path: None, stage, class: Class::Bad, reason, run: 1, keys }]).unwrap();

    let (_, memo) = remember(store, "unused", &[("", row("unused", 9), &[])]);
    let change = |manifest: &Connection| {
        manifest.execute("UPDATE payload SET bytes = x'00' WHERE content = ?1", [memo[0].content]).map(drop)
    };
    store.change("damage a row", "commit", change).unwrap();
    let spoilt = store.blobs().put(b"spoilt").unwrap();
    fs::write(store.blobs().path(&spoilt), "other").unwrap();
    let verified = store.verify(None, 0, &mut |_, _| {}).unwrap();
    store.set_aside(&verified).unwrap();

    let unit = crate::stage::Unit { key: Hash::of_bytes(b"two"), ..scratch::tests::unit("two") };
    store.scratch().write(&unit, "state", b"left behind").unwrap();
    // Enough of it that the manifest is written anew.
    for index in 0..9 {
        remember(store, &format!("unused {index}"), &[("", row(&index.to_string(), rows::INLINE_BYTES - 1_000), &[])]);
    }
    store.gc(0, &[]).unwrap();
}

fn memo_file(store: &Store) -> Hash {
    store.blobs().put(b"same").unwrap()
}

#[test]
fn a_death_at_any_durable_write_is_healed_by_the_next_run() {
    let state = |path: &Path| {
        let out = |name: &str| {
            let folder = path.with_file_name(name);
            let read = |file: fs::DirEntry| (file.file_name(), fs::read(file.path()).unwrap());
            let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| read(file.unwrap())).collect();
            files.sort();
            files
        };
        let store = Store::open(path).unwrap();
        let latest = out("versions/latest");
        (store.published("p").unwrap(), store.quarantine("p").unwrap().len(), out("flat"), latest)
    };
    let (_dir, path) = temp();
    all_writes(&path);
    let expected = state(&path);
    // Nearly all of this is waiting for the disk, so deaths are tried side by side.
    let (next, past_the_end) = (AtomicU64::new(1), AtomicBool::new(false));
    let deaths: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let one_after_another = || {
        while !past_the_end.load(Ordering::SeqCst) {
            let nth = next.fetch_add(1, Ordering::SeqCst);
            let (_dir, path) = temp();
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::tests::writes_for_a_process_that_dies"])
                .env("VW2_TEST_STORE", &path)
                .env("VW2_TEST_ABORT", nth.to_string())
                .output()
                .unwrap();
            match child.status.success() {
                true => past_the_end.store(true, Ordering::SeqCst),
                false => assert_eq!(child.status.signal(), Some(6), "aborted, not failed: {child:?}"),
            }
            let told = String::from_utf8_lossy(&child.stderr);
            if let Some(point) = told.lines().find_map(|line| line.strip_prefix("dies at ")) {
                *deaths.lock().unwrap().entry(point.to_owned()).or_default() += 1;
            }
            all_writes(&path);
            assert_eq!(state(&path), expected, "after a death at point {nth}");
            assert_eq!(fs::read_dir(path.join("blobs/tmp")).unwrap().count(), 0);
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(one_after_another))));
    let deaths = deaths.into_inner().unwrap();
    let points: BTreeMap<&str, usize> = deaths.iter().map(|(point, count)| (point.as_str(), *count)).collect();
    assert!(FAIL_POINTS.iter().all(|point| points.contains_key(point)), "a death at each of them: {points:?}");
}
