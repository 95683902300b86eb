//! `rollout`: start scenes to imagined video: picture -> AR codes -> dLDM coarse decoder, clip after clip.
//!
//! Each clip is decoded from the dLDM's feature of a start frame; the next clip starts from the last decoded frame, raw
//! and not rounded to 8 bits. As clips share their boundary frame, each clip's last frame is left out of the joined
//! video: n clips of 1 + 4k frames give 4k n frames.
//! Source: spec section 5.7, steps 1-3. Differs: one folder per scene (upstream overwrites one file), and the range is
//! always read as [-1, 1].

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vw2_data::media::{self, Mp4Options, Mp4Writer, Sheet, contact_sheet};
use vw2_data::{Rollout as RolloutRow, Rollouts};
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::{
    Context, InputFile, Interrupted, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};
use vw2_engine::store::Blobs;
use vw2_kernels::{denormalise, normalise, rgb_resize};
use vw2_models::ar::{Clips, CodeModel, Sampling};
use vw2_models::dldm::Dldm;

use crate::model_file::{ModelFile, values};
use crate::tables;

/// Imagines what follows each scene.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    pub weights: RolloutWeights,
    /// Height and width that the dLDM sees; multiples of 16, as in training.
    pub size: [u32; 2],
    /// Clips per scene.
    pub clips: usize,
    /// Frame rate of the videos.
    #[serde(default = "default_fps")]
    pub fps: f64,
    /// Which of the model's tasks to do; left out for models that were trained without tasks.
    #[serde(default)]
    pub task: Option<String>,
    /// How codes are drawn from the AR model.
    #[serde(default)]
    pub sampling: Sampling,
    /// The folder that receives a folder per scene.
    pub path: Location,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutWeights {
    /// Left out where port `dldm` is connected.
    #[serde(default)]
    pub dldm: Option<InputFile>,
    /// Left out where port `ar` is connected.
    #[serde(default)]
    pub ar: Option<InputFile>,
}

fn default_fps() -> f64 {
    16.0
}

impl Stage for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "start scenes to imagined video";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::row("scenes", &tables::IMAGES),
        Port::whole("ar", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::ROLLOUTS;

    fn check(&self) -> Result<(), String> {
        if let Some(side) = self.size.iter().find(|&&side| side == 0 || side % 16 != 0) {
            return Err(format!("`size` has {side}, but both sides are multiples of 16"));
        }
        if self.clips == 0 {
            return Err("`clips` is 0; a rollout has at least 1".into());
        }
        if !(self.fps > 0.0 && self.fps <= 1000.0) {
            return Err(format!("`fps` is {}; it wants more than 0 and at most 1000", self.fps));
        }
        self.sampling.check().map_err(|error| format!("`sampling`: {error}"))
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    /// The scene's name without its extension: it names a folder.
    fn row_id(&self, unit: &str, _row: &str) -> String {
        match unit.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() && !extension.contains('/') => stem.to_owned(),
            _ => unit.to_owned(),
        }
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    fn reads_file(&self) -> bool {
        true
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let dldm = self.weights.dldm.as_ref();
        let ar = self.weights.ar.as_ref();
        Ok(Box::new(Imaginer {
            dldm: ModelFile::new(ctx, dldm, "dldm", |weights, device| Ok(Dldm::load(weights, device)?))?,
            ar: ModelFile::new(ctx, ar, "ar", |weights, device| {
                let tasks =
                    weights.metadata().get("tasks").map_or(Ok(Vec::new()), |text| serde_json::from_str(text))?;
                Ok(Autoregressor { model: CodeModel::load(weights, device)?, tasks })
            })?,
            size: self.size.map(|side| side as usize),
            clips: self.clips,
            fps: self.fps,
            task: self.task.clone(),
            sampling: self.sampling.clone(),
            ctx: ctx.clone(),
        }))
    }
}

/// The AR model with the names of its tasks.
struct Autoregressor {
    model: CodeModel,
    tasks: Vec<String>,
}

struct Imaginer {
    dldm: ModelFile<Dldm>,
    ar: ModelFile<Autoregressor>,
    size: [usize; 2],
    clips: usize,
    fps: f64,
    task: Option<String>,
    sampling: Sampling,
    ctx: Context,
}

impl Operator for Imaginer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let Some(path) = unit.file.clone() else {
                return Err(format!("{}: the scene goes back to no file", unit.id).into());
            };
            let scene = match media::image::decode(&path) {
                Ok(scene) => scene,
                Err(error) if error.is_transient() => {
                    out.retry(unit, error.reason());
                    continue;
                }
                Err(error) => {
                    out.reject(unit, error.reason());
                    continue;
                }
            };
            let pixels = rgb_resize(&scene.pixels, [scene.height as usize, scene.width as usize], self.size)?;
            let imagined = self.imagine(unit, &pixels)?;
            self.publish(unit, out, &imagined)?;
        }
        Ok(())
    }
}

/// The codes of each clip and the frames of each clip, u8 RGB [T, H, W, 3].
struct Imagined {
    codes: Vec<Vec<u32>>,
    clips: Vec<Vec<u8>>,
}

impl Imaginer {
    fn imagine(&mut self, unit: &Unit, pixels: &[u8]) -> Result<Imagined, StageError> {
        let [h, w] = self.size;
        let (dldm, device) = self.dldm.get(unit)?;
        let mut feature = dldm.first_frame_feature(normalise(pixels, [1, h, w], device)?)?; // [1, C, h, w]
        let (ar, _) = self.ar.get(unit)?;
        let task = task_number(self.task.as_deref(), &ar.tasks)?;
        let codes = ar.model.generate(&values(feature.clone()), task, Clips::Exactly(self.clips), &self.sampling)?;

        let mut clips = Vec::with_capacity(codes.len());
        for clip in &codes {
            if self.ctx.cancel.is_cancelled() {
                return Err(Interrupted.into());
            }
            let clip: Vec<i64> = clip.iter().map(|&code| i64::from(code)).collect();
            let indices = Tensor::<2, Int>::from_data(TensorData::new(clip.clone(), [1, clip.len()]), device);
            let video = dldm.decode(dldm.codes_of(indices), feature)?; // [1, 3, T, H, W]
            let last = video.dims()[2] - 1;
            feature = dldm.first_frame_feature(video.clone().narrow(2, last, 1))?;
            clips.push(denormalise(video));
        }
        Ok(Imagined { codes, clips })
    }

    /// One MP4 per clip, the joined video and a contact sheet, as files and as one row.
    fn publish(&self, unit: &Unit, out: &mut Output, imagined: &Imagined) -> Result<(), StageError> {
        let [h, w] = self.size;
        let frame_bytes = h * w * 3;
        let mut files = Vec::new();
        let mut joined = Vec::new();
        for (index, clip) in imagined.clips.iter().enumerate() {
            files.push((format!("{{id}}/clip_{index}.mp4"), self.video(clip)?));
            joined.extend_from_slice(&clip[..clip.len() - frame_bytes]);
        }
        let frames = joined.len() / frame_bytes;
        let video = self.video(&joined)?;
        files.push(("{id}/rollout.mp4".to_owned(), video));
        let rows = imagined.clips.len() as u32;
        let sheet = Sheet { columns: (frames as u32).div_ceil(rows).min(8), rows: Some(rows), ..Sheet::default() };
        let sheet = contact_sheet(&joined, [frames, h, w, 3], sheet)?;
        files.push(("{id}/sheet.png".to_owned(), self.ctx.blobs.put(&sheet)?));
        let row = Rollouts::row(&RolloutRow {
            clips: rows,
            frames: frames as u32,
            width: w as u32,
            height: h as u32,
            fps: self.fps as f32,
            codes: imagined.codes.iter().flatten().map(|&code| code as u16).collect(),
            blob: video.to_string(),
        })?;
        out.push_with_files(unit, "", row, files);
        Ok(())
    }

    /// The MP4 of frames u8 RGB [T, H, W, 3].
    fn video(&self, frames: &[u8]) -> Result<Hash, StageError> {
        let [h, w] = self.size;
        let mut writer = Mp4Writer::new(Mp4Options::new(w as u32, h as u32, self.fps))?;
        for frame in frames.chunks(h * w * 3) {
            writer.push(frame)?;
        }
        let blobs: &Blobs = &self.ctx.blobs;
        Ok(blobs.put(&writer.finish()?)?)
    }
}

/// A task's place in the model's list.
fn task_number(task: Option<&str>, tasks: &[String]) -> Result<u32, StageError> {
    let Some(task) = task else { return Ok(0) };
    match tasks.iter().position(|known| known == task) {
        Some(index) => Ok(index as u32),
        None => Err(format!("the model knows no task `{task}`; it was trained on {}", tasks.join(", ")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_found_by_name() {
        let tasks = ["boat".to_owned(), "plane".to_owned()];
        assert_eq!(task_number(None, &tasks).unwrap(), 0);
        assert_eq!(task_number(Some("plane"), &tasks).unwrap(), 1);
        assert!(task_number(Some("horse"), &tasks).unwrap_err().to_string().contains("boat, plane"));
    }
}
