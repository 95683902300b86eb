use insta::assert_snapshot;
use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;

const GOOD: &str = r#"
name = "codes"

[params]
seed = 7
root = "data/clips"
size = [64, 48]
nested = { every = 2 }

[runtime]
device = "cpu"
memory = "1.5GiB"
workers = 2
max_quarantined = "5%"

[stage.videos]
kind = "videos"
root = "${params.root}/train"

[stage.clips]
kind = "slice"
input = "videos"
seed = "${params.seed}"
size = "${params.size}"
every = "${params.nested.every}"
label = "seed ${params.seed} of $${HOME}"

[stage.frames]
kind = "decode"
inputs = { clips = "clips", audio = "videos" }
store = "transient"
run = { batch = 3 }
"#;

fn parse(text: &str, sets: &[&str]) -> Result<PipelineSpec, SpecErrors> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    PipelineSpec::parse("pipe.toml", text, &sets)
}

fn faults(text: &str, sets: &[&str]) -> String {
    parse(text, sets).expect_err("a fault").lines().join("\n")
}

#[test]
fn a_file_is_read_with_its_order_and_types() {
    let spec = parse(GOOD, &[]).unwrap();
    assert_eq!(spec.name, "codes");
    assert_eq!(
        spec.runtime,
        Runtime {
            device: "cpu".to_owned(),
            memory: 3 << 29,
            workers: 2,
            max_quarantined: MaxQuarantined::Percent(5.0),
            ..Runtime::default()
        }
    );
    let ids: Vec<_> = spec.stages.iter().map(|stage| stage.id.as_str()).collect();
    assert_eq!(ids, ["videos", "clips", "frames"]);
    let [videos, clips, frames] = &spec.stages[..] else { panic!() };
    assert_eq!((&videos.inputs, videos.run, videos.store), (&Inputs::None, RunSpec::default(), StoreMode::Stored));
    assert_eq!(clips.inputs, Inputs::First("videos".to_owned()));
    let pair = |port: &str, from: &str| (port.to_owned(), from.to_owned());
    assert_eq!(frames.inputs, Inputs::Named(vec![pair("clips", "clips"), pair("audio", "videos")]));
    assert_eq!((frames.run.batch, frames.store), (3, StoreMode::Transient));
    assert_snapshot!(format!("{}{}", videos.params, clips.params), @r#"
root = "data/clips/train"
every = 2
label = "seed 7 of ${HOME}"
seed = 7
size = [64, 48]
"#);
}

#[test]
fn set_replaces_what_the_file_says() {
    let sets = [
        "params.seed=9",
        "params.seed=8",
        "params.root=other words",
        "params.nested.every=5",
        "runtime.memory=64MiB",
        "runtime.threads=3",
        "stage.clips.batch=4",
        "stage.frames.run.max_wait_ms=7",
        "stage.clips.label=${params.root}",
        "stage.frames.store=stored",
    ];
    let spec = parse(GOOD, &sets).unwrap();
    assert_eq!((spec.runtime.memory, spec.runtime.threads), (64 << 20, 3));
    let [videos, clips, frames] = &spec.stages[..] else { panic!() };
    assert_eq!(videos.params["root"].as_str(), Some("other words/train"));
    assert_eq!(clips.params["seed"].as_integer(), Some(8));
    assert_eq!(clips.params["every"].as_integer(), Some(5));
    assert_eq!(clips.params["label"].as_str(), Some("other words"));
    assert_eq!((clips.run.batch, frames.run.batch, frames.run.max_wait_ms), (4, 3, 7));
    assert_eq!(frames.store, StoreMode::Stored);
}

#[test]
fn a_parameter_named_like_an_engine_word_is_set_itself() {
    let text = "name = 'x'\n[stage.a]\nkind = 'k'\nbatch = 1";
    let spec = parse(text, &["stage.a.batch=2"]).unwrap();
    assert_eq!((spec.stages[0].params["batch"].as_integer(), spec.stages[0].run.batch), (Some(2), 1));
}

#[test]
fn set_takes_existing_keys_only() {
    let sets = [
        "params.sed=9",
        "runtime.memry=1",
        "stage.clip.seed=1",
        "stage.clips.sed=1",
        "stage.frames.run.bath=1",
        "prams.seed=1",
        "params.seed",
        "params.size=[1,",
        "params.seed.deep=1",
    ];
    assert_snapshot!(faults(GOOD, &sets), @"
pipe.toml: `--set params.sed=9`: `[params]` has no `sed`, and only keys that the file has can be set; did you mean `seed`?
pipe.toml: `--set runtime.memry=1`: `[runtime]` has no `memry`, and only keys that the file has can be set; did you mean `memory`?
pipe.toml: `--set stage.clip.seed=1`: `[stage]` has no `clip`, and only keys that the file has can be set; did you mean `clips`?
pipe.toml: `--set stage.clips.sed=1`: `[stage.clips]` has no `sed`, and only keys that the file has can be set; did you mean `seed`?
pipe.toml: `--set stage.frames.run.bath=1`: `[stage.frames.run]` has no `bath`, and only keys that the file has can be set; did you mean `batch`?
pipe.toml: `--set prams.seed=1`: the file has no `prams`, and only keys that the file has can be set; did you mean `params`?
pipe.toml: `--set params.seed`: it has no `=`; write it as `--set params.steps=50` or `--set stage.codes.batch=4`
pipe.toml: `--set params.size=[1,`: the value is no TOML: unclosed array, expected `]`; quote it for your shell: '…'
pipe.toml: `--set params.seed.deep=1`: `params.seed` has no keys below it
");
}

#[test]
fn all_faults_are_told_at_once() {
    let text = r#"
nam = "codes"
[params]
seed = 7
[runtime]
memory = "2GB"
workers = 0
max_quarantined = "150%"
cores = 3
[stage.clips]
knd = "slice"
[stage.frames]
kind = "decode"
input = 3
run = { batch = 0, bacth = 2 }
store = "memory"
on_change = "warm"
[stage.codes]
kind = "extract"
input = "frames"
inputs = { frames = "frames" }
weights = "${params.wights}/a"
seed = "${seed}"
sed = "${params.sed}"
open = "${params.seed"
on_change = "maybe"
[stage."my codes"]
kind = "extract"
"#;
    assert_snapshot!(faults(text, &[]), @r#"
pipe.toml:2:1: unknown key `nam`; the file takes name, params, runtime, stage; did you mean `name`?
pipe.toml:6:10: `runtime.memory` wants a size as "512MiB", "2GiB" or a number of bytes, found "2GB"
pipe.toml:7:11: `runtime.workers` wants a whole number of at least 1, found 0
pipe.toml:8:19: `runtime.max_quarantined` wants "none", a count, or a share as "5%", found "150%"
pipe.toml:9:1: unknown key `cores`; `[runtime]` takes device, memory, store, workers, threads, max_quarantined
pipe.toml:10:8: stage `clips` has no `kind`; say what it does: `kind = "…"`
pipe.toml:14:9: stage `frames`: `input` wants a string, found 3
pipe.toml:15:17: stage `frames`: `run.batch` wants a whole number of at least 1, found 0
pipe.toml:15:20: unknown key `bacth`; `[stage.frames.run]` takes batch, max_wait_ms; did you mean `batch`?
pipe.toml:16:9: stage `frames`: `store` wants "stored" or "transient", found "memory"
pipe.toml:21:1: stage `codes` has both `input` and `inputs`; keep `inputs`, and name every port in it
pipe.toml:22:11: stage `codes`: `weights`: `[params]` has no `wights`; add `wights = …` to `[params]`
pipe.toml:23:8: stage `codes`: `seed`: `${seed}` cannot be used; only `${params.…}` can
pipe.toml:24:7: stage `codes`: `sed`: `[params]` has no `sed`; did you mean `seed`?
pipe.toml:25:8: stage `codes`: `open`: `${` is not closed by `}`
pipe.toml:26:13: stage `codes`: `on_change` wants "retrain", "warm" or "hold", found "maybe"
pipe.toml:27:8: `my codes` cannot name a stage; use letters, digits, `_` and `-`
pipe.toml: the pipeline has no name; begin the file with `name = "…"`
"#);
}

#[test]
fn faults_are_shown_in_their_source() {
    let text = "name = \"x\"\n\n[stage.clips]\nkind = \"slice\"\nrun = { bacth = 2 }\nroot = \"${params.root}\"\n";
    let errors = parse(text, &[]).unwrap_err();
    let mut shown = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    handler.render_report(&mut shown, &errors).unwrap();
    assert_snapshot!(shown, @r#"
  × `pipe.toml` has 2 errors

Error: 
  × unknown key `bacth`; `[stage.clips.run]` takes batch, max_wait_ms
   ╭─[pipe.toml:5:9]
 4 │ kind = "slice"
 5 │ run = { bacth = 2 }
   ·         ──┬──
   ·           ╰── unknown
 6 │ root = "${params.root}"
   ╰────
  help: did you mean `batch`?

Error: 
  × stage `clips`: `root`: `[params]` has no `root`
   ╭─[pipe.toml:6:8]
 5 │ run = { bacth = 2 }
 6 │ root = "${params.root}"
   ·        ────────┬───────
   ·                ╰── used here
   ╰────
  help: add `root = …` to `[params]`
"#);
}

#[test]
fn broken_toml_is_told_with_its_place() {
    assert_snapshot!(faults("name = \"x\"\nstage = [1,\nx == 3\n", &[]), @"
pipe.toml:3:1: this is no TOML: string values must be quoted, expected literal string
");
    assert_snapshot!(faults("name = 'x'\n[stage.a]\nkind = 'k'\n[stage.a]\nkind = 'l'\n", &[]), @"
pipe.toml:4:8: this is no TOML: duplicate key
pipe.toml:5:1: this is no TOML: duplicate key
");
    assert_snapshot!(faults("", &[]), @r#"pipe.toml: the pipeline has no name; begin the file with `name = "…"`"#);
    assert_snapshot!(faults("name = 'x'", &[]), @"pipe.toml: the pipeline has no stages; add a `[stage.<name>]` with a `kind`");
}

#[test]
fn sizes_and_limits() {
    let size = |text: &str| parse_size(&Value::String(text.to_owned()));
    let sizes = [("1", 1), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("0.5GiB", 1 << 29), ("2TiB", 2 << 40), ("7B", 7)];
    sizes.iter().for_each(|(text, bytes)| assert_eq!(size(text), Some(*bytes), "{text}"));
    ["", "GiB", "1GB", "-1", "0", "1e30", "nan"].iter().for_each(|text| assert_eq!(size(text), None, "{text}"));
    assert_eq!(parse_size(&Value::Integer(4096)), Some(4096));

    let limit = |value: Value| parse_limit(&value);
    assert_eq!(limit("none".into()), Some(MaxQuarantined::None));
    assert_eq!(limit(3.into()), Some(MaxQuarantined::Count(3)));
    assert_eq!(limit("2.5%".into()), Some(MaxQuarantined::Percent(2.5)));
    ["5", "101%", "-1%"].iter().for_each(|text| assert_eq!(limit((*text).into()), None, "{text}"));
    assert_eq!(limit((-1).into()), None);

    assert!(!MaxQuarantined::None.is_exceeded(9, 9));
    assert!(!MaxQuarantined::Count(3).is_exceeded(3, 9) && MaxQuarantined::Count(3).is_exceeded(4, 9));
    assert!(!MaxQuarantined::Percent(50.0).is_exceeded(2, 4) && MaxQuarantined::Percent(50.0).is_exceeded(3, 4));
}
