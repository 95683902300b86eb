//! What stands in the folder and in the pipeline, and how many units follow from that which are not known yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::SystemTime;

use vw2_engine::Hash;

use super::super::project::{Project, weights};
use super::edit::Edit;

pub(super) struct State {
    frames: u64,
    size: u64,
    shards: u64,
    steps: u64,
    weights: u64,
    missing: BTreeSet<&'static str>,
    pub(super) workers: u64,
    batch: u64,
    memory_mib: u64,
}

fn slot(slot: u64) -> String {
    format!("videos/{slot}.mp4")
}

impl State {
    /// An empty folder of videos. `latents` come later, if at all.
    pub(super) fn new(project: &Project) -> State {
        fs::create_dir(project.path("videos")).unwrap();
        let state = State {
            frames: 17,
            size: 64,
            shards: 4,
            steps: 1,
            weights: 0,
            missing: ["latents"].into(),
            workers: 1,
            batch: 4,
            memory_mib: 1024,
        };
        state.write_weights(project);
        state
    }

    pub(super) fn edit(&mut self, edit: &Edit, project: &Project) {
        // Of a slot without a video nothing can be said or done.
        let read = |at: u64| fs::read(project.path(slot(at))).ok();
        match *edit {
            Edit::Add(at, sample) => project.copy_sample(sample, &slot(at)),
            Edit::Remove(at) => _ = fs::remove_file(project.path(slot(at))),
            Edit::Rename(at, to) => _ = fs::rename(project.path(slot(at)), project.path(slot(to))),
            Edit::Copy(at, to) => read(at).into_iter().for_each(|bytes| project.write(&slot(to), bytes)),
            Edit::Truncate(at, percent) => read(at).into_iter().for_each(|bytes| {
                project.write(&slot(at), &bytes[..bytes.len() * percent as usize / 100]);
            }),
            Edit::Flip(at, per_mille) => read(at).into_iter().for_each(|mut bytes| {
                let byte = bytes.len() * per_mille as usize / 1000;
                bytes.get_mut(byte).into_iter().for_each(|byte| *byte ^= 1 << (per_mille % 8));
                project.write(&slot(at), bytes);
            }),
            Edit::Touch(at) => {
                let video = fs::File::options().append(true).open(project.path(slot(at)));
                video.into_iter().for_each(|video| video.set_modified(SystemTime::now()).unwrap());
            }
            Edit::Frames(frames) => self.frames = frames,
            Edit::Size(size) => self.size = size,
            Edit::Shards(shards) => self.shards = shards,
            Edit::Steps(steps) => self.steps = steps,
            Edit::Weights(weights) => {
                self.weights = weights;
                self.write_weights(project);
            }
            Edit::Stage(stage, true) => _ = self.missing.remove(stage),
            Edit::Stage(stage, false) => _ = self.missing.insert(stage),
            Edit::Workers(workers) => self.workers = workers,
            Edit::Batch(batch) => self.batch = batch,
            Edit::MemoryMib(memory) => self.memory_mib = memory,
            // Something to do: without it a run is over before anything happens to it.
            Edit::Kill(n) | Edit::FullDisk(n) => project.copy_sample(n as usize % 40, &slot(n % 3)),
        }
    }

    /// The shipped weights, or with one bit of the last tensor's last value changed.
    fn write_weights(&self, project: &Project) {
        let mut bytes = fs::read(weights("dldm-tiny")).unwrap();
        let low = bytes.len() - 2;
        bytes[low] ^= self.weights as u8;
        project.write("weights/dldm.safetensors", bytes);
    }

    /// The pipeline's file.
    pub(super) fn toml(&self) -> String {
        let State { frames, size, shards, steps, batch, memory_mib, .. } = self;
        let mut toml = format!(
            "name = \"contract\"\n[runtime]\nmemory = \"{memory_mib}MiB\"\n\
             [stage.videos]\nkind = \"videos\"\nroot = \"videos\"\n\
             [stage.clips]\nkind = \"slice\"\ninput = \"videos\"\nframes = {frames}\nsampling = {{ uniform = true }}\n\
             [stage.frames]\nkind = \"decode\"\ninput = \"clips\"\nsize = [{size}, {size}]\nstore = \"transient\"\n\
             [stage.codes]\nkind = \"extract\"\ninputs = {{ frames = \"frames\" }}\n\
             weights = \"weights/dldm.safetensors\"\nrun = {{ batch = {batch} }}\n"
        );
        for (stage, text) in [
            (
                "latents",
                format!("kind = \"encode\"\ninputs = {{ frames = \"frames\" }}\nweights = {:?}\n", weights("vae-tiny")),
            ),
            (
                "code_dataset",
                format!("kind = \"export\"\ninput = \"codes\"\nshards = {shards}\npath = \"out/codes\"\n"),
            ),
            (
                "ar",
                format!(
                    "kind = \"train-ar\"\ninput = \"codes\"\npreset = \"tiny\"\nsteps = {steps}\npath = \"out/ar\"\n"
                ),
            ),
        ] {
            if self.has(stage) {
                toml += &format!("[stage.{stage}]\n{text}");
            }
        }
        toml
    }

    fn has(&self, stage: &str) -> bool {
        !self.missing.contains(stage)
    }

    /// Names all that a result may depend on.
    pub(super) fn fingerprint(&self, project: &Project) -> String {
        let State { frames, size, shards, steps, weights, missing, .. } = self;
        let videos: Vec<_> = project.tree("videos").into_iter().map(|(path, (content, _))| (path, content)).collect();
        format!("{frames} {size} {shards} {steps} {weights} {missing:?} {videos:?}")
    }
}

/// Units whose result is known, by stage, named by all that determines it.
#[derive(Default)]
pub(super) struct Known(BTreeMap<&'static str, BTreeSet<String>>);

impl Known {
    /// How many units of each stage a run has to compute; from now on they are known. `rows` are those of a rebuild: what a
    /// file yields is no concern of this model, only what follows from it.
    pub(super) fn learn(
        &mut self,
        state: &State,
        project: &Project,
        rows: &BTreeSet<[String; 4]>,
    ) -> BTreeMap<&'static str, u64> {
        let of = |stage: &'static str| rows.iter().filter(move |[name, ..]| name == stage);
        let videos: BTreeMap<String, String> = project
            .tree("videos")
            .into_iter()
            .map(|(path, (content, _))| (path.display().to_string(), content))
            .collect();
        let mut counts = BTreeMap::new();
        let mut count = |stage, unknown: usize| _ = counts.insert(stage, unknown as u64);

        count("videos", self.add("videos", videos.values().cloned().collect()).len());
        let clips = of("videos").map(|[_, _, content, _]| format!("{content} {}", state.frames)).collect();
        count("clips", self.add("clips", clips).len());

        // By clip: what determines its frames.
        let frames = |[_, id, content, origin]: &[String; 4]| {
            (id.clone(), format!("{content} {} {}", videos.get(origin).map_or("", String::as_str), state.size))
        };
        let frames: BTreeMap<String, String> = of("clips").map(frames).collect();
        let mut decoded = BTreeSet::new();
        for (stage, more) in [("codes", state.weights), ("latents", 0)] {
            if !state.has(stage) {
                continue;
            }
            let unknown = self.add(stage, frames.values().map(|frames| format!("{frames}/{more}")).collect());
            let unknown = |frames: &&String| unknown.contains(&format!("{frames}/{more}"));
            decoded.extend(frames.values().filter(unknown).cloned());
            // A clip that cannot be decoded ends before these stages.
            let good = of(stage).filter_map(|[_, id, ..]| frames.get(id));
            count(stage, good.filter(unknown).collect::<BTreeSet<_>>().len());
        }
        count("frames", decoded.len());

        let mut shards: BTreeMap<u64, String> = BTreeMap::new();
        for [_, id, content, _] in of("codes") {
            let Hash([a, b, c, d, e, f, g, h, ..]) = Hash::of_bytes(id.as_bytes());
            let shard = u64::from_le_bytes([a, b, c, d, e, f, g, h]) % state.shards;
            *shards.entry(shard).or_default() += &format!("{id} {content} of {},", state.shards);
        }
        if state.has("code_dataset") {
            count("code_dataset", self.add("code_dataset", shards.into_values().collect()).len());
        }
        let codes: String = of("codes").map(|[_, id, content, _]| format!("{id} {content},")).collect();
        if state.has("ar") && !codes.is_empty() {
            count("ar", self.add("ar", [format!("{} {codes}", state.steps)].into()).len());
        }
        counts
    }

    /// Those of these units that are new.
    fn add(&mut self, stage: &'static str, units: BTreeSet<String>) -> BTreeSet<String> {
        let known = self.0.entry(stage).or_default();
        let new = units.difference(known).cloned().collect();
        known.extend(units);
        new
    }
}
