//! Looking into a store, and keeping it tidy: `status`, `show`, `quarantine`, `gc`, `verify`.

use std::fs;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt16Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::project::{Finished, PIPELINE, Project};

/// The export and what it needs, of two videos with two clips each.
const ONLY: &[&str] = &["--only", "code_dataset"];

fn with_codes() -> Project {
    let project = Project::with_clips(2);
    assert!(project.run(ONLY).executed().contains("codes=4"));
    project
}

/// The one JSON object that a command prints, which has to end with this code.
fn json(project: &Project, code: i32, arguments: &[&str]) -> Value {
    let finished = project.vw2(&[arguments, &["--json"]].concat());
    assert_eq!((finished.code, finished.stderr.as_str()), (code, ""), "{finished:#?}");
    finished.json()
}

fn fails(finished: &Finished, wanted: &str) {
    let told = finished.stderr.replace("\n  │ ", " ");
    assert!(finished.code == 2 && finished.stdout.is_empty() && told.contains(wanted), "no `{wanted}`: {finished:#?}");
}

/// The codes that the export has for a clip.
fn exported_codes(project: &Project, id: &str) -> Vec<u64> {
    let files = fs::read_dir(project.path("out/codes/latest")).unwrap().map(|entry| entry.unwrap().path());
    let batches = files.flat_map(|path| {
        ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap()
    });
    let of_clip = |batch: RecordBatch| {
        let at = batch["id"].as_string::<i32>().iter().position(|other| other == Some(id))?;
        let codes = batch["codes"].as_list::<i32>().value(at);
        Some(codes.as_primitive::<UInt16Type>().values().iter().map(|code| u64::from(*code)).collect())
    };
    batches.map(Result::unwrap).find_map(of_clip).unwrap_or_else(|| panic!("no `{id}` is exported"))
}

/// The store's files, without what every look at it may touch.
fn stored(project: &Project) -> Vec<String> {
    let files = project.tree(".vw2").into_iter();
    let files = files.map(|(path, (content, _))| format!("{} {content}", path.display()));
    files.filter(|file| !file.starts_with(".vw2/lock") && !file.starts_with(".vw2/manifest.sqlite-")).collect()
}

#[test]
fn gc_frees_what_a_dry_run_says_and_no_run_notices() {
    let project = with_codes();
    let nothing = project.vw2(&["gc", "--dry-run"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (0, "all that the store holds is needed\n"));

    let shorter = [ONLY, &["--set", "stage.clips.frames=9"]].concat();
    project.run(&shorter);
    assert!(json(&project, 0, &["gc", "--dry-run", "--keep-runs", "1"])["size_bytes"] == 0, "the edit may be undone");
    let before = stored(&project);
    let said = json(&project, 0, &["gc", "--dry-run", "--keep-runs", "0"]);
    assert_eq!(stored(&project), before, "a dry run changes nothing");
    let done = json(&project, 0, &["gc", "--keep-runs", "0"]);
    assert_eq!(done["freed"], said["freed"]);
    for what in ["rows", "blobs"] {
        assert!(done["freed"][what]["count"].as_u64().unwrap() > 2, "{done:#}");
    }
    let out = project.tree("out");
    assert_eq!(project.run(&shorter).executed(), "", "nothing that is in use was freed");
    assert_eq!(project.tree("out"), out, "older versions of the export stay, too");
    assert!(project.run(ONLY).executed().contains("codes=4"), "the edit undone: its results are gone");
}

#[test]
fn verify_finds_what_is_damaged_and_the_next_run_mends_it() {
    let project = with_codes();
    let sound = project.vw2(&["verify"]);
    assert!(sound.code == 0 && sound.stdout.ends_with("\nnothing is wrong\n"), "{sound:#?}");

    let blobs = project.tree(".vw2/blobs");
    let (blob, _) = blobs.iter().next().unwrap();
    let mut bytes = fs::read(project.path(blob)).unwrap();
    bytes[20] ^= 1;
    fs::write(project.path(blob), bytes).unwrap();
    let name = blob.iter().skip(2).map(|part| part.to_str().unwrap()).collect::<String>();
    let found = json(&project, 1, &["verify"]);
    assert_eq!((&found["damages"][0]["kind"], &found["damages"][0]["what"]), (&json!("blob"), &json!(name)));
    let used = found["damages"][0]["used_by"][0].as_str().unwrap();
    assert!(used.starts_with("`shard-") && used.ends_with("` of stage `code_dataset` in pipeline `toy`"), "{used}");
    assert_eq!(project.run(ONLY).executed(), "", "a run does not look that closely");

    let told = project.vw2(&["verify", "--repair"]);
    assert!(
        told.code == 1 && told.stdout.ends_with("1 wrong; set aside: 1; the next run computes it again\n"),
        "{told:#?}"
    );
    assert_eq!(project.run(ONLY).executed(), "code_dataset=1");
    assert_eq!(project.tree(".vw2/blobs").keys().collect::<Vec<_>>(), blobs.keys().collect::<Vec<_>>());

    let (output, _) = project.tree("out/codes/latest/").into_iter().next().unwrap();
    fs::write(project.path(&output), "mine").unwrap();
    let told = project.vw2(&["verify"]);
    assert!(told.code == 1 && told.stdout.contains("it was changed\n"), "{told:#?}");
    assert!(told.stdout.contains("the next run restores it"), "{told:#?}");
    assert_eq!(project.run(ONLY).executed(), "");
    assert_eq!(project.vw2(&["verify"]).code, 0);

    let sample = json(&project, 0, &["verify", "--sample", "1", "--seed", "7"]);
    assert_eq!((&sample["blobs"], &sample["seed"]), (&json!(1), &json!(7)));
}

#[test]
fn a_sample_of_units_is_computed_once_more_and_compared() {
    let project = with_codes();
    let before = stored(&project);
    let pipeline = ["verify", PIPELINE, "--only", "codes"];
    let done = project.vw2(&[&pipeline[..], &["--sample", "99", "--json"]].concat());
    let all = done.json();
    let again = &all["recomputed"];
    assert_eq!((done.code, &again["units"], &again["differences"]), (0, &again["all_units"], &json!([])), "{all:#}");
    assert!(again["units"].as_u64() >= Some(7), "two videos, their clips, four codes: {all:#}");
    assert_eq!(stored(&project), before, "the store stays as it is");
    let told = project.vw2(&[&pipeline[..], &["--sample", "1", "--seed", "7"]].concat());
    assert!(told.code == 0 && told.stdout.starts_with("computed 1 of "), "{told:#?}");
    assert!(told.stdout.contains("all came out as the store has them\n"), "{told:#?}");

    // Codes of another clip under this one's key, as a program with other arithmetic would leave them.
    let manifest = rusqlite::Connection::open(project.path(".vw2/manifest.sqlite")).unwrap();
    let sql =
        "UPDATE memo_row SET content = (SELECT content FROM published WHERE id = 'ep_0000.mp4#0' AND stage = 'codes')
               WHERE content = (SELECT content FROM published WHERE id = 'ep_0001.mp4#1' AND stage = 'codes')";
    assert_eq!(manifest.execute(sql, []).unwrap(), 1);
    drop(manifest);
    let told = project.vw2(&[&pipeline[..], &["--sample", "99"]].concat());
    assert!(told.code == 1 && told.stdout.contains("unit `ep_0001.mp4#1` of stage `codes`: "), "{told:#?}");
    fails(&project.vw2(&["verify", PIPELINE]), "--sample");
}

#[test]
fn a_forgotten_pipeline_leaves_its_files_alone() {
    let project = with_codes();
    let files = project.tree("out");
    let said = project.vw2(&["gc", "--dry-run", "--forget", "toy"]);
    assert!(said.code == 0 && said.stdout.contains("files left as they are; no run knows them any more"), "{said:#?}");
    assert_eq!(project.vw2(&["gc", "--forget", "toy"]).stdout.replace("freed", "would free"), said.stdout);
    assert_eq!(project.tree("out"), files);
    assert!(!project.vw2(&["status"]).stdout.contains("pipeline toy"));
    assert_eq!(project.tree(".vw2/blobs"), Default::default(), "nothing else needs them");
    fails(&project.vw2(&["gc", "--forget", "toy"]), "the store knows no pipeline `toy`");
    assert!(project.run(ONLY).executed().contains("codes=4"), "all is computed again");
    assert_eq!(project.tree("out"), files, "equal files are taken over");
}

#[test]
fn units_in_quarantine_are_listed_and_tried_again_when_asked() {
    let project = Project::with_clips(1);
    for (name, length) in [("short.mp4", 3_000), ("empty.mp4", 0)] {
        let bytes = fs::read(super::project::sample(1)).unwrap();
        project.write(&format!("videos/{name}"), &bytes[..length]);
    }
    let only = ["--only", "clips"];
    assert_eq!(project.run(&only).executed(), "videos=3 clips=1");
    assert_eq!(project.run(&only).executed(), "", "what is bad is not tried again");

    let all = project.vw2(&["quarantine"]);
    assert!(all.code == 0 && all.stdout.starts_with("pipeline toy: 2\n"), "{all:#?}");
    let one = json(&project, 0, &["quarantine", "short.mp4"]);
    let entry = &one["pipelines"][0]["quarantined"][0];
    assert_eq!(
        (&entry["path"], &entry["class"], &entry["run"]),
        (&json!("videos/short.mp4"), &json!("bad"), &json!(1))
    );
    assert_eq!(one["pipelines"][0]["quarantined"].as_array().unwrap().len(), 1);
    assert!(one["verdicts_forgotten"].is_null());

    let retry = project.vw2(&["quarantine", "--retry", "videos/short.mp4"]);
    assert!(retry.code == 0 && retry.stdout.ends_with("\nthe next run tries 1 unit again\n"), "{retry:#?}");
    assert_eq!(project.run(&only).executed(), "videos=1");
    assert_eq!(json(&project, 0, &["quarantine", "--retry", "videos"])["verdicts_forgotten"], 2);
    assert_eq!(project.run(&only).executed(), "videos=2");
    assert_eq!(json(&project, 0, &["quarantine"])["pipelines"][0]["quarantined"].as_array().unwrap().len(), 2);

    // A copy has the same verdict, and shares its fate.
    fs::copy(project.path("videos/short.mp4"), project.path("videos/copy.mp4")).unwrap();
    assert_eq!(project.run(&only).executed(), "");
    let retry = project.vw2(&["quarantine", "--retry", "short.mp4"]).stdout;
    let (_, others) = retry.split_once("which share their verdict:\n").unwrap();
    assert!(others.contains("videos/copy.mp4: ") && !others.contains("empty.mp4"), "{retry}");

    fails(&project.vw2(&["quarantine", "shrt.mp4"]), "no stage `shrt.mp4` has units in quarantine");
    fails(&project.vw2(&["quarantine", "--pipeline", "other"]), "no pipeline `other`; it has toy");
}

#[test]
fn a_published_row_is_shown_with_all_that_it_comes_from() {
    let project = with_codes();
    let told = project.vw2(&["show", "code", "ep_0001.mp4#1"]);
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
    for wanted in [
        "videos/ep_0001.mp4, unchanged since\n",
        "frames     16 to 32 (17)\n",
        "stage frames (decode version 2) from clips: computed on the way, not stored\n",
        "stage clips (slice version 1) from videos: row `ep_0001.mp4#1`, ",
        "  frames = 17\n",
        "dldm-tiny.safetensors\", content ",
    ] {
        assert!(told.stdout.contains(wanted), "no `{wanted}` in {}", told.stdout);
    }
    assert!(!told.stdout.contains("stage latents"), "that leads elsewhere: {}", told.stdout);

    // The codes are those of the export.
    let row = &json(&project, 0, &["show", "code", "ep_0001.mp4#1"])["rows"][0];
    let shown: Vec<u64> = row["code"]["codes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|pair| pair.as_array().unwrap().iter().map(|code| code.as_u64().unwrap()).collect::<Vec<_>>())
        .collect();
    assert_eq!(shown, exported_codes(&project, "ep_0001.mp4#1"));
    let weights = blake3::hash(&fs::read(super::project::weights("dldm-tiny")).unwrap()).to_string();
    assert_eq!(row["stages"][3]["files"][0]["content"], weights);

    let clip = &json(&project, 0, &["show", "clip", "ep_0000.mp4#0"])["rows"][0];
    assert_eq!((&clip["kind"], &clip["clip"]["index"]), (&json!("slice"), &json!(0)));
    let stages: Vec<&str> =
        clip["stages"].as_array().unwrap().iter().map(|stage| stage["id"].as_str().unwrap()).collect();
    assert_eq!(stages, ["videos", "clips"]);
    let state = |project: &Project| {
        json(project, 0, &["show", "clip", "ep_0000.mp4#0"])["rows"][0]["origin"]["state"].as_str().unwrap().to_owned()
    };
    project.copy_sample(5, "videos/ep_0000.mp4");
    assert!(["changed", "unknown"].contains(&state(&project).as_str()));
    fs::remove_file(project.path("videos/ep_0000.mp4")).unwrap();
    assert_eq!(state(&project), "gone");

    fails(
        &project.vw2(&["show", "code", "ep_001.mp4#1"]),
        "no code `ep_001.mp4#1` is published; the nearest are `ep_0001.mp4#1`",
    );
    fails(&project.vw2(&["show", "clip", "shard-01"]), "no clip `shard-01`");
}

#[test]
fn status_tells_sizes_and_what_the_last_run_did() {
    let project = with_codes();
    let status = json(&project, 0, &["status"]);
    let blobs = project.tree(".vw2/blobs").into_keys().map(|path| fs::metadata(project.path(path)).unwrap().len());
    let (count, size) = blobs.fold((0, 0), |(count, size), len| (count + 1, size + len));
    assert_eq!(status["sizes"]["blobs"], json!({ "count": count, "size_bytes": size }));
    assert!(status["sizes"]["manifest_bytes"].as_u64().unwrap() > 10_000);
    let pipeline = &status["pipelines"][0];
    assert_eq!((&pipeline["pipeline"], &pipeline["published"]["codes"]), (&json!("toy"), &json!(4)));
    assert_eq!(pipeline["last_run"]["report"]["stages"]["codes"]["executed"], 4);
    assert!(
        project.vw2(&["status"]).stdout.contains("\n  codes         4     4         0\n"),
        "{:#?}",
        project.vw2(&["status"])
    );
}

#[test]
fn a_store_of_a_newer_program_is_refused_by_every_command() {
    let project = with_codes();
    let manifest = rusqlite::Connection::open(project.path(".vw2/manifest.sqlite")).unwrap();
    manifest.pragma_update(None, "user_version", 99).unwrap();
    drop(manifest);
    let before = stored(&project);
    let commands: &[&[&str]] = &[
        &["run", PIPELINE],
        &["status"],
        &["quarantine"],
        &["quarantine", "--retry"],
        &["gc"],
        &["gc", "--dry-run"],
        &["verify"],
        &["verify", "--repair"],
        &["show", "code", "ep_0000.mp4#0"],
    ];
    for arguments in commands {
        fails(&project.vw2(arguments), "has format 99, and this program knows formats up to ");
    }
    assert_eq!(stored(&project), before);
}
