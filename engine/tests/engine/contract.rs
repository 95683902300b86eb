//! Incremental equals rebuild: after any sequence of edits and deaths, what is published is what an empty store would get,
//! and only what is not known yet is computed.
//!
//! A sequence is drawn from a seed. Each step edits files or parameters, then runs; now and then the process dies at a
//! durable write on the way. A model of the pipeline, which knows nothing of the engine, says beforehand how many units each
//! stage computes. Where a sequence fails, shorter ones of it are tried, and the shortest that fails is told.
//!
//!     VW2_SEQUENCES=2000 VW2_SEED=7 cargo test -p vw2-engine --test engine contract -- --nocapture

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use vw2_engine::run::{Options, run};
use vw2_engine::store::Row;

use crate::project::Project;

/// What one step does before it runs.
#[derive(Clone, Debug, PartialEq)]
enum Edit {
    Write(u64, Vec<String>),
    Remove(u64),
    Rename(u64, u64),
    Copy(u64, u64),
    Truncate(u64),
    Touch(u64),
    /// Parameter `add` of `counts`, and suffix of `upper`.
    Add(u64),
    Suffix(&'static str),
    /// The stage `twice` leaves the pipeline, or comes back.
    Twice(bool),
    Workers(u64),
    /// The run dies at its n-th durable write, and is run again.
    Die(u64),
}

/// Small numbers from a seed.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn edit(&mut self) -> Edit {
        let (file, other) = (self.below(5), self.below(5));
        match self.below(14) {
            0..4 => Edit::Write(file, (0..self.below(4)).map(|_| self.line()).collect()),
            4 => Edit::Remove(file),
            5 => Edit::Rename(file, other),
            6 => Edit::Copy(file, other),
            7 => Edit::Truncate(file),
            8 => Edit::Touch(file),
            9 => Edit::Add(self.below(3)),
            10 => Edit::Suffix(["", "!", "?"][self.below(3) as usize]),
            11 => Edit::Twice(self.below(2) == 0),
            12 => Edit::Workers(1 + self.below(3)),
            _ => Edit::Die(1 + self.below(12)),
        }
    }

    fn line(&mut self) -> String {
        match self.below(8) {
            0 => format!("BAD {}", self.below(3)),
            n => format!("line {}", n + self.below(5)),
        }
    }
}

/// What stands in the folder and in the pipeline, and which units were ever computed.
#[derive(Clone, Default)]
struct Model {
    files: BTreeMap<u64, Vec<String>>,
    add: u64,
    suffix: &'static str,
    twice: bool,
    workers: u64,
    /// By stage: the units whose result is known, named by all that determines it.
    known: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Model {
    fn new() -> Model {
        Model { twice: true, workers: 1, ..Model::default() }
    }

    /// Lines of all files under their ids, sorted. A file whose first line starts with BAD is a bad file.
    fn lines(&self) -> Vec<(String, &String)> {
        let mut lines = Vec::new();
        for (file, text) in self.files.iter().filter(|(_, text)| !bad_file(text)) {
            lines.extend(text.iter().enumerate().map(|(index, line)| (format!("{file}#{index}"), line)));
        }
        lines.sort();
        lines
    }

    /// The units of each stage as things stand, by what determines them.
    fn units(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
        let mut units: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        let mut unit = |stage, key: String| {
            units.entry(stage).or_default().insert(key);
        };
        for text in self.files.values() {
            unit("texts", text.join("\n"));
            if !bad_file(text) {
                unit("lines", text.join("\n"));
            }
        }
        let lines = self.lines();
        let mut counts = Vec::new();
        // `upper` rejects bad lines, so the stages behind it never see them.
        for (id, line) in lines.iter().filter(|(_, line)| !line.starts_with("BAD")) {
            unit("counts", format!("{line} {} {}", self.suffix, self.add));
            if self.twice {
                unit("twice", format!("{line} {}", self.suffix));
            }
            counts.push(format!("{id} {}", line.len() as u64 + self.suffix.len() as u64 + self.add));
        }
        if !counts.is_empty() {
            unit("total", counts.join(","));
        }
        units
    }
}

fn bad_file(text: &[String]) -> bool {
    text.first().is_some_and(|line| line.starts_with("BAD"))
}

/// The pipeline of a model.
fn toml(twice: bool) -> String {
    let mut toml = String::from(
        "name = \"toy\"\n[stage.texts]\nkind = \"list\"\nroot = \"IN\"\n\
         [stage.lines]\nkind = \"split\"\ninput = \"texts\"\n\
         [stage.upper]\nkind = \"upper\"\ninput = \"lines\"\nstore = \"transient\"\nsuffix = \"\"\n\
         [stage.counts]\nkind = \"count\"\ninput = \"upper\"\nadd = 0\nlog = \"LOG\"\n\
         [stage.total]\nkind = \"sum\"\ninput = \"counts\"\n\
         [stage.book]\nkind = \"export\"\ninput = \"lines\"\nshards = 4\npath = \"OUT\"\n",
    );
    if twice {
        toml += "[stage.twice]\nkind = \"twice\"\ninput = \"upper\"\n";
    }
    toml
}

/// Plays a sequence; `Err` says at which step what was wrong.
fn play(edits: &[Edit]) -> Result<(), String> {
    let mut project = Project::new(&[]);
    let mut model = Model::new();
    for (step, edit) in edits.iter().enumerate() {
        let path = |file: &u64| project.path("in").join(file.to_string());
        let mut dies = None;
        match edit {
            Edit::Write(file, text) => {
                project.write(&file.to_string(), &text.join("\n"));
                model.files.insert(*file, text.clone());
            }
            Edit::Remove(file) => {
                if model.files.remove(file).is_some() {
                    std::fs::remove_file(path(file)).unwrap();
                }
            }
            Edit::Rename(file, other) | Edit::Copy(file, other) if file != other => {
                if let Some(text) = model.files.get(file).cloned() {
                    std::fs::copy(path(file), path(other)).unwrap();
                    model.files.insert(*other, text);
                    if matches!(edit, Edit::Rename(..)) {
                        std::fs::remove_file(path(file)).unwrap();
                        model.files.remove(file);
                    }
                }
            }
            Edit::Rename(..) | Edit::Copy(..) => {}
            Edit::Truncate(file) => {
                if let Some(text) = model.files.get_mut(file) {
                    text.truncate(1);
                    project.write(&file.to_string(), &text.join("\n"));
                }
            }
            Edit::Touch(file) => {
                if let Some(text) = model.files.get(file) {
                    project.write(&file.to_string(), &text.join("\n"));
                }
            }
            Edit::Add(add) => model.add = *add,
            Edit::Suffix(suffix) => model.suffix = suffix,
            Edit::Twice(twice) => model.twice = *twice,
            Edit::Workers(workers) => model.workers = *workers,
            Edit::Die(point) => dies = Some(*point),
        }
        project.toml = toml(model.twice);
        let sets = [format!("stage.counts.add={}", model.add), format!("stage.upper.suffix={}", model.suffix)];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        if let Some(point) = dies {
            // Something to do: without it a run passes few durable writes.
            let text = vec![format!("line {step} of {point}"), "and another".to_owned()];
            project.write("4", &text.join("\n"));
            model.files.insert(4, text);
            die(&project, &sets, point);
        }

        let units = model.units();
        let report = project.run_with(&sets, |options| options.workers = model.workers as usize);
        for stage in ["texts", "lines", "counts", "twice", "total"] {
            let executed = report.stage(stage).map_or(0, |stage| stage.executed);
            let needed = units.get(stage);
            let known = model.known.entry(stage).or_default();
            let unknown = needed.map_or(0, |needed| needed.difference(known).count() as u64);
            // A run that died may have kept some of them.
            if if dies.is_some() { executed > unknown } else { executed != unknown } {
                return Err(format!("step {step}: `{stage}` computed {executed} units, expected {unknown}"));
            }
            known.extend(needed.into_iter().flatten().cloned());
        }
        let (ours, rebuilt) = (project.result(), project.rebuilt(&sets));
        if ours != rebuilt {
            let only = |a: &[Row], b: &[Row]| a.iter().filter(|row| !b.contains(row)).cloned().collect::<Vec<Row>>();
            let (more, less) = (only(&ours.0, &rebuilt.0), only(&rebuilt.0, &ours.0));
            return Err(format!("step {step}: beside a rebuild there is {more:?}, and missing is {less:?}"));
        }
    }
    Ok(())
}

/// Runs in a process of its own that dies at the n-th durable write, if there are so many.
fn die(project: &Project, sets: &[&str], point: u64) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contract::any_sequence_of_edits_ends_as_a_rebuild", "--nocapture"])
        .env("CONTRACT_DIR", &project.dir)
        .env("CONTRACT_TOML", &project.toml)
        .env("CONTRACT_SETS", sets.join("\n"))
        .env("CONTRACT_POINT", point.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.unwrap();
}

fn am_child() -> bool {
    let Ok(dir) = std::env::var("CONTRACT_DIR") else { return false };
    let value = |name: &str| std::env::var(name).unwrap();
    let project = Project::at(dir.into(), value("CONTRACT_TOML"));
    let sets = value("CONTRACT_SETS");
    let plan = project.plan(&sets.lines().collect::<Vec<&str>>());
    let store = project.store();
    vw2_engine::store::abort_at(value("CONTRACT_POINT").parse().unwrap());
    run(&plan, &store, &Options { threads: 2, ..Options::of(&plan.runtime) }).unwrap();
    true
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
            let mut draws = Draws(seed.wrapping_mul(1_000_003).wrapping_add(sequence));
            let edits: Vec<Edit> = (0..3 + draws.below(5)).map(|_| draws.edit()).collect();
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
