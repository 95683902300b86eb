//! Units that fail end in quarantine, whatever they do; the others are not disturbed.

use vw2_engine::run::{Options, run};
use vw2_engine::store::Class;

use crate::project::{Project, executed, within};

/// (stage, unit, class) of each entry.
fn quarantine(project: &Project) -> Vec<(String, String, Class)> {
    let list = project.store().quarantine("toy").unwrap();
    list.into_iter().map(|entry| (entry.stage, entry.unit, entry.class)).collect()
}

#[test]
fn trouble_ends_in_quarantine_with_any_number_of_workers() {
    for (workers, threads) in [(1, 1), (4, 2)] {
        let project = Project::new(&[
            ("good", "fine\nalso fine"),
            ("trouble", "ok\nBAD 1\nPANIC 2\nFAIL 3\nok too"),
            ("bad file", "BAD file"),
            ("UNREADABLE", ""),
        ]);
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
        // The device stage that reads the whole table through `upper` meets the same rows.
        let (whole, rows): (Vec<_>, Vec<_>) = found.into_iter().partition(|(stage, ..)| *stage == "longest");
        assert_eq!(rows, expected);
        assert_eq!(whole, [("longest", "longest", Class::Transient)]);
        assert_eq!(report.quarantined.len(), 6);
        assert_eq!(report.stage("counts").unwrap().added, 4);
        assert_eq!(report.stage("twice").unwrap().added, 4);
        let text = report.to_string();
        assert!(
            text.contains("quarantined (bug): stage `upper`:") && text.contains("no way to handle PANIC 2"),
            "{text}"
        );

        // Bad data is remembered; what may pass is tried again, for each of two stored stages at once.
        let again = project.run();
        assert_eq!(again.stage("upper").unwrap().executed - again.stage("longest").unwrap().executed, 2 + 1);
        assert_eq!((again.quarantined.len(), again.stage("counts").unwrap().added), (6, 0));
        assert!(again.quarantined.iter().all(|entry| entry.run == 1));

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
            .replace("[stage.longest]\nkind = \"longest\"\ninput = \"upper\"", "");
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
    let error = within(60, move || run(&plan, &other, &Options::of(&plan.runtime))).unwrap_err();
    assert!(error.to_string().starts_with("stage `texts` cannot list its files: "), "{error}");
    assert_eq!(store.last_run("toy").unwrap().unwrap().outcome.as_deref(), Some("failed"));
    drop(store);
    std::fs::rename(project.path("elsewhere"), project.path("in")).unwrap();
    assert_eq!(project.run().stage("texts").unwrap().executed, 1);
    assert_eq!(executed(&project.run()), []);
}
