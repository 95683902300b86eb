use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use insta::assert_snapshot;
use serde::{Deserialize, Serialize};

use super::*;
use crate::fingerprint::Hash;
use crate::stage::{Context, InputFile, Location, Operator, Stage, StageError, Table};

static VIDEOS: Table = Table { name: "videos", schema: || schema(&[("path", DataType::Utf8)]) };
static CLIPS: Table = Table { name: "clips", schema: || schema(&[("id", DataType::Utf8)]) };
static FRAMES: Table = Table { name: "frames", schema: || schema(&[("pixels", DataType::Binary)]) };
static CODES: Table = Table { name: "codes", schema: || schema(&[("code", DataType::UInt16)]) };
static FILES: Table = Table { name: "files", schema: || schema(&[("file", DataType::Utf8)]) };

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    let field = |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), false);
    Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
}

/// Toy kinds: what they would compute does not matter here.
macro_rules! kind {
    ($stage:ty, $kind:literal, $inputs:expr, $output:expr $(, { $($more:tt)* })? $(,)?) => {
        impl Stage for $stage {
            const KIND: &'static str = $kind;
            const VERSION: u32 = 1;
            const ABOUT: &'static str = "";
            const EXAMPLE: &'static str = "";
            const INPUTS: &'static [Port] = $inputs;
            const OUTPUT: &'static Table = $output;
            $($($more)*)?
            fn open(&self, _: &Context) -> Result<Box<dyn Operator>, StageError> {
                Err("plans open nothing".into())
            }
        }
    };
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Videos {
    root: Location,
}
kind!(Videos, "videos", &[], &VIDEOS);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Sampling {
    Every(u32),
    Uniform(bool),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    frames: u32,
    #[serde(default = "one")]
    stride: u32,
    sampling: Option<Sampling>,
}
fn one() -> u32 {
    1
}
kind!(Slice, "slice", &[Port::row("videos", &VIDEOS)], &CLIPS, {
    fn check(&self) -> Result<(), String> {
        match self.frames % 4 {
            1 => Ok(()),
            _ => Err(format!("`frames` wants 1 + 4k, found {}", self.frames)),
        }
    }
});

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    #[serde(default)]
    size: Option<[u32; 2]>,
}
kind!(Decode, "decode", &[Port::row("clips", &CLIPS)], &FRAMES);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extract {
    weights: InputFile,
    #[serde(default)]
    more: Vec<InputFile>,
}
kind!(Extract, "extract", &[Port::row("frames", &FRAMES)], &CODES, {
    fn needs(&self) -> Needs {
        Needs::Device
    }
});

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    path: Location,
}
kind!(Export, "export", &[Port::whole("codes", &CODES), Port::whole("frames", &FRAMES).optional()], &FILES, {
    fn shards(&self) -> Option<u32> {
        Some(16)
    }
    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: true })
    }
});

/// Nothing has to be connected, something must.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluate {}
kind!(Evaluate, "evaluate", &[Port::whole("codes", &CODES).optional()], &FILES);

const KINDS: &[StageKind] = &[
    StageKind::of::<Videos>(),
    StageKind::of::<Slice>(),
    StageKind::of::<Decode>(),
    StageKind::of::<Extract>(),
    StageKind::of::<Export>(),
    StageKind::of::<Evaluate>(),
];

const GOOD: &str = r#"
name = "codes"

[stage.dataset]
kind = "export"
inputs = { frames = "frames", codes = "codes" }
path = "out/codes"

[stage.videos]
kind = "videos"
root = "data"

[stage.clips]
kind = "slice"
input = "videos"
frames = 17
sampling = { every = 2 }

[stage.frames]
kind = "decode"
input = "clips"
size = [64, 48]
store = "transient"

[stage.codes]
kind = "extract"
input = "frames"
weights = "dldm.safetensors"
run = { batch = 8, max_wait_ms = 5 }
"#;

fn spec(text: &str) -> PipelineSpec {
    PipelineSpec::parse("pipe.toml", text, &[]).unwrap()
}

fn planned(text: &str) -> Plan {
    plan(&spec(text), KINDS).unwrap_or_else(|errors| panic!("{}", errors.lines().join("\n")))
}

fn faults(text: &str) -> String {
    plan(&spec(text), KINDS).err().expect("a fault").lines().join("\n")
}

/// [`GOOD`] with some text replaced.
fn edited(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "`{from}` is there to be replaced");
        text.replace(from, to)
    })
}

#[test]
fn stages_stand_after_what_feeds_them() {
    let plan = planned(GOOD);
    assert_snapshot!(plan, @r#"
pipeline codes
videos   videos   root = "data"
clips    slice    <- videos  frames = 17  sampling = { every = 2 }
frames   decode   <- clips  transient  size = [64, 48]
codes    extract  <- clips via frames  weights = "dldm.safetensors"
dataset  export   <- codes: codes (whole), frames: clips via frames (whole)  path = "out/codes"
"#);
    let dataset = &plan.stages[plan.index_of("dataset").unwrap()];
    assert!(dataset.row_input().is_none());
    let from: Vec<_> = dataset.whole_inputs().map(|i| (i.port.name, plan.stages[i.from].id.as_str())).collect();
    assert_eq!(from, [("codes", "codes"), ("frames", "frames")]);
    let codes = &plan.stages[plan.index_of("codes").unwrap()];
    assert_eq!((codes.batch, codes.max_wait, codes.needs), (8, Duration::from_millis(5), Needs::Device));
    assert_eq!(codes.files(), [Path::new("dldm.safetensors")]);
    assert_eq!(plan.consumers(plan.index_of("frames").unwrap()).count(), 2);
}

#[test]
fn only_keeps_a_stage_and_what_it_needs() {
    let plan = planned(GOOD);
    let ids = |plan: &Plan| plan.stages.iter().map(|stage| stage.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&plan.only("clips").unwrap()), ["videos", "clips"]);
    let codes = plan.only("codes").unwrap();
    assert_eq!(ids(&codes), ["videos", "clips", "frames", "codes"]);
    assert_eq!(codes.stages[3].inputs[0].from, 2);
    assert_snapshot!(plan.only("cods").err().unwrap(), @"pipeline `codes` has no stage `cods`; did you mean `codes`?");
    assert_snapshot!(plan.only("frames").err().unwrap(), @"stage `frames` is transient, so by itself it leaves nothing; name one that takes it: codes, dataset");
}

#[test]
fn ports_are_checked() {
    assert_snapshot!(faults(&edited(&[("input = \"frames\"", "input = \"clips\"")])), @"pipe.toml:27:9: stage `codes`: port `frames` wants table `frames`, but `clips` yields table `clips`; `frames` yields `frames`");
    let text = r#"
name = "x"
[stage.videos]
kind = "videos"
root = "data"
input = "clips"
[stage.frames]
kind = "decode"
input = "videos"
[stage.codes]
kind = "extract"
inputs = { frame = "frames" }
weights = "w"
[stage.dataset]
kind = "export"
input = "code"
path = "out"
[stage.scores]
kind = "evaluate"
[stage.odd]
kind = "exprt"
"#;
    assert_snapshot!(faults(text), @"
pipe.toml:6:9: stage `videos`: `videos` takes no input
pipe.toml:9:9: stage `frames`: port `clips` wants table `clips`, but `videos` yields table `videos`; a stage of kind `slice` yields `clips`
pipe.toml:10:8: stage `codes`: port `frames` of `extract` wants table `frames`; `frames` yields `frames`
pipe.toml:12:12: stage `codes`: unknown port `frame`; `extract` takes frames; did you mean `frames`?
pipe.toml:16:9: stage `dataset`: port `codes` takes `code`, which is no stage; did you mean `codes`?
pipe.toml:18:8: stage `scores`: `evaluate` needs at least one of its inputs: codes
pipe.toml:21:8: stage `odd`: unknown kind `exprt`; did you mean `export`?
");
}

#[test]
fn params_are_checked_all_of_them() {
    let text = r#"
name = "x"
[stage.videos]
kind = "videos"
[stage.clips]
kind = "slice"
input = "videos"
frames = -3
strid = 4
sampling = { evry = 2 }
[stage.other]
kind = "slice"
input = "videos"
frames = "many"
[stage.even]
kind = "slice"
input = "videos"
frames = 16
[stage.frames]
kind = "decode"
input = "clips"
size = [1, 2, 3]
store = "stored"
"#;
    assert_snapshot!(faults(text), @r#"
pipe.toml:3:8: stage `videos`: `videos` wants a key `root`, which has no default; add `root = …`
pipe.toml:8:10: stage `clips`: `frames` wants a whole number that is not negative, found integer `-3`
pipe.toml:9:1: stage `clips`: unknown key `strid`; `slice` takes frames, stride, sampling; did you mean `stride`?
pipe.toml:10:12: stage `clips`: `sampling` cannot be `evry`; it is one of every, uniform; did you mean `every`?
pipe.toml:14:10: stage `other`: `frames` wants a whole number that is not negative, found string "many"
pipe.toml:18:10: stage `even`: `frames` wants 1 + 4k, found 16
pipe.toml:22:8: stage `frames`: `size` wants fewer elements, found 3 elements
"#);
}

#[test]
fn circles_are_named() {
    let text = r#"
name = "x"
[stage.a]
kind = "slice"
frames = 1
input = "b"
[stage.b]
kind = "decode"
input = "c"
[stage.c]
kind = "extract"
input = "a"
weights = "w"
[stage.d]
kind = "decode"
input = "a"
"#;
    let circle = faults(text).lines().find(|line| line.contains("circle")).map(str::to_owned);
    assert_snapshot!(circle.unwrap(), @"pipe.toml:3:8: stages feed each other in a circle: a -> c -> b -> a");
}

#[test]
fn transient_stages_are_row_by_row_and_taken() {
    let transient = "store = \"transient\"\n";
    for (stage, why) in [
        ("root = \"data\"\n", "it lists files"),
        ("weights = \"dldm.safetensors\"\n", "it computes on the device"),
        ("path = \"out/codes\"\n", "it has to take exactly one table"),
    ] {
        let found = faults(&edited(&[(stage, &format!("{stage}{transient}"))]));
        assert!(found.contains(why), "{found}");
    }
    let text = edited(&[
        ("input = \"frames\"", "input = \"again\""),
        ("inputs = { frames = \"frames\", codes", "inputs = { codes"),
    ]);
    let found = faults(&format!("{text}[stage.again]\nkind = \"decode\"\ninput = \"clips\"\n"));
    assert_snapshot!(found, @r#"pipe.toml:23:9: stage `frames` cannot be transient: no stage takes what it yields; leave out `store = "transient"`"#);
}

#[test]
fn two_stages_cannot_write_to_one_folder() {
    let found =
        faults(&format!("{GOOD}[stage.again]\nkind = \"export\"\ninput = \"codes\"\npath = \"out/./codes/\"\n"));
    assert_snapshot!(found, @"pipe.toml:30:8: stages `dataset` and `again` both write to `out/codes`; give each its own folder");
}

/// Fingerprints by stage, where a file's content is what `content` says of its path.
fn prints(text: &str, numeric: &str, content: impl Fn(&str) -> &'static str) -> Vec<(String, Hash)> {
    let plan = planned(text);
    let mut hash = |path: &Path| Ok(Hash::of_bytes(content(path.to_str().unwrap()).as_bytes()));
    let prints = fingerprints(&plan, numeric, &mut hash).unwrap();
    let mut prints: Vec<_> = plan.stages.iter().map(|stage| stage.id.clone()).zip(prints).collect();
    prints.sort();
    prints
}

#[test]
fn how_and_where_are_in_no_fingerprint() {
    let before = prints(GOOD, "f32", |_| "weights");
    let edits = [
        (
            "name = \"codes\"",
            "name = \"other\"\n[runtime]\nthreads = 3\nworkers = 4\nmemory = \"9GiB\"\nstore = \"else\"",
        ),
        ("run = { batch = 8, max_wait_ms = 5 }", "run = { batch = 1 } # one by one"),
        ("dldm.safetensors", "moved.safetensors"),
        ("out/codes", "out/else"),
        ("root = \"data\"", "root = \"elsewhere\""),
        ("frames = 17\nsampling = { every = 2 }", "sampling = { every = 2 }\n\n  frames = 0x11"),
        ("frames = 0x11", "frames = 0x11\nstride = 1 # the default, said"),
    ];
    for until in 0..=edits.len() {
        assert_eq!(prints(&edited(&edits[..until]), "f32", |_| "weights"), before, "after {until} edits");
    }
}

#[test]
fn what_is_computed_is_in_the_fingerprint() {
    let before = prints(GOOD, "f32", |_| "weights");
    let changed = |after: Vec<(String, Hash)>| {
        let ids = after.iter().zip(&before).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0.clone());
        ids.collect::<Vec<_>>()
    };
    let edit = |from: &str, to: &str| changed(prints(&edited(&[(from, to)]), "f32", |_| "weights"));
    assert_eq!(edit("frames = 17", "frames = 13"), ["clips"]);
    assert_eq!(edit("every = 2", "every = 3"), ["clips"]);
    assert_eq!(edit("size = [64, 48]", "size = [48, 64]"), ["frames"]);
    assert_eq!(edit("inputs = { frames = \"frames\", codes", "inputs = { codes"), ["dataset"]);
    assert_eq!(edit("weights = \"dldm.safetensors\"", "weights = \"dldm.safetensors\"\nmore = [\"a\"]"), ["codes"]);
    assert_eq!(changed(prints(GOOD, "f32", |_| "other weights")), ["codes"]);
    assert_eq!(changed(prints(GOOD, "bf16", |_| "weights")), ["codes"]);

    let kinds: Vec<_> = KINDS.iter().map(|kind| StageKind { version: kind.version + 1, ..*kind }).collect();
    let newer = plan(&spec(GOOD), &kinds).unwrap();
    let newer = fingerprints(&newer, "f32", &mut |_| Ok(Hash::of_bytes(b"weights"))).unwrap();
    assert!(newer.iter().all(|print| before.iter().all(|(_, old)| old != print)), "a version changes every stage");
}

#[test]
fn two_equal_stages_have_one_fingerprint() {
    let prints = prints(
        &format!("{GOOD}{}", GOOD[GOOD.find("[stage.codes]").unwrap()..].replace("stage.codes", "stage.twin")),
        "f32",
        |_| "w",
    );
    let print = |id: &str| prints.iter().find(|(stage, _)| stage == id).unwrap().1;
    assert_eq!(print("codes"), print("twin"));
}

#[test]
fn a_missing_file_is_told_with_stage_and_key() {
    let plan = planned(&edited(&[("weights = \"dldm.safetensors\"", "weights = \"w\"\nmore = [\"a\", \"b\"]")]));
    let mut hash = |path: &Path| match path.to_str() {
        Some("b") => Err(Error::Failed("not found".to_owned())),
        _ => Ok(Hash::default()),
    };
    assert_snapshot!(fingerprints(&plan, "f32", &mut hash).unwrap_err(), @"stage `codes`: `more.1` names `b`, which cannot be read (not found); relative paths start at the working directory");
}
