//! What the engine costs where stages cost nothing: a pipeline of many files, run for the first time, again, explained, and
//! after one edit, each in a process of its own.
//!
//!     cargo bench -p vw2-engine --profile dev --bench scale            100,000 files
//!     VW2_SCALE=1000000 cargo bench …                                  as many as you like

#[path = "../tests/engine/toys.rs"]
mod toys;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use vw2_engine::explain::{self, explain};
use vw2_engine::plan::plan;
use vw2_engine::run::{Options, run};
use vw2_engine::spec::PipelineSpec;
use vw2_engine::store::Store;

/// Files become texts, lines, lines in capitals: three stored stages, and a fourth that writes shards.
fn pipeline(dir: &Path) -> String {
    let (root, out) = (dir.join("in"), dir.join("out"));
    format!(
        "name = \"scale\"\n[stage.texts]\nkind = \"list\"\nroot = {root:?}\n[stage.lines]\nkind = \"split\"\n\
         input = \"texts\"\n[stage.upper]\nkind = \"upper\"\ninput = \"lines\"\n[stage.book]\nkind = \"export\"\n\
         input = \"upper\"\nshards = 64\nversioned = true\npath = {out:?}\n"
    )
}

fn main() {
    if let Some(dir) = std::env::var_os("VW2_SCALE_DIR") {
        return phase(&PathBuf::from(dir));
    }
    let count: usize = std::env::var("VW2_SCALE").map_or(100_000, |text| text.parse().expect("VW2_SCALE is a number"));
    let temp = tempfile::tempdir().expect("a temporary folder");
    let folder = |index: usize| temp.path().join("in").join(format!("{:04}", index / 1000));
    for index in 0..count {
        if index % 1000 == 0 {
            std::fs::create_dir_all(folder(index)).expect("a folder");
        }
        std::fs::write(folder(index).join(format!("{index}.txt")), format!("clip {index}")).expect("a file");
    }
    eprintln!("{count} files");
    // A file's hash is remembered only when its last change is older than the clock's tick.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let again = || {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        let status = child.env("VW2_SCALE_DIR", temp.path()).status().expect("this program runs");
        assert!(status.success(), "the run failed");
    };
    for what in ["first run", "no change", "no change"] {
        eprint!("{what:10} ");
        again();
    }
    let explained = |what: &str| {
        eprint!("{what:10} ");
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        let status = child.env("VW2_SCALE_DIR", temp.path()).env("VW2_SCALE_EXPLAIN", "").status();
        assert!(status.expect("this program runs").success(), "the explanation failed");
    };
    explained("explained");
    std::fs::write(folder(count / 2).join(format!("{}.txt", count / 2)), "edited").expect("a file");
    explained("explained");
    eprint!("{:10} ", "one edit");
    again();
    std::fs::remove_file(folder(0).join("0.txt")).expect("a file");
    eprint!("{:10} ", "one gone");
    again();
}

/// One run; its figures go to stderr.
fn phase(dir: &Path) {
    let spec = PipelineSpec::parse("scale.toml", &pipeline(dir), &[]).expect("the pipeline parses");
    let plan = plan(&spec, toys::KINDS).expect("the pipeline plans");
    if std::env::var_os("VW2_SCALE_EXPLAIN").is_some() {
        let began = Instant::now();
        let store = Store::open_read(dir.join("store")).expect("the store opens");
        let told = explain(&plan, Some(&store), &explain::Options::default()).expect("the plan is explained");
        let to_run: u64 = told.stages.iter().map(|stage| stage.to_run).sum();
        return eprintln!("{:8.2} s, {to_run:7} units to run", began.elapsed().as_secs_f64());
    }
    let mut options = Options::of(&plan.runtime);
    options.threads = 2;
    let began = Instant::now();
    let store = Store::open(dir.join("store")).expect("the store opens");
    let report = run(&plan, &store, &options).expect("the run ends");
    let seconds = began.elapsed().as_secs_f64();
    let executed: u64 = report.stages.iter().map(|stage| stage.executed).sum();
    let per_unit = if executed > 0 { format!("{:.3} ms", 1e3 * seconds / executed as f64) } else { "-".to_owned() };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned();
    eprintln!("{seconds:8.2} s ({:.1} s of CPU), {executed:7} units, {per_unit} each, peak {peak}", cpu_seconds());
}

/// What this process has used of all cores, in user and kernel; on a busy machine it tells more than the clock.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets, which may hold anything: fields 14 and 15 in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
