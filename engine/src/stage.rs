//! Stage, operator, port: all that a stage author has to know.
//!
//! A [`Stage`] is plain data from the TOML: it says what is wanted and opens nothing. An [`Operator`] is what a pool or
//! device thread runs: it owns weights and buffers, and is opened at its first miss. A run whose results are all in the
//! store opens no operator.
//!
//! What an operator may depend on: its parameters, the rows it is given, whole files that are parameters
//! ([`InputFile`]), and [`Unit::seed`]. Never a name, a path, a clock, a thread count or its companions in a batch: the
//! engine keys results by content, and computes two copies of one video once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fingerprint::Hash;
use crate::pool::{Cancel, Progress};
use crate::store::{Blobs, Scratch};

/// The error of an operator: it concerns all units of the call. Bad data of one unit is no error but an
/// [`Output::reject`].
pub type StageError = Box<dyn std::error::Error + Send + Sync>;

/// A table that stages exchange: its name in messages, and its Arrow schema.
#[derive(Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    pub schema: fn() -> SchemaRef,
}

/// How much of an input table one unit of work takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// One row: the stage runs once per row. A stage has at most one such port.
    Row,
    /// The whole table, or one shard of it where [`Stage::shards`] says so: training, export.
    Whole,
}

/// A named input, checked by the planner before anything runs.
#[derive(Clone, Copy)]
pub struct Port {
    pub name: &'static str,
    pub table: &'static Table,
    pub take: Take,
    /// May be left unconnected; [`Unit::table`] then gives `None`.
    pub optional: bool,
}

impl Port {
    /// The stage runs once per row of this table.
    pub const fn row(name: &'static str, table: &'static Table) -> Port {
        Port { name, table, take: Take::Row, optional: false }
    }

    /// The stage sees the complete table, once nothing more can arrive in this round.
    pub const fn whole(name: &'static str, table: &'static Table) -> Port {
        Port { name, table, take: Take::Whole, optional: false }
    }

    pub const fn optional(self) -> Port {
        Port { optional: true, ..self }
    }
}

/// Which kind of thread runs the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Any thread of the pool; every pool thread opens its own operator.
    Cpu,
    /// A thread that owns a device; it forms batches of up to `run.batch` units. Every device's thread opens its own
    /// operator.
    Device,
}

/// Where published files of a stage stand outside the store. The engine writes, restores and removes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub path: PathBuf,
    /// `true`: each change makes a new directory `path/v000001`, …; unchanged files are hard links, and the symbolic
    /// link `path/latest` is swapped by rename, so readers never see a half-written state.
    /// `false`: files stand directly under `path`.
    pub versioned: bool,
}

/// What a TOML table `[stage.<id>]` declares, parsed. See the module's documentation for its duties.
///
/// Derive `Serialize` and `Deserialize` with `#[serde(deny_unknown_fields)]`; every default written in by serde is part
/// of the fingerprint. Wrap paths in [`InputFile`] or [`Location`], so that the fingerprint takes a file's content and
/// not its name.
pub trait Stage: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `"encode"`: folder name, module name, `kind` in TOML.
    const KIND: &'static str;
    /// Raise it when equal inputs and params give other bytes.
    const VERSION: u32;
    /// One line for `vw2-pipe stages`.
    const ABOUT: &'static str;
    /// A TOML example that plans: `include_str!("example.toml")`.
    const EXAMPLE: &'static str;
    const INPUTS: &'static [Port];
    const OUTPUT: &'static Table;

    /// Params as the user wrote them, to params as they are parsed: a word that stands for several values (a recipe) gives
    /// way to these, so that the fingerprint has the values.
    fn expand(params: toml::Table) -> Result<toml::Table, String> {
        Ok(params)
    }

    /// Params that parse but make no sense.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs::Cpu
    }

    /// `Some(n)`: whole ports are cut into `n` shards by a hash of the row id; one unit per non-empty shard.
    fn shards(&self) -> Option<u32> {
        None
    }

    /// `true` where the one row that it yields is a checkpoint, trained on whole tables: `on_change` may then say `warm` or
    /// `hold`, and with `warm` the operator starts from [`Unit::parent`]. Such a stage has no row port and no shards.
    fn trains(&self) -> bool {
        false
    }

    /// A source stage (no ports) lists its files here; each becomes a unit with [`Unit::file`].
    fn scan(&self, _found: &mut Scan) -> Result<(), StageError> {
        Ok(())
    }

    /// Folders or files of a source stage whose changes `run --watch` listens to.
    fn watched(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The id of an output row, from the id of its unit and the name that the operator gave to [`Output::push`].
    /// Pure. Default: `unit` where `row` is empty, else `unit#row`.
    fn row_id(&self, unit: &str, row: &str) -> String {
        if row.is_empty() { unit.to_owned() } else { format!("{unit}#{row}") }
    }

    /// `true` where the result depends on the unit's id (annotations are looked up by a video's name): the id then is
    /// part of the key, and copies of one file are computed each for itself.
    fn named(&self) -> bool {
        false
    }

    /// `true` where the operator reads [`Unit::file`], the file that a row goes back to: the file's content then is part of
    /// the key. Units of other stages have no file, so they cannot depend on one; a source stage always reads its files.
    fn reads_file(&self) -> bool {
        false
    }

    /// Where files of the output are published outside the store.
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// Loads what processing needs. Runs on the thread that will own the operator.
    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError>;
}

/// What a pool or device thread runs.
pub trait Operator {
    /// Computes each unit by itself: [`Output::push`] its rows, or [`Output::reject`] it. A unit with neither yields no
    /// rows. `Err` (or a panic) concerns the whole call: the engine bisects the batch to find the unit at fault.
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError>;

    /// Peak bytes that processing this unit will hold; taken from `runtime.memory` before it starts.
    fn memory_bytes(&self, _unit: &Unit) -> u64 {
        1 << 20
    }
}

/// What an operator is opened with.
#[derive(Clone)]
pub struct Context {
    /// The one that this operator's thread owns: `auto | cpu | cuda:0 | wgpu:0`.
    pub device: String,
    /// The whole run's byte budget, `runtime.memory`.
    pub memory_bytes: u64,
    /// Content-addressed files of the store.
    pub blobs: Blobs,
    /// Long work leaves here how far it has come, for its next try if it is cut short.
    pub scratch: Scratch,
    /// Long work (training) reports steps here.
    pub progress: Progress,
    /// Long work checks this between steps and returns [`Interrupted`].
    pub cancel: Cancel,
}

/// The error by which long work answers a cancellation: not memoised, run again next time.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// One thing to compute: a row (with whatever whole tables the stage takes), a shard, or a source file.
#[derive(Clone)]
pub struct Unit {
    /// For messages only; see the module's documentation.
    pub id: Arc<str>,
    /// Hash of everything that determines the result.
    pub key: Hash,
    /// The file that this unit goes back to, for stages with [`Stage::reads_file`]; its content is covered by the key.
    pub file: Option<Arc<Path>>,
    pub(crate) row: Option<RecordBatch>,
    pub(crate) row_port: &'static str,
    pub(crate) tables: Vec<(&'static str, Arc<dyn Rows>)>,
    pub(crate) parent: Option<RecordBatch>,
}

impl Unit {
    /// The one row (a batch of one row) that came in at a [`Port::row`]; the plan guarantees that it is there.
    pub fn row(&self, port: &str) -> &RecordBatch {
        assert_eq!(port, self.row_port, "a stage asks only for the ports that it declares");
        self.row.as_ref().expect("the engine fills the row port before it calls an operator")
    }

    /// The rows that came in at a [`Port::whole`], sorted by id; `None` where an optional port is unconnected.
    pub fn table(&self, port: &str) -> Option<&dyn Rows> {
        self.tables.iter().find(|(name, _)| *name == port).map(|(_, rows)| rows.as_ref())
    }

    /// The row that the stage publishes now (a batch of one row), for a stage that [trains](Stage::trains) on from it;
    /// `None` unless `on_change = "warm"`, and where nothing is published. It is covered by the key.
    pub fn parent(&self) -> Option<&RecordBatch> {
        self.parent.as_ref()
    }

    /// For random draws: derived from the key, so equal work draws equal numbers.
    pub fn seed(&self) -> u64 {
        u64::from_le_bytes(self.key.0[..8].try_into().expect("a hash has 32 bytes"))
    }
}

/// A complete table, sorted by row id. Rows are read on demand; where the table is transient (decoded frames), reading a
/// row computes it anew, so an epoch over more data than memory holds is fine.
pub trait Rows: Send + Sync {
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn id(&self, index: usize) -> &str;
    fn content(&self, index: usize) -> Hash;
    /// A batch of one row. `Err` for a transient row says why it cannot be computed.
    fn row(&self, index: usize) -> Result<RecordBatch, StageError>;
}

/// What an operator yields, per unit.
pub struct Output {
    pub(crate) results: Vec<UnitResult>,
    pub(crate) keys: Vec<Hash>,
}

/// The outcome of one unit.
#[derive(Clone, Debug)]
pub(crate) enum UnitResult {
    Rows(Vec<OutputRow>),
    Bad(String),
    Transient(String),
}

/// One row of output, before the engine names and stores it.
#[derive(Clone, Debug)]
pub struct OutputRow {
    /// The row's name within its unit; see [`Stage::row_id`].
    pub name: String,
    /// Exactly one row of the stage's output schema.
    pub batch: RecordBatch,
    /// Blobs to publish under [`Stage::placement`]: relative path and content. `{id}` in the path stands for the row's id.
    pub files: Vec<(String, Hash)>,
}

impl Output {
    pub(crate) fn for_units(units: &[Unit]) -> Output {
        Output { results: vec![UnitResult::Rows(Vec::new()); units.len()], keys: units.iter().map(|u| u.key).collect() }
    }

    fn slot(&mut self, unit: &Unit) -> &mut UnitResult {
        let index = self.keys.iter().position(|k| *k == unit.key);
        &mut self.results[index.expect("an operator answers only for units that it was given")]
    }

    /// Adds one output row. `name` tells rows of one unit apart and is empty where there is only one.
    pub fn push(&mut self, unit: &Unit, name: impl Into<String>, batch: RecordBatch) {
        self.push_with_files(unit, name, batch, Vec::new());
    }

    /// Adds one output row whose blobs are published as files under [`Stage::placement`].
    pub fn push_with_files(
        &mut self,
        unit: &Unit,
        name: impl Into<String>,
        batch: RecordBatch,
        files: Vec<(String, Hash)>,
    ) {
        assert_eq!(batch.num_rows(), 1, "an output row is a batch of one row");
        if let UnitResult::Rows(rows) = self.slot(unit) {
            rows.push(OutputRow { name: name.into(), batch, files });
        }
    }

    /// The unit's data is bad: remembered, quarantined, not tried again until its content changes.
    pub fn reject(&mut self, unit: &Unit, reason: impl Into<String>) {
        *self.slot(unit) = UnitResult::Bad(reason.into());
    }

    /// The unit failed for a reason that may pass (a file vanished, a disk is full): retried, never remembered.
    pub fn retry(&mut self, unit: &Unit, reason: impl Into<String>) {
        *self.slot(unit) = UnitResult::Transient(reason.into());
    }
}

/// Collects the files of a source stage.
#[derive(Default)]
pub struct Scan {
    pub(crate) files: Vec<(String, PathBuf)>,
    pub(crate) bad: Vec<(String, PathBuf, String)>,
}

impl Scan {
    /// A file and the id of its unit (its path below the source's root, with `/`).
    pub fn file(&mut self, id: impl Into<String>, path: impl Into<PathBuf>) {
        self.files.push((id.into(), path.into()));
    }

    /// An entry that cannot be read (no permission, a symbolic link in a loop): goes to quarantine.
    pub fn reject(&mut self, id: impl Into<String>, path: impl Into<PathBuf>, reason: impl Into<String>) {
        self.bad.push((id.into(), path.into(), reason.into()));
    }
}

/// A whole file as a parameter: weights, annotations. In TOML a path; in the fingerprint its content's hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "FileTag")]
pub struct InputFile(pub PathBuf);

/// A path that says where, never what (a source's root, an output's folder): in no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathTag")]
pub struct Location(pub PathBuf);

/// A parameter that says how, never what (how often to save what has been done): in no fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "T", into = "HowTag<T>", bound(serialize = "T: Serialize + Clone", deserialize = "T: Deserialize<'de>"))]
pub struct How<T>(pub T);

/// How [`How`] looks in canonical params; the fingerprint leaves it out.
#[derive(Serialize)]
pub(crate) struct HowTag<T> {
    #[serde(rename = "$how")]
    value: T,
}

/// How [`InputFile`] looks in canonical params; the fingerprint replaces it by the content's hash.
#[derive(Serialize)]
pub(crate) struct FileTag {
    #[serde(rename = "$file")]
    path: PathBuf,
}

/// How [`Location`] looks in canonical params; the fingerprint leaves it out.
#[derive(Serialize)]
pub(crate) struct PathTag {
    #[serde(rename = "$path")]
    path: PathBuf,
}

impl From<PathBuf> for InputFile {
    fn from(path: PathBuf) -> Self {
        InputFile(path)
    }
}

impl From<InputFile> for FileTag {
    fn from(file: InputFile) -> Self {
        FileTag { path: file.0 }
    }
}

impl<T> From<T> for How<T> {
    fn from(value: T) -> Self {
        How(value)
    }
}

impl<T> From<How<T>> for HowTag<T> {
    fn from(how: How<T>) -> Self {
        HowTag { value: how.0 }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Location(path)
    }
}

impl From<Location> for PathTag {
    fn from(path: Location) -> Self {
        PathTag { path: path.0 }
    }
}

/// One row of the stage table: a [`Stage`] type with its type erased.
#[derive(Clone, Copy)]
pub struct StageKind {
    pub kind: &'static str,
    pub version: u32,
    pub about: &'static str,
    pub example: &'static str,
    pub inputs: &'static [Port],
    pub output: &'static Table,
    /// Params (a TOML table without the engine's words) to a stage; the error is serde's.
    pub parse: fn(toml::Table) -> Result<Arc<dyn AnyStage>, toml::de::Error>,
}

impl StageKind {
    pub const fn of<S: Stage>() -> StageKind {
        StageKind {
            kind: S::KIND,
            version: S::VERSION,
            about: S::ABOUT,
            example: S::EXAMPLE,
            inputs: S::INPUTS,
            output: S::OUTPUT,
            parse: |params| {
                let params = S::expand(params).map_err(serde::de::Error::custom)?;
                Ok(Arc::new(toml::Value::Table(params).try_into::<S>()?))
            },
        }
    }
}

/// [`Stage`] with its type erased: what the planner and the runtime hold.
pub trait AnyStage: Send + Sync {
    /// The params with defaults written in, keys sorted.
    fn canonical(&self) -> serde_json::Value;
    fn check(&self) -> Result<(), String>;
    fn needs(&self) -> Needs;
    fn shards(&self) -> Option<u32>;
    fn trains(&self) -> bool;
    fn scan(&self, found: &mut Scan) -> Result<(), StageError>;
    fn watched(&self) -> Vec<PathBuf>;
    fn row_id(&self, unit: &str, row: &str) -> String;
    fn named(&self) -> bool;
    fn reads_file(&self) -> bool;
    fn placement(&self) -> Option<Placement>;
    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError>;
}

impl<S: Stage> AnyStage for S {
    fn canonical(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("params are plain data, which JSON can hold");
        value.sort_all_objects();
        value
    }
    fn check(&self) -> Result<(), String> {
        Stage::check(self)
    }
    fn needs(&self) -> Needs {
        Stage::needs(self)
    }
    fn shards(&self) -> Option<u32> {
        Stage::shards(self)
    }
    fn trains(&self) -> bool {
        Stage::trains(self)
    }
    fn scan(&self, found: &mut Scan) -> Result<(), StageError> {
        Stage::scan(self, found)
    }
    fn watched(&self) -> Vec<PathBuf> {
        Stage::watched(self)
    }
    fn row_id(&self, unit: &str, row: &str) -> String {
        Stage::row_id(self, unit, row)
    }
    fn named(&self) -> bool {
        Stage::named(self)
    }
    fn reads_file(&self) -> bool {
        Stage::reads_file(self)
    }
    fn placement(&self) -> Option<Placement> {
        Stage::placement(self)
    }
    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Stage::open(self, ctx)
    }
}
