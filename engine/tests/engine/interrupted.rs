//! Cancelled and killed runs: the next one computes what is missing, and only that.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vw2_engine::report::Outcome;
use vw2_engine::run::{Options, run};
use vw2_engine::store::Store;

use crate::on_change::training;
use crate::project::{Project, executed, within};

const UNITS: u64 = 60;

/// One file of many lines, counted slowly.
fn slow_project() -> Project {
    let mut project = Project::new(&[("a", &(0..UNITS).map(|i| format!("{i}\n")).collect::<String>())]);
    project.toml = r#"
        name = "toy"
        [stage.texts]
        kind = "list"
        root = "IN"
        [stage.lines]
        kind = "split"
        input = "texts"
        [stage.counts]
        kind = "count"
        input = "lines"
        sleep_ms = 20
        log = "LOG"
        [stage.total]
        kind = "sum"
        input = "counts"
    "#
    .to_owned();
    project
}

/// Units that `counts` has worked on, in all runs.
fn worked(project: &Project) -> u64 {
    std::fs::metadata(project.path("log")).map_or(0, |log| log.len())
}

/// Units of `counts` that the store remembers.
fn known(project: &Project) -> u64 {
    let costs = Store::open_read(project.path("store")).and_then(|store| store.costs()).unwrap_or_default();
    costs.iter().filter(|cost| cost.stage == "counts").map(|cost| cost.units).sum()
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited for too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_cancelled_run_keeps_what_is_finished() {
    for workers in [1, 3] {
        let project = slow_project();
        let plan = project.plan(&[]);
        let options = Options { threads: 2, workers, ..Options::of(&plan.runtime) };
        let (cancel, store) = (options.cancel.clone(), project.store());
        let running = std::thread::spawn(move || within(30, move || run(&plan, &store, &options), String::new));
        wait_for(|| worked(&project) >= 10);
        cancel.cancel();
        let report = running.join().unwrap().unwrap();
        assert_eq!(report.outcome, Outcome::Interrupted);
        let first = report.stage("counts").unwrap().executed;
        assert!((10..UNITS).contains(&first), "{first}");
        // What had begun was finished and kept.
        assert_eq!(worked(&project), first);
        assert_eq!(project.published(), []);

        let report = project.run();
        assert_eq!(executed(&report), [("counts", UNITS - first), ("total", 1)]);
        assert_eq!(project.result(), project.rebuilt(&[]));
    }
}

#[test]
fn long_work_is_interrupted_and_starts_again_next_time() {
    let mut project = slow_project();
    project.toml =
        project.toml.replace("sleep_ms = 20", "").replace("kind = \"sum\"", "kind = \"sum\"\nendless = true");
    let plan = project.plan(&[]);
    let options = Options::of(&plan.runtime);
    let (cancel, progress, store) = (options.cancel.clone(), options.progress.clone(), project.store());
    let running = std::thread::spawn(move || within(30, move || run(&plan, &store, &options), String::new));
    let steps = || progress.snapshot().into_iter().find_map(|stage| stage.steps);
    wait_for(|| steps().is_some_and(|steps| steps.done == UNITS));
    cancel.cancel();
    let report = running.join().unwrap().unwrap();
    assert_eq!((report.outcome, report.stage("total").unwrap().executed), (Outcome::Interrupted, 0));
    project.toml = project.toml.replace("endless = true", "");
    assert_eq!(executed(&project.run()), [("total", 1)]);
}

/// Runs the pipeline of [`slow_project`] in a process that can be killed: this test binary itself, told by its
/// environment.
fn child(test: &str, project: &Project, abort_at: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("interrupted::{test}"), "--nocapture"])
        .env("TOY_DIR", &project.dir)
        .env("TOY_TOML", &project.toml)
        .env("TOY_ABORT_AT", abort_at.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// In such a process: runs the pipeline and gives `true`.
fn am_child() -> bool {
    let Ok(dir) = std::env::var("TOY_DIR") else { return false };
    let project = Project::at(dir.into(), std::env::var("TOY_TOML").unwrap());
    let (plan, store) = (project.plan(&[]), project.store());
    vw2_engine::store::abort_at(std::env::var("TOY_ABORT_AT").unwrap().parse().unwrap());
    run(&plan, &store, &Options { threads: 2, ..Options::of(&plan.runtime) }).unwrap();
    true
}

#[test]
fn a_killed_run_is_completed_by_the_next() {
    if am_child() {
        return;
    }
    let project = slow_project();
    let mut child = child("a_killed_run_is_completed_by_the_next", &project, 0);
    wait_for(|| known(&project) >= 10);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = known(&project);
    assert!(before < UNITS, "the run was killed too late to show anything");
    let report = project.run();
    // Units whose transaction had not ended are computed again, and no others.
    let left = UNITS - before;
    assert_eq!(executed(&report), [("counts", left), ("total", 1)]);
    assert_eq!(project.result(), project.rebuilt(&[]));
}

/// The process dies at the first durable write, then at the second one, and so on, until it gets through.
#[test]
fn a_crash_at_any_durable_write_is_healed_by_the_next_run() {
    if am_child() {
        return;
    }
    let mut project = Project::new(&[("a", "one\ntwo"), ("b", "BAD"), ("c", &"long ".repeat(20_000))]);
    let expected = project.rebuilt(&[]);
    let toml = project.toml.clone();
    for versioned in [false, true] {
        let mut crashes = 0;
        loop {
            let fresh = Project::new(&[("a", "one\ntwo"), ("b", "BAD"), ("c", &"long ".repeat(20_000))]);
            project = fresh;
            project.toml = toml.replace("shards = 8", &format!("shards = 8\nversioned = {versioned}"));
            let mut child = child("a_crash_at_any_durable_write_is_healed_by_the_next_run", &project, crashes + 1);
            let survived = child.wait().unwrap().success();
            project.run();
            assert_eq!(project.published().len(), expected.0.len(), "crash {crashes}");
            if !versioned {
                assert_eq!(project.result(), expected, "crash {crashes}");
            }
            assert_eq!(executed(&project.run()), [], "crash {crashes}");
            if survived {
                break;
            }
            crashes += 1;
        }
        assert!(crashes > 10, "{crashes}");
    }
}

/// The checkpoint that is published stays the parent until the next one is.
#[test]
fn a_warm_training_that_dies_at_any_durable_write_is_repeated_from_the_same_parent() {
    if am_child() {
        return;
    }
    let mut deaths = 0;
    loop {
        let project = training("warm");
        project.run();
        project.write("b", "two");
        let test = "a_warm_training_that_dies_at_any_durable_write_is_repeated_from_the_same_parent";
        let survived = child(test, &project, deaths + 1).wait().unwrap().success();
        project.run();
        let text = project.text_of("model").unwrap();
        assert_eq!(text, "one ONE x0 > one two ONE TWO x0", "death {deaths}");
        assert_eq!(executed(&project.run()), [], "death {deaths}");
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 4, "{deaths}");
}
