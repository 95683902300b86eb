//! Incremental equals rebuild: after any sequence of edits and deaths, what is published is what an empty store would get,
//! and only what is not known yet is computed.
//!
//! A sequence is drawn from a seed. Each step edits files, weights, parameters, stages or the way of running, then runs; now
//! and then the process dies at a durable write, is killed at any moment, or finds its disk full. A model of the pipeline,
//! which knows nothing of the engine, says beforehand how many units each stage computes. Where a sequence fails, shorter
//! ones of it are tried, and the shortest that fails is told.
//!
//!     VW2_SEQUENCES=2000 VW2_SEED=7 cargo test -p vw2-engine --test engine contract -- --nocapture

mod edit;
mod model;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use vw2_engine::run::{Options, run};
use vw2_engine::store::{Row, Store};

use crate::full_disk::FullDisk;
use crate::project::{Project, copy};
use edit::{Draws, Edit};
use model::Model;

/// Published files: name and bytes.
type Files = BTreeMap<String, Vec<u8>>;

/// Plays a sequence; `Err` says at which step what was wrong.
fn play(edits: &[Edit]) -> Result<(), String> {
    let mut project = Project::new(&[]);
    let mut model = Model::new();
    for (step, edit) in edits.iter().enumerate() {
        let before = model.files.clone();
        model.edit(edit);
        for file in before.keys().filter(|file| !model.files.contains_key(file)) {
            std::fs::remove_file(project.path("in").join(file.to_string())).unwrap();
        }
        for (file, text) in &model.files {
            if before.get(file) != Some(text) || *edit == Edit::Touch(*file) {
                project.write(&file.to_string(), &text.join("\n"));
            }
        }
        std::fs::write(project.path("weights"), model.weights.to_string()).unwrap();
        project.toml = model.toml();
        match edit {
            Edit::Die(point) => drop(child(&project, &project.path("store"), *point).wait().unwrap()),
            Edit::Kill(after_ms) => {
                let mut child = child(&project, &project.path("store"), 0);
                std::thread::sleep(Duration::from_millis(*after_ms));
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Edit::FullDisk(left_kib) => on_a_full_disk(&project, *left_kib).map_err(|e| format!("step {step}: {e}"))?,
            _ => {}
        }

        let unknown = model.learn();
        let report = project.run_with(&[], |options| options.workers = model.workers as usize);
        for stage in ["texts", "lines", "counts", "twice", "total", "book"] {
            let executed = report.stage(stage).map_or(0, |stage| stage.executed);
            let unknown = unknown.get(stage).copied().unwrap_or(0);
            // A run that died may have kept some of them.
            if if edit.interrupts() { executed > unknown } else { executed != unknown } {
                return Err(format!("step {step}: `{stage}` computed {executed} units, expected {unknown}"));
            }
        }
        let (ours, rebuilt) = (project.result(), project.rebuilt(&[]));
        if ours != rebuilt {
            let only = |a: &[Row], b: &[Row]| a.iter().filter(|row| !b.contains(row)).cloned().collect::<Vec<Row>>();
            let (more, less) = (only(&ours.0, &rebuilt.0), only(&rebuilt.0, &ours.0));
            let files = |a: &Files, b: &Files| a.iter().filter(|file| b.get(file.0) != Some(file.1)).count();
            let (own, others) = (files(&ours.1, &rebuilt.1), files(&rebuilt.1, &ours.1));
            return Err(format!(
                "step {step}: beside a rebuild there is {more:?}, and missing is {less:?}; files: {own} more, {others} less"
            ));
        }
    }
    Ok(())
}

/// Starts a run in a process of its own, which dies at the n-th durable write, if there are so many; 0: at none.
fn child(project: &Project, store: &std::path::Path, point: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contract::any_sequence_of_edits_ends_as_a_rebuild", "--nocapture"])
        .env("CONTRACT_DIR", &project.dir)
        .env("CONTRACT_STORE", store)
        .env("CONTRACT_TOML", &project.toml)
        .env("CONTRACT_POINT", point.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code of a child whose run ended with an error.
const FAILED: i32 = 3;

fn am_child() -> bool {
    let Ok(dir) = std::env::var("CONTRACT_DIR") else { return false };
    let value = |name: &str| std::env::var(name).unwrap();
    let plan = Project::at(dir.into(), value("CONTRACT_TOML")).plan(&[]);
    let options = Options { threads: 2, ..Options::of(&plan.runtime) };
    let done = Store::open(value("CONTRACT_STORE")).and_then(|store| {
        vw2_engine::store::abort_at(value("CONTRACT_POINT").parse().unwrap());
        run(&plan, &store, &options)
    });
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(FAILED);
    }
    true
}

/// Runs with the store on a disk that has so much room left. The run ends well or with an error that names a path or the
/// store, by no panic and no signal.
fn on_a_full_disk(project: &Project, left_kib: u64) -> Result<(), String> {
    let store = project.path("store");
    std::fs::create_dir_all(&store).unwrap();
    let Some(disk) = FullDisk::with(&project.path("disk"), &store, left_kib) else { return Ok(()) };
    let output = child(project, &disk.path().join("store"), 0).wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let in_words = told.contains("cannot ") || told.contains("the store");
    if !output.status.success() && (output.status.code() != Some(FAILED) || !in_words) {
        return Err(format!("a full disk ends in {}: {told}", output.status));
    }
    std::fs::remove_dir_all(&store).unwrap();
    copy(&disk.path().join("store"), &store);
    Ok(())
}

#[test]
fn any_sequence_of_edits_ends_as_a_rebuild() {
    if am_child() {
        return;
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (count, seed) = (number("VW2_SEQUENCES", 200), number("VW2_SEED", u64::from(std::process::id())));
    eprintln!("VW2_SEQUENCES={count} VW2_SEED={seed}");
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        while !failed.load(SeqCst) {
            let sequence = next.fetch_add(1, SeqCst);
            if sequence >= count {
                return;
            }
            let edits = Draws(seed.wrapping_mul(1_000_003).wrapping_add(sequence)).sequence();
            if let Err(fault) = play(&edits) {
                failed.store(true, SeqCst);
                let (edits, fault) = shortest(edits, fault);
                panic!("VW2_SEED={seed}, sequence {sequence}: {fault}\nafter {edits:#?}");
            }
        }
    };
    // A run mostly waits for the disk, so several go side by side.
    std::thread::scope(|threads| {
        let players: Vec<_> = (0..8).map(|_| threads.spawn(work)).collect();
        players.into_iter().for_each(|player| player.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
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
