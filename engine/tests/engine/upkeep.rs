//! A store is cleared, checked and brought to a newer format, and runs do not notice.

use std::path::Path;

use vw2_engine::recompute::{Recomputed, recompute};
use vw2_engine::run::Options;
use vw2_engine::store::{Store, abort_at};

use crate::project::{Project, copy, executed};

const FILES: &[(&str, &str)] = &[("a", "one\ntwo"), ("b", "BAD"), ("sub/c", "three")];

/// Each store was made by a program of its format, by several runs of which the last was over [`FILES`]. In the second, an
/// earlier run had other lines in `a`.
#[test]
fn stores_of_older_formats_are_brought_to_date_and_compute_nothing() {
    for format in [1, 2] {
        let project = Project::new(FILES);
        let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
        copy(&data.join(format!("store_format_{format}")), &project.path("store"));
        let refused = Store::open_read(project.path("store")).err().unwrap().to_string();
        let wanted = format!("has the older format {format}; a `vw2-pipe run` with it brings it to format");
        assert!(refused.contains(&wanted), "{refused}");
        let migrated = project.store().quarantine("toy").unwrap();
        let keys: Vec<usize> = migrated.iter().map(|entry| entry.keys.len()).collect();
        assert_eq!(keys, [1], "format {format}: its verdict is found by its words");
        let report = project.run();
        assert_eq!(executed(&report), [], "format {format}");
        assert_eq!(project.result(), project.rebuilt(&[]), "format {format}");
        assert_eq!(report.quarantined.len(), 1, "format {format}: the verdict is known, too");
        assert_eq!(report.quarantined[0].keys, migrated[0].keys, "format {format}: and it was the right one");
        project.write("a", "one\ntwo\nfour");
        project.run();
        assert_eq!(project.result(), project.rebuilt(&[]), "format {format}");
    }
}

/// A store with garbage: two edits, of which `keep_runs` may be undone.
fn edited() -> Project {
    let project = Project::new(FILES);
    project.run();
    for text in ["one\nother", "one\nother\nlast"] {
        project.write("a", text);
        project.run();
    }
    project
}

#[test]
fn after_gc_a_run_executes_nothing_that_it_would_not_have_executed_before() {
    for keep_runs in 0..4 {
        let project = edited();
        let before = project.result();
        let said = project.store().garbage(keep_runs, &[]).unwrap();
        assert_eq!(project.store().gc(keep_runs, &[]).unwrap(), said);
        assert_eq!(said.is_empty(), keep_runs >= 2, "{keep_runs}: {said:?}");
        let report = project.run();
        assert_eq!((executed(&report), project.result()), (vec![], before), "keep {keep_runs}");

        // What the last runs took back is still known.
        project.write("a", "one\nother");
        assert_eq!(executed(&project.run()).is_empty(), keep_runs >= 1, "one edit undone, keep {keep_runs}");
        project.write("a", "one\ntwo");
        assert_eq!(executed(&project.run()).is_empty(), keep_runs >= 2, "both undone, keep {keep_runs}");
        assert_eq!(project.result(), project.rebuilt(&[]));
    }
}

#[test]
fn a_crash_at_any_durable_write_of_gc_leaves_a_store_that_runs_as_before() {
    if let (Ok(dir), Ok(nth)) = (std::env::var("TOY_DIR"), std::env::var("TOY_ABORT_AT")) {
        let store = Store::open_existing(Path::new(&dir).join("store")).unwrap();
        abort_at(nth.parse().unwrap());
        store.gc(0, &[]).unwrap();
        return;
    }
    let project = edited();
    ["orphan", "another"].iter().for_each(|text| _ = project.store().blobs().put(text.as_bytes()).unwrap());
    let before = project.result();
    std::fs::write(project.path("store/blobs/tmp/stale"), "half").unwrap();
    let garbage = Store::open_still(project.path("store")).unwrap().garbage(0, &[]).unwrap();
    assert!(garbage.results > 5 && garbage.blobs.count == 3 && garbage.stale.count == 1, "{garbage:?}");
    let deaths = (1..)
        .take_while(|nth| {
            let copied = Project::new(&[]);
            copy(&project.dir, &copied.dir);
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "upkeep::a_crash_at_any_durable_write_of_gc_leaves_a_store_that_runs_as_before"])
                .env("TOY_DIR", &copied.dir)
                .env("TOY_ABORT_AT", nth.to_string())
                .output()
                .unwrap();
            let store = copied.store();
            let damages = store.verify(None, 0, &mut |_, _| {}).unwrap().damages;
            assert!(damages.iter().all(|damage| damage.reason == "it is not there"), "death {nth}: {damages:#?}");
            store.gc(0, &[]).unwrap();
            assert!(store.garbage(0, &[]).unwrap().is_empty(), "death {nth}");
            drop(store);
            let report = copied.run();
            assert_eq!(executed(&report), [], "death {nth}");
            assert_eq!(copied.result(), before, "death {nth}");
            !child.status.success()
        })
        .count();
    assert_eq!(deaths, 1 + 3 + 1, "the manifest, each blob, the stale file");
}

fn once_more(project: &Project, sample: usize) -> Recomputed {
    let plan = project.plan(&[]);
    let (store, options) = (Store::open_still(project.path("store")).unwrap(), Options::of(&plan.runtime));
    recompute(&plan, &store, &options, sample, 7).unwrap()
}

#[test]
fn units_come_out_the_same_once_more_and_the_store_stays_as_it_is() {
    // One row is long enough to be a blob.
    let project =
        Project::new(&[("a", "one\ntwo"), ("b", "BAD"), ("c", &"long ".repeat(20_000)), ("copy", "one\ntwo")]);
    project.run();
    let bytes = |name: &str| std::fs::read(project.path("store").join(name)).unwrap();
    let (before, worked) = (bytes("manifest.sqlite"), std::fs::metadata(project.path("log")).unwrap().len());
    let all = once_more(&project, 1000);
    assert_eq!((all.units, &all.differences, all.interrupted), (all.all_units, &vec![], false));
    assert!(all.units > 15 && all.rows >= all.units, "{all:?}");
    assert!(std::fs::metadata(project.path("log")).unwrap().len() > worked, "they were computed");
    assert_eq!(once_more(&project, 3).units, 3);
    assert!(bytes("manifest.sqlite") == before, "nothing was written");
    assert_eq!(std::fs::read_dir(project.path("store/blobs/tmp")).unwrap().count(), 0);
    assert_eq!(executed(&project.run()), []);
}

#[test]
fn a_unit_that_comes_out_otherwise_is_named() {
    let project = Project::new(&[("a", "one\ntwo")]);
    project.run();
    // Another result of one line: its neighbour's.
    let manifest = rusqlite::Connection::open(project.path("store/manifest.sqlite")).unwrap();
    let counts =
        "SELECT key, content FROM memo_row JOIN memo USING (key) WHERE kind = 'split' ORDER BY position LIMIT 1";
    let (key, content): (Vec<u8>, Vec<u8>) =
        manifest.query_row(counts, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    manifest.execute("UPDATE memo_row SET content = ?2 WHERE key = ?1", [&key, &content]).unwrap();
    drop(manifest);
    let found = once_more(&project, 1000).differences;
    let told: Vec<_> = found.iter().map(|difference| (difference.stage.as_str(), difference.unit.as_str())).collect();
    assert_eq!(told, [("lines", "a")], "{found:?}");
    assert!(
        found[0].reason.starts_with("row `1`: ") && found[0].reason.contains(" bytes differ, the first at "),
        "{found:?}"
    );
}
