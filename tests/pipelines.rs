//! Every pipeline that is shipped parses and plans. The plan's text is a snapshot: a change in planning shows itself in
//! review as a change of text.

use std::fs;
use std::path::PathBuf;

use vw2_engine::plan::plan;
use vw2_engine::spec::PipelineSpec;
use vw2_stages::STAGES;

use super::repository;

/// The pipelines beside the program, sorted by name.
fn shipped() -> Vec<PathBuf> {
    let folder = repository::root().join("pipelines");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

#[test]
fn every_shipped_pipeline_plans_as_its_snapshot_says() {
    let files = shipped();
    assert!(files.iter().any(|file| file.ends_with("full.toml")), "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let spec = PipelineSpec::load(&file, &[]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let plan = plan(&spec, STAGES).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(spec.name, name, "a pipeline is called as its file");
        insta::assert_snapshot!(format!("plan_{name}"), plan.to_string());
    }
}

#[test]
fn the_full_pipeline_has_all_steps_on_shipped_files() {
    let spec = PipelineSpec::load(&repository::root().join("pipelines/full.toml"), &[]).unwrap();
    let plan = plan(&spec, STAGES).unwrap();
    let kinds: Vec<&str> = plan.stages.iter().map(|stage| stage.kind.kind).collect();
    for kind in ["videos", "slice", "decode", "encode", "extract", "export", "train-ar", "images", "rollout"] {
        assert!(kinds.contains(&kind), "full.toml has no `{kind}`: {kinds:?}");
    }
    for stage in &plan.stages {
        for file in stage.files() {
            assert!(repository::root().join(&file).is_file(), "stage `{}` wants {}", stage.id, file.display());
        }
    }
}
