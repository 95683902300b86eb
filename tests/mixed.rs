//! Mixed data as its user sees it: pickled episodes and clips beside them, in sub-datasets, from file to codes and training.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;

use image::{ImageFormat, RgbImage};
use vw2_data::formats::code_dataset;
use vw2_pickle::Dtype;
use vw2_pickle::write::Pickle;

use super::project::{PIPELINE, Project, weights};

/// How an episode keeps its pictures.
#[derive(Clone, Copy)]
enum Kept {
    Png,
    Raw,
    /// All in one array, [T, 3, H, W].
    Stack,
}

/// A picture of 64 x 64 with a square that moves.
fn frame(episode: u32, step: u32) -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| {
        let inside = (step * 2..step * 2 + 12).contains(&x) && (20 + episode..32 + episode).contains(&y);
        image::Rgb(if inside { [200, 40, 30] } else { [230, 230, 225] })
    })
}

/// An episode of 20 steps, of which the first `bad` have no picture.
fn episode(number: u32, kept: Kept, bad: usize) -> Vec<u8> {
    let steps: Vec<u32> = (0..20).collect();
    let mut pickle = Pickle::new();
    pickle.dict(&[()], |pickle, ()| {
        if matches!(kept, Kept::Stack) {
            let planes = |step: &u32| {
                let pixels = frame(number, *step).into_raw();
                (0..3).flat_map(move |channel| pixels[channel..].iter().step_by(3).copied().collect::<Vec<_>>())
            };
            pickle.text("obs_images");
            pickle.array(Dtype::U8, &[20, 3, 64, 64], &steps.iter().flat_map(planes).collect::<Vec<u8>>());
            return;
        }
        pickle.text("steps");
        pickle.list(&steps, |pickle, &step| {
            pickle.dict(&[()], |pickle, ()| {
                pickle.text("observation");
                pickle.dict(&[()], |pickle, ()| {
                    pickle.text(if (step as usize) < bad { "depth" } else { "image" });
                    let picture = frame(number, step);
                    match kept {
                        Kept::Raw => pickle.array(Dtype::U8, &[64, 64, 3], picture.as_raw()),
                        _ => {
                            let mut bytes = Cursor::new(Vec::new());
                            picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
                            pickle.bytes(&bytes.into_inner());
                        }
                    }
                });
            });
        });
    });
    pickle.stop()
}

/// Two sub-datasets of episodes, one of them with an episode beyond use, one of videos, and a pipeline over them.
fn project() -> Project {
    let project = Project::with_clips(2);
    for (name, bytes) in [
        ("bridge/png.pickle", episode(1, Kept::Png, 0)),
        ("bridge/raw.pickle", episode(1, Kept::Raw, 0)),
        ("bridge/nested/stack.pkl", episode(1, Kept::Stack, 0)),
        ("rt1/few_bad.pickle", episode(2, Kept::Png, 2)),
        ("rt1/many_bad.pickle", episode(3, Kept::Png, 3)),
        ("rt1/call.pickle", b"\x80\x02cos\nsystem\n(X\x04\0\0\0trueR.".to_vec()),
    ] {
        project.write(&format!("openx/{name}"), bytes);
    }
    let dldm = weights("dldm-tiny");
    project.write(
        PIPELINE,
        format!(
            r#"name = "toy"
[stage.episodes]
kind = "openx"
root = "openx"
with = {{ craft = "videos" }}
fps = 5
[stage.clips]
kind = "slice"
input = "episodes"
frames = 17
of.craft = {{ sampling = {{ uniform = true }} }}
[stage.frames]
kind = "decode"
input = "clips"
size = [64, 64]
store = "transient"
[stage.codes]
kind = "extract"
input = "frames"
weights = "{}"
[stage.code_dataset]
kind = "export"
input = "codes"
path = "out/codes"
shards = 1
"#,
            dldm.display()
        ),
    );
    project
}

/// Codes and frame rate by clip.
fn codes(project: &Project) -> BTreeMap<String, (Vec<u16>, f32)> {
    let latest = fs::read_dir(project.path("out/codes/latest")).unwrap();
    let shards: Vec<_> = latest.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    let rows = shards.iter().flat_map(|shard| code_dataset::read(shard).unwrap().0);
    rows.map(|row| (row.id, (row.codes, row.fps))).collect()
}

#[test]
fn episodes_and_videos_become_codes_and_bad_ones_are_named() {
    let project = project();
    let report = project.run(&[]);
    assert_eq!((report.count("episodes", "added"), report.count("episodes", "quarantined")), (6, 2));
    let found = codes(&project);
    let ids: Vec<&str> = found.keys().map(String::as_str).collect();
    let wanted = ["bridge/nested/stack.pkl#0", "bridge/png.pickle#0", "bridge/raw.pickle#0", "craft/ep_0000.mp4#0"];
    assert_eq!(ids, [&wanted[..], &["craft/ep_0001.mp4#0", "rt1/few_bad.pickle#0"]].concat());
    assert_eq!(found["bridge/png.pickle#0"], found["bridge/raw.pickle#0"], "the same pixels, kept in two ways");
    assert_eq!(found["bridge/png.pickle#0"], found["bridge/nested/stack.pkl#0"]);
    assert_eq!((found["bridge/png.pickle#0"].1, found["craft/ep_0000.mp4#0"].1), (5.0, 5.0));

    let status = project.vw2(&["status"]).stdout;
    for told in ["3 of 20 frames are bad, the first in step 0: its observation has none of image, rgb", "`os.system`"] {
        assert!(status.contains(told), "no `{told}`: {status}");
    }
    assert_eq!(project.run(&[]).executed(), "", "nothing changed");
    project.write("openx/bridge/raw.pickle", episode(4, Kept::Raw, 0));
    // As many frames of that size as before: the clip that lists them is the same.
    assert_eq!(project.run(&[]).executed(), "episodes=1 frames=1 codes=1 code_dataset=1");
    assert_ne!(codes(&project)["bridge/raw.pickle#0"], found["bridge/raw.pickle#0"]);
}

#[test]
fn a_listing_says_which_files_there_are() {
    let project = project();
    project.write(
        "cache.json",
        r#"{"pickle_paths_by_folder": {
            "bridge": ["openx/bridge/png.pickle", "./openx/bridge/png.pickle", "openx/bridge/gone.pickle"],
            "paper": ["videos/ep_0000.mp4"], "rt1": ["openx/rt1/few_bad.pickle"]},
            "pickle_paths": [], "timestamp": "", "dataset_dir": "openx", "subfolders": null}"#,
    );
    project.edit(
        "root = \"openx\"\nwith = { craft = \"videos\" }",
        "cache = \"cache.json\"\nonly = [\"bridge\", \"paper\"]",
    );
    let report = project.run(&[]);
    assert_eq!((report.count("episodes", "added"), report.count("episodes", "quarantined")), (2, 2));
    let ids: Vec<String> = codes(&project).into_keys().collect();
    let paper: Vec<&String> = ids.iter().filter(|id| id.starts_with("paper/videos/ep_0000.mp4#")).collect();
    assert_eq!((ids.len(), ids[0].as_str(), paper.len()), (3, "bridge/png.pickle#0", 2), "{ids:?}");
    let status = project.vw2(&["status"]).stdout;
    for told in ["`cache.json` lists it, but it cannot be read", "under the same name; rename one of them"] {
        assert!(status.contains(told), "no `{told}`: {status}");
    }
    for (from, to, told) in [
        ("\"paper\"]", "\"papr\"]", "`only` names `papr`, which is no sub-dataset here"),
        ("cache.json", "none.json", "none.json"),
    ] {
        project.edit(from, to);
        let failed = project.vw2(&["run", PIPELINE]);
        assert!(failed.code == 2 && failed.stderr.replace("\n  │ ", " ").contains(told), "{told}: {failed:#?}");
    }
}

#[test]
fn a_training_stage_draws_sub_datasets_in_proportion() {
    let project = project();
    let text = fs::read_to_string(project.path(PIPELINE)).unwrap();
    let stage = "[stage.vae]\nkind = \"train-vae\"\ninput = \"frames\"\nsteps = 3\nminibatch = 2\nframes = 5\n\
                 mix = { meta = \"meta.json\" }\npath = \"out/vae\"\n";
    project.write(PIPELINE, text + stage);
    let meta = |weights: [(&str, u32); 3]| {
        let folders = weights.map(|(name, frames)| {
            format!("\"{name}\": {{\"total_files\": 3, \"frames_per_file\": 20, \"estimated_total_frames\": {frames}}}")
        });
        project.write("meta.json", format!("{{\"subfolders\": {{{}}}}}", folders.join(", ")));
        let report = project.run(&["--only", "vae"]);
        assert_eq!(report.count("vae", "executed"), 1, "weights are part of the key");
        blake3::hash(&fs::read(project.path("out/vae/vae.safetensors")).unwrap())
    };
    let bridge = meta([("bridge", 60), ("craft", 0), ("rt1", 0)]);
    let craft = meta([("bridge", 0), ("craft", 60), ("rt1", 0)]);
    assert_ne!(bridge, craft, "another sub-dataset was learned from");
    assert_eq!(project.run(&["--only", "vae"]).executed(), "");
    for (mix, told) in [
        ("{ weights = { bridge = 1, craft = 1 } }", "`mix` has no weight for the sub-dataset `rt1`"),
        ("{ weights = { brook = 1 } }", "`mix.weights` names `brook`, but the sub-datasets are"),
        ("{ weights = { craft = -1 } }", "`mix.weights.craft` is -1"),
    ] {
        let text = fs::read_to_string(project.path(PIPELINE)).unwrap();
        let (before, rest) = text.split_once("mix = ").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        project.write(PIPELINE, format!("{before}mix = {mix}\n{after}"));
        let finished = project.vw2(&["run", PIPELINE, "--only", "vae"]);
        let said = [finished.stdout, finished.stderr, project.vw2(&["status"]).stdout].concat().replace("\n  │ ", " ");
        assert!(said.contains(told), "no `{told}`: {said}");
    }
}
