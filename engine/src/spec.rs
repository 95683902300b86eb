//! What the TOML says, with nothing looked up yet: no kind is known here and no file is opened.
//!
//! ```toml
//! name = "codes"
//!
//! [params]                      # values for ${params.…}
//! seed = 7
//!
//! [runtime]                     # how: never part of a fingerprint
//! memory = "1GiB"
//!
//! [stage.clips]
//! kind = "slice"                # the engine's words: kind, input, inputs, run, store, on_change
//! input = "videos"
//! stride = 16                   # every other key is a parameter of the kind
//! ```

mod document;
mod fault;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::{Table, Value};

pub(crate) use document::Spans;
pub(crate) use fault::{Faults, did_you_mean, listed};
pub use fault::{SourceText, SpecError, SpecErrors};

use crate::error::{Error, Result};

/// Keys of `[runtime]`.
pub(crate) const RUNTIME_KEYS: &[&str] = &["device", "memory", "store", "workers", "threads", "max_quarantined"];
/// Keys of a stage's `run`.
pub(crate) const RUN_KEYS: &[&str] = &["batch", "max_wait_ms"];
/// The engine's words in a stage.
pub(crate) const STAGE_KEYS: &[&str] = &["kind", "input", "inputs", "run", "store", "on_change"];
const FILE_KEYS: &[&str] = &["name", "params", "runtime", "stage"];

/// A pipeline as its TOML says it, with `--set` and `${params.x}` applied.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Published rows are kept under this name.
    pub name: String,
    pub params: Table,
    pub runtime: Runtime,
    /// In the file's order.
    pub stages: Vec<StageSpec>,
    /// For messages of later steps.
    pub source: SourceText,
}

/// How a pipeline runs; never what it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// `auto | cpu | cuda:0 | wgpu:0`, or several with commas, which the program takes apart.
    pub device: String,
    /// Bytes that work in flight may hold.
    pub memory: u64,
    pub store: PathBuf,
    /// Timely workers.
    pub workers: usize,
    /// Pool threads; 0: one per core.
    pub threads: usize,
    pub max_quarantined: MaxQuarantined,
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime {
            device: "auto".to_owned(),
            memory: 2 << 30,
            store: PathBuf::from(".vw2"),
            workers: 1,
            threads: 0,
            max_quarantined: MaxQuarantined::None,
        }
    }
}

/// How many units may end in quarantine before the run counts as failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MaxQuarantined {
    /// No limit.
    #[default]
    None,
    Count(u64),
    /// Of all units, 0 to 100.
    Percent(f64),
}

impl MaxQuarantined {
    /// Whether `quarantined` of `units` are too many.
    pub fn is_exceeded(self, quarantined: u64, units: u64) -> bool {
        match self {
            MaxQuarantined::None => false,
            MaxQuarantined::Count(limit) => quarantined > limit,
            MaxQuarantined::Percent(limit) => quarantined as f64 * 100.0 > limit * units as f64,
        }
    }
}

/// One `[stage.<id>]`.
#[derive(Clone, Debug)]
pub struct StageSpec {
    pub id: String,
    pub kind: String,
    pub inputs: Inputs,
    pub run: RunSpec,
    pub store: StoreMode,
    pub on_change: OnChange,
    /// Every key that is not the engine's.
    pub params: Table,
    /// Places of keys, from the stage's own table on; the empty path is its header.
    spans: Spans,
}

/// Which stages feed this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inputs {
    None,
    /// `input = "codes"`: feeds the first port that has to be connected.
    First(String),
    /// `inputs = { port = "stage" }`.
    Named(Vec<(String, String)>),
}

/// How a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// Most units in one call of a device stage.
    pub batch: usize,
    /// How long a batch waits to fill.
    pub max_wait_ms: u64,
}

impl Default for RunSpec {
    fn default() -> RunSpec {
        RunSpec { batch: 1, max_wait_ms: 20 }
    }
}

/// Whether results are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreMode {
    #[default]
    Stored,
    /// Computed anew whenever a consumer misses.
    Transient,
}

/// What a training stage does when what it learns from has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChange {
    /// It trains from the start: its checkpoint is that of a rebuild.
    #[default]
    Retrain,
    /// It trains on from the checkpoint that it publishes. That makes the result depend on all that went before.
    Warm,
    /// It keeps the checkpoint that it publishes.
    Hold,
}

impl OnChange {
    pub fn as_str(self) -> &'static str {
        match self {
            OnChange::Retrain => "retrain",
            OnChange::Warm => "warm",
            OnChange::Hold => "hold",
        }
    }
}

impl StageSpec {
    /// Where a key stands; an empty path is the stage's header. `None` for what `--set` gave.
    pub(crate) fn key_span(&self, path: &[&str]) -> Option<Range<usize>> {
        self.spans.key(&document::path(path))
    }

    /// Where the value of a key stands, or else of the nearest key around it, or else the header.
    pub(crate) fn value_span(&self, path: &[String]) -> Option<Range<usize>> {
        self.spans.nearest_value(path).or_else(|| self.spans.key(&[]))
    }
}

impl PipelineSpec {
    /// Reads a file; see [`PipelineSpec::parse`].
    pub fn load(path: &Path, sets: &[String]) -> Result<PipelineSpec> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read pipeline", path))?;
        Ok(PipelineSpec::parse(&path.display().to_string(), &text, sets)?)
    }

    /// Reads TOML text; `name` is how messages call it, `sets` are `key=value` from the command line, later ones win.
    /// `Err` has all faults of the text at once.
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<PipelineSpec, SpecErrors> {
        let source = SourceText { name: name.to_owned(), text: Arc::from(text) };
        let mut faults = Faults::new(source.clone());
        let spec = read(text, sets, source, &mut faults);
        faults.check()?;
        Ok(spec.expect("a text without faults gives a spec"))
    }
}

fn read(text: &str, sets: &[String], source: SourceText, faults: &mut Faults) -> Option<PipelineSpec> {
    let (mut table, mut spans) = document::parse(text, faults)?;
    for text in sets {
        document::set(&mut table, &mut spans, text, faults);
    }
    let params = match table.get("params") {
        Some(Value::Table(params)) => params.clone(),
        _ => Table::new(),
    };
    for part in ["runtime", "stage"] {
        if let Some(value) = table.get_mut(part) {
            document::interpolate(value, &mut document::path(&[part]), &params, &spans, faults);
        }
    }

    let mut file = Section { path: Vec::new(), table, spans: &spans, faults };
    let named = file.table.get("name").is_some_and(|name| name.as_str() != Some(""));
    let name = file.string("name").unwrap_or_default();
    if !named {
        file.faults.add(None, "", "the pipeline has no name", Some("begin the file with `name = \"…\"`".to_owned()));
    }
    file.table("params");
    let runtime = file.section("runtime").map_or_else(Runtime::default, read_runtime);
    let mut stages = Vec::new();
    if let Some(mut section) = file.section("stage") {
        // TOML tables forget their order; places in the text do not.
        let mut ids: Vec<String> = section.table.keys().cloned().collect();
        ids.sort_by_key(|id| spans.key(&document::path(&["stage", id])).map_or(usize::MAX, |span| span.start));
        for id in ids {
            if let Some(stage) = section.section(&id) {
                stages.extend(read_stage(id, stage));
            }
        }
    }
    if stages.is_empty() && file.faults.is_empty() {
        let help = "add a `[stage.<name>]` with a `kind`".to_owned();
        file.faults.add(None, "", "the pipeline has no stages", Some(help));
    }
    file.finish(FILE_KEYS);
    Some(PipelineSpec { name, params, runtime, stages, source })
}

fn read_runtime(mut section: Section<'_>) -> Runtime {
    let default = Runtime::default();
    let memory = section.take("memory").and_then(|value| match parse_size(&value) {
        Some(bytes) => Some(bytes),
        None => section.wrong("memory", &value, "a size as \"512MiB\", \"2GiB\" or a number of bytes"),
    });
    let max_quarantined = section.take("max_quarantined").and_then(|value| match parse_limit(&value) {
        Some(limit) => Some(limit),
        None => section.wrong("max_quarantined", &value, "\"none\", a count, or a share as \"5%\""),
    });
    let runtime = Runtime {
        device: section.string("device").unwrap_or(default.device),
        memory: memory.unwrap_or(default.memory),
        store: section.string("store").map_or(default.store, PathBuf::from),
        workers: section.count("workers", 1).map_or(default.workers, |n| n as usize),
        threads: section.count("threads", 0).map_or(default.threads, |n| n as usize),
        max_quarantined: max_quarantined.unwrap_or_default(),
    };
    section.finish(RUNTIME_KEYS);
    runtime
}

/// `None` where the stage has no usable kind: later steps would only repeat that.
fn read_stage(id: String, mut stage: Section<'_>) -> Option<StageSpec> {
    let header = stage.spans.key(&stage.path);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if id.is_empty() || !id.chars().all(plain) {
        let help = "use letters, digits, `_` and `-`".to_owned();
        stage.faults.add(header.clone(), "this name", format!("`{id}` cannot name a stage"), Some(help));
    }
    if !stage.table.contains_key("kind") {
        let help = "say what it does: `kind = \"…\"`".to_owned();
        stage.faults.add(header, "here", format!("stage `{id}` has no `kind`"), Some(help));
    }
    let kind = stage.string("kind");
    let inputs = read_inputs(&id, &mut stage);
    let mut run = RunSpec::default();
    if let Some(mut section) = stage.section("run") {
        run.batch = section.count("batch", 1).map_or(run.batch, |n| n as usize);
        run.max_wait_ms = section.count("max_wait_ms", 0).unwrap_or(run.max_wait_ms);
        section.finish(RUN_KEYS);
    }
    let store = stage.take("store").and_then(|value| match value.as_str() {
        Some("stored") => Some(StoreMode::Stored),
        Some("transient") => Some(StoreMode::Transient),
        _ => stage.wrong("store", &value, "\"stored\" or \"transient\""),
    });
    let on_change = stage.take("on_change").and_then(|value| {
        let all = [OnChange::Retrain, OnChange::Warm, OnChange::Hold];
        let known = all.into_iter().find(|word| value.as_str() == Some(word.as_str()));
        known.or_else(|| stage.wrong("on_change", &value, "\"retrain\", \"warm\" or \"hold\""))
    });
    let Section { path, table: params, spans, .. } = stage;
    Some(StageSpec {
        kind: kind?,
        id,
        inputs,
        run,
        store: store.unwrap_or_default(),
        on_change: on_change.unwrap_or_default(),
        params,
        spans: spans.below(&path),
    })
}

fn read_inputs(id: &str, stage: &mut Section<'_>) -> Inputs {
    let first = stage.string("input");
    let Some(mut section) = stage.section("inputs") else { return first.map_or(Inputs::None, Inputs::First) };
    let mut ports: Vec<String> = section.table.keys().cloned().collect();
    ports.sort_by_key(|port| section.key_span(port).map_or(usize::MAX, |span| span.start));
    let named = ports.into_iter().filter_map(|port| section.string(&port).map(|from| (port, from))).collect();
    if first.is_some() {
        let at = stage.key_span("inputs");
        let help = "keep `inputs`, and name every port in it".to_owned();
        stage.faults.add(at, "and here", format!("stage `{id}` has both `input` and `inputs`"), Some(help));
    }
    Inputs::Named(named)
}

/// A table on its way to being read: keys are taken out, and what is left at the end is unknown.
struct Section<'a> {
    path: Vec<String>,
    table: Table,
    spans: &'a Spans,
    faults: &'a mut Faults,
}

impl Section<'_> {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    fn below(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.spans.key(&self.below(key))
    }

    fn value_span(&self, key: &str) -> Option<Range<usize>> {
        self.spans.value(&self.below(key))
    }

    /// Notes that the value is not what was wanted.
    fn wrong<T>(&mut self, key: &str, found: &Value, wanted: &str) -> Option<T> {
        let message = format!("{} wants {wanted}, found {found}", document::place(&self.below(key)));
        self.faults.add(self.value_span(key), found.type_str(), message, None);
        None
    }

    fn string(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => self.wrong(key, &other, "a string"),
        }
    }

    fn count(&mut self, key: &str, least: i64) -> Option<u64> {
        match self.take(key)? {
            Value::Integer(count) if count >= least => Some(count as u64),
            other => self.wrong(key, &other, &format!("a whole number of at least {least}")),
        }
    }

    fn table(&mut self, key: &str) -> Option<Table> {
        match self.take(key)? {
            Value::Table(table) => Some(table),
            other => self.wrong(key, &other, "a table"),
        }
    }

    fn section(&mut self, key: &str) -> Option<Section<'_>> {
        let table = self.table(key)?;
        Some(Section { path: self.below(key), table, spans: self.spans, faults: self.faults })
    }

    /// Keys that nobody took are unknown.
    fn finish(self, known: &[&str]) {
        for key in self.table.keys() {
            let place = match self.path.as_slice() {
                [] => "the file".to_owned(),
                path => format!("`[{}]`", path.join(".")),
            };
            let message = format!("unknown key `{key}`; {place} takes {}", listed(known.iter().copied()));
            let help = did_you_mean(key, known.iter().copied());
            self.faults.add(self.key_span(key), "unknown", message, help);
        }
    }
}

/// Bytes: a plain number, or text as "64KiB", "1.5GiB".
fn parse_size(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Integer(bytes) => return u64::try_from(*bytes).ok().filter(|bytes| *bytes > 0),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0), ("", 0)];
    let (number, shift) = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let number = number.trim_end().parse::<f64>().ok()?;
    let bytes = number * (1u64 << shift) as f64;
    (bytes >= 1.0 && bytes < i64::MAX as f64).then_some(bytes as u64)
}

fn parse_limit(value: &Value) -> Option<MaxQuarantined> {
    match value {
        Value::Integer(count) => u64::try_from(*count).ok().map(MaxQuarantined::Count),
        Value::String(text) if text == "none" => Some(MaxQuarantined::None),
        Value::String(text) => {
            let percent = text.strip_suffix('%')?.trim_end().parse::<f64>().ok()?;
            (0.0..=100.0).contains(&percent).then_some(MaxQuarantined::Percent(percent))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
