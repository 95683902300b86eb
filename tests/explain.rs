//! `plan --explain` tells per stage what the next run does, and why.

use serde_json::Value;

use super::project::{PIPELINE, Project, weights};

fn explained(project: &Project, more: &[&str]) -> Value {
    let finished = project.vw2(&[&["plan", PIPELINE, "--explain", "--json"], more].concat());
    assert_eq!(finished.code, 0, "{finished:#?}");
    finished.json()
}

/// `stage=count` where anything is to run, with the first reason.
fn told(explanation: &Value) -> String {
    let stages = explanation["stages"].as_object().unwrap().iter();
    let stages = stages.filter(|(_, stage)| stage["transient"] == false && stage["to_run"].as_u64() > Some(0));
    let lines =
        stages.map(|(id, stage)| format!("{id}={} {}", stage["to_run"], stage["reasons"][0]["why"].as_str().unwrap()));
    lines.collect::<Vec<_>>().join("; ")
}

#[test]
fn each_edit_is_explained_before_it_runs() {
    let project = Project::with_clips(3);
    let only = ["--only", "codes"];
    let first = explained(&project, &only);
    assert_eq!(first["stages"]["videos"]["to_run"], 3, "{first:#}");
    assert!(!project.path(".vw2").exists(), "an explanation made a store");
    project.run(&only);
    assert_eq!(told(&explained(&project, &only)), "");
    let text = project.vw2(&[&["plan", PIPELINE, "--explain"], &only[..]].concat()).stdout;
    assert!(text.contains("codes   6 known") && text.ends_with("\nnothing to do\n"), "{text}");

    let set = [&only[..], &["--set", "stage.clips.frames=9"]].concat();
    assert_eq!(told(&explained(&project, &set)), "clips=1 `frames` 17 -> 9; codes=6 `clips` runs before it");
    let dldm = project.path("dldm.safetensors");
    let swapped = std::fs::read(weights("dldm-tiny")).unwrap();
    std::fs::write(&dldm, &swapped[..swapped.len() - 1]).unwrap();
    let set = [&only[..], &["--set", "stage.codes.weights=dldm.safetensors"]].concat();
    assert_eq!(told(&explained(&project, &set)), "codes=6 `weights` changed");

    project.copy_sample(20, "videos/ep_0001.mp4");
    assert_eq!(told(&explained(&project, &only)), "videos=1 file changed; clips=1 file changed; codes=2 file changed");
    assert_eq!(project.run(&only).executed(), "videos=1 frames=2 codes=2", "clips of equal lists are equal");

    project.copy_sample(21, "videos/new.mp4");
    std::fs::remove_file(project.path("videos/ep_0000.mp4")).unwrap();
    let both = explained(&project, &only);
    assert!(told(&both).starts_with("videos=1 new file; clips=1 new file"), "{both:#}");
    assert_eq!(both["stages"]["codes"]["to_retract"], 2, "{both:#}");
    assert_eq!(both["stages"]["codes"]["retractions"][0]["why"], "file gone", "{both:#}");
    assert!(both["stages"]["codes"]["seconds"].as_f64().unwrap() > 0.0, "{both:#}");
}
