//! Rollouts as their user sees them: how long the videos are, what lies beside them, and that a long one goes on where it
//! was cut off.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use vw2_data::formats::code_dataset::{self, CodeRow};
use vw2_data::formats::latent_code_infos::{self, VideoCodes};
use vw2_data::media;
use vw2_pickle::Dtype;
use vw2_pickle::write::Pickle;

use super::project::{PIPELINE, Project, finished, wait_for, weights};

const CLIPS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// One start scene, codes for it, and a pipeline that draws it with the shipped models.
fn project(render: &str) -> Project {
    let project = Project::with_clips(0);
    let codes = |clip: u32| (0..16).map(|i| ((clip * 331 + i * 77) % 1000) as u16).collect();
    let rows: Vec<CodeRow> = (0..CLIPS)
        .map(|clip| CodeRow {
            id: format!("scene.mp4#{clip}"),
            video: "scene.mp4".into(),
            clip,
            codes: codes(clip),
            levels: vec![8, 5, 5, 5],
            queries: 4,
            model: String::new(),
            fps: 10.0,
            task: None,
        })
        .collect();
    project.write("codes.parquet", code_dataset::to_bytes(&rows, &BTreeMap::new()).unwrap());
    let [dldm, vae, dit] = ["dldm-tiny", "vae-tiny", "dit-tiny"].map(|name| weights(name).display().to_string());
    project.write(
        PIPELINE,
        format!(
            r#"name = "toy"
[stage.scenes]
kind = "images"
root = "scenes"
[stage.rollouts]
kind = "rollout"
inputs = {{ scenes = "scenes" }}
weights = {{ dldm = "{dldm}", vae = "{vae}", dit = "{dit}" }}
codes = "codes.parquet"
size = [64, 64]
render = "{render}"
diffusion = {{ steps = 12, guidance = 1.5 }}
side_by_side = true
fps = 10
path = "out"
"#
        ),
    );
    project
}

fn contents(project: &Project) -> BTreeMap<PathBuf, String> {
    project.tree("out").into_iter().map(|(path, (content, _))| (path, content)).collect()
}

/// Frames, width and height of a video that the rollout left.
fn video(project: &Project, name: &str) -> (u32, u32, u32) {
    let info = media::probe(&project.path("out/scene").join(name)).unwrap();
    (info.frames, info.width, info.height)
}

#[test]
fn n_clips_give_n_times_their_steps_in_frames() {
    for (render, beside) in [("coarse", false), ("diffusion", true)] {
        let project = project(render);
        project.run(&[]);
        assert_eq!(video(&project, "rollout.mp4"), (CLIPS * 16, 64, 64));
        assert_eq!(video(&project, "clip_0.mp4"), (17, 64, 64));
        assert_eq!(project.path("out/scene/side_by_side.mp4").exists(), beside);
        if beside {
            assert_eq!(video(&project, "side_by_side.mp4"), (CLIPS * 16, 128, 64));
        }
        project.edit("side_by_side = true", "keep_last = true");
        project.edit("size = [64", "clips = 2\nsize = [64");
        project.run(&[]);
        assert_eq!(video(&project, "rollout.mp4"), (2 * 16 + 1, 64, 64));
        assert!(!project.path("out/scene/clip_2.mp4").exists(), "what is no longer published goes away");
    }
}

#[test]
fn diffusion_in_bf16_draws_another_picture_and_nearly_the_same() {
    let project = project("diffusion");
    project.edit("size = [64", "clips = 1\nsize = [64");
    let drawn = || media::image::decode(&project.path("out/scene/sheet.png")).unwrap().pixels;
    project.run(&[]);
    let wide = drawn();
    project.edit("guidance = 1.5", "guidance = 1.5, arithmetic = \"bf16\"");
    assert_eq!(project.run(&[]).count("rollouts", "executed"), 1);
    let short = drawn();
    let apart = wide.iter().zip(&short).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / wide.len() as f64;
    assert!(wide.len() == short.len() && (0.01..3.0).contains(&apart), "{apart} of 255 levels apart");
}

#[test]
fn a_rollout_that_was_killed_goes_on_at_the_clip_it_was_in() {
    let whole = project("diffusion");
    whole.run(&[]);
    let kept = |project: &Project, name: &str| -> Option<PathBuf> {
        let folders = fs::read_dir(project.path(".vw2/scratch")).ok()?;
        folders.map(|folder| folder.unwrap().path().join(name)).find(|path| path.exists())
    };
    // Killed after its first clip; then the clip that it kept is replaced by a black one, to see that it is used.
    let killed = |replace: bool| {
        let project = project("diffusion");
        let mut child = project.command(&["run", PIPELINE]).spawn().unwrap();
        wait_for("the first clip", PATIENCE, || kept(&project, "clip_0.state").is_some());
        child.kill().unwrap();
        finished(child);
        assert!(!project.path("out/scene").exists(), "nothing is published before it is whole");
        if replace {
            let black = vec![0u8; 17 * 64 * 64 * 3];
            let bytes = [&blake3::hash(&black).as_bytes()[..], &black].concat();
            fs::write(kept(&project, "clip_0.last").unwrap(), bytes).unwrap();
        }
        project.run(&[]);
        assert!(kept(&project, "clip_0.state").is_none(), "what was kept goes away when the rollout is done");
        contents(&project)
    };
    let wanted = contents(&whole);
    assert_eq!(killed(false), wanted);
    let differing = killed(true);
    let same = |name: &str| {
        differing[&PathBuf::from("out/scene").join(name)] == wanted[&PathBuf::from("out/scene").join(name)]
    };
    assert!(!same("clip_0.mp4") && same("clip_1.mp4") && same("clip_2.mp4"));
}

#[test]
fn codes_are_read_from_upstreams_files_too() {
    let project = project("coarse");
    project.run(&[]);
    let from_parquet = contents(&project);
    let clips =
        code_dataset::read(&project.path("codes.parquet")).unwrap().0.into_iter().map(|row| row.codes).collect();
    let scene = VideoCodes { name: "scene".into(), clips };
    project.write("codes.pt", latent_code_infos::to_bytes(&[scene]).unwrap());
    project.edit("codes.parquet", "codes.pt");
    project.run(&[]);
    assert_eq!(contents(&project), from_parquet);
    project.write("codes.pt", "no such thing");
    let failed = project.vw2(&["run", PIPELINE]);
    assert_eq!(failed.code, 2);
    assert!(failed.stderr.contains("codes.pt"), "{failed:#?}");
}

/// The text embedding that guidance leads away from, as upstream's `default_neg.pickle` holds it.
#[test]
fn guidance_leads_away_from_the_pickled_embedding() {
    let project = project("diffusion");
    project.edit("steps = 12, guidance = 1.5", "steps = 3, guidance = 1.5");
    project.edit("size = [64", "clips = 1\nsize = [64");
    let pickled = |tokens: usize, width: usize, value: fn(usize) -> f32| {
        let values: Vec<u8> = (0..tokens * width).flat_map(|index| value(index).to_le_bytes()).collect();
        let mut pickle = Pickle::new();
        pickle.list(&[()], |pickle, ()| pickle.array(Dtype::F32, &[tokens, width], &values));
        pickle.stop()
    };
    let width = 96; // of the tiny DiT
    project.run(&[]);
    let without = contents(&project);
    project.write("default_neg.pickle", pickled(7, width, |_| 0.0));
    project.edit("guidance = 1.5", "guidance = 1.5, negative = \"default_neg.pickle\"");
    let drawn = |project: &Project| {
        assert_eq!(project.run(&[]).count("rollouts", "executed"), 1);
        contents(project)
    };
    assert_eq!(drawn(&project), without, "no text is a text of zeros");
    project.write("default_neg.pickle", pickled(7, width, |index| (index as f32 * 0.7).sin()));
    let away = drawn(&project);
    let coarse = PathBuf::from("out/scene/rollout.mp4");
    assert_ne!(away[&coarse], without[&coarse], "another embedding leads to another video");

    for (bytes, told) in [
        (pickled(2, width + 1, |_| 0.0), "tokens of width 97, but the DiT's are 96 wide"),
        (b"\x80\x02cos\nsystem\n(X\x04\0\0\0trueR.".to_vec(), "`os.system` is asked for"),
    ] {
        project.write("default_neg.pickle", bytes);
        let failed = project.vw2(&["run", PIPELINE]);
        let text = failed.stdout.clone() + &failed.stderr.replace("\n  │ ", " ");
        assert!(text.contains("default_neg.pickle") && text.contains(told), "{told}: {failed:#?}");
        assert!(text.contains("quarantined") || failed.code == 2, "{failed:#?}");
    }
}

#[test]
fn a_scene_without_codes_is_quarantined_by_name() {
    let project = project("coarse");
    fs::rename(project.path("scenes/scene.png"), project.path("scenes/other.png")).unwrap();
    let report = project.run(&[]);
    assert_eq!(report.count("rollouts", "quarantined"), 1);
    let status = project.vw2(&["status"]);
    assert!(status.stdout.contains("`codes` has nothing for `other`; scenes in it: scene"), "{status:#?}");
}

#[test]
fn a_dit_is_trained_and_draws() {
    let project = project("diffusion");
    for index in 0..2 {
        project.copy_sample(index, &format!("videos/ep_{index:04}.mp4"));
    }
    let [dldm, vae] = ["dldm-tiny", "vae-tiny"].map(|name| weights(name).display().to_string());
    let text = fs::read_to_string(project.path(PIPELINE)).unwrap();
    project.write(
        PIPELINE,
        format!(
            r#"{text}
[stage.videos]
kind = "videos"
root = "videos"
[stage.clips]
kind = "slice"
input = "videos"
frames = 17
[stage.frames]
kind = "decode"
input = "clips"
size = [64, 64]
store = "transient"
[stage.dit]
kind = "train-dit"
input = "frames"
weights = {{ vae = "{vae}", dldm = "{dldm}" }}
steps = 3
minibatch = 2
path = "out-dit"
"#
        ),
    );
    project.edit("inputs = { scenes = \"scenes\" }", "inputs = { scenes = \"scenes\", dit = \"dit\" }");
    project.edit(&format!(", dit = \"{}\"", weights("dit-tiny").display()), "");
    let first = project.run(&[]);
    assert_eq!((first.count("dit", "executed"), first.count("rollouts", "executed")), (1, 1));
    assert_eq!(video(&project, "rollout.mp4"), (CLIPS * 16, 64, 64));
    let metrics = fs::read_to_string(project.path("out-dit/metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    assert!(metrics["held_out_loss"].as_f64().unwrap() > 0.0, "{metrics}");
    let shown = project.vw2(&["show", "weights", "out-dit/dit.safetensors"]);
    assert!(shown.stdout.contains("the DiT") && shown.stdout.contains("control branch"), "{shown:#?}");
    assert_eq!(project.run(&[]).executed(), "");
}
