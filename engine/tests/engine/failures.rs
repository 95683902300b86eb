//! Units that fail end in quarantine, whatever they do; the others are not disturbed.

use vw2_engine::run::{Options, run};
use vw2_engine::store::Class;

use crate::project::{LONGEST, Project, executed, within};

/// (stage, unit, class) of each entry.
fn quarantine(project: &Project) -> Vec<(String, String, Class)> {
    let list = project.store().quarantine("toy").unwrap();
    list.into_iter().map(|entry| (entry.stage, entry.unit, entry.class)).collect()
}

#[test]
fn trouble_ends_in_quarantine_with_any_number_of_workers() {
    for (workers, threads) in [(1, 1), (4, 2)] {
        let mut project = Project::new(&[
            ("good", "fine\nalso fine"),
            ("trouble", "ok\nBAD 1\nPANIC 2\nFAIL 3\nok too"),
            ("bad file", "BAD file"),
            ("UNREADABLE", ""),
        ]);
        project.toml = project.toml.replace(LONGEST, "");
        let report = project.run_with(&[], |options| (options.workers, options.threads) = (workers, threads));
        let expected = [
            ("texts", "UNREADABLE", Class::Bad),
            ("texts", "bad file", Class::Bad),
            ("upper", "trouble#1", Class::Bad),
            ("upper", "trouble#2", Class::Bug),
            ("upper", "trouble#3", Class::Transient),
        ];
        let found = quarantine(&project);
        let found: Vec<_> = found.iter().map(|(stage, unit, class)| (stage.as_str(), unit.as_str(), *class)).collect();
        assert_eq!(found, expected);
        assert_eq!(report.quarantined.len(), 5);
        assert_eq!(report.stage("counts").unwrap().added, 4);
        assert_eq!(report.stage("twice").unwrap().added, 4);
        let text = report.to_string();
        assert!(
            text.contains("quarantined (bug): stage `upper`:") && text.contains("no way to handle PANIC 2"),
            "{text}"
        );

        // Bad data is remembered; the others are tried again, once for both stages that want them.
        let again = project.run();
        assert_eq!(executed(&again), [("upper", 2)]);
        assert_eq!((again.quarantined.len(), again.stage("counts").unwrap().added), (5, 0));

        std::fs::write(project.path("in/trouble"), "ok").unwrap();
        assert_eq!(project.run().quarantined.len(), 2);
        assert_eq!(project.result(), project.rebuilt(&[]));
    }
}

#[test]
fn a_failed_batch_is_bisected() {
    let mut project = Project::new(&[("a", &(0..20).map(|i| format!("{i}\n")).collect::<String>())]);
    project.toml = r#"
        name = "toy"
        [stage.texts]
        kind = "list"
        root = "IN"
        [stage.lines]
        kind = "split"
        input = "texts"
        [stage.twice]
        kind = "twice"
        input = "lines"
        run = { batch = 16, max_wait_ms = 200 }
    "#
    .to_owned();
    for (trouble, class) in [("PANIC", Class::Bug), ("FAIL", Class::Transient), ("BAD", Class::Bad)] {
        let line = |i| if i == 13 { format!("{trouble}\n") } else { format!("without {trouble} {i}\n") };
        project.write("a", &(0..20).map(line).collect::<String>());
        let report = project.run();
        assert_eq!(quarantine(&project), [("twice".to_owned(), "a#13".to_owned(), class)]);
        assert_eq!(report.stage("twice").unwrap().executed, 20);
        assert_eq!(project.published().iter().filter(|row| row.stage == "twice").count(), 19);
    }
}

#[test]
fn a_row_that_cannot_be_read_is_the_failure_of_who_reads_the_table() {
    let project = Project::new(&[("a", "fine\nBAD 1")]);
    let report = project.run();
    let entry = report.quarantined.iter().find(|entry| entry.stage == "longest").unwrap();
    assert_eq!((entry.unit.as_str(), entry.class), ("longest", Class::Transient));
    assert_eq!(entry.reason, "`upper` has no row for `a#1`: says BAD 1");
}

/// `row_id` runs on timely's workers, which must never be left waiting for one that panicked.
#[test]
fn a_panic_on_a_worker_ends_the_run() {
    for workers in [1, 4] {
        let mut project = Project::new(&[("a", "1\n2"), ("b", "3")]);
        project.toml = project.toml.replace("kind = \"split\"", "kind = \"split\"\nids = \"panic\"");
        let (plan, store) = (project.plan(&[]), project.store());
        let options = Options { workers, ..Options::of(&plan.runtime) };
        let error = within(30, move || run(&plan, &store, &options), String::new).unwrap_err();
        assert!(error.to_string().contains("no id for 0"), "{error}");
        assert_eq!(project.published(), []);
    }
}

#[test]
fn two_rows_with_one_id_end_the_run() {
    let mut project = Project::new(&[("a", "1\n2"), ("b", "3")]);
    project.toml = project.toml.replace("kind = \"split\"", "kind = \"split\"\nids = \"same\"");
    let (plan, store) = (project.plan(&[]), project.store());
    let error = within(30, move || run(&plan, &store, &Options::of(&plan.runtime)), String::new).unwrap_err();
    assert!(error.to_string().contains("yields two rows named `a`; ids must differ"), "{error}");
    assert_eq!(project.published(), []);
}

#[test]
fn an_operator_that_cannot_be_opened_ends_the_run() {
    let mut project = Project::new(&[("a", "1\n2"), ("b", "3")]);
    project.toml = project.toml.replace("kind = \"upper\"", "kind = \"upper\"\nsuffix = \"closed\"");
    let (plan, store) = (project.plan(&[]), project.store());
    let error = within(30, move || run(&plan, &store, &Options::of(&plan.runtime)), String::new).unwrap_err();
    assert_eq!(error.to_string(), "stage `upper` cannot start: closed today");
}

#[test]
fn a_failure_that_passes_is_tried_again() {
    let project = Project::new(&[("a", "FLAKY of this test\nx")]);
    let report = project.run();
    assert_eq!((report.quarantined.len(), report.stage("counts").unwrap().added), (0, 2));
}

#[test]
fn a_limit_on_quarantined_units_is_noticed() {
    let mut project = Project::new(&[("a", "1\n2\n3\nBAD")]);
    for (limit, exceeded) in [("0", true), ("1", false), ("\"20%\"", true), ("\"30%\"", false)] {
        project.toml = crate::project::PIPELINE
            .replace("name = \"toy\"", &format!("name = \"toy\"\n[runtime]\nmax_quarantined = {limit}"))
            .replace(LONGEST, "");
        assert_eq!(project.run().too_many_quarantined, exceeded, "{limit}");
    }
}

#[test]
fn a_run_that_cannot_go_on_says_why_and_publishes_nothing() {
    let project = Project::new(&[("a", "1")]);
    let plan = project.plan(&[]);
    std::fs::rename(project.path("in"), project.path("elsewhere")).unwrap();
    let store = project.store();
    let other = store.clone();
    let error = within(30, move || run(&plan, &other, &Options::of(&plan.runtime)), String::new).unwrap_err();
    assert!(error.to_string().starts_with("stage `texts` cannot list its files: "), "{error}");
    assert_eq!(store.last_run("toy").unwrap().unwrap().outcome.as_deref(), Some("failed"));
    drop(store);
    std::fs::rename(project.path("elsewhere"), project.path("in")).unwrap();
    assert_eq!(project.run().stage("texts").unwrap().executed, 1);
    assert_eq!(executed(&project.run()), []);
}
