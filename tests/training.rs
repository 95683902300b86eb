//! Training as its user sees it: it goes on where it was cut off, bit for bit; its metrics are a table; a loss that is no
//! number names the rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::project::{PIPELINE, Project, finished, wait_for, weights};

const PATIENCE: Duration = Duration::from_secs(300);
/// Of each training here.
const STEPS: u32 = 16;

/// Clips of 5 frames of 32 x 32 pixels, and one training on them, which keeps a checkpoint of every step.
fn project(kind: &str, more: &str) -> Project {
    let project = Project::with_clips(3);
    let (vae, dldm) = (weights("vae-tiny"), weights("dldm-tiny"));
    let (input, own) = match kind {
        "train-ar" => ("codes", String::new()),
        "train-dit" | "train-joint" => ("frames", format!("weights = {{ vae = {vae:?}, dldm = {dldm:?} }}\n")),
        _ => ("frames", String::new()),
    };
    let codes = match kind {
        "train-ar" => format!("[stage.codes]\nkind = \"extract\"\ninput = \"frames\"\nweights = {dldm:?}\n"),
        _ => String::new(),
    };
    project.write(
        PIPELINE,
        format!(
            r#"name = "toy"
[stage.videos]
kind = "videos"
root = "videos"
[stage.clips]
kind = "slice"
input = "videos"
frames = 5
[stage.frames]
kind = "decode"
input = "clips"
size = [32, 32]
store = "transient"
{codes}
[stage.model]
kind = "{kind}"
input = "{input}"
path = "out/model"
minibatch = 2
upkeep = {{ steps = 1, live = "live" }}
{own}{more}
"#
        ),
    );
    project
}

/// The checkpoint of the training in progress.
fn checkpoint(project: &Project) -> Option<PathBuf> {
    let folders = fs::read_dir(project.path(".vw2/scratch")).ok()?;
    folders.map(|folder| folder.unwrap().path().join("training")).find(|path| path.exists())
}

/// How many steps a checkpoint has behind it: its file is a hash and a safetensors file.
fn step_of(path: &Path) -> Option<u32> {
    let bytes = fs::read(path).ok()?;
    let length = u64::from_le_bytes(*bytes.get(32..)?.first_chunk()?) as usize;
    let header: serde_json::Value = serde_json::from_slice(bytes.get(40..40 + length)?).unwrap();
    Some(header["__metadata__"]["step"].as_str().unwrap().parse().unwrap())
}

/// A Parquet file's figures by name, each with its steps.
fn metrics(path: &Path) -> BTreeMap<String, Vec<(u32, f64)>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap();
    let mut columns: BTreeMap<String, Vec<(u32, f64)>> = BTreeMap::new();
    for batch in reader.map(Result::unwrap) {
        let steps = batch.column_by_name("step").unwrap().as_primitive::<UInt32Type>();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()).skip(1) {
            let values = column.as_primitive::<Float64Type>();
            let points = (0..values.len()).filter(|row| values.is_valid(*row));
            let points = points.map(|row| (steps.value(row), values.value(row)));
            columns.entry(field.name().clone()).or_default().extend(points);
        }
    }
    columns
}

fn contents(project: &Project) -> BTreeMap<PathBuf, String> {
    project.tree("out").into_iter().map(|(path, (content, _))| (path, content)).collect()
}

/// `VW2_SEED`, or one of the clock's; told, so that a failure can be repeated.
fn seed() -> u64 {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("VW2_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
    eprintln!("VW2_SEED={seed}");
    seed
}

/// Trains through, and trains with a death at a random step; both leave the same bytes.
fn check_killed(kind: &str, more: &str) {
    let whole = project(kind, more);
    whole.run(&[]);
    let wanted = contents(&whole);
    let logged = metrics(&whole.path("out/model/metrics.parquet"));
    assert_eq!(logged["loss"].len(), STEPS as usize, "{kind}: {:?}", logged.keys());
    assert!(!logged.contains_key("seconds"), "{kind}: a result does not depend on time");

    let killed = project(kind, more);
    let at = 1 + (seed() % u64::from(STEPS - 4)) as u32;
    let mut child = killed.command(&["run", PIPELINE]).spawn().unwrap();
    let reached = || checkpoint(&killed).and_then(|path| step_of(&path)).is_some_and(|step| step >= at);
    wait_for("the checkpoint of a step", PATIENCE, reached);
    child.kill().unwrap(); // SIGKILL
    assert_eq!(finished(child).code, -9);
    assert!(!killed.path("out/model").exists(), "{kind}: nothing is published before it is whole");
    let left = step_of(&checkpoint(&killed).unwrap()).unwrap();
    assert!((at..STEPS).contains(&left), "{kind}: killed at step {left} of {STEPS}, which shows nothing");
    fs::remove_dir_all(killed.path("live")).ok();
    killed.run(&[]);
    assert!(checkpoint(&killed).is_none(), "{kind}: what was kept goes away when training is done");
    let timed = &metrics(&killed.path("live/metrics.parquet"))["seconds"];
    assert_eq!((timed[0].0, timed.len() as u32), (left + 1, STEPS - left), "{kind}: it did not go on at step {left}");
    assert_eq!(contents(&killed), wanted, "{kind}: resumed on the left, never cut off on the right");
}

#[test]
fn a_vae_training_that_was_killed_goes_on_bit_for_bit() {
    check_killed("train-vae", "steps = 16\noptimizer = { ema = 0.1 }");
}

#[test]
fn a_dldm_training_that_was_killed_goes_on_bit_for_bit() {
    let phases = "[[stage.model.phases]]\nsteps = 7\nmotion_weight = 4.0\nshifted = 3\noptimizer = { accumulate = 2 }\n\
                  [[stage.model.phases]]\nsteps = 9\noptimizer = { recompute = true, groups = [{ names = \"encoder.qformer_ldm.*\", rate = 3.0 }] }";
    check_killed("train-dldm", phases);
}

#[test]
fn a_dit_training_that_was_killed_goes_on_bit_for_bit() {
    check_killed("train-dit", "steps = 16\nchecks = 3\nbackwards = true\nmirrored = true\nturned = true");
}

#[test]
fn a_joint_training_that_was_killed_goes_on_bit_for_bit() {
    check_killed("train-joint", "steps = 16\nchecks = 2\noptimizer = { recompute = true }");
}

#[test]
fn one_file_of_a_joint_training_is_both_models_for_other_stages() {
    let project = project("train-joint", "steps = 1\nchecks = 1");
    let vae = weights("vae-tiny");
    let text = fs::read_to_string(project.path(PIPELINE)).unwrap();
    let judged = format!(
        "{text}\n[stage.judged]\nkind = \"evaluate\"\ninputs = {{ frames = \"frames\", dldm = \"model\", dit = \"model\" }}\n\
         weights = {{ vae = {vae:?} }}\ndiffusion = {{ steps = 1 }}\none_in = 2\npath = \"out/judged\"\n"
    );
    project.write(PIPELINE, judged);
    let report = project.run(&[]);
    // Three ways of drawing for each clip of the videos that are looked at.
    let drawn = report.count("judged", "added");
    assert!(drawn > 0 && drawn.is_multiple_of(3), "{drawn} rows: {:#}", report.0);
}

#[test]
fn an_ar_training_that_was_killed_goes_on_bit_for_bit() {
    check_killed("train-ar", "steps = 16\noptimizer = { precision = \"bf16\" }");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_the_rows() {
    let project = project("train-ar", "steps = 20\noptimizer = { learning_rate = 1e30, warmup = 0 }");
    let run = project.run(&[]);
    assert_eq!((run.count("model", "added"), run.count("model", "quarantined")), (0, 1));
    let told = project.vw2(&["status"]).stdout;
    for words in ["the loss is NaN", "of rows ep_000", "lower `optimizer.learning_rate`"] {
        assert!(told.contains(words), "no `{words}` in {told}");
    }
    assert!(!project.path("out/model").exists());
}

#[test]
fn two_halves_of_a_minibatch_make_the_step_of_the_whole() {
    let losses = |minibatch: usize, accumulate: u32| {
        let more = format!("steps = 3\noptimizer = {{ accumulate = {accumulate}, warmup = 0 }}");
        let project = project("train-vae", &more);
        project.edit("minibatch = 2", &format!("minibatch = {minibatch}"));
        project.run(&[]);
        metrics(&project.path("out/model/metrics.parquet"))
    };
    let (whole, halves) = (losses(2, 1), losses(1, 2));
    for name in ["loss", "grad_norm", "held_out_l1"] {
        for (a, b) in whole[name].iter().zip(&halves[name]) {
            // Sums of other orders, and AdamW's first steps, which look at a gradient's sign.
            assert!(a.0 == b.0 && (a.1 - b.1).abs() <= 2e-3 * a.1.abs(), "{name}: {a:?}, {b:?}");
        }
    }
}
