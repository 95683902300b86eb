//! After any edit only what it affects is executed, nothing stale stays published, and the result is the one that a run
//! from scratch gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use arrow::array::{AsArray, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::project::{Project, finished, wait_for, weights};

/// Clips that a sample video is cut into. All samples have equal length and rate, and so equal lists of clips: stage
/// `clips` runs once for all of them.
const CLIPS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(300);

/// Clip ids of each exported Parquet file, by the file's name.
fn exported(project: &Project) -> BTreeMap<String, BTreeSet<String>> {
    let mut shards = BTreeMap::new();
    for entry in fs::read_dir(project.path("out/codes/latest")).unwrap().map(Result::unwrap) {
        let file = fs::File::open(entry.path()).unwrap();
        let batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = batches.map(Result::unwrap).collect();
        let ids = batches.iter().flat_map(|b| b.column_by_name("id").unwrap().as_string::<i32>().iter().flatten());
        shards.insert(entry.file_name().into_string().unwrap(), ids.map(str::to_owned).collect());
    }
    shards
}

fn exported_ids(project: &Project) -> BTreeSet<String> {
    exported(project).into_values().flatten().collect()
}

/// How many exported files hold clips of this video.
fn shards_of(project: &Project, video: &str) -> usize {
    let prefix = format!("{video}#");
    exported(project).values().filter(|ids| ids.iter().any(|id| id.starts_with(&prefix))).count()
}

/// Names and bytes of all that the pipeline leaves outside the store, without the export's older versions.
fn outputs(project: &Project) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["out/codes/latest/", "out/ar", "out/rollouts"] {
        let tree = project.tree(folder);
        found.extend(tree.into_iter().map(|(path, (content, _))| (path.display().to_string(), content)));
    }
    found
}

#[test]
fn two_devices_give_the_bytes_of_one() {
    let (one, two) = (Project::with_clips(3), Project::with_clips(3));
    let first = one.run(&["--device", "cpu"]);
    assert_eq!(two.run(&["--device", "cpu,cpu"]).executed(), first.executed());
    assert_eq!(outputs(&two), outputs(&one));
    assert_eq!(two.run(&["--device", "cpu"]).executed(), "", "a result is known by its numbers, not by its device");
}

#[test]
fn codes_computed_in_bf16_are_other_results_and_nearly_the_same() {
    let project = Project::with_clips(10);
    let codes = || -> Vec<u16> {
        let ipc = |batch: RecordBatch| {
            let column = batch.column_by_name("codes").unwrap().as_list::<i32>().values().clone();
            column.as_primitive::<arrow::datatypes::UInt16Type>().values().to_vec()
        };
        let mut files: Vec<_> =
            fs::read_dir(project.path("out/codes/latest")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let batches = files.into_iter().flat_map(|file| {
            ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).unwrap()).unwrap().build().unwrap()
        });
        batches.flat_map(|batch| ipc(batch.unwrap())).collect()
    };
    project.run(&[]);
    let wide = codes();
    project.edit("kind = \"extract\"", "kind = \"extract\"\narithmetic = \"bf16\"");
    assert_eq!(project.run(&[]).count("codes", "executed"), (10 * CLIPS) as u64);
    let short = codes();
    let equal = wide.iter().zip(&short).filter(|(wide, short)| wide == short).count();
    assert_eq!(wide.len(), short.len());
    assert!(equal < wide.len() && 10 * equal > 9 * wide.len(), "{equal} of {} codes are the same", wide.len());
}

#[test]
fn each_edit_computes_only_what_it_affects() {
    const VIDEOS: usize = 4;
    let project = Project::with_clips(VIDEOS);
    let first = project.run(&[]);
    let (clips, shards) = (VIDEOS * CLIPS, exported(&project).len());
    assert_eq!(
        first.executed(),
        format!(
            "videos={VIDEOS} clips=1 frames={clips} latents={clips} codes={clips} code_dataset={shards} ar=1 scenes=1 \
             rollouts=1"
        )
    );
    let before = project.tree("out");
    assert!(before.keys().any(|path| path.extension().is_some_and(|e| e == "mp4")), "no rollout in {before:?}");

    // Edits of how, or of nothing: no unit, no byte, no time of change.
    let idle = |what: &str, more: &[&str]| {
        let report = project.run(more);
        assert_eq!(report.executed(), "", "{what}");
        assert_eq!(project.tree("out"), before, "{what} changed a file");
        report
    };
    let again = idle("a second run", &[]);
    assert!(again.0["seconds"].as_f64().unwrap() < 1.0, "a run with nothing to do took {}", again.0["seconds"]);
    for index in 0..VIDEOS {
        let video = fs::File::options().append(true).open(project.path(format!("videos/ep_{index:04}.mp4"))).unwrap();
        video.set_modified(SystemTime::now()).unwrap();
    }
    idle("touch", &[]);
    project.edit("[runtime]", "# a comment\n[runtime]");
    idle("a comment", &[]);
    idle("another memory budget", &["--set", "runtime.memory=700MiB"]);
    idle("another worker count", &["--workers", "3"]);
    fs::rename(project.path("videos"), project.path("films")).unwrap();
    idle("a folder that moved", &["--set", "stage.videos.root=films"]);
    fs::rename(project.path("films"), project.path("videos")).unwrap();

    // One video's bytes replaced by another's.
    let touched = shards_of(&project, "ep_0002.mp4");
    project.copy_sample(20, "videos/ep_0002.mp4");
    let report = project.run(&[]);
    let wanted = |shards: usize| format!("videos=1 frames=2 latents=2 codes=2 code_dataset={shards} ar=1 rollouts=1");
    assert_eq!(report.executed(), wanted(touched), "one video changed");
    assert_eq!((report.count("codes", "added"), report.count("codes", "retracted")), (2, 2));
    let kept = |(path, old): (&std::path::PathBuf, &(String, SystemTime))| {
        let was_latest = path.starts_with("out/codes");
        !was_latest || path.ends_with("latest") || project.tree("out").get(path) == Some(old)
    };
    assert!(before.iter().all(kept), "an older version of the export changed");

    // The edit undone: all results are still known.
    project.copy_sample(2, "videos/ep_0002.mp4");
    assert_eq!(project.run(&[]).executed(), "", "an undone edit");

    // One more.
    project.copy_sample(21, "videos/more/new.mp4");
    let report = project.run(&[]);
    assert_eq!(report.executed(), wanted(shards_of(&project, "more/new.mp4")), "one video added");

    // One less: its rows leave the export.
    let touched = shards_of(&project, "ep_0001.mp4");
    let emptied = |before: usize| before - exported(&project).len();
    let files = exported(&project).len();
    fs::remove_file(project.path("videos/ep_0001.mp4")).unwrap();
    let report = project.run(&[]);
    let rewritten = touched - emptied(files);
    let rewritten = if rewritten == 0 { String::new() } else { format!("code_dataset={rewritten} ") };
    assert_eq!(report.executed(), format!("{rewritten}ar=1 rollouts=1"), "one video removed");
    assert_eq!(report.count("codes", "retracted"), 2);
    assert!(exported_ids(&project).iter().all(|id| !id.starts_with("ep_0001.mp4")), "removed, but still exported");

    // Another name, and a copy: the ids change, no clip is computed again.
    fs::rename(project.path("videos/ep_0003.mp4"), project.path("videos/renamed.mp4")).unwrap();
    let report = project.run(&[]);
    assert_eq!(model_units(&report.executed()), "", "one video renamed");
    let ids = exported_ids(&project);
    assert!(ids.contains("renamed.mp4#0") && !ids.contains("ep_0003.mp4#0"), "{ids:?}");
    project.copy_sample(0, "videos/copy.mp4");
    let report = project.run(&[]);
    assert_eq!(model_units(&report.executed()), "", "one video copied");
    assert_eq!(report.count("codes", "added"), 2);

    // Parameters reach what lies behind them only.
    let report = project.run(&["--set", "stage.rollouts.clips=1"]);
    assert_eq!(report.executed(), "rollouts=1", "a parameter of the last stage");
    let report = project.run(&["--set", "params.steps=3"]);
    assert_eq!(report.executed(), "ar=1 rollouts=1", "a parameter of the training");

    // A published file that the user deleted or changed is there again.
    project.run(&[]);
    let before = project.tree("out");
    let (video, _) = before.iter().find(|(path, _)| path.extension().is_some_and(|e| e == "mp4")).unwrap();
    fs::remove_file(project.path(video)).unwrap();
    assert_eq!(project.run(&[]).executed(), "", "an output deleted");
    assert_eq!(project.tree("out")[video].0, before[video].0, "the deleted output is restored");

    // After all these edits, the same as from scratch in another place, with other workers.
    let fresh = Project::new();
    for (path, _) in project.tree("videos") {
        fresh.write(path.to_str().unwrap(), fs::read(project.path(&path)).unwrap());
    }
    for file in ["scenes/scene.png", super::project::PIPELINE] {
        fresh.write(file, fs::read(project.path(file)).unwrap());
    }
    fresh.run(&["--workers", "2"]);
    assert_eq!(outputs(&project), outputs(&fresh), "edits on the left, from scratch on the right");
}

/// What was executed before the aggregates.
fn model_units(executed: &str) -> String {
    let aggregates = ["code_dataset", "ar", "rollouts"];
    let units = executed.split(' ').filter(|unit| !aggregates.contains(&unit.split('=').next().unwrap()));
    units.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_run_that_was_killed_is_completed_and_executes_only_what_is_missing() {
    const VIDEOS: usize = 8;
    let project = Project::with_clips(VIDEOS);
    let memos = |stage: &str| project.manifest_count(&format!("SELECT count(*) FROM memo WHERE stage = '{stage}'"));
    let mut child = project.command(&["run", super::project::PIPELINE]).spawn().unwrap();
    wait_for("the first codes", PATIENCE, || memos("codes") >= 2);
    child.kill().unwrap(); // SIGKILL
    assert_eq!(finished(child).code, -9);

    let stages = [("videos", VIDEOS), ("latents", VIDEOS * CLIPS), ("codes", VIDEOS * CLIPS)];
    let known = stages.map(|(stage, _)| memos(stage));
    assert!(known[2] < (VIDEOS * CLIPS) as u64, "the run was killed too late to show anything");
    let report = project.run(&[]);
    for ((stage, units), known) in stages.into_iter().zip(known) {
        assert_eq!(report.count(stage, "executed"), units as u64 - known, "{stage}: {known} of {units} were known");
    }
    assert_eq!(exported_ids(&project).len(), VIDEOS * CLIPS);
    assert_eq!(project.run(&[]).executed(), "");
}

#[test]
fn ctrl_c_drains_and_the_same_command_goes_on() {
    const VIDEOS: usize = 8;
    let project = Project::with_clips(VIDEOS);
    let codes = || project.manifest_count("SELECT count(*) FROM memo WHERE stage = 'codes'");
    let child = project.command(&["run", super::project::PIPELINE, "--json"]).spawn().unwrap();
    wait_for("the first codes", PATIENCE, || codes() >= 1);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let interrupted = finished(child);
    assert_eq!(interrupted.code, 130, "{interrupted:#?}");
    assert!(interrupted.stderr.contains("run the same command to resume"), "{interrupted:#?}");
    assert_eq!(interrupted.json()["outcome"], "interrupted");
    let known = codes();
    assert!(known < (VIDEOS * CLIPS) as u64, "the run was interrupted too late to show anything");
    let report = project.run(&[]);
    assert_eq!(report.count("codes", "executed"), (VIDEOS * CLIPS) as u64 - known);
}

#[test]
fn a_watching_run_follows_its_videos_without_a_restart() {
    let project = Project::with_clips(2);
    let child = project.command(&["run", super::project::PIPELINE, "--watch"]).spawn().unwrap();
    // While an export is replaced, a folder may be missing for a moment.
    let shows = |wanted: &[&str]| {
        let wanted: BTreeSet<String> =
            wanted.iter().flat_map(|video| (0..CLIPS).map(move |n| format!("{video}#{n}"))).collect();
        wait_for(&format!("{wanted:?}"), PATIENCE, || {
            std::panic::catch_unwind(|| exported_ids(&project)).is_ok_and(|ids| ids == wanted)
        });
    };
    shows(&["ep_0000.mp4", "ep_0001.mp4"]);
    project.copy_sample(20, "videos/come.mp4");
    shows(&["come.mp4", "ep_0000.mp4", "ep_0001.mp4"]);
    fs::rename(project.path("videos/ep_0001.mp4"), project.path("videos/moved.mp4")).unwrap();
    project.copy_sample(21, "videos/come.mp4");
    fs::remove_file(project.path("videos/ep_0000.mp4")).unwrap();
    shows(&["come.mp4", "moved.mp4"]);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = finished(child);
    assert_eq!(ended.code, 0, "{ended:#?}");

    let settled = project.run(&[]);
    let fresh = Project::new();
    for path in ["videos/come.mp4", "videos/moved.mp4", "scenes/scene.png", super::project::PIPELINE] {
        fresh.write(path, fs::read(project.path(path)).unwrap());
    }
    fresh.run(&[]);
    assert_eq!(outputs(&project), outputs(&fresh), "watched on the left, from scratch on the right");
    assert_eq!(settled.count("codes", "executed"), 0, "the watching run had computed everything");
}

#[test]
fn a_second_run_on_one_store_is_told_to_wait() {
    let project = Project::with_clips(4);
    let mut first = project.command(&["run", super::project::PIPELINE]).spawn().unwrap();
    wait_for("the first run's results", PATIENCE, || project.manifest_count("SELECT count(*) FROM memo") > 0);
    let second = project.vw2(&["run", super::project::PIPELINE]);
    assert_eq!(second.code, 2, "{second:#?}");
    assert!(second.stderr.contains("store `.vw2` is in use by another run"), "{second:#?}");
    assert_eq!(second.stdout, "");
    // Looking is free.
    let status = project.vw2(&["status"]);
    assert_eq!(status.code, 0, "{status:#?}");
    assert!(status.stdout.contains("pipeline toy"), "{status:#?}");
    first.kill().unwrap();
    finished(first);
}

#[test]
fn a_held_model_stays_as_it_is_and_is_called_stale_until_it_is_trained_again() {
    let project = Project::with_clips(2);
    project.edit("[stage.ar]", "[stage.ar]\non_change = \"hold\"");
    // The last video is held out. It is one that is trained on, so that each training makes a better model than it began
    // with, which would be kept otherwise.
    project.copy_sample(1, "videos/the_last.mp4");
    project.edit("steps = 2\n", "steps = 12\n");
    project.edit("preset = \"tiny\"", "preset = \"tiny\"\noptimizer = { learning_rate = 1e-2 }");
    project.run(&[]);
    let weights = || fs::read(project.path("out/ar/ar.safetensors")).unwrap();
    let before = weights();
    project.copy_sample(21, "videos/more.mp4");
    let report = project.run(&[]);
    assert_eq!((report.count("ar", "executed"), report.count("rollouts", "executed")), (0, 0));
    assert_eq!((report.count("codes", "added"), &report.0["stages"]["ar"]["stale"]), (2, &true.into()));
    assert!(weights() == before && exported_ids(&project).contains("more.mp4#0"));
    let status = || project.vw2(&["status", "--store", ".vw2"]).stdout;
    let stale = "ar is stale: held since run 2; set on_change to retrain or run with --set stage.ar.on_change=retrain";
    assert!(status().contains(stale), "{}", status());
    assert_eq!(project.run(&[]).executed(), "", "nothing changed");

    let warm = project.run(&["--set", "stage.ar.on_change=warm"]);
    assert_eq!(warm.executed(), "ar=1 rollouts=1");
    let warmed = weights();
    assert!(!status().contains("stale"), "{}", status());
    assert_eq!(project.run(&["--set", "stage.ar.on_change=warm"]).executed(), "", "it does not train from itself");
    assert_eq!(project.run(&[]).executed(), "", "it was trained on what is there");
    assert_eq!(project.run(&["--set", "stage.ar.on_change=retrain"]).executed(), "ar=1 rollouts=1");
    assert!(weights() != before && weights() != warmed, "weights of three trainings");
}

#[test]
fn every_training_goes_on_from_its_published_weights_where_it_is_warm() {
    let (vae, dldm) = (weights("vae-tiny"), weights("dldm-tiny"));
    let models = format!("\nweights = {{ vae = {vae:?}, dldm = {dldm:?} }}\nminibatch = 2");
    for (kind, more) in [("train-vae", "\nminibatch = 2"), ("train-dldm", "\nminibatch = 2"), ("train-dit", &models)] {
        let project = Project::with_clips(2);
        let text = fs::read_to_string(project.path("toy.toml")).unwrap();
        let frames = text.split("[stage.latents]").next().unwrap();
        let stage =
            format!("[stage.model]\nkind = \"{kind}\"\ninput = \"frames\"\nsteps = 1\npath = \"out/model\"{more}");
        project.write("toy.toml", format!("{frames}\n{stage}"));
        let model = || project.tree("out/model").into_iter().map(|(path, (content, _))| (path, content));
        let trained = || model().find(|(path, _)| path.extension().is_some_and(|e| e == "safetensors")).unwrap().1;
        let run =
            |word: &str| project.run(&["--set", &format!("stage.model.on_change={word}")]).count("model", "executed");
        assert_eq!(run("warm"), 1, "{kind}");
        project.copy_sample(21, "videos/more.mp4");
        assert_eq!(run("warm"), 1, "{kind}");
        let warm = trained();
        assert_eq!(run("warm"), 0, "{kind} does not train from itself");
        assert_eq!(run("retrain"), 1, "{kind}");
        assert_ne!(warm, trained(), "{kind} did not start from its parent");
    }
}
