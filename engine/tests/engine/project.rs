//! A folder of texts, a store, and runs of a pipeline over them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use arrow::array::StringArray;
use tempfile::TempDir;
use vw2_engine::plan::{Plan, plan};
use vw2_engine::report::Report;
use vw2_engine::run::{Options, run};
use vw2_engine::spec::PipelineSpec;
use vw2_engine::store::{Row, Store};

pub(crate) use crate::full_disk::copy;
use crate::toys::KINDS;

/// Every way in which stages can be connected.
pub(crate) const PIPELINE: &str = r#"
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
store = "transient"

[stage.counts]
kind = "count"
input = "upper"
log = "LOG"

[stage.twice]
kind = "twice"
input = "upper"

[stage.total]
kind = "sum"
input = "counts"

[stage.shares]
kind = "share"
inputs = { lines = "lines", total = "total" }

[stage.longest]
kind = "longest"
input = "upper"

[stage.book]
kind = "export"
input = "lines"
shards = 8
path = "OUT"
"#;

/// The part of [`PIPELINE`] that reads a whole table through a transient stage.
pub(crate) const LONGEST: &str = "[stage.longest]\nkind = \"longest\"\ninput = \"upper\"";

pub(crate) struct Project {
    pub(crate) dir: PathBuf,
    pub(crate) toml: String,
    /// Removes the folder at the end; `None` for a folder that another process owns.
    _temp: Option<TempDir>,
}

impl Project {
    pub(crate) fn new(files: &[(&str, &str)]) -> Project {
        let temp = TempDir::new().unwrap();
        let project = Project { dir: temp.path().to_owned(), toml: PIPELINE.to_owned(), _temp: Some(temp) };
        std::fs::create_dir(project.path("in")).unwrap();
        for (name, text) in files {
            project.write(name, text);
        }
        project
    }

    /// A project that another process has made.
    pub(crate) fn at(dir: PathBuf, toml: String) -> Project {
        Project { dir, toml, _temp: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path("in").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn plan(&self, sets: &[&str]) -> Plan {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let toml = [("IN", "in"), ("LOG", "log"), ("OUT", "out"), ("WEIGHTS", "weights")]
            .iter()
            .fold(self.toml.clone(), |toml, (word, name)| {
                toml.replace(&format!("\"{word}\""), &format!("{:?}", path(name)))
            });
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let spec = PipelineSpec::parse("toy.toml", &toml, &sets).unwrap_or_else(|e| panic!("{e:?}"));
        plan(&spec, KINDS).unwrap_or_else(|e| panic!("{e:?}"))
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path("store")).unwrap()
    }

    pub(crate) fn run(&self) -> Report {
        self.run_with(&[], |_| {})
    }

    pub(crate) fn run_with(&self, sets: &[&str], change: impl FnOnce(&mut Options)) -> Report {
        let plan = self.plan(sets);
        let mut options = Options::of(&plan.runtime);
        options.threads = 2;
        change(&mut options);
        let store = self.store();
        let progress = options.progress.clone();
        let report = within(120, move || run(&plan, &store, &options), || format!("{:#?}", progress.snapshot()));
        report.unwrap_or_else(|e| panic!("{e}"))
    }

    /// The text of the only row that a stage publishes.
    pub(crate) fn text_of(&self, stage: &str) -> Option<String> {
        let rows = self.published();
        let mut rows = rows.iter().filter(|row| row.stage == stage);
        let row = rows.next()?;
        assert!(rows.next().is_none(), "`{stage}` publishes several rows");
        let kind = &self.plan(&[]).stages.into_iter().find(|planned| planned.id == stage).unwrap().kind;
        let batch = self.store().row(&row.content, &(kind.output.schema)()).unwrap();
        Some(batch.column(0).as_any().downcast_ref::<StringArray>().unwrap().value(0).to_owned())
    }

    pub(crate) fn published(&self) -> Vec<Row> {
        self.store().published("toy").unwrap()
    }

    /// What is published, without where it was read from, and the files outside the store.
    pub(crate) fn result(&self) -> (Vec<Row>, BTreeMap<String, Vec<u8>>) {
        let rows = self.published().into_iter().map(|row| Row { origin: None, ..row }).collect();
        (rows, self.out())
    }

    /// The published files.
    pub(crate) fn out(&self) -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = std::fs::read_dir(self.path("out")) else { return BTreeMap::new() };
        let entries = entries.map(|entry| entry.unwrap().path());
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
    }

    /// What a run from scratch publishes.
    pub(crate) fn rebuilt(&self, sets: &[&str]) -> (Vec<Row>, BTreeMap<String, Vec<u8>>) {
        let mut fresh = Project::new(&[]);
        fresh.toml = self.toml.clone();
        std::fs::remove_dir(fresh.path("in")).unwrap();
        copy(&self.path("in"), &fresh.path("in"));
        if self.path("weights").exists() {
            std::fs::copy(self.path("weights"), fresh.path("weights")).unwrap();
        }
        fresh.run_with(sets, |_| {});
        fresh.result()
    }
}

/// Units that each stage executed, stages without any left out.
pub(crate) fn executed(report: &Report) -> Vec<(&str, u64)> {
    let stages = report.stages.iter().filter(|stage| stage.executed > 0);
    stages.map(|stage| (stage.id.as_str(), stage.executed)).collect()
}

/// Fails, instead of hanging, if the work has not ended after so many seconds.
pub(crate) fn within<R: Send + 'static>(
    seconds: u64,
    work: impl FnOnce() -> R + Send + 'static,
    state: impl Fn() -> String,
) -> R {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || send.send(work()));
    match receive.recv_timeout(Duration::from_secs(seconds)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still running after {seconds} s: {}", state()),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("a thread that ends has sent its result"),
        },
    }
}
