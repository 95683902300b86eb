//! Stages over texts. A line may ask for trouble: `BAD`, `PANIC`, `FAIL`, and `FLAKY n` (fails the first two times).

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use vw2_engine::stage::{
    Context, InputFile, Interrupted, Location, Needs, Operator, Output, Placement, Port, Scan, Stage, StageError,
    StageKind, Table, Unit,
};

pub(crate) static KINDS: &[StageKind] = &[
    StageKind::of::<List>(),
    StageKind::of::<Split>(),
    StageKind::of::<Upper>(),
    StageKind::of::<Count>(),
    StageKind::of::<Twice>(),
    StageKind::of::<Sum>(),
    StageKind::of::<Export>(),
    StageKind::of::<Share>(),
    StageKind::of::<Longest>(),
    StageKind::of::<Train>(),
];

static TEXTS: Table = Table { name: "texts", schema: || schema("text", DataType::Utf8) };
static LINES: Table = Table { name: "lines", schema: || schema("text", DataType::Utf8) };
static COUNTS: Table = Table { name: "counts", schema: || schema("count", DataType::UInt64) };

fn schema(name: &str, data_type: DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(name, data_type, false)]))
}

fn text_row(text: &str) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
    RecordBatch::try_new(schema("text", DataType::Utf8), vec![column]).unwrap()
}

fn count_row(count: u64) -> RecordBatch {
    let column: ArrayRef = Arc::new(UInt64Array::from(vec![count]));
    RecordBatch::try_new(schema("count", DataType::UInt64), vec![column]).unwrap()
}

fn text(row: &RecordBatch) -> &str {
    row.column(0).as_any().downcast_ref::<StringArray>().unwrap().value(0)
}

fn count(row: &RecordBatch) -> u64 {
    row.column(0).as_any().downcast_ref::<UInt64Array>().unwrap().value(0)
}

/// An operator from a function of one unit.
struct Each<F>(F);

impl<F: FnMut(&Unit, &mut Output) -> Result<(), StageError>> Operator for Each<F> {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        units.iter().try_for_each(|unit| (self.0)(unit, out))
    }
}

fn each(
    work: impl FnMut(&Unit, &mut Output) -> Result<(), StageError> + 'static,
) -> Result<Box<dyn Operator>, StageError> {
    Ok(Box::new(Each(work)))
}

/// `Ok(false)`: the unit was rejected.
fn no_trouble(unit: &Unit, text: &str, out: &mut Output) -> Result<bool, StageError> {
    static TIMES: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
    match text.split(' ').next().unwrap_or_default() {
        "BAD" => {
            out.reject(unit, format!("says {text}"));
            return Ok(false);
        }
        "PANIC" => panic!("no way to handle {text}"),
        "FAIL" => return Err(format!("cannot take {text}").into()),
        "FLAKY" => {
            let mut times = TIMES.lock().unwrap();
            let times = times.get_or_insert_default().entry(text.to_owned()).or_default();
            *times += 1;
            if *times <= 2 {
                return Err(format!("not yet: {text}").into());
            }
        }
        _ => {}
    }
    Ok(true)
}

macro_rules! toy {
    ($stage:ident = $kind:literal: $inputs:expr => $output:expr; $($more:item)*) => {
        impl Stage for $stage {
            const KIND: &'static str = $kind;
            const VERSION: u32 = 1;
            const ABOUT: &'static str = "";
            const EXAMPLE: &'static str = "";
            const INPUTS: &'static [Port] = $inputs;
            const OUTPUT: &'static Table = $output;
            $($more)*
        }
    };
}

/// Text files below a folder. `UNREADABLE` in a name rejects the entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    root: Location,
}

toy! { List = "list": &[] => &TEXTS;
    fn scan(&self, found: &mut Scan) -> Result<(), StageError> {
        list(&self.root.0, &self.root.0, found)
    }
    fn watched(&self) -> Vec<PathBuf> {
        vec![self.root.0.clone()]
    }
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        each(|unit, out| {
            let text = std::fs::read_to_string(unit.file.as_deref().expect("a source's unit is a file"))?;
            if no_trouble(unit, &text, out)? {
                out.push(unit, "", text_row(&text));
            }
            Ok(())
        })
    }
}

fn list(root: &Path, dir: &Path, found: &mut Scan) -> Result<(), StageError> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let id = path.strip_prefix(root)?.to_str().unwrap().to_owned();
        match path.is_dir() {
            true => list(root, &path, found)?,
            false if id.contains("UNREADABLE") => found.reject(id, path, "cannot be read"),
            false => found.file(id, path),
        }
    }
    Ok(())
}

/// What a stage may do wrong about ids.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ids {
    #[default]
    Good,
    Panic,
    Same,
}

/// A row per line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    #[serde(default)]
    ids: Ids,
}

toy! { Split = "split": &[Port::row("texts", &TEXTS)] => &LINES;
    fn row_id(&self, unit: &str, row: &str) -> String {
        match self.ids {
            Ids::Good => format!("{unit}#{row}"),
            Ids::Panic => panic!("no id for {row}"),
            Ids::Same => unit.to_owned(),
        }
    }
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        each(|unit, out| {
            for (index, line) in text(unit.row("texts")).lines().enumerate() {
                out.push(unit, index.to_string(), text_row(line));
            }
            Ok(())
        })
    }
}

/// Lines in capitals.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upper {
    #[serde(default)]
    suffix: String,
}

toy! { Upper = "upper": &[Port::row("lines", &LINES)] => &LINES;
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        let suffix = self.suffix.clone();
        if suffix == "closed" {
            return Err("closed today".into());
        }
        each(move |unit, out| {
            let line = text(unit.row("lines"));
            if no_trouble(unit, line, out)? {
                out.push(unit, "", text_row(&(line.to_uppercase() + &suffix)));
            }
            Ok(())
        })
    }
}

/// Letters of a line. Appends a byte to the file `log` for each unit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    #[serde(default)]
    sleep_ms: u64,
    #[serde(default)]
    add: u64,
    log: Location,
}

toy! { Count = "count": &[Port::row("lines", &LINES)] => &COUNTS;
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        let (sleep, add, log) = (Duration::from_millis(self.sleep_ms), self.add, self.log.0.clone());
        each(move |unit, out| {
            let line = text(unit.row("lines"));
            std::thread::sleep(sleep);
            if no_trouble(unit, line, out)? {
                out.push(unit, "", count_row(line.len() as u64 + add));
            }
            std::fs::OpenOptions::new().create(true).append(true).open(&log)?.write_all(b".")?;
            Ok(())
        })
    }
}

/// A line twice, on the device; its result shows whether a companion leaked into it. Ends in what the file `weights` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Twice {
    /// Units wait until two devices have begun one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    meet: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<InputFile>,
}

struct TwiceOperator {
    device: String,
    meet: bool,
    weights: String,
}

/// Devices that have begun a unit of a stage with `meet`.
static MET: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Operator for TwiceOperator {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        let begun = Instant::now();
        if self.meet {
            MET.lock().unwrap().insert(self.device.clone());
        }
        while self.meet && MET.lock().unwrap().len() < 2 {
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(format!("device {} is alone", self.device).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let lines: Vec<String> = units.iter().map(|unit| text(unit.row("lines")).to_owned()).collect();
        for (unit, line) in units.iter().zip(lines) {
            if no_trouble(unit, &line, out)? {
                out.push(unit, "", text_row(&format!("{line} {line} {}{}", unit.seed(), self.weights)));
            }
        }
        Ok(())
    }
}

toy! { Twice = "twice": &[Port::row("lines", &LINES)] => &LINES;
    fn needs(&self) -> Needs {
        Needs::Device
    }
    fn open(&self, context: &Context) -> Result<Box<dyn Operator>, StageError> {
        let weights = self.weights.as_ref().map(|file| std::fs::read_to_string(&file.0)).transpose()?;
        let weights = weights.unwrap_or_default();
        Ok(Box::new(TwiceOperator { device: context.device.clone(), meet: self.meet, weights }))
    }
}

/// The sum of a whole table; waits to be cancelled if told so.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    #[serde(default)]
    endless: bool,
}

toy! { Sum = "sum": &[Port::whole("counts", &COUNTS), Port::whole("more", &COUNTS).optional()] => &COUNTS;
    fn open(&self, context: &Context) -> Result<Box<dyn Operator>, StageError> {
        let (endless, context) = (self.endless, context.clone());
        each(move |unit, out| {
            let mut sum = 0;
            for port in ["counts", "more"] {
                let Some(rows) = unit.table(port) else { continue };
                for index in 0..rows.len() {
                    sum += count(&rows.row(index)?);
                    context.progress.steps(index as u64 + 1, rows.len() as u64, port);
                }
            }
            if endless {
                while !context.cancel.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Err(Box::new(Interrupted));
            }
            out.push(unit, "", count_row(sum));
            Ok(())
        })
    }
}

/// The longest line of a whole table; on the device.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Longest {}

toy! { Longest = "longest": &[Port::whole("lines", &LINES)] => &LINES;
    fn needs(&self) -> Needs {
        Needs::Device
    }
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        each(|unit, out| {
            let rows = unit.table("lines").expect("the port has to be connected");
            let lines = (0..rows.len()).map(|index| Ok(text(&rows.row(index)?).to_owned()));
            let lines = lines.collect::<Result<Vec<_>, StageError>>()?;
            let longest = lines.iter().max_by_key(|line| (line.len(), *line)).unwrap();
            out.push(unit, "", text_row(longest));
            Ok(())
        })
    }
}

/// A checkpoint as a text: what it was trained on, after what its parent was trained on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    #[serde(default)]
    steps: u64,
}

toy! { Train = "train": &[Port::whole("lines", &LINES), Port::whole("more", &LINES).optional()] => &LINES;
    fn needs(&self) -> Needs {
        Needs::Device
    }
    fn trains(&self) -> bool {
        true
    }
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        let steps = self.steps;
        each(move |unit, out| {
            let mut learnt = unit.parent().map_or(String::new(), |parent| format!("{} > ", text(parent)));
            for rows in ["lines", "more"].iter().filter_map(|port| unit.table(port)) {
                for index in 0..rows.len() {
                    let row = rows.row(index)?;
                    if !no_trouble(unit, text(&row), out)? {
                        return Ok(());
                    }
                    learnt += &format!("{} ", text(&row));
                }
            }
            out.push(unit, "", text_row(&format!("{}x{steps}", learnt)));
            Ok(())
        })
    }
}

/// Writes lines into files: one per shard, named by it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    shards: u32,
    #[serde(default)]
    versioned: bool,
    path: Location,
}

toy! { Export = "export": &[Port::whole("lines", &LINES)] => &COUNTS;
    fn shards(&self) -> Option<u32> {
        Some(self.shards)
    }
    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: PathBuf::from(&self.path.0), versioned: self.versioned })
    }
    fn open(&self, context: &Context) -> Result<Box<dyn Operator>, StageError> {
        let blobs = context.blobs.clone();
        each(move |unit, out| {
            let rows = unit.table("lines").expect("the port has to be connected");
            let mut all = String::new();
            for index in 0..rows.len() {
                all += &format!("{}: {}\n", rows.id(index), text(&rows.row(index)?));
            }
            let blob = blobs.put(all.as_bytes())?;
            out.push_with_files(unit, "", count_row(rows.len() as u64), vec![("{id}.txt".to_owned(), blob)]);
            Ok(())
        })
    }
}

/// Each line with the sum that all lines make together: a row port beside a whole one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {}

toy! { Share = "share": &[Port::row("lines", &LINES), Port::whole("total", &COUNTS)] => &LINES;
    fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
        each(|unit, out| {
            let total = unit.table("total").expect("the port has to be connected");
            let of = count(&total.row(0)?);
            out.push(unit, "", text_row(&format!("{} of {of}", text(unit.row("lines")))));
            Ok(())
        })
    }
}
