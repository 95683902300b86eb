//! What every kind of stage yields of a tiny input on the CPU, beside what it yielded when its `VERSION` was last raised: a
//! kind whose results change without that would leave old results in users' stores beside new ones.
//!
//! Processors differ in the last bits of floats, as matrix products use what instructions there are, so results are not
//! compared as bytes. Whole numbers, texts, names and shapes have to be equal. Floats, and pictures that were made of them,
//! stand as sums of their sizes and as one projection onto fixed pseudo-random numbers; these may differ by
//! [`TOLERANCE`] of the sum of sizes. What changes a result by less than that is not seen here.
//!
//!     VW2_UPDATE=outputs cargo test --test main outputs      after a VERSION was raised, or a kind was added

mod portrait;

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use vw2_engine::plan::plan;
use vw2_engine::spec::PipelineSpec;
use vw2_engine::store::Store;
use vw2_stages::STAGES;

use super::mixed::{Kept, episode};
use super::project::{Project, weights};
use super::repository;
use portrait::Portrait;

/// Two instruction sets differ by about 1e-6; a training step of AdamW may turn such a difference of a tiny gradient's sign
/// into one of the learning rate.
const TOLERANCE: f64 = 2e-3;

const TABLE: &str = "tests/outputs/table.json";

/// Each kind of stage, with as little to do as still gives a result.
fn pipeline() -> String {
    let [vae, dldm, dit] = ["vae-tiny", "dldm-tiny", "dit-tiny"].map(|name| format!("{:?}", weights(name)));
    format!(
        r#"
name = "outputs"
[runtime]
device = "cpu"
memory = "2GiB"
[stage.videos]
kind = "videos"
root = "videos"
[stage.episodes]
kind = "openx"
root = "openx"
[stage.clips]
kind = "slice"
input = "videos"
frames = 17
sampling = {{ uniform = true }}
[stage.frames]
kind = "decode"
input = "clips"
size = [64, 64]
[stage.latents]
kind = "encode"
inputs = {{ frames = "frames" }}
weights = {vae}
[stage.codes]
kind = "extract"
inputs = {{ frames = "frames" }}
weights = {dldm}
[stage.dataset]
kind = "export"
input = "codes"
path = "out/codes"
[stage.vae]
kind = "train-vae"
input = "frames"
preset = "tiny"
steps = 1
minibatch = 1
frames = 5
path = "out/vae"
[stage.dldm]
kind = "train-dldm"
input = "frames"
preset = "tiny"
steps = 1
minibatch = 1
backwards = true
mirrored = true
turned = true
shifted = 8
learn = {{ stills = 1.0, cells = 1.0, changes = 1.0, motion = 1.0 }}
path = "out/dldm"
[stage.dit]
kind = "train-dit"
input = "frames"
weights = {{ vae = {vae}, dldm = {dldm} }}
preset = "tiny"
steps = 1
minibatch = 1
shifted = 8
path = "out/dit"
[stage.joint]
kind = "train-joint"
input = "frames"
weights = {{ vae = {vae}, dldm = {dldm}, dit = {dit} }}
steps = 1
minibatch = 1
checks = 1
path = "out/joint"
[stage.ar]
kind = "train-ar"
input = "codes"
preset = "tiny"
steps = 1
path = "out/ar"
[stage.scenes]
kind = "images"
root = "scenes"
[stage.rollouts]
kind = "rollout"
inputs = {{ scenes = "scenes", ar = "ar" }}
weights = {{ dldm = {dldm} }}
size = [64, 64]
clips = 1
path = "out/rollouts"
[stage.evaluation]
kind = "evaluate"
input = "frames"
diffusion = {{ steps = 2 }}
weights = {{ vae = {vae}, dldm = {dldm}, dit = {dit} }}
path = "out/evaluation"
[stage.report]
kind = "report"
input = "evaluation"
path = "out/report"
"#
    )
}

#[test]
fn a_kind_whose_results_change_has_another_version() {
    let project = Project::with_clips(1);
    project.write("openx/bridge/raw.pickle", episode(4, Kept::Raw, 0));
    let text = pipeline();
    project.write("outputs.toml", &text);
    let done = project.vw2(&["run", "outputs.toml"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let spec = PipelineSpec::parse("outputs.toml", &text, &[]).unwrap_or_else(|errors| panic!("{errors:?}"));
    let plan = plan(&spec, STAGES).unwrap_or_else(|errors| panic!("{errors:?}"));
    let store = Store::open_read(project.path(".vw2")).unwrap();
    let rows = store.published("outputs").unwrap();
    let mut found = BTreeMap::new();
    for stage in &plan.stages {
        let mut portrait = Portrait::default();
        for row in rows.iter().filter(|row| row.stage == stage.id) {
            portrait.row(&row.id, &store.row(&row.content, &(stage.kind.output.schema)()).unwrap());
            row.files.iter().for_each(|(path, blob)| portrait.file(path, &store.blobs().path(blob)));
        }
        assert!(!portrait.is_empty(), "`{}` has yielded nothing: {done:#?}", stage.id);
        let mut portrait = portrait.to_json();
        portrait["version"] = json!(stage.kind.version);
        found.insert(stage.kind.kind, portrait);
    }
    assert_eq!(found.len(), STAGES.len(), "one stage of each kind");

    let path = repository::root().join(TABLE);
    if std::env::var("VW2_UPDATE").is_ok_and(|update| update == "outputs") {
        fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let table: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let faults: Vec<String> = found.iter().filter_map(|(kind, found)| fault(kind, found, &table[kind])).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// In words, if the kind has not the results that the table has.
fn fault(kind: &str, found: &Value, table: &Value) -> Option<String> {
    const UPDATE: &str = "VW2_UPDATE=outputs cargo test --test main outputs";
    if found["version"] != table["version"] {
        let (now, then) = (&found["version"], &table["version"]);
        return Some(format!("`{kind}` has version {now}, and {TABLE} has {then}; bring it up to date: {UPDATE}"));
    }
    let numbers =
        |value: &Value| -> Vec<[f64; 2]> { serde_json::from_value(value["numbers"].clone()).unwrap_or_default() };
    let (now, then) = (numbers(found), numbers(table));
    let near = |(a, b): (&[f64; 2], &[f64; 2])| {
        let scale = a[0].max(b[0]) * TOLERANCE;
        (a[0] - b[0]).abs() <= scale && (a[1] - b[1]).abs() <= scale
    };
    let what = match found["exact"] == table["exact"] {
        false => "whole numbers, texts, names or shapes".to_owned(),
        true if now.len() == then.len() && now.iter().zip(&then).all(near) => return None,
        true => format!("floats: {now:?}, and were {then:?}"),
    };
    Some(format!("results of `{kind}` have changed, and its VERSION has not ({what}); raise it, then {UPDATE}"))
}
