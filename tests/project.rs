//! A temporary folder with a small pipeline in it, and the program to run there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::repository;

/// Where a test works. Everything in it is gone when it is dropped.
pub(crate) struct Project {
    dir: TempDir,
}

/// What a call of the program left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The name of the pipeline that [`Project::with_clips`] writes.
pub(crate) const PIPELINE: &str = "toy.toml";

impl Project {
    pub(crate) fn new() -> Project {
        Project { dir: TempDir::new().unwrap() }
    }

    /// The first `count` sample videos (33 frames each: two clips) in `videos/`, one start scene, the shipped weights,
    /// and a pipeline of all steps whose models are trained for a few steps only.
    pub(crate) fn with_clips(count: usize) -> Project {
        let project = Project::new();
        for index in 0..count {
            project.copy_sample(index, &format!("videos/ep_{index:04}.mp4"));
        }
        project.write("scenes/scene.png", scene());
        project.write(PIPELINE, toy_pipeline());
        project
    }

    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Sample video `index` under another name.
    pub(crate) fn copy_sample(&self, index: usize, below: &str) {
        self.write(below, fs::read(sample(index)).unwrap());
    }

    /// `vw2-pipe` in this folder, without the surrounding shell's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vw2-pipe"));
        command.args(arguments).current_dir(self.dir.path());
        command.env_remove("VW2_LOG").env("NO_COLOR", "1").env("LC_ALL", "C.UTF-8").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn vw2(&self, arguments: &[&str]) -> Finished {
        finished(self.command(arguments).spawn().unwrap())
    }

    /// Runs the pipeline with `--json` and more arguments, which has to succeed.
    pub(crate) fn run(&self, more: &[&str]) -> Report {
        let arguments = [&["run", PIPELINE, "--json"], more].concat();
        let finished = self.vw2(&arguments);
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:#?}");
        Report(finished.json())
    }

    /// Replaces text of the pipeline, which has to be there.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(PIPELINE)).unwrap();
        assert!(text.contains(from), "the pipeline has no `{from}`");
        self.write(PIPELINE, text.replace(from, to));
    }

    /// Every file and link below a folder, with its bytes (or target) and its time of change.
    pub(crate) fn tree(&self, below: &str) -> BTreeMap<PathBuf, (String, std::time::SystemTime)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path(below)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let (path, about) = (entry.path(), fs::symlink_metadata(entry.path()).unwrap());
                if about.is_dir() {
                    folders.push(path);
                    continue;
                }
                let content = match about.is_symlink() {
                    true => fs::read_link(&path).unwrap().display().to_string(),
                    false => blake3::hash(&fs::read(&path).unwrap()).to_string(),
                };
                let name = path.strip_prefix(self.dir.path()).unwrap().to_owned();
                found.insert(name, (content, about.modified().unwrap()));
            }
        }
        found
    }

    /// What the store's manifest answers to a query of one number.
    pub(crate) fn manifest_count(&self, sql: &str) -> u64 {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let Ok(manifest) = rusqlite::Connection::open_with_flags(self.path(".vw2/manifest.sqlite"), flags) else {
            return 0;
        };
        manifest.busy_timeout(Duration::from_secs(5)).unwrap();
        manifest.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap_or(0) as u64
    }
}

impl Finished {
    /// The one JSON object on stdout.
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON: {e}: {self:#?}"));
        assert!(value.is_object(), "{self:#?}");
        value
    }
}

/// Waits for a child whose output is piped.
pub(crate) fn finished(child: Child) -> Finished {
    let output = child.wait_with_output().unwrap();
    Finished {
        // A signal's number, negative, where one ended it.
        code: output.status.code().unwrap_or_else(|| {
            use std::os::unix::process::ExitStatusExt;
            -output.status.signal().unwrap_or(0)
        }),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run's `--json` object.
pub(crate) struct Report(pub(crate) Value);

impl Report {
    /// A count of one stage: executed, reused, added, retracted or quarantined.
    pub(crate) fn count(&self, stage: &str, what: &str) -> u64 {
        self.0["stages"][stage][what].as_u64().unwrap_or_else(|| panic!("no `{what}` of `{stage}` in {:#}", self.0))
    }

    /// `stage=count` of every stage that executed something, in the plan's order.
    pub(crate) fn executed(&self) -> String {
        let stages = self.0["stages"].as_object().unwrap();
        let counts = stages.iter().map(|(stage, counts)| (stage, counts["executed"].as_u64().unwrap()));
        let told: Vec<String> = counts.filter(|(_, n)| *n > 0).map(|(stage, n)| format!("{stage}={n}")).collect();
        told.join(" ")
    }
}

/// One of the shipped sample videos.
pub(crate) fn sample(index: usize) -> PathBuf {
    repository::root().join(format!("data/samples/pusht/ep_{index:04}.mp4"))
}

/// A shipped weights file.
pub(crate) fn weights(name: &str) -> PathBuf {
    repository::root().join(format!("data/samples/weights/{name}.safetensors"))
}

/// A start scene: a grey table with a dark square on it, as PNG.
fn scene() -> Vec<u8> {
    let picture = image::RgbImage::from_fn(96, 96, |x, y| {
        let inside = (30..50).contains(&x) && (40..60).contains(&y);
        image::Rgb(if inside { [60, 70, 80] } else { [230, 230, 225] })
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// All steps, with as little training as still makes a model.
fn toy_pipeline() -> String {
    let (vae, dldm) = (weights("vae-tiny"), weights("dldm-tiny"));
    format!(
        r#"name = "toy"

[params]
steps = 2

[runtime]
memory = "1GiB"

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

[stage.latents]
kind = "encode"
inputs = {{ frames = "frames" }}
weights = "{vae}"

[stage.codes]
kind = "extract"
inputs = {{ frames = "frames" }}
weights = "{dldm}"

[stage.code_dataset]
kind = "export"
input = "codes"
path = "out/codes"

[stage.ar]
kind = "train-ar"
input = "codes"
preset = "tiny"
steps = "${{params.steps}}"
path = "out/ar"

[stage.scenes]
kind = "images"
root = "scenes"

[stage.rollouts]
kind = "rollout"
inputs = {{ scenes = "scenes", ar = "ar" }}
weights = {{ dldm = "{dldm}" }}
size = [64, 64]
clips = 2
path = "out/rollouts"
"#,
        vae = vae.display(),
        dldm = dldm.display()
    )
}

/// Whether the test can go on. A missing thing is told, and fails the test where `VW2_REQUIRE` names it.
pub(crate) fn require(name: &str, found: bool) -> bool {
    let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
    assert!(
        found || !required.split(',').any(|wanted| wanted.trim() == name),
        "VW2_REQUIRE wants {name}, which is not here"
    );
    if !found {
        eprintln!("skipped: no {name}");
    }
    found
}

/// The `ffmpeg` and `ffprobe` programs.
pub(crate) fn ffmpeg() -> bool {
    let answers = |program: &str| {
        let call = Command::new(program).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        call.is_ok_and(|status| status.success())
    };
    require("ffmpeg", answers("ffmpeg") && answers("ffprobe"))
}

/// A Python that imports these modules: `VW2_PYTHON`, else `python3`.
pub(crate) fn python(modules: &str) -> Option<String> {
    let python = std::env::var("VW2_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let call = Command::new(&python).args(["-c", &format!("import {modules}")]).stderr(Stdio::null()).status();
    // PyTorch is too large to ask of every machine that has Python, so it goes by a name of its own.
    let name = if modules.contains("torch") { "torch" } else { "python" };
    require(name, call.is_ok_and(|status| status.success())).then_some(python)
}

/// Asks until the answer is yes; panics after `limit`, naming what was waited for.
pub(crate) fn wait_for(what: &str, limit: Duration, mut yes: impl FnMut() -> bool) {
    let began = Instant::now();
    while !yes() {
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
