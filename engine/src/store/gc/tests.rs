use std::fs::File;

use rusqlite::{Connection, params};

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
        let said = self.store.garbage(keep_runs, &[]).unwrap();
        assert_eq!(self.store.garbage(keep_runs, &[]).unwrap(), said, "looking changes nothing");
        assert_eq!(self.store.gc(keep_runs, &[]).unwrap(), said);
        assert_eq!(self.store.garbage(keep_runs, &[]).unwrap(), Garbage::default(), "nothing is left to do");
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
    let verdicts = ["a", "b", "gone", "d"];
    verdicts.iter().for_each(|name| case.commit(run, name, Memo::Bad("empty".to_owned()), Vec::new()));
    case.commit(run, "no rows", Memo::Rows(Vec::new()), Vec::new());
    let entry = |names: &[&str]| {
        let (unit, stage, reason) = (names[0].to_owned(), "clips".to_owned(), "empty".to_owned());
        let keys = names.iter().map(|name| Hash::of_bytes(name.as_bytes())).collect();
        Quarantined { unit, path: None, stage, class: Class::Bad, reason, run, keys }
    };
    case.store.set_quarantine("p", run, &[entry(&["a"]), entry(&["b", "d"])]).unwrap();
    assert_eq!(case.gc(0).results, 1);
    let names = [&verdicts[..], &["no rows"]].concat();
    assert_eq!(case.known(&names), ["a", "b", "d", "no rows"]);
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
    assert_eq!((found.scratch, found.stale), (Freed { count: 2, size_bytes: 72 }, Freed { count: 2, size_bytes: 5 }));
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
        let insert = |manifest: &Connection| manifest.execute(sql, params![path.as_bytes(), Hash::default()]).map(drop);
        case.store.change("see a file", "commit", insert).unwrap();
    }
    let found = case.gc(1);
    assert_eq!((found.runs, found.seen_files), (2, 1));
    // Who published a row, the last finished run, and each pipeline's last one.
    assert_eq!(names("SELECT id FROM run ORDER BY id"), [runs[1], runs[3], other]);
    assert_eq!(case.store.pipelines().unwrap(), ["other", "p"]);
}

#[test]
fn of_a_forgotten_pipeline_only_that_stays_which_others_need() {
    let case = Case::new();
    let (p, q) = (case.run("p", Some("done")), case.run("q", Some("done")));
    let row = |run: i64, name: &str| row_of(name, case.result(run, name, false, &[]), &[]);
    let (own, shared, other) = (row(p, "own"), row(p, "shared"), row(q, "other"));
    case.store.publish("p", p, &[own.clone(), shared.clone()], &[]).unwrap();
    case.store.publish("q", q, &[shared, other], &[]).unwrap();
    let later = case.run("p", Some("done"));
    case.store.publish("p", later, &[], &[own]).unwrap();
    let (unit, stage, reason) = ("a".to_owned(), "clips".to_owned(), "empty".to_owned());
    case.commit(p, "verdict", Memo::Bad(reason.clone()), Vec::new());
    let keys = vec![Hash::of_bytes(b"verdict")];
    let entry = Quarantined { unit, path: None, stage, class: Class::Bad, reason, run: p, keys };
    case.store.set_quarantine("p", p, &[entry]).unwrap();
    let out = case.store.dir().with_file_name("out");
    let placement = crate::stage::Placement { path: out.clone(), versioned: false };
    let film = case.blob("film");
    super::super::place(&case.store, "p", "films", &placement, &[("film".to_owned(), film)].into()).unwrap();

    let names = ["own", "shared", "other", "verdict"];
    assert_eq!((case.gc(9), case.known(&names).len()), (Garbage::default(), 4));
    let forget = ["p".to_owned()];
    let said = case.store.garbage(9, &forget).unwrap();
    assert_eq!((case.known(&names).len(), case.store.published("p").unwrap().len()), (4, 1), "saying changes nothing");
    assert_eq!(case.store.gc(9, &forget).unwrap(), said);
    assert_eq!(said.left, [LeftFolder { path: out.clone(), files: 1 }]);
    assert_eq!((said.results, said.published, said.runs, said.blobs.count), (2, 1, 2, 1));
    assert_eq!(case.known(&names), ["shared", "other"]);
    assert_eq!(fs::read_to_string(out.join("film")).unwrap(), "film", "files outside stay");
    assert_eq!(case.gc(9), Garbage::default(), "all is gone");
    let wrong = case.store.gc(9, &forget).unwrap_err().to_string();
    assert!(wrong.contains("no pipeline `p`; it has q"), "{wrong}");
}
