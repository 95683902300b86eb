//! A watching run: whatever happens in the folder, what is published at each rest is what a run from scratch publishes.
//!
//! A long session spreads its events over the time and looks at its memory, which has to be flat:
//!
//!     VW2_WATCH_MINUTES=30 VW2_WATCH_EVENTS=1000 cargo test -p vw2-engine --test engine watching -- --nocapture

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use vw2_engine::report::{Outcome, Report};
use vw2_engine::run::{Options, watch};
use vw2_engine::store::{Row, Store};

use crate::project::Project;

const SETTLE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(30);

/// Small numbers from a seed.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Starts a watching run in a thread; gives what it reports, and what ends it.
pub(crate) fn start(project: &Project) -> (mpsc::Receiver<Report>, impl FnOnce() -> Report) {
    let plan = project.plan(&[]);
    let mut options = Options::of(&plan.runtime);
    options.threads = 2;
    let (cancel, store) = (options.cancel.clone(), project.store());
    let (sender, reports) = mpsc::channel();
    let told = move |report: &Report| sender.send(report.clone()).unwrap_or_default();
    let session = std::thread::spawn(move || watch(&plan, &store, &options, SETTLE, told).unwrap());
    let end = move || {
        cancel.cancel();
        session.join().unwrap()
    };
    (reports, end)
}

/// What is published, without opening the store that the session holds.
fn rows(project: &Project) -> Vec<Row> {
    let store = Store::open_read(project.path("store")).unwrap();
    store.published("toy").unwrap().into_iter().map(|row| Row { origin: None, ..row }).collect()
}

/// Whether the published files are these. Rows are published before files, and both may change while one looks.
fn files_are(project: &Project, wanted: &BTreeMap<String, Vec<u8>>) -> bool {
    let out = project.path("out");
    let is = |name: &String, bytes: &Vec<u8>| std::fs::read(out.join(name)).is_ok_and(|found| found == *bytes);
    std::fs::read_dir(&out).map_or(0, Iterator::count) == wanted.len() && wanted.iter().all(|(n, b)| is(n, b))
}

/// Memory of this process that is in use, which is the session's but for a few small things of the test.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The last third of the session needs at most a tenth more than the second one. The first one is left out: there, caches
/// are filled.
fn is_flat(samples: &[u64]) {
    let third = samples.len() / 3;
    let most = |from: usize| samples[from..from + third].iter().max().copied().unwrap_or(0);
    let [first, second, last] = [0, third, samples.len() - third].map(most);
    eprintln!("most memory in use, by thirds of the session: {first}, {second}, {last} KiB");
    assert!(last * 10 <= second * 11, "memory grows: at most {second} KiB in the second third, {last} KiB in the last");
}

#[test]
fn whatever_happens_is_published_as_a_rebuild_would() {
    let seed = std::env::var("VW2_SEED").map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    let events: u64 = std::env::var("VW2_WATCH_EVENTS").map_or(60, |text| text.parse().unwrap());
    let minutes: Option<u32> = std::env::var("VW2_WATCH_MINUTES").ok().map(|text| text.parse().unwrap());
    eprintln!("VW2_SEED={seed} VW2_WATCH_EVENTS={events}");
    let pause = minutes.map(|minutes| Duration::from_secs(60) * minutes / events as u32);
    let mut memory = Vec::new();
    let mut draws = Draws(seed);
    let project = Project::new(&[("a.txt", "one\ntwo"), ("b.txt", "BAD b")]);
    let (reports, end) = start(&project);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().outcome, Outcome::Done);
    for _ in 0..events {
        let name = format!("{}.txt", draws.below(12));
        let (path, other) =
            (project.path("in").join(&name), project.path("in").join(format!("{}.txt", draws.below(12))));
        match draws.below(8) {
            0 | 1 => drop(std::fs::remove_file(&path)),
            2 => drop(std::fs::rename(&path, &other)),
            3 => drop(std::fs::copy(&path, &other)),
            4 => project.write(&name, &format!("BAD {}", draws.below(4))),
            _ => project.write(&name, &format!("line {}\nline {}", draws.below(30), draws.below(30))),
        }
        match pause {
            Some(pause) => {
                std::thread::sleep(pause);
                memory.extend(resident_kib());
                reports.try_iter().for_each(drop);
            }
            None if draws.below(5) == 0 => std::thread::sleep(SETTLE * 2),
            None => {}
        }
    }
    if pause.is_some() {
        is_flat(&memory);
    }
    let rebuilt = project.rebuilt(&[]);
    let began = Instant::now();
    while (rows(&project) != rebuilt.0 || !files_are(&project, &rebuilt.1)) && began.elapsed() < PATIENCE {
        reports.recv_timeout(SETTLE).ok();
    }
    end();
    let ours = project.result();
    assert!(ours.1 == rebuilt.1, "other files, VW2_SEED={seed}");
    let only = |a: &[Row], b: &[Row]| a.iter().filter(|row| !b.contains(row)).cloned().collect::<Vec<Row>>();
    assert_eq!((only(&ours.0, &rebuilt.0), only(&rebuilt.0, &ours.0)), (vec![], vec![]), "VW2_SEED={seed}");
    let again = project.run();
    assert!(again.stages.iter().all(|stage| stage.executed + stage.added + stage.retracted == 0), "{again}");
}

#[test]
fn a_file_that_is_being_written_waits_and_one_that_goes_is_taken_back() {
    let project = Project::new(&[("a.txt", "one")]);
    let (reports, end) = start(&project);
    let first = reports.recv_timeout(PATIENCE).unwrap();
    assert_eq!(first.stage("texts").unwrap().added, 1);
    // Written in steps that are closer together than the time a file has to rest.
    let mut text = String::new();
    for part in ["two ", "and ", "three"] {
        text += part;
        project.write("b.txt", &text);
        std::thread::sleep(SETTLE / 3);
    }
    let second = reports.recv_timeout(PATIENCE).unwrap();
    let texts = second.stage("texts").unwrap();
    assert_eq!((texts.executed, texts.added, texts.retracted), (1, 1, 0), "{second}");
    assert!(rows(&project).iter().any(|row| row.stage == "lines" && row.id == "b.txt#0"));

    std::fs::remove_file(project.path("in/b.txt")).unwrap();
    let third = reports.recv_timeout(PATIENCE).unwrap();
    assert_eq!(third.stage("texts").unwrap().retracted, 1, "{third}");
    assert!(!rows(&project).iter().any(|row| row.id.starts_with("b.txt")));
    end();
}
