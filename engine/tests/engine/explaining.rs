//! What is said before a run is what the run then does.

use vw2_engine::explain::{Explanation, Options, explain};
use vw2_engine::store::Store;

use crate::project::{LONGEST, Project, executed};

const FILES: &[(&str, &str)] = &[("a", "one\ntwo\nthree"), ("b", "four\nfive"), ("sub/c", "six\n")];

fn explained(project: &Project, sets: &[&str]) -> Explanation {
    let store = Store::open_read(project.path("store")).ok();
    explain(&project.plan(sets), store.as_ref(), &Options::default()).unwrap()
}

/// `stage: count why`, with `?` where units are unsure.
fn reasons(explanation: &Explanation) -> Vec<String> {
    let stages = explanation.stages.iter().filter(|stage| !stage.transient);
    let lines = stages.flat_map(|stage| {
        let unsure = if stage.unsure > 0 { "?" } else { "" };
        stage.reasons.iter().map(move |reason| format!("{}: {}{unsure} {}", stage.id, reason.count, reason.why))
    });
    lines.collect()
}

/// What is sure is executed, and no more than is told, unless that said so.
fn check(what: &str, told: &Explanation, done: &vw2_engine::report::Report) {
    for stage in told.stages.iter().filter(|stage| !stage.transient) {
        let executed = done.stage(&stage.id).map_or(0, |stage| stage.executed);
        assert!(executed >= stage.to_run - stage.unsure, "{what}: {executed} of {stage:#?}");
        assert!(executed <= stage.to_run || stage.more, "{what}: {executed} of {stage:#?}");
        let retracted = done.stage(&stage.id).map_or(0, |stage| stage.retracted);
        assert!(retracted >= stage.to_retract, "{what}: {retracted} retracted of {stage:#?}");
    }
}

#[test]
fn each_edit_is_told_with_its_reason_before_it_runs() {
    type Edit<'a> = (&'a str, fn(&mut Project), &'a [&'a str], &'a [&'a str]);
    let edits: &[Edit<'_>] = &[
        ("nothing", |_| {}, &[], &[]),
        ("touch", |p| p.write("a", "one\ntwo\nthree"), &[], &[]),
        (
            "file changed",
            |p| p.write("b", "4\n5"),
            &[],
            &[
                "texts: 1 file changed",
                "lines: 1? file changed",
                "counts: 2? file changed",
                "total: 1? `counts` runs before it",
            ],
        ),
        ("file added", |p| p.write("d", "seven"), &[], &["texts: 1 new file", "lines: 1? new file"]),
        (
            "file removed",
            |p| std::fs::remove_file(p.path("in/sub/c")).unwrap(),
            &[],
            &["total: 1 `counts` changed", "shares: 5? `total` runs before it", "longest: 1 `lines` changed"],
        ),
        (
            "file renamed",
            |p| std::fs::rename(p.path("in/sub/c"), p.path("in/e")).unwrap(),
            &[],
            &["total: 1 `counts` changed"],
        ),
        (
            "a parameter changed",
            |_| {},
            &["stage.counts.add=1"],
            &["counts: 6 `add` 0 -> 1", "total: 1? `counts` runs before it", "shares: 6? `total` runs before it"],
        ),
        (
            "a transient stage's parameter changed",
            |_| {},
            &["stage.upper.suffix=!"],
            &["counts: 6 `upper`: `suffix` \"\" -> \"!\"", "longest: 1 `upper`: `suffix` \"\" -> \"!\""],
        ),
        (
            "stage added",
            |p| {
                p.toml +=
                    "[stage.more]\nkind = \"twice\"\ninput = \"counts_of\"\n".replace("counts_of", "lines").as_str()
            },
            &[],
            &["more: 6 stage is new"],
        ),
        ("stage removed", |p| p.toml = p.toml.replace(LONGEST, ""), &[], &[]),
    ];
    for (name, edit, sets, wanted) in edits {
        let mut project = Project::new(FILES);
        project.toml = project.toml.replace("log = \"LOG\"", "log = \"LOG\"\nadd = 0");
        project.toml = project.toml.replace("kind = \"upper\"", "kind = \"upper\"\nsuffix = \"\"");
        let first = explained(&project, &[]);
        assert!(first.stages.iter().all(|stage| stage.known == 0), "{first:#?}");
        check("first run", &first, &project.run());
        edit(&mut project);
        let told = explained(&project, sets);
        let all = reasons(&told);
        for reason in *wanted {
            assert!(all.iter().any(|told| told == reason), "{name}: no `{reason}` in {all:#?}");
        }
        assert!(!wanted.is_empty() || all.is_empty(), "{name}: {all:#?}");
        let done = project.run_with(sets, |_| {});
        check(name, &told, &done);
        let after = explained(&project, sets);
        assert!(after.is_nothing(), "{name}: {:#?}", after);
        assert_eq!(executed(&project.run_with(sets, |_| {})), [], "{name}");
    }
}

#[test]
fn what_is_taken_back_is_told() {
    let mut project = Project::new(FILES);
    project.run();
    std::fs::remove_file(project.path("in/b")).unwrap();
    project.toml = project.toml.replace(LONGEST, "");
    let told = explained(&project, &[]);
    let gone = &told.stage("lines").unwrap().retractions;
    assert_eq!(
        (gone[0].why.as_str(), gone[0].count, &gone[0].examples[..]),
        ("file gone", 2, &["b#0".into(), "b#1".into()][..])
    );
    assert_eq!(told.stage("longest").unwrap().to_retract, 1);
    check("retraction", &told, &project.run());
}

#[test]
fn bad_units_are_quarantined_and_failed_ones_tried_again() {
    let project = Project::new(&[("a", "one\nBAD line"), ("b", "FAIL file")]);
    project.run();
    let told = explained(&project, &[]);
    let texts = told.stage("texts").unwrap();
    assert_eq!((texts.to_run, texts.reasons[0].why.as_str()), (1, "failed before, is tried again"));
    assert_eq!(told.stages.iter().map(|stage| stage.quarantined).sum::<u64>(), 1, "{told:#?}");
}

/// Random edits: nothing runs that was not told, and nothing that was sure is left out.
#[test]
fn random_edits_run_as_told() {
    for seed in 1..4u64 {
        let project = Project::new(FILES);
        let mut draw = seed;
        let mut next = |below: u64| {
            draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (draw >> 33) % below
        };
        project.run();
        for step in 0..8 {
            for _ in 0..1 + next(3) {
                let file = format!("f{}", next(6));
                match next(4) {
                    0 => drop(std::fs::remove_file(project.path("in").join(file))),
                    // As many lines as before, so that what is told is no guess.
                    _ => project.write(&file, &format!("{}\n{}\nsame", next(5), next(50))),
                }
            }
            let told = explained(&project, &[]);
            check(&format!("seed {seed}, step {step}"), &told, &project.run());
            assert!(explained(&project, &[]).is_nothing(), "seed {seed}, step {step}");
        }
    }
}
