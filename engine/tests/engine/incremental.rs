//! What an edit makes the engine compute again, and that the result is always the one of a run from scratch.

use std::time::Instant;

use crate::project::{LONGEST, Project, executed};

const FILES: &[(&str, &str)] = &[("a", "one\ntwo\nthree"), ("b", "four\nfive"), ("sub/c", "six\n")];

/// Units of a first run over [`FILES`].
const ALL: &[(&str, u64)] = &[
    ("texts", 3),
    ("lines", 3),
    // For the six lines once each, and for the six rows that `longest` reads.
    ("upper", 12),
    ("counts", 6),
    ("twice", 6),
    ("total", 1),
    ("shares", 6),
    ("longest", 1),
];

#[test]
fn a_first_run_executes_each_unit_once_and_a_second_one_nothing() {
    let project = Project::new(FILES);
    let first = project.run();
    let stages = executed(&first);
    let books = stages.iter().find(|(stage, _)| *stage == "book").unwrap().1;
    assert_eq!(stages.into_iter().filter(|(stage, _)| *stage != "book").collect::<Vec<_>>(), ALL);
    assert!((2..=6).contains(&books), "six lines fall into {books} of 8 shards");
    assert_eq!(first.stages.iter().map(|stage| stage.added).sum::<u64>(), 3 + 6 * 4 + 2 + books);
    let out = project.out();
    assert_eq!(out.len() as u64, books);
    let lines: Vec<String> = out
        .values()
        .flat_map(|file| String::from_utf8_lossy(file).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(lines.len(), 6);
    assert!(lines.contains(&"sub/c#0: six".to_owned()), "{lines:?}");

    let before = project.result();
    let second = project.run();
    assert_eq!(executed(&second), []);
    assert_eq!(second.stages.iter().map(|stage| stage.added + stage.retracted).sum::<u64>(), 0);
    assert_eq!(second.stage("counts").unwrap().reused, 6);
    assert_eq!(project.result(), before);
}

/// Edits after a first run over [`FILES`], with what they execute; `upper` and `book` are left out where they vary.
#[test]
fn an_edit_executes_what_it_affects_and_the_result_is_a_rebuild() {
    /// What it is called, what it does to files, what it sets, what it executes.
    type Edit<'a> = (&'a str, fn(&Project), &'a [&'a str], &'a [(&'a str, u64)]);
    let edits: &[Edit<'_>] = &[
        ("touch", |p| p.write("a", "one\ntwo\nthree"), &[], &[]),
        ("comment", |_| {}, &["runtime.workers=2"], &[]),
        (
            "one line changed",
            |p| p.write("a", "one\n2\nthree"),
            &[],
            &[
                ("texts", 1),
                ("lines", 1),
                ("upper", 1 + 6),
                ("counts", 1),
                ("twice", 1),
                ("total", 1),
                ("shares", 6),
                ("longest", 1),
                ("book", 1),
            ],
        ),
        (
            "file added",
            |p| p.write("d", "seven"),
            &[],
            &[
                ("texts", 1),
                ("lines", 1),
                ("upper", 1 + 7),
                ("counts", 1),
                ("twice", 1),
                ("total", 1),
                ("shares", 7),
                ("longest", 1),
                ("book", 1),
            ],
        ),
        (
            "file removed",
            |p| std::fs::remove_file(p.path("in/sub/c")).unwrap(),
            &[],
            &[("upper", 5), ("total", 1), ("shares", 5), ("longest", 1)],
        ),
        // The rows' ids change, so tables taken as a whole do too, but no single row is computed again.
        (
            "file renamed",
            |p| std::fs::rename(p.path("in/sub/c"), p.path("in/e")).unwrap(),
            &[],
            &[("upper", 6), ("total", 1), ("longest", 1), ("book", 1)],
        ),
        (
            "file copied",
            |p| assert!(std::fs::copy(p.path("in/sub/c"), p.path("in/f")).unwrap() > 0),
            &[],
            &[("upper", 7), ("total", 1), ("shares", 6), ("longest", 1), ("book", 1)],
        ),
        (
            "a parameter changed",
            |_| {},
            &["stage.counts.add=1"],
            &[("upper", 6), ("counts", 6), ("total", 1), ("shares", 6)],
        ),
        (
            "a transient stage's parameter changed",
            |_| {},
            &["stage.upper.suffix=!"],
            &[("upper", 12), ("counts", 6), ("twice", 6), ("total", 1), ("shares", 6), ("longest", 1)],
        ),
    ];
    for (name, edit, sets, expected) in edits {
        let mut project = Project::new(FILES);
        project.toml = project.toml.replace("log = \"LOG\"", "log = \"LOG\"\nadd = 0");
        project.toml = project.toml.replace("kind = \"upper\"", "kind = \"upper\"\nsuffix = \"\"");
        project.toml = project.toml.replace("name = \"toy\"", "name = \"toy\"\n[runtime]\nworkers = 1");
        project.run();
        edit(&project);
        let report = project.run_with(sets, |_| {});
        let (mut found, mut expected) = (executed(&report), expected.to_vec());
        // How many shards a moved or removed line touches depends on the hash of its id.
        if *name != "touch" && *name != "comment" {
            found.retain(|(stage, _)| *stage != "book");
            expected.retain(|(stage, _)| *stage != "book");
        }
        assert_eq!(found, expected, "{name}");
        assert_eq!(project.result(), project.rebuilt(sets), "{name}");
        assert_eq!(executed(&project.run_with(sets, |_| {})), [], "{name}, again");
    }
}

#[test]
fn an_edit_that_is_undone_executes_nothing() {
    let project = Project::new(FILES);
    project.run();
    let before = project.result();
    project.write("a", "other");
    std::fs::remove_file(project.path("in/b")).unwrap();
    let report = project.run();
    assert_eq!(report.stage("lines").unwrap().retracted, 5);
    assert_ne!(project.result(), before);
    project.write("a", FILES[0].1);
    project.write("b", FILES[1].1);
    assert_eq!(executed(&project.run()), []);
    assert_eq!(project.result(), before);
}

#[test]
fn an_empty_source_yields_no_units_and_takes_everything_back() {
    let project = Project::new(&[]);
    assert_eq!(executed(&project.run()), []);
    assert_eq!(project.published(), []);
    project.write("a", "text");
    project.run();
    assert_eq!(project.out().len(), 1);
    std::fs::remove_file(project.path("in/a")).unwrap();
    let report = project.run();
    assert_eq!((executed(&report), project.published()), (vec![], vec![]));
    assert_eq!(project.out().len(), 0);
}

/// Random edits, each followed by a run with other settings, end in what a run from scratch gives.
#[test]
fn random_edits_equal_a_rebuild() {
    for seed in 1..4u64 {
        let project = Project::new(FILES);
        let mut draw = seed;
        let mut next = |below: u64| {
            draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (draw >> 33) % below
        };
        for step in 0..6 {
            for _ in 0..1 + next(3) {
                let file = format!("f{}", next(6));
                match next(4) {
                    0 => drop(std::fs::remove_file(project.path("in").join(file))),
                    1 => project.write(&file, &format!("BAD {}\nx", next(3))),
                    _ => project.write(&file, &format!("{}\n{}\nsame", next(5), next(50))),
                }
            }
            let workers = 1 + next(3) as usize;
            project.run_with(&[], |options| options.workers = workers);
            assert_eq!(project.result(), project.rebuilt(&[]), "seed {seed}, step {step}");
        }
    }
}

#[test]
fn threads_workers_devices_and_batches_do_not_change_a_byte() {
    let files: Vec<(String, String)> =
        (0..90).map(|i| (format!("f{i:02}"), format!("line {i}\nsame\nother {i}"))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut results = Vec::new();
    let runs = [(1, 1, 1, 1, "2GiB"), (2, 3, 2, 2, "1KiB"), (4, 8, 3, 3, "2MiB"), (1, 1, 2, 2, "1KiB")];
    for (workers, batch, threads, devices, memory) in runs {
        let mut project = Project::new(&files);
        let run = format!("kind = \"twice\"\nrun = {{ batch = {batch} }}");
        project.toml = project.toml.replace("kind = \"twice\"", &run);
        project.toml =
            project.toml.replace("name = \"toy\"", &format!("name = \"toy\"\n[runtime]\nmemory = \"{memory}\""));
        let report = project.run_with(&[], |options| {
            (options.workers, options.threads) = (workers, threads);
            options.devices = vec!["cpu".to_owned(); devices];
        });
        assert_eq!(report.stage("counts").unwrap().executed, 181, "equal lines are computed once");
        assert_eq!(report.stage("counts").unwrap().reused, 89);
        results.push(project.result());
    }
    for result in &results[1..] {
        assert_eq!(results[0], *result);
    }
}

#[test]
fn devices_work_side_by_side() {
    let mut project = Project::new(FILES);
    project.toml = project.toml.replace("kind = \"twice\"", "kind = \"twice\"\nmeet = true\nrun = { batch = 1 }");
    let report = project.run_with(&[], |options| options.devices = vec!["one".to_owned(), "two".to_owned()]);
    assert_eq!(report.stage("twice").unwrap().executed, 6);
    assert!(report.quarantined.is_empty(), "each device has to meet the other");
}

#[test]
fn two_consumers_of_a_transient_chain_run_it_once() {
    let mut project = Project::new(FILES);
    // Another transient stage behind the first: two stages read through it, one from before it.
    project.toml = project.toml.replace("[stage.twice]\nkind = \"twice\"\ninput = \"upper\"", "")
        + "[stage.loud]\nkind = \"upper\"\nsuffix = \"!\"\ninput = \"upper\"\nstore = \"transient\"\n\
           [stage.loud_counts]\nkind = \"count\"\nlog = \"LOG\"\ninput = \"loud\"\n\
           [stage.loud_twice]\nkind = \"twice\"\ninput = \"loud\"\n";
    project.toml = project.toml.replace(LONGEST, "");
    let report = project.run();
    for stage in ["upper", "loud", "counts", "loud_counts", "loud_twice"] {
        assert_eq!(report.stage(stage).unwrap().executed, 6, "{stage}");
    }
}

#[test]
fn a_limit_takes_the_first_files_and_a_partial_plan_leaves_other_stages_alone() {
    let project = Project::new(FILES);
    let report = project.run_with(&[], |options| options.limit = Some(2));
    assert_eq!(report.stage("texts").unwrap().executed, 2);
    assert!(project.published().iter().all(|row| !row.id.starts_with("sub")));

    let plan = project.plan(&[]).only("counts").unwrap();
    let options = vw2_engine::run::Options::of(&plan.runtime);
    let report = vw2_engine::run::run(&plan, &project.store(), &options).unwrap();
    assert_eq!(executed(&report), [("texts", 1), ("lines", 1), ("upper", 1), ("counts", 1)]);
    let count = |stage: &str| project.published().iter().filter(|row| row.stage == stage).count();
    assert_eq!((count("counts"), count("twice")), (6, 5));
}

#[test]
fn a_stage_that_leaves_the_pipeline_takes_its_rows_along() {
    let mut project = Project::new(FILES);
    project.run();
    project.toml = project.toml.replace(LONGEST, "");
    let report = project.run();
    assert_eq!(report.stage("longest").unwrap().retracted, 1);
    assert!(project.published().iter().all(|row| row.stage != "longest"));
}

#[test]
fn a_published_file_that_was_lost_is_restored() {
    let project = Project::new(FILES);
    project.run();
    let before = project.out();
    std::fs::remove_file(project.path("out").join(before.keys().next().unwrap())).unwrap();
    assert_eq!(executed(&project.run()), []);
    assert_eq!(project.out(), before);
}

#[test]
fn forty_unchanged_files_take_well_under_a_second() {
    let files: Vec<(String, String)> = (0..40).map(|i| (format!("f{i:02}"), format!("line {i}\nother {i}"))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let project = Project::new(&files);
    project.run();
    let start = Instant::now();
    let report = project.run();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(executed(&report), []);
    eprintln!("no-change run: {:.0} ms", seconds * 1e3);
    // Typically 30 ms; the rest is room for a machine that is busy.
    assert!(seconds < 1.0, "{seconds} s");
}
