//! A stage that trains keeps its checkpoint, or goes on from it, where `on_change` says so.

use std::time::Duration;

use vw2_engine::plan::plan;
use vw2_engine::report::Report;
use vw2_engine::spec::PipelineSpec;

use crate::project::{PIPELINE, Project, executed};
use crate::toys::KINDS;
use crate::watching::start;

/// `model` learns lines, and their capitals; `after` takes what it learnt.
const TRAINING: &str = r#"
name = "toy"
[stage.texts]
kind = "list"
root = "IN"
[stage.lines]
kind = "split"
input = "texts"
[stage.upper]
kind = "upper"
input = "lines"
[stage.model]
kind = "train"
inputs = { lines = "lines", more = "upper" }
on_change = "hold"
[stage.after]
kind = "upper"
input = "model"
"#;

pub(crate) fn training(on_change: &str) -> Project {
    let mut project = Project::new(&[("a", "one")]);
    project.toml = TRAINING.replace("hold", on_change);
    project
}

/// Whether training and what lies behind it ran, and the run since which the checkpoint is held.
fn told(report: &Report) -> (u64, u64, Option<i64>) {
    let stage = |id| report.stage(id).unwrap();
    (stage("model").executed, stage("after").executed, stage("model").held_since)
}

#[test]
fn a_held_checkpoint_stays_until_it_is_trained_anew_or_its_inputs_return() {
    for workers in [1, 3] {
        let project = training("hold");
        let run = |sets: &[&str]| told(&project.run_with(sets, |options| options.workers = workers));
        let is = |text: &str| assert_eq!(project.text_of("model").as_deref(), Some(text));
        assert_eq!(run(&[]), (1, 1, None), "nothing is there to hold");
        is("one ONE x0");
        let before = project.result().0;
        let kept = |project: &Project| project.result().0.into_iter().filter(|row| before.contains(row)).count();

        project.write("b", "two");
        assert_eq!(run(&[]), (0, 0, Some(2)));
        is("one ONE x0");
        assert_eq!((kept(&project), project.published().len()), (before.len(), before.len() + 3));
        assert_eq!(run(&[]), (0, 0, Some(2)), "nothing changed");
        project.write("c", "three");
        assert_eq!(run(&[]), (0, 0, Some(2)), "more of it changed");
        assert_eq!(project.store().held_since("toy").unwrap(), [("model".to_owned(), 2)].into());

        ["b", "c"].iter().for_each(|name| std::fs::remove_file(project.path("in").join(name)).unwrap());
        assert_eq!(run(&[]), (0, 0, None), "the inputs are what it was trained on");
        project.write("b", "two");
        assert_eq!(run(&[]), (0, 0, Some(6)));
        assert_eq!(run(&["stage.model.on_change=retrain"]), (1, 1, None));
        is("one two ONE TWO x0");
        assert_eq!(run(&[]), (0, 0, None), "hold, and it is fresh");
        project.write("a", "1");
        assert_eq!(run(&[]), (0, 0, Some(9)));
        std::fs::remove_dir_all(project.path("in")).unwrap();
        std::fs::create_dir(project.path("in")).unwrap();
        run(&[]);
        assert_eq!(project.published(), [], "without a single row there is nothing to train on");
    }
}

#[test]
fn a_warm_training_goes_on_from_what_is_published_and_never_from_itself() {
    for workers in [1, 3] {
        let project = training("warm");
        let run = |sets: &[&str]| told(&project.run_with(sets, |options| options.workers = workers));
        let is = |text: &str| assert_eq!(project.text_of("model").as_deref(), Some(text));
        let still = || assert_eq!(run(&[]), (0, 0, None), "unchanged inputs");
        assert_eq!(run(&[]), (1, 1, None));
        is("one ONE x0");
        still();
        project.write("b", "two");
        assert_eq!(run(&[]), (1, 1, None));
        is("one ONE x0 > one two ONE TWO x0");
        still();
        std::fs::rename(project.path("in"), project.path("moved")).unwrap();
        let moved = format!("stage.texts.root={:?}", project.path("moved"));
        assert_eq!(run(&[&moved]), (0, 0, None), "the same rows from another folder");
        std::fs::rename(project.path("moved"), project.path("in")).unwrap();
        project.store().gc(0, &[]).unwrap();
        still();
        std::fs::remove_file(project.path("in/b")).unwrap();
        assert_eq!(run(&[]), (1, 1, None));
        is("one ONE x0 > one two ONE TWO x0 > one ONE x0");
        still();
        assert_eq!(run(&["stage.model.on_change=hold"]), (0, 0, None), "it was made of these inputs");
        run(&["stage.model.on_change=retrain"]);
        is("one ONE x0");
        assert_eq!(project.result(), project.rebuilt(&["stage.model.on_change=retrain"]));
        still();
    }
}

#[test]
fn what_cannot_be_trained_is_known_and_the_next_training_starts_afresh() {
    let project = training("warm");
    project.run();
    project.write("b", "fine\nBAD luck");
    // `upper` refuses the line, `model` all of them.
    assert_eq!(project.run().quarantined.iter().filter(|entry| entry.stage == "model").count(), 1);
    assert_eq!(executed(&project.run()), []);
    assert_eq!(project.text_of("model"), None);
    project.write("b", "good");
    project.run();
    assert_eq!(project.text_of("model").unwrap(), "one good ONE GOOD x0");
}

/// Both tables of `model` change together; it never sees one of them changed alone.
#[test]
fn a_watching_run_trains_holds_and_goes_on_as_runs_do() {
    let cases = [
        ("retrain", 1, 0, "one ONE x0"),
        ("hold", 0, 0, "one ONE x0"),
        ("warm", 1, 1, "one ONE x0 > one two ONE TWO x0 > one ONE x0"),
    ];
    for (on_change, more, fewer, text) in cases {
        let project = training(on_change);
        let (reports, end) = start(&project);
        let next = || told(&reports.recv_timeout(Duration::from_secs(30)).unwrap());
        assert_eq!(next(), (1, 1, None), "{on_change}: the first");
        project.write("b", "two");
        assert_eq!(next(), (more, more, (on_change == "hold").then_some(1)), "{on_change}: more");
        std::fs::remove_file(project.path("in/b")).unwrap();
        assert_eq!(next(), (fewer, fewer, None), "{on_change}: as before");
        end();
        assert_eq!(project.text_of("model").unwrap(), text, "{on_change}");
        assert_eq!(executed(&project.run()), [], "{on_change}");
    }
}

#[test]
fn other_stages_are_refused() {
    let toml = PIPELINE.replace("kind = \"sum\"", "kind = \"sum\"\non_change = \"hold\"");
    let spec = PipelineSpec::parse("toy.toml", &toml, &["stage.book.on_change=warm".to_owned()]).unwrap();
    let refused = format!("{:?}", plan(&spec, KINDS).err().unwrap()).replace('\\', "");
    for (stage, word, kind) in [("total", "hold", "sum"), ("book", "warm", "export")] {
        let message =
            format!("stage `{stage}`: `on_change = \"{word}\"` is for stages that train, and `{kind}` does not");
        assert!(refused.contains(&message), "{refused}");
    }
}

#[test]
fn a_plan_says_it_where_it_is_not_the_default() {
    for (word, said) in [("retrain", false), ("warm", true), ("hold", true)] {
        let plan = training(word).plan(&[]).to_string();
        assert_eq!(plan.contains(&format!("on_change = \"{word}\"")), said, "{plan}");
    }
}

#[test]
fn an_explanation_knows_what_is_held_and_what_trained_on() {
    use vw2_engine::explain::{Options, explain};
    use vw2_engine::store::Store;
    for (on_change, trains) in [("hold", 0), ("warm", 1)] {
        let project = training(on_change);
        let told = |project: &Project| {
            let store = Store::open_read(project.path("store")).unwrap();
            let told = explain(&project.plan(&[]), Some(&store), &Options::default()).unwrap();
            ["model", "after"].map(|stage| told.stage(stage).unwrap().to_run)
        };
        project.run();
        assert_eq!(told(&project), [0, 0], "{on_change}");
        project.write("b", "two");
        assert_eq!(told(&project), [trains, trains], "{on_change}");
        project.run();
        assert_eq!(told(&project), [0, 0], "{on_change}: after the run");
    }
}
