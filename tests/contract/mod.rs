//! Incremental equals rebuild, with real clips through the program: after any sequence of edits to videos, parameters,
//! weights and stages, and after any death or full disk, what is published is what an empty store gets, byte for byte, and
//! only what is not known yet is computed.
//!
//!     VW2_SEQUENCES=50 VW2_SEED=7 cargo test --test main contract -- --nocapture

mod edit;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use super::full_disk::FullDisk;
use super::project::{PIPELINE, Project, Report, finished};
use edit::{Draws, Edit};
use state::{Known, State};

/// Published rows (stage, id, content, origin) and the bytes of all files outside the store.
type Published = (BTreeSet<[String; 4]>, BTreeMap<String, String>);

fn published(project: &Project) -> Published {
    let manifest = rusqlite::Connection::open(project.path(".vw2/manifest.sqlite")).unwrap();
    let sql = "SELECT stage, id, hex(content), coalesce(origin, '') FROM published";
    let mut rows = manifest.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])).unwrap();
    let rows = rows.map(Result::unwrap).collect();
    let mut files = BTreeMap::new();
    for folder in ["out/codes/latest/", "out/ar"] {
        if project.path(folder).exists() {
            let tree = project.tree(folder).into_iter();
            files.extend(tree.map(|(path, (content, _))| (path.display().to_string(), content)));
        }
    }
    (rows, files)
}

/// What an empty store gets of the same files.
fn rebuilt(project: &Project) -> Published {
    let fresh = Project::new();
    for folder in ["videos", "weights"] {
        for path in project.tree(folder).into_keys() {
            fresh.write(path.to_str().unwrap(), fs::read(project.path(&path)).unwrap());
        }
    }
    fresh.write("videos/.keep", "");
    fresh.write(PIPELINE, fs::read(project.path(PIPELINE)).unwrap());
    fresh.run(&[]);
    published(&fresh)
}

/// Plays a sequence; `Err` says at which step what was wrong.
fn play(edits: &[Edit]) -> Result<(), String> {
    let project = Project::new();
    let (mut state, mut known) = (State::new(&project), Known::default());
    let mut truth: Option<(String, Published)> = None;
    for (step, edit) in edits.iter().enumerate() {
        state.edit(edit, &project);
        project.write(PIPELINE, state.toml());
        interrupted_run(&project, edit).map_err(|fault| format!("step {step}: {fault}"))?;
        let report: Report = project.run(&["--workers", &state.workers.to_string()]);
        // Where nothing that counts has changed, the last rebuild is still one of this state.
        let counts = state.fingerprint(&project);
        let rebuilt = match truth.take() {
            Some((of, rebuilt)) if of == counts => rebuilt,
            _ => rebuilt(&project),
        };
        let ours = published(&project);
        if ours != rebuilt {
            let rows = |a: &Published, b: &Published| a.0.difference(&b.0).cloned().collect::<Vec<_>>();
            let (more, less) = (rows(&ours, &rebuilt), rows(&rebuilt, &ours));
            let files = ours.1.iter().filter(|(file, bytes)| rebuilt.1.get(*file) != Some(*bytes));
            let files: Vec<_> = files.collect();
            return Err(format!("step {step}: more {more:?}, less {less:?}, other files {files:?}"));
        }
        for (stage, unknown) in known.learn(&state, &project, &rebuilt.0) {
            let executed = report.count(stage, "executed");
            if if edit.interrupts() { executed > unknown } else { executed != unknown } {
                return Err(format!("step {step}: `{stage}` computed {executed} units, expected {unknown}"));
            }
        }
        truth = Some((counts, rebuilt));
    }
    Ok(())
}

/// A run that does not get to its end, where the step asks for one.
fn interrupted_run(project: &Project, edit: &Edit) -> Result<(), String> {
    match edit {
        Edit::Kill(after_ms) => {
            let mut child = project.command(&["run", PIPELINE]).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(*after_ms));
            child.kill().unwrap();
            finished(child);
        }
        Edit::FullDisk(left_kib) => {
            fs::create_dir_all(project.path(".vw2")).unwrap();
            let Some(disk) = FullDisk::with(&project.path("disk"), &project.path(".vw2"), *left_kib) else {
                return Ok(());
            };
            let store = disk.path().join(".vw2");
            let done = project.vw2(&["run", PIPELINE, "--store", store.to_str().unwrap()]);
            let in_words = done.code == 0 || done.code == 2 && done.stderr.contains("cannot ");
            if !in_words {
                return Err(format!("a full disk ends in {done:#?}"));
            }
            fs::remove_dir_all(project.path(".vw2")).unwrap();
            super::full_disk::copy(&store, &project.path(".vw2"));
        }
        _ => {}
    }
    Ok(())
}

#[test]
fn any_sequence_of_edits_to_real_clips_ends_as_a_rebuild() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (count, seed) = (number("VW2_SEQUENCES", 4), number("VW2_SEED", u64::from(std::process::id())));
    eprintln!("VW2_SEQUENCES={count} VW2_SEED={seed}");
    for sequence in 0..count {
        let edits = Draws(seed.wrapping_mul(1_000_003).wrapping_add(sequence)).sequence();
        if let Err(fault) = play(&edits) {
            let (edits, fault) = shortest(edits, fault);
            panic!("VW2_SEED={seed}, sequence {sequence}: {fault}\nafter {edits:#?}");
        }
    }
}

/// Leaves out one edit after the other as long as the rest still fails.
fn shortest(mut edits: Vec<Edit>, mut fault: String) -> (Vec<Edit>, String) {
    let mut at = 0;
    while at < edits.len() {
        let mut fewer = edits.clone();
        fewer.remove(at);
        match play(&fewer) {
            Err(other) => (edits, fault) = (fewer, other),
            Ok(()) => at += 1,
        }
    }
    (edits, fault)
}
